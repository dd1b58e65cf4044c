//! `pin`, `unpin` and `pins`.

use super::keys::parse_keys;
use crate::failure::{Code, Failure};
use crate::fleet::Fleet;
use crate::output::Output;
use crate::render;
use crate::selector::Selector;
use std::time::Duration;

pub(crate) async fn pin(
    fleet: &Fleet,
    output: &Output,
    space: &str,
    keys: &[String],
    ttl: Duration,
) -> Result<(), Failure> {
    let keys = parse_keys(keys)?;
    let space = fleet.find_space_id(&Selector::parse(space)?).await?;
    let pinned = fleet.pin(space, &keys, ttl).await;
    output.show(&pinned, |pinned, _| render::storage::pinned(pinned))?;
    output.say_unreachable(&pinned.unreachable);
    if pinned.pinned == pinned.keys {
        return Ok(());
    }
    if !pinned.unreachable.is_empty() {
        return Err(Failure::new(Code::Unreachable, "not all servers answered")
            .hint("`memkv-cli doctor` looks at each one"));
    }
    if pinned.over_quota > 0 {
        return Err(Failure::new(Code::Negative, "the servers may pin no more").hint(
            "unpin something, or raise eviction.pin_share on the servers; `memkv-cli pins` shows all",
        ));
    }
    Err(Failure::new(Code::Negative, "some keys are not stored").hint("`memkv-cli exists` says which"))
}

pub(crate) async fn unpin(
    fleet: &Fleet,
    output: &Output,
    space: &str,
    keys: &[String],
) -> Result<(), Failure> {
    let keys = parse_keys(keys)?;
    let space = fleet.find_space_id(&Selector::parse(space)?).await?;
    let unpinned = fleet.unpin(space, &keys).await;
    output.show(&unpinned, |unpinned, _| render::storage::unpinned(unpinned))?;
    output.say_unreachable(&unpinned.unreachable);
    if unpinned.unreachable.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Code::Unreachable, "not all servers answered")
        .hint("unpin again when they do; a pin ends by itself when its time is over"))
}

pub(crate) async fn list(fleet: &Fleet, output: &Output) -> Result<(), Failure> {
    let pins = fleet.pins().await;
    output.show(&pins, render::storage::pins)?;
    output.say_unreachable(&pins.unreachable);
    if pins.servers.is_empty() { Err(fleet.nobody_answers()) } else { Ok(()) }
}
