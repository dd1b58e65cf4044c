//! A TCP proxy between a client and a server that does what networks do: delay, stall, cut, flip a bit.
//!
//! Faults hit data connections only (those that begin with the data plane's preface), so that a session opens
//! undisturbed. Offsets count a connection's bytes in one direction.

use anyhow::Context as _;
use memkv_transport::handshake::PREFACE;
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
}

#[derive(Debug, Default)]
struct Shared {
    faults: Mutex<Faults>,
    changed: Condvar,
    stopped: AtomicBool,
    data_connections: AtomicU64,
    flips: AtomicU64,
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
    loop {
        let Ok(got @ 1..) = from.read(&mut buffer) else { return };
        let piece = &mut buffer[..got];
        if way == Way::Up && passed == 0 && piece.starts_with(&PREFACE[..PREFACE.len().min(got)]) {
            is_data.store(true, Ordering::SeqCst);
            shared.data_connections.fetch_add(1, Ordering::SeqCst);
        }
        let mut end = got;
        if is_data.load(Ordering::SeqCst) {
            let faults = wait_out(shared);
            std::thread::sleep(faults.delay);
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
        if to.write_all(&piece[..end]).is_err() || end < got {
            return;
        }
        passed += got as u64;
    }
}

/// Waits while the connection stalls; returns the faults that hold then.
fn wait_out(shared: &Shared) -> Faults {
    let mut faults = shared.faults.lock().unwrap_or_else(PoisonError::into_inner);
    while faults.stall && !shared.stopped.load(Ordering::SeqCst) {
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
