//! LMCache's server, spoken to in its own protocol.
//!
//! Integers are little-endian and of four bytes. A request is: command (1 put, 2 get, 3 exists), length, format, element
//! type, location, four dimensions, then the key, filled up with spaces to 150 bytes. An answer has the same numbers
//! without command and key, but begins with a code: 200 or 400. A put has its page behind it and no answer, so a
//! question whether the last page is there ends the batch. The requests of a batch are sent one behind the other
//! without waiting.

use super::install::Cache;
use super::process::{Process, free_port};
use crate::raw::{read_exact, write_all};
use crate::subject::conns::{Conn, Connected};
use crate::subject::{Kind, Subject};
use anyhow::{Context as _, ensure};
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::TcpStream;

const PUT: u32 = 1;
const GET: u32 = 2;
const EXISTS: u32 = 3;
const SUCCESS: u32 = 200;
const KEY_BYTES: usize = 150;
const REQUEST_BYTES: usize = 36 + KEY_BYTES;
const REPLY_BYTES: usize = 36;
/// A flat run of bytes.
const FORMAT_BINARY: u32 = 4;
const TYPE_UINT8: u32 = 6;
/// Questions under way at once. The server waits for the acknowledgement of one small answer before it sends the next (it
/// leaves Nagle's algorithm on), so that several at once take 40 ms.
const QUESTIONS: usize = 1;

/// LMCache's server from PyPI.
///
/// # Errors
///
/// If it is absent or does not start.
pub(super) fn start(cache: &Cache) -> anyhow::Result<Box<dyn Subject>> {
    let (python, version) = cache.lmcache()?;
    let port = free_port()?;
    let mut command = python.command();
    command.args(["-m", "lmcache.v1.server", "127.0.0.1", &port.to_string()]);
    // As with the others: freed memory is used again.
    command.env("MALLOC_MMAP_THRESHOLD_", "1073741824").env("MALLOC_TRIM_THRESHOLD_", "17179869184");
    let mut process = Process::start(command)?;
    let conns = [process.wait_port(port)?, process.wait_port(port)?];
    Ok(Box::new(Connected {
        name: "lmcache".into(),
        kind: Kind::Peer,
        note: format!("LMCache server {version}; two connections, pipelined, client of our own"),
        servers: vec![process.pid()],
        conns: conns.into_iter().map(|stream| LmcacheConn { stream }).collect(),
        _owner: Some(Box::new(process)),
    }))
}

struct LmcacheConn {
    stream: TcpStream,
}

/// The server deletes nothing, so equal numbers are equal keys in all cells: each page takes the place of an earlier one.
fn request(command: u32, key: &[u8], len: usize) -> anyhow::Result<[u8; REQUEST_BYTES]> {
    let len = u32::try_from(len).context("a page is too large")?;
    let number = key.get(key.len().saturating_sub(16)..).unwrap_or(key);
    let name = format!("bench@1@0@{}@uint8", String::from_utf8_lossy(number));
    let mut out = [b' '; REQUEST_BYTES];
    let words = [command, len, FORMAT_BINARY, TYPE_UINT8, 0, len, 0, 0, 0];
    for (place, word) in out.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    out[36..36 + name.len()].copy_from_slice(name.as_bytes());
    Ok(out)
}

/// Code and length of an answer.
fn decode(reply: &[u8; REPLY_BYTES]) -> (u32, usize) {
    let word = |at: usize| u32::from_le_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
    (word(0), word(4) as usize)
}

impl LmcacheConn {
    fn code(&mut self) -> anyhow::Result<(u32, usize)> {
        let mut reply = [0; REPLY_BYTES];
        self.stream.read_exact(&mut reply).context("read an answer")?;
        Ok(decode(&reply))
    }
}

impl Conn for LmcacheConn {
    fn put(&mut self, _: usize, keys: &[Vec<u8>], pages: &[&[u8]]) -> anyhow::Result<()> {
        let heads = keys.iter().zip(pages).map(|(key, page)| request(PUT, key, page.len()));
        let heads = heads.collect::<anyhow::Result<Vec<_>>>()?;
        let last = keys.last().context("a batch of no pages")?;
        let question = request(EXISTS, last, 0)?;
        let mut pieces = Vec::with_capacity(2 * heads.len() + 1);
        for (head, page) in heads.iter().zip(pages) {
            pieces.push(IoSlice::new(head));
            pieces.push(IoSlice::new(page));
        }
        pieces.push(IoSlice::new(&question));
        write_all(&mut self.stream, &mut pieces)?;
        ensure!(self.code()?.0 == SUCCESS, "a page was not stored");
        Ok(())
    }

    fn get(&mut self, _: usize, keys: &[Vec<u8>], pages: &mut [&mut [u8]]) -> anyhow::Result<()> {
        let requests = keys.iter().map(|key| request(GET, key, 0)).collect::<anyhow::Result<Vec<_>>>()?;
        self.stream.write_all(requests.as_flattened()).context("send requests")?;
        for page in pages {
            let len = page.len();
            let (code, came) = self.code()?;
            ensure!(code == SUCCESS && came == len, "a page is not there: code {code}, {came} bytes");
            read_exact(&mut self.stream, &mut [IoSliceMut::new(page)])?;
        }
        Ok(())
    }

    fn exists(&mut self, keys: &[Vec<u8>]) -> anyhow::Result<()> {
        for keys in keys.chunks(QUESTIONS) {
            let requests =
                keys.iter().map(|key| request(EXISTS, key, 0)).collect::<anyhow::Result<Vec<_>>>()?;
            self.stream.write_all(requests.as_flattened()).context("send requests")?;
            for _ in keys {
                ensure!(self.code()?.0 == SUCCESS, "a page is not there");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_drawn_as_the_server_reads_it() {
        let keys = crate::workload::keys("lm", 0x12);
        let bytes = request(PUT, &keys[0x11], 65_536).unwrap();
        assert_eq!(bytes[..8], [1, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(bytes[20..24], [0, 0, 1, 0], "the first dimension is the length");
        let key = std::str::from_utf8(&bytes[36..]).unwrap();
        assert_eq!(key.trim_end(), "bench@1@0@0000000000000011@uint8");
        assert_eq!(
            decode(&[200, 0, 0, 0, 0, 1].into_iter().chain([0; 30]).collect::<Vec<_>>().try_into().unwrap()),
            (200, 256)
        );
    }
}
