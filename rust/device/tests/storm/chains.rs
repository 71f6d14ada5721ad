//! Descriptors for a request, honest ones or not.

use virtiofs_guest::Descriptor;

use crate::dice::Dice;

const N: u16 = Descriptor::NEXT;
const W: u16 = Descriptor::WRITE;
const I: u16 = Descriptor::INDIRECT;

/// The guest memory of one message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Index of the first of its descriptors in the ring.
    pub(crate) first: u16,
    pub(crate) request: u64,
    pub(crate) reply: u64,
    pub(crate) table: u64,
    /// All memory of the storm on this queue: messages may lie across those of others.
    pub(crate) arena: (u64, u64),
    /// The first address behind the memory.
    pub(crate) end: u64,
}

/// Descriptors that a message owns in its ring.
pub(crate) const EACH: u16 = 8;
/// Bytes that a message has for its request, and for its reply.
pub(crate) const ROOM: usize = 8192;
/// Descriptors that its indirect table may have.
pub(crate) const TABLE: usize = 256;

fn plain(address: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor { address, len, flags, next }
}

/// The chain of a message, as descriptors of the ring and of its table, cut into pieces in one of the ways that the specification allows.
pub(crate) fn honest(dice: &mut Dice, at: &Place, request: u32, room: u32) -> (Vec<Descriptor>, Vec<Descriptor>) {
    let cut = if dice.once_in(2) { request.min(40) } else { dice.below(u64::from(request) + 1) as u32 };
    let mut parts = vec![(at.request, cut, 0), (at.request + u64::from(cut), request - cut, 0)];
    if room > 0 {
        let cut = if dice.once_in(2) { room.min(16) } else { dice.below(u64::from(room) + 1) as u32 };
        parts.extend([(at.reply, cut, W), (at.reply + u64::from(cut), room - cut, W)]);
    }
    let indirect = dice.once_in(2);
    let base = if indirect { 0 } else { at.first };
    let last = parts.len() - 1;
    let chain = parts.iter().enumerate().map(|(k, (address, len, flags))| {
        let next = base + k as u16 + 1;
        plain(*address, *len, if k == last { *flags } else { flags | N }, if k == last { 0 } else { next })
    });
    let chain: Vec<Descriptor> = chain.collect();
    match indirect {
        true => (vec![plain(at.table, 16 * chain.len() as u32, I, 0)], chain),
        false => (chain, vec![]),
    }
}

/// A chain of nearly anything. It never lets a device write outside of the storm's own memory by a driver's fault.
pub(crate) fn hostile(dice: &mut Dice, at: &Place, size: u16) -> (Vec<Descriptor>, Vec<Descriptor>) {
    let ring = (0..1 + dice.below(u64::from(EACH))).map(|_| any(dice, at, size, at.first, EACH)).collect();
    let length = *dice.of(&[0, 1, 2, 3, 8, TABLE as u64]);
    let table = (0..length).map(|_| any(dice, at, TABLE as u16, 0, TABLE as u16)).collect();
    (ring, table)
}

fn any(dice: &mut Dice, at: &Place, size: u16, first: u16, each: u16) -> Descriptor {
    let (from, to) = at.arena;
    let address = match dice.below(12) {
        0 => 0,
        1 => at.end,
        2 => at.end - dice.below(64),
        3 => u64::MAX - dice.below(64),
        4 => dice.word(),
        5 => from + dice.below(to - from),
        6 => at.table,
        7..=9 => at.request,
        _ => at.reply,
    };
    let inside = if (from..to).contains(&address) { to - address } else { u64::from(u32::MAX) };
    let len = match dice.below(12) {
        0 => 0,
        1 => 1,
        2 => 40,
        3 => u32::MAX,
        4 => dice.word() as u32 | 1 << 31,
        5 => inside.min(u64::from(u32::MAX)) as u32,
        _ => dice.below(inside.min(ROOM as u64 / 2) + 1) as u32,
    };
    let flags = match dice.below(16) {
        0 => dice.word() as u16,
        1 => I,
        2 => I | N,
        3 => I | W,
        4..=9 => N,
        10..=12 => N | W,
        13 => 0,
        _ => W,
    };
    if flags & I != 0 {
        let len = *dice.of(&[0, 1, 15, 16, 17, 32, 64, 16 * TABLE as u32, 1 << 20, 0xffff_fff0, u32::MAX]);
        return plain(if dice.once_in(4) { address } else { at.table }, len, flags, first);
    }
    let next = match dice.below(10) {
        0 => dice.word() as u16,
        1 => size,
        2 => u16::MAX,
        3 => first,
        _ => first + dice.below(u64::from(each)) as u16,
    };
    plain(address, len, flags, next)
}
