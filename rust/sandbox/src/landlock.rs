#![allow(unsafe_code)]
// UNSAFETY: the `landlock` crate tells which version the kernel has only after it restricted something.

//! Files that this thread, and the threads it starts, may open: landlock(7).
//!
//! What is open already stays open, and O_PATH descriptors may be had of anything. A file counts as below a directory if the walk from it
//! towards the root, mounts included, passes the directory. Where that walk cannot be made (a file opened by handle that has no name in the kernel's
//! cache, a directory that was moved out of its mount) older kernels refuse, newer ones go by the mount.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};

/// What is asked for where the kernel has it.
const NEWEST: ABI = ABI::V7;

/// What a directory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Listing directories and reading files.
    Read,
    /// That, and every change. Not execution.
    Change,
}

impl Rights {
    fn access(self) -> BitFlags<AccessFs> {
        let all = match self {
            Rights::Read => AccessFs::from_read(NEWEST),
            Rights::Change => AccessFs::from_all(NEWEST),
        };
        all & !BitFlags::from(AccessFs::Execute)
    }
}

/// The version of Landlock that this kernel offers; 0 for none. The second is the first that lets files be renamed from one directory to
/// another.
pub fn version() -> i32 {
    const VERSION: u32 = 1; // LANDLOCK_CREATE_RULESET_VERSION
    // SAFETY: with this flag the call reads no memory and makes nothing: it answers a number (landlock_create_ruleset(2)).
    let answer = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    i32::try_from(answer).unwrap_or(0).max(0)
}

/// From now on this thread opens only what lies below one of `directories`, by what it may do there; it uses no TCP port, and
/// sends signals and connects abstract sockets only within itself, as far as the kernel can hold it to that. Sets no_new_privs.
///
/// Without `files`, the contents of files are left out: reading and writing them is not restricted, while directories are, and
/// their changes.
///
/// Answers whether anything is restricted.
pub fn restrict<P: AsRef<Path>>(directories: &[(P, Rights)], files: bool) -> io::Result<bool> {
    let mut handled = AccessFs::from_all(NEWEST);
    if !files {
        handled &= !(AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate);
    }
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(handled)
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    for (path, rights) in directories {
        let directory = PathFd::new(path).map_err(io::Error::other)?;
        rules = rules.add_rule(PathBeneath::new(directory, rights.access() & handled)).map_err(io::Error::other)?;
    }
    let status = rules.restrict_self().map_err(io::Error::other)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::ErrorKind::PermissionDenied;

    fn confined(work: impl FnOnce() + Send + 'static) {
        if version() < 2 {
            eprintln!("skipped: this kernel has no Landlock, or the first version");
            return;
        }
        // A thread of its own: the restriction is the thread's alone.
        std::thread::spawn(work).join().unwrap();
    }

    #[test]
    fn nothing_outside_is_opened() {
        confined(|| {
            let dir = tempfile::tempdir().unwrap();
            let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
            fs::create_dir(&inside).unwrap();
            fs::write(&outside, "secret").unwrap();
            fs::hard_link(&outside, inside.join("linked")).unwrap();
            std::os::unix::fs::symlink(&outside, inside.join("symlink")).unwrap();
            assert!(restrict(&[(&inside, Rights::Change)], true).unwrap());

            assert_eq!(File::open(&outside).unwrap_err().kind(), PermissionDenied);
            assert_eq!(File::open(inside.join("symlink")).unwrap_err().kind(), PermissionDenied);
            assert_eq!(fs::read_dir(dir.path()).unwrap_err().kind(), PermissionDenied);
            assert_eq!(fs::remove_file(&outside).unwrap_err().kind(), PermissionDenied);
            assert_eq!(File::open("/proc/self/maps").unwrap_err().kind(), PermissionDenied);
            // A name inside is inside, whatever other names the file has.
            assert_eq!(fs::read_to_string(inside.join("linked")).unwrap(), "secret");
            fs::create_dir(inside.join("sub")).unwrap();
            fs::write(inside.join("new"), "x").unwrap();
            fs::rename(inside.join("new"), inside.join("sub/moved")).unwrap();
        });
    }

    #[test]
    fn who_may_read_changes_nothing() {
        confined(|| {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("f"), "x").unwrap();
            assert!(restrict(&[(dir.path(), Rights::Read)], true).unwrap());
            assert_eq!(fs::read_to_string(dir.path().join("f")).unwrap(), "x");
            assert_eq!(fs::write(dir.path().join("f"), "y").unwrap_err().kind(), PermissionDenied);
            assert_eq!(fs::write(dir.path().join("g"), "y").unwrap_err().kind(), PermissionDenied);
            assert_eq!(fs::remove_file(dir.path().join("f")).unwrap_err().kind(), PermissionDenied);
        });
    }

    #[test]
    fn without_files_their_contents_are_left_out() {
        confined(|| {
            let dir = tempfile::tempdir().unwrap();
            let inside = dir.path().join("in");
            fs::create_dir(&inside).unwrap();
            fs::write(dir.path().join("f"), "x").unwrap();
            assert!(restrict(&[(&inside, Rights::Change)], false).unwrap());
            assert_eq!(fs::read_to_string(dir.path().join("f")).unwrap(), "x");
            assert_eq!(fs::write(dir.path().join("g"), "y").unwrap_err().kind(), PermissionDenied);
            assert_eq!(fs::read_dir(dir.path()).unwrap_err().kind(), PermissionDenied);
        });
    }
}
