//! The byte ranges that one owner has locked in one file.

/// Shared or exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Shared,
    Exclusive,
}

impl Mode {
    fn excludes(self, other: Mode) -> bool {
        self == Mode::Exclusive || other == Mode::Exclusive
    }
}

/// Bytes `start..=end` of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Range {
    /// All bytes there can be.
    pub(super) const ALL: Range = Range { start: 0, end: i64::MAX as u64 };

    fn overlaps(self, other: Range) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// Locked ranges of one owner: sorted, apart from each other, neighbours of one mode joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<(Range, Mode)>);

impl Ranges {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Range, Mode)> {
        self.0.iter().copied()
    }

    /// Locks `range` in `mode`, or unlocks it, whatever was locked there before: an owner is never in its own way (fcntl(2)).
    pub(super) fn set(&mut self, range: Range, mode: Option<Mode>) {
        let mut after = Vec::with_capacity(self.0.len() + 2);
        for &(held, held_mode) in &self.0 {
            if !held.overlaps(range) {
                after.push((held, held_mode));
                continue;
            }
            if held.start < range.start {
                after.push((Range { end: range.start - 1, ..held }, held_mode));
            }
            if held.end > range.end {
                after.push((Range { start: range.end + 1, ..held }, held_mode));
            }
        }
        if let Some(mode) = mode {
            after.push((range, mode));
        }
        after.sort_by_key(|(range, _)| range.start);
        after.dedup_by(|(next, next_mode), (last, last_mode)| {
            let joined = next_mode == last_mode && last.end.checked_add(1) == Some(next.start);
            if joined {
                last.end = next.end;
            }
            joined
        });
        self.0 = after;
    }

    /// The first locked range that is in the way of `range` in `mode`.
    pub(super) fn conflict(&self, range: Range, mode: Mode) -> Option<(Range, Mode)> {
        self.0.iter().copied().find(|(held, held_mode)| held.overlaps(range) && held_mode.excludes(mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Mode::{Exclusive, Shared};

    fn range(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    #[test]
    fn unlocking_the_middle_leaves_both_ends() {
        let mut ranges = Ranges::default();
        ranges.set(range(0, 99), Some(Exclusive));
        ranges.set(range(40, 59), None);
        assert_eq!(ranges.0, [(range(0, 39), Exclusive), (range(60, 99), Exclusive)]);
        ranges.set(range(40, 59), Some(Exclusive));
        assert_eq!(ranges.0, [(range(0, 99), Exclusive)]);
        ranges.set(Range::ALL, None);
        assert!(ranges.is_empty());
    }

    /// Against a table of single bytes, which cannot be wrong.
    #[test]
    fn any_sequence_of_locks_means_the_same_byte_by_byte() {
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..300 {
            let (mut ranges, mut bytes) = (Ranges::default(), [None; 32]);
            for _ in 0..40 {
                let start = random(32);
                let end = start + random(32 - start);
                let mode = [None, Some(Shared), Some(Exclusive)][random(3) as usize];
                ranges.set(range(start, end), mode);
                bytes[start as usize..=end as usize].fill(mode);
                for (held, mode) in &ranges.0 {
                    assert!(bytes[held.start as usize..=held.end as usize].iter().all(|byte| *byte == Some(*mode)));
                }
                let locked: u64 = ranges.0.iter().map(|(held, _)| held.end - held.start + 1).sum();
                assert_eq!(locked as usize, bytes.iter().flatten().count());
                let conflict = ranges.conflict(range(start, end), Shared).is_some();
                assert_eq!(conflict, bytes[start as usize..=end as usize].contains(&Some(Exclusive)));
            }
        }
    }
}
