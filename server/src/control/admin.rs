//! `memkv.v1.Admin`: looks inside and cleans up.

use super::gate::caller;
use super::status::Fault;
use super::{drain, pins, tiers, verify};
use crate::clock;
use crate::metrics::{Metrics, resident_bytes};
use crate::node::Node;
use crate::sessions::Session;
use crate::tenants::Tenant;
use memkv_core::{Key, PageHasher, SpaceId, position};
use memkv_proto::{Invalid, space_id_from_wire, v1};
use memkv_storage::{EngineStatus, HashedKey, KeyInfo, QuarantinedInfo, Space};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

/// Sessions in one status.
const SESSIONS_SHOWN: usize = 1_000;
/// Keys of one list: without a wish, and at most.
const LIST_DEFAULT: u32 = 1_000;
const LIST_MAX: u32 = 10_000;

/// The service.
pub(crate) struct AdminService {
    node: Arc<Node>,
    /// One check of all pages at a time.
    checks: Arc<Semaphore>,
}

impl AdminService {
    /// A service over the node.
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node, checks: Arc::new(Semaphore::new(1)) }
    }

    /// A space that the tenant administers.
    fn space(&self, tenant: &Tenant, space_id: &[u8]) -> Result<(SpaceId, Option<Arc<Space>>), Fault> {
        let id = space_id_from_wire(space_id)?;
        Ok((id, tenant.find(&self.node.engine, id).own()))
    }

    /// What a tenant may know of the server: itself.
    fn own_status(&self, tenant: &Arc<Tenant>) -> v1::GetStatusResponse {
        let node = &self.node;
        let now_ms = node.clock.now_ms();
        let sessions = node.sessions.some(SESSIONS_SHOWN, |session| Arc::ptr_eq(&session.tenant, tenant));
        v1::GetStatusResponse {
            node_id: node.id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: node.incarnation,
            state: node.state().into(),
            uptime_ms: node.clock.uptime_ms(),
            now_unix_ms: clock::unix_ms(),
            key_required: true,
            limits: Some((&node.limits).into()),
            ops: Some(v1::OpCounters {
                get_bytes: tenant.counters.sent_bytes.load(Ordering::Relaxed),
                put_bytes: tenant.counters.received_bytes.load(Ordering::Relaxed),
                ..v1::OpCounters::default()
            }),
            dram: Some(tiers::share(&node.engine.usage(tenant.name()))),
            session_count: u32::try_from(sessions.len()).unwrap_or(u32::MAX),
            sessions: sessions.iter().map(|session| session_status(session, now_ms)).collect(),
            ..v1::GetStatusResponse::default()
        }
    }
}

#[tonic::async_trait]
impl v1::admin_server::Admin for AdminService {
    type VerifyStream = verify::Steps;
    type DrainStream = drain::Steps;

    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let tenant = caller(&request)?;
        if !tenant.is_operator() {
            return Ok(Response::new(self.own_status(&tenant)));
        }
        let node = &self.node;
        let now_ms = node.clock.now_ms();
        let engine = node.engine.status();
        let sessions = node.sessions.some(SESSIONS_SHOWN, |_| true);
        Ok(Response::new(v1::GetStatusResponse {
            node_id: node.id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: node.incarnation,
            state: node.state().into(),
            uptime_ms: node.clock.uptime_ms(),
            now_unix_ms: clock::unix_ms(),
            key_required: node.tenants.key_required(),
            limits: Some((&node.limits).into()),
            ops: Some(op_counters(&node.metrics, &engine)),
            dram: Some(tiers::dram(&engine)),
            sessions: sessions.iter().map(|session| session_status(session, now_ms)).collect(),
            session_count: u32::try_from(node.sessions.count()).unwrap_or(u32::MAX),
            resident_bytes: resident_bytes(),
            nvme: tiers::nvme(&engine, &node.config.storage),
            policy: engine.policy.name().to_owned(),
            pinned_pages: engine.kept_pages,
            pinned_bytes: engine.kept_bytes,
            pinned_bytes_max: engine.kept_bytes_max,
            scrub: Some(tiers::scrub(&engine)),
            recovery: Some(tiers::recovery(&engine)),
            quarantined: engine.quarantined,
            degraded: engine.degraded.into_iter().chain(crate::tls::complaint(node)).collect(),
            drain: node.drain.job().map(|job| job.view()),
        }))
    }

    async fn list_spaces(
        &self,
        request: Request<v1::ListSpacesRequest>,
    ) -> Result<Response<v1::ListSpacesResponse>, Status> {
        let spaces = caller(&request)?.administers(&self.node.engine);
        Ok(Response::new(v1::ListSpacesResponse { spaces: spaces.iter().map(|s| space_status(s)).collect() }))
    }

    async fn list_keys(
        &self,
        request: Request<v1::ListKeysRequest>,
    ) -> Result<Response<v1::ListKeysResponse>, Status> {
        let tenant = caller(&request)?;
        let request = request.into_inner();
        let (_, space) = self.space(&tenant, &request.space_id)?;
        let Some(space) = space else { return Ok(Response::new(Default::default())) };
        let limit = if request.limit == 0 { LIST_DEFAULT } else { request.limit.min(LIST_MAX) };
        let listing = self.node.engine.list(&space, &request.prefix, limit as usize, &request.cursor);
        let listing = listing.map_err(|_| Fault::BadCursor)?;
        let now_ms = self.node.clock.now_ms();
        Ok(Response::new(v1::ListKeysResponse {
            keys: listing.entries.into_iter().map(|info| key_status(info, now_ms)).collect(),
            next_cursor: listing.next_cursor,
        }))
    }

    async fn inspect_key(
        &self,
        request: Request<v1::InspectKeyRequest>,
    ) -> Result<Response<v1::InspectKeyResponse>, Status> {
        let tenant = caller(&request)?;
        let request = request.into_inner();
        let (id, space) = self.space(&tenant, &request.space_id)?;
        let key = Key::new(&request.key).map_err(|error| Fault::Invalid(Invalid::Key(error)))?;
        let Some(space) = space else { return Ok(Response::new(Default::default())) };
        let key = HashedKey::new(id, key);
        let Some(info) = self.node.engine.inspect(&space, key) else {
            return Ok(Response::new(Default::default()));
        };
        let verified = request.verify && self.verify(&space, key).await;
        let status = Some(key_status(info, self.node.clock.now_ms()));
        Ok(Response::new(v1::InspectKeyResponse { found: true, status, verified }))
    }

    async fn clear_space(
        &self,
        request: Request<v1::ClearSpaceRequest>,
    ) -> Result<Response<v1::ClearSpaceResponse>, Status> {
        let tenant = caller(&request)?;
        let (id, space) = self.space(&tenant, &request.into_inner().space_id)?;
        let Some(space) = space else { return Ok(Response::new(Default::default())) };
        let cleared = self.node.engine.clear(&space);
        self.node.engine.settle_removals().await;
        Metrics::add(&self.node.metrics.deleted, cleared.pages);
        tracing::info!(space = %id, pages = cleared.pages, bytes = cleared.bytes, "space cleared");
        Ok(Response::new(v1::ClearSpaceResponse {
            removed_pages: cleared.pages,
            removed_bytes: cleared.bytes,
        }))
    }

    async fn pin(&self, request: Request<v1::PinRequest>) -> Result<Response<v1::PinResponse>, Status> {
        let tenant = caller(&request)?;
        Ok(Response::new(pins::pin(&self.node, &tenant, request.into_inner()).await?))
    }

    async fn unpin(&self, request: Request<v1::UnpinRequest>) -> Result<Response<v1::UnpinResponse>, Status> {
        let tenant = caller(&request)?;
        Ok(Response::new(pins::unpin(&self.node, &tenant, &request.into_inner())?))
    }

    async fn list_pins(
        &self,
        request: Request<v1::ListPinsRequest>,
    ) -> Result<Response<v1::ListPinsResponse>, Status> {
        Ok(Response::new(pins::list(&self.node, &*caller(&request)?)))
    }

    async fn verify(
        &self,
        request: Request<v1::VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        operator_only(&request)?;
        let place = Arc::clone(&self.checks).try_acquire_owned().map_err(|_| Fault::Verifying)?;
        Ok(Response::new(verify::start(&self.node, &request.into_inner(), place)?))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        operator_only(&request)?;
        Ok(Response::new(drain::run(&self.node, request.into_inner()).await?))
    }

    async fn list_quarantined(
        &self,
        request: Request<v1::ListQuarantinedRequest>,
    ) -> Result<Response<v1::ListQuarantinedResponse>, Status> {
        let tenant = caller(&request)?;
        let engine = &self.node.engine;
        let now_ms = self.node.clock.now_ms();
        let pages = engine.quarantined().into_iter().rev();
        let pages = pages.filter(|page| tenant.find(engine, page.space).own().is_some());
        let pages: Vec<_> = pages.map(|page| quarantined(page, now_ms)).collect();
        // How many there were in all is not for a tenant.
        let count = if tenant.is_operator() { engine.status().quarantined } else { pages.len() as u64 };
        Ok(Response::new(v1::ListQuarantinedResponse { pages, count }))
    }

    async fn list_segments(
        &self,
        request: Request<v1::ListSegmentsRequest>,
    ) -> Result<Response<v1::ListSegmentsResponse>, Status> {
        operator_only(&request)?;
        Ok(Response::new(v1::ListSegmentsResponse { segments: tiers::segments(&self.node.engine) }))
    }

    async fn list_tenants(
        &self,
        request: Request<v1::ListTenantsRequest>,
    ) -> Result<Response<v1::ListTenantsResponse>, Status> {
        let tenant = caller(&request)?;
        let tenants = self.node.tenants.statuses(&tenant, &self.node.engine);
        Ok(Response::new(v1::ListTenantsResponse { tenants }))
    }
}

/// For what looks at everybody's pages.
fn operator_only<T>(request: &Request<T>) -> Result<(), Fault> {
    if caller(request)?.is_operator() { Ok(()) } else { Err(Fault::OperatorOnly) }
}

impl AdminService {
    /// Computes the checksum again; a page that fails is taken out, so that it is a miss from now on.
    async fn verify(&self, space: &Space, key: HashedKey<'_>) -> bool {
        let mut pins = Vec::new();
        self.node.engine.pin_batch(space, &[key], self.node.clock.now_ms(), &mut pins).await;
        let Some(Some(pin)) = pins.pop() else { return false };
        let good = pin.meta().checksum_of(PageHasher::oneshot(key.digest, &pin)) == pin.meta().checksum;
        if !good {
            self.node.engine.quarantine(space, key);
            tracing::error!(key = %key.key, "a stored page did not match its checksum; check this machine's memory");
        }
        good
    }
}

fn op_counters(metrics: &Metrics, engine: &EngineStatus) -> v1::OpCounters {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    v1::OpCounters {
        get_keys: get(&metrics.get_keys),
        get_hits: get(&metrics.get_hits),
        get_bytes: get(&metrics.get_bytes),
        put_keys: get(&metrics.put_keys),
        put_stored: get(&metrics.put_stored),
        put_existing: get(&metrics.put_existing),
        put_bytes: get(&metrics.put_bytes),
        exists_keys: get(&metrics.exists_keys),
        exists_hits: get(&metrics.exists_hits),
        deleted: get(&metrics.deleted),
        evicted: engine.counters.evicted_pages,
        put_busy: get(&metrics.put_busy),
        put_shed_offers: get(&metrics.put_shed_offers),
        put_shed_backlog: get(&metrics.put_shed_backlog),
        put_shed_behind: get(&metrics.put_shed_behind),
        corrupt: engine.counters.corrupt,
        protocol_errors: get(&metrics.protocol_errors),
        auth_failures: get(&metrics.auth_failures),
    }
}

fn session_status(session: &Session, now_ms: u64) -> v1::SessionStatus {
    let rdma = session.rdma.numbers();
    v1::SessionStatus {
        session_id: session.id.to_vec(),
        client_name: session.client_name.clone(),
        client_version: session.client_version.clone(),
        peer: session.peer.map(|peer| peer.to_string()).unwrap_or_default(),
        age_ms: now_ms.saturating_sub(session.opened_ms),
        connections: session.connections(),
        sent_bytes: session.sent_bytes.load(Ordering::Relaxed),
        received_bytes: session.received_bytes.load(Ordering::Relaxed),
        transport: if rdma.queue_pairs > 0 { "rdma" } else { "tcp" }.to_owned(),
        queue_pairs: rdma.queue_pairs,
        regions: rdma.regions,
        rdma_sent_bytes: rdma.written_bytes,
        rdma_received_bytes: rdma.read_bytes,
        rdma_errors: rdma.errors,
    }
}

fn space_status(space: &Space) -> v1::SpaceStatus {
    let stats = space.stats();
    v1::SpaceStatus {
        space_id: space.id().0.to_vec(),
        space: Some(space.description().into()),
        pages: stats.pages,
        page_bytes: stats.bytes,
        get_keys: stats.get_keys,
        get_hits: stats.get_hits,
    }
}

fn key_status(info: KeyInfo, now_ms: u64) -> v1::KeyStatus {
    v1::KeyStatus {
        key: info.key,
        record: Some(info.meta.into()),
        age_ms: now_ms.saturating_sub(info.created_ms),
        idle_ms: now_ms.saturating_sub(info.last_access_ms),
        hits: info.hits.into(),
        slot_bytes: info.slot_bytes,
        pins: info.pins,
        position: position::in_chain(info.position),
        tier: match (info.in_dram, info.drive) {
            (true, None) => "dram",
            (true, Some(_)) => "dram+nvme",
            (false, _) => "nvme",
        }
        .to_owned(),
        pinned_ms: info.kept_until_ms.map_or(0, |until_ms| until_ms.saturating_sub(now_ms)),
    }
}

fn quarantined(page: QuarantinedInfo, now_ms: u64) -> v1::QuarantinedPage {
    v1::QuarantinedPage {
        space_id: page.space.0.to_vec(),
        key: page.key,
        tier: page.tier.text().to_owned(),
        age_ms: now_ms.saturating_sub(page.at_ms),
        reason: page.why,
    }
}
