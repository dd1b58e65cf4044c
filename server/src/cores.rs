//! Core dumps: keys and pages would be in them.

use crate::config::CoreDumps;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Keeps the process out of core dumps as far as the configuration says. What the system refuses is only said.
pub fn keep_out(dumps: CoreDumps) {
    if dumps == CoreDumps::On {
        return;
    }
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core files may be written, with keys and pages in them; set a limit of 0 for them");
    }
    if dumps == CoreDumps::Never
        && let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable)
    {
        tracing::warn!(%error, "the process can be dumped and traced");
    }
}
