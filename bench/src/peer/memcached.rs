//! memcached, spoken to in its text protocol.
//!
//! A put sends all pages without answers and one question behind them; a get names all keys in one line.

use super::install::Cache;
use super::process::{Process, free_port};
use super::resp::Ahead;
use crate::raw::write_all;
use crate::subject::conns::{Conn, Connected};
use crate::subject::{Kind, Subject};
use anyhow::{Context as _, ensure};
use std::io::{IoSlice, Write as _};
use std::net::TcpStream;
use std::process::Command;

/// Keys in one line; the server refuses much longer ones.
const KEYS_IN_LINE: usize = 24;

/// Sizes of pages that are measured one after the other.
const SIZES: u64 = 4;

/// memcached from the distribution.
///
/// # Errors
///
/// If it is absent or does not start.
pub(super) fn start(cache: &Cache, room_bytes: u64) -> anyhow::Result<Box<dyn Subject>> {
    let program = cache.debian_program("memcached")?;
    let port = free_port()?;
    let mut command = Command::new(program);
    cache.with_libraries(&mut command);
    // Larger pages than 1 MiB have to be allowed.
    command.args([
        "-l",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-U",
        "0",
        "-u",
        "root",
        "-t",
        "2",
        "-I",
        "64m",
    ]);
    // Memory that held pages of one size hardly ever comes back to another.
    command.args(["-m", &((SIZES * room_bytes) >> 20).to_string()]);
    let mut process = Process::start(command)?;
    let mut conns: Vec<MemcachedConn> = [process.wait_port(port)?, process.wait_port(port)?]
        .into_iter()
        .map(|stream| MemcachedConn { stream, reader: Ahead::new() })
        .collect();
    let version = conns[0].ask(b"version\r\n")?;
    Ok(Box::new(Connected {
        name: "memcached".into(),
        kind: Kind::Peer,
        note: format!(
            "memcached {}, two threads; two connections, client of our own",
            version.trim_start_matches("VERSION ")
        ),
        servers: vec![process.pid()],
        conns,
        _owner: Some(Box::new(process)),
    }))
}

struct MemcachedConn {
    stream: TcpStream,
    reader: Ahead,
}

impl MemcachedConn {
    fn ask(&mut self, request: &[u8]) -> anyhow::Result<String> {
        self.stream.write_all(request).context("send a request")?;
        Ok(self.reader.line(&mut self.stream)?.to_owned())
    }

    fn send_gets(&mut self, verb: &[u8], keys: &[Vec<u8>]) -> anyhow::Result<()> {
        let mut request = Vec::with_capacity(keys.len() * 80);
        for keys in keys.chunks(KEYS_IN_LINE) {
            request.extend_from_slice(verb);
            for key in keys {
                request.push(b' ');
                request.extend_from_slice(key);
            }
            request.extend_from_slice(b"\r\n");
        }
        self.stream.write_all(&request).context("send a request")
    }
}

impl Conn for MemcachedConn {
    fn put(&mut self, _: usize, keys: &[Vec<u8>], pages: &[&[u8]]) -> anyhow::Result<()> {
        let mut heads = Vec::with_capacity(keys.len());
        let mut end: &[u8] = b"";
        for (key, page) in keys.iter().zip(pages) {
            let mut head = end.to_vec();
            head.extend_from_slice(b"set ");
            head.extend_from_slice(key);
            head.extend_from_slice(format!(" 0 0 {} noreply\r\n", page.len()).as_bytes());
            heads.push(head);
            end = b"\r\n";
        }
        let mut pieces = Vec::with_capacity(2 * heads.len() + 1);
        for (head, page) in heads.iter().zip(pages) {
            pieces.push(IoSlice::new(head));
            pieces.push(IoSlice::new(page));
        }
        pieces.push(IoSlice::new(b"\r\nmn\r\n"));
        write_all(&mut self.stream, &mut pieces)?;
        let answer = self.reader.line(&mut self.stream)?;
        // A page that was refused is answered in spite of "noreply".
        ensure!(answer == "MN", "a put was answered with {answer:?}");
        Ok(())
    }

    fn get(&mut self, _: usize, keys: &[Vec<u8>], pages: &mut [&mut [u8]]) -> anyhow::Result<()> {
        self.send_gets(b"get", keys)?;
        for (keys, pages) in keys.chunks(KEYS_IN_LINE).zip(pages.chunks_mut(KEYS_IN_LINE)) {
            for (key, page) in keys.iter().zip(pages) {
                let head = self.reader.line(&mut self.stream)?;
                let wanted = format!("VALUE {} 0 {}", String::from_utf8_lossy(key), page.len());
                ensure!(head == wanted, "a page is not there: {head:?}");
                self.reader.fill(&mut self.stream, page)?;
                ensure!(self.reader.line(&mut self.stream)?.is_empty(), "a page has more bytes than it says");
            }
            ensure!(self.reader.line(&mut self.stream)? == "END", "an answer has more pages than keys");
        }
        Ok(())
    }

    fn exists(&mut self, keys: &[Vec<u8>]) -> anyhow::Result<()> {
        // A get of nothing but the head.
        let mut request = Vec::with_capacity(keys.len() * 72);
        for key in keys {
            request.extend_from_slice(b"mg ");
            request.extend_from_slice(key);
            request.extend_from_slice(b"\r\n");
        }
        self.stream.write_all(&request).context("send a request")?;
        for _ in keys {
            let answer = self.reader.line(&mut self.stream)?;
            ensure!(answer.starts_with("HD"), "a page is not there: {answer:?}");
        }
        Ok(())
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        let answer = self.ask(b"flush_all\r\n")?;
        ensure!(answer == "OK", "flush_all was answered with {answer:?}");
        Ok(())
    }
}
