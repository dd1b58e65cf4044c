//! What a client reads from a server that lies: replies on a data connection during every op, through frames and through shared memory,
//! and the fixed replies of pings and binds. Whatever is said, the op ends with its connection, no outcome is one that its op cannot
//! have, and a page that is called a hit has bytes that its checksum was made for.

use crate::bytes::Bytes;
use memkv_client::PageOutcome;
use memkv_client::fuzzing::{
    By, Call, Caller, UNREAD, hears, reads_bound, reads_limits, reads_pong, reads_shm_bound,
};
use memkv_core::page::{PageHasher, key_digest};
use memkv_core::{Key, PageMeta, SpaceId};
use memkv_proto::v1;
use memkv_transport::frame::{Code, Header, Mover, Op};
use memkv_transport::records::{self, ShmBound};
use prost::Message as _;
use std::cell::RefCell;

const KEYS: [&[u8]; 4] = [b"a", b"chain/1", b"chain/2", &[b'k'; 512]];
/// Room for a page, and lengths of pages.
const LENGTHS: [usize; 6] = [1, 100, 4096, 4097, 64 << 10, 70_000];
/// The memory that the server shares: blocks of one byte each, so that a page that was read is known.
const BLOCKS: usize = 16;
const BLOCK_BYTES: usize = 64 << 10;
/// Pieces of one answer at most.
const PIECES_MAX: usize = 24;

thread_local! {
    static CALLER: RefCell<Option<Caller>> = const { RefCell::new(None) };
}

fn shared() -> Vec<u8> {
    (0..BLOCKS).flat_map(|block| vec![u8::try_from(block).unwrap_or(0) + 1; BLOCK_BYTES]).collect()
}

pub(super) fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    match bytes.byte() % 8 {
        0 => fixed(bytes),
        1 => {
            if let Ok(pong) = v1::Pong::decode(bytes.rest()) {
                assert!(hears(&pong) <= pong.hot_digests.len().min(4096), "hot pages are counted once");
            }
        }
        2 => {
            if let Ok(limits) = v1::ServerLimits::decode(bytes.rest())
                && let Some(most) = reads_limits(limits)
            {
                assert!(most <= 9 << 20, "a server does not choose how much memory its replies take");
            }
        }
        _ => {
            let _ended = talk(bytes);
        }
    }
}

/// Replies of one length.
fn fixed(mut bytes: Bytes<'_>) {
    let mut reply = bytes.array();
    if bytes.flip() {
        // A right check, and any fields.
        if let Ok(header) = Header::decode(&reply) {
            reply = header.encode(&[]);
        }
    }
    let _pong = reads_pong(&reply);
    let _bound = reads_bound(&reply);
    let bound: [u8; records::SHM_BOUND_BYTES] = bytes.array();
    let mut both = [0; { memkv_transport::frame::HEADER_BYTES + records::SHM_BOUND_BYTES }];
    if let (true, Ok(header)) = (bytes.flip(), Header::decode(&reply)) {
        reply = header.encode(&bound);
    }
    both[..reply.len()].copy_from_slice(&reply);
    both[reply.len()..].copy_from_slice(&bound);
    let _shared = reads_shm_bound(&both);
}

/// An op and its server; what became of each page, and its memory.
fn talk(mut bytes: Bytes<'_>) -> Vec<(PageOutcome, Vec<u8>)> {
    let op = [Op::Get, Op::Get, Op::Put, Op::Exists, Op::Touch, Op::Delete][bytes.below(6)];
    let by = match bytes.below(3) {
        0 => By::Frames,
        1 => By::Direct,
        _ => By::Memory,
    };
    let exact = bytes.flip();
    let batch_keys_max = [1, 2, 1000][bytes.below(3)];
    let count = 1 + bytes.below(5);
    let pages =
        (0..count).map(|_| (KEYS[bytes.below(KEYS.len())].to_vec(), LENGTHS[bytes.below(LENGTHS.len())]));
    let call = Call { op, by, exact, pages: pages.collect(), batch_keys_max };
    let pieces = Liar { bytes, call: &call, pieces: Vec::new(), next: 0 }.write();
    let ended = CALLER
        .with_borrow_mut(|caller| caller.get_or_insert_with(|| Caller::new(shared())).call(&call, &pieces));
    for (outcome, memory) in &ended {
        judge(&call, *outcome, memory);
    }
    ended
}

fn judge(call: &Call, outcome: PageOutcome, memory: &[u8]) {
    use PageOutcome as Is;
    let fits = match call.op {
        Op::Put => !matches!(outcome, Is::Hit | Is::Miss),
        _ => !matches!(outcome, Is::Stored | Is::Exists),
    };
    assert!(fits, "{:?} ends with {outcome:?}", call.op);
    if call.op != Op::Get {
        assert!(memory.iter().all(|byte| *byte == UNREAD), "only a get writes to the caller's memory");
    } else if outcome == Is::Hit {
        // Every right checksum of a liar is over one byte, repeated; see `page`. What a shorter page leaves is as it was.
        let fill = memory[0];
        let len = memory.iter().take_while(|byte| **byte == fill).count();
        assert!(memory[len..].iter().all(|byte| *byte == UNREAD), "a hit has bytes that nobody vouched for");
        assert!(!call.exact || len == memory.len(), "a page has another length than was asked for");
    }
}

/// A server that mostly answers what it was asked, and sometimes anything.
struct Liar<'a> {
    bytes: Bytes<'a>,
    call: &'a Call,
    pieces: Vec<Vec<u8>>,
    /// The first page that is not answered yet.
    next: usize,
}

impl Liar<'_> {
    fn write(mut self) -> Vec<Vec<u8>> {
        while !self.bytes.is_empty() && self.pieces.len() < PIECES_MAX {
            match self.bytes.byte() % 8 {
                0..=3 => self.answer(),
                4 => self.raw(),
                5 => self.spoil(),
                6 => self.refusal(),
                _ => self.any_frame(),
            }
        }
        self.pieces
    }

    fn push(&mut self, header: &Header, meta: &[u8], body: &[u8]) {
        self.pieces.push([&header.encode(meta)[..], meta, body].concat());
    }

    /// A reply's header; requests are counted from 1.
    fn reply(&mut self, op: Op, code: Code, count: usize) -> Header {
        let odd = self.bytes.byte();
        let id = if odd & 0x0f == 0x0f { u64::from(odd) } else { 1 + u64::from(odd >> 4 & 7) };
        let request = Header::request(op, id, SpaceId::default(), 0);
        let mut header = Header::reply_to(&request, code, u32::try_from(count).unwrap_or(u32::MAX));
        header.reply = odd != 0xf7;
        header
    }

    /// How many pages the reply is about: those of a request, or not.
    fn count(&mut self) -> usize {
        let left = self.call.pages.len() - self.next.min(self.call.pages.len());
        let count = left.min(self.call.batch_keys_max as usize);
        match self.bytes.byte() {
            odd @ 0xf8.. => usize::from(odd & 7),
            _ => count,
        }
    }

    /// A page's record, and its bytes: one byte, repeated.
    fn page(&mut self, at: usize, offset: &mut u64) -> (Vec<u8>, Vec<u8>) {
        let (key, room) = self.call.pages.get(at).cloned().unwrap_or((b"a".to_vec(), 1));
        let odd = self.bytes.byte();
        let len = if odd & 3 == 3 { LENGTHS[self.bytes.below(LENGTHS.len())] } else { room };
        let mut fill = odd | 1;
        if self.call.by == By::Memory {
            let block = self.bytes.below(BLOCKS);
            fill = u8::try_from(block).unwrap_or(0) + 1;
            *offset = (block * BLOCK_BYTES) as u64;
            match self.bytes.byte() {
                0xf0.. => *offset = self.bytes.u64(),
                0xe0.. => *offset += u64::from(self.bytes.u32()),
                _ => {}
            }
        }
        let page = vec![fill; len];
        let key = Key::new(&key).expect("the list has keys of 1 to 512 bytes");
        let codec = if odd & 0x30 == 0x30 { odd >> 6 } else { 0 };
        let mut meta = PageMeta { len: u32::try_from(len).unwrap_or(u32::MAX), codec, flags: 0, checksum: 0 };
        meta.checksum = meta.checksum_of(PageHasher::oneshot(key_digest(SpaceId::default(), key), &page));
        if odd & 0x0c == 0x0c {
            meta.checksum ^= u64::from(self.bytes.byte());
        }
        let code = match self.bytes.byte() {
            0xf0.. => Code::SizeMismatch,
            0xd0.. => Code::Miss,
            _ => Code::Ok,
        };
        (records::page_record(code, meta).to_vec(), if code == Code::Ok { page } else { Vec::new() })
    }

    /// What was asked for, as far as one can know.
    fn answer(&mut self) {
        let count = self.count();
        match self.call.op {
            Op::Get => self.pages(count),
            Op::Put => self.verdicts(count),
            op => {
                let bits: Vec<bool> = (0..count).map(|_| self.bytes.flip()).collect();
                let mut meta = Vec::new();
                records::push_bitmap(&mut meta, &bits);
                if self.bytes.byte() > 0xf0 {
                    meta.push(0xff);
                }
                let header = self.reply(op, Code::Ok, count);
                self.push(&header, &meta, &[]);
            }
        }
        self.next += count;
    }

    fn pages(&mut self, count: usize) {
        let (mut meta, mut offsets, mut body) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..count {
            let mut offset = 0;
            let (record, page) = self.page(self.next + at, &mut offset);
            meta.extend(record);
            offsets.extend(offset.to_le_bytes());
            body.extend(page);
        }
        let mut header = self.reply(Op::Get, Code::Ok, count);
        if self.call.by == By::Memory {
            meta.extend(offsets);
            body.clear();
        }
        header.body_len = body.len() as u64;
        match self.bytes.byte() {
            0xf8.. => header.body_len += 1,
            0xf0.. => header.body_len = self.bytes.u64(),
            _ => {}
        }
        self.push(&header, &meta, &body);
    }

    fn verdicts(&mut self, count: usize) {
        let codes = [Code::Want, Code::Ok, Code::Want, Code::Exists, Code::Busy, Code::Want];
        let meta: Vec<u8> = (0..count)
            .map(|_| match self.bytes.byte() {
                odd @ 0xf0.. => odd,
                odd => codes[usize::from(odd) % codes.len()] as u8,
            })
            .collect();
        let op = if self.bytes.flip() { Op::Put } else { Op::PutData };
        let header = self.reply(op, Code::Ok, count);
        self.push(&header, &meta, &[]);
        // The verdicts on the pages that it wanted.
        let wanted = meta.iter().filter(|code| **code == Code::Want as u8).count();
        if op == Op::Put && self.bytes.flip() {
            let results = vec![Code::Ok as u8; wanted];
            let header = self.reply(Op::PutData, Code::Ok, wanted);
            self.push(&header, &results, &[]);
        }
    }

    fn refusal(&mut self) {
        let code = Code::from_wire(self.bytes.byte()).unwrap_or(Code::Busy);
        let mut header = self.reply(self.call.op, code, 0);
        header.body_len = u64::from(self.bytes.byte() == 0xff);
        self.push(&header, b"a reason", &[]);
    }

    fn any_frame(&mut self) {
        let op =
            [Op::Ping, Op::Bind, Op::Release, Op::Put, Op::PutData, Op::Get, Op::Exists][self.bytes.below(7)];
        let count = self.bytes.below(9);
        let mut header = self.reply(op, Code::Ok, count);
        header.body_len = if self.bytes.flip() { u64::from(self.bytes.byte()) } else { 0 };
        let len = self.bytes.below(96);
        let meta = self.bytes.take(len).to_vec();
        self.push(&header, &meta, &[]);
    }

    fn raw(&mut self) {
        let len = self.bytes.below(128);
        let raw = self.bytes.take(len).to_vec();
        self.pieces.push(raw);
    }

    /// Changes a byte of the last piece, or cuts it.
    fn spoil(&mut self) {
        let (at, with) = (self.bytes.u32() as usize, self.bytes.byte());
        let Some(last) = self.pieces.last_mut().filter(|last| !last.is_empty()) else { return };
        let at = at % last.len();
        if with & 1 == 1 { last.truncate(at) } else { last[at] ^= with }
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    // The way in, then the call (op, way, exact, keys of a request, pages and their keys and lengths), then steps: see `Liar`.
    let get = [3, 0, 0, 1, 2, 1, 0, 2, 1, 1, 0, 0, 4, 0, 0, 4, 0, 0, 0];
    let exists = [3, 3, 0, 0, 2, 2, 0, 0, 1, 0, 2, 0, 0, 0, 1, 0, 1, 0, 0];
    let put = [3, 2, 0, 0, 2, 1, 0, 1, 1, 2, 0, 0, 0, 1, 1, 0, 1, 16];
    let direct = [3, 2, 1, 0, 2, 0, 1, 1, 0, 0, 1, 1, 0, 0];
    let near = [3, 0, 2, 0, 2, 1, 0, 2, 1, 1, 0, 0, 4, 3, 0, 0, 4, 5, 0, 0, 0, 0];
    let small = [3, 0, 0, 0, 0, 2, 0, 0, 1, 0, 2, 0, 0, 0, 4, 0, 0, 0, 0, 0, 4, 0, 16, 0];
    let refused = [3, 0, 0, 0, 2, 0, 0, 0, 6, 6, 0, 0];
    let any = [3, 3, 0, 0, 2, 0, 0, 0, 7, 3, 1, 0, 0, 4, 1, 2, 3, 4, 4, 3, 9, 9, 9, 5, 1, 0, 0, 0, 2];
    let pong = Header::reply_to(&Header::request(Op::Ping, u64::MAX, SpaceId::default(), 0), Code::Ok, 0);
    let meta = records::shm_bound(ShmBound { memory_bytes: 1 << 20, reads_client: true, reads_stage: true });
    let bound = Header::reply_to(&Header::request(Op::Bind, 0, SpaceId::default(), 0), Code::Ok, 0);
    let _shm = Mover::Shm;
    let hot = v1::Pong { hot_digests: vec![1, 2, 3], hot_copies: vec![2, 3, 9], ..v1::Pong::default() };
    let limits = v1::ServerLimits {
        page_bytes_max: 64 << 20,
        batch_keys_max: 1000,
        frame_meta_bytes_max: 9 << 20,
        session_connections_max: 8,
        request_ms_max: 1000,
    };
    let greedy = v1::ServerLimits { frame_meta_bytes_max: u32::MAX, ..limits };
    let with = |which: u8, bytes: &[u8]| [&[which], bytes].concat();
    [&get[..], &exists, &put, &direct, &near, &small, &refused, &any]
        .into_iter()
        .map(<[u8]>::to_vec)
        .chain([
            with(0, &[&pong.encode(&[])[..], &[0]].concat()),
            with(0, &[&bound.encode(&meta)[..], &[0], &meta[..], &[1]].concat()),
            with(1, &hot.encode_to_vec()),
            with(2, &limits.encode_to_vec()),
            with(2, &greedy.encode_to_vec()),
        ])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An input that reaches nothing tries nothing.
    #[test]
    fn the_seeds_of_ops_reach_their_best_outcomes() {
        let ends = |at: usize| -> Vec<PageOutcome> {
            let seed = seeds().swap_remove(at);
            talk(Bytes::new(&seed[1..])).into_iter().map(|(outcome, _)| outcome).collect()
        };
        for (at, best) in [
            (0, PageOutcome::Hit),
            (1, PageOutcome::Hit),
            (2, PageOutcome::Stored),
            (3, PageOutcome::Stored),
            (4, PageOutcome::Hit),
            (5, PageOutcome::Hit),
            (6, PageOutcome::Busy),
        ] {
            assert!(ends(at).contains(&best), "seed {at} ends with {:?}", ends(at));
        }
    }
}
