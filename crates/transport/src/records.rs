//! The records inside a frame's meta section and body. All integers are little-endian.
//!
//! | list | one record |
//! |------|------------|
//! | keys          | `u16 key_len`, key |
//! | wanted pages  | `u32 dst_len`, `u16 key_len`, key |
//! | offered pages | `u32 page_len`, `u32 position`, `u16 key_len`, key |
//! | wanted pages with spans  | wanted page, `u16 spans`, spans |
//! | offered pages with records and spans | offered page, page record, `u16 spans`, spans |
//! | span          | `u32 region`, `u32 len`, `u64 offset` (16 bytes) |
//! | mover, token  | `u8 mover`, 7 zero bytes, 16 bytes of token; shm: `u64 address`, 8 bytes that are there |
//! | answer to a bind of shm | `u64` bytes of the shared memory or 0, `u8` 1 if the server reads the client's memory, `u8` 1 if it reads the client's staging memory, 6 zero bytes |
//! | page record   | `u8 code`, `u8 codec`, `u16 flags`, `u32 len`, `u64 checksum` (16 bytes) |
//! | verdict       | `u8 code` |
//! | bitmap        | bit `i % 8` of byte `i / 8` belongs to key `i` |
//!
//! `dst_len` is the room at the reader in bytes. [`position`](memkv_core::position) counts pages from the
//! start of the prefix chain, from 1; with bit 31 it counts from the first page of the batch; 0 means unknown.
//!
//! A span is a piece of the client's memory: `len` bytes at `offset` inside a registered region, or, with
//! [`REGION_OWN`], at that address of the client's process, or, with [`REGION_STAGE`], in its staging memory. The spans of a page are its bytes, in order; they add up to the
//! room (wanted) or to the page (offered).

use crate::frame::{Code, FrameError, Mover};
use memkv_core::{Key, PageMeta};

/// Bytes of a page record.
pub const PAGE_RECORD_BYTES: usize = 16;

/// Bytes of a span.
pub const SPAN_BYTES: usize = 16;
/// The region that is the client's whole address space; over shared memory only.
pub const REGION_OWN: u32 = u32::MAX;
/// The region that is the staging memory which the client passed with its bind; over shared memory only.
pub const REGION_STAGE: u32 = u32::MAX - 1;
/// The most bytes of staging memory that a server takes.
pub const STAGE_BYTES_MAX: u64 = 16 << 20;
/// Bytes of a bind's records.
pub const BIND_BYTES: usize = 24;

/// A piece of the client's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The region it lies in.
    pub region: u32,
    /// Bytes.
    pub len: u32,
    /// Where it begins in the region, in bytes.
    pub offset: u64,
}

/// Appends a span.
pub fn push_span(meta: &mut Vec<u8>, span: Span) {
    meta.extend_from_slice(&span.region.to_le_bytes());
    meta.extend_from_slice(&span.len.to_le_bytes());
    meta.extend_from_slice(&span.offset.to_le_bytes());
}

/// Appends a span list, whose length precedes it.
///
/// # Panics
///
/// If there are more than 65,535. Senders cut pages into fewer pieces.
pub fn push_spans(meta: &mut Vec<u8>, spans: impl ExactSizeIterator<Item = Span>) {
    let count = u16::try_from(spans.len()).expect("a page has fewer than 65,536 pieces");
    meta.extend_from_slice(&count.to_le_bytes());
    spans.for_each(|span| push_span(meta, span));
}

/// The spans of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spans<'a>(&'a [[u8; SPAN_BYTES]]);

impl<'a> Spans<'a> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One after the other.
    pub fn iter(self) -> impl ExactSizeIterator<Item = Span> + 'a {
        self.0.iter().map(|bytes| Span {
            region: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            len: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            offset: u64::from_le_bytes([
                bytes[8], bytes[9], bytes[10], bytes[11], bytes[12], bytes[13], bytes[14], bytes[15],
            ]),
        })
    }

    /// Bytes of all.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.iter().map(|span| u64::from(span.len)).sum()
    }
}

/// A bind's records.
#[must_use]
pub fn bind(mover: Mover, token: &[u8; 16]) -> [u8; BIND_BYTES] {
    let mut out = [0; BIND_BYTES];
    out[0] = mover as u8;
    out[8..].copy_from_slice(token);
    out
}

/// Reads a bind's records.
///
/// # Errors
///
/// [`FrameError::Records`] if they are not that.
pub fn read_bind(meta: &[u8]) -> Result<(Mover, [u8; 16]), FrameError> {
    let mut reader = Reader { rest: meta };
    let mover = Mover::from_wire(reader.u8()?).ok_or(FrameError::Records)?;
    if reader.array::<7>()? != [0; 7] {
        return Err(FrameError::Records);
    }
    let token = reader.array()?;
    if reader.rest.is_empty() { Ok((mover, token)) } else { Err(FrameError::Records) }
}

/// A bind's token for [`Mover::Shm`]: eight bytes of the client's memory, by address and content. The server tries with them
/// whether it can read that memory.
#[must_use]
pub fn trial(address: u64, content: [u8; 8]) -> [u8; 16] {
    let mut token = [0; 16];
    token[..8].copy_from_slice(&address.to_le_bytes());
    token[8..].copy_from_slice(&content);
    token
}

/// Address and content of what [`trial`] made.
#[must_use]
pub fn trial_of(token: &[u8; 16]) -> (u64, [u8; 8]) {
    let [a0, a1, a2, a3, a4, a5, a6, a7, content @ ..] = *token;
    (u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]), content)
}

/// Bytes of the answer to a bind of [`Mover::Shm`].
pub const SHM_BOUND_BYTES: usize = 16;

/// The answer to a bind of [`Mover::Shm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmBound {
    /// Bytes of the memory for pages, whose descriptor comes with the answer; 0 if it is not shared, and gets go in frames.
    pub memory_bytes: u64,
    /// Whether the server can read the client's memory.
    pub reads_client: bool,
    /// Whether the server reads the staging memory that came with the bind. Without this and the other, puts go in frames.
    pub reads_stage: bool,
}

/// The records of the answer to a bind of [`Mover::Shm`].
#[must_use]
pub fn shm_bound(bound: ShmBound) -> [u8; SHM_BOUND_BYTES] {
    let mut out = [0; SHM_BOUND_BYTES];
    out[..8].copy_from_slice(&bound.memory_bytes.to_le_bytes());
    out[8] = u8::from(bound.reads_client);
    out[9] = u8::from(bound.reads_stage);
    out
}

/// Reads the answer to a bind of [`Mover::Shm`].
///
/// # Errors
///
/// [`FrameError::Records`] if it is not that.
pub fn read_shm_bound(meta: &[u8]) -> Result<ShmBound, FrameError> {
    let mut reader = Reader { rest: meta };
    let memory_bytes = reader.u64()?;
    let (reads_client, reads_stage) = match reader.array()? {
        [client @ 0..=1, stage @ 0..=1, 0, 0, 0, 0, 0, 0] => (client == 1, stage == 1),
        _ => return Err(FrameError::Records),
    };
    if !reader.rest.is_empty() {
        return Err(FrameError::Records);
    }
    Ok(ShmBound { memory_bytes, reads_client, reads_stage })
}

/// Appends a key of a key list.
pub fn push_key(meta: &mut Vec<u8>, key: Key<'_>) {
    let bytes = key.as_bytes();
    // A `Key` has at most 512 bytes, so its length fits two bytes.
    meta.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    meta.extend_from_slice(bytes);
}

/// Appends a wanted page.
pub fn push_wanted(meta: &mut Vec<u8>, dst_len: u32, key: Key<'_>) {
    meta.extend_from_slice(&dst_len.to_le_bytes());
    push_key(meta, key);
}

/// Appends an offered page.
pub fn push_offered(meta: &mut Vec<u8>, page_len: u32, position: u32, key: Key<'_>) {
    meta.extend_from_slice(&page_len.to_le_bytes());
    meta.extend_from_slice(&position.to_le_bytes());
    push_key(meta, key);
}

/// A page record's bytes.
#[must_use]
pub fn page_record(code: Code, meta: PageMeta) -> [u8; PAGE_RECORD_BYTES] {
    let mut out = [0; PAGE_RECORD_BYTES];
    out[0] = code as u8;
    out[1] = meta.codec;
    out[2..4].copy_from_slice(&meta.flags.to_le_bytes());
    out[4..8].copy_from_slice(&meta.len.to_le_bytes());
    out[8..].copy_from_slice(&meta.checksum.to_le_bytes());
    out
}

/// Reads a page record.
///
/// # Errors
///
/// [`FrameError::Records`] if the code is not known.
pub fn read_page_record(bytes: &[u8; PAGE_RECORD_BYTES]) -> Result<(Code, PageMeta), FrameError> {
    let code = Code::from_wire(bytes[0]).ok_or(FrameError::Records)?;
    let mut reader = Reader { rest: &bytes[1..] };
    let meta =
        PageMeta { codec: reader.u8()?, flags: reader.u16()?, len: reader.u32()?, checksum: reader.u64()? };
    Ok((code, meta))
}

/// Bytes of a bitmap over `count` keys.
#[must_use]
pub fn bitmap_bytes(count: usize) -> usize {
    count.div_ceil(8)
}

/// Appends a bitmap.
pub fn push_bitmap(meta: &mut Vec<u8>, bits: &[bool]) {
    for group in bits.chunks(8) {
        let byte = group.iter().enumerate().fold(0_u8, |byte, (i, &bit)| byte | (u8::from(bit) << i));
        meta.push(byte);
    }
}

/// Reads a bitmap over exactly `bits.len()` keys.
///
/// # Errors
///
/// [`FrameError::Records`] if the length is another or an unused bit is set.
pub fn read_bitmap(meta: &[u8], bits: &mut [bool]) -> Result<(), FrameError> {
    if meta.len() != bitmap_bytes(bits.len()) {
        return Err(FrameError::Records);
    }
    for (i, bit) in bits.iter_mut().enumerate() {
        *bit = meta[i / 8] >> (i % 8) & 1 == 1;
    }
    let used = bits.len() % 8;
    if used != 0 && meta[meta.len() - 1] >> used != 0 {
        return Err(FrameError::Records);
    }
    Ok(())
}

/// An offered page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered<'a> {
    /// Length of the page, in bytes.
    pub len: u32,
    /// Position in its chain, from 1; 0 if unknown.
    pub position: u32,
    /// The page's key.
    pub key: Key<'a>,
}

/// A wanted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Room at the reader, in bytes.
    pub dst_len: u32,
    /// The page's key.
    pub key: Key<'a>,
}

/// An offered page whose bytes are fetched from its spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteOffered<'a> {
    /// What is offered.
    pub page: Offered<'a>,
    /// Length, encoding and checksum.
    pub meta: PageMeta,
    /// Where the bytes are.
    pub spans: Spans<'a>,
}

/// A wanted page whose bytes go to its spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteWanted<'a> {
    /// What is wanted.
    pub page: Wanted<'a>,
    /// Where the bytes go.
    pub spans: Spans<'a>,
}

/// Reads the records of a list one by one. Iteration ends after the first error.
pub struct Records<'a, T> {
    reader: Reader<'a>,
    left: u32,
    read: fn(&mut Reader<'a>) -> Result<T, FrameError>,
}

/// The keys of a key list.
#[must_use]
pub fn keys(meta: &[u8], count: u32) -> Records<'_, Key<'_>> {
    Records { reader: Reader { rest: meta }, left: count, read: Reader::key }
}

/// The wanted pages of a get.
#[must_use]
pub fn wanted(meta: &[u8], count: u32) -> Records<'_, Wanted<'_>> {
    Records {
        reader: Reader { rest: meta },
        left: count,
        read: |r| Ok(Wanted { dst_len: r.u32()?, key: r.key()? }),
    }
}

/// The offered pages of a put.
#[must_use]
pub fn offered(meta: &[u8], count: u32) -> Records<'_, Offered<'_>> {
    Records {
        reader: Reader { rest: meta },
        left: count,
        read: |r| Ok(Offered { len: r.u32()?, position: r.u32()?, key: r.key()? }),
    }
}

/// The wanted pages of a remote get.
#[must_use]
pub fn remote_wanted(meta: &[u8], count: u32) -> Records<'_, RemoteWanted<'_>> {
    Records {
        reader: Reader { rest: meta },
        left: count,
        read: |r| {
            let page = Wanted { dst_len: r.u32()?, key: r.key()? };
            let spans = r.spans()?;
            if spans.bytes() != u64::from(page.dst_len) {
                return Err(FrameError::Records);
            }
            Ok(RemoteWanted { page, spans })
        },
    }
}

/// The offered pages of a remote put.
#[must_use]
pub fn remote_offered(meta: &[u8], count: u32) -> Records<'_, RemoteOffered<'_>> {
    Records {
        reader: Reader { rest: meta },
        left: count,
        read: |r| {
            let page = Offered { len: r.u32()?, position: r.u32()?, key: r.key()? };
            let (code, meta) = read_page_record(&r.array()?)?;
            let spans = r.spans()?;
            if code != Code::Ok || meta.len != page.len || spans.bytes() != u64::from(page.len) {
                return Err(FrameError::Records);
            }
            Ok(RemoteOffered { page, meta, spans })
        },
    }
}

impl<T> Iterator for Records<'_, T> {
    type Item = Result<T, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.reader.rest.is_empty() {
                return None;
            }
            self.reader.rest = &[];
            return Some(Err(FrameError::Records));
        }
        let record = (self.read)(&mut self.reader);
        match &record {
            Ok(_) => self.left -= 1,
            Err(_) => {
                self.left = 0;
                self.reader.rest = &[];
            }
        }
        Some(record)
    }
}

/// A bounds-checked cursor.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(FrameError::Records)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    fn spans(&mut self) -> Result<Spans<'a>, FrameError> {
        let count = usize::from(self.u16()?);
        Ok(Spans(self.bytes(count * SPAN_BYTES)?.as_chunks().0))
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    fn key(&mut self) -> Result<Key<'a>, FrameError> {
        let len = self.u16()?;
        Ok(Key::new(self.bytes(usize::from(len))?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_core::KeyError;
    use proptest::prelude::*;

    fn key(bytes: &[u8]) -> Key<'_> {
        Key::new(bytes).unwrap()
    }

    #[test]
    fn lists_round_trip() {
        let mut meta = Vec::new();
        push_offered(&mut meta, 4096, 7, key(b"a"));
        push_offered(&mut meta, 8192, 0, key(&[1; 512]));
        let read: Result<Vec<_>, _> = offered(&meta, 2).collect();
        let expected = [
            Offered { len: 4096, position: 7, key: key(b"a") },
            Offered { len: 8192, position: 0, key: key(&[1; 512]) },
        ];
        assert_eq!(read.unwrap(), expected);
    }

    #[test]
    fn the_records_of_shared_memory_round_trip_and_nothing_else_is_read() {
        assert_eq!(trial_of(&trial(7 << 40, *b"01234567")), (7 << 40, *b"01234567"));
        assert_eq!(read_bind(&bind(Mover::Shm, &trial(1, [2; 8]))), Ok((Mover::Shm, trial(1, [2; 8]))));
        for bound in [(0, false, false), (u64::MAX, true, false), (7, false, true), (7, true, true)] {
            let bound = ShmBound { memory_bytes: bound.0, reads_client: bound.1, reads_stage: bound.2 };
            let bytes = shm_bound(bound);
            assert_eq!(read_shm_bound(&bytes), Ok(bound));
            assert!(
                read_shm_bound(&bytes[1..]).is_err() && read_shm_bound(&[&bytes[..], &[0]].concat()).is_err()
            );
        }
        for (at, value) in [(15, 1), (10, 1), (9, 2), (8, 2)] {
            let mut unknown = shm_bound(ShmBound { memory_bytes: 1, reads_client: true, reads_stage: true });
            unknown[at] = value;
            assert!(read_shm_bound(&unknown).is_err());
        }
    }

    #[test]
    fn too_few_and_too_many_records_are_errors() {
        let mut meta = Vec::new();
        push_key(&mut meta, key(b"one"));
        push_key(&mut meta, key(b"two"));
        assert_eq!(keys(&meta, 2).filter(Result::is_ok).count(), 2);
        assert!(keys(&meta, 1).any(|k| k == Err(FrameError::Records)));
        assert!(keys(&meta, 3).any(|k| k == Err(FrameError::Records)));
        assert!(keys(&meta[..meta.len() - 1], 2).any(|k| k == Err(FrameError::Records)));
    }

    #[test]
    fn a_key_of_0_or_513_bytes_is_refused() {
        let empty: Result<Vec<_>, _> = keys(&[0, 0], 1).collect();
        assert_eq!(empty, Err(FrameError::Key(KeyError::Empty)));
        let mut long = 513_u16.to_le_bytes().to_vec();
        long.resize(2 + 513, b'x');
        let long: Result<Vec<_>, _> = keys(&long, 1).collect();
        assert_eq!(long, Err(FrameError::Key(KeyError::TooLong(513))));
    }

    #[test]
    fn remote_pages_round_trip_and_must_add_up() {
        let spans =
            [Span { region: 3, len: 40, offset: 1 << 40 }, Span { region: REGION_OWN, len: 24, offset: 7 }];
        let page = PageMeta { len: 64, checksum: 9, ..PageMeta::default() };
        let offer = |len, with: &[Span]| {
            let mut meta = Vec::new();
            push_offered(&mut meta, len, 5, key(b"k"));
            meta.extend_from_slice(&page_record(Code::Ok, page));
            push_spans(&mut meta, with.iter().copied());
            meta
        };
        let meta = offer(64, &spans);
        let read: Vec<_> = remote_offered(&meta, 1).collect::<Result<_, _>>().unwrap();
        assert_eq!((read[0].page, read[0].meta), (Offered { len: 64, position: 5, key: key(b"k") }, page));
        assert_eq!(read[0].spans.iter().collect::<Vec<_>>(), spans);
        for bad in [offer(63, &spans), offer(64, &spans[..1])] {
            assert_eq!(remote_offered(&bad, 1).next(), Some(Err(FrameError::Records)));
        }
        let mut meta = Vec::new();
        push_wanted(&mut meta, 64, key(b"k"));
        push_spans(&mut meta, spans.into_iter());
        let read: Vec<_> = remote_wanted(&meta, 1).collect::<Result<_, _>>().unwrap();
        assert_eq!(read[0].page, Wanted { dst_len: 64, key: key(b"k") });
        assert_eq!(read[0].spans.iter().collect::<Vec<_>>(), spans);
        meta[0] = 65;
        assert_eq!(remote_wanted(&meta, 1).next(), Some(Err(FrameError::Records)));
    }

    #[test]
    fn binds_round_trip() {
        let meta = bind(Mover::Rdma, &[7; 16]);
        assert_eq!(read_bind(&meta), Ok((Mover::Rdma, [7; 16])));
        assert_eq!(read_bind(&meta[..23]), Err(FrameError::Records));
        for at in 0..8 {
            let mut other = meta;
            other[at] = 9;
            assert_eq!(read_bind(&other), Err(FrameError::Records), "byte {at}");
        }
    }

    #[test]
    fn page_records_round_trip() {
        let meta = PageMeta { len: 1 << 20, codec: 2, flags: 3, checksum: u64::MAX - 1 };
        assert_eq!(read_page_record(&page_record(Code::Miss, meta)), Ok((Code::Miss, meta)));
        assert_eq!(read_page_record(&[200; 16]), Err(FrameError::Records));
    }

    proptest! {
        #[test]
        fn bitmaps_round_trip(bits in proptest::collection::vec(any::<bool>(), 0..100)) {
            let mut meta = Vec::new();
            push_bitmap(&mut meta, &bits);
            let mut read = vec![false; bits.len()];
            prop_assert_eq!(read_bitmap(&meta, &mut read), Ok(()));
            prop_assert_eq!(read, bits);
        }

        #[test]
        fn any_meta_is_read_without_panic(meta in proptest::collection::vec(any::<u8>(), 0..200), count in 0..50_u32) {
            let _ = keys(&meta, count).count();
            let _ = wanted(&meta, count).count();
            let _ = offered(&meta, count).count();
            let _ = remote_wanted(&meta, count).count();
            let _ = remote_offered(&meta, count).count();
            read_bind(&meta).ok();
        }
    }
}
