//! Every number that the server shows, registered once; those of the store are in `storage`.
//!
//! Hot paths add to plain atomics here; the exporter's series are set from them when somebody looks. So there is one
//! source for `/metrics`, the status page and `Admin.GetStatus`, and no label is looked up on the way.

mod storage;

use memkv_storage::EngineStatus;
use memkv_transport::frame::Op;
use metrics::{Counter, Gauge, Histogram, Label, Level, Metadata, Recorder as _, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use parking_lot::Mutex;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Upper bounds of the request time histogram, seconds.
const SECONDS: [f64; 14] = [5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 2.0, 10.0];
/// How often failed authentications are logged at most.
const AUTH_LOG_INTERVAL: Duration = Duration::from_secs(10);
const METADATA: Metadata<'static> = Metadata::new("memkv", Level::INFO, None);

/// A counter's or gauge's name, description and source.
type Series = (&'static str, &'static str, fn(&Metrics) -> &AtomicU64);

/// All counters; those of the engine are sampled like gauges.
const COUNTERS: &[Series] = &[
    ("memkv_get_keys_total", "Keys asked for by get", |m| &m.get_keys),
    ("memkv_get_hits_total", "Keys that get found", |m| &m.get_hits),
    ("memkv_get_bytes_total", "Bytes of pages sent", |m| &m.get_bytes),
    ("memkv_put_keys_total", "Pages offered by put", |m| &m.put_keys),
    ("memkv_put_stored_total", "Pages stored", |m| &m.put_stored),
    ("memkv_put_existing_total", "Pages offered that were already there", |m| &m.put_existing),
    ("memkv_put_bytes_total", "Bytes of pages stored", |m| &m.put_bytes),
    ("memkv_put_busy_total", "Pages refused because the store was full", |m| &m.put_busy),
    (
        "memkv_put_shed_offers_total",
        "Pages refused because too many of their connection were on their way",
        |m| &m.put_shed_offers,
    ),
    (
        "memkv_put_shed_backlog_total",
        "Pages refused because too many of all connections were on their way",
        |m| &m.put_shed_backlog,
    ),
    ("memkv_put_shed_behind_total", "Pages refused because too many requests were at work", |m| {
        &m.put_shed_behind
    }),
    ("memkv_put_draining_total", "Pages refused because the server is being drained", |m| &m.put_draining),
    ("memkv_drain_moved_pages_total", "Pages that a drain sent to their next owners", |m| &m.drain_moved),
    ("memkv_drain_moved_bytes_total", "Bytes of pages that a drain sent", |m| &m.drain_moved_bytes),
    (
        "memkv_drain_existing_pages_total",
        "Pages that their next owners had before a drain came to them",
        |m| &m.drain_existing,
    ),
    ("memkv_drain_lost_pages_total", "Pages that no other server took when a drain ended", |m| &m.drain_lost),
    ("memkv_exists_keys_total", "Keys asked about by exists", |m| &m.exists_keys),
    ("memkv_exists_hits_total", "Keys that exists found", |m| &m.exists_hits),
    ("memkv_deleted_pages_total", "Pages removed by delete and clear", |m| &m.deleted),
    ("memkv_evicted_pages_total", "Pages evicted", |m| &m.sampled.evicted),
    ("memkv_corrupt_pages_total", "Pages whose bytes did not match their checksum", |m| &m.sampled.corrupt),
    ("memkv_protocol_errors_total", "Frames and connections that made no sense", |m| &m.protocol_errors),
    ("memkv_auth_failures_total", "Failed authentications", |m| &m.auth_failures),
    ("memkv_requests_expired_total", "Requests whose deadline passed before their turn", |m| &m.expired),
    ("memkv_requests_over_total", "Requests refused because those at work held too many bytes", |m| {
        &m.requests_over
    }),
    ("memkv_connections_stalled_total", "Connections dropped in the middle of a request", |m| &m.stalled),
    ("memkv_connections_accepted_total", "Connections accepted on the main port", |m| &m.accepted),
    ("memkv_connections_refused_total", "Connections closed because there were too many", |m| &m.refused),
    (
        "memkv_connections_put_out_total",
        "Connections closed because they proved nothing and others wanted their place, or in time",
        |m| &m.sampled.put_out,
    ),
    ("memkv_sessions_opened_total", "Sessions opened", |m| &m.sessions_opened),
    ("memkv_registrations_total", "Times the server's record was written to etcd under a new lease", |m| {
        &m.sampled.registrations
    }),
    ("memkv_discovery_failures_total", "Times that etcd did not answer the server", |m| {
        &m.sampled.discovery_failures
    }),
    ("memkv_tls_handshakes_total", "TLS handshakes that succeeded", |m| &m.tls_handshakes),
    ("memkv_tls_handshakes_failed_total", "TLS handshakes that failed", |m| &m.tls_failed),
    ("memkv_tls_plain_refused_total", "Connections and calls refused because they were plain text", |m| {
        &m.tls_plain_refused
    }),
    ("memkv_tls_reloads_total", "Times that changed certificates were read", |m| &m.tls_reloads),
    ("memkv_tls_reloads_refused_total", "Times that changed certificates could not be used", |m| {
        &m.tls_reloads_refused
    }),
    ("memkv_rdma_write_bytes_total", "Bytes of pages written to clients by RDMA", |m| &m.rdma_write_bytes),
    ("memkv_rdma_read_bytes_total", "Bytes of pages read from clients by RDMA", |m| &m.rdma_read_bytes),
    ("memkv_rdma_work_requests_total", "RDMA work requests posted", |m| &m.rdma_work),
    ("memkv_rdma_doorbells_total", "Chains of RDMA work requests posted", |m| &m.rdma_doorbells),
    ("memkv_rdma_errors_total", "Queue pairs that failed while pages moved", |m| &m.rdma_errors),
    ("memkv_rdma_out_of_bounds_total", "Requests with memory outside the client's regions", |m| {
        &m.rdma_bounds
    }),
];

/// All gauges; those that are not kept here are sampled by [`Metrics::render`].
const GAUGES: &[Series] = &[
    ("memkv_data_connections", "Data connections open", |m| &m.data_connections),
    ("memkv_rdma_queue_pairs", "RDMA queue pairs that exist", |m| &m.rdma_queue_pairs),
    ("memkv_rdma_regions", "Regions that clients registered", |m| &m.rdma_regions),
    ("memkv_rdma_nics_down", "RDMA devices that are gone or whose port is down", |m| &m.rdma_nics_down),
    ("memkv_shm_lent_pages", "Pages that clients on this host are copying", |m| &m.shm_lent_pages),
    ("memkv_guests", "Connections that have not proved anything yet", |m| &m.sampled.guests),
    ("memkv_sessions", "Sessions open", |m| &m.sampled.sessions),
    ("memkv_spaces", "Spaces known", |m| &m.sampled.spaces),
    ("memkv_requests_in_flight", "Requests in flight", |m| &m.sampled.in_flight),
    ("memkv_dram_capacity_bytes", "What the DRAM tier may hold", |m| &m.sampled.capacity),
    ("memkv_dram_used_bytes", "Bytes of DRAM slots in use, waste included", |m| &m.sampled.used),
    ("memkv_dram_page_bytes", "Bytes of pages in DRAM", |m| &m.sampled.page_bytes),
    ("memkv_dram_pages", "Pages in DRAM", |m| &m.sampled.pages),
    ("memkv_process_resident_bytes", "Memory the process holds", |m| &m.sampled.resident),
    (
        "memkv_tls_certificate_expires_seconds",
        "When the server's certificate ends, in seconds since 1970; 0 without one",
        |m| &m.tls_expires,
    ),
    ("memkv_ready", "1 while the server takes requests", |m| &m.sampled.ready),
    ("memkv_members", "Members of the cluster that the server sees; 0 without discovery", |m| {
        &m.sampled.members
    }),
    ("memkv_members_epoch", "Epoch of the member list that the server sees", |m| &m.sampled.members_epoch),
    ("memkv_registered", "1 while the server's record is in etcd", |m| &m.sampled.registered),
    ("memkv_draining", "1 while the server takes no new pages and copies its own to others", |m| {
        &m.sampled.draining
    }),
    ("memkv_drained", "1 while the server takes no new pages and others have all of its own", |m| {
        &m.sampled.drained
    }),
];

const OPS: [(Op, &str); 9] = [
    (Op::Exists, "exists"),
    (Op::Get, "get"),
    (Op::Put, "put"),
    (Op::PutData, "put-data"),
    (Op::Delete, "delete"),
    (Op::Touch, "touch"),
    (Op::Ping, "ping"),
    (Op::Bind, "bind"),
    (Op::Release, "release"),
];

/// Values that exist only while somebody looks.
#[derive(Debug, Default)]
pub(crate) struct Sampled {
    pub(crate) sessions: AtomicU64,
    pub(crate) guests: AtomicU64,
    pub(crate) put_out: AtomicU64,
    pub(crate) spaces: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) capacity: AtomicU64,
    pub(crate) used: AtomicU64,
    pub(crate) page_bytes: AtomicU64,
    pub(crate) pages: AtomicU64,
    pub(crate) resident: AtomicU64,
    pub(crate) ready: AtomicU64,
    pub(crate) members: AtomicU64,
    pub(crate) members_epoch: AtomicU64,
    pub(crate) registered: AtomicU64,
    pub(crate) registrations: AtomicU64,
    pub(crate) discovery_failures: AtomicU64,
    pub(crate) draining: AtomicU64,
    pub(crate) drained: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) corrupt: AtomicU64,
}

/// The server's numbers. The fields are described where they are registered.
#[derive(Default)]
pub(crate) struct Metrics {
    pub(crate) get_keys: AtomicU64,
    pub(crate) get_hits: AtomicU64,
    pub(crate) get_bytes: AtomicU64,
    pub(crate) put_keys: AtomicU64,
    pub(crate) put_stored: AtomicU64,
    pub(crate) put_existing: AtomicU64,
    pub(crate) put_bytes: AtomicU64,
    pub(crate) put_busy: AtomicU64,
    pub(crate) put_draining: AtomicU64,
    pub(crate) put_shed_offers: AtomicU64,
    pub(crate) put_shed_backlog: AtomicU64,
    pub(crate) put_shed_behind: AtomicU64,
    pub(crate) drain_moved: AtomicU64,
    pub(crate) drain_moved_bytes: AtomicU64,
    pub(crate) drain_existing: AtomicU64,
    pub(crate) drain_lost: AtomicU64,
    pub(crate) exists_keys: AtomicU64,
    pub(crate) exists_hits: AtomicU64,
    pub(crate) deleted: AtomicU64,
    pub(crate) protocol_errors: AtomicU64,
    pub(crate) auth_failures: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) stalled: AtomicU64,
    pub(crate) requests_over: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) sessions_opened: AtomicU64,
    pub(crate) tls_handshakes: AtomicU64,
    pub(crate) tls_failed: AtomicU64,
    pub(crate) tls_plain_refused: AtomicU64,
    pub(crate) tls_reloads: AtomicU64,
    pub(crate) tls_reloads_refused: AtomicU64,
    pub(crate) tls_expires: AtomicU64,
    pub(crate) data_connections: AtomicU64,
    pub(crate) rdma_write_bytes: AtomicU64,
    pub(crate) rdma_read_bytes: AtomicU64,
    pub(crate) rdma_work: AtomicU64,
    pub(crate) rdma_doorbells: AtomicU64,
    pub(crate) rdma_errors: AtomicU64,
    pub(crate) rdma_bounds: AtomicU64,
    pub(crate) rdma_queue_pairs: AtomicU64,
    pub(crate) rdma_regions: AtomicU64,
    pub(crate) rdma_nics_down: AtomicU64,
    pub(crate) shm_lent_pages: AtomicU64,
    pub(crate) sampled: Sampled,
    auth_logged: Mutex<Option<Instant>>,
    exporter: Option<Exporter>,
}

struct Exporter {
    handle: PrometheusHandle,
    counters: Vec<Counter>,
    gauges: Vec<Gauge>,
    request_seconds: [Histogram; OPS.len()],
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Registers every series.
    pub(crate) fn new() -> Self {
        let builder =
            PrometheusBuilder::new().set_buckets(&SECONDS).expect("the list of bounds is not empty");
        let recorder = builder.build_recorder();
        Self { exporter: Some(Exporter::register(&recorder)), ..Self::default() }
    }

    /// Adds to one of the counters.
    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        if amount > 0 {
            counter.fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// Notes how long a request of the data plane took, from its first byte to its reply's last.
    pub(crate) fn request_took(&self, op: Op, took: Duration) {
        if let Some(exporter) = &self.exporter {
            exporter.request_seconds[op as usize - 1].record(took.as_secs_f64());
        }
    }

    /// Counts a failed authentication and logs it, but not every one of many.
    pub(crate) fn auth_failed(&self, peer: Option<SocketAddr>, what: &str) {
        let failures = self.auth_failures.fetch_add(1, Ordering::Relaxed) + 1;
        let now = Instant::now();
        let mut logged = self.auth_logged.lock();
        if logged.is_none_or(|last| now.duration_since(last) >= AUTH_LOG_INTERVAL) {
            *logged = Some(now);
            tracing::warn!(?peer, what, failures_so_far = failures, "authentication failed");
        }
    }

    /// All series as Prometheus text. The caller has refreshed [`Metrics::sampled`].
    pub(crate) fn render(&self, engine: &EngineStatus) -> String {
        let Some(exporter) = &self.exporter else { return String::new() };
        for (handle, (_, _, source)) in exporter.counters.iter().zip(COUNTERS) {
            handle.absolute(source(self).load(Ordering::Relaxed));
        }
        for (handle, (_, _, source)) in exporter.gauges.iter().zip(GAUGES) {
            #[allow(clippy::cast_precision_loss, reason = "gauges are shown as floating point numbers")]
            handle.set(source(self).load(Ordering::Relaxed) as f64);
        }
        let mut text = exporter.handle.render();
        storage::render(engine, &mut text);
        text
    }

    /// Folds recorded times into their buckets; without it they would pile up until somebody looks.
    pub(crate) fn upkeep(&self) {
        if let Some(exporter) = &self.exporter {
            exporter.handle.run_upkeep();
        }
    }
}

impl Exporter {
    fn register(recorder: &PrometheusRecorder) -> Self {
        let counters = COUNTERS.iter().map(|(name, help, _)| {
            recorder.describe_counter((*name).into(), None, (*help).into());
            recorder.register_counter(&(*name).into(), &METADATA)
        });
        let counters = counters.collect();
        let gauges = GAUGES.iter().map(|(name, help, _)| {
            recorder.describe_gauge((*name).into(), None, (*help).into());
            recorder.register_gauge(&(*name).into(), &METADATA)
        });
        let gauges = gauges.collect();
        let name = "memkv_request_duration_seconds";
        let help = "Time of a data plane request, from its header to the last byte of its reply";
        recorder.describe_histogram(name.into(), Some(Unit::Seconds), help.into());
        let request_seconds = OPS.map(|(_, op)| {
            let key = metrics::Key::from_parts(name, vec![Label::from_static_parts("op", op)]);
            recorder.register_histogram(&key, &METADATA)
        });
        Self { handle: recorder.handle(), counters, gauges, request_seconds }
    }
}

/// Memory the process holds, bytes; 0 where the system does not say.
pub(crate) fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ops_are_listed_in_wire_order() {
        for (index, (op, _)) in OPS.iter().enumerate() {
            assert_eq!(*op as usize, index + 1);
        }
    }

    #[test]
    fn every_series_is_rendered_with_its_value() {
        let metrics = Metrics::new();
        Metrics::add(&metrics.get_keys, 3);
        metrics.sampled.pages.store(7, Ordering::Relaxed);
        metrics.request_took(Op::Get, Duration::from_micros(70));
        let engine = memkv_storage::Engine::new(memkv_storage::EngineConfig::with_dram(64 << 20)).unwrap();
        let text = metrics.render(&engine.status());
        for (name, help, _) in COUNTERS.iter().chain(GAUGES) {
            assert!(text.contains(&format!("# HELP {name} {help}")), "{name} in {text}");
        }
        assert!(text.contains("memkv_get_keys_total 3\n"));
        assert!(text.contains("memkv_dram_pages 7\n"));
        assert!(text.contains("\nmemkv_quarantined_pages_total 0\n"));
        assert!(text.contains("memkv_request_duration_seconds_bucket{op=\"get\",le=\"0.0001\"} 1"), "{text}");
    }

    #[test]
    fn names_follow_the_convention() {
        for (name, _, _) in COUNTERS {
            assert!(name.starts_with("memkv_") && name.ends_with("_total"), "{name}");
        }
        assert!(GAUGES.iter().all(|(name, _, _)| name.starts_with("memkv_") && !name.ends_with("_total")));
    }

    #[test]
    fn this_process_holds_memory() {
        assert!(resident_bytes() > 100 << 10);
    }
}
