//! Shared memory with a server on the same host.
//!
//! A connection of this way is a Unix socket. When it is opened, the server passes the memory that its pages rest in, sealed so
//! that this process can only read it; all connections to one life of a server share one mapping of it, which goes with the
//! last of them. In return it is passed the connection's staging memory, through which pages are put, sealed so that it can only
//! read it. What either side cannot do (the server reading this process' memory, memory that is not shared) is
//! known from then on, and those pages go in frames over the same socket.

use crate::attach::{Attacher, broken};
use crate::link::Link;
use crate::mover::Bound;
use crate::session::{protocol, random};
use crate::wire::Wire;
use crate::{Error, ErrorKind};
use memkv_proto::v1;
use memkv_shm::{Stage, View, pass, socket};
use memkv_transport::frame::{Code, HEADER_BYTES, Header, Mover, Op};
use memkv_transport::records::{self, SHM_BOUND_BYTES, ShmBound};
use parking_lot::Mutex;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net;
use std::sync::{Arc, Weak};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

/// The memory that a connection shares with its server.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The server's pages; without it gets go in frames.
    pub(crate) view: Option<Arc<View>>,
    /// Whether the server reads pages from this process' memory; if not, puts that cannot be staged go in frames.
    pub(crate) reads_client: bool,
    /// Where pages are put for the server to copy them; [`STAGE_PARTS`] parts. `None` if the server does not read it.
    pub(crate) stage: Option<Stage>,
}

/// Parts of the staging memory: one is filled while the server reads the other.
pub(crate) const STAGE_PARTS: usize = 2;
/// Bytes of one part, and so of the longest page that goes through it.
pub(crate) const STAGE_PART_BYTES: usize = 4 << 20;

/// The mapping of one life of a server, for as long as a connection uses it.
#[derive(Debug, Default)]
pub(crate) struct Views {
    current: Mutex<(u64, Weak<View>)>,
}

impl Views {
    /// The mapping of the server's life `incarnation`: the one that is there, or a new one.
    fn of(&self, incarnation: u64, memory: &OwnedFd, bytes: u64) -> Result<Arc<View>, Error> {
        let mut current = self.current.lock();
        if let (known, Some(view)) = (current.0, current.1.upgrade())
            && known == incarnation
            && view.len() == bytes
        {
            return Ok(view);
        }
        let view = View::map(memory, bytes).map(Arc::new);
        let view =
            view.map_err(|error| Error::new(ErrorKind::NotSupported, format!("shared memory: {error}")))?;
        *current = (incarnation, Arc::downgrade(&view));
        Ok(view)
    }
}

/// Opens a connection whose pages move through shared memory.
pub(crate) async fn attach(attacher: &Attacher) -> Result<Box<Link>, Error> {
    let offer =
        attacher.shm.as_ref().ok_or_else(|| not_supported("the server has no socket for its own host"))?;
    let mut stream = connect(offer)?;
    attacher.join(&mut stream).await?;
    // The server looks at these bytes before it answers.
    let trial: Box<[u8; 8]> = Box::new(random()?);
    let address = trial.as_ptr().expose_provenance() as u64;
    let meta = records::bind(Mover::Shm, &records::trial(address, *trial));
    let request = Header::request(Op::Bind, 0, Default::default(), 0);
    let frame = [&request.encode(&meta)[..], &meta].concat();
    // Without memory to spare, puts take the other ways.
    let stage = Stage::new(STAGE_PARTS * STAGE_PART_BYTES).ok();
    let sent = match &stage {
        Some(stage) => send_with(&stream, &frame, stage).await.map_err(broken)?,
        None => 0,
    };
    stream.write_all(&frame[sent..]).await.map_err(broken)?;
    let (bound, memory) = answer(&stream).await?;
    drop(std::hint::black_box(trial));
    let view = match (bound.memory_bytes, memory) {
        (0, _) => None,
        (bytes, Some(memory)) => Some(attacher.server.views.of(attacher.incarnation, &memory, bytes)?),
        (_, None) => return Err(protocol("the server announced memory and did not pass it")),
    };
    let stage = stage.filter(|_| bound.reads_stage);
    let mover = Bound::Shm(Shared { view, reads_client: bound.reads_client, stage });
    // A tokio stream is nonblocking already, and stays so.
    let stream = stream.into_std().map_err(broken)?;
    Ok(attacher.link(Wire::Unix(stream), mover))
}

/// Connects if the server is on this host. Never waits: a Unix socket takes a connection at once or not at all.
fn connect(offer: &v1::ShmOffer) -> Result<UnixStream, Error> {
    let own = socket::host_id();
    if own.is_empty() || own != offer.host_id {
        return Err(not_supported("the server is on another host"));
    }
    let connected = || -> io::Result<UnixStream> {
        let address = socket::address(&offer.socket)?;
        let name = match address.as_pathname() {
            Some(path) => socket2::SockAddr::unix(path)?,
            None => socket2::SockAddr::unix(offer.socket.replacen('@', "\0", 1))?,
        };
        let stream = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        stream.set_nonblocking(true)?;
        stream.connect(&name)?;
        UnixStream::from_std(net::UnixStream::from(OwnedFd::from(stream)))
    };
    connected().map_err(|error| {
        let text = format!("unix socket {}: {error}", offer.socket);
        Error::new(ErrorKind::Unavailable, text).with_source(error)
    })
}

/// Sends the first bytes of a frame, and the staging memory with them; returns how many went.
async fn send_with(stream: &UnixStream, bytes: &[u8], stage: &Stage) -> io::Result<usize> {
    loop {
        stream.writable().await?;
        let send = || pass::send(stream, bytes, stage.descriptor());
        match stream.try_io(Interest::WRITABLE, send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
    }
}

/// Reads the answer to a bind, and the memory that comes with it.
async fn answer(stream: &UnixStream) -> Result<(ShmBound, Option<OwnedFd>), Error> {
    let mut bytes = [0; HEADER_BYTES + SHM_BOUND_BYTES];
    let (mut filled, mut memory) = (0, None);
    while filled < bytes.len() {
        stream.readable().await.map_err(broken)?;
        match stream.try_io(Interest::READABLE, || pass::receive(stream, &mut bytes[filled..])) {
            Ok((0, _)) => {
                return Err(Error::new(ErrorKind::Unavailable, "the server refused to share memory"));
            }
            Ok((came, descriptor)) => {
                filled += came;
                memory = memory.or(descriptor);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(broken(error)),
        }
    }
    Ok((bound(&bytes)?, memory))
}

/// Reads the reply to a bind.
pub(crate) fn bound(reply: &[u8; HEADER_BYTES + SHM_BOUND_BYTES]) -> Result<ShmBound, Error> {
    let (head, meta) = reply.split_at(HEADER_BYTES);
    let head = head.first_chunk().expect("it was just cut to this length");
    let read = || {
        let header = Header::decode(head)?;
        header.verify(head, meta)?;
        Ok((header, records::read_shm_bound(meta)?))
    };
    let (header, bound) =
        read().map_err(|error: memkv_transport::frame::FrameError| protocol(&error.to_string()))?;
    if header.op != Op::Bind || !header.reply || header.status != Code::Ok || header.body_len != 0 {
        return Err(protocol("the server did not answer a bind"));
    }
    Ok(bound)
}

/// The error of a way that will not work while both processes live.
fn not_supported(text: &str) -> Error {
    Error::new(ErrorKind::NotSupported, text)
}
