//! What one guest has, for another process to go on with: nodes, open files and directories, locks.
//!
//! A node is found again by its file handle, where the host lets us open those; else in the directory where it was only seen; else at the
//! path that it had. What is found is the same inode if number, type and time of birth are, and its file handle where there is
//! one. All else is lost, and ESTALE for the guest.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use virtiofs_fuse::wire::{FileLock, LkIn, ROOT_ID};
use virtiofs_fuse::{BACKING, Lost, Reader, Result, Saved, Thing, Unusable};

use crate::HostDir;
use crate::bounds::Counted;
use crate::error::{Lift, STALE};
use crate::handles::{DirHandle, FileHandle};
use crate::inode::{Inode, NewInode};
use crate::open::open_directory;
use crate::pins::{Hold, Mount};
use crate::seen::Seen;
use crate::stat::{Born, Status};
use crate::sys;

/// Flags of an open file that its next open(2) is to have.
const KEPT: i32 = libc::O_ACCMODE | libc::O_APPEND | libc::O_DIRECT | libc::O_NOATIME | libc::O_SYNC | libc::O_DSYNC;

/// A node as it is saved.
#[derive(Debug, Default, PartialEq)]
struct Node {
    id: u64,
    lookups: u64,
    ino: u64,
    kind: u32,
    born: Option<Born>,
    submount: bool,
    foreign: bool,
    announced: bool,
    /// On the mount that the share's root is on; handles of others are opened nowhere.
    beside_root: bool,
    handle: Vec<u8>,
    /// Where it was only seen: a node, and a name there.
    seen_in: Option<(u64, Vec<u8>)>,
    /// From the share's root; empty if it has no path there.
    path: Vec<u8>,
}

impl Node {
    fn write(&self, out: &mut Saved) {
        out.numbers([self.id, self.lookups, self.ino, self.kind.into()]);
        out.number(self.born.is_some().into());
        let (seconds, nanoseconds) = self.born.unwrap_or_default();
        out.number(seconds as u64);
        out.number(nanoseconds.into());
        for flag in [self.submount, self.foreign, self.announced, self.beside_root, self.seen_in.is_some()] {
            out.number(flag.into());
        }
        let (parent, name) = self.seen_in.as_ref().map_or((0, &[][..]), |(parent, name)| (*parent, name));
        out.number(parent);
        out.bytes(name);
        out.bytes(&self.handle);
        out.bytes(&self.path);
    }

    fn read(from: &mut Reader<'_>) -> Result<Node, Unusable> {
        let (id, lookups, ino, kind) = (from.number()?, from.number()?, from.number()?, from.narrow()?);
        let has_birth = from.flag()?;
        let born = (from.number()? as i64, from.narrow()?);
        let (submount, foreign, announced) = (from.flag()?, from.flag()?, from.flag()?);
        let (beside_root, was_seen) = (from.flag()?, from.flag()?);
        let seen_in = (from.number()?, from.bytes()?.to_vec());
        Ok(Node {
            id,
            lookups,
            ino,
            kind,
            born: has_birth.then_some(born),
            submount,
            foreign,
            announced,
            beside_root,
            seen_in: was_seen.then_some(seen_in),
            handle: from.bytes()?.to_vec(),
            path: from.bytes()?.to_vec(),
        })
    }

    fn is_directory(&self) -> bool {
        self.kind == libc::S_IFDIR
    }

    /// Whether this is the inode that the node was of.
    fn is(&self, status: &Status) -> bool {
        let born = self.born.is_none() || self.born == status.born();
        born && (self.ino, self.kind) == (status.key().ino, status.kind())
    }

    fn handle(&self) -> Option<sys::FileHandle> {
        sys::FileHandle::from_bytes(&self.handle)
    }
}

/// The next number of an open file or directory, or of one to come: those from half of [`BACKING`] on are out of anybody's reach, so that none
/// ever has that bit.
fn number_of_handle(from: &mut Reader<'_>) -> Result<u64, Unusable> {
    let number = from.number()?;
    if number < BACKING / 2 { Ok(number) } else { Err(Unusable::Broken) }
}

impl HostDir {
    pub(crate) fn op_save(&self, out: &mut Saved) {
        out.number(self.slots());
        out.number(self.inodes.next());
        let mut nodes: Vec<Node> = self.inodes.all().iter().map(|inode| self.describe(inode)).collect();
        // What was seen in a directory is found again after that.
        nodes.sort_by_key(|node| !node.is_directory());
        out.number(nodes.len() as u64);
        nodes.iter().for_each(|node| node.write(out));

        out.number(self.files.next());
        // What others gave to be served in place of a node's file is theirs to say.
        let files: Vec<_> = self.files.all().into_iter().filter(|(number, _)| number & BACKING == 0).collect();
        out.number(files.len() as u64);
        for (number, file) in &files {
            let flags = rustix::fs::fcntl_getfl(file.fd()).map_or(0, |flags| flags.bits() as i32 & KEPT);
            let locked = file.locked.load(Ordering::Relaxed);
            out.numbers([*number, file.inode.id, flags as u64, locked.into()]);
        }
        out.number(self.directories.next());
        let directories = self.directories.all();
        out.number(directories.len() as u64);
        for (number, directory) in &directories {
            out.numbers([*number, directory.inode.id]);
        }
        let locks = self.locks.of_session(self.session);
        out.number(locks.len() as u64);
        for LkIn { fh, owner, lk, lk_flags, .. } in locks {
            out.numbers([fh, owner, lk.start, lk.end, lk.kind.into(), lk.pid.into(), lk_flags.into()]);
        }
    }

    fn slots(&self) -> u64 {
        self.config.versions.as_ref().map_or(0, |table| table.slots())
    }

    fn describe(&self, inode: &Inode) -> Node {
        let mut node = Node {
            id: inode.id,
            lookups: inode.lookups(),
            ino: inode.key.ino,
            kind: inode.kind(),
            submount: inode.submount,
            foreign: inode.foreign,
            announced: inode.announced.load(Ordering::Relaxed),
            beside_root: inode.key.mount == self.inodes.root().key.mount,
            seen_in: inode.seen_in(),
            ..Node::default()
        };
        // One that cannot be opened any more is lost already; who goes on finds that out.
        if let Ok(fd) = inode.borrow() {
            node.born = Status::of(&fd).ok().and_then(|status| status.born());
            node.handle = sys::name_to_handle_at(fd.as_fd()).map_or_else(|_| Vec::new(), |handle| handle.to_bytes());
            node.path = self.path_in_share(&fd).unwrap_or_default();
        }
        node
    }

    /// Where the inode of a descriptor is, from the share's root.
    fn path_in_share(&self, fd: &OwnedFd) -> Option<Vec<u8>> {
        let (path, root) = (self.path_of_fd(fd).ok()?, self.path(ROOT_ID).ok()?);
        Some(path.strip_prefix(root).ok()?.as_os_str().as_bytes().to_vec())
    }

    pub(crate) fn op_restore(&self, from: &mut Reader<'_>, lost: &mut Vec<Lost>) -> Result<(), Unusable> {
        let slots = from.number()?;
        if slots != self.slots() {
            return Err(Unusable::Other(format!(
                "node ids were made for a version table of {slots} slots, and there are {}",
                self.slots()
            )));
        }
        let next = from.number()?;
        if !self.inodes.go_on_from(next) {
            return Err(Unusable::Broken);
        }
        let mount = self.inodes.mount_of_root();
        let mut paths = HashMap::new();
        for _ in 0..from.number()? {
            let node = Node::read(from)?;
            if node.id / slots.max(1) >= next {
                return Err(Unusable::Broken);
            }
            match self.find_again(&node, mount.as_ref()) {
                Ok(()) => drop(paths.insert(node.id, node.path)),
                Err(error) => lost.push(Lost { what: Thing::Node, node: node.id, path: node.path, error }),
            }
        }
        let lose = |what, node, error| {
            // What a lost node had open is lost with it.
            let path = if node == ROOT_ID { Some(Vec::new()) } else { paths.get(&node).cloned() };
            path.map(|path| Lost { what, node, path, error })
        };
        let mut open = HashMap::new();
        self.files.go_on_from(number_of_handle(from)?);
        for _ in 0..from.number()? {
            let (number, node) = (number_of_handle(from)?, from.number()?);
            let (flags, locked) = (from.narrow::<u32>()?, from.flag()?);
            open.insert(number, node);
            match self.open_again(node, flags) {
                Ok(file) => {
                    file.locked.store(locked, Ordering::Relaxed);
                    self.files.insert_again(number, file);
                }
                Err(error) => lost.extend(lose(Thing::File, node, error)),
            }
        }
        self.directories.go_on_from(number_of_handle(from)?);
        for _ in 0..from.number()? {
            let (number, node) = (number_of_handle(from)?, from.number()?);
            match self.inodes.get(node).and_then(|inode| {
                Ok(DirHandle::new(Arc::clone(&inode), Counted::new(open_directory(&inode)?, &self.bounds)))
            }) {
                Ok(directory) => self.directories.insert_again(number, directory),
                Err(error) => lost.extend(lose(Thing::Directory, node, error)),
            }
        }
        for _ in 0..from.number()? {
            let (fh, owner) = (from.number()?, from.number()?);
            let lk = FileLock { start: from.number()?, end: from.number()?, kind: from.narrow()?, pid: from.narrow()? };
            let ask = LkIn { fh, owner, lk, lk_flags: from.narrow()?, ..LkIn::default() };
            if let Err(error) = self.op_setlk(&ask, false) {
                lost.extend(open.get(&fh).and_then(|node| lose(Thing::Lock, *node, error)));
            }
        }
        if let Some(table) = &self.config.versions {
            // Nobody counted while nobody served.
            table.bump_all();
        }
        Ok(())
    }

    fn find_again(&self, node: &Node, mount: Option<&Mount>) -> Result<()> {
        let (hold, status) = self.hold_again(node, mount)?;
        let path = Path::new(OsStr::from_bytes(&node.path));
        let effects = self.effects_at(path, &status)?;
        let new = NewInode::new(hold, &status, effects, node.submount, node.foreign);
        let inode = self.inodes.enter_again(node.id, node.lookups, status.key(), new)?;
        inode.announced.store(node.announced, Ordering::Relaxed);
        self.asked(&inode);
        Ok(())
    }

    fn hold_again(&self, node: &Node, mount: Option<&Mount>) -> Result<(Hold, Status)> {
        let handle = node.handle();
        if let (Some(handle), Some(mount), true) = (&handle, mount, node.beside_root)
            && let Ok(fd) = sys::open_by_handle_at(mount.as_fd(), handle, libc::O_PATH)
        {
            let status = self.shown(Status::of(&fd)?, &fd);
            let hold = Hold::Handle(Box::new((Arc::clone(mount), handle.clone())));
            return if node.is(&status) { Ok((hold, status)) } else { Err(STALE) };
        }
        if let (Some((parent, name)), Some(born), false) = (&node.seen_in, node.born, self.keeps())
            && let Ok(parent) = self.inodes.get(*parent)
            && let Ok(name) = CString::new(name.as_slice())
            && let Ok(status) = Status::by_name(parent.fd()?, &name)
            && node.is(&status)
        {
            return Ok((Hold::Seen(Seen::new(&parent, &name, born)), status));
        }
        if node.path.is_empty() {
            return Err(STALE);
        }
        let root = self.inodes.root().fd()?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let fd = rustix::io::retry_on_intr(|| {
            rustix::fs::openat2(&root, node.path.as_slice(), flags, Mode::empty(), resolve)
        });
        let fd = fd.lift()?;
        let status = self.shown(Status::of(&fd)?, &fd);
        let other = handle.is_some_and(|handle| sys::name_to_handle_at(fd.as_fd()).is_ok_and(|found| found != handle));
        if other || !node.is(&status) { Err(STALE) } else { Ok((Hold::Fd(fd), status)) }
    }

    fn open_again(&self, node: u64, flags: u32) -> Result<FileHandle> {
        let inode = self.inodes.get(node)?;
        inode.must_be_regular()?;
        let flags = flags as i32 & KEPT;
        if flags & libc::O_ACCMODE != libc::O_RDONLY {
            inode.must_be_writable()?;
        }
        let (fd, flags) = self.open_inode(&inode, flags, flags as u32)?;
        Ok(FileHandle::new(inode, Counted::new(fd, &self.bounds), flags))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read_as_it_was_written() {
        let plain = Node { id: 7, lookups: 3, ino: 9, kind: libc::S_IFREG, ..Node::default() };
        let full = Node {
            born: Some((-5, 17)),
            submount: true,
            foreign: true,
            announced: true,
            beside_root: true,
            handle: vec![8, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
            seen_in: Some((4, b"name".to_vec())),
            path: b"dir/name".to_vec(),
            ..Node::default()
        };
        for node in [plain, full] {
            let mut saved = Saved::default();
            node.write(&mut saved);
            let bytes = saved.into_bytes();
            let mut reader = Reader::new(&bytes);
            assert_eq!(Node::read(&mut reader).unwrap(), node);
            reader.end().unwrap();
            for len in 0..bytes.len() {
                assert!(Node::read(&mut Reader::new(&bytes[..len])).is_err());
            }
        }
    }
}
