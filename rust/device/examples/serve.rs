//! Serves a directory over vhost-user without Python, for profilers: `cargo run --release --example serve -- DIR SOCKET`.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use virtiofs_device::Identity;
use virtiofs_device::vhost_user::{Config, Daemon, Source};
use virtiofs_fuse::{Limits, Server};
use virtiofs_hostdir::{Effects, HostDir};

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(root), Some(socket)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: serve DIR SOCKET");
        std::process::exit(2);
    };
    let second = Duration::from_secs(1);
    let effects = Effects { entry_ttl: second, attr_ttl: second, ..Effects::default() };
    let config = virtiofs_hostdir::Config { root: root.into(), effects, xattr: true, ..Default::default() };
    let server = Arc::new(Server::new(Arc::new(HostDir::new(config)?), Limits::default()));
    let source = Source::Listening(UnixListener::bind(socket)?);
    let identity = Identity::new("share", 1).map_err(std::io::Error::other)?;
    Daemon::start(
        server,
        source,
        Config { identity, once: true, slow_threads: 16, window: None, reconnect: Duration::ZERO, may_lose: false },
    )?
    .wait(None);
    Ok(())
}
