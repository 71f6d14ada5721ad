//! How long a worker looks at an empty ring before it goes to sleep.
//!
//! To sleep and be woken costs both sides several microseconds, many more where an idle processor has to be interrupted first. A driver that
//! is awake refills the ring sooner than that; one that sleeps does not, and looking longer only burns time. So a worker looks
//! for a moment while that has paid lately, and hardly ever while it has not.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// The longest look: about what it costs to wake both sides where processors are idle, in a virtual machine above all.
const LOOK: Duration = Duration::from_micros(50);
/// Looks in vain after which looking counts as useless.
const PATIENCE: u8 = 3;
/// How often to look all the same, once in so many times.
const PROBE: u8 = 32;

/// One thread's experience.
#[derive(Debug, Default)]
pub struct Spin {
    in_vain: u8,
    since_probe: u8,
    off: bool,
}

impl Spin {
    /// For a queue on which nobody waits: never looks. It would take the processor from those who are waited for.
    pub(crate) fn never() -> Spin {
        Spin { off: true, ..Spin::default() }
    }

    /// Looks until `more` says that there is work, or for as long as that may pay. Answers whether there is. Meanwhile it makes way for whoever
    /// waits for the same processor: where others are busy, that is the very driver whose next request it looks for.
    pub fn look<E>(&mut self, mut more: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
        if self.off {
            return Ok(false);
        }
        if self.in_vain >= PATIENCE {
            self.since_probe += 1;
            if self.since_probe < PROBE {
                return Ok(false);
            }
            self.since_probe = 0;
        }
        let start = Instant::now();
        loop {
            for _ in 0..16 {
                if more()? {
                    self.in_vain = 0;
                    return Ok(true);
                }
                spin_loop();
            }
            std::thread::yield_now();
            if start.elapsed() >= LOOK {
                self.in_vain = (self.in_vain + 1).min(PATIENCE);
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_stops_when_it_is_in_vain_and_starts_again_when_it_pays() {
        let mut spin = Spin::default();
        let mut looks = |answer: bool| {
            let mut looked = false;
            let found = spin.look(|| {
                looked = true;
                Ok::<bool, ()>(answer)
            });
            assert_eq!(found, Ok(answer && looked));
            looked
        };
        assert_eq!((0..10).filter(|_| looks(true)).count(), 10);
        assert_eq!((0..10).filter(|_| looks(false)).count(), usize::from(PATIENCE));
        assert_eq!((0..10 * u32::from(PROBE)).filter(|_| looks(false)).count(), 10);
        while !looks(true) {}
        assert!(looks(true));
        assert_eq!(Spin::never().look(|| Ok::<bool, ()>(true)), Ok(false));
    }
}
