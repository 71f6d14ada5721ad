//! What lies where in a table. All numbers are little-endian and aligned to their size.
//!
//! | offset | size | |
//! |-------:|-----:|---|
//! | 0 | 8 | magic, the bytes `vfsversn` |
//! | 8 | 4 | version of the layout, 1 |
//! | 12 | 4 | log2 of the number of slots |
//! | 64 | 8 | epoch |
//! | 128 | 4 | not 0: somebody on the host sleeps until a counter moves (a futex); nothing for guests |
//! | 4096 | 8 × slots | counters |

/// Where the counters begin: the header has a page of its own.
pub(crate) const COUNTERS: usize = 4096;
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"vfsversn");
pub(crate) const LAYOUT: u32 = 1;
pub(crate) const MAGIC_AT: usize = 0;
pub(crate) const SHAPE_AT: usize = 8;
pub(crate) const EPOCH_AT: usize = 64;
pub(crate) const SLEEPERS_AT: usize = 128;

/// Slots of a table when nobody says otherwise: half a megabyte.
pub const DEFAULT_SLOTS: u64 = 1 << 16;
/// The fewest slots of a table.
pub const LEAST_SLOTS: u64 = 1 << 6;
/// The most slots of a table: 128 MiB, and 40 bits are left of a node id.
pub const MOST_SLOTS: u64 = 1 << 24;
/// Bytes of the largest table.
pub const LARGEST: usize = COUNTERS + 8 * MOST_SLOTS as usize;

/// The numbers of layout and slots as one word, at [`SHAPE_AT`].
pub(crate) fn shape(slots: u64) -> u64 {
    u64::from(LAYOUT) | u64::from(slots.trailing_zeros()) << 32
}

/// The slots of a table whose header says `magic` and `shape`, and what is wrong with it otherwise.
pub(crate) fn slots(magic: u64, shape: u64) -> Result<u64, &'static str> {
    if magic != MAGIC {
        return Err("it does not begin like one");
    }
    if shape as u32 != LAYOUT {
        return Err("its layout is of another version");
    }
    let slots = 1u64.checked_shl((shape >> 32) as u32).unwrap_or(0);
    if can_have(slots) { Ok(slots) } else { Err("its number of slots cannot be") }
}

pub(crate) fn can_have(slots: u64) -> bool {
    slots.is_power_of_two() && (LEAST_SLOTS..=MOST_SLOTS).contains(&slots)
}

/// Bytes of a table.
pub(crate) fn size(slots: u64) -> usize {
    COUNTERS + 8 * slots as usize
}

/// The slot of a host inode, before it is cut to the size of a table: the same for every daemon, since it follows from nothing but
/// what stat(2) says.
#[inline]
pub fn slot_of(device: u64, ino: u64) -> u64 {
    let mix = |word: u64| {
        // The finalizer of splitmix64: every bit of the input moves every bit of the result.
        let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    };
    mix(ino.wrapping_add(mix(device.wrapping_add(0x9e37_79b9_7f4a_7c15))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_neighbouring_inodes_spread() {
        for (slots, inodes) in [(1u64 << 6, 64_000u64), (1 << 10, 1_024_000)] {
            let mut count = vec![0u32; slots as usize];
            for ino in 0..inodes {
                count[(slot_of(0xfe01, ino) & (slots - 1)) as usize] += 1;
            }
            assert!(count.iter().all(|&count| (800..1200).contains(&count)), "{count:?}");
        }
        assert_ne!(slot_of(1, 2), slot_of(2, 1));
    }

    /// Daemons of different builds share tables, so this never changes within a layout.
    #[test]
    fn the_slot_of_an_inode_is_for_ever() {
        assert_eq!(slot_of(0xfe01, 2), 0x76d9_2e99_617a_9bae);
    }

    #[test]
    fn headers_are_checked() {
        assert_eq!(slots(MAGIC, shape(64)), Ok(64));
        assert_eq!(slots(MAGIC, shape(MOST_SLOTS)), Ok(MOST_SLOTS));
        assert!(slots(MAGIC + 1, shape(64)).is_err());
        assert!(slots(MAGIC, shape(64) + 1).is_err());
        assert!(slots(MAGIC, shape(32)).is_err());
        assert!(slots(MAGIC, shape(1 << 25)).is_err());
        assert!(slots(MAGIC, u64::from(LAYOUT) | 64 << 32).is_err());
        assert!(slots(MAGIC, u64::from(LAYOUT) | u64::from(u32::MAX) << 32).is_err());
    }
}
