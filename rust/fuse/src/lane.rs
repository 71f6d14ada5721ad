//! Requests that are handled elsewhere than on their queue: by a lane, whose threads may wait for whatever they like.
//!
//! Each operation has a [`Route`]. One that leads to the lane leaves its queue with its memory ([`Carried`]) as a [`Ticket`], before
//! anything was done, and the queue goes on with the next request. The lane gives the ticket its turns: each handles the message from its
//! start, by the same decoding as everywhere. An operation that needs more than the turn answers
//! [`Error::WouldBlock`](crate::Error) and gets another turn when what it waits for is there; between turns nothing of the guest's
//! memory is borrowed, so whoever holds the ticket may answer it at any time.

use std::sync::Arc;

use zerocopy::{FromZeros, IntoBytes};

use crate::op::{OPCODES, Opcode};
use crate::server::{Outcome, Place, error_reply};
use crate::wire::InHeader;
use crate::{Error, FileSystem, Message, Operation, Scratch, Server};

/// Where an operation is handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// By the server's own file system, on the queue's thread.
    #[default]
    Here,
    /// By the lane's file system, on the lane.
    Lane,
    /// Not at all: it answers this errno. ENOSYS says for good that there is no such operation.
    Errno(i32),
}

/// The routes of all operations, by opcode.
pub type Routes = [Route; OPCODES];

/// Set in the number of a handle whose data the server's own file system has, whatever the routes of READ, WRITE and the like say. It
/// answers [`Error::Elsewhere`](crate::Error) for those that it lacks: the lane is asked for them.
pub const BACKING: u64 = 1 << 62;

/// A message that can leave its thread: it owns its memory, and gives itself back.
pub trait Carried: Send {
    /// The message.
    fn message(&mut self) -> &mut dyn Message;

    /// Goes back to the first byte of the request.
    fn rewind(&mut self);

    /// Nobody waits for the reply any more, or not for long: it should be answered now, whatever with.
    fn unwanted(&self) -> bool;

    /// Gives the request back with so many bytes of reply. Answers who is still to be told of it, if it was not told yet.
    fn complete(self: Box<Self>, len: usize) -> Option<Arc<dyn Bell>>;
}

/// By what the far side of a queue is told of replies.
pub trait Bell: Send + Sync {
    /// Tells of as many replies as were given without a word. Until then they count as under way.
    fn ring(&self, replies: usize);

    /// It must not be put off.
    fn presses(&self) -> bool;
}

/// Who was given replies and was not told yet: interrupts cost more than replies, so a few of them share one.
#[derive(Default)]
pub struct Untold {
    bells: Vec<(Arc<dyn Bell>, usize)>,
    replies: usize,
}

/// What became of a turn.
#[derive(Debug)]
#[must_use]
pub enum Turned {
    /// It needs another one.
    Again(Ticket),
    /// It was answered. A bell is to be rung soon.
    Over(Option<Arc<dyn Bell>>),
}

/// Threads that handle requests elsewhere than on their queue. No method waits.
pub trait Lane: Send + Sync {
    /// By what requests are handled there. Its `init`, `destroy` and `forget` are called from the queues' threads, beside those of
    /// the server's own file system; `forget` with the nodes that are gone.
    fn fs(&self) -> &dyn FileSystem;

    /// Takes a request over.
    fn take(&self, ticket: Ticket);

    /// Answers tickets that are [unwanted](Ticket::unwanted).
    fn sweep(&self);
}

/// A request on its way through a lane. Dropped unanswered, it answers EIO.
pub struct Ticket {
    server: Arc<Server>,
    header: InHeader,
    opcode: Opcode,
    message: Option<Box<dyn Carried>>,
}

impl std::fmt::Debug for dyn Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bell")
    }
}

impl std::fmt::Debug for Untold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Untold").field("replies", &self.replies).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("opcode", &self.opcode)
            .field("unique", &self.header.unique)
            .finish_non_exhaustive()
    }
}

impl Ticket {
    fn new(server: &Arc<Server>, mut message: Box<dyn Carried>) -> Ticket {
        let mut header = InHeader::new_zeroed();
        message.rewind();
        let _ = message.message().take(header.as_mut_bytes());
        // The guest may have written over it meanwhile: then it is a label and nothing else, since each turn looks again.
        let opcode = Operation::by_number(header.opcode).map_or(Opcode::Lookup, |row| row.opcode);
        Ticket { server: Arc::clone(server), header, opcode, message: Some(message) }
    }

    /// What is asked for.
    pub fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// The node it is asked of.
    pub fn node(&self) -> u64 {
        self.header.nodeid
    }

    /// Nobody waits for the reply any more, or not for long.
    pub fn unwanted(&self) -> bool {
        self.message.as_ref().is_some_and(|message| message.unwanted())
    }

    /// Handles the message on this thread.
    pub fn turn(mut self, scratch: &mut Scratch) -> Turned {
        let Some(mut message) = self.message.take() else { return Turned::Over(None) };
        message.rewind();
        match self.server.handle_at(message.message(), scratch, Place::Lane) {
            Outcome::Done(len) => {
                let bell = message.complete(len);
                scratch.finish();
                Turned::Over(bell)
            }
            Outcome::WouldBlock => {
                self.message = Some(message);
                Turned::Again(self)
            }
            Outcome::Later(_) | Outcome::Halted | Outcome::Elsewhere => {
                self.message = Some(message);
                Turned::Over(None)
            }
        }
    }

    /// Answers `errno`.
    pub fn fail(mut self, errno: i32) {
        self.answer(errno);
    }

    fn answer(&mut self, errno: i32) {
        let Some(mut message) = self.message.take() else { return };
        self.server.metrics().request(self.opcode, true);
        let len = error_reply(message.message(), self.header.unique, Error::Errno(errno));
        if let Some(bell) = message.complete(len) {
            bell.ring(1);
        }
    }
}

impl Untold {
    /// One more reply. It is told at once, with those before it, unless it can wait and there are fewer than `most`.
    pub fn add(&mut self, bell: Arc<dyn Bell>, most: usize) {
        let at_once = bell.presses();
        self.replies += 1;
        match self.bells.iter_mut().find(|(known, _)| std::ptr::addr_eq(Arc::as_ptr(known), Arc::as_ptr(&bell))) {
            Some((_, replies)) => *replies += 1,
            None => self.bells.push((bell, 1)),
        }
        if at_once || self.replies >= most {
            self.tell();
        }
    }

    /// Tells all.
    pub fn tell(&mut self) {
        self.replies = 0;
        for (bell, replies) in self.bells.drain(..) {
            bell.ring(replies);
        }
    }
}

impl Drop for Untold {
    fn drop(&mut self) {
        self.tell();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.answer(libc::EIO);
    }
}

impl Server {
    /// Sends a message to the lane, which [`Outcome::Elsewhere`] asked for.
    pub fn send(self: &Arc<Server>, message: Box<dyn Carried>) {
        let ticket = Ticket::new(self, message);
        match &self.lane {
            Some(lane) => lane.take(ticket),
            None => drop(ticket),
        }
    }

    /// Answers requests on the lane for which nobody waits any more.
    pub fn sweep(&self) {
        if let Some(lane) = &self.lane {
            lane.sweep();
        }
    }
}

/// Whether the data that an operation is about lie behind a handle of the server's own file system, though its route leads elsewhere.
pub(crate) fn by_backing(opcode: Opcode, route: Route, arguments: &[u8]) -> bool {
    let backing = |at: usize| {
        let number = arguments.get(at..).and_then(|rest| rest.first_chunk());
        number.is_some_and(|bytes| u64::from_le_bytes(*bytes) & BACKING != 0)
    };
    match opcode {
        // Their structs begin with the handle; that of a copy has the other one as its fourth word.
        Opcode::Read | Opcode::Write | Opcode::Lseek | Opcode::Fallocate => backing(0),
        Opcode::CopyFileRange | Opcode::CopyFileRange64 => backing(0) && backing(24),
        // Whoever wants to know when a file is closed is told, whoever has its data.
        Opcode::Flush | Opcode::Fsync | Opcode::Release => route != Route::Lane && backing(0),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counting {
        told: AtomicUsize,
        rung: AtomicUsize,
        presses: AtomicBool,
    }

    impl Bell for Counting {
        fn ring(&self, replies: usize) {
            self.told.fetch_add(replies, Ordering::Relaxed);
            self.rung.fetch_add(1, Ordering::Relaxed);
        }

        fn presses(&self) -> bool {
            self.presses.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn a_few_replies_share_a_bell_and_none_is_lost() {
        let (one, other) = (Arc::new(Counting::default()), Arc::new(Counting::default()));
        let counts = |bell: &Counting| (bell.told.load(Ordering::Relaxed), bell.rung.load(Ordering::Relaxed));
        let mut untold = Untold::default();
        for bell in [&one, &other, &one] {
            untold.add(Arc::clone(bell) as Arc<dyn Bell>, 4);
        }
        assert_eq!((counts(&one), counts(&other)), ((0, 0), (0, 0)));
        untold.add(Arc::clone(&one) as Arc<dyn Bell>, 4);
        assert_eq!((counts(&one), counts(&other)), ((3, 1), (1, 1)), "the fourth tells all");
        untold.add(Arc::clone(&one) as Arc<dyn Bell>, 1);
        assert_eq!(counts(&one), (4, 2), "nothing quick is behind it");
        one.presses.store(true, Ordering::Relaxed);
        untold.add(Arc::clone(&one) as Arc<dyn Bell>, 4);
        assert_eq!(counts(&one), (5, 3), "the queue is to stop");
        untold.add(Arc::clone(&other) as Arc<dyn Bell>, 4);
        drop(untold);
        assert_eq!(counts(&other), (2, 2));
    }
}
