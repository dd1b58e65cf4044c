//! A TCP proxy between a client and a server that does what networks do: delay, stall, slow down, cut, flip a bit. And
//! what a bad server does: send pages that are not those that were put.
//!
//! Faults hit data connections only (those that begin with the data plane's preface), so that a session opens
//! undisturbed; only [`Faults::dark`] hits everything. Offsets count a connection's bytes in one direction.

use anyhow::Context as _;
use memkv_transport::frame::{HEADER_BYTES, Header};
use memkv_transport::handshake::{CHALLENGE_BYTES, PREFACE, WELCOME_BYTES};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// What happens to the bytes of every data connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Waits so long before each piece is passed on.
    pub delay: Duration,
    /// Passes nothing on while set; the connection stays open.
    pub stall: bool,
    /// Closes the connection after so many bytes of one direction.
    pub cut: Option<(Way, u64)>,
    /// Flips the lowest bit of the byte at an offset of one direction.
    pub flip: Option<(Way, u64)>,
    /// Passes so many bytes a second in one direction of each connection.
    pub rate: Option<(Way, u64)>,
    /// Flips the first bit of the pages of every reply. All else about the replies is right.
    pub lie: bool,
    /// Passes nothing on, of any connection; new ones are taken and never answered.
    pub dark: bool,
}

#[derive(Debug, Default)]
struct Shared {
    faults: Mutex<Faults>,
    changed: Condvar,
    stopped: AtomicBool,
    data_connections: AtomicU64,
    flips: AtomicU64,
    /// Bytes of data connections that were passed on, up and down.
    passed: [AtomicU64; 2],
}

/// A running proxy; new connections are refused once it goes away.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts a proxy in front of `target`.
    ///
    /// # Errors
    ///
    /// If no port is free.
    pub fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind the proxy")?;
        let addr = listener.local_addr().context("find the proxy's port")?;
        let shared = Arc::new(Shared::default());
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { return };
                // A server that is gone shows as a closed connection, as it would without the proxy.
                let Ok(server) = TcpStream::connect(target) else { continue };
                pair(&client, &server, &accepting);
            }
        });
        Ok(Self { addr, shared })
    }

    /// Where the client connects.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Sets the faults of all data connections, open ones included.
    pub fn set(&self, faults: Faults) {
        *self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
        self.shared.changed.notify_all();
    }

    /// Data connections so far.
    #[must_use]
    pub fn data_connections(&self) -> u64 {
        self.shared.data_connections.load(Ordering::SeqCst)
    }

    /// Bytes of data connections passed on so far.
    #[must_use]
    pub fn passed(&self, way: Way) -> u64 {
        self.shared.passed[way as usize].load(Ordering::SeqCst)
    }

    /// Bits flipped so far.
    #[must_use]
    pub fn flips(&self) -> u64 {
        self.shared.flips.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.set(Faults::default());
        // Wakes the accepting thread; nobody is left to read an error.
        TcpStream::connect(self.addr).ok();
    }
}

fn pair(client: &TcpStream, server: &TcpStream, shared: &Arc<Shared>) {
    let is_data = Arc::new(AtomicBool::new(false));
    for (from, to, way) in [(client, server, Way::Up), (server, client, Way::Down)] {
        let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { return };
        to.set_nodelay(true).ok();
        let (shared, is_data) = (shared.clone(), is_data.clone());
        std::thread::spawn(move || {
            pump(&from, &to, way, &shared, &is_data);
            // The other side may have closed already.
            from.shutdown(Shutdown::Both).ok();
            to.shutdown(Shutdown::Both).ok();
        });
    }
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, way: Way, shared: &Shared, is_data: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    let mut passed = 0_u64;
    let mut replies = Replies::default();
    loop {
        // Small pieces while they are slowed down, so that none is held back for long.
        let most = if current(shared).rate.is_some() { 4 << 10 } else { buffer.len() };
        let Ok(got @ 1..) = from.read(&mut buffer[..most]) else { return };
        let piece = &mut buffer[..got];
        if way == Way::Up && passed == 0 && piece.starts_with(&PREFACE[..PREFACE.len().min(got)]) {
            is_data.store(true, Ordering::SeqCst);
            shared.data_connections.fetch_add(1, Ordering::SeqCst);
        }
        let mut end = got;
        let is_data = is_data.load(Ordering::SeqCst);
        let faults = wait_out(shared, is_data);
        if is_data {
            std::thread::sleep(faults.delay);
            if let Some((slow_way, rate)) = faults.rate
                && slow_way == way
            {
                std::thread::sleep(Duration::from_secs_f64(got as f64 / rate as f64));
            }
            if way == Way::Down {
                let flipped = replies.pass(piece, faults.lie);
                shared.flips.fetch_add(flipped, Ordering::SeqCst);
            }
            let range = passed..passed + got as u64;
            if let Some((flip_way, at)) = faults.flip
                && flip_way == way
                && range.contains(&at)
            {
                // The offset lies inside this piece.
                piece[(at - passed) as usize] ^= 1;
                shared.flips.fetch_add(1, Ordering::SeqCst);
            }
            if let Some((cut_way, at)) = faults.cut
                && cut_way == way
                && at < range.end
            {
                end = at.saturating_sub(passed) as usize;
            }
        }
        if is_data {
            shared.passed[way as usize].fetch_add(end as u64, Ordering::SeqCst);
        }
        if to.write_all(&piece[..end]).is_err() || end < got {
            return;
        }
        passed += got as u64;
    }
}

fn current(shared: &Shared) -> Faults {
    *shared.faults.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the pages are in what comes down a data connection.
struct Replies {
    /// Bytes that are no header and no page: of the handshake at first, then of records.
    skip: u64,
    /// The part of a header that has come.
    header: Vec<u8>,
    /// Bytes of pages that are still to come, and whether the first of them has.
    body: u64,
    begun: bool,
}

impl Default for Replies {
    fn default() -> Self {
        Self { skip: (CHALLENGE_BYTES + WELCOME_BYTES) as u64, header: Vec::new(), body: 0, begun: false }
    }
}

impl Replies {
    /// Takes note of the next piece, and alters the first byte of each body in it if it is to `lie`. Returns how many
    /// bits were flipped.
    fn pass(&mut self, mut piece: &mut [u8], lie: bool) -> u64 {
        let mut flipped = 0;
        while !piece.is_empty() {
            let some = piece.len();
            let used = if self.skip > 0 {
                let used = some.min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                self.skip -= used as u64;
                used
            } else if self.body > 0 {
                let used = some.min(usize::try_from(self.body).unwrap_or(usize::MAX));
                if lie && !self.begun {
                    piece[0] ^= 1;
                    flipped += 1;
                }
                self.begun = true;
                self.body -= used as u64;
                used
            } else {
                self.take_header(piece)
            };
            piece = &mut piece[used..];
        }
        flipped
    }

    fn take_header(&mut self, piece: &[u8]) -> usize {
        let used = piece.len().min(HEADER_BYTES - self.header.len());
        self.header.extend_from_slice(&piece[..used]);
        if let Ok(bytes) = <&[u8; HEADER_BYTES]>::try_from(&self.header[..]) {
            // What is no frame is passed on as it is.
            let (meta, body) =
                Header::decode(bytes).map_or((u64::MAX, 0), |h| (h.meta_len.into(), h.body_len));
            (self.skip, self.body, self.begun) = (meta, body, false);
            self.header.clear();
        }
        used
    }
}

/// Waits while the connection stalls; returns the faults that hold then.
fn wait_out(shared: &Shared, is_data: bool) -> Faults {
    let mut faults = shared.faults.lock().unwrap_or_else(PoisonError::into_inner);
    while (faults.dark || (faults.stall && is_data)) && !shared.stopped.load(Ordering::SeqCst) {
        faults = shared.changed.wait(faults).unwrap_or_else(PoisonError::into_inner);
    }
    *faults
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An echo server and a proxy before it.
    fn echo() -> (Proxy, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = stream.try_clone().unwrap();
            std::io::copy(&mut reader, &mut stream).ok();
        });
        let proxy = Proxy::start(addr).unwrap();
        let stream = TcpStream::connect(proxy.addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (proxy, stream)
    }

    #[test]
    fn a_bit_is_flipped_in_one_direction() {
        let (proxy, mut stream) = echo();
        proxy.set(Faults { flip: Some((Way::Down, 9)), ..Faults::default() });
        stream.write_all(b"MEMKV\0D1 abcdef").unwrap();
        let mut back = [0; 15];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"MEMKV\0D1 `bcdef");
        assert_eq!(proxy.flips(), 1);
    }

    #[test]
    fn a_connection_is_cut_at_a_byte() {
        let (proxy, mut stream) = echo();
        proxy.set(Faults { cut: Some((Way::Down, 10)), ..Faults::default() });
        stream.write_all(b"MEMKV\0D1 abcdef").unwrap();
        let mut back = Vec::new();
        // A reset is as good as an end here.
        stream.read_to_end(&mut back).ok();
        assert_eq!(back, b"MEMKV\0D1 a");
    }

    #[test]
    fn in_the_dark_new_connections_are_taken_and_never_answered() {
        let (proxy, mut stream) = echo();
        proxy.set(Faults { dark: true, ..Faults::default() });
        stream.write_all(b"no preface").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(stream.read_exact(&mut [0]).is_err());
        TcpStream::connect(proxy.addr()).unwrap();
        proxy.set(Faults::default());
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut back = [0; 10];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"no preface");
    }

    #[test]
    fn pages_are_found_wherever_the_pieces_end() {
        let mut reply = Header::reply_to(
            &Header::request(memkv_transport::frame::Op::Get, 7, memkv_core::SpaceId::default(), 1),
            memkv_transport::frame::Code::Ok,
            1,
        );
        reply.body_len = 5;
        let meta = [3; 16];
        let frame = [&reply.encode(&meta)[..], &meta, b"pages"].concat();
        let stream = [&[1; CHALLENGE_BYTES + WELCOME_BYTES][..], &frame, &frame].concat();
        let pages = [stream.len() - frame.len() - 5, stream.len() - 5];
        for size in 1..stream.len() {
            let (mut replies, mut altered) = (Replies::default(), stream.clone());
            let flips: u64 = altered.chunks_mut(size).map(|piece| replies.pass(piece, true)).sum();
            assert_eq!(flips, 2);
            let changed: Vec<usize> = (0..stream.len()).filter(|&at| stream[at] != altered[at]).collect();
            assert_eq!(changed, pages);
        }
    }

    #[test]
    fn a_stall_ends() {
        let (proxy, mut stream) = echo();
        proxy.set(Faults { stall: true, ..Faults::default() });
        stream.write_all(b"MEMKV\0D1").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut back = [0; 8];
        assert!(stream.read_exact(&mut back).is_err());
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        proxy.set(Faults::default());
        stream.read_exact(&mut back).unwrap();
    }
}
