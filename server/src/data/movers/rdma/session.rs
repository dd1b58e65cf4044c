//! What one session has of RDMA: its regions, and queue pairs between the client's asking for them and the binding to a
//! data connection.

use super::nics::{Nics, OpenNic, TRIAL_BYTES};
use super::regions::{Regions, Remote};
use crate::metrics::Metrics;
use crate::node::Node;
use crate::random;
use crate::sessions::Session;
use memkv_proto::v1;
use memkv_rdma::{Address, QueuePair, Timing};
use memkv_transport::records::Span;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a queue pair waits for its data connection.
const WAIT: Duration = Duration::from_secs(10);
/// The most queue pairs that wait at once.
const WAITING_MAX: usize = 16;

/// Queue pairs without a connection, each with its token and the time since which it waits.
#[derive(Debug, Default)]
struct Waiting {
    pairs: Vec<(Instant, [u8; 16], Prepared)>,
    /// The session has ended: what came now would never go, as it holds the session.
    ended: bool,
}

/// RDMA of one session.
#[derive(Debug, Default)]
pub(crate) struct SessionRdma {
    pub(crate) regions: Regions,
    waiting: Mutex<Waiting>,
    /// Queue pairs that exist.
    pub(crate) queue_pairs: AtomicU64,
    /// Bytes written to the client's memory.
    pub(crate) written_bytes: AtomicU64,
    /// Bytes read from the client's memory.
    pub(crate) read_bytes: AtomicU64,
    /// Queue pairs that failed.
    pub(crate) errors: AtomicU64,
}

/// A connected queue pair.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) pair: Box<dyn QueuePair>,
    pub(crate) depth: usize,
    pub(crate) nic: Arc<OpenNic>,
    /// The client's NIC, as its regions count them.
    pub(crate) client_nic: usize,
    /// Where the client lets the server write to try the way.
    pub(crate) trial: Remote,
    pub(crate) counted: Counted,
}

/// One queue pair in the numbers of its session and the server.
pub(crate) struct Counted {
    node: Arc<Node>,
    session: Arc<Session>,
}

impl Counted {
    fn new(node: &Arc<Node>, session: &Arc<Session>) -> Self {
        session.rdma.queue_pairs.fetch_add(1, Ordering::Relaxed);
        node.metrics.rdma_queue_pairs.fetch_add(1, Ordering::Relaxed);
        Self { node: Arc::clone(node), session: Arc::clone(session) }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.node.metrics
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }
}

impl std::fmt::Debug for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counted")
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.session.rdma.queue_pairs.fetch_sub(1, Ordering::Relaxed);
        self.node.metrics.rdma_queue_pairs.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What [`SessionRdma::numbers`] tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    pub(crate) queue_pairs: u32,
    pub(crate) regions: u32,
    pub(crate) written_bytes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) errors: u64,
}

impl SessionRdma {
    /// What there is and was, for people.
    pub(crate) fn numbers(&self) -> Numbers {
        let small = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        Numbers {
            queue_pairs: small(self.queue_pairs.load(Ordering::Relaxed)),
            regions: small(self.regions.count() as u64),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }

    /// Takes the queue pair that this token was given for.
    pub(crate) fn take(&self, token: &[u8; 16]) -> Option<Prepared> {
        let mut waiting = self.waiting.lock();
        let at = waiting.pairs.iter().position(|(_, other, _)| other == token)?;
        Some(waiting.pairs.swap_remove(at).2)
    }

    /// Destroys the queue pairs that nobody took, now that the session has ended.
    pub(crate) fn end(&self) {
        let ended = Waiting { pairs: Vec::new(), ended: true };
        let waiting = std::mem::replace(&mut *self.waiting.lock(), ended);
        drop(waiting);
    }

    /// Destroys the queue pairs that nobody took yet and whose NICs do not work any more.
    pub(crate) fn drop_unusable(&self) {
        let is_bad = |(_, _, prepared): &mut (Instant, [u8; 16], Prepared)| prepared.nic.health().is_err();
        let bad: Vec<_> = self.waiting.lock().pairs.extract_if(.., is_bad).collect();
        drop(bad);
    }

    fn wait_for_connection(&self, token: [u8; 16], prepared: Prepared) -> Result<(), String> {
        let mut waiting = self.waiting.lock();
        let now = Instant::now();
        let is_late = |waiting: &mut (Instant, _, _)| now.duration_since(waiting.0) > WAIT;
        let expired: Vec<_> = waiting.pairs.extract_if(.., is_late).collect();
        let room = waiting.pairs.len() < WAITING_MAX && !waiting.ended;
        if room {
            waiting.pairs.push((now, token, prepared));
        }
        drop(waiting);
        drop(expired);
        if room { Ok(()) } else { Err("too many queue pairs wait for their connections".to_owned()) }
    }
}

/// Makes a queue pair that is connected to the client's. Calls the driver, so not for a runtime's own threads.
pub(crate) fn connect(
    node: &Arc<Node>,
    session: &Arc<Session>,
    asked: &v1::RdmaConnect,
) -> v1::RdmaConnected {
    match try_connect(node, session, asked) {
        Ok((address, token)) => v1::RdmaConnected {
            tag: asked.tag,
            refused: String::new(),
            address: Some(address),
            token: token.to_vec(),
        },
        Err(refused) => {
            tracing::debug!(refused, client = session.client_name, "no queue pair");
            v1::RdmaConnected { tag: asked.tag, refused, address: None, token: Vec::new() }
        }
    }
}

fn try_connect(
    node: &Arc<Node>,
    session: &Arc<Session>,
    asked: &v1::RdmaConnect,
) -> Result<(v1::RdmaAddress, [u8; 16]), String> {
    let nics: &Nics = node.rdma.as_ref().ok_or("the server has no rdma")?;
    let nic = nics.get(asked.server_nic)?;
    let peer = asked.address.as_ref().and_then(address_from_wire).ok_or("the address is none")?;
    let client_nic = asked.client_nic as usize;
    let mut trial = Vec::new();
    let span = Span { region: asked.trial_region, len: TRIAL_BYTES, offset: 0 };
    let resolved = session.rdma.regions.resolve(client_nic, [span].into_iter(), TRIAL_BYTES, &mut trial);
    let trial =
        *trial.first().filter(|_| resolved.is_ok() && trial.len() == 1).ok_or("no region for the trial")?;
    let most = u64::from(node.limits.session_connections_max);
    if session.rdma.queue_pairs.load(Ordering::Relaxed) >= most {
        return Err(format!("the session has {most} queue pairs, the most it may"));
    }
    let counted = Counted::new(node, session);
    let failed = |error: memkv_rdma::RdmaError| format!("{}: {error}; {}", nic.name(), error.fix());
    let (mut pair, depth) = nic.queue_pair(nics.depth()).map_err(failed)?;
    let address = address_to_wire(&pair.address());
    pair.connect(&peer, Timing::default()).map_err(failed)?;
    let token = random::bytes();
    let prepared = Prepared { pair, depth, nic: Arc::clone(&nic), client_nic, trial, counted };
    session.rdma.wait_for_connection(token, prepared)?;
    Ok((address, token))
}

fn address_from_wire(wire: &v1::RdmaAddress) -> Option<Address> {
    Some(Address {
        gid: wire.gid.as_slice().try_into().ok()?,
        lid: wire.lid.try_into().ok()?,
        qpn: Some(wire.queue_pair).filter(|&qpn| qpn < 1 << 24)?,
        psn: Some(wire.sequence).filter(|&psn| psn < 1 << 24)?,
        mtu_bytes: wire.mtu_bytes,
        reads: u8::try_from(wire.reads).unwrap_or(u8::MAX),
    })
}

fn address_to_wire(address: &Address) -> v1::RdmaAddress {
    v1::RdmaAddress {
        gid: address.gid.to_vec(),
        lid: address.lid.into(),
        queue_pair: address.qpn,
        sequence: address.psn,
        mtu_bytes: address.mtu_bytes,
        reads: address.reads.into(),
    }
}
