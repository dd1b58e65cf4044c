//! The background task of one server: opens the session, keeps connections ready, probes a suspected server.
//!
//! All connecting happens here, never in a call of the user.

use crate::attach::Attacher;
use crate::backoff::{Backoff, random_jitter};
use crate::client::Shared;
use crate::config::Transport;
use crate::control;
use crate::link::Link;
use crate::rdma::RdmaSession;
use crate::server::{Attempt, Server};
use crate::way::Way;
use crate::{Error, ErrorKind};
use memkv_core::Limits;
use memkv_proto::{VERSIONS, v1};
use memkv_transport::auth::{AuthKey, SessionTranscript, same_secret};
use memkv_transport::frame::{CAPABILITY_DIRECT, CAPABILITY_RDMA, CAPABILITY_SHM};
use memkv_transport::tenant::ClientSecret;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use v1::client_message::Message as Said;
use v1::server_message::Message as Heard;

/// A session that lasted so long was a good one: the next loss begins with the shortest pause.
const LASTING: Duration = Duration::from_secs(10);
/// A session is lost after this many ping intervals without an answer.
const SILENT_INTERVALS: u32 = 3;

/// Keeps a session to the server open, for as long as the client lives.
pub(crate) async fn run(shared: Arc<Shared>, server: Arc<Server>) {
    let mut backoff = Backoff::default();
    let mut failures = 0_u32;
    loop {
        let opened_before = matches!(*server.attempt.borrow(), Attempt::Open);
        let error = match open(&shared, &server).await {
            Ok(session) => {
                failures = 0;
                tracing::info!(server = %server.address.id, "session open");
                let opened = Instant::now();
                let error = serve(&shared, &server, session).await;
                // A server that takes sessions and loses them must not be asked ever more often.
                if opened.elapsed() > LASTING {
                    backoff.reset();
                }
                error
            }
            Err(error) => error,
        };
        server.pool.end_session();
        shared.session_ended(&server);
        // One line for each loss; the attempts after it are only counted.
        if failures == 0 || opened_before {
            tracing::warn!(server = %server.address.id, error = %error, "no session; keys of this server are misses");
        } else {
            tracing::debug!(server = %server.address.id, error = %error, attempt = failures, "still no session");
        }
        failures = failures.saturating_add(1);
        server.session_failed(&error);
        sleep(backoff.next(random_jitter())).await;
    }
}

/// An open session.
struct Session {
    say: mpsc::Sender<v1::ClientMessage>,
    hear: Streaming<v1::ServerMessage>,
    ping_interval: Duration,
    attacher: Attacher,
    /// Tells of NICs that stop working or work again, from before the first attempt to use one.
    nics: Option<watch::Receiver<u64>>,
    /// Tells the server of regions; ends with the session.
    _announcer: JoinSet<()>,
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new(ErrorKind::Unavailable, format!("the system has no random numbers: {error}"))
    })?;
    Ok(bytes)
}

pub(crate) fn protocol(text: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("{text}; is the address that of a memkv-server?"))
}

/// Opens a session with its spaces and first connections, and lets ops in.
async fn open(shared: &Shared, server: &Arc<Server>) -> Result<Session, Error> {
    let limit = shared.config.connect_timeout;
    let mut session = timeout(limit, greet(shared, server)).await.map_err(|_| no_answer(limit))??;
    control::open_spaces(shared, server, &shared.all_spaces()).await?;
    if shared.config.transport != Transport::Grpc {
        let mut first = Err(no_answer(limit));
        for _ in 0..server.pool.reserve() {
            let Session { attacher, hear, .. } = &mut session;
            let attached = while_hearing(hear, attacher.rdma.as_deref(), attacher.attach()).await;
            match attached {
                Ok(link) => {
                    server.pool.opened(link);
                    first = Ok(());
                }
                Err(error) => {
                    server.pool.not_opened(session.attacher.generation);
                    if first.is_err() {
                        first = Err(error);
                    }
                }
            }
        }
        first?;
    }
    server.pool.set_ready();
    server.attempt.send_replace(Attempt::Open);
    Ok(session)
}

/// Runs a future that may need what the server says about RDMA meanwhile.
async fn while_hearing<T>(
    hear: &mut Streaming<v1::ServerMessage>,
    rdma: Option<&RdmaSession>,
    future: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some(rdma) = rdma else { return future.await };
    let mut future = std::pin::pin!(future);
    loop {
        tokio::select! {
            done = &mut future => return done,
            heard = next(hear) => if let Some(message) = heard? {
                // What else it says, it will say again.
                let _about_rdma = rdma.hear(message);
            },
        }
    }
}

pub(crate) fn no_answer(limit: Duration) -> Error {
    Error::new(ErrorKind::Unavailable, format!("no answer within {limit:?}; is the server running?"))
}

fn hello(shared: &Shared, client_nonce: &[u8; 32]) -> v1::Hello {
    let (tenant, key_id) = shared.secret.as_ref().map(ClientSecret::identity).unwrap_or_default();
    v1::Hello {
        protocol_min: VERSIONS.min,
        protocol_max: VERSIONS.max,
        client_nonce: client_nonce.to_vec(),
        client_name: format!("{} pid {}", shared.config.client_name, std::process::id()),
        client_version: env!("CARGO_PKG_VERSION").to_owned(),
        capabilities: capabilities(shared),
        tenant: tenant.to_owned(),
        key_id: key_id.to_owned(),
    }
}

fn capabilities(shared: &Shared) -> Vec<String> {
    let rdma = shared.rdma.as_ref().map(|_| CAPABILITY_RDMA);
    ["tcp", CAPABILITY_DIRECT, CAPABILITY_SHM].into_iter().chain(rdma).map(str::to_owned).collect()
}

/// Says hello, checks the server's proof, proves the key.
async fn greet(shared: &Shared, server: &Arc<Server>) -> Result<Session, Error> {
    let client_nonce: [u8; 32] = random()?;
    let (say, said) = mpsc::channel(4);
    let message = |message| v1::ClientMessage { message: Some(message) };
    // The channel is new and has room for four messages.
    let gone = |_| Error::new(ErrorKind::Unavailable, "the session's stream ended");
    say.send(message(Said::Hello(hello(shared, &client_nonce)))).await.map_err(gone)?;
    let mut client = v1::session_client::SessionClient::new(server.channel.clone());
    let mut hear = client
        .open(ReceiverStream::new(said))
        .await
        .map_err(|status| control::error_of(&status))?
        .into_inner();
    let Some(Heard::Challenge(challenge)) = next(&mut hear).await.map_err(refused_hello)? else {
        return Err(protocol("the server did not answer hello with a challenge"));
    };
    if !VERSIONS.has(challenge.protocol) {
        let older = if challenge.protocol > VERSIONS.max { "client" } else { "server" };
        let text = format!(
            "the server chose protocol version {}, this client speaks {VERSIONS}; upgrade the {older}",
            challenge.protocol
        );
        return Err(Error::new(ErrorKind::VersionMismatch, text));
    }
    let channel = server.binding.now();
    let key = agree_on_key(shared.secret.as_ref(), challenge.key_required)?;
    let transcript = SessionTranscript {
        protocol_min: VERSIONS.min,
        protocol_max: VERSIONS.max,
        protocol: challenge.protocol,
        client_nonce: &client_nonce,
        server_nonce: &challenge.server_nonce,
        session_id: &challenge.session_id,
        node_id: &challenge.node_id,
        key_required: challenge.key_required,
        identity: key.identity(),
        channel: &channel,
    };
    if challenge.server_nonce.len() != 32
        || !same_secret(&key.server_proof(&transcript), &challenge.server_proof)
    {
        let text = "the server does not know this client's key; check MEMKV_AUTH_KEY and MEMKV_TENANT";
        return Err(Error::new(ErrorKind::Unauthenticated, text));
    }
    let proof = v1::Proof { client_proof: key.client_proof(&transcript).to_vec() };
    say.send(message(Said::Proof(proof))).await.map_err(gone)?;
    let Some(Heard::Accepted(accepted)) = next(&mut hear).await? else {
        return Err(protocol("the server did not accept the session"));
    };
    let session_key = key.session_key(&transcript);
    let session_id = challenge.session_id.as_slice().try_into();
    let session_id = session_id.map_err(|_| protocol("the session id does not have 16 bytes"))?;
    let limits = limits_of(accepted.limits.ok_or_else(|| protocol("the server announced no limits"))?)?;
    let direct = accepted.capabilities.iter().any(|name| name == CAPABILITY_DIRECT);
    server.accepted(&challenge.node_id, limits, direct);
    let connections = shared.config.connections_per_server.min(limits.session_connections_max);
    let nics = shared.rdma.as_ref().map(|context| context.nic_changes());
    let generation = server.pool.begin_session(connections);
    server.ways.begin_session();
    let offer = accepted.rdma.zip(shared.rdma.as_ref()).filter(|(offer, _)| !offer.nics.is_empty());
    let rdma = offer.map(|(offer, context)| RdmaSession::new(context, offer, say.clone()));
    let mut announcer = JoinSet::new();
    if let Some(rdma) = &rdma {
        announcer.spawn(rdma.clone().announce());
    }
    let attacher = Attacher {
        server: server.clone(),
        transport: shared.config.transport,
        host: server.address.host.clone(),
        port: server.address.port,
        session_id,
        key: session_key,
        limits,
        generation,
        incarnation: accepted.incarnation,
        shm: accepted.shm,
        timeout: shared.config.connect_timeout,
        user_timeout: (shared.config.op_timeout * 2).max(Duration::from_secs(5)),
        rdma,
        tls: shared.tls.get().cloned(),
    };
    let ping_interval = Duration::from_millis(u64::from(accepted.ping_interval_ms.clamp(100, 60_000)));
    Ok(Session { say, hear, ping_interval, attacher, nics, _announcer: announcer })
}

/// Why the server does not answer a hello: what would be an unknown space later can only be its protocol version here.
fn refused_hello(error: Error) -> Error {
    match error.kind() {
        ErrorKind::UnknownSpace => Error::new(ErrorKind::VersionMismatch, error.to_string()),
        _ => error,
    }
}

/// The key of the session, if both sides have one or neither has.
fn agree_on_key(own: Option<&ClientSecret>, server_has_one: bool) -> Result<ClientSecret, Error> {
    match (own, server_has_one) {
        (Some(key), true) => Ok(key.clone()),
        (None, false) => Ok(ClientSecret::Cluster(AuthKey::open())),
        (None, true) => Err(Error::new(
            ErrorKind::Unauthenticated,
            "the server requires a key; set MEMKV_AUTH_KEY (or MEMKV_AUTH_KEY_FILE) to the server's key",
        )),
        // Falling back to no key would let anybody on the way pretend to be the server.
        (Some(_), false) => Err(Error::new(
            ErrorKind::Unauthenticated,
            "this client has a key and the server has none; give the server the key (MEMKV_SERVER_AUTH_KEY) or unset MEMKV_AUTH_KEY",
        )),
    }
}

/// The limits that a server announces. How much memory its replies may take is not only its own matter.
pub(crate) fn limits_of(wire: v1::ServerLimits) -> Result<Limits, Error> {
    let own = Limits::default();
    let limits = Limits {
        page_bytes_max: wire.page_bytes_max,
        batch_keys_max: wire.batch_keys_max,
        frame_meta_bytes_max: wire.frame_meta_bytes_max.min(own.frame_meta_bytes_max),
        session_connections_max: wire.session_connections_max,
        request_ms_max: wire.request_ms_max,
        ..own
    };
    if limits.batch_keys_max == 0 || limits.session_connections_max == 0 || limits.request_ms_max == 0 {
        return Err(protocol("the server announced limits of zero"));
    }
    Ok(limits)
}

async fn next(hear: &mut Streaming<v1::ServerMessage>) -> Result<Option<Heard>, Error> {
    let message = hear.message().await.map_err(|status| control::error_of(&status))?;
    let message =
        message.ok_or_else(|| Error::new(ErrorKind::Unavailable, "the server ended the session"))?;
    Ok(message.message)
}

/// Resolves when a NIC stopped working or works again; never without NICs.
async fn changed(nics: &mut Option<watch::Receiver<u64>>) {
    let ended = match nics {
        Some(nics) => nics.changed().await.is_err(),
        None => true,
    };
    if ended {
        std::future::pending().await
    }
}

/// Serves a session until it ends; returns why.
async fn serve(shared: &Shared, server: &Arc<Server>, mut session: Session) -> Error {
    let mut work = Work {
        shared,
        server,
        attacher: session.attacher,
        running: JoinSet::new(),
        pause_until: None,
        backoff: Backoff::default(),
        climbing: false,
    };
    let mut ping = tokio::time::interval(session.ping_interval);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut sequence, mut answered) = (0_u64, Instant::now());
    loop {
        work.begin();
        let timer = work.next_timer();
        tokio::select! {
            heard = next(&mut session.hear) => match heard {
                Err(error) => return error,
                Ok(Some(Heard::Pong(pong))) if pong.state() != v1::ServerState::Stopping => {
                    answered = Instant::now();
                    shared.heard_pong(server, &pong);
                }
                Ok(Some(Heard::Notice(notice))) if notice.state() != v1::ServerState::Stopping => {
                    tracing::info!(server = %server.address.id, notice = %notice.text, "server notice");
                    shared.heard_state(server, notice.state());
                }
                Ok(Some(Heard::Pong(_) | Heard::Notice(_))) => {
                    return Error::new(ErrorKind::Unavailable, "the server is stopping");
                }
                Ok(Some(message @ (Heard::RdmaConnected(_) | Heard::RegionRegistered(_) | Heard::RegionForgotten(_)))) => {
                    if let Some(rdma) = &work.attacher.rdma {
                        rdma.hear(message);
                    }
                }
                Ok(Some(Heard::Challenge(_) | Heard::Accepted(_)) | None) => {
                    return protocol("the server sent a message that has no place in an open session");
                }
            },
            () = changed(&mut session.nics) => {
                server.pool.drop_unusable();
                server.ways.again(Way::Rdma);
                if work.attacher.rdma.as_ref().is_some_and(|rdma| rdma.is_outdated()) {
                    return Error::new(ErrorKind::Unavailable, "an rdma device is back, a session with it begins");
                }
            }
            _ = ping.tick() => {
                if answered.elapsed() > session.ping_interval * SILENT_INTERVALS + Duration::from_secs(1) {
                    return Error::new(ErrorKind::Timeout, "the server no longer answers pings");
                }
                sequence += 1;
                let message = v1::ClientMessage { message: Some(Said::Ping(v1::Ping { sequence })) };
                // A full channel means that the server does not read; the missing answers will tell.
                if let Err(mpsc::error::TrySendError::Closed(_)) = session.say.try_send(message) {
                    return Error::new(ErrorKind::Unavailable, "the session's stream ended");
                }
            }
            () = server.woken() => {}
            Some(done) = work.running.join_next() => if let Some(error) = work.end(done) { return error },
            () = tokio::time::sleep_until(timer) => {}
        }
    }
}

/// What a session's small tasks came to.
enum Done {
    Attached(Result<Box<Link>, Error>),
    Climbed(Option<Box<Link>>),
    Probed(Result<Box<Link>, Error>),
    Reopened(Result<(), Error>),
}

/// The small tasks of a session.
struct Work<'a> {
    shared: &'a Shared,
    server: &'a Arc<Server>,
    attacher: Attacher,
    running: JoinSet<Done>,
    pause_until: Option<Instant>,
    /// Of opening connections.
    backoff: Backoff,
    climbing: bool,
}

impl Work<'_> {
    /// Begins whatever is due.
    fn begin(&mut self) {
        let now = Instant::now();
        self.server.with_gates(|gates| gates.try_stores(now));
        if self.server.takes_reopen() {
            let (server, shared) = (self.server.clone(), self.shared.for_task());
            self.running.spawn(async move {
                Done::Reopened(control::open_spaces(&shared, &server, &shared.all_spaces()).await)
            });
        }
        if self.shared.config.transport == Transport::Grpc {
            if self.server.with_gates(|gates| gates.server.begin_probe(now)) {
                // The session itself shows that the server answers on this transport.
                self.server.with_gates(|gates| gates.server.end_probe(true, now, random_jitter()));
            }
            return;
        }
        if self.server.with_gates(|gates| gates.server.begin_probe(now)) {
            let attacher = self.attacher.clone();
            self.server.pool.reserve_one();
            self.running.spawn(async move { Done::Probed(attacher.probe().await) });
        }
        if !self.server.with_gates(|gates| gates.server.allows()) {
            // Nobody may use a connection to a suspected server, and opening some would only add to its troubles.
            return;
        }
        if !self.climbing && self.next_climb(now).is_some_and(|at| at <= now) {
            self.climbing = true;
            let attacher = self.attacher.clone();
            self.server.pool.reserve_one();
            self.running.spawn(async move { Done::Climbed(attacher.climb().await) });
        }
        if self.pause_until.is_some_and(|until| now < until) {
            return;
        }
        self.pause_until = None;
        for _ in 0..self.server.pool.reserve() {
            let attacher = self.attacher.clone();
            self.running.spawn(async move { Done::Attached(attacher.attach().await) });
        }
    }

    /// When to look again without being woken.
    fn next_timer(&self) -> Instant {
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        let (due, allowed) = self.server.with_gates(|gates| (gates.next(), gates.server.allows()));
        // What is not begun while the server is suspected must not be waited for either.
        let climb = if self.climbing || !allowed { None } else { self.next_climb(now) };
        let pause = self.pause_until.filter(|_| allowed);
        [due, pause, climb].into_iter().flatten().fold(later, Instant::min)
    }

    /// When a better way than the connections' is to be tried again: `now` if it is time.
    fn next_climb(&self, now: Instant) -> Option<Instant> {
        self.server.ways.next_climb(self.shared.config.transport, self.server.pool.best(), now)
    }

    /// Takes a task's result; an error ends the session.
    fn end(&mut self, done: Result<Done, tokio::task::JoinError>) -> Option<Error> {
        let generation = self.attacher.generation;
        match done {
            Ok(Done::Attached(Ok(link))) => {
                self.backoff.reset();
                self.server.pool.opened(link);
            }
            Ok(Done::Climbed(link)) => {
                self.climbing = false;
                match link {
                    Some(link) => self.server.pool.opened(link),
                    None => self.server.pool.not_opened(generation),
                }
            }
            Ok(Done::Attached(Err(error))) => {
                self.server.pool.not_opened(generation);
                self.pause_until = Some(Instant::now() + self.backoff.next(random_jitter()));
                self.server.note_error(&error.to_string());
                if error.kind() == ErrorKind::Closed {
                    return Some(error);
                }
            }
            Ok(Done::Probed(result)) => {
                let ok = result.is_ok();
                match result {
                    Ok(link) => {
                        tracing::info!(server = %self.server.address.id, "server answers again");
                        self.server.pool.opened(link);
                    }
                    Err(error) => {
                        self.server.pool.not_opened(generation);
                        self.server.note_error(&error.to_string());
                    }
                }
                let now = Instant::now();
                self.server.with_gates(|gates| gates.server.end_probe(ok, now, random_jitter()));
            }
            Ok(Done::Reopened(Ok(()))) => {}
            Ok(Done::Reopened(Err(error))) => self.server.note_error(&error.to_string()),
            // The task was cancelled with the runtime, or has a bug; a new session starts afresh.
            Err(error) => return Some(Error::new(ErrorKind::Unavailable, error.to_string())),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_does_not_say_how_much_memory_its_replies_take() {
        let said = v1::ServerLimits {
            page_bytes_max: 1 << 20,
            batch_keys_max: 100,
            frame_meta_bytes_max: u32::MAX,
            session_connections_max: 2,
            request_ms_max: 1000,
        };
        let own = Limits::default().frame_meta_bytes_max;
        assert_eq!(limits_of(said).unwrap().frame_meta_bytes_max, own);
        let less = v1::ServerLimits { frame_meta_bytes_max: 1000, ..said };
        assert_eq!(limits_of(less).unwrap().frame_meta_bytes_max, 1000);
        for none in [
            v1::ServerLimits { batch_keys_max: 0, ..said },
            v1::ServerLimits { session_connections_max: 0, ..said },
            v1::ServerLimits { request_ms_max: 0, ..said },
        ] {
            assert!(limits_of(none).is_err());
        }
    }
}
