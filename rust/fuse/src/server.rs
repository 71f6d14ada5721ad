//! From a message to a call, and from its result to a reply.

mod begin;

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use zerocopy::{FromZeros, IntoBytes};

use crate::call::Call;
use crate::head::{Head, take_early};
use crate::lane::by_backing;
use crate::op::{OPCODES, Opcode, Operation, ReplyForm};
use crate::wire::*;
use crate::{
    Context, DirBuffer, Error, FileSystem, Held, Lane, Limits, Malformed, Message, Metrics, Negotiated, Result, Route,
    Routes, Settle, Wait, Window,
};

pub(crate) const HEADER: usize = size_of::<OutHeader>();
/// The longest struct behind a request header.
const ARGUMENTS_MAX: usize = size_of::<SetattrIn>();
/// Names, a symlink's target, a value of an extended attribute or a label: no honest request has more than this beside its
/// arguments and the data of a WRITE.
pub(crate) const REST_MAX: usize = 2 * XATTR_MAX;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// So many bytes of reply were written; 0 where the operation has none or no header has room.
    Done(usize),
    /// The reply comes when this wait is over: keep the message, and give it to [`Server::settle`].
    Later(Pending),
    /// Nothing was done: handle the message again, from its start, where waiting is allowed.
    WouldBlock,
    /// The device is being stopped: the message counts as not taken from its ring yet.
    Halted,
    /// Nothing was done: give the message to [`Server::send`].
    Elsewhere,
}

/// Where a message is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On a thread that must not wait.
    Queue,
    /// On one that may.
    Pool,
    /// On the lane.
    Lane,
}

/// A request whose reply comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    wait: Wait,
    unique: u64,
}

/// Buffers of one thread, kept from one message to the next so that no request allocates.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(crate) request: Vec<u8>,
    pub(crate) reply: Vec<u8>,
    pub(crate) entries: DirBuffer,
    pub(crate) closing: Option<OwnedFd>,
    pub(crate) waiting: Option<Wait>,
}

impl Scratch {
    /// What was put off until the guest has its reply: closing a released descriptor.
    pub fn finish(&mut self) {
        self.closing = None;
    }
}

/// Serves one file system to one guest.
pub struct Server {
    pub(crate) fs: Arc<dyn FileSystem>,
    pub(crate) lane: Option<Arc<dyn Lane>>,
    pub(crate) routes: Routes,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    /// Flags of the session, and whether there is one: read by each request.
    pub(crate) flags: AtomicU64,
    pub(crate) initialized: AtomicBool,
    /// Held while a session begins or ends, so that two of them never interleave.
    pub(crate) session: Mutex<Negotiated>,
    window: Mutex<Option<Arc<dyn Window>>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("limits", &self.limits).field("metrics", &self.metrics).finish_non_exhaustive()
    }
}

impl Server {
    /// A server without a session; the guest's INIT begins one.
    pub fn new(fs: Arc<dyn FileSystem>, limits: Limits) -> Server {
        Server {
            fs,
            lane: None,
            routes: [Route::Here; OPCODES],
            limits,
            metrics: Metrics::default(),
            flags: AtomicU64::new(0),
            initialized: AtomicBool::new(false),
            session: Mutex::new(Negotiated::default()),
            window: Mutex::new(None),
        }
    }

    /// The DAX window of the guest that is served from now on, or that there is none.
    pub fn set_window(&self, window: Option<Arc<dyn Window>>) {
        *self.window.lock() = window;
    }

    pub(crate) fn window(&self) -> Option<Arc<dyn Window>> {
        self.window.lock().clone()
    }

    /// The same server with some operations handled elsewhere, or not at all.
    #[must_use]
    pub fn routed(self, routes: Routes, lane: Option<Arc<dyn Lane>>) -> Server {
        Server { routes, lane, ..self }
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What the guest holds now.
    pub fn held(&self) -> Held {
        self.fs.held()
    }

    /// Calls `each` with every node that the guest holds, and whether it is a directory: see [`FileSystem::known`].
    pub fn known(&self, each: &mut dyn FnMut(u64, bool)) {
        self.fs.known(each);
    }

    /// What the session agreed on, or `None` outside of one.
    pub fn negotiated(&self) -> Option<Negotiated> {
        let session = self.session.lock();
        self.initialized.load(Relaxed).then_some(*session)
    }

    /// Ends the session, if there is one: the guest went away or was reset.
    pub fn reset(&self) {
        let mut session = self.session.lock();
        self.end(&mut session);
    }

    pub(crate) fn end(&self, session: &mut Negotiated) {
        self.initialized.store(false, Relaxed);
        *session = Negotiated::default();
        self.flags.store(0, Relaxed);
        // Also where there is no session: a request that was under way when the last one ended may have left something.
        self.fs.destroy();
        if let Some(lane) = &self.lane {
            lane.fs().destroy();
        }
        if let Some(window) = self.window() {
            window.end();
        }
    }

    /// Takes lookups of a node back.
    pub(crate) fn forget(&self, node: u64, nlookup: u64) {
        if let (true, Some(lane)) = (self.fs.forget(node, nlookup), &self.lane) {
            lane.fs().forget(node, 0);
        }
    }

    /// Calls `then` when the wait of `pending` is over, or drops it if the session is over first. `then` gives the message to
    /// [`Server::answer`].
    pub fn settle(&self, pending: Pending, then: Settle) {
        self.fs.settle(pending.wait, then);
    }

    /// The caller whose request waits got a signal: the wait ends early if it can, and [`Server::settle`] says so as for any other end.
    pub fn interrupt(&self, pending: Pending) {
        self.fs.interrupt(pending.wait);
    }

    /// Writes the reply of a request that waited, and answers its length.
    pub fn answer(&self, message: &mut dyn Message, pending: Pending, result: Result<()>) -> usize {
        match result {
            Ok(()) => {
                let header = OutHeader { len: HEADER as u32, error: 0, unique: pending.unique };
                if message.put(0, header.as_bytes()).is_ok() { HEADER } else { 0 }
            }
            // The caller has a signal: nothing else ends a wait this way.
            Err(Error::Errno(libc::EINTR)) => refusal(message, pending.unique, libc::EINTR),
            Err(error) => error_reply(message, pending.unique, error),
        }
    }

    /// Refuses a message of whose memory a part cannot be reached, and answers the length of the reply: 0 where not even a header can be
    /// read or written.
    pub fn refuse(&self, message: &mut dyn Message, errno: i32) -> usize {
        let mut header = InHeader::new_zeroed();
        let len = match message.take(header.as_mut_bytes()) {
            Ok(()) => error_reply(message, header.unique, Error::Errno(errno)),
            Err(Malformed) => 0,
        };
        if len == 0 {
            self.metrics.malformed_request();
        }
        len
    }

    /// Handles one message. Whatever the guest put in it, this returns; a panic of a handler is an EIO for this request alone.
    pub fn handle(&self, message: &mut dyn Message, scratch: &mut Scratch, may_block: bool) -> Outcome {
        self.handle_at(message, scratch, if may_block { Place::Pool } else { Place::Queue })
    }

    pub(crate) fn handle_at(&self, message: &mut dyn Message, scratch: &mut Scratch, place: Place) -> Outcome {
        let mut head = Head::new_zeroed();
        let Some(early) = head.take(message) else {
            self.metrics.malformed_request();
            return Outcome::Done(0);
        };
        let (header, early) = (&head.header, head.behind.get(..early).unwrap_or_default());
        if header.opcode == Opcode::Forget as u32 && self.forgets_at_once(header, early) {
            return Outcome::Done(0);
        }
        let result = catch_unwind(AssertUnwindSafe(|| self.checked(header, early, message, scratch, place)));
        let result = result.unwrap_or_else(|_| {
            self.metrics.panic();
            Err(Error::Errno(libc::EIO))
        });
        let row = Operation::by_number(header.opcode);
        if let (Some(row), false) = (row, matches!(result, Err(Error::WouldBlock | Error::Halted | Error::Elsewhere))) {
            self.metrics.request(row.opcode, result.is_err());
        }
        if let Some(wait) = scratch.waiting.take() {
            return Outcome::Later(Pending { wait, unique: header.unique });
        }
        match (result, row) {
            (Err(Error::WouldBlock), _) if place != Place::Pool => Outcome::WouldBlock,
            (Err(Error::Halted), _) if place == Place::Queue => Outcome::Halted,
            (Err(Error::Elsewhere), _) if place != Place::Lane => Outcome::Elsewhere,
            (_, Some(row)) if row.reply == ReplyForm::Nothing => Outcome::Done(0),
            (Ok(len), _) => Outcome::Done(len),
            (Err(error), _) => Outcome::Done(error_reply(message, header.unique, error)),
        }
    }

    /// The checks that hold for all operations; the answer is the length of the reply. Bytes of `early` stand before those that are left in
    /// the message.
    fn checked(
        &self,
        header: &InHeader,
        mut early: &[u8],
        message: &mut dyn Message,
        scratch: &mut Scratch,
        place: Place,
    ) -> Result<usize> {
        let may_block = place != Place::Queue;
        let Some(row) = Operation::by_number(header.opcode) else {
            if header.opcode == (Opcode::Init as u32).swap_bytes() {
                tracing::error!("the guest is of the other byte order, which is not served: use a little-endian guest");
                return Err(Error::Errno(libc::EPROTO));
            }
            self.metrics.malformed_request();
            return Err(Lacking.into());
        };
        let claimed = (header.len as usize).checked_sub(size_of::<InHeader>());
        if claimed.is_none_or(|claimed| claimed > early.len() + message.remaining()) {
            return self.malformed();
        }
        let sessionless = matches!(row.opcode, Opcode::Init | Opcode::Destroy);
        if !sessionless && !self.initialized.load(Relaxed) {
            return Err(Error::Errno(libc::EIO));
        }
        if row.mutates && self.fs.read_only() {
            return Err(Error::Errno(libc::EROFS));
        }
        let mut arguments = [0; ARGUMENTS_MAX];
        let Some(room) = arguments.get_mut(..row.arguments) else { return self.malformed() };
        // All of it is there already, or nothing is.
        let taken = if early.is_empty() { message.take(room) } else { take_early(&mut early, room) };
        if taken.is_err() {
            return self.malformed();
        }
        let fs = match (self.routes.get(row.opcode as usize).copied().unwrap_or_default(), &self.lane) {
            (Route::Here, _) if self.fs.lacks() & (1 << row.opcode as u32) != 0 => return Err(Lacking.into()),
            (Route::Here, _) => &*self.fs,
            // What comes to the lane nevertheless was sent there by the file system itself, which lacks that part of the data.
            (route, _) if place != Place::Lane && by_backing(row.opcode, route, room) => &*self.fs,
            (Route::Lane, Some(lane)) if place == Place::Lane => lane.fs(),
            (Route::Lane, _) => return Err(Error::Elsewhere),
            (Route::Errno(libc::ENOSYS), _) => return Err(Lacking.into()),
            (Route::Errno(errno), _) => return Err(Error::Errno(errno)),
        };
        if row.slow && !may_block {
            return Err(Error::WouldBlock);
        }
        scratch.request.clear();
        if row.names > 0 {
            scratch.request.extend_from_slice(early);
            if self.take_rest(message, &mut scratch.request).is_err() {
                return self.malformed();
            }
        }
        let cx = Context { unique: header.unique, uid: header.uid, gid: header.gid, pid: header.pid, may_block };
        let mut call = Call { server: self, fs, row, header, cx, arguments: &arguments, message };
        let result = call.run(scratch);
        if self.has(init::MAP_ALIGNMENT)
            && let Some(window) = self.window()
        {
            window.catch_up();
        }
        result
    }

    pub(crate) fn malformed<T>(&self) -> Result<T> {
        self.metrics.malformed_request();
        Err(Error::Errno(libc::EINVAL))
    }

    fn take_rest(&self, message: &mut dyn Message, into: &mut Vec<u8>) -> Result<(), Malformed> {
        let (rest, start) = (message.remaining(), into.len());
        if rest > REST_MAX {
            return Err(Malformed);
        }
        into.resize(start + rest, 0);
        message.take(into.get_mut(start..).unwrap_or_default())
    }

    /// Bytes of data that one request may have where they are copied into memory of ours. No honest guest goes beyond what was agreed
    /// on; another one could name the same page a thousand times.
    pub(crate) fn most_by_value(&self) -> usize {
        self.limits.max_write.max(4096) as usize
    }

    pub(crate) fn has(&self, flag: u64) -> bool {
        self.flags.load(Relaxed) & flag != 0
    }
}

/// ENOSYS, which goes to the guest only from here: it switches the operation off for the whole mount.
pub(crate) struct Lacking;

impl From<Lacking> for Error {
    fn from(Lacking: Lacking) -> Error {
        Error::Errno(LACKING)
    }
}

/// Out of the range of errnos, so that no host's ENOSYS is taken for it.
const LACKING: i32 = i32::MIN;

pub(crate) fn error_reply(message: &mut dyn Message, unique: u64, error: Error) -> usize {
    refusal(message, unique, if error == Lacking.into() { libc::ENOSYS } else { error.to_wire() })
}

fn refusal(message: &mut dyn Message, unique: u64, errno: i32) -> usize {
    let header = OutHeader { len: HEADER as u32, error: -errno, unique };
    if message.put(0, header.as_bytes()).is_ok() { HEADER } else { 0 }
}
