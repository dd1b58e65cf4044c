//! `memkv.v1.Admin`, pins: pages that operators keep from eviction for a time.

use super::status::Fault;
use crate::node::Node;
use crate::tenants::Tenant;
use memkv_core::SpaceId;
use memkv_proto::{Invalid, keys_from_wire, space_id_from_wire, v1};
use memkv_storage::HashedKey;

/// The longest time of a pin: a year.
const TTL_MS_MAX: u64 = 365 * 24 * 3_600_000;
/// The most pins in one list.
const LISTED_MAX: usize = 100_000;

fn hashed<'a>(node: &Node, id: SpaceId, keys: &'a [Vec<u8>]) -> Result<Vec<HashedKey<'a>>, Fault> {
    let most = node.limits.batch_keys_max;
    if keys.len() > most as usize {
        return Err(Fault::TooManyKeys { keys: keys.len(), most });
    }
    Ok(keys_from_wire(keys)?.into_iter().map(|key| HashedKey::new(id, key)).collect())
}

/// Pins keys.
pub(super) async fn pin(
    node: &Node,
    tenant: &Tenant,
    request: v1::PinRequest,
) -> Result<v1::PinResponse, Fault> {
    if request.ttl_ms == 0 || request.ttl_ms > TTL_MS_MAX {
        return Err(Fault::Invalid(Invalid::OutOfRange("ttl_ms")));
    }
    let id = space_id_from_wire(&request.space_id)?;
    let keys = hashed(node, id, &request.keys)?;
    let engine = &node.engine;
    let mut response = v1::PinResponse { missing: keys.len() as u64, ..Default::default() };
    let most = Pinned::of(node, tenant);
    if let Some(space) = tenant.find(engine, id).own() {
        let report =
            engine.keep_within(&space, &keys, most.room(), request.ttl_ms, node.clock.now_ms()).await;
        response.pinned = report.kept;
        response.missing = report.missing;
        response.over_quota = report.over_quota;
        tracing::info!(space = %id, pages = report.kept, ttl_ms = request.ttl_ms, "pages pinned");
    }
    let pinned = Pinned::of(node, tenant);
    response.pinned_bytes = pinned.bytes;
    response.pinned_bytes_max = pinned.bytes_max;
    Ok(response)
}

/// Gives pins back; without keys, all of the space.
pub(super) fn unpin(
    node: &Node,
    tenant: &Tenant,
    request: &v1::UnpinRequest,
) -> Result<v1::UnpinResponse, Fault> {
    let id = space_id_from_wire(&request.space_id)?;
    let engine = &node.engine;
    let Some(space) = tenant.find(engine, id).own() else { return Ok(v1::UnpinResponse::default()) };
    let mut all = Vec::new();
    if request.keys.is_empty() {
        let kept = engine.kept(node.clock.now_ms());
        all = kept.into_iter().filter(|kept| kept.space == id).map(|kept| kept.key).collect();
    }
    let mut unpinned = 0;
    if all.is_empty() {
        unpinned += engine.unkeep(&space, &hashed(node, id, &request.keys)?);
    }
    for keys in all.chunks(node.limits.batch_keys_max as usize) {
        unpinned += engine.unkeep(&space, &hashed(node, id, keys)?);
    }
    tracing::info!(space = %id, pages = unpinned, "pages unpinned");
    Ok(v1::UnpinResponse { unpinned })
}

/// The pins in force, those that end first before the others.
pub(super) fn list(node: &Node, tenant: &Tenant) -> v1::ListPinsResponse {
    let now_ms = node.clock.now_ms();
    let mut kept = own_pins(node, tenant);
    kept.sort_by_key(|kept| kept.until_ms);
    kept.truncate(LISTED_MAX);
    let pin = |kept: memkv_storage::KeptInfo| v1::PinStatus {
        space_id: kept.space.0.to_vec(),
        key: kept.key,
        bytes: kept.bytes,
        left_ms: kept.until_ms.saturating_sub(now_ms),
    };
    let pinned = Pinned::of(node, tenant);
    v1::ListPinsResponse {
        pins: kept.into_iter().map(pin).collect(),
        pinned_bytes: pinned.bytes,
        pinned_bytes_max: pinned.bytes_max,
    }
}

/// The pins in spaces that the tenant administers.
fn own_pins(node: &Node, tenant: &Tenant) -> Vec<memkv_storage::KeptInfo> {
    let mut kept = node.engine.kept(node.clock.now_ms());
    kept.retain(|kept| tenant.find(&node.engine, kept.space).own().is_some());
    kept
}

/// What a tenant has pinned, and may. An operator sees the whole store; a tenant with a quota of memory may pin the same
/// share of that as everybody together of the store.
struct Pinned {
    bytes: u64,
    bytes_max: u64,
}

impl Pinned {
    fn of(node: &Node, tenant: &Tenant) -> Self {
        let status = node.engine.status();
        if tenant.is_operator() {
            return Self { bytes: status.kept_bytes, bytes_max: status.kept_bytes_max };
        }
        let bytes = own_pins(node, tenant).iter().map(|kept| kept.bytes).sum();
        let quota = node.engine.usage(tenant.name()).dram_bytes_max.unwrap_or(status.capacity_bytes);
        let share =
            u128::from(quota) * u128::from(status.kept_bytes_max) / u128::from(status.capacity_bytes.max(1));
        Self { bytes, bytes_max: u64::try_from(share).unwrap_or(u64::MAX) }
    }

    fn room(&self) -> u64 {
        self.bytes_max.saturating_sub(self.bytes)
    }
}
