//! The device behind registers: an honest driver, one that does everything in a wrong order, and one that does anything at all.

mod machine;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::Share;
use proptest::prelude::*;
use virtiofs_device::mmio::{CONFIG, Mmio, SIZE, register as r};
use virtiofs_device::{Device, DeviceError, State, Threads, Workers};
use virtiofs_guest::{Framing, Options};

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;
const NEGOTIATED: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK;

fn get(mmio: &Mmio, offset: u64) -> u32 {
    let mut word = [0; 4];
    mmio.read(offset, &mut word);
    u32::from_le_bytes(word)
}

fn set(mmio: &Mmio, offset: u64, value: u32) {
    mmio.write(offset, &value.to_le_bytes());
}

/// Status bits one after the other, with VERSION_1 accepted.
fn negotiate(mmio: &Mmio) {
    for status in [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
        set(mmio, r::STATUS, status);
    }
    set(mmio, r::DRIVER_FEATURES_SEL, 1);
    set(mmio, r::DRIVER_FEATURES, 1);
    set(mmio, r::STATUS, NEGOTIATED);
    assert_eq!(get(mmio, r::STATUS), NEGOTIATED);
}

#[test]
fn a_driver_that_keeps_the_order_has_files() {
    let share = Share::new(2);
    let plain = Options::default();
    for options in [
        plain.clone(),
        Options { framing: Framing::Pieces(99), max_pages: 1, ..plain.clone() },
        Options { indirect: false, event_idx: false, queue_size: 512, ..plain.clone() },
        Options { regions: 3, request_queues: 2, polling: true, ..plain },
    ] {
        let guest = share.guest(options);
        let data: Vec<u8> = (0..400_000u32).map(|i| (i / 7) as u8).collect();
        guest.makedirs("a/b").unwrap();
        guest.write_file("a/b/data", &data).unwrap();
        assert!(fs::read(share.dir.path().join("a/b/data")).unwrap() == data);
        assert!(guest.read_file("a/b/data").unwrap() == data);
        assert_eq!(guest.client().config().unwrap().tag, b"share");
        guest.client().reboot(true).unwrap();
        guest.client().reboot(false).unwrap();
        guest.client().add_memory(1 << 20).unwrap();
        guest.drop_caches().unwrap();
        guest.remove_tree("a").unwrap();
        guest.unmount().unwrap();
        assert_eq!((share.fs.nodes(), share.device.state()), (1, State::Ready));
    }
    assert_eq!(share.device.server().metrics().panics(), 0);
}

/// Threads of this process that many devices share.
fn shared_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("virtiofs-w")).count()
}

#[test]
fn many_devices_share_two_threads_and_leave_none_behind() {
    let workers = Arc::new(Workers::new(2, 4));
    let shares: Vec<Share> =
        (0..40).map(|_| Share::of(2, Threads::Shared(Arc::clone(&workers)), |device| device)).collect();
    assert_eq!(shared_threads(), 0, "no device was started");
    let options = || Options { request_queues: 2, in_flight: 4, ..Options::default() };
    let guests: Vec<_> = shares.iter().map(|share| share.guest(options())).collect();
    assert!((1..=2).contains(&shared_threads()));
    std::thread::scope(|scope| {
        for guest in guests.iter().take(4) {
            scope.spawn(move || {
                for turn in 0..50 {
                    guest.write_file(format!("{turn}"), &vec![turn; 100_000]).unwrap();
                    assert_eq!(guest.read_file(format!("{turn}")).unwrap(), vec![turn; 100_000]);
                }
            });
        }
        // Those that come and go meanwhile get their turns too.
        for (share, guest) in shares.iter().zip(&guests).skip(4) {
            guest.write_file("file", b"content").unwrap();
            share.device.pause().unwrap();
            share.device.resume().unwrap();
            assert_eq!(guest.read_file("file").unwrap(), b"content");
        }
    });
    drop(guests);
    drop(shares);
    // One that was joined may still be listed for a moment.
    let deadline = Instant::now() + Duration::from_secs(10);
    while shared_threads() > 0 {
        assert!(Instant::now() < deadline, "a thread without queues stays");
        std::thread::sleep(Duration::from_millis(1));
    }
    let again = Share::of(1, Threads::Shared(workers), |device| device);
    assert!(again.guest(Options::default()).listdir("").unwrap().is_empty());
}

#[test]
fn a_paused_device_goes_on_where_it_was() {
    let share = Share::new(1);
    let guest = share.guest(Options::default());
    guest.write_file("file", b"before").unwrap();
    for turn in 0..200u32 {
        std::thread::scope(|scope| {
            let name = format!("{turn}");
            let guest = &guest;
            let writer = scope.spawn(move || guest.write_file(name, b"through it all").unwrap());
            share.device.pause().unwrap();
            assert_eq!(share.device.state(), State::Paused);
            assert_eq!(share.device.queues().len(), 2);
            share.device.resume().unwrap();
            writer.join().unwrap();
        });
    }
    assert_eq!(guest.read_file("file").unwrap(), b"before");
    assert_eq!(guest.listdir("").unwrap().len(), 201);
}

#[test]
fn what_cannot_be_done_is_refused_with_the_state_and_changes_nothing() {
    let share = Share::new(1);
    let device = &share.device;
    let refused = |result: Result<(), DeviceError>, words: &[&str]| {
        let error = result.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refused(device.pause(), &["ready", "pause", "running"]);
    refused(device.resume(), &["ready", "resume", "paused"]);
    refused(device.notify(1), &["ready", "notified"]);
    refused(device.start(1 << 60, Vec::new()), &["0x1000000000000000"]);
    refused(device.start(0, Vec::new()), &["VERSION_1"]);
    let guest = share.guest(Options::default());
    refused(device.start(1 << 32, Vec::new()), &["running", "start", "ready"]);
    refused(device.notify(9), &["9", "2"]);
    device.pause().unwrap();
    refused(device.pause(), &["paused"]);
    device.resume().unwrap();
    assert!(!guest.exists("nothing").unwrap());
    device.close();
    device.close();
    refused(device.reset(), &["closed"]);
    refused(device.start(1 << 32, Vec::new()), &["closed"]);
    assert_eq!(share.fs.nodes(), 1);
}

#[test]
fn status_bits_come_in_their_order_or_not_at_all() {
    let mmio = &Share::new(1).machine.0;
    let status = |mmio: &Mmio, writes: &[u32]| {
        set(mmio, r::STATUS, 0);
        writes.iter().for_each(|value| set(mmio, r::STATUS, *value));
        get(mmio, r::STATUS)
    };
    // Nothing was accepted, not even VERSION_1.
    assert_eq!(status(mmio, &[ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, NEGOTIATED]), ACKNOWLEDGE | DRIVER);
    assert_eq!(status(mmio, &[FEATURES_OK]), 0);
    assert_eq!(status(mmio, &[DRIVER_OK]), 0);
    assert_eq!(status(mmio, &[ACKNOWLEDGE | DRIVER | DRIVER_OK]), ACKNOWLEDGE | DRIVER);
    assert_eq!(status(mmio, &[ACKNOWLEDGE | DRIVER, ACKNOWLEDGE]), ACKNOWLEDGE | DRIVER, "a bit is not taken back");
    assert_eq!(status(mmio, &[NEEDS_RESET | 1 << 31]), 0, "not the driver's to set");
    assert_eq!(mmio.device().state(), State::Ready);

    negotiate(mmio);
    set(mmio, r::DRIVER_FEATURES, 0);
    set(mmio, r::STATUS, NEGOTIATED | DRIVER_OK);
    assert_eq!(mmio.device().accepted(), 1 << 32, "features are settled by FEATURES_OK");
    assert_eq!((get(mmio, r::STATUS), mmio.device().state()), (NEGOTIATED | DRIVER_OK, State::Running));
    set(mmio, r::STATUS, 0);
    assert_eq!((get(mmio, r::STATUS), mmio.device().state()), (0, State::Ready));

    negotiate(mmio);
    set(mmio, r::STATUS, NEGOTIATED | FAILED);
    set(mmio, r::STATUS, NEGOTIATED | FAILED | DRIVER_OK);
    assert_eq!((get(mmio, r::STATUS), mmio.device().state()), (NEGOTIATED | FAILED, State::Ready));
}

#[test]
fn features_that_were_not_offered_are_not_ok() {
    let mmio = &Share::new(1).machine.0;
    for (word, value) in [(0, 1), (1, 2), (0, 1 << 30)] {
        set(mmio, r::STATUS, 0);
        set(mmio, r::STATUS, ACKNOWLEDGE | DRIVER);
        set(mmio, r::DRIVER_FEATURES_SEL, 1);
        set(mmio, r::DRIVER_FEATURES, 1);
        set(mmio, r::DRIVER_FEATURES_SEL, word);
        set(mmio, r::DRIVER_FEATURES, value);
        set(mmio, r::STATUS, NEGOTIATED);
        assert_eq!(get(mmio, r::STATUS), ACKNOWLEDGE | DRIVER, "{word} {value:#x}");
    }
    set(mmio, r::DEVICE_FEATURES_SEL, 7);
    assert_eq!(get(mmio, r::DEVICE_FEATURES), 0);
}

#[test]
fn queues_are_set_up_after_the_features_and_not_while_they_are_ready() {
    let mmio = &Share::new(1).machine.0;
    set(mmio, r::QUEUE_READY, 1);
    assert_eq!(get(mmio, r::QUEUE_READY), 0, "before FEATURES_OK");
    set(mmio, r::QUEUE_SEL, 2);
    assert_eq!((get(mmio, r::QUEUE_SIZE_MAX), get(mmio, r::QUEUE_READY)), (0, 0), "there are two queues");
    negotiate(mmio);
    set(mmio, r::QUEUE_SEL, 2);
    set(mmio, r::QUEUE_READY, 1);
    assert_eq!(get(mmio, r::QUEUE_READY), 0, "queue 2 is none");

    // A ring of no size, in no memory: found out when the device is to go.
    set(mmio, r::QUEUE_SEL, 1);
    set(mmio, r::QUEUE_READY, 1);
    assert_eq!(get(mmio, r::QUEUE_READY), 1);
    set(mmio, r::QUEUE_SIZE, 8);
    set(mmio, r::STATUS, NEGOTIATED | DRIVER_OK);
    assert_eq!(get(mmio, r::STATUS), NEGOTIATED | DRIVER_OK | NEEDS_RESET);
    assert_eq!(get(mmio, r::INTERRUPT_STATUS), 2, "a configuration change tells of it");
    set(mmio, r::INTERRUPT_ACK, 1);
    assert_eq!(get(mmio, r::INTERRUPT_STATUS), 2);
    set(mmio, r::INTERRUPT_ACK, 2);
    assert_eq!(get(mmio, r::INTERRUPT_STATUS), 0);
    assert_eq!(mmio.device().state(), State::Ready);
    set(mmio, r::QUEUE_NOTIFY, 1);
    set(mmio, r::QUEUE_NOTIFY, u32::MAX);
    set(mmio, r::STATUS, 0);
    assert_eq!(get(mmio, r::QUEUE_READY), 0);
}

#[test]
fn the_window_is_a_shared_memory_region_where_it_has_a_place() {
    let share = Share::new(1);
    let mmio = &share.machine.0;
    let region = |id| {
        set(mmio, r::SHM_SEL, id);
        let wide = |low, high| u64::from(get(mmio, low)) | u64::from(get(mmio, high)) << 32;
        (wide(r::SHM_LEN_LOW, r::SHM_LEN_HIGH), wide(r::SHM_BASE_LOW, r::SHM_BASE_HIGH))
    };
    assert_eq!(region(0), (u64::MAX, u64::MAX));
    share.device.place_window(Some(0x1_2345_6780_0000)).unwrap();
    assert_eq!(region(0), (8 << 20, 0x1_2345_6780_0000));
    assert_eq!(region(1), (u64::MAX, u64::MAX));
    assert_eq!(region(256), (u64::MAX, u64::MAX), "an id has 8 bits");
    share.device.place_window(None).unwrap();
    assert_eq!(region(0), (u64::MAX, u64::MAX));
}

#[test]
fn accesses_of_other_widths_read_the_configuration_and_nothing_else() {
    let mmio = &Share::new(3).machine.0;
    let mut five = [0; 5];
    mmio.read(CONFIG, &mut five);
    assert_eq!(&five, b"share");
    let mut word = [9; 2];
    mmio.read(CONFIG + 36, &mut word);
    assert_eq!(word, [3, 0]);
    mmio.write(CONFIG, b"other");
    mmio.read(CONFIG, &mut five);
    assert_eq!(&five, b"share", "the configuration space is read-only");
    let mut eight = [9; 8];
    mmio.read(CONFIG + 38, &mut eight);
    assert_eq!(eight, [0; 8]);
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (2, 4), (u64::MAX, 4), (SIZE, 4)] {
        let mut bytes = vec![9; len];
        mmio.read(offset, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0), "{offset:#x} {len}");
    }
    mmio.write(r::STATUS, &[1]);
    mmio.write(r::STATUS + 2, &[1; 4]);
    assert_eq!(get(mmio, r::STATUS), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Pause,
    Resume,
    Reset,
}

/// Registers mostly, and values that mean something mostly: random ones seldom get anywhere.
fn step() -> impl Strategy<Value = Step> {
    let offset = prop_oneof![8 => (0..SIZE / 4).prop_map(|at| at * 4), 1 => 0..SIZE, 1 => any::<u64>()];
    let status = prop::sample::select(vec![
        0,
        ACKNOWLEDGE,
        ACKNOWLEDGE | DRIVER,
        NEGOTIATED,
        NEGOTIATED | DRIVER_OK,
        NEGOTIATED | DRIVER_OK | FAILED,
    ]);
    let value = prop_oneof![4 => 0..4u32, 1 => any::<u32>(), 2 => Just(4096u32)];
    prop_oneof![
        2 => (offset.clone(), 0..9usize).prop_map(|(offset, len)| Step::Read(offset, len)),
        6 => (offset.clone(), value).prop_map(|(offset, value)| Step::Write(offset, value.to_le_bytes().into())),
        1 => (offset, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(offset, data)| Step::Write(offset, data)),
        6 => status.prop_map(|status| Step::Write(r::STATUS, status.to_le_bytes().into())),
        3 => Just(Step::Write(r::DRIVER_FEATURES_SEL, 1u32.to_le_bytes().into())),
        3 => Just(Step::Write(r::DRIVER_FEATURES, 1u32.to_le_bytes().into())),
        2 => Just(Step::Pause),
        2 => Just(Step::Resume),
        1 => Just(Step::Reset),
    ]
}

fn take(device: &Device, mmio: &Mmio, step: &Step) {
    match step {
        Step::Read(offset, len) => mmio.read(*offset, &mut vec![0; *len]),
        Step::Write(offset, data) => mmio.write(*offset, data),
        // Refused or not: what holds afterwards is what counts.
        Step::Pause => _ = device.pause(),
        Step::Resume => _ = device.resume(),
        Step::Reset => _ = device.reset(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_driver_does_the_next_one_has_files(steps in prop::collection::vec(step(), 1..80)) {
        let share = Share::new(1);
        let mmio = &share.machine.0;
        let running = |mmio: &Mmio| matches!(mmio.device().state(), State::Running | State::Paused);
        for step in &steps {
            take(&share.device, mmio, step);
            let status = get(mmio, r::STATUS);
            prop_assert!(!running(mmio) || status & DRIVER_OK != 0, "{status:#x} after {step:?}");
            prop_assert!(status & DRIVER_OK == 0 || status & FEATURES_OK != 0, "{status:#x} after {step:?}");
            if let Step::Write(r::STATUS, data) = step && data == &[0; 4] {
                prop_assert_eq!((status, get(mmio, r::INTERRUPT_STATUS)), (0, 0));
            }
        }
        let guest = share.guest(Options::default());
        guest.write_file("file", b"content").unwrap();
        prop_assert_eq!(guest.read_file("file").unwrap(), b"content");
        prop_assert_eq!(share.device.server().metrics().panics(), 0);
    }
}
