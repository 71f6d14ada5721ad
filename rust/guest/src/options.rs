//! What kind of guest to be.

use std::sync::Arc;
use std::time::Duration;

use virtiofs_coherence::View;
use virtiofs_fuse::wire::{KERNEL_MINOR_VERSION, init};

/// How a request is cut into descriptors. A device must not care (virtio 1.3, 2.6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// As Linux does: header, arguments and each data page in a descriptor of its own, the same for the reply.
    Linux,
    /// Header and arguments in one descriptor, reply header and reply in one.
    Joined,
    /// Pieces of at most so many bytes, headers cut as well.
    Pieces(usize),
}

/// INIT flags that Linux 7.3 offers over virtio-fs and that need no more of a client than this one does. `SECURITY_CTX` comes with them
/// where a security module labels files.
pub const LINUX_FLAGS: u64 = init::ASYNC_READ
    | init::POSIX_LOCKS
    | init::FLOCK_LOCKS
    | init::ATOMIC_O_TRUNC
    | init::EXPORT_SUPPORT
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::HAS_IOCTL_DIR
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::HANDLE_KILLPRIV
    | init::POSIX_ACL
    | init::ABORT_ERROR
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::NO_OPEN_SUPPORT
    | init::NO_OPENDIR_SUPPORT
    | init::EXPLICIT_INVAL_DATA
    | init::SUBMOUNTS
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::CREATE_SUPP_GROUP
    | init::HAS_EXPIRE_ONLY
    | init::DIRECT_IO_ALLOW_MMAP
    | init::NO_EXPORT_SUPPORT
    | init::HAS_RESEND
    | init::REQUEST_TIMEOUT;

/// Settings of a [`Guest`](crate::Guest). `Options::default()` is a guest much like a recent Linux.
#[derive(Clone, Debug)]
pub struct Options {
    /// Longest wait for anything: a message of the device, a reply, a free slot.
    pub timeout: Duration,
    /// How long to try again when nobody listens on the socket yet.
    pub connect_timeout: Duration,
    /// Request queues to use at most; fewer if the device has fewer.
    pub request_queues: u16,
    /// Descriptors of each ring, a power of two.
    pub queue_size: u16,
    /// Requests in flight on each request queue at most.
    pub in_flight: u16,
    /// FORGETs in flight on the hiprio queue at most.
    pub forgets_in_flight: u16,
    /// Largest READ or WRITE, in pages of 4 KiB; the server may lower it.
    pub max_pages: u16,
    /// Regions that guest memory is cut into.
    pub regions: u16,
    /// One indirect descriptor per request instead of a chain in the ring, if the device can.
    pub indirect: bool,
    /// EVENT_IDX, if the device can.
    pub event_idx: bool,
    /// The data of a request lies in one piece. Otherwise in scattered pages, as in a real guest.
    pub contiguous: bool,
    /// How requests are cut into descriptors.
    pub framing: Framing,
    /// Pipes instead of eventfds for calls and kicks (User-Mode Linux has them for calls).
    pub pipes: bool,
    /// Look at the used ring all the time instead of waiting to be called.
    pub polling: bool,
    /// Refuse replies that Linux 7.3 refuses, see [`Expect`](crate::Expect).
    pub strict: bool,
    /// Protocol features of vhost-user to leave out though the device has them: bits as in `VhostUserProtocolFeatures`.
    pub without_protocol_features: u64,
    /// Read the configuration space byte by byte, as User-Mode Linux does.
    pub config_by_bytes: bool,
    /// FUSE minor version to speak.
    pub minor: u32,
    /// Keep for the device what is in flight (INFLIGHT_SHMFD), if it can, and wait for it when it is gone: see `Client::reconnect`.
    pub reconnects: bool,
    /// INIT flags to offer, bits 32.. included.
    pub init_flags: u64,
    /// Use the DAX window of a device that has one.
    pub dax: bool,
    /// Map as QEMU 11.1 does: nothing behind the end of a file, and no file that is not open for writing.
    pub whole_pages: bool,
    /// Send INIT when connecting. Off: the first request is the caller's.
    pub init: bool,
    /// Who asks: fsuid, fsgid, thread id.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// See `uid`.
    pub pid: u32,
    /// Names kept in the cache of [`Guest`](crate::Guest) before it forgets.
    pub cached_names: usize,
    /// Take the queue of notifications of a device that has one. Names, absent names and attributes are then kept for as long as the
    /// server says, unless it says otherwise there.
    pub notifications: bool,
    /// The version table of the share. Names, absent names and attributes are then kept for exactly as long as their counters stand,
    /// whatever the server says of time.
    pub versions: Option<Arc<View>>,
    /// Take the version table that the device shows as shared memory region 1; one without is refused.
    pub find_versions: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            timeout: Duration::from_secs(20),
            connect_timeout: Duration::ZERO,
            request_queues: 1,
            queue_size: 1024,
            in_flight: 32,
            forgets_in_flight: 128,
            max_pages: 256,
            regions: 1,
            indirect: true,
            event_idx: true,
            contiguous: false,
            framing: Framing::Linux,
            pipes: false,
            polling: false,
            strict: true,
            without_protocol_features: 0,
            config_by_bytes: false,
            minor: KERNEL_MINOR_VERSION,
            reconnects: false,
            init_flags: LINUX_FLAGS,
            dax: false,
            whole_pages: false,
            init: true,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: rustix::process::getpid().as_raw_nonzero().get() as u32,
            cached_names: 4096,
            notifications: false,
            versions: None,
            find_versions: false,
        }
    }
}
