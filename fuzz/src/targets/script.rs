//! What a client says on a data connection, written by the fuzzer's bytes.
//!
//! Frames carry a check over all their bytes, so random ones would be refused at once. Here the bytes choose steps: mostly right frames
//! with some things wrong, in any order, cut anywhere.

use crate::bytes::Bytes;
use memkv_core::page::{PageHasher, key_digest};
use memkv_core::{Key, PageMeta, SpaceId};
use memkv_transport::frame::{Code, HEADER_BYTES, Header, Mover, Op};
use memkv_transport::records::{self, Span};

/// Names of the few keys that there are.
const KEYS: [&[u8]; 6] = [b"a", b"b", b"chain/1", b"chain/2", b"chain/3", &[b'k'; 512]];
/// Lengths of pages, some of which the server cannot take.
const LENGTHS: [u32; 8] = [1, 100, 4096, 4097, 16 << 10, 64 << 10, (64 << 10) + 1, 0];
const OPS: [Op; 9] =
    [Op::Exists, Op::Get, Op::Put, Op::PutData, Op::Delete, Op::Touch, Op::Ping, Op::Bind, Op::Release];
/// The region of spans that name the client's own memory.
const OWN_MEMORY: u32 = u32::MAX;
/// Pieces of one talk at most.
const PIECES_MAX: usize = 40;

/// What the fuzzer's client remembers of what it said.
pub(super) struct Script<'a> {
    bytes: Bytes<'a>,
    space: SpaceId,
    /// The pages of the last offer, and its id.
    offered: (u64, Vec<(usize, u32)>),
    /// Memory of this process that spans may name.
    memory: &'static [u8],
    pub(super) pieces: Vec<Vec<u8>>,
}

impl<'a> Script<'a> {
    /// A script for a client that says what `bytes` choose.
    pub(super) fn new(bytes: Bytes<'a>, space: SpaceId, memory: &'static [u8]) -> Self {
        Self { bytes, space, offered: (0, Vec::new()), memory, pieces: Vec::new() }
    }

    /// Writes steps until the bytes are used up.
    pub(super) fn write(mut self) -> Vec<Vec<u8>> {
        while !self.bytes.is_empty() && self.pieces.len() < PIECES_MAX {
            match self.bytes.byte() % 12 {
                0 => self.presence(),
                1 => self.get(),
                2 => self.offer(),
                3 | 4 => self.data(),
                5 => self.direct(),
                6 => self.bind(),
                7 => self.remote(),
                8 => self.any_frame(),
                9 => self.raw(),
                10 => self.spoil(),
                _ => self.glue(),
            }
        }
        self.pieces
    }

    fn header(&mut self, op: Op, count: usize) -> Header {
        let id = u64::from(self.bytes.byte() % 4);
        let mut header = Header::request(op, id, self.space, u32::try_from(count).unwrap_or(u32::MAX));
        let odd = self.bytes.byte();
        if odd & 0x30 == 0x30 {
            header.space = SpaceId([odd; 16]);
        }
        if odd & 0x0f == 0x0f {
            header.deadline_ms = 1;
        }
        header
    }

    fn key(&mut self) -> (usize, Key<'static>) {
        let at = self.bytes.below(KEYS.len());
        (at, Key::new(KEYS[at]).expect("the list has keys of 1 to 512 bytes"))
    }

    fn push(&mut self, header: &Header, meta: &[u8], body: &[u8]) {
        self.pieces.push([&header.encode(meta)[..], meta, body].concat());
    }

    fn presence(&mut self) {
        let op = [Op::Exists, Op::Touch, Op::Delete, Op::Exists][self.bytes.below(4)];
        let count = self.bytes.below(9);
        let mut header = self.header(op, count);
        header.flags = u16::from(self.bytes.byte() % 4);
        let mut meta = Vec::new();
        (0..count).for_each(|_| records::push_key(&mut meta, self.key().1));
        self.push(&header, &meta, &[]);
    }

    fn get(&mut self) {
        let count = self.bytes.below(9);
        let mut header = self.header(Op::Get, count);
        header.flags = u16::from(self.bytes.byte() % 2);
        let mut meta = Vec::new();
        for _ in 0..count {
            let room = LENGTHS[self.bytes.below(LENGTHS.len())];
            records::push_wanted(&mut meta, room, self.key().1);
        }
        self.push(&header, &meta, &[]);
    }

    /// Keys and lengths of some pages, and the records that offer them.
    fn pages(&mut self) -> (Vec<(usize, u32)>, Vec<u8>) {
        let (mut pages, mut meta) = (Vec::new(), Vec::new());
        for _ in 0..self.bytes.below(6) {
            let (at, key) = self.key();
            let len = LENGTHS[self.bytes.below(LENGTHS.len())];
            records::push_offered(&mut meta, len, self.bytes.byte().into(), key);
            pages.push((at, len));
        }
        (pages, meta)
    }

    fn offer(&mut self) {
        let (pages, meta) = self.pages();
        let header = self.header(Op::Put, pages.len());
        self.push(&header, &meta, &[]);
        self.offered = (header.request_id, pages);
    }

    /// A page's bytes behind its record, mostly with the right checksum.
    fn page(&mut self, at: usize, len: u32, fill: u8) -> Vec<u8> {
        let page = vec![fill; len as usize];
        let key = Key::new(KEYS[at]).expect("the list has keys of 1 to 512 bytes");
        let mut meta = PageMeta { len, codec: fill % 3, flags: 0, checksum: 0 };
        meta.checksum = meta.checksum_of(PageHasher::oneshot(key_digest(self.space, key), &page));
        let odd = self.bytes.byte();
        if odd & 0x70 == 0x70 {
            meta.checksum ^= 1;
        }
        let code = if odd & 0x0f == 0x0f { Code::Miss } else { Code::Ok };
        [&records::page_record(code, meta)[..], &page].concat()
    }

    /// The pages of the last offer, or some of them.
    fn data(&mut self) {
        let (id, mut pages) = self.offered.clone();
        let odd = self.bytes.byte();
        // Which ones the server wants depends on what it has; often these do.
        pages.retain(|(_, len)| (1..=64 << 10).contains(len));
        if odd & 1 == 1 {
            pages.dedup_by_key(|(at, _)| *at);
        }
        if odd & 6 == 6 {
            pages.pop();
        }
        let mut body = Vec::new();
        for (at, len) in &pages {
            body.extend(self.page(*at, *len, odd));
        }
        let mut header = self.header(Op::PutData, pages.len());
        header.request_id = id;
        header.body_len = body.len() as u64 + u64::from(odd >> 6 == 3);
        self.push(&header, &[], &body);
    }

    fn direct(&mut self) {
        let (pages, meta) = self.pages();
        let mut header = self.header(Op::Put, pages.len());
        header.flags = memkv_transport::frame::FLAG_DIRECT;
        let fill = self.bytes.byte();
        let mut body = Vec::new();
        for (at, len) in &pages {
            body.extend(self.page(*at, *len, fill));
        }
        header.body_len = body.len() as u64;
        self.push(&header, &meta, &body);
    }

    fn bind(&mut self) {
        let mover = if self.bytes.flip() { Mover::Rdma } else { Mover::Shm };
        let mut content = [0; 8];
        content.copy_from_slice(&self.memory[..8]);
        let token = match self.bytes.below(3) {
            0 => self.bytes.array(),
            _ => records::trial(self.memory.as_ptr().addr() as u64, content),
        };
        let header = self.header(Op::Bind, 0);
        self.push(&header, &records::bind(mover, &token), &[]);
    }

    fn span(&mut self, len: u32) -> Span {
        let base = self.memory.as_ptr().addr() as u64;
        let near = u64::from(self.bytes.byte()) << 8;
        match self.bytes.below(4) {
            0 => Span { region: self.bytes.u32(), len, offset: self.bytes.u64() },
            1 => Span { region: OWN_MEMORY - 1, len, offset: near },
            _ => Span { region: OWN_MEMORY, len, offset: base + near },
        }
    }

    fn remote(&mut self) {
        let is_put = self.bytes.flip();
        let count = self.bytes.below(5);
        let mut header = self.header(if is_put { Op::Put } else { Op::Get }, count);
        header.flags = memkv_transport::frame::FLAG_REMOTE;
        let mut meta = Vec::new();
        for _ in 0..count {
            let (at, key) = self.key();
            let len = LENGTHS[self.bytes.below(LENGTHS.len() - 2)];
            if is_put {
                records::push_offered(&mut meta, len, 0, key);
                let record = self.page(at, 1, 7);
                meta.extend_from_slice(&record[..record.len() - 1]);
            } else {
                records::push_wanted(&mut meta, len, key);
            }
            if is_put || self.bytes.flip() {
                let span = self.span(len);
                records::push_spans(&mut meta, [span].into_iter());
            }
        }
        self.push(&header, &meta, &[]);
    }

    /// A frame whose check is right and whose fields are anything.
    fn any_frame(&mut self) {
        let op = OPS[self.bytes.below(OPS.len())];
        let mut header = self.header(op, self.bytes.clone().below(70));
        header.flags = u16::from(self.bytes.byte()) & 0x0f;
        header.reply = self.bytes.byte() == 1;
        header.body_len = match self.bytes.below(6) {
            0 => self.bytes.u64(),
            1 => u64::from(self.bytes.byte()),
            _ => 0,
        };
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
        let (at, with) = (usize::from(u16::from_le_bytes(self.bytes.array())), self.bytes.byte());
        let Some(last) = self.pieces.last_mut().filter(|last| !last.is_empty()) else { return };
        let at = at % last.len();
        if with & 1 == 1 { last.truncate(at) } else { last[at] ^= with }
    }

    /// Makes the last two pieces one, or the last one two.
    fn glue(&mut self) {
        let Some(mut last) = self.pieces.pop() else { return };
        let at = usize::from(self.bytes.byte()) + HEADER_BYTES / 2;
        if self.bytes.flip() && last.len() > at {
            let rest = last.split_off(at);
            self.pieces.push(last);
            self.pieces.push(rest);
        } else if let Some(before) = self.pieces.last_mut() {
            before.extend(last);
        } else {
            self.pieces.push(last);
        }
    }
}
