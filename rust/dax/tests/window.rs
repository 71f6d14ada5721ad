//! The window's rules, against a mapper that keeps a front end's rules and a model that knows nothing but pages.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use parking_lot::Mutex;
use virtiofs_dax::{GRANULE, Mapper, Mapping, PAGE, Range, Refusal, Window};

const PAGES: u64 = GRANULE / PAGE;

/// What a page of the window shows: which mapping's file, which page of it, and whether it may be written.
type Shown = Option<(u64, u64, bool)>;

/// Pages as a guest sees them. Without `overlays` it is as strict as QEMU: nothing over anything, whole mappings alone.
#[derive(Debug, Default)]
struct Pages {
    overlays: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    whole: BTreeMap<u64, u64>,
    shown: BTreeMap<u64, (u64, u64, bool)>,
    /// Refuse so many requests from now on, with this.
    refuse: Option<(u32, fn() -> Refusal)>,
    broken_rules: u32,
}

fn key_of(mapping: &Mapping) -> u64 {
    rustix::fs::fstat(mapping.file.fd()).unwrap().st_size as u64
}

impl State {
    fn refused(&mut self) -> Result<(), Refusal> {
        match &mut self.refuse {
            Some((left, refusal)) if *left > 0 => {
                *left -= 1;
                Err(refusal())
            }
            _ => Ok(()),
        }
    }
}

fn failed() -> Refusal {
    Refusal::Failed(std::io::ErrorKind::Other.into())
}

impl Mapper for Pages {
    fn overlays(&self) -> bool {
        self.overlays
    }

    fn map(&self, mapping: &Mapping) -> Result<(), Refusal> {
        let state = &mut *self.state.lock();
        state.refused()?;
        let end = mapping.offset + mapping.len;
        let overlaps = state.whole.range(..end).next_back().is_some_and(|(at, len)| at + len > mapping.offset);
        if overlaps && !self.overlays {
            state.broken_rules += 1;
            return Err(failed());
        }
        assert!(mapping.file.writable() || !mapping.writable, "a file that may not be written, mapped for it");
        state.whole.insert(mapping.offset, mapping.len);
        for page in 0..mapping.len / PAGE {
            let shown = (key_of(mapping), mapping.file_offset / PAGE + page, mapping.writable);
            state.shown.insert(mapping.offset / PAGE + page, shown);
        }
        Ok(())
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), Refusal> {
        let state = &mut *self.state.lock();
        state.refused()?;
        if !self.overlays && state.whole.remove(&offset) != Some(len) {
            state.broken_rules += 1;
            return Err(failed());
        }
        for page in 0..len / PAGE {
            state.shown.remove(&(offset / PAGE + page));
        }
        Ok(())
    }
}

/// A file whose size tells which one it is.
fn file(key: u64) -> OwnedFd {
    let file = tempfile::tempfile().unwrap();
    file.set_len(key).unwrap();
    File::into(file)
}

fn window(overlays: bool, most: usize) -> Window<Pages> {
    Window::new(Pages { overlays, ..Pages::default() }, GRANULE, most).unwrap()
}

fn range(page: u64, pages: u64, file_page: u64, write: bool) -> Range {
    Range { offset: page * PAGE, len: pages * PAGE, file_offset: file_page * PAGE, write }
}

fn map(window: &Window<Pages>, key: u64, range: Range) -> Result<(), Refusal> {
    window.map(key, range, |_| Ok((file(key), true)))
}

fn shown(window: &Window<Pages>) -> Vec<Shown> {
    let state = window.mapper().state.lock();
    (0..PAGES).map(|page| state.shown.get(&page).copied()).collect()
}

/// A small generator of numbers: the test is the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn whatever_is_asked_for_the_guest_sees_what_the_last_request_left() {
    for (overlays, seed) in (0..12).flat_map(|seed| [(true, seed), (false, seed)]) {
        let window = window(overlays, usize::MAX);
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ (seed << 32 | 7));
        let mut model: Vec<Shown> = vec![None; PAGES as usize];
        for _ in 0..300 {
            let page = numbers.below(PAGES);
            let pages = 1 + numbers.below((PAGES - page).min(40));
            let at = page as usize..(page + pages) as usize;
            if numbers.below(3) == 0 {
                window.unmap(page * PAGE, pages * PAGE).unwrap();
                model[at].fill(None);
            } else {
                let (key, first, write) = (1 + numbers.below(5), numbers.below(1000), numbers.below(2) == 0);
                map(&window, key, range(page, pages, first, write)).unwrap();
                // The same again with less changes nothing; a mapper that does not overlay maps for writing at once.
                for (there, i) in model[at].iter_mut().zip(first..) {
                    *there = Some((key, i, write || !overlays));
                }
            }
            assert_eq!(shown(&window), model, "overlays {overlays}, seed {seed}");
            for page in (0..PAGES).step_by(17) {
                let piece = window.resolve(page * PAGE + 5);
                let model = model[page as usize];
                assert_eq!(piece.is_some(), model.is_some());
                if let (Some(piece), Some((key, file_page, writable))) = (piece, model) {
                    assert_eq!(rustix::fs::fstat(piece.file.fd()).unwrap().st_size as u64, key);
                    assert_eq!((piece.file_offset, piece.writable), (file_page * PAGE + 5, writable));
                }
            }
        }
        assert_eq!(window.mapper().state.lock().broken_rules, 0, "a front end would have refused");
        window.clear().unwrap();
        assert!(window.is_empty() && shown(&window).iter().all(Option::is_none));
    }
}

#[test]
fn a_file_is_opened_once_for_as_long_as_it_is_mapped() {
    let window = window(true, 8);
    let opened = Cell::new(0);
    let open = |window: &Window<Pages>, range: Range| {
        window.map::<Refusal>(9, range, |write| {
            opened.set(opened.get() + 1);
            Ok((file(9), write))
        })
    };
    open(&window, range(0, 2, 0, false)).unwrap();
    open(&window, range(2, 2, 2, false)).unwrap();
    open(&window, range(0, 2, 0, false)).unwrap();
    assert_eq!(opened.get(), 1);
    // For writing it takes another descriptor, and both serve then.
    open(&window, range(0, 2, 0, true)).unwrap();
    open(&window, range(4, 2, 0, true)).unwrap();
    assert_eq!(opened.get(), 2);
    assert!(window.maps(9) != window.maps(10));
    window.clear().unwrap();
    assert!(!window.maps(9) && !window.maps(10));
    open(&window, range(0, 2, 0, false)).unwrap();
    assert_eq!(opened.get(), 3);
}

#[test]
fn what_is_no_range_is_refused_and_nothing_changes() {
    let window = window(true, 8);
    let last = PAGES - 1;
    for wrong in [
        range(PAGES, 1, 0, false),
        range(last, 2, 0, false),
        range(0, 0, 0, false),
        Range { offset: 5, ..range(0, 1, 0, false) },
        Range { len: 5, ..range(0, 1, 0, false) },
        Range { file_offset: 5, ..range(0, 1, 0, false) },
        Range { offset: u64::MAX - PAGE + 1, ..range(0, 1, 0, false) },
        Range { len: u64::MAX - PAGE + 1, ..range(1, 1, 0, false) },
        Range { file_offset: i64::MAX as u64 / PAGE * PAGE, ..range(0, 1, 0, false) },
        Range { file_offset: u64::MAX - PAGE + 1, ..range(0, 2, 0, false) },
    ] {
        assert!(matches!(map(&window, 1, wrong), Err(Refusal::Invalid)), "{wrong:?}");
    }
    assert!(matches!(window.unmap(0, GRANULE + PAGE), Err(Refusal::Invalid)));
    assert!(matches!(window.unmap(1, PAGE), Err(Refusal::Invalid)));
    assert!(window.is_empty());
    for size in [0, 1, PAGE, GRANULE / 2, GRANULE + PAGE, 3 * GRANULE, u64::MAX] {
        assert!(Window::new(Pages::default(), size, 8).is_err(), "{size}");
    }
}

#[test]
fn a_full_window_says_so_and_goes_on() {
    for overlays in [true, false] {
        let window = window(overlays, 3);
        for page in 0..3 {
            map(&window, 1, range(page * 10, 5, page * 10, true)).unwrap();
        }
        assert!(matches!(map(&window, 1, range(40, 1, 0, true)), Err(Refusal::Full)));
        // What replaces a mapping, and what takes one away, fits; what would leave two pieces of one does not.
        map(&window, 2, range(10, 5, 0, true)).unwrap();
        assert!(matches!(window.unmap(2 * PAGE, PAGE), Err(Refusal::Full)));
        assert!(matches!(map(&window, 2, range(2, 1, 0, true)), Err(Refusal::Full)));
        window.unmap(0, 5 * PAGE).unwrap();
        map(&window, 1, range(40, 1, 0, true)).unwrap();
        assert_eq!(window.len(), 3);
        assert_eq!(window.mapper().state.lock().broken_rules, 0);
    }
}

#[test]
fn files_that_may_not_be_written_are_never_mapped_for_it() {
    for overlays in [true, false] {
        let window = window(overlays, 8);
        let open = |range| window.map::<Refusal>(3, range, |_| Ok((file(3), false)));
        open(range(0, 1, 0, false)).unwrap();
        assert!(!window.resolve(0).unwrap().writable);
        let refused = open(range(0, 1, 0, true)).unwrap_err();
        assert!(matches!(refused, Refusal::Failed(error) if error.raw_os_error() == Some(libc::EACCES)));
        assert_eq!(shown(&window)[0], Some((3, 0, false)), "what was there stays");
    }
}

#[test]
fn a_front_end_that_refuses_costs_the_request_alone() {
    let window = window(false, 8);
    map(&window, 1, range(0, 4, 0, true)).unwrap();
    map(&window, 1, range(8, 4, 8, true)).unwrap();
    let before = shown(&window);
    // The old mapping goes, the new one does not come, not even at the second try: the old one is put back.
    let refuse = |count, with| window.mapper().state.lock().refuse = Some((count, with));
    window.unmap(8 * PAGE, 4 * PAGE).unwrap();
    refuse(3, failed);
    map(&window, 2, range(8, 4, 0, true)).unwrap_err();
    refuse(0, failed);
    map(&window, 1, range(8, 4, 8, true)).unwrap();
    assert_eq!(shown(&window), before);
    // Once is not enough: what an earlier request left there is taken away, and the mapping comes.
    window.mapper().map(&Mapping { offset: 20 * PAGE, ..mapping(7) }).unwrap();
    map(&window, 2, range(20, 1, 3, true)).unwrap();
    assert_eq!(shown(&window)[20], Some((2, 3, true)));
}

fn mapping(key: u64) -> Mapping {
    let file = std::sync::Arc::new(virtiofs_dax::MappedFile::new(key, file(key), true, None));
    Mapping { offset: 0, len: PAGE, file, file_offset: 0, writable: true }
}

#[test]
fn while_the_device_stands_still_nothing_is_forgotten() {
    let window = window(false, 8);
    map(&window, 1, range(0, 4, 0, true)).unwrap();
    window.mapper().state.lock().refuse = Some((u32::MAX, || Refusal::Halted));
    assert!(matches!(map(&window, 2, range(0, 4, 0, true)), Err(Refusal::Halted)));
    assert!(matches!(map(&window, 2, range(8, 4, 0, true)), Err(Refusal::Halted)));
    assert!(matches!(window.unmap(0, 4 * PAGE), Err(Refusal::Halted)));
    assert!(matches!(window.clear(), Err(Refusal::Halted)));
    assert_eq!(window.len(), 1);
    window.mapper().state.lock().refuse = None;
    window.clear().unwrap();
    assert!(shown(&window).iter().all(Option::is_none));
}
