//! The data plane, byte by byte: a small blocking client that can also send what no client should.

use crate::{is_small, random};
use anyhow::{Context as _, ensure};
use memkv_core::page::{PageHasher, key_digest};
use memkv_core::{Key, PageMeta, SpaceId};
use memkv_transport::auth::SessionKey;
use memkv_transport::frame::{Code, FLAG_DIRECT, FLAG_EXACT, HEADER_BYTES, Header, Op};
use memkv_transport::handshake::{Attach, CHALLENGE_BYTES, WELCOME_BYTES, read_status};
use memkv_transport::records;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Deadline that requests carry.
const DEADLINE_MS: u32 = 5_000;

/// The checksum of a page under a key.
///
/// # Panics
///
/// If the key's length is wrong.
#[must_use]
pub fn checksum(space: SpaceId, key: &[u8], page: &[u8]) -> u64 {
    let digest = Key::new(key).map_or(0, |key| key_digest(space, key));
    PageHasher::oneshot(digest, page)
}

/// A whole frame.
#[must_use]
pub fn frame(mut header: Header, meta: &[u8], body: &[u8]) -> Vec<u8> {
    header.body_len = body.len() as u64;
    if !header.reply {
        header.deadline_ms = if is_small() { 6 * DEADLINE_MS } else { DEADLINE_MS };
    }
    let mut out = header.encode(meta).to_vec();
    out.extend_from_slice(meta);
    out.extend_from_slice(body);
    out
}

/// A key list, without any check of the keys.
#[must_use]
pub fn key_list(keys: &[&[u8]]) -> Vec<u8> {
    let mut meta = Vec::new();
    for key in keys {
        push_raw_key(&mut meta, key);
    }
    meta
}

fn push_raw_key(meta: &mut Vec<u8>, key: &[u8]) {
    let len = u16::try_from(key.len()).unwrap_or(u16::MAX);
    meta.extend_from_slice(&len.to_le_bytes());
    meta.extend_from_slice(key);
}

/// An exists frame.
#[must_use]
pub fn exists_frame(id: u64, space: SpaceId, keys: &[&[u8]]) -> Vec<u8> {
    frame(Header::request(Op::Exists, id, space, count(keys.len())), &key_list(keys), &[])
}

/// A get frame: every key with the room at the reader.
#[must_use]
pub fn get_frame(id: u64, space: SpaceId, wanted: &[(&[u8], u32)], exact: bool) -> Vec<u8> {
    let mut meta = Vec::new();
    for (key, room) in wanted {
        meta.extend_from_slice(&room.to_le_bytes());
        push_raw_key(&mut meta, key);
    }
    let mut header = Header::request(Op::Get, id, space, count(wanted.len()));
    header.flags = if exact { FLAG_EXACT } else { 0 };
    frame(header, &meta, &[])
}

/// A put frame: the offer of pages of these lengths.
#[must_use]
pub fn offer_frame(id: u64, space: SpaceId, offers: &[(&[u8], u32)]) -> Vec<u8> {
    let mut meta = Vec::new();
    for (key, len) in offers {
        meta.extend_from_slice(&len.to_le_bytes());
        meta.extend_from_slice(&0_u32.to_le_bytes());
        push_raw_key(&mut meta, key);
    }
    frame(Header::request(Op::Put, id, space, count(offers.len())), &meta, &[])
}

/// A put-data frame of whole pages, with right checksums.
#[must_use]
pub fn data_frame(id: u64, space: SpaceId, pages: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, page) in pages {
        let meta =
            PageMeta { len: count(page.len()), checksum: checksum(space, key, page), codec: 0, flags: 0 };
        body.extend_from_slice(&records::page_record(Code::Ok, meta));
        body.extend_from_slice(page);
    }
    frame(Header::request(Op::PutData, id, space, count(pages.len())), &[], &body)
}

/// A put frame that brings its pages with the offer.
#[must_use]
pub fn direct_frame(id: u64, space: SpaceId, pages: &[(&[u8], &[u8])]) -> Vec<u8> {
    let offers: Vec<_> = pages.iter().map(|(key, page)| (*key, count(page.len()))).collect();
    let (offer, data) = (offer_frame(id, space, &offers), data_frame(id, space, pages));
    let mut header = Header::request(Op::Put, id, space, count(pages.len()));
    header.flags = FLAG_DIRECT;
    frame(header, &offer[HEADER_BYTES..], &data[HEADER_BYTES..])
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// One reply frame.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its header.
    pub header: Header,
    /// Its records, or a text for people.
    pub meta: Vec<u8>,
    /// Its pages.
    pub body: Vec<u8>,
}

impl Reply {
    /// The text of a refusal.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.meta).into_owned()
    }

    /// One verdict per page.
    #[must_use]
    pub fn verdicts(&self) -> Vec<Option<Code>> {
        self.meta.iter().map(|&byte| Code::from_wire(byte)).collect()
    }

    /// The page records of a get with the bytes of the pages that came along.
    ///
    /// # Errors
    ///
    /// If records and body do not fit each other.
    pub fn pages(&self) -> anyhow::Result<Vec<(Code, PageMeta, Vec<u8>)>> {
        let mut body = &self.body[..];
        let mut out = Vec::new();
        let (chunks, rest) = self.meta.as_chunks::<{ records::PAGE_RECORD_BYTES }>();
        ensure!(rest.is_empty(), "half a page record");
        for record in chunks {
            let (code, meta) = records::read_page_record(record)?;
            let len = if code == Code::Ok { meta.len as usize } else { 0 };
            let (page, rest) = body.split_at_checked(len).context("the body is too short")?;
            out.push((code, meta, page.to_vec()));
            body = rest;
        }
        ensure!(body.is_empty(), "the body is too long");
        Ok(out)
    }
}

/// A data connection.
#[derive(Debug)]
pub struct DataConn {
    /// The socket, for whatever a test wants to do to it.
    pub stream: TcpStream,
    next_id: u64,
}

impl DataConn {
    /// Joins a session.
    ///
    /// # Errors
    ///
    /// If the server refuses.
    pub fn attach(addr: SocketAddr, session_id: [u8; 16], key: &SessionKey) -> anyhow::Result<Self> {
        let mut stream = dial(addr)?;
        let attach = Attach { session_id, client_nonce: random() };
        stream.write_all(&attach.encode()).context("send the attach")?;
        let mut challenge = [0; CHALLENGE_BYTES];
        stream.read_exact(&mut challenge).context("read the challenge")?;
        stream.write_all(&attach.answer(key, &challenge)?).context("send the proof")?;
        let mut welcome = [0; WELCOME_BYTES];
        stream.read_exact(&mut welcome).context("read the welcome")?;
        read_status(&welcome)?;
        Ok(Self { stream, next_id: 1 })
    }

    /// A fresh request id.
    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Sends any bytes.
    ///
    /// # Errors
    ///
    /// If the connection is broken.
    pub fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(bytes).context("send")
    }

    /// Reads one reply.
    ///
    /// # Errors
    ///
    /// If the connection ends or the bytes are not a reply.
    pub fn reply(&mut self) -> anyhow::Result<Reply> {
        let mut bytes = [0; HEADER_BYTES];
        self.stream.read_exact(&mut bytes).context("read the header")?;
        let header = Header::decode(&bytes)?;
        ensure!(header.meta_len < 64 << 20 && header.body_len < 1 << 30, "an absurd reply: {header:?}");
        let mut meta = vec![0; header.meta_len as usize];
        self.stream.read_exact(&mut meta).context("read the meta section")?;
        header.verify(&bytes, &meta)?;
        ensure!(header.reply, "not a reply: {header:?}");
        let mut body = vec![0; usize::try_from(header.body_len)?];
        self.stream.read_exact(&mut body).context("read the body")?;
        Ok(Reply { header, meta, body })
    }

    /// Sends bytes and reads one reply.
    ///
    /// # Errors
    ///
    /// If the connection breaks.
    pub fn call(&mut self, bytes: &[u8]) -> anyhow::Result<Reply> {
        self.send(bytes)?;
        self.reply()
    }

    /// Which keys are present.
    ///
    /// # Errors
    ///
    /// If the connection breaks or the server refuses.
    pub fn exists(&mut self, space: SpaceId, keys: &[&[u8]]) -> anyhow::Result<Vec<bool>> {
        let id = self.id();
        let reply = self.call(&exists_frame(id, space, keys))?;
        ensure!(reply.header.status == Code::Ok, "{:?}: {}", reply.header.status, reply.text());
        let mut bits = vec![false; keys.len()];
        records::read_bitmap(&reply.meta, &mut bits)?;
        Ok(bits)
    }

    /// Reads one page that should have `len` bytes.
    ///
    /// # Errors
    ///
    /// If the connection breaks or the server refuses.
    pub fn get(&mut self, space: SpaceId, key: &[u8], len: u32) -> anyhow::Result<(Code, Vec<u8>)> {
        let id = self.id();
        let reply = self.call(&get_frame(id, space, &[(key, len)], true))?;
        ensure!(reply.header.status == Code::Ok, "{:?}: {}", reply.header.status, reply.text());
        let mut pages = reply.pages()?;
        ensure!(pages.len() == 1, "one key, {} records", pages.len());
        let (code, meta, page) = pages.remove(0);
        if code == Code::Ok {
            ensure!(meta.checksum == checksum(space, key, &page), "the checksum does not match the bytes");
        }
        Ok((code, page))
    }

    /// Offers one page and sends it if it is wanted; returns the last verdict.
    ///
    /// # Errors
    ///
    /// If the connection breaks or the server refuses.
    pub fn put(&mut self, space: SpaceId, key: &[u8], page: &[u8]) -> anyhow::Result<Code> {
        let id = self.id();
        let verdict = self.call(&offer_frame(id, space, &[(key, count(page.len()))]))?.single_verdict()?;
        if verdict != Code::Want {
            return Ok(verdict);
        }
        self.call(&data_frame(id, space, &[(key, page)]))?.single_verdict()
    }

    /// Waits for the server to close the connection; returns what came before.
    ///
    /// # Errors
    ///
    /// If it stays open.
    pub fn read_to_close(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(bytes),
            Err(error) => Err(error).context("the server did not close the connection"),
        }
    }
}

impl Reply {
    /// The verdict on the only page; a refusal of the whole request counts as the page's.
    ///
    /// # Errors
    ///
    /// If there is not exactly one verdict.
    pub fn single_verdict(&self) -> anyhow::Result<Code> {
        if self.header.status != Code::Ok {
            return Ok(self.header.status);
        }
        match self.verdicts()[..] {
            [Some(code)] => Ok(code),
            ref other => anyhow::bail!("expected one verdict, got {other:?}"),
        }
    }
}

/// A plain connection with timeouts.
///
/// # Errors
///
/// If nobody listens.
pub fn dial(addr: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE).context("connect to the data port")?;
    stream.set_read_timeout(Some(PATIENCE)).context("set the read timeout")?;
    stream.set_write_timeout(Some(PATIENCE)).context("set the write timeout")?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    Ok(stream)
}
