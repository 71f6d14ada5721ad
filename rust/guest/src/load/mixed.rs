//! What a busy guest sends: several kinds of work at once.

use super::driver::Io;
use super::rows::{Random, Row};
use crate::{Client, Error, Result};

/// Kinds of one request each, chosen at random by their shares.
pub(crate) struct Mixed {
    /// Each with the upper bound of its share in per cent; the last one's is 100.
    parts: Vec<(u64, Box<dyn Row>)>,
    /// What each lane is at.
    of_lane: Vec<usize>,
    random: Random,
}

impl Mixed {
    pub(crate) fn new(parts: Vec<(u64, Box<dyn Row>)>, lanes: usize, queue: usize) -> Mixed {
        Mixed { parts, of_lane: vec![0; lanes], random: Random::new(queue) }
    }

    fn part(&mut self, lane: usize) -> Result<&mut Box<dyn Row>> {
        let part = self.of_lane.get(lane).and_then(|part| self.parts.get_mut(*part));
        part.map(|(_, row)| row).ok_or_else(|| Error::Protocol(format!("there is no lane {lane}")))
    }
}

impl Row for Mixed {
    fn data(&self) -> usize {
        self.parts.iter().map(|(_, row)| row.data()).max().unwrap_or(0)
    }

    fn fill(&mut self, io: &mut Io<'_>, lane: usize) -> Result<()> {
        let drawn = self.random.below(100);
        let part = self.parts.iter().position(|(bound, _)| drawn < *bound).unwrap_or(0);
        if let Some(of_lane) = self.of_lane.get_mut(lane) {
            *of_lane = part;
        }
        self.part(lane)?.fill(io, lane)
    }

    fn done(&mut self, io: &mut Io<'_>, lane: usize) -> Result<bool> {
        self.part(lane)?.done(io, lane)
    }

    fn finish(self: Box<Self>, client: &Client) -> Result<()> {
        self.parts.into_iter().try_for_each(|(_, row)| row.finish(client))
    }
}
