//! The admin HTTP server: `/metrics`, `/healthz`, `/readyz` and a status page. It never shows a key or a page.

use crate::config::units::show_size;
use crate::drain::Duty;
use crate::metrics::resident_bytes;
use crate::node::{Node, Phase};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use memkv_storage::{EngineStatus, Tier};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use tokio::io::{self, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections that the admin port has open at once; others wait.
const CONNECTIONS_MAX: usize = 64;

/// What the admin port shows: the server, once it is there.
#[derive(Default)]
pub(crate) struct Watched {
    node: OnceLock<Arc<Node>>,
}

impl Watched {
    /// From now on, the server is shown.
    pub(crate) fn serving(&self, node: &Arc<Node>) {
        // There is one server in a process, and it starts once.
        drop(self.node.set(Arc::clone(node)));
    }
}

/// Serves until dropped.
pub(crate) async fn serve(watched: Arc<Watched>, listener: TcpListener) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/", get(page))
        .with_state(watched);
    let listener = Limited { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
    axum::serve(listener, router).await
}

async fn metrics(State(watched): State<Arc<Watched>>) -> impl IntoResponse {
    let text = match watched.node.get() {
        Some(node) => {
            let engine = node.engine.status();
            sample(node, &engine);
            node.metrics.render(&engine)
        }
        None => "# TYPE memkv_ready gauge\nmemkv_ready 0\n".to_owned(),
    };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

async fn ready(State(watched): State<Arc<Watched>>) -> (StatusCode, &'static str) {
    let Some(node) = watched.node.get() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "starting\n");
    };
    match node.phase() {
        // A server that is being drained answers reads, so nobody may take it out of their list yet.
        Phase::Serving => match node.drain.duty() {
            Duty::Serving => (StatusCode::OK, "ready\n"),
            Duty::Draining => (StatusCode::OK, "draining\n"),
            Duty::Drained => (StatusCode::OK, "drained\n"),
        },
        Phase::Stopping | Phase::Closing => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}

/// Takes the values that exist only while somebody looks.
fn sample(node: &Node, engine: &EngineStatus) {
    let sampled = &node.metrics.sampled;
    let membership = crate::membership::shown(node);
    let values = [
        (&sampled.sessions, node.sessions.count() as u64),
        (&sampled.spaces, engine.spaces),
        (&sampled.in_flight, node.in_flight.count() as u64),
        (&sampled.capacity, engine.capacity_bytes),
        (&sampled.used, engine.used_slot_bytes),
        (&sampled.page_bytes, engine.page_bytes),
        (&sampled.pages, engine.pages),
        (&sampled.resident, resident_bytes()),
        (&sampled.ready, u64::from(node.phase() == Phase::Serving)),
        (&sampled.members, membership.members),
        (&sampled.members_epoch, membership.epoch),
        (&sampled.registered, membership.registered),
        (&sampled.registrations, membership.registrations),
        (&sampled.discovery_failures, membership.failures),
        (&sampled.draining, u64::from(node.drain.duty() == Duty::Draining)),
        (&sampled.drained, u64::from(node.drain.duty() == Duty::Drained)),
        (&sampled.evicted, engine.counters.evicted_pages),
        (&sampled.corrupt, engine.counters.corrupt),
    ];
    for (slot, value) in values {
        slot.store(value, Ordering::Relaxed);
    }
}

async fn page(State(watched): State<Arc<Watched>>) -> String {
    let Some(node) = watched.node.get() else {
        let version = env!("CARGO_PKG_VERSION");
        return format!("memkv-server  {version}\nstate         starting\n");
    };
    let engine = node.engine.status();
    let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let metrics = &node.metrics;
    let mut lines = vec![
        ("memkv-server", env!("CARGO_PKG_VERSION").to_owned()),
        ("node", node.id.clone()),
        ("state", state(node, &engine).to_owned()),
        ("uptime", format!("{} s", node.clock.uptime_ms() / 1000)),
        (
            "key required",
            if node.config.auth_key.is_some() { "yes" } else { "no (loopback only)" }.to_owned(),
        ),
        (
            "dram",
            format!("{} of {} in use", show_size(engine.used_slot_bytes), show_size(engine.capacity_bytes)),
        ),
        ("backing", engine.backing.text().to_owned()),
        ("pages", format!("{} ({} bytes)", engine.pages, engine.page_bytes)),
        ("spaces", engine.spaces.to_string()),
        ("sessions", node.sessions.count().to_string()),
        ("connections", format!("{} data", get(&metrics.data_connections))),
        ("get", format!("{} of {} keys found", get(&metrics.get_hits), get(&metrics.get_keys))),
        ("put", format!("{} of {} pages stored", get(&metrics.put_stored), get(&metrics.put_keys))),
        ("evicted", engine.counters.evicted_pages.to_string()),
        ("corrupt", engine.counters.corrupt.to_string()),
        ("quarantined", engine.quarantined.to_string()),
        ("policy", engine.policy.to_string()),
        ("resident", show_size(resident_bytes())),
    ];
    if let Some(nvme) = engine.tiers.iter().find(|tier| tier.tier == Tier::Nvme) {
        let (used, most) = (show_size(nvme.bytes), show_size(nvme.capacity_bytes));
        lines.push(("nvme", format!("{used} of {most} in use, {} pages", nvme.pages)));
    }
    lines.extend(engine.degraded.iter().map(|why| ("degraded", why.clone())));
    lines.iter().map(|(name, value)| format!("{name:<14}{value}\n")).collect()
}

/// The state in a word.
fn state(node: &Node, engine: &EngineStatus) -> &'static str {
    match node.phase() {
        Phase::Serving if node.drain.duty() == Duty::Draining => "draining",
        Phase::Serving if node.drain.duty() == Duty::Drained => "drained",
        Phase::Serving if engine.degraded.is_empty() => "serving",
        Phase::Serving => "degraded",
        Phase::Stopping => "stopping",
        Phase::Closing => "closing",
    }
}

/// A listener with a bound on open connections.
struct Limited {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl axum::serve::Listener for Limited {
    type Io = Placed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Placed, SocketAddr) {
        let place = Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer) = axum::serve::Listener::accept(&mut self.listener).await;
        (Placed { stream, _place: place }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection and its place among the open ones.
struct Placed {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
