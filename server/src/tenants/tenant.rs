//! One tenant: what it may do, what it sees, and what it has done.

use super::SPACES_DEFAULT;
use super::rate::Rate;
use crate::allowance::{Allowance, Allowances};
use crate::config::RequestBytes;
use memkv_core::{SpaceDescription, SpaceId};
use memkv_credentials as credentials;
use memkv_credentials::{Pattern, Rights};
use memkv_storage::{Engine, Space};
use memkv_transport::tenant::Verifier;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// Whoever uses the server under one name. Lives as long as a session or call of it.
pub(crate) struct Tenant {
    /// Empty for the operator who has the cluster's key.
    name: String,
    /// Whether anything has to be looked at for a request; not for a server without tenants.
    limited: bool,
    rights: AtomicU8,
    operator: AtomicBool,
    spaces_max: AtomicU64,
    secrets: RwLock<Secrets>,
    /// The spaces it may see.
    spaces: RwLock<HashMap<SpaceId, Seen>>,
    pub(crate) rate: Rate,
    pub(crate) counters: Counters,
    /// What its requests that are at work may hold.
    held: Allowance,
    /// Bytes of slots that wait for its pages.
    pub(crate) arriving: AtomicU64,
    shares: Shares,
    connections_max: AtomicU64,
    connections: Arc<AtomicU64>,
    sessions: Arc<AtomicU64>,
}

/// What one tenant may have of what all share, where its quotas do not say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    /// Connections of both planes.
    pub(crate) connections: u64,
    pub(crate) sessions: u64,
    /// Bytes of requests that are at work.
    pub(crate) request_bytes: u64,
}

impl Default for Shares {
    fn default() -> Self {
        Self { connections: u64::MAX, sessions: u64::MAX, request_bytes: RequestBytes::default().tenant }
    }
}

/// A connection's or session's place among its tenant's, given back on drop.
#[derive(Debug)]
pub(crate) struct Connected(Arc<AtomicU64>);

impl Connected {
    /// One more, if there are fewer than `most`.
    fn enter(count: &Arc<AtomicU64>, most: u64) -> Option<Self> {
        let more = |now: u64| (now < most).then_some(now + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(Arc::clone(count)))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Secrets {
    keys: Vec<credentials::Key>,
    certificates: Vec<String>,
    patterns: Vec<Pattern>,
}

/// A space in a tenant's table.
struct Seen {
    space: Arc<Space>,
    own: bool,
}

/// What a tenant has done since the server's start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    /// Requests that were refused because the tenant was over its rate.
    pub(crate) refused: AtomicU64,
    /// Requests that had to wait.
    pub(crate) delayed: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
}

/// What a tenant sees of a space.
pub(crate) enum Found {
    /// Nothing; also if somebody else has it.
    No,
    /// Somebody else's, to read.
    Readable(Arc<Space>),
    /// Its own.
    Own(Arc<Space>),
}

impl Found {
    /// The space, if it may be read.
    pub(crate) fn readable(self) -> Option<Arc<Space>> {
        match self {
            Self::No => None,
            Self::Readable(space) | Self::Own(space) => Some(space),
        }
    }

    /// The space, if it is the tenant's own.
    pub(crate) fn own(self) -> Option<Arc<Space>> {
        match self {
            Self::No | Self::Readable(_) => None,
            Self::Own(space) => Some(space),
        }
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenant").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Tenant {
    /// Who has the cluster's key; `counted` if there are others, so that its numbers matter.
    pub(crate) fn cluster(counted: bool, shares: Shares) -> Self {
        let tenant = Self { limited: counted, ..Self::new("", shares) };
        tenant.rights.store(Rights::ALL.bits(), Ordering::Relaxed);
        tenant.operator.store(true, Ordering::Relaxed);
        tenant
    }

    /// A tenant that may nothing yet.
    pub(crate) fn new(name: &str, shares: Shares) -> Self {
        Self {
            held: Allowance::new(shares.request_bytes),
            arriving: AtomicU64::new(0),
            connections_max: AtomicU64::new(shares.connections),
            connections: Arc::default(),
            sessions: Arc::default(),
            shares,
            name: name.to_owned(),
            limited: true,
            rights: AtomicU8::new(0),
            operator: AtomicBool::new(false),
            spaces_max: AtomicU64::new(SPACES_DEFAULT),
            secrets: RwLock::default(),
            spaces: RwLock::default(),
            rate: Rate::default(),
            counters: Counters::default(),
        }
    }

    /// Takes over what the file says.
    pub(super) fn change(&self, entry: &credentials::Tenant) {
        self.rights.store(entry.rights.bits(), Ordering::Relaxed);
        self.operator.store(entry.operator, Ordering::Relaxed);
        self.spaces_max.store(entry.quotas.spaces.unwrap_or(SPACES_DEFAULT), Ordering::Relaxed);
        let connections = entry.quotas.connections.unwrap_or(self.shares.connections);
        self.connections_max.store(connections, Ordering::Relaxed);
        self.rate.set(entry.quotas.requests_per_s, entry.quotas.bytes_per_s);
        *self.secrets.write() = Secrets {
            keys: entry.keys.clone(),
            certificates: entry.certificates.clone(),
            patterns: entry.spaces.clone(),
        };
    }

    /// It is in the file no more.
    pub(super) fn remove(&self) {
        self.rights.store(0, Ordering::Relaxed);
        self.operator.store(false, Ordering::Relaxed);
        *self.secrets.write() = Secrets::default();
        self.spaces.write().clear();
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether rights, spaces and rates have to be looked at.
    pub(crate) fn is_limited(&self) -> bool {
        self.limited
    }

    pub(crate) fn is_operator(&self) -> bool {
        self.operator.load(Ordering::Relaxed)
    }

    pub(crate) fn rights(&self) -> Rights {
        Rights::from_bits(self.rights.load(Ordering::Relaxed))
    }

    pub(crate) fn may(&self, right: Rights) -> bool {
        self.rights().allow(right)
    }

    pub(super) fn spaces_max(&self) -> u64 {
        self.spaces_max.load(Ordering::Relaxed)
    }

    pub(super) fn verifier(&self, key_id: &str) -> Option<Verifier> {
        let secrets = self.secrets.read();
        secrets.keys.iter().find(|key| key.id == key_id).map(|key| key.verifier.clone())
    }

    /// The ids of its keys.
    pub(crate) fn key_ids(&self) -> Vec<String> {
        self.secrets.read().keys.iter().map(|key| key.id.clone()).collect()
    }

    /// Whether what a session was opened with is still valid.
    pub(crate) fn accepts(&self, proof: &Proven) -> bool {
        match proof {
            Proven::Cluster => true,
            Proven::Key(id) => self.secrets.read().keys.iter().any(|key| key.id == *id),
            Proven::Certificate(name) => self.secrets.read().certificates.contains(name),
        }
    }

    /// Whether it may open a space of its own.
    pub(super) fn may_open(&self, space: &SpaceDescription) -> bool {
        let secrets = self.secrets.read();
        secrets.patterns.is_empty() || secrets.patterns.iter().any(|pattern| pattern.fits(space))
    }

    /// The space of this identity as the tenant sees it.
    pub(crate) fn find(&self, engine: &Engine, id: SpaceId) -> Found {
        if self.is_operator() {
            return engine.space(id).map_or(Found::No, Found::Own);
        }
        match self.spaces.read().get(&id) {
            None => Found::No,
            Some(Seen { space, own: true }) => Found::Own(Arc::clone(space)),
            Some(Seen { space, own: false }) => Found::Readable(Arc::clone(space)),
        }
    }

    /// All spaces that it administers.
    pub(crate) fn administers(&self, engine: &Engine) -> Vec<Arc<Space>> {
        if self.is_operator() {
            return engine.spaces();
        }
        let spaces = self.spaces.read();
        let mut own: Vec<_> =
            spaces.values().filter(|seen| seen.own).map(|seen| Arc::clone(&seen.space)).collect();
        own.sort_by_key(|space| space.id());
        own
    }

    pub(super) fn has_own(&self, id: SpaceId) -> bool {
        self.spaces.read().get(&id).is_some_and(|seen| seen.own)
    }

    pub(crate) fn own_spaces(&self) -> u64 {
        self.spaces.read().values().filter(|seen| seen.own).count() as u64
    }

    pub(super) fn add(&self, space: &Arc<Space>, own: bool) {
        let space = Arc::clone(space);
        self.spaces.write().insert(space.id(), Seen { space, own });
    }

    pub(super) fn replace_spaces(&self, spaces: Vec<(Arc<Space>, bool)>) {
        *self.spaces.write() =
            spaces.into_iter().map(|(space, own)| (space.id(), Seen { space, own })).collect();
    }

    /// What a request is counted against that came by a session or connection with this allowance.
    pub(crate) fn allowances(&self, own: &Allowance, server: &Allowance) -> Allowances {
        Allowances::new(own, &self.held, server)
    }

    /// A place for a connection; `None` if it has as many as it may. Operators have no bound but the server's.
    pub(crate) fn connect(&self) -> Option<Connected> {
        let most = if self.is_operator() { u64::MAX } else { self.connections_max.load(Ordering::Relaxed) };
        Connected::enter(&self.connections, most)
    }

    /// A place for a session, likewise.
    pub(crate) fn begin_session(&self) -> Option<Connected> {
        let most = if self.is_operator() { u64::MAX } else { self.shares.sessions };
        Connected::enter(&self.sessions, most)
    }

    /// Counts a request, and says how long it has to wait.
    pub(crate) fn request(&self) -> Duration {
        if !self.limited {
            return Duration::ZERO;
        }
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        self.rate.wait()
    }

    /// Counts a request that is carried out.
    pub(crate) fn begin(&self) {
        if self.limited {
            self.rate.take_request();
        }
    }

    /// Counts bytes of pages that went to a client.
    pub(crate) fn sent(&self, bytes: u64) {
        if self.limited {
            self.counters.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.rate.take_bytes(bytes);
        }
    }

    /// Counts bytes of pages that came from a client.
    pub(crate) fn received(&self, bytes: u64) {
        if self.limited {
            self.counters.received_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.rate.take_bytes(bytes);
        }
    }
}

/// What a session's client has proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proven {
    /// The cluster's key, or that there is none.
    Cluster,
    /// The tenant's key with this id.
    Key(String),
    /// That it has a certificate with this name.
    Certificate(String),
}
