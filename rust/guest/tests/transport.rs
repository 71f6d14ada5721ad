//! The client over a transport of another kind, with a device in this process that answers late, in the wrong order, or wrongly.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::{pread, pwrite, write};
use virtiofs_fuse::Opcode;
use virtiofs_fuse::wire::{AttrOut, InHeader, InitOut, OutHeader, init};
use virtiofs_guest::{Bell, Client, Config, Descriptor, Error, Memory, Options, Queue, Region, Result, Transport};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// A reply as the device is about to send it: head of the chain, header, body.
#[derive(Clone, Debug)]
struct Reply {
    head: u32,
    header: OutHeader,
    body: Vec<u8>,
    used: u32,
}

type Spoil = fn(&mut Reply);

/// How the device behaves.
struct Manners {
    /// Requests (INIT apart) that it lets gather before it answers them, the last one first.
    gather: usize,
    /// What it does to every reply (INIT's apart).
    spoil: Spoil,
    /// Answer nothing while this is set.
    silent: Arc<AtomicBool>,
}

/// The device: it sees guest memory only through the regions' files, as another process would.
struct Device {
    manners: Option<Manners>,
    bells: Vec<Arc<Mutex<Sender<()>>>>,
    worker: Option<JoinHandle<()>>,
}

impl Device {
    fn boxed(gather: usize, spoil: Spoil, silent: &Arc<AtomicBool>) -> Box<Device> {
        let manners = Manners { gather, spoil, silent: Arc::clone(silent) };
        Box::new(Device { manners: Some(manners), bells: Vec::new(), worker: None })
    }
}

impl Transport for Device {
    fn features(&mut self) -> Result<u64> {
        Ok(1 << 32 | 1 << 28)
    }

    fn config(&mut self) -> Result<Option<Config>> {
        Ok(Some(Config { tag: b"fake".to_vec(), request_queues: 3 }))
    }

    fn queue_limit(&mut self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn start(&mut self, features: u64, memory: &Memory, queues: &[Queue]) -> Result<()> {
        assert_eq!(features, 1 << 32 | 1 << 28, "only what was offered is accepted");
        assert_eq!(queues.iter().map(|queue| queue.index).collect::<Vec<_>>(), [0, 1]);
        let (bell, rung) = channel();
        self.bells = vec![Arc::new(Mutex::new(channel().0)), Arc::new(Mutex::new(bell))];
        let work = Work { regions: memory.regions(), queue: queues[1].clone(), next: 0, used: 0 };
        let manners = self.manners.take().expect("started once");
        self.worker = Some(std::thread::spawn(move || work.run(&rung, &manners)));
        Ok(())
    }

    fn bell(&self, index: u16) -> Option<Bell> {
        let bell = Arc::clone(&self.bells[usize::from(index)]);
        Some(Bell::Call(Box::new(move || {
            // Nobody listens to the hiprio queue.
            let _ = bell.lock().unwrap().send(());
            Ok(())
        })))
    }

    fn stop(&mut self) -> Result<Vec<u16>> {
        self.bells.clear();
        Ok(vec![0, 0])
    }

    fn reset(&mut self) -> Result<bool> {
        Ok(false)
    }
}

struct Work {
    regions: Vec<Region>,
    queue: Queue,
    next: u16,
    used: u16,
}

impl Work {
    fn file(&self, address: u64) -> (Arc<OwnedFd>, u64) {
        let region = self.regions.iter().find(|r| address >= r.address && address - r.address < r.size).unwrap();
        (Arc::clone(&region.file), region.file_offset + address - region.address)
    }

    fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let (file, offset) = self.file(address);
        let mut bytes = vec![0; len];
        assert_eq!(pread(&file, &mut bytes, offset).unwrap(), len);
        bytes
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let (file, offset) = self.file(address);
        assert_eq!(pwrite(&file, bytes, offset).unwrap(), bytes.len());
    }

    fn index(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.read(address, 2).try_into().unwrap())
    }

    /// Readable and writable buffers of a chain, which is one indirect descriptor.
    fn chain(&self, head: u16) -> (Vec<Descriptor>, Vec<Descriptor>) {
        let one = Descriptor::read_from_bytes(&self.read(self.queue.descriptors + 16 * u64::from(head), 16)).unwrap();
        assert_eq!(one.flags, Descriptor::INDIRECT);
        let all = (0..u64::from(one.len / 16))
            .map(|k| Descriptor::read_from_bytes(&self.read(one.address + 16 * k, 16)).unwrap());
        all.partition(|descriptor| descriptor.flags & Descriptor::WRITE == 0)
    }

    fn run(mut self, rung: &Receiver<()>, manners: &Manners) {
        let mut gathered: Vec<Reply> = Vec::new();
        while rung.recv().is_ok() {
            while self.next != self.index(self.queue.available + 2) {
                let place = u64::from(self.next % self.queue.size);
                let head = self.index(self.queue.available + 4 + 2 * place);
                self.next = self.next.wrapping_add(1);
                let (readable, _) = self.chain(head);
                let request = InHeader::read_from_bytes(&self.read(readable[0].address, 40)).unwrap();
                let is_init = request.opcode == Opcode::Init as u32;
                let mut reply = answer(u32::from(head), &request);
                if is_init {
                    self.complete(&reply);
                } else if !manners.silent.load(Ordering::Relaxed) {
                    (manners.spoil)(&mut reply);
                    gathered.push(reply);
                }
                if gathered.len() >= manners.gather {
                    for reply in gathered.drain(..).rev() {
                        self.complete(&reply);
                    }
                }
            }
        }
    }

    fn complete(&mut self, reply: &Reply) {
        let (_, writable) = self.chain(reply.head as u16 % 8);
        self.write(writable[0].address, reply.header.as_bytes());
        if let Some(body) = writable.get(1) {
            self.write(body.address, &reply.body[..reply.body.len().min(body.len as usize)]);
        }
        let place = u64::from(self.used % self.queue.size);
        self.write(self.queue.used + 4 + 8 * place, &[reply.head, reply.used].map(u32::to_le_bytes).concat());
        self.used = self.used.wrapping_add(1);
        self.write(self.queue.used + 2, &self.used.to_le_bytes());
        write(&self.queue.call, &1u64.to_ne_bytes()).unwrap();
    }
}

/// An INIT without features; a GETATTR whose size is the node id.
fn answer(head: u32, request: &InHeader) -> Reply {
    let body = if request.opcode == Opcode::Init as u32 {
        let flags = init::INIT_EXT as u32;
        InitOut { major: 7, minor: 46, max_write: 1 << 20, flags, ..InitOut::new_zeroed() }.as_bytes().to_vec()
    } else {
        let mut attributes = AttrOut::new_zeroed();
        attributes.attr.size = request.nodeid;
        attributes.as_bytes().to_vec()
    };
    let len = 16 + body.len() as u32;
    Reply { head, header: OutHeader { len, error: 0, unique: request.unique }, body, used: len }
}

fn client(gather: usize, spoil: Spoil, silent: &Arc<AtomicBool>, timeout: Duration) -> Client {
    let options = Options { timeout, regions: 2, in_flight: 8, max_pages: 4, ..Options::default() };
    Client::over(Device::boxed(gather, spoil, silent), options).unwrap()
}

const LONG: Duration = Duration::from_secs(30);

#[test]
fn replies_find_their_callers_whatever_their_order() {
    let client = client(4, |_| {}, &Arc::default(), LONG);
    assert_eq!(client.config().unwrap().tag, b"fake");
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let client = &client;
            scope.spawn(move || {
                for n in 0..200 {
                    let node = thread * 1_000 + n;
                    assert_eq!(client.getattr(node, None).unwrap().attr.size, node);
                }
            });
        }
    });
    client.vanish();
}

#[test]
fn a_reply_that_linux_would_refuse_is_an_error_that_says_why() {
    let wrong: [(Spoil, &str); 6] = [
        (|reply| reply.header.unique += 2, "unique"),
        (|reply| reply.header.error = -512, "-511..=0"),
        (|reply| reply.header.error = -2, "not 16"),
        (|reply| reply.used -= 8, "the header says 120"),
        (|reply| (reply.used, reply.header.len) = (112, 112), "96 bytes behind the header, not 104"),
        (|reply| reply.used = 0, "shorter than a reply header"),
    ];
    for (spoil, says) in wrong {
        let client = client(1, spoil, &Arc::default(), LONG);
        match client.getattr(1, None) {
            Err(Error::Protocol(text)) => assert!(text.contains(says) && text.contains("GETATTR"), "{text}"),
            other => panic!("{says}: {other:?}"),
        }
        client.vanish();
    }
}

#[test]
fn a_used_entry_of_no_request_is_an_error() {
    let client = client(1, |reply| reply.head += 512, &Arc::default(), LONG);
    match client.getattr(1, None) {
        Err(Error::Protocol(text)) => assert!(text.contains("no request's head"), "{text}"),
        other => panic!("{other:?}"),
    }
    client.vanish();
}

#[test]
fn silence_is_a_timeout_that_names_the_operation() {
    let silent = Arc::new(AtomicBool::new(true));
    let client = client(1, |_| {}, &silent, Duration::from_secs(2));
    match client.getattr(1, None) {
        Err(Error::Timeout { what, .. }) => assert_eq!(what, "GETATTR"),
        other => panic!("{other:?}"),
    }
    // Seven of eight slots are left, and they work.
    silent.store(false, Ordering::Relaxed);
    for node in 0..100 {
        assert_eq!(client.getattr(node, None).unwrap().attr.size, node);
    }
    client.vanish();
}
