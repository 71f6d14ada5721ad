//! A device that is saved in the midst of work, and another one that goes on with it.

mod machine;

use std::fs;
use std::sync::Arc;

use machine::{Share, Vmm};
use parking_lot::{Mutex, RwLock};
use virtiofs_device::mmio::device_of;
use virtiofs_device::{Device, RestoreError, Shape, State};
use virtiofs_fuse::Thing;
use virtiofs_guest::{Guest, Machine, Options, Region, Result};

/// A machine that may get other registers while its guest stands still.
struct Moving {
    now: RwLock<Arc<Vmm>>,
    interrupt: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

impl Moving {
    fn attend(&self, vmm: &Vmm) {
        if let Some(handler) = self.interrupt.lock().clone() {
            vmm.set_interrupt(Box::new(move || handler()));
        }
    }
}

impl Machine for Moving {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.now.read().read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.now.read().write(offset, data);
    }

    fn add_memory(&self, region: &Region) -> Result<()> {
        self.now.read().add_memory(region)
    }

    fn remove_memory(&self, region: &Region) -> Result<()> {
        self.now.read().remove_memory(region)
    }

    fn set_interrupt(&self, handler: Box<dyn Fn() + Send + Sync>) {
        *self.interrupt.lock() = Some(Arc::from(handler));
        self.attend(&self.now.read());
    }
}

fn options() -> Options {
    Options { request_queues: 1, in_flight: 4, ..Options::default() }
}

/// A share with a guest that can be moved from one device to the next.
struct Moved {
    share: Share,
    machine: Arc<Moving>,
    guest: Guest,
}

impl Moved {
    fn new() -> Moved {
        let share = Share::new(1);
        share.device.place_window(Some(1 << 40)).unwrap();
        let machine = Arc::new(Moving { now: RwLock::new(share.machine.clone()), interrupt: Mutex::default() });
        let transport = virtiofs_guest::Mmio::new(machine.clone()).unwrap();
        let guest = Guest::over(Box::new(transport), options()).unwrap();
        Moved { share, machine, guest }
    }

    /// Pauses and saves the device of the guest, and ends it.
    fn save(&self) -> Vec<u8> {
        let now = self.machine.now.read().clone();
        now.0.device().pause().unwrap();
        let saved = now.0.save().unwrap();
        now.0.device().close();
        saved
    }

    /// Gives the guest a new device over the same directory and memory.
    fn restore(&self, saved: &[u8], may_lose: bool) -> std::result::Result<Vec<(Thing, Vec<u8>)>, RestoreError> {
        let now = self.machine.now.read().clone();
        let memory = now.0.device().memory().clone();
        let next = self.share.another(memory);
        let lost = next.0.restore(saved, may_lose)?;
        assert_eq!(next.0.device().state(), State::Paused);
        assert_eq!(next.0.device().window().unwrap().place(), Some(1 << 40));
        // The embedded guest is interrupted as before.
        self.machine.attend(&next);
        // First the registers: a notification that goes to the old ones is nobody's.
        *self.machine.now.write() = next.clone();
        next.0.device().resume().unwrap();
        Ok(lost.into_iter().map(|lost| (lost.what, lost.path)).collect())
    }

    fn move_on(&self) {
        let saved = self.save();
        assert_eq!(self.restore(&saved, false).unwrap(), []);
    }
}

#[test]
fn what_a_guest_has_goes_on_in_another_device() {
    let moved = Moved::new();
    let (guest, dir) = (&moved.guest, moved.share.dir.path());
    guest.makedirs("a/b").unwrap();
    guest.write_file("a/b/file", b"before").unwrap();
    guest.symlink("a/b/file", "link").unwrap();
    let file = guest.open("a/b/file", libc::O_RDWR, 0).unwrap();
    file.lock(7, libc::F_WRLCK, 0, 9, false).unwrap();
    let node = guest.nodeid("a/b/file").unwrap();
    for turn in 0..5 {
        moved.move_on();
        // Handles and nodes are those from before, and new ones are new.
        assert_eq!(file.read_at(0, 6).unwrap(), b"before");
        assert_eq!(guest.nodeid("a/b/file").unwrap(), node);
        guest.write_file(format!("a/b/{turn}"), b"new").unwrap();
        assert_ne!(guest.nodeid(format!("a/b/{turn}")).unwrap(), node);
        assert_eq!(guest.readlink("link").unwrap(), b"a/b/file");
        assert_eq!(guest.listdir("a/b").unwrap().len(), 2 + turn);
        file.write_at(6, b" and after").unwrap();
        assert_eq!(fs::read(dir.join("a/b/file")).unwrap(), b"before and after");
    }
    // The lock moved along: another owner of the host does not get it.
    assert_eq!(moved.share.locks.count().0, 1);
    file.lock(7, libc::F_UNLCK, 0, 9, false).unwrap();
    assert_eq!(moved.share.locks.count().0, 0);
    file.close().unwrap();
    guest.remove_tree("a").unwrap();
    guest.unmount().unwrap();
}

#[test]
fn what_is_gone_is_named_and_fails_or_is_stale() {
    let moved = Moved::new();
    let (guest, dir) = (&moved.guest, moved.share.dir.path());
    guest.mkdir("d", 0o755).unwrap();
    guest.write_file("d/gone", b"x").unwrap();
    guest.write_file("d/stays", b"y").unwrap();
    let gone = guest.open("d/gone", libc::O_RDONLY, 0).unwrap();
    let stays = guest.open("d/stays", libc::O_RDONLY, 0).unwrap();
    let saved = moved.save();
    fs::remove_file(dir.join("d/gone")).unwrap();
    // Another file of the same name is not the one that was there.
    fs::write(dir.join("d/gone"), b"other").unwrap();
    match moved.restore(&saved, false) {
        Err(RestoreError::Lost(lost)) => {
            assert_eq!(lost.len(), 1, "{lost:?}");
            assert_eq!((lost[0].what, &lost[0].path[..]), (Thing::Node, &b"d/gone"[..]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(moved.restore(&saved, true).unwrap(), [(Thing::Node, b"d/gone".to_vec())]);
    assert_eq!(gone.read_at(0, 1).unwrap_err().errno(), Some(libc::EBADF));
    assert_eq!(stays.read_at(0, 1).unwrap(), b"y");
    // The guest looks it up again and has the other one.
    assert_eq!(guest.read_file("d/gone").unwrap(), b"other");
    drop((gone, stays));
    guest.unmount().unwrap();
}

#[test]
fn requests_that_wait_for_a_lock_are_asked_again() {
    let moved = Moved::new();
    let guest = &moved.guest;
    guest.write_file("file", b"x").unwrap();
    let file = guest.open("file", libc::O_RDWR, 0).unwrap();
    file.lock(1, libc::F_WRLCK, 0, 9, false).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| file.lock(2, libc::F_WRLCK, 0, 9, true));
        while moved.share.locks.count().1 == 0 {
            std::thread::yield_now();
        }
        moved.move_on();
        assert!(!waiter.is_finished());
        file.lock(1, libc::F_UNLCK, 0, 9, false).unwrap();
        waiter.join().unwrap().unwrap();
    });
    file.lock(2, libc::F_UNLCK, 0, 9, false).unwrap();
    file.close().unwrap();
    guest.unmount().unwrap();
}

#[test]
fn a_device_is_saved_while_it_is_paused_and_goes_on_from_what_was_saved_alone() {
    let moved = Moved::new();
    let now = moved.machine.now.read().clone();
    let device: &Device = now.0.device();
    assert!(matches!(device.save(), Err(RestoreError::Device(_))));
    let saved = moved.save();
    let bytes = device_of(&saved).unwrap().to_vec();
    let shape = Shape::of(&bytes).unwrap();
    assert_eq!((&shape.tag[..], shape.request_queues, shape.window), ("share", 1, 8 << 20));
    // Whatever is missing or other is refused, and the device is as new.
    let next = moved.share.another(device.memory().clone());
    for end in 0..bytes.len() {
        assert!(next.0.device().restore(&bytes[..end], Vec::new(), true).is_err());
        assert_eq!(next.0.device().state(), State::Ready);
    }
    let mut later = bytes.clone();
    later[8 + b"virtiofs device".len()] += 1;
    let error = next.0.device().restore(&later, Vec::new(), true).unwrap_err().to_string();
    assert!(error.contains("format 2"), "{error}");
    assert_eq!(moved.restore(&saved, false).unwrap(), []);
    moved.guest.unmount().unwrap();
}

#[test]
fn without_file_handles_nodes_are_found_where_they_were_and_nowhere_else() {
    let moved = Moved::new();
    let (guest, dir) = (&moved.guest, moved.share.dir.path());
    guest.makedirs("a/b").unwrap();
    guest.write_file("a/b/stays", b"here").unwrap();
    guest.write_file("a/b/moves", b"there").unwrap();
    guest.symlink("stays", "a/b/link").unwrap();
    let stays = guest.open("a/b/stays", libc::O_RDONLY, 0).unwrap();
    // One that was used, and one that was only seen.
    let moves = guest.open("a/b/moves", libc::O_RDONLY, 0).unwrap();
    let link = guest.nodeid("a/b/link").unwrap();
    let saved = moved.save();
    fs::rename(dir.join("a/b/moves"), dir.join("a/moved")).unwrap();
    std::thread::scope(|scope| {
        let restored = scope.spawn(|| {
            // Of this thread alone, and of those that it starts.
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective.remove(rustix::thread::CapabilitySet::DAC_READ_SEARCH);
            rustix::thread::set_capabilities(None, sets).unwrap();
            moved.restore(&saved, true).unwrap()
        });
        assert_eq!(restored.join().unwrap(), [(Thing::Node, b"a/b/moves".to_vec())]);
    });
    assert_eq!(stays.read_at(0, 4).unwrap(), b"here");
    assert_eq!(guest.nodeid("a/b/link").unwrap(), link);
    assert_eq!(guest.readlink("a/b/link").unwrap(), b"stays");
    assert_eq!(moves.read_at(0, 1).unwrap_err().errno(), Some(libc::EBADF));
    assert_eq!(guest.read_file("a/moved").unwrap(), b"there");
    drop((stays, moves));
    guest.unmount().unwrap();
}
