//! The network between the hosts: turmoil's, with what TCP makes of its losses.
//!
//! Turmoil delays, holds and drops segments, and never sends one again. Real TCP does, and when it cannot it resets the
//! connection. So a connection that loses segments in a partition is remembered here, and when the partition is over both
//! of its ends are reset; a dial into a partition is tried again, as a SYN would be. Bits of data connections can be
//! flipped here too; gRPC's are left alone, because HTTP/2 without TLS has no checksum of its own.

use crate::rng::Rng;
use crate::trace::Trace;
use memkv_transport::sim::{Dialled, Net, Stream};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::TcpStream;

/// The port of every server.
pub(crate) const PORT: u16 = 9900;
/// How often a dial into a partition is tried again.
const SYN_AGAIN: Duration = Duration::from_millis(150);
/// Longer than any segment is under way.
const UNDER_WAY_MS: u64 = 800;

/// Both ends' view of a connection.
#[derive(Default)]
struct Conn {
    /// Segments of it were lost.
    lost: AtomicBool,
    reset: AtomicBool,
    /// Its bytes are gRPC's.
    grpc: AtomicBool,
    written_ms: AtomicU64,
    /// What waits to read, and to write: the server's end, then the client's.
    readers: Mutex<[Option<Waker>; 2]>,
    writers: Mutex<[Option<Waker>; 2]>,
    /// Bytes that either end has written and the other has not read.
    under_way: [AtomicUsize; 2],
}

impl Conn {
    fn reset(&self) {
        self.reset.store(true, Relaxed);
        let readers = std::mem::take(&mut *self.readers.lock());
        let writers = std::mem::take(&mut *self.writers.lock());
        readers.into_iter().chain(writers).flatten().for_each(Waker::wake);
    }
}

/// A client's address and a server's.
type Ends = (SocketAddr, SocketAddr);

/// The state of the network beyond turmoil's.
pub(crate) struct Network {
    pub(crate) trace: Arc<Trace>,
    /// Bytes that one end of a connection may have under way.
    window: usize,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    /// From whom to whom nothing comes through.
    cut: BTreeSet<(IpAddr, IpAddr)>,
    /// Of a thousand reads on data connections of these servers, how many have a bit flipped.
    flips: BTreeMap<IpAddr, u64>,
    open: BTreeMap<Ends, Arc<Conn>>,
}

impl Network {
    pub(crate) fn new(trace: Arc<Trace>, seed: u64, window: usize) -> Arc<Self> {
        let state = State {
            rng: Rng::new(seed, 0x4E37),
            cut: BTreeSet::new(),
            flips: BTreeMap::new(),
            open: BTreeMap::new(),
        };
        Arc::new(Self { trace, window, state: Mutex::new(state) })
    }

    /// Nothing comes through from one host to the other any more. Turmoil is told by the caller.
    pub(crate) fn cut(&self, from: IpAddr, to: IpAddr) {
        let now = self.trace.now_ms();
        let mut state = self.state.lock();
        state.cut.insert((from, to));
        for (ends, conn) in &state.open {
            let recently = conn.written_ms.load(Relaxed) + UNDER_WAY_MS >= now;
            if recently && is_between(*ends, from, to) {
                conn.lost.store(true, Relaxed);
            }
        }
    }

    /// Everything comes through again between two hosts; connections that lost something are reset.
    pub(crate) fn heal(&self, a: IpAddr, b: IpAddr) {
        let mut state = self.state.lock();
        state.cut.remove(&(a, b));
        state.cut.remove(&(b, a));
        for (ends, conn) in &state.open {
            if conn.lost.load(Relaxed) && is_between(*ends, a, b) {
                conn.reset();
            }
        }
    }

    /// Resets about half of a server's connections.
    pub(crate) fn reset_some(&self, server: IpAddr) {
        let mut state = self.state.lock();
        let theirs: Vec<_> = state
            .open
            .iter()
            .filter(|(ends, _)| ends.1.ip() == server)
            .map(|(_, conn)| conn.clone())
            .collect();
        for conn in theirs {
            if state.rng.permille(500) {
                conn.reset();
            }
        }
    }

    /// Flips bits in some of the reads on a server's data connections.
    pub(crate) fn flip(&self, server: IpAddr, permille: u64) {
        self.state.lock().flips.insert(server, permille);
    }

    /// A connection as one of its ends holds it.
    pub(crate) fn link(self: &Arc<Self>, stream: TcpStream, is_client: bool) -> io::Result<Box<dyn Stream>> {
        let (own, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let ends = if is_client { (own, peer) } else { (peer, own) };
        let conn = self.state.lock().open.entry(ends).or_default().clone();
        Ok(Box::new(Link { net: self.clone(), conn, stream, ends, is_client, greeted: false }))
    }

    fn is_cut(&self, from: IpAddr, to: IpAddr) -> bool {
        self.state.lock().cut.contains(&(from, to))
    }

    /// The bit to flip in a read of `len` bytes, if one is to be flipped.
    fn flipped_bit(&self, server: IpAddr, len: usize) -> Option<usize> {
        let mut state = self.state.lock();
        let permille = *state.flips.get(&server)?;
        let flips = len > 0 && permille > 0 && state.rng.permille(permille);
        flips.then(|| state.rng.range(0, len as u64 * 8) as usize)
    }
}

fn is_between(ends: Ends, a: IpAddr, b: IpAddr) -> bool {
    let (client, server) = (ends.0.ip(), ends.1.ip());
    (client, server) == (a, b) || (client, server) == (b, a)
}

/// The network as one host sees it.
pub(crate) struct Port {
    pub(crate) net: Arc<Network>,
    pub(crate) host: String,
}

impl Net for Port {
    fn dial(&self, host: &str, port: u16) -> Dialled {
        let (net, own, host) = (self.net.clone(), self.host.clone(), host.to_owned());
        Box::pin(async move {
            let (from, to) = (turmoil::lookup(own.as_str()), turmoil::lookup(host.as_str()));
            while net.is_cut(from, to) || net.is_cut(to, from) {
                tokio::time::sleep(SYN_AGAIN).await;
            }
            net.link(TcpStream::connect((host, port)).await?, true)
        })
    }
}

/// One end of a connection.
struct Link {
    net: Arc<Network>,
    conn: Arc<Conn>,
    stream: TcpStream,
    ends: Ends,
    is_client: bool,
    /// Its first bytes were written.
    greeted: bool,
}

impl Link {
    /// How many bytes may be written now; registers the task if none may.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let own = usize::from(self.is_client);
        let room = self.net.window.saturating_sub(self.conn.under_way[own].load(Relaxed));
        if room == 0 {
            self.conn.writers.lock()[own] = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(room)
    }

    fn is_lossy(&self) -> bool {
        let (client, server) = (self.ends.0.ip(), self.ends.1.ip());
        let (from, to) = if self.is_client { (client, server) } else { (server, client) };
        self.net.is_cut(from, to)
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.conn.reset.load(Relaxed) {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        }
        let before = buf.filled().len();
        let own = usize::from(self.is_client);
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if polled.is_pending() {
            self.conn.readers.lock()[own] = Some(cx.waker().clone());
        }
        let came = buf.filled().len() - before;
        if came > 0 {
            self.conn.under_way[1 - own].fetch_sub(came, Relaxed);
            if let Some(writer) = self.conn.writers.lock()[1 - own].take() {
                writer.wake();
            }
        }
        if !self.conn.grpc.load(Relaxed)
            && let Some(bit) = self.net.flipped_bit(self.ends.1.ip(), came)
        {
            self.net.trace.note("a bit was flipped on the way");
            buf.filled_mut()[before + bit / 8] ^= 1 << (bit % 8);
        }
        polled
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.conn.reset.load(Relaxed) {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        }
        if self.is_client && !self.greeted {
            self.greeted = true;
            self.conn.grpc.store(bytes.starts_with(b"PRI"), Relaxed);
        }
        let room = std::task::ready!(self.poll_room(cx));
        if self.is_lossy() {
            self.conn.lost.store(true, Relaxed);
        }
        self.conn.written_ms.store(self.net.trace.now_ms(), Relaxed);
        let polled = Pin::new(&mut self.stream).poll_write(cx, &bytes[..bytes.len().min(room)]);
        if let Poll::Ready(Ok(went)) = &polled {
            self.conn.under_way[usize::from(self.is_client)].fetch_add(*went, Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_lossy() {
            self.conn.lost.store(true, Relaxed);
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Stream for Link {
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.conn.reset.load(Relaxed) {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        }
        std::task::ready!(self.poll_room(cx));
        pin!(self.stream.writable()).as_mut().poll(cx)
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.is_lossy() {
            // The farewell is lost as well.
            self.conn.lost.store(true, Relaxed);
        }
        let mut state = self.net.state.lock();
        if Arc::strong_count(&self.conn) <= 2 {
            state.open.remove(&self.ends);
        }
    }
}
