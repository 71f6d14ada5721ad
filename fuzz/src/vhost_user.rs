//! Messages of a VMM: any number, flags, payload and descriptors, in any order, cut off anywhere.

#![no_main]

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tempfile::TempDir;
use virtiofs_device::Identity;
use virtiofs_device::vhost_user::{Config, Daemon, Source};
use virtiofs_fuse::{Limits, Server};
use virtiofs_hostdir::HostDir;

static SHARE: LazyLock<(Arc<Server>, TempDir)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let config = virtiofs_hostdir::Config { root: dir.path().into(), ..Default::default() };
    (Arc::new(Server::new(Arc::new(HostDir::new(config).unwrap()), Limits::default())), dir)
});

fn memory() -> OwnedFd {
    let fd = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, 1 << 20).unwrap();
    fd
}

fuzz_target!(|data: &[u8]| {
    let (server, _) = &*SHARE;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let identity = Identity::new("fuzz", 2).unwrap();
    let config =
        Config { identity, once: true, slow_threads: 1, window: None, reconnect: Duration::ZERO, may_lose: false };
    let daemon = Daemon::start(Arc::clone(server), Source::Connected(theirs), config).unwrap();
    ours.set_nonblocking(true).unwrap();
    let (memory, pipe) = (memory(), rustix::pipe::pipe().unwrap());
    let mut rest = data;
    for _ in 0..64 {
        let Some(([request, flags, with, len], after)) = rest.split_first_chunk() else { break };
        let (payload, after) = after.split_at(after.len().min(usize::from(*len)));
        rest = after;
        let says = if with & 0x40 != 0 { u32::from(*len) * 8 } else { payload.len() as u32 };
        let version = if flags & 0x80 != 0 { u32::from(*flags) } else { 1 | u32::from(*flags) & 8 };
        let header: Vec<u8> = [u32::from(*request), version, says].iter().flat_map(|word| word.to_le_bytes()).collect();
        let fds = match with & 7 {
            0..=2 => vec![],
            3 => vec![memory.as_fd()],
            4 => vec![memory.as_fd(), memory.as_fd()],
            5 => vec![pipe.0.as_fd()],
            6 => vec![pipe.1.as_fd()],
            _ => vec![memory.as_fd(), pipe.0.as_fd(), ours.as_fd()],
        };
        let mut space = [MaybeUninit::uninit(); 128];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        if sendmsg(&ours, &[IoSlice::new(&header), IoSlice::new(payload)], &mut control, SendFlags::NOSIGNAL).is_err() {
            break;
        }
    }
    // Not only dropped: among what the daemon was sent may be this end itself, which it would keep open.
    let _ = ours.shutdown(std::net::Shutdown::Both);
    assert!(daemon.wait(Some(Duration::from_secs(60))), "the daemon does not end with its VMM");
    assert_eq!(server.metrics().panics(), 0);
});
