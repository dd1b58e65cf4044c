//! What a drain looks like.

use memkv_client::v1;
use serde::Serialize;

/// `drain`, and a part of `inspect server`.
#[derive(Debug, Serialize)]
pub(crate) struct Drain {
    pub(crate) server: String,
    /// `serving`, `draining`, `drained` or `stopping`.
    pub(crate) state: &'static str,
    pub(crate) done: bool,
    /// Why it ended early.
    pub(crate) error: Option<String>,
    pub(crate) total_pages: u64,
    pub(crate) total_bytes: u64,
    pub(crate) pages: u64,
    pub(crate) bytes: u64,
    pub(crate) moved_pages: u64,
    pub(crate) moved_bytes: u64,
    pub(crate) existing_pages: u64,
    pub(crate) elsewhere_pages: u64,
    pub(crate) short_pages: u64,
    pub(crate) lost_pages: u64,
    pub(crate) gone_pages: u64,
    pub(crate) pinned_pages: u64,
    pub(crate) unpinned_pages: u64,
    pub(crate) bytes_per_second: u64,
    pub(crate) left_ms: u64,
    pub(crate) elapsed_ms: u64,
    pub(crate) losses: Vec<Loss>,
    pub(crate) targets: Vec<Target>,
}

/// Why pages could not be copied.
#[derive(Debug, Serialize)]
pub(crate) struct Loss {
    pub(crate) reason: String,
    pub(crate) pages: u64,
}

/// What one of the other servers took.
#[derive(Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) server: String,
    pub(crate) moved_pages: u64,
    pub(crate) moved_bytes: u64,
    pub(crate) existing_pages: u64,
    pub(crate) refused_pages: u64,
    pub(crate) last_error: Option<String>,
}

/// A server's state in a word.
pub(crate) fn state(state: v1::ServerState) -> &'static str {
    match state {
        v1::ServerState::Serving => "serving",
        v1::ServerState::Stopping => "stopping",
        v1::ServerState::Draining => "draining",
        v1::ServerState::Drained => "drained",
        v1::ServerState::Unspecified => "unknown",
    }
}

impl Drain {
    /// The drain of this server.
    pub(crate) fn new(server: &str, drain: v1::DrainProgress) -> Self {
        Self {
            server: server.to_owned(),
            state: state(drain.state()),
            done: drain.done,
            error: some(drain.error),
            total_pages: drain.total_pages,
            total_bytes: drain.total_bytes,
            pages: drain.pages,
            bytes: drain.bytes,
            moved_pages: drain.moved_pages,
            moved_bytes: drain.moved_bytes,
            existing_pages: drain.existing_pages,
            elsewhere_pages: drain.elsewhere_pages,
            short_pages: drain.short_pages,
            lost_pages: drain.lost_pages,
            gone_pages: drain.gone_pages,
            pinned_pages: drain.pinned_pages,
            unpinned_pages: drain.unpinned_pages,
            bytes_per_second: drain.bytes_per_second,
            left_ms: drain.left_ms,
            elapsed_ms: drain.elapsed_ms,
            losses: drain.losses.into_iter().map(Loss::from).collect(),
            targets: drain.targets.into_iter().map(Target::from).collect(),
        }
    }
}

impl From<v1::DrainLoss> for Loss {
    fn from(loss: v1::DrainLoss) -> Self {
        Self { reason: loss.reason, pages: loss.pages }
    }
}

impl From<v1::DrainTarget> for Target {
    fn from(target: v1::DrainTarget) -> Self {
        Self {
            server: target.id,
            moved_pages: target.moved_pages,
            moved_bytes: target.moved_bytes,
            existing_pages: target.existing_pages,
            refused_pages: target.refused_pages,
            last_error: some(target.last_error),
        }
    }
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
