//! The queue of notifications, by registers: what a driver finds in its buffers, and what a driver that does not take it finds.

mod machine;

use std::ffi::CString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::Share;
use virtiofs_coherence::Table;
use virtiofs_device::identity::NOTIFICATION;
use virtiofs_device::{Backlog, Device, News, Notices, Tell, Threads};
use virtiofs_guest::{Descriptor, Guest, Notice, Options};

fn share() -> Share {
    let table = Table::anonymous(64).unwrap();
    Share::of(2, Threads::Own { slow: 4 }, |device| device.with_notices(Arc::new(Notices::new(table).unwrap())))
}

/// A guest without a session is told nothing but what a test tells it.
fn listener(share: &Share, init: bool) -> Guest {
    share.guest(Options { notifications: true, request_queues: 2, init, ..Options::default() })
}

fn notices(device: &Device) -> &Notices {
    device.notices().unwrap()
}

/// What the guest hears until it was told an INC_EPOCH, which ends what a test has to say.
fn heard(guest: &Guest) -> Vec<Notice> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut all = Vec::new();
    while all.last() != Some(&Notice::Epoch) {
        assert!(Instant::now() < deadline, "only {all:?} came");
        all.extend(guest.client().notices().unwrap());
    }
    all
}

#[test]
fn each_kind_of_news_arrives_as_it_was_told() {
    let share = share();
    let guest = listener(&share, false);
    assert_eq!(guest.client().noticed(), Some(0));
    let told = notices(&share.device);
    let longest = CString::new(vec![b'n'; 255]).unwrap();
    told.inval_inode(7, -1, 0).unwrap();
    told.tell(News::Moved { node: 8 }).unwrap();
    told.inval_entry(1, c"gone".into()).unwrap();
    told.delete(1, 9, longest.clone()).unwrap();
    told.inc_epoch().unwrap();
    let expected = [
        Notice::Inode { node: 7, offset: -1, len: 0 },
        Notice::Inode { node: 8, offset: 0, len: 0 },
        Notice::Entry { parent: 1, name: b"gone".to_vec() },
        Notice::Delete { parent: 1, child: 9, name: longest.into_bytes() },
        Notice::Epoch,
    ];
    assert_eq!(heard(&guest), expected);
    assert_eq!(guest.client().noticed(), Some(5));
}

#[test]
fn what_finds_no_buffer_waits_and_too_much_is_refused() {
    let share = share();
    let guest = listener(&share, false);
    let told = notices(&share.device);
    let mut count = 0u64;
    while told.inval_inode(count, 0, 0).is_ok() {
        count += 1;
    }
    assert_eq!(told.inc_epoch(), Err(Backlog));
    assert!(count >= 1 << 16, "{count}");
    // The guest begins to listen.
    let mut all = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    while all.len() as u64 != count {
        assert!(Instant::now() < deadline, "{} of {count} came", all.len());
        all.extend(guest.client().notices().unwrap());
    }
    let order = all.iter().zip(0..).all(|(notice, node)| *notice == Notice::Inode { node, offset: 0, len: 0 });
    assert!(order, "the order is that of the telling");
}

#[test]
fn a_driver_without_the_feature_has_one_queue_less_and_is_told_nothing() {
    let share = share();
    let guest = share.guest(Options { request_queues: 2, ..Options::default() });
    assert_eq!((guest.client().noticed(), guest.client().request_queues()), (None, 2));
    assert_eq!(share.device.queues().len(), 3);
    for _ in 0..100_000 {
        notices(&share.device).inc_epoch().unwrap();
    }
    guest.write_file("file", b"x").unwrap();
    assert_eq!(guest.stat("file").unwrap().size, 1);
    assert!(share.dir.path().join("file").exists());
    drop(guest);
    assert_eq!(share.fs.nodes(), 1, "the session is over");
    let guest = listener(&share, true);
    assert_eq!(share.device.queues().len(), 4);
    assert_eq!(guest.stat("file").unwrap().size, 1);
    let plain = Share::new(2);
    assert!(plain.device.notices().is_none());
    assert_eq!(plain.device.features() & NOTIFICATION, 0);
}

#[test]
fn buffers_that_are_none_go_back_empty() {
    let share = share();
    let guest = listener(&share, false);
    let mut queue = guest.client().raw_queue(1).unwrap();
    // All honest buffers are used up first.
    for node in 0..32 {
        notices(&share.device).inval_inode(node, 0, 0).unwrap();
    }
    assert_eq!(queue.returned(32, Duration::from_secs(20)).unwrap().len(), 32);
    let buffer = queue.buffer(4096).unwrap();
    let (short, readable) = (queue.size() - 2, queue.size() - 1);
    queue.set_chain(short, &[(buffer, 20, true)]).unwrap();
    queue.set_chain(readable, &[(buffer, 4096, false)]).unwrap();
    queue.set(0, Descriptor { address: 0xffff_ffff_0000, len: 4096, flags: Descriptor::WRITE, next: 0 }).unwrap();
    queue.set_chain(1, &[(buffer, 10, true), (buffer + 100, 4096 - 100, true)]).unwrap();
    [short, readable, 0, 1].into_iter().for_each(|head| queue.offer(head));
    queue.kick().unwrap();
    notices(&share.device).inval_inode(77, 1, 2).unwrap();
    let back = queue.returned(4, Duration::from_secs(20)).unwrap();
    assert_eq!(back, [(u32::from(short), 0), (u32::from(readable), 0), (0, 0), (1, 40)]);
    let mut message = [0; 130];
    guest.client().memory().read(buffer, &mut message).unwrap();
    assert_eq!(message[..10], [40, 0, 0, 0, 2, 0, 0, 0, 0, 0]);
    assert_eq!((message[106], message[114], message[122]), (77, 1, 2));
}
