//! Frames of the data plane.
//!
//! A frame is a 64-byte header, then `meta_len` bytes of records ([`crate::records`]), then `body_len` bytes of
//! pages. All integers are little-endian.
//!
//! | offset | bytes | field | meaning |
//! |-------:|------:|-------|---------|
//! | 0  | 4  | magic       | `4d 4b 46 31` ("MKF1") |
//! | 4  | 1  | version     | layout of this header: 1 |
//! | 5  | 1  | op          | [`Op`]; a reply has bit 7 set |
//! | 6  | 2  | flags       | [`FLAG_EXACT`], [`FLAG_PREFIX`], [`FLAG_DIRECT`], [`FLAG_REMOTE`] |
//! | 8  | 8  | request_id  | chosen by the client, returned in every reply |
//! | 16 | 16 | space       | the space's identity; zero in replies |
//! | 32 | 4  | count       | records in the meta section |
//! | 36 | 4  | meta_len    | bytes of the meta section |
//! | 40 | 8  | body_len    | bytes after the meta section |
//! | 48 | 4  | deadline_ms | request: time left for the whole op; reply: 0 |
//! | 52 | 2  | status      | reply: [`Code`] of the whole request; request: 0 |
//! | 54 | 6  | reserved    | zero; other values are refused |
//! | 60 | 4  | check       | low half of XXH3-64 over the meta section, seeded with XXH3-64 (seed 0) over bytes 0..60 |
//!
//! # Ops
//!
//! | op | request meta | request body | reply meta | reply body |
//! |----|--------------|--------------|------------|------------|
//! | exists   | keys | – | presence bitmap | – |
//! | touch    | keys | – | presence bitmap | – |
//! | delete   | keys | – | bitmap of what was there | – |
//! | get      | wanted pages | – | page records | the found pages, in order, without gaps |
//! | put      | offered pages | – | one verdict byte a page | – |
//! | put, direct | offered pages | for each page, in order: page record, bytes | one verdict byte a page | – |
//! | put-data | – (count = pages that follow) | for each wanted page, in order: page record, bytes | one verdict byte a page | – |
//! | ping     | – | – | – | – |
//! | bind     | mover, token | – | depends on the mover | – |
//! | get, remote, rdma | wanted pages with spans | – | page records | – |
//! | get, remote, shm  | wanted pages | – | page records, then a `u64` offset a page | – |
//! | put, remote | offered pages with records and spans | – | one verdict byte a page | – |
//! | release  | – | – | no reply | |
//!
//! A put is an offer; the server answers which pages it wants ([`Code::Want`]) and holds a slot for each. The
//! client then sends one put-data frame with the same request id and exactly the wanted pages. If it wants
//! none, the op is over. A client that cannot go on closes the connection, and the slots are free again.
//!
//! With [`FLAG_DIRECT`] a put brings all its pages with the offer, which saves the round trip. The server reads over the
//! bytes of pages that it does not want. A client does so while its pages are seldom there already.
//!
//! A bind ties a payload mover ([`Mover`]) to the connection. From then on requests may have [`FLAG_REMOTE`]: their pages
//! move beside the connection, between the server's memory and the spans ([`crate::records`]) that the request names
//! (rdma; put over shm), or by the client's own reading of the memory that it shares with the server (get over shm; the
//! server keeps those pages where they are until a release with the same request id, or any later request on this
//! connection). The meaning of get and put stays the same: one round trip, verdicts and records as without the flag.
//!
//! Requests on one connection may follow each other without waiting (a put-data frame comes after its
//! verdicts, with any frames between them); the server answers them in order. A reply whose status is not [`Code::Ok`] has no
//! records and no body; its meta section is a text for people.

use twox_hash::XxHash3_64;

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 64;
/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"MKF1";
/// Layout version in byte 4.
pub const VERSION: u8 = 1;
/// Get: a page whose length differs from the wanted length is [`Code::SizeMismatch`] instead of being sent.
pub const FLAG_EXACT: u16 = 1;
/// Exists: bits after the first absent key are zero, present or not.
pub const FLAG_PREFIX: u16 = 2;

/// Put: the pages follow the offer at once. Only on sessions whose sides both have [`CAPABILITY_DIRECT`].
pub const FLAG_DIRECT: u16 = 4;
/// What a side that knows [`FLAG_DIRECT`] says in the session's handshake.
pub const CAPABILITY_DIRECT: &str = "put-direct";

/// Get and put: the pages move beside the connection, by the mover that is bound to it.
pub const FLAG_REMOTE: u16 = 8;
/// What a side that knows [`Mover::Shm`] says in the session's handshake.
pub const CAPABILITY_SHM: &str = "shm";
/// What a side that knows [`Mover::Rdma`] says in the session's handshake.
pub const CAPABILITY_RDMA: &str = "rdma";

/// How pages move beside a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mover {
    /// Through memory that both processes map; the connection is a Unix socket.
    Shm = 1,
    /// By RDMA that the server issues.
    Rdma = 2,
}

impl Mover {
    /// Reads a mover from the wire.
    #[must_use]
    pub fn from_wire(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Shm),
            2 => Some(Self::Rdma),
            _ => None,
        }
    }
}

const KNOWN_FLAGS: u16 = FLAG_EXACT | FLAG_PREFIX | FLAG_DIRECT | FLAG_REMOTE;
const REPLY_BIT: u8 = 0x80;

/// What a frame asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Which keys are present.
    Exists = 1,
    /// Read pages.
    Get = 2,
    /// Offer pages.
    Put = 3,
    /// Send the pages that an offer's answer asked for.
    PutData = 4,
    /// Remove pages.
    Delete = 5,
    /// Mark pages as just used.
    Touch = 6,
    /// Nothing: measures the way and keeps it open.
    Ping = 7,
    /// Ties a payload mover to the connection.
    Bind = 8,
    /// The pages of an earlier get over shared memory are read. Has no reply.
    Release = 9,
}

impl Op {
    fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Exists,
            2 => Self::Get,
            3 => Self::Put,
            4 => Self::PutData,
            5 => Self::Delete,
            6 => Self::Touch,
            7 => Self::Ping,
            8 => Self::Bind,
            9 => Self::Release,
            _ => return None,
        })
    }
}

/// What became of a request, or of one page of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// Done: found, or stored.
    Ok = 0,
    /// The page is absent.
    Miss = 1,
    /// Put: the page was there already; counts as success.
    Exists = 2,
    /// Put, verdict on an offer: send it.
    Want = 3,
    /// Get: the page has another length than wanted, or is larger than the destination.
    SizeMismatch = 4,
    /// Put: larger than the server's largest page, or empty.
    TooLarge = 5,
    /// The store or a queue is full; try again later.
    Busy = 6,
    /// The bytes do not match their checksum; nothing was stored.
    Corrupt = 7,
    /// The space was not opened since the server's start.
    UnknownSpace = 8,
    /// The identity has no right to do this.
    Denied = 9,
    /// The frame or its records make no sense; the server closes the connection.
    Malformed = 10,
    /// The deadline had passed.
    Expired = 11,
    /// The server is stopping.
    Stopping = 12,
    /// A frame exceeds a limit of the session; the server closes the connection.
    OverLimit = 13,
}

impl Code {
    /// Reads a code from the wire.
    #[must_use]
    pub fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Ok,
            1 => Self::Miss,
            2 => Self::Exists,
            3 => Self::Want,
            4 => Self::SizeMismatch,
            5 => Self::TooLarge,
            6 => Self::Busy,
            7 => Self::Corrupt,
            8 => Self::UnknownSpace,
            9 => Self::Denied,
            10 => Self::Malformed,
            11 => Self::Expired,
            12 => Self::Stopping,
            13 => Self::OverLimit,
            _ => return None,
        })
    }
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is asked or answered.
    pub op: Op,
    /// Whether this is the answer.
    pub reply: bool,
    /// [`FLAG_EXACT`] and others.
    pub flags: u16,
    /// Ties answers to requests.
    pub request_id: u64,
    /// The space of a request.
    pub space: memkv_core::SpaceId,
    /// Records in the meta section (put-data: pages in the body).
    pub count: u32,
    /// Bytes of the meta section.
    pub meta_len: u32,
    /// Bytes of the body.
    pub body_len: u64,
    /// Time left, in milliseconds; requests only.
    pub deadline_ms: u32,
    /// Outcome of the whole request; replies only.
    pub status: Code,
    check: u32,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first four bytes are something else.
    #[error("not a memkv frame (bad magic)")]
    Magic,
    /// A header layout of another release.
    #[error("frame layout version {0} is not known; this side speaks version {VERSION}")]
    Version(u8),
    /// An op of another release.
    #[error("op {0} is not known")]
    Op(u8),
    /// A status of another release.
    #[error("status {0} is not known")]
    Status(u16),
    /// A flag or a reserved byte that must be zero is not.
    #[error("a reserved flag or byte is set")]
    Reserved,
    /// The header or the meta section was altered on its way.
    #[error("the header check does not match: bytes were altered or the stream is out of step")]
    Check,
    /// The meta section does not hold the promised records.
    #[error("the records do not fit the frame")]
    Records,
    /// A key with a wrong length.
    #[error("{0}")]
    Key(#[from] memkv_core::KeyError),
    /// Larger than the session's limits allow.
    #[error("the frame exceeds a limit: {0}")]
    OverLimit(&'static str),
}

impl FrameError {
    /// The code that tells the peer about this error.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::OverLimit(_) => Code::OverLimit,
            Self::Magic
            | Self::Version(_)
            | Self::Op(_)
            | Self::Status(_)
            | Self::Reserved
            | Self::Check
            | Self::Records
            | Self::Key(_) => Code::Malformed,
        }
    }
}

impl Header {
    /// A request; set `flags` and `deadline_ms` as needed.
    #[must_use]
    pub fn request(op: Op, request_id: u64, space: memkv_core::SpaceId, count: u32) -> Self {
        Self {
            op,
            reply: false,
            flags: 0,
            request_id,
            space,
            count,
            meta_len: 0,
            body_len: 0,
            deadline_ms: 0,
            status: Code::Ok,
            check: 0,
        }
    }

    /// The answer to a request.
    #[must_use]
    pub fn reply_to(request: &Self, status: Code, count: u32) -> Self {
        Self {
            reply: true,
            status,
            ..Self::request(request.op, request.request_id, Default::default(), count)
        }
    }

    /// Writes header and check for `meta`; sets `meta_len` from it.
    ///
    /// # Panics
    ///
    /// If `meta` has 4 GiB or more. Senders keep to `frame_meta_bytes_max`, so this is a bug in the sender.
    #[must_use]
    pub fn encode(&self, meta: &[u8]) -> [u8; HEADER_BYTES] {
        let meta_len = u32::try_from(meta.len()).expect("senders keep meta sections below their limit");
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = self.op as u8 | if self.reply { REPLY_BIT } else { 0 };
        out[6..8].copy_from_slice(&self.flags.to_le_bytes());
        out[8..16].copy_from_slice(&self.request_id.to_le_bytes());
        out[16..32].copy_from_slice(&self.space.0);
        out[32..36].copy_from_slice(&self.count.to_le_bytes());
        out[36..40].copy_from_slice(&meta_len.to_le_bytes());
        out[40..48].copy_from_slice(&self.body_len.to_le_bytes());
        out[48..52].copy_from_slice(&self.deadline_ms.to_le_bytes());
        out[52..54].copy_from_slice(&(self.status as u16).to_le_bytes());
        let check = check_of(&out, meta);
        out[60..].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a header. The check needs the meta section: call [`Header::verify`] once that is there, and trust no
    /// field but `meta_len` before.
    ///
    /// # Errors
    ///
    /// [`FrameError`] says what is wrong; the stream cannot be used any more.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        if bytes[..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        if bytes[4] != VERSION {
            return Err(FrameError::Version(bytes[4]));
        }
        let op = Op::from_wire(bytes[5] & !REPLY_BIT).ok_or(FrameError::Op(bytes[5]))?;
        let flags = u16::from_le_bytes(take(bytes, 6));
        if flags & !KNOWN_FLAGS != 0 || bytes[54..60] != [0; 6] {
            return Err(FrameError::Reserved);
        }
        let status = u16::from_le_bytes(take(bytes, 52));
        let code = u8::try_from(status).ok().and_then(Code::from_wire);
        Ok(Self {
            op,
            reply: bytes[5] & REPLY_BIT != 0,
            flags,
            request_id: u64::from_le_bytes(take(bytes, 8)),
            space: memkv_core::SpaceId(take(bytes, 16)),
            count: u32::from_le_bytes(take(bytes, 32)),
            meta_len: u32::from_le_bytes(take(bytes, 36)),
            body_len: u64::from_le_bytes(take(bytes, 40)),
            deadline_ms: u32::from_le_bytes(take(bytes, 48)),
            status: code.ok_or(FrameError::Status(status))?,
            check: u32::from_le_bytes(take(bytes, 60)),
        })
    }

    /// Checks that header and meta section arrived as they were sent.
    ///
    /// # Errors
    ///
    /// [`FrameError::Check`] if not.
    pub fn verify(&self, bytes: &[u8; HEADER_BYTES], meta: &[u8]) -> Result<(), FrameError> {
        if check_of(bytes, meta) == self.check { Ok(()) } else { Err(FrameError::Check) }
    }
}

/// The `N` bytes at `at`; callers stay inside the header.
fn take<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn check_of(header: &[u8; HEADER_BYTES], meta: &[u8]) -> u32 {
    // Two one-shot hashes are several times cheaper than one streaming hash for the small frames of `exists`.
    let head = XxHash3_64::oneshot(&header[..60]);
    let hash = XxHash3_64::oneshot_with_seed(head, meta);
    u32::try_from(hash & u64::from(u32::MAX)).expect("masked to 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_core::SpaceId;
    use proptest::prelude::*;

    fn sample() -> Header {
        let mut header = Header::request(Op::Get, 0x0102_0304, SpaceId([9; 16]), 3);
        header.flags = FLAG_EXACT;
        header.body_len = 1 << 40;
        header.deadline_ms = 1500;
        header
    }

    #[test]
    fn a_header_round_trips() {
        let bytes = sample().encode(b"meta");
        let header = Header::decode(&bytes).unwrap();
        assert_eq!(header.verify(&bytes, b"meta"), Ok(()));
        assert_eq!(header, Header { meta_len: 4, check: header.check, ..sample() });
        let reply = Header::reply_to(&header, Code::Busy, 0);
        let bytes = reply.encode(b"");
        let decoded = Header::decode(&bytes).unwrap();
        assert!(decoded.reply && decoded.status == Code::Busy && decoded.request_id == header.request_id);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = sample().encode(b"some meta");
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let outcome = Header::decode(&bytes).and_then(|header| header.verify(&bytes, b"some meta"));
            assert!(outcome.is_err(), "bit {bit}");
        }
        let header = Header::decode(&good).unwrap();
        assert_eq!(header.verify(&good, b"some mete"), Err(FrameError::Check));
    }

    #[test]
    fn codes_and_ops_round_trip() {
        for value in 0..=u8::MAX {
            if let Some(code) = Code::from_wire(value) {
                assert_eq!(code as u8, value);
            }
            if let Some(op) = Op::from_wire(value) {
                assert_eq!(op as u8, value);
            }
        }
        assert_eq!(Code::from_wire(14), None);
        assert_eq!(Op::from_wire(0), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_understood(bytes: [u8; HEADER_BYTES]) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert!(header.verify(&bytes, b"").is_err() || header.meta_len == 0);
            }
        }
    }
}
