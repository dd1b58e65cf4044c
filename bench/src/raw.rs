//! The limit: what plain sockets carry between two processes on this machine, in the same run.
//!
//! A child process holds one array of fixed slots a connection. No names, no hash, no checksum, no locks: what
//! is left is the kernel's work. Its memory is on huge pages where the kernel allows it.
//!
//! A connection begins with the `u64` size of its array. Then requests follow; integers are little-endian:
//!
//! | bytes | field | meaning |
//! |------:|-------|---------|
//! | 4 | op         | 1 get, 2 put, 3 exists |
//! | 4 | count      | pages, or keys |
//! | 4 | first      | the first slot; the others follow it |
//! | 4 | len        | bytes of a page; exists: bytes of the key list |
//!
//! A put has its pages behind the request; an exists has its key list. The answer is eight bytes, then the pages
//! of a get, or one bit a key of an exists. The exists looks nothing up: it is a round trip with the same bytes.

use crate::pages::Pages;
use anyhow::{Context as _, ensure};
use std::io::{BufRead as _, BufReader, IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const GET: usize = 1;
const PUT: usize = 2;
const EXISTS: usize = 3;
const REQUEST_BYTES: usize = 16;
const REPLY_BYTES: usize = 8;
/// Pieces of one vectored call; Linux takes at most 1024.
const PIECES: usize = 512;

/// Runs the server until its standard input ends; prints its address first.
pub(crate) fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("bind the raw server")?;
    println!("{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                if let Err(error) = serve_connection(stream) {
                    eprintln!("raw server: {error:#}");
                }
            });
        }
    });
    // The parent holds the other end: this process must not outlive it.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).context("wait for the parent's end")?;
    Ok(())
}

fn serve_connection(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut size = [0; 8];
    stream.read_exact(&mut size)?;
    // Not zero, so that every page of memory is there before the first measurement.
    let mut arena = Pages::filled(usize::try_from(u64::from_le_bytes(size))?, 1)?;
    stream.write_all(&[0; REPLY_BYTES])?;
    let mut keys = Vec::new();
    let mut request = [0; REQUEST_BYTES];
    loop {
        match stream.read_exact(&mut request) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let [op, count, first, len] = decode(&request);
        if op == EXISTS {
            keys.resize(len, 0);
            stream.read_exact(&mut keys)?;
            let mut reply = vec![0xff; REPLY_BYTES + count.div_ceil(8)];
            reply[..REPLY_BYTES].fill(0);
            stream.write_all(&reply)?;
            continue;
        }
        let pages = arena.get_mut(first * len..(first + count) * len).context("no such slots")?;
        if op == GET {
            let mut pieces = vec![IoSlice::new(&[0; REPLY_BYTES])];
            pieces.extend(pages.chunks_exact(len).map(IoSlice::new));
            write_all(&mut stream, &mut pieces)?;
        } else {
            let mut pieces: Vec<_> = pages.chunks_exact_mut(len).map(IoSliceMut::new).collect();
            read_exact(&mut stream, &mut pieces)?;
            stream.write_all(&[0; REPLY_BYTES])?;
        }
    }
}

fn decode(request: &[u8; REQUEST_BYTES]) -> [usize; 4] {
    let (words, _) = request.as_chunks::<4>();
    let mut out = [0; 4];
    for (value, word) in out.iter_mut().zip(words) {
        *value = u32::from_le_bytes(*word) as usize;
    }
    out
}

/// The child process that serves raw connections; it ends with this handle.
pub(crate) struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Server {
    /// Starts this program again as a raw server.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.arg("raw-server");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("read the raw server's address")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).context("read the raw server's address")?;
        let addr = line.trim().parse().context("read the raw server's address")?;
        Ok(Self { child, addr })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connects with an array of `bytes` on the other side.
    pub(crate) fn connect(&self, bytes: usize) -> anyhow::Result<Conn> {
        Conn::new(self.addr, bytes)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; there is nothing to do about either failure.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A connection of the client.
pub(crate) struct Conn {
    stream: TcpStream,
    /// What an exists sends: a list of keys, each with its length in two bytes before it.
    key_list: Vec<u8>,
}

impl Conn {
    /// Connects to a raw server with an array of `bytes` on the other side.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub(crate) fn new(addr: SocketAddr, bytes: usize) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(addr).context("connect to the raw server")?;
        stream.set_nodelay(true)?;
        stream.write_all(&(bytes as u64).to_le_bytes())?;
        stream.read_exact(&mut [0; REPLY_BYTES]).context("wait for the raw server's memory")?;
        Ok(Self { stream, key_list: Vec::new() })
    }

    /// Reads slots, from `first` on, into pages of equal length.
    ///
    /// # Errors
    ///
    /// If the connection fails.
    pub(crate) fn get(&mut self, first: usize, pages: &mut [&mut [u8]]) -> anyhow::Result<()> {
        self.stream.write_all(&encode(GET, pages.len(), first, pages[0].len())?)?;
        let mut reply = [0; REPLY_BYTES];
        let mut pieces = vec![IoSliceMut::new(&mut reply)];
        pieces.extend(pages.iter_mut().map(|page| IoSliceMut::new(page)));
        read_exact(&mut self.stream, &mut pieces)
    }

    /// Writes pages of equal length into slots, from `first` on.
    ///
    /// # Errors
    ///
    /// If the connection fails.
    pub(crate) fn put(&mut self, first: usize, pages: &[&[u8]]) -> anyhow::Result<()> {
        let request = encode(PUT, pages.len(), first, pages[0].len())?;
        let mut pieces = vec![IoSlice::new(&request)];
        pieces.extend(pages.iter().map(|page| IoSlice::new(page)));
        write_all(&mut self.stream, &mut pieces)?;
        Ok(self.stream.read_exact(&mut [0; REPLY_BYTES])?)
    }

    /// Makes the list that [`exists`](Self::exists) sends, so that making it is not measured.
    pub(crate) fn prepare_exists(&mut self, keys: &[Vec<u8>]) {
        self.key_list.clear();
        for key in keys {
            let len = u16::try_from(key.len()).unwrap_or(u16::MAX);
            self.key_list.extend_from_slice(&len.to_le_bytes());
            self.key_list.extend_from_slice(key);
        }
    }

    /// A round trip with the bytes of the list of so many keys.
    ///
    /// # Errors
    ///
    /// If the connection fails.
    pub(crate) fn exists(&mut self, count: usize) -> anyhow::Result<()> {
        let request = encode(EXISTS, count, 0, self.key_list.len())?;
        write_all(&mut self.stream, &mut [IoSlice::new(&request), IoSlice::new(&self.key_list)])?;
        let mut reply = vec![0; REPLY_BYTES + count.div_ceil(8)];
        self.stream.read_exact(&mut reply)?;
        ensure!(reply[REPLY_BYTES..].iter().all(|&byte| byte == 0xff), "the raw server lost keys");
        Ok(())
    }
}

/// Nanoseconds since `start`.
pub(crate) fn elapsed_nanos(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn encode(op: usize, count: usize, first: usize, len: usize) -> anyhow::Result<[u8; REQUEST_BYTES]> {
    let mut out = [0; REQUEST_BYTES];
    let words = [u32::try_from(op)?, u32::try_from(count)?, u32::try_from(first)?, u32::try_from(len)?];
    for (bytes, word) in out.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    Ok(out)
}

/// Writes all pieces.
///
/// # Errors
///
/// If the connection fails.
pub(crate) fn write_all(stream: &mut TcpStream, mut pieces: &mut [IoSlice<'_>]) -> anyhow::Result<()> {
    while !pieces.is_empty() {
        let now = pieces.len().min(PIECES);
        let wrote = stream.write_vectored(&pieces[..now]).context("write to a connection")?;
        ensure!(wrote > 0, "a connection takes no more");
        IoSlice::advance_slices(&mut pieces, wrote);
    }
    Ok(())
}

/// Fills all pieces.
///
/// # Errors
///
/// If the connection fails or ends.
pub(crate) fn read_exact(stream: &mut TcpStream, mut pieces: &mut [IoSliceMut<'_>]) -> anyhow::Result<()> {
    while !pieces.is_empty() {
        let now = pieces.len().min(PIECES);
        let got = stream.read_vectored(&mut pieces[..now]).context("read from a connection")?;
        ensure!(got > 0, "a connection ended");
        IoSliceMut::advance_slices(&mut pieces, got);
    }
    Ok(())
}
