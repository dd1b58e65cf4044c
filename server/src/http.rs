//! The admin HTTP server: `/metrics`, `/healthz`, `/readyz` and a status page. It never shows a key or a page.

use crate::config::units::show_size;
use crate::door::Door;
use crate::drain::Duty;
use crate::metrics::resident_bytes;
use crate::node::{Node, Phase};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use memkv_storage::{EngineStatus, Tier};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

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
pub(crate) async fn serve(watched: Arc<Watched>, door: Door) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/", get(page))
        .with_state(watched);
    axum::serve(door, router).await
}

async fn metrics(State(watched): State<Arc<Watched>>) -> impl IntoResponse {
    let text = match watched.node.get() {
        Some(node) => {
            let engine = node.engine.status();
            sample(node, &engine);
            let mut text = node.metrics.render(&engine);
            node.tenants.render(&node.engine, &mut text);
            text
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
        (&sampled.guests, node.guests.count()),
        (&sampled.put_out, node.guests.put_out()),
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
        ("key required", if node.tenants.key_required() { "yes" } else { "no (loopback only)" }.to_owned()),
        ("tls", tls(node)),
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

/// What the server says of its certificate.
fn tls(node: &Node) -> String {
    let Some(tls) = &node.tls else { return "no certificate".to_owned() };
    let certificate = tls.certificate();
    let days = certificate.left(SystemTime::now()).map(|left| left.as_secs() / 86_400);
    let until = days.map_or("expired".to_owned(), |days| format!("{days} days left"));
    format!("{}, {until}, required: {}", certificate.identity, node.config.tls.require.text())
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
