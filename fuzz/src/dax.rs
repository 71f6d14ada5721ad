//! What a guest has mapped in its window, against a model that knows nothing but pages.

#![no_main]

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use parking_lot::Mutex;
use virtiofs_dax::{GRANULE, Mapper, Mapping, PAGE, Range, Refusal, Window};

const FILES: u64 = 4;
const MOST: usize = 12;

static FILES_OPEN: LazyLock<Vec<OwnedFd>> = LazyLock::new(|| {
    let open = |_| rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    (0..FILES).map(open).collect()
});

/// Which file's which page is seen at each page of the window.
#[derive(Default)]
struct Pages {
    overlays: bool,
    shown: Mutex<HashMap<u64, (u64, u64, bool)>>,
}

impl Mapper for Pages {
    fn overlays(&self) -> bool {
        self.overlays
    }

    fn map(&self, mapping: &Mapping) -> Result<(), Refusal> {
        let mut shown = self.shown.lock();
        for page in 0..mapping.len / PAGE {
            let what = (mapping.file.key(), mapping.file_offset / PAGE + page, mapping.writable);
            let before = shown.insert(mapping.offset / PAGE + page, what);
            assert!(self.overlays || before.is_none(), "mapped over another mapping");
        }
        Ok(())
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), Refusal> {
        let mut shown = self.shown.lock();
        for page in 0..len / PAGE {
            let before = shown.remove(&(offset / PAGE + page));
            assert!(self.overlays || before.is_some(), "unmapped what was not there");
        }
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((overlays, mut rest)) = data.split_first() else { return };
    let window = Window::new(Pages { overlays: overlays & 1 != 0, ..Pages::default() }, GRANULE, MOST).unwrap();
    let mut model: HashMap<u64, (u64, u64, bool)> = HashMap::new();
    while let Some(([what, page, count, file, file_page], after)) = rest.split_first_chunk() {
        rest = after;
        // 512 pages, mostly few of them and near each other; sometimes what no window has.
        let offset = u64::from(*page) * 2 * PAGE + if what & 0x40 != 0 { 100 } else { 0 };
        let len = u64::from(*count) * if what & 0x20 != 0 { PAGE * PAGE } else { PAGE };
        let key = u64::from(*file) % FILES;
        if what & 3 == 0 {
            if window.unmap(offset, len).is_ok() {
                (offset / PAGE..(offset + len) / PAGE).for_each(|page| _ = model.remove(&page));
            }
        } else {
            let file_offset =
                if what & 0x10 != 0 { u64::MAX - u64::from(*file_page) } else { u64::from(*file_page) * PAGE };
            let write = what & 4 != 0;
            let range = Range { offset, len, file_offset, write };
            let open = |_| Ok::<_, Refusal>((FILES_OPEN[key as usize].try_clone().unwrap(), true));
            if window.map(key, range, open).is_ok() {
                for page in 0..len / PAGE {
                    model.insert(offset / PAGE + page, (key, file_offset / PAGE + page, write));
                }
            }
        }
        assert!(window.len() <= MOST, "{} mappings", window.len());
        let shown = window.mapper().shown.lock();
        assert_eq!(shown.len(), model.len());
        for (page, (key, file_page, write)) in &model {
            let (seen_key, seen_page, writable) = shown[page];
            assert_eq!((seen_key, seen_page), (*key, *file_page), "page {page}");
            assert!(writable || !write, "page {page}");
        }
    }
    window.clear().unwrap();
    assert!(window.mapper().shown.lock().is_empty() && window.is_empty());
});
