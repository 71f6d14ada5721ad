//! The DAX window as a guest's requests reach it, whoever maps: requests in, errnos out, and buffers of other requests that lie in it.
//!
//! What is mapped there is read and written as the file that it is. The window's memory itself is never touched, so that neither a
//! file that becomes shorter nor a hole in the window is a signal.

mod local;

pub use local::Local;

use std::os::fd::BorrowedFd;

use rustix::fs::fstat;
use virtiofs_dax::{Mapper, PAGE, Piece, Range, Refusal};
use virtiofs_fuse::wire::{RemovemappingOne, SetupmappingIn, bits};
use virtiofs_fuse::{Backing, Error, Result};

/// Does what SETUPMAPPING asks for.
pub(crate) fn map<M: Mapper>(
    window: &virtiofs_dax::Window<M>,
    node: u64,
    args: &SetupmappingIn,
    open: &mut dyn FnMut(bool) -> Result<Backing>,
) -> Result<()> {
    let write = args.flags & bits::SETUPMAPPING_WRITE != 0;
    let range = Range { offset: args.moffset, len: args.len, file_offset: args.foffset, write };
    let mapped = window.map(node, range, |eager| {
        let backing = match open(eager) {
            // Writing was our wish, not the guest's.
            Err(_) if eager && !write => open(false),
            result => result,
        };
        backing.map(|backing| (backing.fd, backing.writable)).map_err(Failure)
    });
    mapped.map_err(|Failure(error)| error)
}

/// Does what REMOVEMAPPING asks for.
pub(crate) fn unmap<M: Mapper>(window: &virtiofs_dax::Window<M>, ranges: &[RemovemappingOne]) -> Result<()> {
    ranges.iter().try_for_each(|range| window.unmap(range.moffset, range.len)).map_err(error)
}

/// What an open or a mapping failed with.
struct Failure(Error);

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure(error(refusal))
    }
}

/// What a guest is told.
pub(crate) fn error(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Invalid => Error::Errno(libc::EINVAL),
        Refusal::Full => Error::Errno(libc::ENOSPC),
        Refusal::Halted => Error::Halted,
        Refusal::Failed(error) => {
            tracing::warn!(%error, "a file cannot be mapped for the guest");
            Error::from(error)
        }
    }
}

/// Reads what is mapped from `offset` on. False where nothing is, or the file has ended.
pub(crate) fn load<M: Mapper>(window: &virtiofs_dax::Window<M>, offset: u64, out: &mut [u8]) -> bool {
    each_piece(window, offset, out.len(), |piece, at, len| {
        let Some(out) = out.get_mut(at..at + len) else { return false };
        out.fill(0);
        let in_file = fill(piece.file.fd(), out, piece.file_offset);
        // As in a mapping: zeros up to the end of the last page, and nothing behind it.
        in_file.is_some_and(|count| count == len || piece.file_offset + len as u64 <= end_of_page(piece, count))
    })
}

/// Writes to what is mapped from `offset` on. False where nothing is, or not for writing, or the file has ended.
pub(crate) fn store<M: Mapper>(window: &virtiofs_dax::Window<M>, offset: u64, bytes: &[u8]) -> bool {
    each_piece(window, offset, bytes.len(), |piece, at, len| {
        let Ok(status) = fstat(piece.file.fd()) else { return false };
        let size = status.st_size as u64;
        // A store behind the end of the file is lost, and never makes the file longer.
        let inside = size.saturating_sub(piece.file_offset).min(len as u64) as usize;
        let reaches = piece.file_offset + len as u64 <= size.next_multiple_of(PAGE);
        let part = bytes.get(at..at + inside).unwrap_or(&[]);
        piece.writable && reaches && write_all(piece.file.fd(), part, piece.file_offset)
    })
}

/// Calls `with` for what each part of a range of the window is, with the part's place in the range and its length, until that answers false.
fn each_piece<M: Mapper>(
    window: &virtiofs_dax::Window<M>,
    offset: u64,
    len: usize,
    mut with: impl FnMut(&Piece, usize, usize) -> bool,
) -> bool {
    let mut done = 0;
    while done < len {
        let Some(piece) = window.resolve(offset + done as u64) else { return false };
        let part = (len - done).min(usize::try_from(piece.len).unwrap_or(usize::MAX));
        if !with(&piece, done, part) {
            return false;
        }
        done += part;
    }
    true
}

/// Where the page ends in which the file ends, if `count` bytes of a piece are left of it.
fn end_of_page(piece: &Piece, count: usize) -> u64 {
    (piece.file_offset + count as u64).next_multiple_of(PAGE)
}

fn fill(file: BorrowedFd<'_>, out: &mut [u8], offset: u64) -> Option<usize> {
    let mut done = 0;
    while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(file, rest, offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    Some(done)
}

fn write_all(file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> bool {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pwrite(file, rest, offset + done as u64) {
            Ok(0) => return false,
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}
