//! What has to be as it was: files beside the share, the work of others, what the process holds.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtiofs_guest::Guest;

/// Stands in files that no guest may read.
pub(crate) const SECRET: &[u8] = b"=SENTINEL-OUTSIDE-OF-THE-SHARE=";

/// All there is at and below a path: attributes and content.
pub(crate) fn picture(top: &Path) -> BTreeMap<PathBuf, (Vec<u64>, Vec<u8>)> {
    let mut seen = BTreeMap::new();
    let mut waiting = vec![top.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let mut content = Vec::new();
        if meta.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                waiting.push(entry.unwrap().path());
            }
        } else if meta.is_file() {
            content = fs::read(&path).unwrap();
        }
        let numbers = vec![
            u64::from(meta.mode()),
            u64::from(meta.uid()),
            u64::from(meta.gid()),
            meta.ino(),
            meta.nlink(),
            meta.size(),
            meta.mtime() as u64,
            meta.mtime_nsec() as u64,
            meta.ctime() as u64,
            meta.ctime_nsec() as u64,
        ];
        seen.insert(path, (numbers, content));
    }
    seen
}

/// Does a round of work in `folder`, and looks at all that comes of it.
pub(crate) fn work(guest: &Guest, folder: &str, round: u64) {
    let (one, two) = (format!("{folder}/one-{}", round % 7), format!("{folder}/two-{}", round % 7));
    let data: Vec<u8> = (0..20_000u64).map(|k| (k.wrapping_mul(round | 1) >> 3) as u8).collect();
    guest.write_file(&one, &data).unwrap_or_else(|error| panic!("round {round}, write: {error}"));
    assert_eq!(guest.stat(&one).unwrap().size, 20_000, "round {round}");
    guest.rename(&one, &two, 0).unwrap_or_else(|error| panic!("round {round}, rename: {error}"));
    assert!(!guest.exists(&one).unwrap(), "round {round}");
    let found = guest.read_file(&two).unwrap_or_else(|error| panic!("round {round}, read: {error}"));
    assert!(found == data, "round {round}: other bytes than were written");
    let listed = guest.listdir(folder).unwrap_or_else(|error| panic!("round {round}, list: {error}"));
    assert!(listed.contains(&format!("two-{}", round % 7).into_bytes()), "round {round}");
    guest.unlink(&two).unwrap_or_else(|error| panic!("round {round}, unlink: {error}"));
    guest.drop_caches().unwrap_or_else(|error| panic!("round {round}, forget: {error}"));
}

/// Works until it is told to end, and counts the rounds.
pub(crate) fn keep_working(guest: &Guest, folder: &str, end: &AtomicBool, rounds: &AtomicU64) {
    guest.makedirs(folder).unwrap();
    while !end.load(Ordering::Acquire) {
        work(guest, folder, rounds.fetch_add(1, Ordering::Relaxed));
    }
}

/// Open descriptors, threads, and resident memory in KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holds {
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    pub(crate) memory: u64,
}

impl Holds {
    pub(crate) fn now() -> Holds {
        let count = |path: &str| fs::read_dir(path).unwrap().count();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        // What is shared are the guests' own memories, which are this process's here.
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        let memory = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        Holds { descriptors: count("/proc/self/fd"), threads: count("/proc/self/task"), memory }
    }

    /// Waits until no more threads and descriptors are held than `before`.
    pub(crate) fn settle(before: Holds, patience: Duration) -> Holds {
        let until = Instant::now() + patience;
        loop {
            let now = Holds::now();
            let back = now.threads <= before.threads && now.descriptors <= before.descriptors;
            if back || Instant::now() > until {
                return now;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
