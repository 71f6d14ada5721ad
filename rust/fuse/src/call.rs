//! One request on its way through the table: arguments in, operation, reply out.
//!
//! Over 400 lines, since it is a few lines for each operation.

use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::names::Names;
use crate::op::{Opcode, Operation};
use crate::server::{HEADER, Lacking, REST_MAX, Scratch, Server};
use crate::window::final_error;
use crate::wire::*;
use crate::{Context, Creation, Error, FileSystem, Malformed, Message, Result, Window};

/// One request on its way through the table.
pub(crate) struct Call<'a> {
    pub(crate) server: &'a Server,
    pub(crate) fs: &'a dyn FileSystem,
    pub(crate) row: &'static Operation,
    pub(crate) header: &'a InHeader,
    pub(crate) cx: Context,
    pub(crate) arguments: &'a [u8],
    pub(crate) message: &'a mut dyn Message,
}

impl Call<'_> {
    #[rustfmt::skip]
    pub(crate) fn run(&mut self, scratch: &mut Scratch) -> Result<usize> {
        use Opcode::*;
        let (server, node) = (self.server, self.header.nodeid);
        let (fs, cx) = (self.fs, &self.cx.clone());
        let Scratch { request, reply, entries, closing, waiting } = scratch;
        let mut names = Names::new(request);
        match self.row.opcode {
            Init => server.init(self),
            Destroy => { server.reset(); self.empty() }
            Forget => { let args: ForgetIn = self.arguments()?; server.forget(node, args.nlookup); Ok(0) }
            BatchForget => self.batch_forget(),
            Interrupt | NotifyReply => Ok(0),
            Poll | Bmap => Err(Lacking.into()),

            Lookup => { let name = names.entry()?; names.end()?; self.reply(&fs.lookup(cx, node, name)?) }
            Getattr => {
                let args: GetattrIn = self.arguments()?;
                self.reply(&fs.getattr(cx, node, (args.getattr_flags & bits::GETATTR_FH != 0).then_some(args.fh))?)
            }
            Statx => {
                let args: StatxIn = self.arguments()?;
                let fh = (args.getattr_flags & bits::GETATTR_FH != 0).then_some(args.fh);
                self.reply(&fs.statx(cx, node, fh, args.sx_mask)?)
            }
            Setattr => {
                let args: SetattrIn = self.arguments()?;
                if args.valid & fattr::SIZE != 0 {
                    self.resizes(node, args.size);
                }
                self.reply(&fs.setattr(cx, node, &args)?)
            }
            Access => { let args: AccessIn = self.arguments()?; fs.access(cx, node, args.mask)?; self.empty() }
            Readlink => { reply.clear(); fs.readlink(cx, node, reply)?; self.bytes(reply) }

            Symlink => {
                let (new, mut names) = self.creation(0, request)?;
                let (name, target) = (names.entry()?, names.string()?);
                names.end()?;
                match target.count_bytes() {
                    0 => return Err(Error::Errno(libc::ENOENT)),
                    1..=SYMLINK_MAX => {}
                    _ => return Err(Error::Errno(libc::ENAMETOOLONG)),
                }
                self.reply(&fs.symlink(cx, node, name, target, &new)?)
            }
            Mknod => {
                let args: MknodIn = self.arguments()?;
                let (new, mut names) = self.creation(args.umask, request)?;
                let name = names.entry()?;
                names.end()?;
                self.reply(&fs.mknod(cx, node, name, args.mode, args.rdev, &new)?)
            }
            Mkdir => {
                let args: MkdirIn = self.arguments()?;
                let (new, mut names) = self.creation(args.umask, request)?;
                let name = names.entry()?;
                names.end()?;
                self.reply(&fs.mkdir(cx, node, name, args.mode & 0o7777, &new)?)
            }
            Create | Tmpfile => {
                let args: CreateIn = self.arguments()?;
                let (new, mut names) = self.creation(args.umask, request)?;
                let (mode, kill) = (args.mode & 0o7777, args.open_flags & bits::OPEN_KILL_SUIDGID != 0);
                let (entry, open) = if self.row.opcode == Create {
                    let name = names.entry()?;
                    names.end()?;
                    fs.create(cx, node, name, args.flags, mode, kill, &new)?
                } else {
                    // The name of a TMPFILE means nothing: a LINK may give it one later.
                    fs.tmpfile(cx, node, args.flags, mode, &new)?
                };
                self.reply(&Created { entry, open })
            }
            Unlink => { let name = names.entry()?; names.end()?; fs.unlink(cx, node, name)?; self.empty() }
            Rmdir => { let name = names.entry()?; names.end()?; fs.rmdir(cx, node, name)?; self.empty() }
            Rename | Rename2 => {
                let (newdir, flags) = if self.row.opcode == Rename {
                    (self.arguments::<RenameIn>()?.newdir, 0)
                } else {
                    let args: Rename2In = self.arguments()?;
                    (args.newdir, args.flags)
                };
                let (name, newname) = (names.entry()?, names.entry()?);
                names.end()?;
                if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT) != 0 {
                    return Err(Error::Errno(libc::EINVAL));
                }
                fs.rename(cx, node, name, newdir, newname, flags)?;
                self.empty()
            }
            Link => {
                let args: LinkIn = self.arguments()?;
                let name = names.entry()?;
                names.end()?;
                self.reply(&fs.link(cx, args.oldnodeid, node, name)?)
            }

            Open => {
                let args: OpenIn = self.arguments()?;
                if args.flags as i32 & libc::O_TRUNC != 0 {
                    self.resizes(node, 0);
                }
                self.reply(&fs.open(cx, node, args.flags, args.open_flags & bits::OPEN_KILL_SUIDGID != 0)?)
            }
            Read => {
                let args: ReadIn = self.arguments()?;
                let len = self.limit(args.size)?;
                if let Some(fs) = fs.by_value() {
                    let len = len.min(self.server.most_by_value());
                    let message = &mut *self.message;
                    let put = &mut |bytes: &[u8]| message.put(HEADER, bytes).map_err(|_| NO_ROOM);
                    let len = fs.read(cx, node, &args, len, put)?;
                    return self.close(len);
                }
                let out = self.message.put_segments(HEADER, len).map_err(|_| NO_ROOM)?;
                let len = fs.read(cx, node, &args, out)?;
                self.close(len)
            }
            Write => {
                let args: WriteIn = self.arguments()?;
                if let Some(fs) = fs.by_value() {
                    let (message, left) = (&mut *self.message, args.size as usize);
                    if left > message.remaining() || left > self.server.most_by_value() {
                        return Err(Error::Errno(libc::EINVAL));
                    }
                    let take = &mut |into: &mut [u8]| message.take(into).map_err(|_| Error::Errno(libc::EINVAL));
                    let size = fs.write(cx, node, &args, take)? as u32;
                    return self.reply(&WriteOut { size, padding: 0 });
                }
                let data = self.message.take_segments(args.size as usize).map_err(|_| Error::Errno(libc::EINVAL))?;
                let size = fs.write(cx, node, &args, data)? as u32;
                self.reply(&WriteOut { size, padding: 0 })
            }
            Flush => { fs.flush(cx, node, &self.arguments()?)?; self.empty() }
            Release => { *closing = fs.release(cx, node, &self.arguments()?)?; self.empty() }
            Fsync => {
                let args: FsyncIn = self.arguments()?;
                fs.fsync(cx, node, args.fh, args.fsync_flags & bits::FSYNC_FDATASYNC != 0)?;
                self.empty()
            }
            Fallocate => { fs.fallocate(cx, node, &self.arguments()?)?; self.empty() }
            Lseek => {
                let args: LseekIn = self.arguments()?;
                if !matches!(args.whence as i32, libc::SEEK_DATA | libc::SEEK_HOLE) {
                    return Err(Error::Errno(libc::EINVAL));
                }
                self.reply(&LseekOut { offset: fs.lseek(cx, node, args.fh, args.offset, args.whence)? })
            }
            CopyFileRange => {
                let args = self.copy_arguments()?;
                let size = fs.copy_file_range(cx, node, &args)?.min(args.len) as u32;
                self.reply(&WriteOut { size, padding: 0 })
            }
            CopyFileRange64 => {
                let args = self.copy_arguments()?;
                self.reply(&CopyFileRangeOut { bytes_copied: fs.copy_file_range(cx, node, &args)?.min(args.len) })
            }
            Ioctl => self.ioctl(fs, request, reply),

            Opendir => { let args: OpenIn = self.arguments()?; self.reply(&fs.opendir(cx, node, args.flags)?) }
            Readdir | Readdirplus => {
                let args: ReadIn = self.arguments()?;
                entries.restart(self.limit(args.size)?.min(LISTING_MAX));
                fs.readdir(cx, node, args.fh, args.offset, self.row.opcode == Readdirplus, entries)?;
                self.bytes(entries.as_bytes())
            }
            Releasedir => { *closing = fs.releasedir(cx, node, &self.arguments()?)?; self.empty() }
            Fsyncdir => {
                let args: FsyncIn = self.arguments()?;
                fs.fsyncdir(cx, node, args.fh, args.fsync_flags & bits::FSYNC_FDATASYNC != 0)?;
                self.empty()
            }
            Statfs => self.reply(&fs.statfs(cx, node)?),
            Syncfs => { fs.syncfs(cx, node)?; self.empty() }

            Setxattr => self.setxattr(fs, request),
            Getxattr | Listxattr => {
                let args: GetxattrIn = self.arguments()?;
                reply.resize((args.size as usize).min(XATTR_MAX), 0);
                let size = if self.row.opcode == Getxattr {
                    let name = names.xattr()?;
                    names.end()?;
                    fs.getxattr(cx, node, name, reply)?
                } else {
                    fs.listxattr(cx, node, reply)?
                };
                if args.size == 0 {
                    return self.reply(&GetxattrOut { size: size as u32, padding: 0 });
                }
                self.bytes(reply.get(..size).ok_or(Error::Errno(libc::EIO))?)
            }
            Removexattr => { let name = names.xattr()?; names.end()?; fs.removexattr(cx, node, name)?; self.empty() }

            Getlk => self.reply(&LkOut { lk: fs.getlk(cx, node, &self.arguments()?)? }),
            Setlk => { fs.setlk(cx, node, &self.arguments()?)?; self.empty() }
            Setlkw => match fs.setlkw(cx, node, &self.arguments()?)? {
                None => self.empty(),
                Some(wait) => { *waiting = Some(wait); Ok(0) }
            },
            Setupmapping => {
                let args: SetupmappingIn = self.arguments()?;
                self.window()?.map(node, &args, &mut |write| fs.backing(cx, node, write)).map_err(final_error)?;
                self.empty()
            }
            Removemapping => self.removemapping(),
        }
    }

    fn ioctl(&mut self, fs: &dyn FileSystem, request: &mut Vec<u8>, reply: &mut Vec<u8>) -> Result<usize> {
        let args: IoctlIn = self.arguments()?;
        self.take_into(args.in_size as usize, request)?;
        reply.clear();
        let result = fs.ioctl(&self.cx, self.header.nodeid, &args, request, reply)?;
        if reply.len() > args.out_size as usize {
            return Err(Error::Errno(libc::EINVAL));
        }
        let out = IoctlOut { result, ..IoctlOut::default() };
        self.message.put(HEADER, out.as_bytes()).map_err(|_| NO_ROOM)?;
        self.message.put(HEADER + size_of::<IoctlOut>(), reply).map_err(|_| NO_ROOM)?;
        self.close(size_of::<IoctlOut>() + reply.len())
    }

    fn setxattr(&mut self, fs: &dyn FileSystem, request: &mut Vec<u8>) -> Result<usize> {
        let args: SetxattrInCompat = self.arguments()?;
        let mut kill_sgid = false;
        if self.server.has(init::SETXATTR_EXT) {
            let [flags, _padding]: [u32; 2] = self.take()?;
            kill_sgid = flags & bits::SETXATTR_ACL_KILL_SGID != 0;
        }
        if args.size as usize > XATTR_MAX {
            return Err(Error::Errno(libc::E2BIG));
        }
        self.take_into(self.message.remaining(), request)?;
        let name = Names::new(request).xattr()?;
        let value = request.get(name.to_bytes_with_nul().len()..).unwrap_or(&[]);
        if value.len() != args.size as usize {
            return self.server.malformed();
        }
        fs.setxattr(&self.cx, self.header.nodeid, name, value, args.flags, kill_sgid)?;
        self.empty()
    }

    fn batch_forget(&mut self) -> Result<usize> {
        let args: BatchForgetIn = self.arguments()?;
        if args.count > FORGETS_MAX {
            return self.server.malformed();
        }
        let whole = self.message.remaining() / size_of::<ForgetOne>();
        let mut left = whole.min(args.count as usize);
        let mut some = [ForgetOne::default(); FORGETS_AT_ONCE];
        while left > 0 {
            let Some(some) = some.get_mut(..left.min(FORGETS_AT_ONCE)) else { break };
            if self.message.take(some.as_mut_bytes()).is_err() {
                return self.server.malformed();
            }
            some.iter().for_each(|one| self.server.forget(one.nodeid, one.nlookup));
            left -= some.len();
        }
        if whole < args.count as usize { self.server.malformed() } else { Ok(0) }
    }

    fn resizes(&self, node: u64, size: u64) {
        if self.server.has(init::MAP_ALIGNMENT)
            && let Ok(window) = self.window()
        {
            window.resizes(node, size);
        }
    }

    /// What is to be copied. EOPNOTSUPP, upon which the guest copies by itself, for a file that it has mapped: Linux forgets what it has of
    /// the file after a copy, and warns of a mapping that is there still (`__fuse_copy_file_range`, `fs/fuse/file.c`;
    /// `truncate_folio_batch_exceptionals`, `mm/truncate.c`).
    fn copy_arguments(&self) -> Result<CopyFileRangeIn> {
        let mut args: CopyFileRangeIn = self.arguments()?;
        if self.server.window().is_some_and(|window| window.maps(args.nodeid_out)) {
            return Err(Error::Errno(libc::EOPNOTSUPP));
        }
        args.len = args.len.min(LARGEST_COPY);
        Ok(args)
    }

    fn window(&self) -> Result<Arc<dyn Window>> {
        self.server.window().ok_or(Error::Errno(libc::EOPNOTSUPP))
    }

    fn removemapping(&mut self) -> Result<usize> {
        let args: RemovemappingIn = self.arguments()?;
        let mut ranges = Vec::new();
        let whole = self.message.remaining() / size_of::<RemovemappingOne>();
        if args.count as usize > whole.min(REMOVED_MAX) {
            return self.server.malformed();
        }
        for _ in 0..args.count {
            ranges.push(self.take()?);
        }
        self.window()?.unmap(&ranges).map_err(final_error)?;
        self.empty()
    }

    /// The request's argument struct.
    pub(crate) fn arguments<T: FromBytes>(&self) -> Result<T> {
        T::read_from_prefix(self.arguments).map(|(value, _)| value).map_err(|_| Error::Errno(libc::EINVAL))
    }

    /// The next struct of the message.
    pub(crate) fn take<T: FromBytes + IntoBytes>(&mut self) -> Result<T> {
        let mut value = T::new_zeroed();
        match self.message.take(value.as_mut_bytes()) {
            Ok(()) => Ok(value),
            Err(Malformed) => self.server.malformed(),
        }
    }

    fn take_into(&mut self, len: usize, into: &mut Vec<u8>) -> Result<()> {
        if len > REST_MAX {
            return self.server.malformed();
        }
        into.resize(len, 0);
        self.message.take(into).or_else(|_| self.server.malformed())
    }

    /// Splits what lies behind the arguments into names and extensions.
    fn creation<'r>(&self, umask: u32, rest: &'r [u8]) -> Result<(Creation<'r>, Names<'r>)> {
        let extensions = usize::from(self.header.total_extlen) * 8;
        let Some((names, extensions)) = rest.len().checked_sub(extensions).and_then(|at| rest.split_at_checked(at))
        else {
            return self.server.malformed();
        };
        // Without DONT_MASK the guest has applied the umask to the mode already.
        let umask = if self.server.has(init::DONT_MASK) { umask & 0o777 } else { 0 };
        match Creation::parse(umask, extensions) {
            Ok(mut new) => {
                // What was not agreed on is not obeyed.
                new.security = new.security.filter(|_| self.server.has(init::SECURITY_CTX));
                new.supplementary_group = new.supplementary_group.filter(|_| self.server.has(init::CREATE_SUPP_GROUP));
                if new.security.is_some_and(|(name, _)| !name.to_bytes().starts_with(b"security.")) {
                    return Err(Error::Errno(libc::EPERM));
                }
                Ok((new, Names::new(names)))
            }
            Err(Malformed) => self.server.malformed(),
        }
    }

    /// How many bytes a variable reply may have: what was asked for, as far as there is room.
    fn limit(&self, asked: u32) -> Result<usize> {
        let room = self.message.room().checked_sub(HEADER).ok_or(NO_ROOM)?;
        Ok(room.min(asked as usize))
    }

    /// A reply of the header alone.
    fn empty(&mut self) -> Result<usize> {
        self.close(0)
    }

    /// A reply of one struct.
    pub(crate) fn reply<T: IntoBytes + Immutable + Copy>(&mut self, value: &T) -> Result<usize> {
        let len = size_of::<Reply<T>>();
        let reply = Reply { header: self.out_header(len), body: *value };
        self.message.put(0, reply.as_bytes()).map_err(|_| NO_ROOM)?;
        Ok(len)
    }

    /// A reply of as many bytes as there are.
    fn bytes(&mut self, bytes: &[u8]) -> Result<usize> {
        self.message.put(HEADER, bytes).map_err(|_| NO_ROOM)?;
        self.close(bytes.len())
    }

    /// Puts the header before a body of `len` bytes that was already written.
    fn close(&mut self, len: usize) -> Result<usize> {
        let len = HEADER + len;
        self.message.put(0, self.out_header(len).as_bytes()).map_err(|_| NO_ROOM)?;
        Ok(len)
    }

    fn out_header(&self, len: usize) -> OutHeader {
        OutHeader { len: len as u32, error: 0, unique: self.header.unique }
    }
}

/// What a guest with pages of 64 KiB puts into one REMOVEMAPPING (`FUSE_REMOVEMAPPING_MAX_ENTRY` of Linux: a page of them).
const REMOVED_MAX: usize = 4096;
/// Nodes of one BATCH_FORGET. A guest can give the same memory many times in one request, so its size says little.
const FORGETS_MAX: u32 = 1 << 20;
/// As many of them are taken from the message together.
const FORGETS_AT_ONCE: usize = 64;
/// Bytes of entries in one reply: they are collected here before they are the guest's. Linux asks for 1 MiB at most.
const LISTING_MAX: usize = 1 << 20;
/// The guest gave less room than the reply needs.
const NO_ROOM: Error = Error::Errno(libc::EIO);
/// The most that one COPY_FILE_RANGE copies; the caller asks again for the rest. Longer copies would keep a guest that is being stopped
/// waiting.
const LARGEST_COPY: u64 = 64 << 20;

/// A header and the one struct behind it.
#[derive(IntoBytes, Immutable)]
#[repr(C, packed)]
struct Reply<T> {
    header: OutHeader,
    body: T,
}

/// Reply of CREATE and TMPFILE.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Created {
    entry: EntryOut,
    open: OpenOut,
}
