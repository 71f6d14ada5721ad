//! An open file or directory of a [`Guest`].

use std::sync::atomic::{AtomicBool, Ordering};

use virtiofs_fuse::wire::{Attr, CopyFileRangeIn, FileLock, OpenOut, SetattrIn, WriteIn, bits, fattr, fopen, init};

use crate::guest::Lack;
use crate::resolve::Pin;
use crate::{Error, Guest, Result};

/// An open file. Dropping it closes it; [`File::close`] also tells what went wrong.
#[derive(Debug)]
pub struct File {
    pub(crate) pin: Pin,
    /// `None`: the server has no OPEN, handles are of no meaning.
    open: Option<OpenOut>,
    flags: i32,
    directory: bool,
    closed: AtomicBool,
}

impl File {
    pub(crate) fn new(pin: Pin, open: Option<OpenOut>, flags: i32) -> File {
        File { pin, open, flags, directory: false, closed: AtomicBool::new(false) }
    }

    pub(crate) fn open(pin: Pin, flags: i32) -> Result<File> {
        let guest = pin.guest().clone();
        // What the kernel keeps to itself; large files are always meant.
        let mut sent = (flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_NOCTTY)) as u32 | 0o100000;
        let atomic = guest.client().has(init::ATOMIC_O_TRUNC);
        let truncate = flags & libc::O_TRUNC != 0;
        if !atomic {
            sent &= !(libc::O_TRUNC as u32);
        }
        let open = match guest.lacks(Lack::Open) {
            true => None,
            false => lacking(&guest, Lack::Open, guest.client().open(pin.nodeid, sent))?,
        };
        let file = File::new(pin, open, flags);
        if truncate && (!atomic || file.open.is_none()) {
            file.truncate(0)?;
        }
        Ok(file)
    }

    pub(crate) fn opendir(pin: Pin) -> Result<File> {
        let guest = pin.guest().clone();
        let open = match guest.lacks(Lack::Opendir) {
            true => None,
            false => lacking(&guest, Lack::Opendir, guest.client().opendir(pin.nodeid, 0))?,
        };
        let mut file = File::new(pin, open, libc::O_RDONLY);
        file.directory = true;
        Ok(file)
    }

    fn guest(&self) -> &Guest {
        self.pin.guest()
    }

    /// The server's handle, 0 if it has none.
    pub fn fh(&self) -> u64 {
        self.open.map_or(0, |open| open.fh)
    }

    /// The node.
    pub fn nodeid(&self) -> u64 {
        self.pin.nodeid
    }

    /// `FOPEN_` flags of the server's answer.
    pub fn open_flags(&self) -> u32 {
        self.open.map_or(0, |open| open.open_flags)
    }

    /// Reads up to `len` bytes at `offset`; less only at the end of the file.
    pub fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        let most = self.guest().client().session().max_io;
        while data.len() < len {
            let want = most.min(len - data.len());
            let piece = self.guest().client().read(self.nodeid(), self.fh(), offset + data.len() as u64, want)?;
            data.extend_from_slice(&piece);
            if piece.len() < want {
                break;
            }
        }
        Ok(data)
    }

    /// Reads the whole file.
    pub fn read_to_end(&self) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        let most = self.guest().client().session().max_io;
        loop {
            let piece = self.guest().client().read(self.nodeid(), self.fh(), data.len() as u64, most)?;
            data.extend_from_slice(&piece);
            if piece.len() < most {
                return Ok(data);
            }
        }
    }

    /// Writes all of `data` at `offset`; with O_APPEND at the end of the file, wherever that is.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let client = self.guest().client();
        let mut offset = if self.flags & libc::O_APPEND != 0 { self.stat()?.size } else { offset };
        let clear = client.has(init::HANDLE_KILLPRIV_V2) && client.header(0, 0).uid != 0;
        for piece in data.chunks(client.session().max_io) {
            let args = WriteIn {
                fh: self.fh(),
                offset,
                size: piece.len() as u32,
                write_flags: if clear { bits::WRITE_KILL_SUIDGID } else { 0 },
                flags: self.flags as u32,
                ..WriteIn::default()
            };
            let written = client.write_with(self.nodeid(), piece, &args)?;
            if written < piece.len() {
                // What the kernel answers for the rest of a short write.
                return Err(Error::Errno(libc::EIO));
            }
            offset += written as u64;
        }
        Ok(())
    }

    /// Attributes by the handle: works after the file lost its last name.
    pub fn stat(&self) -> Result<Attr> {
        let fh = self.open.map(|open| open.fh).filter(|_| !self.directory);
        self.guest().attributes(&self.pin, fh)
    }

    /// ftruncate(2).
    pub fn truncate(&self, size: u64) -> Result<()> {
        let by_handle = if self.open.is_some() { fattr::FH } else { 0 };
        let change = SetattrIn { valid: fattr::SIZE | by_handle, size, fh: self.fh(), ..SetattrIn::default() };
        self.guest().client().setattr(self.nodeid(), &change).map(drop)
    }

    /// fsync(2), or fdatasync(2); of a directory too.
    pub fn sync(&self, data_only: bool) -> Result<()> {
        match self.directory {
            true => self.guest().client().fsyncdir(self.nodeid(), self.fh(), data_only),
            false => self.guest().client().fsync(self.nodeid(), self.fh(), data_only),
        }
    }

    /// fallocate(2).
    pub fn allocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        self.guest().client().fallocate(self.nodeid(), self.fh(), offset, len, mode)
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    pub fn seek(&self, offset: u64, whence: i32) -> Result<u64> {
        self.guest().client().lseek(self.nodeid(), self.fh(), offset, whence as u32)
    }

    /// copy_file_range(2) into `to`; answers the count copied, which may be less than `len`.
    pub fn copy_to(&self, offset: u64, to: &File, to_offset: u64, len: u64) -> Result<u64> {
        let args = CopyFileRangeIn {
            fh_in: self.fh(),
            off_in: offset,
            nodeid_out: to.nodeid(),
            fh_out: to.fh(),
            off_out: to_offset,
            len,
            flags: 0,
        };
        let client = self.guest().client();
        match client.copy_file_range(self.nodeid(), &args, true) {
            Err(Error::Errno(libc::ENOSYS)) => client.copy_file_range(self.nodeid(), &args, false),
            result => result,
        }
    }

    /// Takes, waits for (`wait`) or gives back a lock for `owner`: `kind` F_RDLCK, F_WRLCK or F_UNLCK, bytes `start..=end`.
    pub fn lock(&self, owner: u64, kind: i32, start: u64, end: u64, wait: bool) -> Result<()> {
        let lock = FileLock { start, end, kind: kind as u32, pid: self.guest().client().header(0, 0).pid };
        self.guest().client().setlk(self.nodeid(), self.fh(), owner, lock, false, wait)
    }

    /// close(2): FLUSH and RELEASE.
    pub fn close(self) -> Result<()> {
        self.finish()
    }

    fn finish(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let Some(open) = self.open else { return Ok(()) };
        let (guest, nodeid) = (self.guest(), self.nodeid());
        if self.directory {
            return guest.client().releasedir(nodeid, open.fh);
        }
        let mut flushed = Ok(());
        if !guest.lacks(Lack::Flush) && open.open_flags & fopen::NOFLUSH == 0 {
            flushed = lacking(guest, Lack::Flush, guest.client().flush(nodeid, open.fh, 0)).map(drop);
        }
        match guest.client().release(nodeid, open.fh, self.flags as u32) {
            // Nobody asks a server for the end of what it does not begin; of what it created nevertheless nobody needs it.
            Err(Error::Errno(libc::ENOSYS)) => flushed,
            released => released.and(flushed),
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // Best effort: whoever wants to know calls `close`.
        let _ = self.finish();
    }
}

/// ENOSYS is not a failure of this call but says that the server will never have the operation.
fn lacking<T>(guest: &Guest, what: Lack, result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Errno(libc::ENOSYS)) => {
            guest.set_lacks(what);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
