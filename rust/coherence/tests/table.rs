//! Tables as daemons and guests have them: made, found, shared, refused, outlived.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use virtiofs_coherence::{Changed, Error, Table, View, slot_of};

const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_view_sees_what_the_table_says() {
    let table = Table::anonymous(64).unwrap();
    let view = View::new(table.fd()).unwrap();
    assert_eq!((table.slots(), view.slots(), table.size()), (64, 64, 4096 + 512));
    let noted = view.note(7);
    assert!(view.stands(7, noted));
    table.bump(8);
    assert!(view.stands(7, noted), "another slot");
    table.bump(7);
    assert!(!view.stands(7, noted));
    let noted = view.note(7);
    assert!(view.stands(7 + 64, noted), "only the low bits of a node id count");
    table.bump_all();
    assert!(!view.stands(7, noted));
}

#[test]
fn roots_move_node_one() {
    let table = Table::anonymous(64).unwrap();
    let view = View::new(table.fd()).unwrap();
    let noted = view.note(1);
    table.bump(20);
    assert!(view.stands(1, noted));
    table.mark_root(20);
    table.bump(20);
    assert!(!view.stands(1, noted));
    let noted = view.note(1);
    table.bump(21);
    assert!(view.stands(1, noted));
}

/// Random bumps, marks and epochs against a model: an answer stands if and only if nothing of its slot moved, but that a mark may end it.
#[test]
fn a_long_history_agrees_with_a_model() {
    for seed in 1..40u64 {
        let mut state = seed;
        let mut random = |below: u64| {
            state = slot_of(state, seed);
            state % below
        };
        let table = Table::anonymous(64).unwrap();
        let view = View::new(table.fd()).unwrap();
        let mut root = [false; 64];
        let mut noted: Vec<_> = (0..64).map(|slot| (view.note(slot), true)).collect();
        for _ in 0..2000 {
            let slot = random(64);
            match random(20) {
                0 => {
                    table.mark_root(slot);
                    if !root[slot as usize] {
                        noted[slot as usize].1 = false;
                    }
                    root[slot as usize] = true;
                }
                1 => {
                    table.bump_all();
                    noted.iter_mut().for_each(|noted| noted.1 = false);
                }
                2..10 => {
                    table.bump(slot);
                    noted[slot as usize].1 = false;
                    noted[1].1 &= !root[slot as usize];
                }
                _ => noted[slot as usize] = (view.note(slot), true),
            }
            let slot = random(64);
            let (version, stands) = noted[slot as usize];
            assert_eq!(view.stands(slot, version), stands, "seed {seed}, slot {slot}");
        }
    }
}

#[test]
fn many_threads_lose_no_bump() {
    let table = Table::anonymous(64).unwrap();
    let view = View::new(table.fd()).unwrap();
    let before: Vec<_> = (0..64).map(|slot| view.note(slot)).collect();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..64_000).for_each(|n| table.bump(n)));
        }
    });
    let raw = File::from(table.fd().try_clone_to_owned().unwrap());
    for slot in 0..64u64 {
        assert!(!view.stands(slot, before[slot as usize]));
        let mut bytes = [0; 8];
        raw.read_exact_at(&mut bytes, 4096 + 8 * slot).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 4000);
    }
}

#[test]
fn what_guests_get_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    for table in [Table::anonymous(64).unwrap(), Table::shared(dir.path(), Some(64)).unwrap()] {
        let file = File::from(table.fd().try_clone_to_owned().unwrap());
        assert!(file.write_at(&[1; 8], 4096).is_err());
        assert!(file.set_len(0).is_err());
        let flags = rustix::fs::fcntl_getfl(&file).unwrap();
        assert!(!flags.intersects(rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::RDWR));
    }
    // Not even by whoever opens the memory file anew.
    let table = Table::anonymous(64).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&table.fd()));
    if let Ok(file) = OpenOptions::new().read(true).write(true).open(path) {
        assert!(file.write_at(&[1; 8], 4096).is_err());
        assert!(file.set_len(0).is_err());
    }
}

#[test]
fn daemons_share_a_table_through_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let one = Table::shared(dir.path(), Some(128)).unwrap();
    let two = Table::shared(dir.path(), None).unwrap();
    assert_eq!(two.slots(), 128);
    let view = View::open(one.path().unwrap()).unwrap();
    let noted = view.note(100);
    two.bump(100);
    assert!(!view.stands(100, noted));
    assert!(matches!(Table::shared(dir.path(), Some(64)), Err(Error::Size { asked: 64, found: 128, .. })));
    assert_eq!(fs::metadata(one.path().unwrap()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn daemons_that_start_at_once_find_one_table() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let tables: Vec<Arc<Table>> = thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| Table::shared(dir.path(), Some(64)).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let views: Vec<_> = tables.iter().map(|table| View::new(table.fd()).unwrap()).collect();
        for (turn, table) in tables.iter().enumerate() {
            let slot = turn as u64 + 10;
            let noted: Vec<_> = views.iter().map(|view| view.note(slot)).collect();
            table.bump(slot);
            assert!(views.iter().zip(noted).all(|(view, noted)| !view.stands(slot, noted)));
        }
    }
}

/// Closing is what the kernel does for a daemon that was killed.
#[test]
fn a_daemon_that_goes_makes_everything_stale_and_the_table_stays() {
    let dir = tempfile::tempdir().unwrap();
    let one = Table::shared(dir.path(), Some(64)).unwrap();
    let two = Table::shared(dir.path(), None).unwrap();
    let view = View::new(one.fd()).unwrap();
    let mut changes = one.changes();
    let noted = view.note(5);
    drop(two);
    let deadline = std::time::Instant::now() + LONG;
    while view.stands(5, noted) {
        assert!(std::time::Instant::now() < deadline, "nobody noticed");
        changes.wait(Duration::from_millis(100));
    }
    drop(one);
    let noted = view.note(5);
    let three = Table::shared(dir.path(), None).unwrap();
    assert!(!view.stands(5, noted), "what a daemon may have left undone while there was none to notice");
    let noted = view.note(5);
    three.bump(5);
    assert!(!view.stands(5, noted));
}

#[test]
fn what_is_no_table_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("version-table");
    let good = {
        let table = Table::shared(dir.path(), Some(64)).unwrap();
        fs::read(table.path().unwrap()).unwrap()
    };
    let mut cases: Vec<Vec<u8>> = vec![vec![], b"hello".to_vec(), vec![0; 4096 + 512], vec![0xff; 5000]];
    for cut in [1, 512, 4096] {
        cases.push(good[..good.len() - cut].to_vec());
    }
    cases.push([&good[..], &[0; 8]].concat());
    for at in [0, 7, 8, 11, 12, 15] {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        cases.push(bad);
    }
    for bad in cases {
        fs::write(&path, &bad).unwrap();
        let error = Table::shared(dir.path(), None).unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        assert!(error.to_string().contains("version-table"), "{error}");
        assert!(View::open(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), bad, "somebody may be using it");
    }
    fs::write(&path, &good).unwrap();
    Table::shared(dir.path(), None).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o620)).unwrap();
    assert!(Table::shared(dir.path(), None).unwrap_err().to_string().contains("others may write"));
    fs::remove_file(&path).unwrap();
    fs::write(dir.path().join("elsewhere"), &good).unwrap();
    symlink("elsewhere", &path).unwrap();
    assert!(Table::shared(dir.path(), None).is_err(), "a link is never followed");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(Table::shared(dir.path(), None).is_err());
    assert!(Table::shared(&dir.path().join("absent"), None).unwrap_err().to_string().contains("absent"));
}

#[test]
fn sizes_are_checked() {
    for bad in [0, 1, 63, 65, 1 << 25, u64::MAX] {
        assert!(matches!(Table::anonymous(bad), Err(Error::Slots { .. })), "{bad}");
    }
    assert_eq!(Table::anonymous(1 << 16).unwrap().slots(), 1 << 16);
}

#[test]
fn a_subscriber_is_told_what_moved_and_nothing_else() {
    let table = Table::anonymous(1 << 14).unwrap();
    let mut changes = table.changes();
    assert_eq!(changes.take(), None);
    table.mark_root(9);
    assert_eq!(changes.take(), None, "a mark is no change");
    table.bump(5);
    table.bump(5);
    table.bump(300);
    assert_eq!(changes.take(), Some(Changed::Slots(vec![5, 300])));
    table.bump(9);
    assert_eq!(changes.wait(LONG), Some(Changed::Slots(vec![1, 9])));
    table.bump(5);
    table.bump_all();
    assert_eq!(changes.take(), Some(Changed::All));
    assert_eq!(changes.take(), None);
    (0..5000).for_each(|slot| table.bump(slot));
    assert_eq!(changes.take(), Some(Changed::All));
    assert_eq!(changes.wait(Duration::from_millis(1)), None);
}

#[test]
fn sleeping_subscribers_are_woken_by_any_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let one = Table::shared(dir.path(), Some(64)).unwrap();
    let two = Table::shared(dir.path(), None).unwrap();
    let rounds = 500u64;
    let turn = std::sync::Barrier::new(3);
    thread::scope(|scope| {
        for table in [&one, &two] {
            let (turn, mut changes) = (&turn, table.changes());
            scope.spawn(move || {
                for round in 0..rounds {
                    turn.wait();
                    let changed = changes.wait(LONG).or_else(|| changes.wait(LONG));
                    assert_eq!(changed, Some(Changed::Slots(vec![round % 64])), "round {round}");
                    turn.wait();
                }
            });
        }
        for round in 0..rounds {
            turn.wait();
            two.bump(round % 64);
            turn.wait();
        }
    });
}

#[test]
fn a_wait_is_ended_from_outside() {
    let table = Table::anonymous(64).unwrap();
    let mut changes = table.changes();
    let (waker, ended) = (changes.waker(), Arc::new(AtomicBool::new(false)));
    let waiting = {
        let ended = Arc::clone(&ended);
        thread::spawn(move || {
            while !ended.load(Ordering::Acquire) {
                changes.wait(LONG);
            }
        })
    };
    while !waiting.is_finished() {
        ended.store(true, Ordering::Release);
        waker();
        thread::yield_now();
    }
    waiting.join().unwrap();
}

#[test]
fn locks_of_names_exclude_daemons_and_threads() {
    let dir = tempfile::tempdir().unwrap();
    let one = Table::shared(dir.path(), Some(64)).unwrap();
    let two = Table::shared(dir.path(), None).unwrap();
    let inside = std::sync::atomic::AtomicU32::new(0);
    thread::scope(|scope| {
        for n in 0..4u64 {
            let (table, inside) = (if n % 2 == 0 { &one } else { &two }, &inside);
            scope.spawn(move || {
                for round in 0..300u64 {
                    // All take slot 3, each with another second one, in both orders.
                    let other = 4 + (n + round) % 5;
                    let _lock = table.names_lock(if round % 2 == 0 { [3, other] } else { [other, 3] });
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    inside.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    drop(one.names_lock([3, 3 + 64]));
    let _ = one.fd().as_fd();
}
