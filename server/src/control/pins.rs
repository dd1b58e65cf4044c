//! `memkv.v1.Admin`, pins: pages that operators keep from eviction for a time.

use super::status::Fault;
use crate::node::Node;
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
pub(super) async fn pin(node: &Node, request: v1::PinRequest) -> Result<v1::PinResponse, Fault> {
    if request.ttl_ms == 0 || request.ttl_ms > TTL_MS_MAX {
        return Err(Fault::Invalid(Invalid::OutOfRange("ttl_ms")));
    }
    let id = space_id_from_wire(&request.space_id)?;
    let keys = hashed(node, id, &request.keys)?;
    let engine = &node.engine;
    let mut response = v1::PinResponse { missing: keys.len() as u64, ..Default::default() };
    if let Some(space) = engine.space(id) {
        let report = engine.keep(&space, &keys, request.ttl_ms, node.clock.now_ms()).await;
        response.pinned = report.kept;
        response.missing = report.missing;
        response.over_quota = report.over_quota;
        tracing::info!(space = %id, pages = report.kept, ttl_ms = request.ttl_ms, "pages pinned");
    }
    let status = engine.status();
    response.pinned_bytes = status.kept_bytes;
    response.pinned_bytes_max = status.kept_bytes_max;
    Ok(response)
}

/// Gives pins back; without keys, all of the space.
pub(super) fn unpin(node: &Node, request: &v1::UnpinRequest) -> Result<v1::UnpinResponse, Fault> {
    let id = space_id_from_wire(&request.space_id)?;
    let engine = &node.engine;
    let Some(space) = engine.space(id) else { return Ok(v1::UnpinResponse::default()) };
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
pub(super) fn list(node: &Node) -> v1::ListPinsResponse {
    let now_ms = node.clock.now_ms();
    let mut kept = node.engine.kept(now_ms);
    kept.sort_by_key(|kept| kept.until_ms);
    kept.truncate(LISTED_MAX);
    let pin = |kept: memkv_storage::KeptInfo| v1::PinStatus {
        space_id: kept.space.0.to_vec(),
        key: kept.key,
        bytes: kept.bytes,
        left_ms: kept.until_ms.saturating_sub(now_ms),
    };
    let status = node.engine.status();
    v1::ListPinsResponse {
        pins: kept.into_iter().map(pin).collect(),
        pinned_bytes: status.kept_bytes,
        pinned_bytes_max: status.kept_bytes_max,
    }
}
