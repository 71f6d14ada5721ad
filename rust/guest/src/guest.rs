//! A mounted share: files by path.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use virtiofs_fuse::wire::{Attr, init};

use crate::file::File;
use crate::nodes::Nodes;
use crate::resolve::Pin;
use crate::transport::Transport;
use crate::{Client, Connection, DirEntry, Error, Options, Result};

/// Bytes asked for in one READDIR, as glibc does.
const LISTING: usize = 32 << 10;

/// A share, mounted in this process. Clones are the same mount; methods may be called from several threads at once.
///
/// Paths are relative to the root of the share, with or without a leading slash. Symlinks are followed as a kernel
/// would, an absolute one from the root of the share. Nodes are looked up, cached for as long as the server
/// says, and given back by FORGET.
#[derive(Clone, Debug)]
pub struct Guest {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    client: Client,
    pub(crate) nodes: Mutex<Nodes>,
    umask: u32,
    /// The server has no FLUSH, OPEN, OPENDIR, CREATE: it said ENOSYS once, which is final.
    lacks: [AtomicBool; 4],
}

/// An operation that a server may lack for good.
#[derive(Clone, Copy)]
pub(crate) enum Lack {
    Flush,
    Open,
    Opendir,
    Create,
}

impl Guest {
    /// Mounts the share behind the vhost-user socket at `socket`.
    ///
    /// # Errors
    /// `Io` if nobody listens (for `Options::connect_timeout`) or the daemon goes away, `Timeout` if it does not answer, `Protocol` if
    /// it answers what no device may.
    pub fn connect(socket: &Path, options: Options) -> Result<Guest> {
        Ok(Guest::with(Client::connect(socket, options)?))
    }

    /// The same over a connected stream, as from `UnixStream::pair`.
    pub fn over_stream(stream: UnixStream, options: Options) -> Result<Guest> {
        let connection = Connection::new(stream, options.timeout)?;
        Ok(Guest::with(Client::over_connection(connection, options)?))
    }

    /// The same over any transport.
    pub fn over(transport: Box<dyn Transport>, options: Options) -> Result<Guest> {
        Ok(Guest::with(Client::over(transport, options)?))
    }

    fn with(client: Client) -> Guest {
        let options = client.options();
        let mut nodes = Nodes::new(options.cached_names.max(1), options.versions.clone());
        if client.noticed().is_some() {
            nodes.listen(Arc::clone(&client.changes));
        }
        let nodes = Mutex::new(nodes);
        Guest { inner: Arc::new(Inner { client, nodes, umask: 0o022, lacks: Default::default() }) }
    }

    /// The client beneath, for single operations.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// Gives all nodes back, ends the session and stops the device. Open files do not work any more.
    pub fn unmount(&self) -> Result<()> {
        self.drop_caches()?;
        self.client().close()
    }

    /// Forgets all cached names and nodes that are not in use, and waits until the server has taken that.
    pub fn drop_caches(&self) -> Result<()> {
        let gone = self.inner.nodes.lock().clear();
        self.give_back(gone);
        self.client().settle()
    }

    /// Nodes held at present, the root not counted.
    pub fn nodes_held(&self) -> usize {
        self.inner.nodes.lock().len()
    }

    /// Reads a whole file.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let file = self.open(path, libc::O_RDONLY, 0)?;
        let data = file.read_to_end()?;
        file.close()?;
        Ok(data)
    }

    /// Makes a file, or replaces the content of one.
    pub fn write_file(&self, path: impl AsRef<Path>, data: &[u8]) -> Result<()> {
        let file = self.open(path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o666)?;
        file.write_at(0, data)?;
        file.close()
    }

    /// Opens a file with the `flags` of open(2); `mode` is for O_CREAT, less the usual umask 022.
    pub fn open(&self, path: impl AsRef<Path>, flags: i32, mode: u32) -> Result<File> {
        let path = path.as_ref();
        if flags & libc::O_TMPFILE == libc::O_TMPFILE {
            let directory = self.resolve(path, true)?;
            let sent = flags as u32 & !(libc::O_DIRECTORY as u32);
            let (entry, open) = self.client().tmpfile(directory.nodeid, sent, self.masked(mode), self.inner.umask)?;
            self.inner.nodes.lock().counted(entry.nodeid);
            let pin = Pin { guest: self.clone(), nodeid: entry.nodeid };
            return Ok(File::new(pin, Some(open), flags));
        }
        let follow = flags & (libc::O_NOFOLLOW | libc::O_EXCL) == 0;
        match self.resolve(path, follow) {
            Ok(_) if flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0 => Err(Error::Errno(libc::EEXIST)),
            Ok(pin) => File::open(pin, flags),
            Err(Error::Errno(libc::ENOENT)) if flags & libc::O_CREAT != 0 => self.create(path, flags, mode),
            Err(error) => Err(error),
        }
    }

    fn create(&self, path: &Path, flags: i32, mode: u32) -> Result<File> {
        let (parent, name) = self.parent(path)?;
        let mode = self.masked(mode & 0o7777) | libc::S_IFREG;
        let umask = self.inner.umask;
        let noted = self.note(parent.nodeid);
        if !self.lacks(Lack::Create) {
            match self.client().create_file(parent.nodeid, &name, flags as u32, mode, umask) {
                Ok((entry, open)) => {
                    return Ok(File::new(self.entered(&parent, &name, &entry, noted)?, Some(open), flags));
                }
                Err(Error::Errno(libc::ENOSYS)) => self.set_lacks(Lack::Create),
                Err(error) => return Err(error),
            }
        }
        let entry = self.client().mknod(parent.nodeid, &name, mode, 0, umask)?;
        File::open(self.entered(&parent, &name, &entry, noted)?, flags)
    }

    /// The names of a directory, without `.` and `..`, as the server orders them.
    pub fn listdir(&self, path: impl AsRef<Path>) -> Result<Vec<Vec<u8>>> {
        Ok(self.list(path.as_ref(), false)?.into_iter().map(|entry| entry.name).collect())
    }

    /// The entries of a directory, without `.` and `..`, with attributes where the server has READDIRPLUS.
    pub fn scandir(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>> {
        self.list(path.as_ref(), self.client().has(init::DO_READDIRPLUS))
    }

    fn list(&self, path: &Path, plus: bool) -> Result<Vec<DirEntry>> {
        let directory = self.resolve(path, true)?;
        let handle = File::opendir(directory)?;
        let mut entries: Vec<DirEntry> = Vec::new();
        loop {
            let offset = entries.last().map_or(0, |entry| entry.off);
            let size = LISTING.min(self.client().session().max_io);
            let noted = self.note(handle.nodeid());
            let batch = match plus {
                true => self.client().readdirplus(handle.nodeid(), handle.fh(), offset, size)?,
                false => self.client().readdir(handle.nodeid(), handle.fh(), offset, size)?,
            };
            if batch.is_empty() {
                break;
            }
            for found in &batch {
                if let Some(entry) = found.entry.filter(|e| e.nodeid != 0 && !dots(&found.name)) {
                    self.entered(&handle.pin, &found.name, &entry, noted)?;
                }
            }
            entries.extend(batch);
        }
        handle.close()?;
        entries.retain(|entry| !dots(&entry.name));
        Ok(entries)
    }

    /// All paths below `top` with their attributes, directories before what is in them; symlinks are not followed.
    pub fn walk(&self, top: impl AsRef<Path>) -> Result<Vec<(PathBuf, Attr)>> {
        let mut found = Vec::new();
        let mut waiting = vec![top.as_ref().to_path_buf()];
        while let Some(directory) = waiting.pop() {
            for entry in self.scandir(&directory)? {
                let path = directory.join(std::ffi::OsStr::from_bytes(&entry.name));
                let attr = match entry.entry {
                    Some(plus) if plus.nodeid != 0 => plus.attr,
                    _ => self.lstat(&path)?,
                };
                if attr.mode & libc::S_IFMT == libc::S_IFDIR {
                    waiting.push(path.clone());
                }
                found.push((path, attr));
            }
        }
        Ok(found)
    }

    /// Attributes of what a path means, symlinks followed.
    pub fn stat(&self, path: impl AsRef<Path>) -> Result<Attr> {
        self.attributes_of(path.as_ref(), true)
    }

    /// Attributes, of a symlink itself.
    pub fn lstat(&self, path: impl AsRef<Path>) -> Result<Attr> {
        self.attributes_of(path.as_ref(), false)
    }

    fn attributes_of(&self, path: &Path, follow: bool) -> Result<Attr> {
        self.hear()?;
        if let Some(known) = self.inner.nodes.lock().walk(path.as_os_str().as_bytes(), follow) {
            return known;
        }
        self.attributes(&self.resolve(path, follow)?, None)
    }

    /// Whether a path leads anywhere.
    pub fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        match self.resolve(path.as_ref(), true) {
            Ok(_) => Ok(true),
            Err(Error::Errno(libc::ENOENT | libc::ENOTDIR)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a directory, less the usual umask.
    pub fn mkdir(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let (parent, name) = self.parent(path.as_ref())?;
        let noted = self.note(parent.nodeid);
        let entry = self.client().mkdir(parent.nodeid, &name, self.masked(mode), self.inner.umask)?;
        self.entered(&parent, &name, &entry, noted).map(drop)
    }

    /// Makes a directory and all that lead to it; those that are there already are fine.
    pub fn makedirs(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut so_far = PathBuf::new();
        for part in path.as_ref().components() {
            so_far.push(part);
            match self.mkdir(&so_far, 0o777) {
                Ok(()) | Err(Error::Errno(libc::EEXIST | libc::EISDIR)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes a file, FIFO, socket or device node; `mode` has its type, `rdev` is in the kernel's 32-bit encoding.
    pub fn mknod(&self, path: impl AsRef<Path>, mode: u32, rdev: u32) -> Result<()> {
        let (parent, name) = self.parent(path.as_ref())?;
        let noted = self.note(parent.nodeid);
        let entry = self.client().mknod(parent.nodeid, &name, self.masked(mode), rdev, self.inner.umask)?;
        self.entered(&parent, &name, &entry, noted).map(drop)
    }

    /// Removes a name that is no directory.
    pub fn unlink(&self, path: impl AsRef<Path>) -> Result<()> {
        let (parent, name) = self.parent(path.as_ref())?;
        self.client().unlink(parent.nodeid, &name)?;
        self.name_gone(&parent, &name);
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, path: impl AsRef<Path>) -> Result<()> {
        let (parent, name) = self.parent(path.as_ref())?;
        self.client().rmdir(parent.nodeid, &name)?;
        self.name_gone(&parent, &name);
        Ok(())
    }

    /// Removes a directory with all that is in it.
    pub fn remove_tree(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let found = self.walk(path)?;
        for (inside, attr) in found.iter().rev() {
            match attr.mode & libc::S_IFMT {
                libc::S_IFDIR => self.rmdir(inside)?,
                _ => self.unlink(inside)?,
            }
        }
        self.rmdir(path)
    }

    /// renameat2(2): `flags` 0, RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>, flags: u32) -> Result<()> {
        let (parent, name) = self.parent(from.as_ref())?;
        let (newparent, newname) = self.parent(to.as_ref())?;
        if flags == 0 {
            self.client().rename(parent.nodeid, &name, newparent.nodeid, &newname)?;
        } else {
            self.client().rename2(parent.nodeid, &name, newparent.nodeid, &newname, flags)?;
        }
        let gone = {
            let mut nodes = self.inner.nodes.lock();
            if flags & libc::RENAME_EXCHANGE != 0 {
                let mut gone = nodes.forget_name(parent.nodeid, &name);
                gone.extend(nodes.forget_name(newparent.nodeid, &newname));
                gone
            } else {
                nodes.renamed(parent.nodeid, &name, newparent.nodeid, &newname)
            }
        };
        self.give_back(gone);
        Ok(())
    }

    /// Gives a file one more name.
    pub fn link(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let pin = self.resolve(from.as_ref(), false)?;
        let (parent, name) = self.parent(to.as_ref())?;
        let noted = self.note(parent.nodeid);
        let entry = self.client().link(pin.nodeid, parent.nodeid, &name)?;
        let again = self.entered(&parent, &name, &entry, noted)?;
        if again.nodeid != pin.nodeid {
            return Err(Error::Protocol(format!("LINK of node {} answers node {}", pin.nodeid, again.nodeid)));
        }
        Ok(())
    }

    /// Makes a symlink at `path`.
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        let (parent, name) = self.parent(path.as_ref())?;
        let noted = self.note(parent.nodeid);
        let entry = self.client().symlink(parent.nodeid, &name, target.as_ref().as_os_str().as_bytes())?;
        self.entered(&parent, &name, &entry, noted).map(drop)
    }

    /// Target of a symlink.
    pub fn readlink(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let pin = self.resolve(path.as_ref(), false)?;
        self.client().readlink(pin.nodeid)
    }

    /// Node id of a path: counted, and good for [`Client`] calls until the caches are dropped or the name goes.
    pub fn nodeid(&self, path: impl AsRef<Path>) -> Result<u64> {
        Ok(self.resolve(path.as_ref(), false)?.nodeid)
    }

    fn masked(&self, mode: u32) -> u32 {
        if self.client().has(init::DONT_MASK) { mode } else { mode & !self.inner.umask }
    }

    pub(crate) fn lacks(&self, what: Lack) -> bool {
        self.inner.lacks.get(what as usize).is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    pub(crate) fn set_lacks(&self, what: Lack) {
        if let Some(flag) = self.inner.lacks.get(what as usize) {
            flag.store(true, Ordering::Relaxed);
        }
    }
}

fn dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}
