//! Large transfers, each on a thread of its own while it lasts.
//!
//! A task learns by way of its runtime's one poller that its socket has room or bytes again, and is then run by whichever
//! thread is free. For a few transfers of many pages that is much of their cost: a thread that waits for its own socket
//! is woken at once, next to the bytes that its peer has just touched. So a transfer of many bytes leaves the runtime
//! ([`tokio::task::block_in_place`]) as long as a place is free and its peer keeps up. When the peer does not,
//! or the places are taken, it goes the ordinary way: who is slow holds no thread.
//!
//! Absent: TLS, whose records a task reads and writes.

use super::follow::{Follower, Near};
use super::offers::{PIECES, Receiving, WrongBody};
use super::transfer::{Broken, Patience, Reply};
use super::wire::Wire;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::io::{self, ErrorKind, IoSliceMut};
use std::num::NonZero;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// A transfer of so many bytes is worth handing the runtime's work to another thread.
const BYTES_MIN: u64 = 1 << 20;
/// Places for each thread of the runtime.
const PLACES_PER_THREAD: usize = 4;
/// The least places.
const PLACES_MIN: usize = 8;
/// A peer that takes longer than this for its next bytes is waited for by the runtime.
const PAUSE_MAX: Duration = Duration::from_millis(10);

/// Bounds how many transfers have a thread of their own.
#[derive(Debug)]
pub(crate) struct Asides {
    free: AtomicUsize,
    near: Near,
}

/// A place that is taken.
struct Place<'a>(&'a Asides);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::Relaxed);
    }
}

impl Asides {
    /// For a runtime of so many threads.
    pub(crate) fn new(threads: usize) -> Self {
        let free = AtomicUsize::new((threads * PLACES_PER_THREAD).max(PLACES_MIN));
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self { free, near: Near::new(processors) }
    }

    fn enter(&self, bytes: u64) -> Option<Place<'_>> {
        if bytes < BYTES_MIN {
            return None;
        }
        let less = |free: usize| free.checked_sub(1);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok().map(|_| Place(self))
    }

    /// Writes a reply, or its beginning.
    ///
    /// # Errors
    ///
    /// If the connection is of no use any more.
    pub(crate) fn write(
        &self,
        stream: &Wire,
        patience: &Patience,
        reply: &mut Reply<'_>,
    ) -> Result<(), Broken> {
        let Some(socket) = stream.plain() else { return Ok(()) };
        let Some(_place) = self.enter(reply.bytes()) else { return Ok(()) };
        let write = || {
            reply.write(|slices| Ok(rustix::io::writev(socket, slices)?))?;
            Ok(reply.is_done())
        };
        tokio::task::block_in_place(|| run(socket, PollFlags::OUT, patience, self.near.follow(stream), write))
    }

    /// Receives the pages of a body of `bytes` bytes, or the first ones.
    ///
    /// # Errors
    ///
    /// If the connection is of no use any more.
    pub(crate) fn receive(
        &self,
        stream: &Wire,
        patience: &Patience,
        bytes: u64,
        pages: &mut Receiving,
    ) -> Result<Result<(), WrongBody>, Broken> {
        let Some(socket) = stream.plain() else { return Ok(Ok(())) };
        let Some(_place) = self.enter(bytes) else { return Ok(Ok(())) };
        let mut outcome = Ok(());
        let read = || {
            let mut slices = std::array::from_fn::<_, PIECES, _>(|_| IoSliceMut::new(&mut []));
            let used = pages.slices(&mut slices);
            let came = rustix::io::readv(socket, &mut slices[..used])?;
            if came == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            outcome = pages.arrived(came);
            Ok(outcome.is_err() || pages.is_done())
        };
        tokio::task::block_in_place(|| run(socket, PollFlags::IN, patience, self.near.follow(stream), read))?;
        Ok(outcome)
    }
}

/// Repeats a step on a nonblocking socket until it says that all is done, or the peer lets it wait.
fn run(
    socket: BorrowedFd<'_>,
    wanted: PollFlags,
    patience: &Patience,
    mut follower: Follower<'_>,
    mut step: impl FnMut() -> io::Result<bool>,
) -> Result<(), Broken> {
    let mut was_called_ready = false;
    loop {
        follower.step(socket);
        match step() {
            Ok(true) => return Ok(()),
            Ok(false) => was_called_ready = false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // A host that is short of memory for sockets calls one ready and takes nothing.
                if was_called_ready || Instant::now() >= patience.until || !is_soon(socket, wanted)? {
                    return Ok(());
                }
                was_called_ready = true;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(Broken::Closed),
        }
    }
}

/// Whether a socket is ready within a moment.
fn is_soon(socket: BorrowedFd<'_>, wanted: PollFlags) -> Result<bool, Broken> {
    let pause = Timespec::try_from(PAUSE_MAX).map_err(|_| Broken::Closed)?;
    match rustix::event::poll(&mut [PollFd::from_borrowed_fd(socket, wanted)], Some(&pause)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(true),
        Err(_) => Err(Broken::Closed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_transport::iov::Progress;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    fn patience() -> Patience {
        let stall = Duration::from_secs(20);
        Patience { stall, until: Instant::now() + stall }
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        one.set_nonblocking(true).unwrap();
        (one, listener.accept().unwrap().0)
    }

    /// Writes so many bytes as [`run`] has them written; returns how many went.
    fn write_all(one: &TcpStream, bytes: &[u8]) -> Result<usize, Broken> {
        let mut progress = Progress::default();
        let step = || {
            let went = rustix::io::write(one, &bytes[progress.offset..])?;
            progress.offset += went;
            Ok(progress.offset == bytes.len())
        };
        run(one.as_fd(), PollFlags::OUT, &patience(), Follower::default(), step).map(|()| progress.offset)
    }

    #[test]
    fn a_peer_that_reads_gets_everything() {
        let (one, mut other) = pair();
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            other.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let bytes: Vec<u8> = (0..32_u32 << 20).map(|i| (i >> 8) as u8).collect();
        let went = write_all(&one, &bytes).unwrap();
        // A machine that is busy enough may let the reader pause.
        drop(one);
        assert_eq!(reader.join().unwrap(), bytes[..went]);
    }

    #[test]
    fn a_peer_that_does_not_read_is_left_to_the_runtime() {
        let (one, _other) = pair();
        let bytes = vec![0; 64 << 20];
        assert!(write_all(&one, &bytes).unwrap() < bytes.len());
    }

    #[test]
    fn a_socket_that_is_called_ready_and_takes_nothing_is_left_to_the_runtime() {
        let (one, _other) = pair();
        let (mut steps, begun) = (0, Instant::now());
        let step = || {
            steps += 1;
            // Whoever asks again and again gets no further than this.
            if steps > 1000 { Ok(true) } else { Err(ErrorKind::WouldBlock.into()) }
        };
        run(one.as_fd(), PollFlags::OUT, &patience(), Follower::default(), step).unwrap();
        assert_eq!(steps, 2);
        assert!(begun.elapsed() < patience().stall);
    }

    #[test]
    fn a_peer_that_is_gone_ends_it() {
        let (one, other) = pair();
        drop(other);
        let bytes = vec![0; 64 << 20];
        assert!(matches!(write_all(&one, &bytes), Err(Broken::Closed)));
    }

    #[tokio::test]
    async fn a_peer_on_this_host_is_buffered_little() {
        let (one, _other) = pair();
        let wire = Wire::Tcp(tokio::net::TcpStream::from_std(one).unwrap());
        wire.limit_buffer().unwrap();
        let bytes = socket2::SockRef::from(&wire).send_buffer_size().unwrap();
        // Linux doubles what is asked for, and gives less where its limit is lower.
        assert!((1..=2 * memkv_transport::near::SEND_BYTES).contains(&bytes), "{bytes} bytes");
    }

    #[test]
    fn places_are_given_back() {
        let asides = Asides::new(1);
        let taken: Vec<_> = std::iter::repeat_with(|| asides.enter(BYTES_MIN)).take(PLACES_MIN + 1).collect();
        assert_eq!(taken.iter().flatten().count(), PLACES_MIN);
        drop(taken);
        assert!(asides.enter(BYTES_MIN).is_some());
        assert!(asides.enter(BYTES_MIN - 1).is_none());
    }
}
