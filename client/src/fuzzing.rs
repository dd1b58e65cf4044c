//! Ways in for the fuzzer: ops over a connection whose server says anything, and what else is read from servers. Feature `fuzzing`, never
//! in a release.
//!
//! Deliberately absent: queue pairs. What a server says about them is read by [`memkv_rdma`], and its replies by the code tried here.

use crate::exchange::{Batch, Care, Exchange, Step};
use crate::hot::Announced;
use crate::link::Link;
use crate::mover::Bound;
use crate::pool::Lease;
use crate::raw::Pieces;
use crate::server::Server;
use crate::shm::Shared;
use crate::wire::Wire;
use crate::{Config, PageOutcome, ServerAddress, attach, session};
use memkv_core::page::key_digest;
use memkv_core::{Key, Limits, SpaceId};
use memkv_proto::v1;
use memkv_shm::View;
use memkv_transport::frame::{FLAG_EXACT, HEADER_BYTES, Mover, Op};
use memkv_transport::records::SHM_BOUND_BYTES;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Endpoint;

/// What every page's memory holds before an op: bytes that were not read stay so.
pub const UNREAD: u8 = 0xa5;

/// How a caller's pages move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// In frames.
    Frames,
    /// In frames; pages to put go with their offer.
    Direct,
    /// From memory that the server shares: [`Caller::shared`].
    Memory,
}

/// One op of a caller.
#[derive(Clone, Debug)]
pub struct Call {
    /// What is asked.
    pub op: Op,
    /// How pages move.
    pub by: By,
    /// Whether pages must be as long as there is room for them.
    pub exact: bool,
    /// The keys and, for each, bytes of its page, or of the room for it.
    pub pages: Vec<(Vec<u8>, usize)>,
    /// Keys of a request at most, as the server has said.
    pub batch_keys_max: u32,
}

/// The client's end of connections to one server that is not there.
pub struct Caller {
    server: Arc<Server>,
    config: Config,
    view: Arc<View>,
    shared: Vec<u8>,
    _runtime: tokio::runtime::Runtime,
}

impl Caller {
    /// A caller in the space whose id is zero, whose server shares `shared` with it.
    ///
    /// # Panics
    ///
    /// If the system has no memory or no sockets: the fuzzer cannot go on then.
    #[must_use]
    pub fn new(shared: Vec<u8>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime without threads needs no more than memory");
        let config = Config::builder().without_environment().servers("a=127.0.0.1:1");
        let config = config.build().expect("one server is a configuration");
        let address: ServerAddress = "a=127.0.0.1:1".parse().expect("it is an address");
        let channel = {
            let _inside = runtime.enter();
            Endpoint::from_static("http://127.0.0.1:1").connect_lazy()
        };
        let memory = memfd_create("fuzz", MemfdFlags::ALLOW_SEALING).expect("the system has memory");
        let mut file = std::fs::File::from(memory);
        file.write_all(&shared).expect("the memory takes bytes");
        fcntl_add_seals(&file, SealFlags::SHRINK).expect("the memory can be sealed");
        let view = View::map(&file, shared.len() as u64).expect("sealed memory can be mapped");
        Self {
            server: Arc::new(Server::new(address, channel)),
            config,
            view: Arc::new(view),
            shared,
            _runtime: runtime,
        }
    }

    /// What the server shares.
    #[must_use]
    pub fn shared(&self) -> &[u8] {
        &self.shared
    }

    /// Runs an op while the server says `pieces`, one after the other, and then closes. Returns what became of each page, and what its
    /// memory holds: for a get what was read, else what was to be put.
    ///
    /// # Panics
    ///
    /// If the op does not end with its connection.
    #[must_use]
    pub fn call(&self, call: &Call, pieces: &[Vec<u8>]) -> Vec<(PageOutcome, Vec<u8>)> {
        let keys: Vec<&[u8]> = call.pages.iter().map(|(key, _)| key.as_slice()).collect();
        let mut memory: Vec<Vec<u8>> = call.pages.iter().map(|(_, len)| vec![UNREAD; *len]).collect();
        let mut outcomes = vec![PageOutcome::Unavailable; keys.len()];
        let space = SpaceId::default();
        let digests = keys.iter().map(|key| Key::new(key).map_or(0, |key| key_digest(space, key)));
        let digests: Vec<u64> = digests.collect();
        let order: Vec<u32> = (0_u32..).take(keys.len()).collect();
        let sources: Vec<&[u8]>;
        let mut targets: Vec<&mut [u8]>;
        let pieces_of = match call.op {
            Op::Get => {
                targets = memory.iter_mut().map(Vec::as_mut_slice).collect();
                Pieces::targets(&mut targets)
            }
            Op::Put => {
                sources = memory.iter().map(Vec::as_slice).collect();
                Pieces::sources(&sources)
            }
            _ => Pieces::none(),
        };
        let mut batch = Batch {
            op: call.op,
            flags: if call.exact && call.op == Op::Get { FLAG_EXACT } else { 0 },
            space,
            position: 1,
            keys: &keys.as_slice(),
            pieces: pieces_of,
            digests: &digests,
            order: &order,
            outcomes: &mut outcomes,
            count: keys.len(),
            deadline: Instant::now() + Duration::from_secs(60),
            is_early: false,
            is_timed: false,
            care: Care::new(&self.config),
            deadline_ms: 1000,
            seen_len: 0,
            threads_max: 1,
            spin: None,
        };
        self.run(call, &mut batch, pieces);
        outcomes.into_iter().zip(memory).collect()
    }

    fn run(&self, call: &Call, batch: &mut Batch<'_>, pieces: &[Vec<u8>]) {
        let (ours, mut theirs) = UnixStream::pair().expect("the system has sockets");
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).expect("a socket need not block");
        }
        let mover = match call.by {
            By::Memory => {
                Bound::Shm(Shared { view: Some(self.view.clone()), reads_client: false, stage: None })
            }
            By::Frames | By::Direct => Bound::None,
        };
        let limits = Limits { batch_keys_max: call.batch_keys_max.max(1), ..Limits::default() };
        self.server.accepted("a", limits, call.by == By::Direct);
        let link = Box::new(Link::new(Wire::Unix(ours), mover, limits, 0));
        let lease = Lease::new(self.server.clone(), link);
        let mut exchange = Exchange::new(batch, lease, (0, batch.order.len()), None);
        let mut heard = vec![0; 64 << 10];
        let mut step = exchange.advance(batch);
        for mut piece in pieces.iter().map(Vec::as_slice) {
            while step != Step::Done && !piece.is_empty() {
                // A server that does not read would make this wait for ever.
                while theirs.read(&mut heard).is_ok_and(|came| came > 0) {}
                let Ok(went) = theirs.write(piece) else { break };
                piece = &piece[went..];
                step = exchange.advance(batch);
            }
        }
        // What it still has to say goes nowhere, and the end of the connection ends it.
        for _ in 0..1 << 16 {
            if step == Step::Done {
                break;
            }
            while theirs.read(&mut heard).is_ok_and(|came| came > 0) {}
            if theirs.shutdown(std::net::Shutdown::Write).is_err() {
                break;
            }
            step = exchange.advance(batch);
        }
        assert_eq!(step, Step::Done, "an op ends with its connection");
        let _ended = exchange.end(batch);
    }
}

/// Reads the reply to a ping; whether it is one.
#[must_use]
pub fn reads_pong(reply: &[u8; HEADER_BYTES]) -> bool {
    attach::pong(reply).is_ok()
}

/// Reads the reply to a bind by RDMA; whether it says yes.
#[must_use]
pub fn reads_bound(reply: &[u8; HEADER_BYTES]) -> bool {
    attach::bound(reply, Mover::Rdma).is_ok()
}

/// Reads the reply to a bind by shared memory; the bytes that the server announces.
#[must_use]
pub fn reads_shm_bound(reply: &[u8; HEADER_BYTES + SHM_BOUND_BYTES]) -> Option<u64> {
    crate::shm::bound(reply).ok().map(|bound| bound.memory_bytes)
}

/// Reads the limits that a server announces with a session; the most bytes that one of its replies may have before its pages.
#[must_use]
pub fn reads_limits(limits: v1::ServerLimits) -> Option<u32> {
    session::limits_of(limits).ok().map(|limits| limits.frame_meta_bytes_max)
}

/// Takes over what a pong says about hot pages; how many there are then.
#[must_use]
pub fn hears(pong: &v1::Pong) -> usize {
    Announced::default().hear("a", pong, 3).map_or(0, |hot| hot.len())
}
