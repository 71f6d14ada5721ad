//! A guest that moves: its session is saved by one daemon and goes on at another, which has the same directory.

use std::fs;
use std::io::{Read, pipe};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use vhost::vhost_user::message::FrontendReq;
use virtiofs_device::Identity;
use virtiofs_device::vhost_user::{Config, Daemon, Source};
use virtiofs_fuse::{Limits, Server};
use virtiofs_guest::{Connection, Error, Guest, Options};
use virtiofs_hostdir::HostDir;

const PATIENCE: Duration = Duration::from_secs(20);
/// DEVICE_STATE, LOG_SHMFD, REPLY_ACK and MQ.
const PROTOCOL: u64 = 1 << 19 | 1 << 1 | 1 << 3 | 1;
const SAVE: u32 = 0;
const LOAD: u32 = 1;
/// The reply's bit that says that no descriptor comes with it.
const NO_FD: u64 = 1 << 8;

struct Share {
    run: TempDir,
    daemon: Daemon,
}

impl Share {
    fn new(dir: &Path, may_lose: bool) -> Share {
        let run = tempfile::tempdir().unwrap();
        let config = virtiofs_hostdir::Config { root: dir.into(), ..Default::default() };
        let fs = Arc::new(HostDir::sharing(config, Arc::default()).unwrap());
        let server = Arc::new(Server::new(fs, Limits::default()));
        let source = Source::Listening(UnixListener::bind(run.path().join("s")).unwrap());
        let identity = Identity::new("share", 1).unwrap();
        let config =
            Config { identity, once: false, slow_threads: 4, window: None, reconnect: Duration::ZERO, may_lose };
        Share { daemon: Daemon::start(server, source, config).unwrap(), run }
    }

    fn connection(&self) -> Connection {
        Connection::new(UnixStream::connect(self.run.path().join("s")).unwrap(), PATIENCE).unwrap()
    }

    fn guest(&self) -> Guest {
        let options = Options { timeout: PATIENCE, reconnects: true, ..Options::default() };
        Guest::connect(&self.run.path().join("s"), options).unwrap()
    }
}

fn number(connection: &Connection, request: FrontendReq, payload: &[u32], fds: &[std::os::fd::BorrowedFd<'_>]) -> u64 {
    let payload: Vec<u8> = payload.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let reply = connection.ask(request, &payload, fds).unwrap();
    u64::from_ne_bytes(reply.payload[..].try_into().unwrap())
}

fn negotiate(connection: &Connection) {
    let offered = connection.ask_number(FrontendReq::GET_PROTOCOL_FEATURES).unwrap();
    assert_eq!(offered & PROTOCOL, PROTOCOL);
    connection.send(FrontendReq::SET_PROTOCOL_FEATURES as u32, 0, &PROTOCOL.to_ne_bytes(), &[]).unwrap();
}

fn save(guest: &Guest) -> Vec<u8> {
    let saved = guest.client().with_connection(|connection| {
        negotiate(connection);
        let (mut reader, writer) = pipe().unwrap();
        assert_eq!(number(connection, FrontendReq::SET_DEVICE_STATE_FD, &[SAVE, 0], &[writer.as_fd()]), NO_FD);
        drop(writer);
        let mut state = Vec::new();
        reader.read_to_end(&mut state).unwrap();
        assert_eq!(number(connection, FrontendReq::CHECK_DEVICE_STATE, &[], &[]), 0);
        state
    });
    saved.unwrap()
}

fn load(connection: &Connection, state: &[u8]) -> u64 {
    negotiate(connection);
    let (reader, mut writer) = pipe().unwrap();
    assert_eq!(number(connection, FrontendReq::SET_DEVICE_STATE_FD, &[LOAD, 0], &[reader.as_fd()]), NO_FD);
    drop(reader);
    std::io::Write::write_all(&mut writer, state).unwrap();
    drop(writer);
    number(connection, FrontendReq::CHECK_DEVICE_STATE, &[], &[])
}

#[test]
fn an_open_file_reads_on_at_another_daemon() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("deep")).unwrap();
    fs::write(dir.path().join("deep/file"), "content").unwrap();
    let from = Share::new(dir.path(), false);
    let guest = from.guest();
    let file = guest.open("deep/file", libc::O_RDWR, 0).unwrap();
    guest.client().with_connection(|connection| {
        negotiate(connection);
        let (_reader, writer) = pipe().unwrap();
        let refused = number(connection, FrontendReq::SET_DEVICE_STATE_FD, &[SAVE, 0], &[writer.as_fd()]);
        assert_eq!(refused, NO_FD | 1, "not while it is served");
    });
    guest.client().stop().unwrap();
    let state = save(&guest);
    guest.client().disconnect();
    drop(from);

    let to = Share::new(dir.path(), false);
    let connection = to.connection();
    assert_eq!(load(&connection, &state), 0);
    guest.client().reconnect(connection).unwrap();
    assert_eq!(file.read_at(0, 7).unwrap(), b"content");
    file.write_at(7, b" and more").unwrap();
    guest.write_file("deep/new", b"new").unwrap();
    assert_eq!(fs::read(dir.path().join("deep/file")).unwrap(), b"content and more");
    assert_eq!(fs::read(dir.path().join("deep/new")).unwrap(), b"new");
    file.close().unwrap();
    guest.unmount().unwrap();
}

#[test]
fn what_is_not_there_any_more_is_refused_or_stale_as_one_likes() {
    for may_lose in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("gone"), "content").unwrap();
        fs::write(dir.path().join("kept"), "content").unwrap();
        let from = Share::new(dir.path(), false);
        let guest = from.guest();
        let [gone, kept] = ["gone", "kept"].map(|name| guest.open(name, libc::O_RDONLY, 0).unwrap());
        guest.client().stop().unwrap();
        let state = save(&guest);
        guest.client().disconnect();
        drop(from);
        fs::remove_file(dir.path().join("gone")).unwrap();

        let to = Share::new(dir.path(), may_lose);
        let connection = to.connection();
        assert_eq!(load(&connection, &state), u64::from(!may_lose));
        assert_eq!(to.daemon.server().negotiated().is_some(), may_lose);
        if may_lose {
            guest.client().reconnect(connection).unwrap();
            assert_eq!(kept.read_at(0, 7).unwrap(), b"content");
            assert!(matches!(gone.read_at(0, 7), Err(Error::Errno(libc::ESTALE | libc::EBADF))));
        }
        guest.client().vanish();
    }
}

#[test]
fn a_state_that_is_none_is_refused_and_the_next_guest_served() {
    let dir = tempfile::tempdir().unwrap();
    let share = Share::new(dir.path(), true);
    let guest = share.guest();
    guest.client().stop().unwrap();
    let state = save(&guest);
    guest.client().vanish();
    drop(guest);
    let connection = share.connection();
    for len in 0..state.len() {
        assert_eq!(load(&connection, &state[..len]), 1, "{len} bytes of it");
    }
    for at in 0..state.len() {
        let mut other = state.clone();
        other[at] ^= 0x81;
        // Some of these are states, of a guest that has less.
        load(&connection, &other);
    }
    assert_eq!(number(&connection, FrontendReq::CHECK_DEVICE_STATE, &[], &[]), 1, "of nothing");
    drop(connection);
    share.guest().unmount().unwrap();
    assert_eq!(share.daemon.server().metrics().panics(), 0);
}
