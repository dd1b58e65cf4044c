//! What `--json` prints: the stable, documented shapes, made from the protocol's messages.
//!
//! The tables for people are drawn from the same values, so both always say the same. Rules of the shapes: sizes
//! in bytes, times in milliseconds, ratios from 0 to 1, `null` for what is unknown, identities in hex. Fields may
//! be added; none is renamed or removed within a major version.

pub(crate) mod drain;
pub(crate) mod members;
pub(crate) mod route;
pub(crate) mod storage;

use crate::units::ratio;
use memkv_proto::v1;
use serde::Serialize;
use std::collections::BTreeMap;
use storage::{Nvme, Recovery, Scrub};

/// `inspect`: the cluster.
#[derive(Debug, Serialize)]
pub(crate) struct Cluster {
    pub(crate) servers: Vec<Server>,
    pub(crate) total: Total,
    /// Where the servers come from; null if nobody asked.
    pub(crate) membership: Option<members::Members>,
}

/// Sums over the servers that answered.
#[derive(Debug, Serialize)]
pub(crate) struct Total {
    pub(crate) servers: usize,
    pub(crate) reachable: usize,
    pub(crate) pages: u64,
    pub(crate) used_bytes: u64,
    pub(crate) capacity_bytes: u64,
    pub(crate) hit_ratio: Option<f64>,
}

/// One server; `status` is null if it did not answer, and `error` says why.
#[derive(Debug, Serialize)]
pub(crate) struct Server {
    pub(crate) id: String,
    pub(crate) address: String,
    /// `serving`, `degraded`, `draining`, `drained`, `stopping`, `unknown` or `unreachable`.
    pub(crate) state: &'static str,
    pub(crate) error: Option<String>,
    pub(crate) status: Option<Status>,
}

/// What a server says of itself.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) node_id: String,
    pub(crate) version: String,
    pub(crate) incarnation: String,
    pub(crate) uptime_ms: u64,
    pub(crate) now_unix_ms: u64,
    pub(crate) key_required: bool,
    pub(crate) resident_bytes: u64,
    pub(crate) session_count: u32,
    pub(crate) hit_ratio: Option<f64>,
    pub(crate) limits: Limits,
    /// Why the server is not what it was configured to be; empty if all is well.
    pub(crate) degraded: Vec<String>,
    pub(crate) dram: Tier,
    pub(crate) nvme: Option<Nvme>,
    pub(crate) policy: String,
    pub(crate) pinned_pages: u64,
    pub(crate) pinned_bytes: u64,
    pub(crate) pinned_bytes_max: u64,
    pub(crate) scrub: Scrub,
    pub(crate) quarantined_pages: u64,
    pub(crate) recovery: Recovery,
    pub(crate) ops: Ops,
    /// The drain that is running, or the last one.
    pub(crate) drain: Option<drain::Drain>,
    pub(crate) sessions: Vec<Session>,
}

/// A server's bounds.
#[derive(Debug, Serialize)]
pub(crate) struct Limits {
    pub(crate) page_bytes_max: u32,
    pub(crate) batch_keys_max: u32,
    pub(crate) frame_meta_bytes_max: u32,
    pub(crate) session_connections_max: u32,
    pub(crate) request_ms_max: u32,
}

/// Fill of a tier.
#[derive(Debug, Serialize)]
pub(crate) struct Tier {
    pub(crate) capacity_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) page_bytes: u64,
    pub(crate) asked_bytes: u64,
    pub(crate) pages: u64,
    pub(crate) hits: u64,
    pub(crate) backing: String,
    pub(crate) classes: Vec<Class>,
}

/// Fill of a size class.
#[derive(Debug, Serialize)]
pub(crate) struct Class {
    pub(crate) slot_bytes: u32,
    pub(crate) slots: u64,
    pub(crate) slots_used: u64,
    pub(crate) chunks: u32,
    pub(crate) asked_bytes: u64,
}

/// Counters since the server's start; keys unless the name says otherwise.
#[derive(Debug, Serialize)]
pub(crate) struct Ops {
    pub(crate) get_keys: u64,
    pub(crate) get_hits: u64,
    pub(crate) get_bytes: u64,
    pub(crate) put_keys: u64,
    pub(crate) put_stored: u64,
    pub(crate) put_existing: u64,
    pub(crate) put_bytes: u64,
    pub(crate) exists_keys: u64,
    pub(crate) exists_hits: u64,
    pub(crate) deleted: u64,
    pub(crate) evicted: u64,
    pub(crate) put_busy: u64,
    pub(crate) put_shed_offers: u64,
    pub(crate) put_shed_backlog: u64,
    pub(crate) put_shed_behind: u64,
    pub(crate) corrupt: u64,
    pub(crate) protocol_errors: u64,
    pub(crate) auth_failures: u64,
}

/// One open session.
#[derive(Debug, Serialize)]
pub(crate) struct Session {
    pub(crate) session_id: String,
    pub(crate) client_name: String,
    pub(crate) client_version: String,
    pub(crate) peer: String,
    pub(crate) age_ms: u64,
    pub(crate) connections: u32,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    pub(crate) transport: String,
    pub(crate) queue_pairs: u32,
    pub(crate) regions: u32,
    pub(crate) rdma_sent_bytes: u64,
    pub(crate) rdma_received_bytes: u64,
    pub(crate) rdma_errors: u64,
}

/// `inspect spaces`: every space, summed over the servers that answered.
#[derive(Debug, Serialize)]
pub(crate) struct Spaces {
    pub(crate) spaces: Vec<Space>,
    /// Servers whose part is missing.
    pub(crate) unreachable: Vec<Unreachable>,
}

/// One space; also what `inspect space` prints.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Space {
    pub(crate) space_id: String,
    pub(crate) fields: BTreeMap<String, String>,
    pub(crate) pages: u64,
    pub(crate) page_bytes: u64,
    pub(crate) get_keys: u64,
    pub(crate) get_hits: u64,
    pub(crate) hit_ratio: Option<f64>,
    pub(crate) servers: Vec<SpaceShare>,
}

/// What one server holds of a space.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SpaceShare {
    pub(crate) server: String,
    pub(crate) pages: u64,
    pub(crate) page_bytes: u64,
    pub(crate) get_keys: u64,
    pub(crate) get_hits: u64,
}

/// A server that did not answer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Unreachable {
    pub(crate) server: String,
    pub(crate) error: String,
}

/// `inspect key`.
#[derive(Debug, Serialize)]
pub(crate) struct KeyPlace {
    pub(crate) space_id: String,
    pub(crate) key: String,
    pub(crate) key_hex: String,
    /// What routing starts from.
    pub(crate) digest: String,
    /// Servers in their order of preference; then those that have no place in it and hold the page all the same.
    pub(crate) route: Vec<RouteStep>,
}

/// One server of a key's route.
#[derive(Debug, Default, Serialize)]
pub(crate) struct RouteStep {
    pub(crate) server: String,
    /// Null for a server that has no place in the order.
    pub(crate) score: Option<f64>,
    /// Its share of the keys relative to the others, as it counts now.
    pub(crate) weight: u32,
    /// What its weight is when it has taken all of it.
    pub(crate) weight_full: u32,
    /// `ready`, `draining`, `connecting` or `suspect`, as this client sees it.
    pub(crate) state: &'static str,
    /// Whether the page should be there.
    pub(crate) home: bool,
    /// When a read asks it, from 1; null if never.
    pub(crate) asked: Option<usize>,
    /// Why the page is or should be there; null if neither.
    pub(crate) why: Option<&'static str>,
    /// Null if the server did not answer.
    pub(crate) found: Option<bool>,
    /// Null unless verification was asked for and the page was found.
    pub(crate) verified: Option<bool>,
    pub(crate) error: Option<String>,
    pub(crate) page: Option<Page>,
}

/// One stored page; `ls` prints one of these for each key.
#[derive(Debug, Serialize)]
pub(crate) struct Page {
    pub(crate) key: String,
    pub(crate) key_hex: String,
    pub(crate) server: String,
    pub(crate) bytes: u32,
    pub(crate) slot_bytes: u32,
    pub(crate) checksum: String,
    pub(crate) codec: u32,
    pub(crate) flags: u32,
    pub(crate) age_ms: u64,
    pub(crate) idle_ms: u64,
    pub(crate) hits: u64,
    pub(crate) pins: u32,
    /// From 1; null if unknown.
    pub(crate) position: Option<u32>,
    /// `dram`, `nvme` or `dram+nvme`.
    pub(crate) tier: String,
    /// How long it stays pinned; 0 if it is not.
    pub(crate) pinned_ms: u64,
}

/// `ls`.
#[derive(Debug, Serialize)]
pub(crate) struct Listing {
    pub(crate) space_id: String,
    pub(crate) keys: Vec<Page>,
    /// Whether a limit left keys out.
    pub(crate) truncated: bool,
    pub(crate) unreachable: Vec<Unreachable>,
}

/// `exists` and `rm`: one entry for each key asked about.
#[derive(Debug, Serialize)]
pub(crate) struct Answers {
    pub(crate) keys: Vec<Answer>,
    /// Keys whose server did not answer; they count as "no" above.
    pub(crate) failed: usize,
}

/// The answer for one key.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    pub(crate) key: String,
    pub(crate) key_hex: String,
    /// `exists`: it is stored. `rm`: it was removed.
    pub(crate) yes: bool,
}

/// `put`.
#[derive(Debug, Serialize)]
pub(crate) struct Stored {
    pub(crate) space_id: String,
    pub(crate) key: String,
    pub(crate) bytes: usize,
    /// `stored`, `exists`, or why not: `too_large`, `busy`, `corrupt`, `unavailable`, `timed_out`, `denied`.
    pub(crate) outcome: &'static str,
}

/// `get --json --output FILE`.
#[derive(Debug, Serialize)]
pub(crate) struct Fetched {
    pub(crate) space_id: String,
    pub(crate) key: String,
    pub(crate) bytes: usize,
    pub(crate) output: String,
}

/// `clear`.
#[derive(Debug, Serialize)]
pub(crate) struct Cleared {
    pub(crate) space_id: String,
    pub(crate) removed_pages: u64,
    pub(crate) removed_bytes: u64,
    pub(crate) unreachable: Vec<Unreachable>,
}

/// `ping`.
#[derive(Debug, Serialize)]
pub(crate) struct Pings {
    pub(crate) servers: Vec<Pinged>,
}

/// The times of one server.
#[derive(Debug, Serialize)]
pub(crate) struct Pinged {
    pub(crate) server: String,
    pub(crate) answered: u32,
    pub(crate) lost: u32,
    pub(crate) min_ms: Option<f64>,
    pub(crate) median_ms: Option<f64>,
    pub(crate) max_ms: Option<f64>,
    pub(crate) error: Option<String>,
}

/// `doctor`.
#[derive(Debug, Serialize)]
pub(crate) struct Diagnosis {
    pub(crate) findings: Vec<Finding>,
    /// How many findings must be mended.
    pub(crate) problems: usize,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    /// `ok`, `note` (works, could be better) or `problem`.
    pub(crate) level: &'static str,
    pub(crate) check: String,
    pub(crate) text: String,
    pub(crate) fix: Option<String>,
}

impl Cluster {
    /// The overview of servers that were asked.
    pub(crate) fn new(servers: Vec<Server>) -> Self {
        let statuses = || servers.iter().filter_map(|server| server.status.as_ref());
        let sum = |of: fn(&Status) -> u64| statuses().map(of).sum::<u64>();
        let total = Total {
            servers: servers.len(),
            reachable: statuses().count(),
            pages: sum(|status| status.dram.pages),
            used_bytes: sum(|status| status.dram.used_bytes),
            capacity_bytes: sum(|status| status.dram.capacity_bytes),
            hit_ratio: ratio(sum(|status| status.ops.get_hits), sum(|status| status.ops.get_keys)),
        };
        Self { servers, total, membership: None }
    }
}

impl Server {
    /// A server that answered, or did not.
    pub(crate) fn new(id: String, address: String, answer: Result<v1::GetStatusResponse, String>) -> Self {
        match answer {
            Ok(status) => {
                let state = match drain::state(status.state()) {
                    "serving" if !status.degraded.is_empty() => "degraded",
                    state => state,
                };
                Self { id, address, state, error: None, status: Some(status.into()) }
            }
            Err(error) => Self { id, address, state: "unreachable", error: Some(error), status: None },
        }
    }
}

impl From<v1::GetStatusResponse> for Status {
    fn from(status: v1::GetStatusResponse) -> Self {
        let ops = status.ops.unwrap_or_default();
        Self {
            drain: status.drain.map(|now| drain::Drain::new(&status.node_id, now)),
            node_id: status.node_id,
            version: status.version,
            incarnation: format!("{:016x}", status.incarnation),
            uptime_ms: status.uptime_ms,
            now_unix_ms: status.now_unix_ms,
            key_required: status.key_required,
            resident_bytes: status.resident_bytes,
            session_count: status.session_count,
            hit_ratio: ratio(ops.get_hits, ops.get_keys),
            limits: status.limits.unwrap_or_default().into(),
            degraded: status.degraded,
            dram: status.dram.unwrap_or_default().into(),
            nvme: status.nvme.map(Nvme::from),
            policy: status.policy,
            pinned_pages: status.pinned_pages,
            pinned_bytes: status.pinned_bytes,
            pinned_bytes_max: status.pinned_bytes_max,
            scrub: status.scrub.unwrap_or_default().into(),
            quarantined_pages: status.quarantined,
            recovery: status.recovery.unwrap_or_default().into(),
            ops: ops.into(),
            sessions: status.sessions.into_iter().map(Session::from).collect(),
        }
    }
}

impl From<v1::ServerLimits> for Limits {
    fn from(limits: v1::ServerLimits) -> Self {
        Self {
            page_bytes_max: limits.page_bytes_max,
            batch_keys_max: limits.batch_keys_max,
            frame_meta_bytes_max: limits.frame_meta_bytes_max,
            session_connections_max: limits.session_connections_max,
            request_ms_max: limits.request_ms_max,
        }
    }
}

impl From<v1::TierStatus> for Tier {
    fn from(tier: v1::TierStatus) -> Self {
        let class = |class: v1::ClassStatus| Class {
            slot_bytes: class.slot_bytes,
            slots: class.slots,
            slots_used: class.slots_used,
            chunks: class.chunks,
            asked_bytes: class.asked_bytes,
        };
        Self {
            capacity_bytes: tier.capacity_bytes,
            used_bytes: tier.used_bytes,
            page_bytes: tier.page_bytes,
            asked_bytes: tier.asked_bytes,
            pages: tier.pages,
            hits: tier.hits,
            backing: tier.backing,
            classes: tier.classes.into_iter().map(class).collect(),
        }
    }
}

impl From<v1::OpCounters> for Ops {
    fn from(ops: v1::OpCounters) -> Self {
        Self {
            get_keys: ops.get_keys,
            get_hits: ops.get_hits,
            get_bytes: ops.get_bytes,
            put_keys: ops.put_keys,
            put_stored: ops.put_stored,
            put_existing: ops.put_existing,
            put_bytes: ops.put_bytes,
            exists_keys: ops.exists_keys,
            exists_hits: ops.exists_hits,
            deleted: ops.deleted,
            evicted: ops.evicted,
            put_busy: ops.put_busy,
            put_shed_offers: ops.put_shed_offers,
            put_shed_backlog: ops.put_shed_backlog,
            put_shed_behind: ops.put_shed_behind,
            corrupt: ops.corrupt,
            protocol_errors: ops.protocol_errors,
            auth_failures: ops.auth_failures,
        }
    }
}

impl From<v1::SessionStatus> for Session {
    fn from(session: v1::SessionStatus) -> Self {
        Self {
            session_id: hex::encode(session.session_id),
            client_name: session.client_name,
            client_version: session.client_version,
            peer: session.peer,
            age_ms: session.age_ms,
            connections: session.connections,
            sent_bytes: session.sent_bytes,
            received_bytes: session.received_bytes,
            transport: session.transport,
            queue_pairs: session.queue_pairs,
            regions: session.regions,
            rdma_sent_bytes: session.rdma_sent_bytes,
            rdma_received_bytes: session.rdma_received_bytes,
            rdma_errors: session.rdma_errors,
        }
    }
}

impl Spaces {
    /// Puts together what each server said about its spaces, ordered by identity.
    pub(crate) fn new(answers: Vec<(String, Result<v1::ListSpacesResponse, String>)>) -> Self {
        let mut spaces: BTreeMap<Vec<u8>, Space> = BTreeMap::new();
        let mut unreachable = Vec::new();
        for (server, answer) in answers {
            match answer {
                Ok(list) => list.spaces.into_iter().for_each(|space| add_share(&mut spaces, &server, space)),
                Err(error) => unreachable.push(Unreachable { server, error }),
            }
        }
        let mut spaces: Vec<Space> = spaces.into_values().collect();
        for space in &mut spaces {
            space.hit_ratio = ratio(space.get_hits, space.get_keys);
        }
        Self { spaces, unreachable }
    }
}

fn add_share(spaces: &mut BTreeMap<Vec<u8>, Space>, server: &str, part: v1::SpaceStatus) {
    let fields = part.space.unwrap_or_default().fields;
    let space = spaces.entry(part.space_id.clone()).or_insert_with(|| Space {
        space_id: hex::encode(&part.space_id),
        fields: fields.into_iter().collect(),
        pages: 0,
        page_bytes: 0,
        get_keys: 0,
        get_hits: 0,
        hit_ratio: None,
        servers: Vec::new(),
    });
    space.pages += part.pages;
    space.page_bytes += part.page_bytes;
    space.get_keys += part.get_keys;
    space.get_hits += part.get_hits;
    space.servers.push(SpaceShare {
        server: server.to_owned(),
        pages: part.pages,
        page_bytes: part.page_bytes,
        get_keys: part.get_keys,
        get_hits: part.get_hits,
    });
}

impl Page {
    /// One key as a server lists it.
    pub(crate) fn new(server: &str, key: v1::KeyStatus) -> Self {
        let record = key.record.unwrap_or_default();
        Self {
            key: key_text(&key.key),
            key_hex: hex::encode(&key.key),
            server: server.to_owned(),
            bytes: record.len,
            slot_bytes: key.slot_bytes,
            checksum: format!("{:016x}", record.checksum),
            codec: record.codec,
            flags: record.flags,
            age_ms: key.age_ms,
            idle_ms: key.idle_ms,
            hits: key.hits,
            pins: key.pins,
            position: (key.position > 0).then_some(key.position),
            tier: key.tier,
            pinned_ms: key.pinned_ms,
        }
    }
}

/// A key as the command line takes it: text, or `hex:…` if it is not printable.
pub(crate) fn key_text(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if !text.chars().any(char::is_control) && !text.starts_with("hex:") => text.to_owned(),
        _ => format!("hex:{}", hex::encode(key)),
    }
}
