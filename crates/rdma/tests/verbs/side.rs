//! One end of a connection: a NIC, memory of its own, a region of it, and a queue pair.

use memkv_rdma::{
    Access, Completion, Nic, Place, QueuePair, RdmaError, Region, Timing, Verbs, Work, WorkError, WorkKind,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Nothing takes this long, however slow the machine is.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Answers of a peer that is there come late under emulation; one that is gone has to be noticed within the test.
pub(crate) const TIMING: Timing = Timing { ack_exponent: 17, retries: 7, rnr_retries: 6 };
pub(crate) const IMPATIENT: Timing = Timing { ack_exponent: 14, retries: 2, rnr_retries: 1 };

/// A mapping, which a NIC may write: its bytes are only looked at when nothing is under way.
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<u8>,
    len: usize,
}

impl Memory {
    pub(crate) fn new(len: usize) -> Self {
        // SAFETY: a new mapping, at a place of the kernel's choice.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        Self { start: NonNull::new(start.expect("there is memory")).expect("it is somewhere").cast(), len }
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Every byte follows from the seed and its place, so that a page at the wrong place is noticed.
    pub(crate) fn fill(&self, seed: u8) {
        // SAFETY: our own mapping, and nothing is under way.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) };
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = byte_at(seed, index);
        }
    }

    /// Checks that the bytes of a part are those of `seed`, as if they were at `origin`.
    pub(crate) fn expect(&self, seed: u8, from: usize, len: usize, origin: usize) {
        // SAFETY: our own mapping, and nothing is under way.
        let bytes = unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) };
        let bytes = &bytes[from..from + len];
        let wrong = bytes.iter().enumerate().position(|(i, &byte)| byte != byte_at(seed, origin + i));
        assert_eq!(wrong, None, "the first wrong byte of {len} at {from}");
    }

    pub(crate) fn expect_all(&self, seed: u8) {
        self.expect(seed, 0, self.len, 0);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the region is dropped before, see `Side`.
        unsafe { munmap(self.start.as_ptr().cast(), self.len) }.expect("it is mapped");
    }
}

fn byte_at(seed: u8, index: usize) -> u8 {
    (index as u8).wrapping_mul(31) ^ ((index >> 8) as u8) ^ ((index >> 16) as u8).wrapping_mul(7) ^ seed
}

/// The fields are dropped in this order: nothing reaches the memory when it goes.
pub(crate) struct Side {
    pub(crate) pair: Option<Box<dyn QueuePair>>,
    pub(crate) region: Option<Box<dyn Region>>,
    pub(crate) memory: Memory,
    pub(crate) nic: Arc<dyn Nic>,
}

impl Side {
    pub(crate) fn new(verbs: &dyn Verbs, place: &Place, len: usize, depth: u32, access: Access) -> Self {
        let nic = verbs.open(place).expect("the NIC opens");
        let memory = Memory::new(len);
        // SAFETY: the memory goes after the region, see the order of the fields.
        let region = unsafe { nic.register(memory.start(), memory.len(), access) }.expect("it is registered");
        let pair = nic.queue_pair(depth, access).expect("there is a queue pair");
        Self { pair: Some(pair), region: Some(region), memory, nic }
    }

    pub(crate) fn pair(&mut self) -> &mut dyn QueuePair {
        self.pair.as_mut().expect("it was not dropped").as_mut()
    }

    pub(crate) fn post(&mut self, work: &[Work]) -> Result<(), RdmaError> {
        // SAFETY: the memory is that of this side, and the test leaves it alone until it has the completions.
        unsafe { self.pair().post(work) }
    }

    pub(crate) fn poll(&mut self) -> Vec<Completion> {
        let mut out = Vec::new();
        self.pair().poll(&mut out).expect("the queue can be polled");
        out
    }

    /// Waits for so many completions by polling.
    pub(crate) fn await_completions(&mut self, count: usize) -> Vec<Completion> {
        let start = Instant::now();
        let mut all = Vec::new();
        while all.len() < count {
            assert!(start.elapsed() < DEADLINE, "{} of {count} completions", all.len());
            all.extend(self.poll());
            std::thread::yield_now();
        }
        all
    }

    pub(crate) fn is_readable(&mut self, limit: Duration) -> bool {
        let fd = self.pair().fd().expect("it has a descriptor");
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let limit = Timespec::try_from(limit).expect("it is short");
        poll(&mut fds, Some(&limit)).expect("the descriptor can be polled") == 1
    }
}

/// A server, which moves bytes and allows nothing, and a client, which allows everything; connected.
pub(crate) struct Connection {
    pub(crate) server: Side,
    pub(crate) client: Side,
}

impl Connection {
    pub(crate) fn new(verbs: &dyn Verbs, places: &[Place; 2], len: usize, depth: u32) -> Self {
        Self::with(verbs, places, len, depth, [Access::REMOTE; 2], TIMING)
    }

    pub(crate) fn with(
        verbs: &dyn Verbs,
        places: &[Place; 2],
        len: usize,
        depth: u32,
        [of_region, of_pair]: [Access; 2],
        timing: Timing,
    ) -> Self {
        let server = Side::new(verbs, &places[0], len, depth, Access::Local);
        let mut client = Side::new(verbs, &places[1], len, 1, of_region);
        client.pair = Some(client.nic.queue_pair(1, of_pair).expect("there is a queue pair"));
        let mut both = Self { server, client };
        let (server, client) = (both.server.pair().address(), both.client.pair().address());
        both.client.pair().connect(&server, timing).expect("the client connects");
        both.server.pair().connect(&client, timing).expect("the server connects");
        both.server.memory.fill(1);
        both.client.memory.fill(2);
        both
    }

    /// Work that moves `len` bytes between `local` in the server's memory and `remote` in the client's.
    pub(crate) fn work(&self, kind: WorkKind, local: usize, remote: usize, len: usize) -> Work {
        Work {
            id: 1000 + local as u64,
            kind,
            local: self.server.memory.address() + local as u64,
            local_key: self.server.region.as_ref().expect("it is there").local_key(),
            len: len as u32,
            remote: self.client.memory.address() + remote as u64,
            remote_key: self.client.region.as_ref().expect("it is there").remote_key(),
            signaled: true,
        }
    }

    /// Work for equal places in both memories, cut into pages; only the last piece is signaled.
    pub(crate) fn pages(&self, kind: WorkKind, page: usize, count: usize) -> Vec<Work> {
        let mut chain: Vec<Work> = (0..count).map(|i| self.work(kind, i * page, i * page, page)).collect();
        for piece in &mut chain[..count - 1] {
            piece.signaled = false;
        }
        chain
    }
}

pub(crate) fn results(completions: &[Completion]) -> Vec<Result<(), WorkError>> {
    completions.iter().map(|completion| completion.result).collect()
}
