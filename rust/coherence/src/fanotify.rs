// UNSAFETY: fanotify_init(2), fanotify_mark(2) and open_by_handle_at(2), for which rustix has no calls.
#![allow(unsafe_code)]
//! File system events of the kernel, as thin as the calls. `fanotify(7)` describes the records.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, Result};

/// Some events were dropped.
pub(crate) const OVERFLOW: u64 = libc::FAN_Q_OVERFLOW;
/// A directory's entries changed.
pub(crate) const ENTRIES: u64 = libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;
/// An inode changed. Writes through a mapping have no event of their own; the close of a file that was open to write is near enough.
const INODE: u64 =
    libc::FAN_MODIFY | libc::FAN_ATTRIB | libc::FAN_CLOSE_WRITE | libc::FAN_MOVE_SELF | libc::FAN_DELETE_SELF;

/// An event: what happened, and a file handle of the inode that it happened to (of the directory, for its entries).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Event<'a> {
    pub(crate) mask: u64,
    /// `struct file_handle`; none for an overflow, or for what this kernel says in another way.
    pub(crate) handle: Option<&'a [u8]>,
}

fn check(result: i32) -> Result<i32> {
    match result {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        result => Ok(result),
    }
}

/// A queue of events by file handle. Takes CAP_SYS_ADMIN with [`mark`], and Linux 5.1.
pub(crate) fn init() -> Result<OwnedFd> {
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | libc::FAN_REPORT_FID;
    // SAFETY: the call takes two numbers and answers a new descriptor, which belongs to nobody yet.
    unsafe { check(libc::fanotify_init(flags, libc::O_RDONLY as u32)).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Watches all of the file system that `at` is on.
pub(crate) fn mark(queue: BorrowedFd<'_>, at: BorrowedFd<'_>) -> Result<()> {
    let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
    let mask = ENTRIES | INODE | libc::FAN_ONDIR;
    // SAFETY: the path is a string that lives over the call.
    let result = unsafe { libc::fanotify_mark(queue.as_raw_fd(), flags, mask, at.as_raw_fd(), c".".as_ptr()) };
    check(result).map(drop)
}

/// An O_PATH descriptor of the inode of a handle, on the file system of `mount`. Takes CAP_DAC_READ_SEARCH.
pub(crate) fn open(mount: BorrowedFd<'_>, handle: &[u8]) -> Result<OwnedFd> {
    const HEAD: usize = 8;
    let length = handle.first_chunk().map_or(usize::MAX, |bytes| u32::from_ne_bytes(*bytes) as usize);
    if length.checked_add(HEAD) != Some(handle.len()) {
        return Err(Errno::INVAL);
    }
    // As `struct file_handle` wants it: aligned to an int.
    let mut aligned = [0u32; (HEAD + libc::MAX_HANDLE_SZ as usize) / 4];
    for (word, bytes) in aligned.iter_mut().zip(handle.chunks(4)) {
        let mut whole = [0; 4];
        whole.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        *word = u32::from_ne_bytes(whole);
    }
    if length > libc::MAX_HANDLE_SZ as usize {
        return Err(Errno::INVAL);
    }
    let handle = aligned.as_mut_ptr().cast::<libc::file_handle>();
    // SAFETY: `aligned` begins with the two ints of a `struct file_handle`, the first of which says how many bytes of it follow (checked
    // above to be in it), and lives over the call. The descriptor that is answered belongs to nobody yet.
    unsafe {
        check(libc::open_by_handle_at(mount.as_raw_fd(), handle, libc::O_PATH | libc::O_CLOEXEC))
            .map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

/// The events that a read(2) gave; ends early at what cannot be understood, and says so by an event without a handle.
pub(crate) fn events(mut bytes: &[u8]) -> impl Iterator<Item = Event<'_>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let Some((event, rest)) = first(bytes) else {
            bytes = &[];
            return Some(Event { mask: OVERFLOW, handle: None });
        };
        bytes = rest;
        Some(event)
    })
}

/// `struct fanotify_event_metadata`, then information records, the first of which has the handle:
/// type, padding, length, file system id, `struct file_handle`.
fn first(bytes: &[u8]) -> Option<(Event<'_>, &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let (event, rest) = bytes.split_at_checked(length)?;
    if event.get(4)? != &libc::FANOTIFY_METADATA_VERSION {
        return None;
    }
    let head = usize::from(u16::from_ne_bytes(*event.get(6..8)?.first_chunk()?));
    let mask = u64::from_ne_bytes(*event.get(8..16)?.first_chunk()?);
    let record = event.get(head..)?;
    let handle = match record.first() {
        Some(&libc::FAN_EVENT_INFO_TYPE_FID) => {
            let handle = record.get(12..)?;
            let length = u32::from_ne_bytes(*handle.first_chunk()?) as usize;
            Some(handle.get(..length.checked_add(8)?)?)
        }
        _ => None,
    };
    Some((Event { mask, handle }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(mask: u64, handle: &[u8]) -> Vec<u8> {
        let length = (24 + 12 + 8 + handle.len()).next_multiple_of(4);
        let mut bytes = (length as u32).to_ne_bytes().to_vec();
        bytes.extend([libc::FANOTIFY_METADATA_VERSION, 0]);
        bytes.extend(24u16.to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend([0xff; 4]);
        bytes.extend([0; 4]);
        bytes.extend([libc::FAN_EVENT_INFO_TYPE_FID, 0]);
        bytes.extend(((length - 24) as u16).to_ne_bytes());
        bytes.extend([7; 8]);
        bytes.extend((handle.len() as u32).to_ne_bytes());
        bytes.extend(1u32.to_ne_bytes());
        bytes.extend(handle);
        bytes.resize(length, 0);
        bytes
    }

    #[test]
    fn records_are_read_whole_or_count_as_lost() {
        let one = record(libc::FAN_MODIFY, &[1, 2, 3, 4, 5]);
        let two = record(libc::FAN_CREATE, &[9; 8]);
        let both = [&one[..], &two].concat();
        let found: Vec<_> = events(&both).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].handle.unwrap()[8..], [1, 2, 3, 4, 5]);
        assert_eq!((found[1].mask, found[1].handle.unwrap().len()), (libc::FAN_CREATE, 16));
        for cut in 1..one.len() {
            let found: Vec<_> = events(&one[..cut]).collect();
            assert_eq!(found, [Event { mask: OVERFLOW, handle: None }], "{cut}");
        }
        let mut other = one.clone();
        other[4] += 1;
        assert_eq!(events(&other).next().unwrap().mask, OVERFLOW);
    }

    #[test]
    fn handles_that_lie_are_refused() {
        let root = std::fs::File::open("/").unwrap();
        let at = std::os::fd::AsFd::as_fd(&root);
        for bad in [&[][..], &[1, 0, 0, 0, 0, 0, 0, 0], &[200, 0, 0, 0, 0, 0, 0, 0], &[255; 300]] {
            assert_eq!(open(at, bad).unwrap_err(), Errno::INVAL);
        }
    }
}
