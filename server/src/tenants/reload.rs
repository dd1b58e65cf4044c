//! Follows the credentials file.
//!
//! It is looked at once a second, and at once on SIGHUP. A new file that cannot be read or understood is said once and
//! changes nothing. Sessions whose key, certificate or tenant is gone end.

use crate::node::Node;
use memkv_credentials::Credentials;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often the file is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// What tells one state of the file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    inode: u64,
    bytes: u64,
    changed: Option<SystemTime>,
}

impl Signature {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let about = std::fs::metadata(path).ok()?;
        Some(Self { inode: about.ino(), bytes: about.len(), changed: about.modified().ok() })
    }
}

/// Follows the file until dropped.
pub(crate) async fn watch(node: Arc<Node>) {
    let Some(path) = node.config.credentials.clone() else { return };
    let mut known = Signature::of(&path);
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        let asked = tokio::select! {
            _ = ticks.tick() => false,
            () = node.reload.notified() => true,
        };
        // Taken before the file is read: a change meanwhile is seen by the next look.
        let signature = Signature::of(&path);
        if signature == known && !asked {
            continue;
        }
        known = signature;
        match Credentials::load(&path) {
            Ok(credentials) => node.adopt_credentials(&credentials),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the credentials stay as they were");
            }
        }
    }
}

impl Node {
    /// Takes over new credentials, and ends the sessions that they no longer allow.
    pub(crate) fn adopt_credentials(&self, credentials: &Credentials) {
        self.tenants.adopt(credentials, &self.engine);
        let ended = self.sessions.end_those(|session| !session.tenant.accepts(&session.proven));
        tracing::info!(tenants = credentials.tenants.len(), sessions_ended = ended, "credentials read");
    }
}
