//! Checks the per-call credential of every call but those that open sessions, ask for health, or reflect.
//!
//! What is not listed as open needs a credential, so a service that is added later is closed until somebody decides
//! otherwise.

use super::status::Fault;
use crate::accept::Peer;
use crate::clock;
use crate::metrics::Metrics;
use crate::node::Node;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use memkv_proto::AUTH_METADATA;
use memkv_transport::auth::{CREDENTIAL_WINDOW_MS, Credential, CredentialError};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use tonic::Status;

/// Methods that need no credential begin with one of these.
const OPEN: [&str; 3] =
    ["/memkv.v1.Session/", "/grpc.health.v1.Health/", "/grpc.reflection.v1.ServerReflection/"];
/// Credentials remembered at once; more than 8,000 calls a second fill it.
const REMEMBERED_MAX: usize = 1 << 20;
/// Credentials are forgotten in groups of this many milliseconds.
const GROUP_MS: u64 = 4_000;

/// The server's key and the credentials it has seen.
pub(crate) struct Gate {
    node: Arc<Node>,
    seen: Mutex<Seen>,
}

impl Gate {
    /// A gate that has seen nothing.
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node, seen: Mutex::new(Seen::new(REMEMBERED_MAX)) }
    }

    /// A guest that was let through has shown what it wants. Who opens a session has that to do first.
    fn note(&self, request: &Request) {
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.addr);
        let method = request.uri().path();
        if !OPEN.iter().any(|open| method.starts_with(open)) {
            self.node.guests.prove(peer);
        } else if !method.starts_with(OPEN[0]) {
            self.node.guests.spoke(peer);
        }
    }

    fn admit(&self, method: &str, credential: Option<&str>) -> Result<(), Fault> {
        let Some(key) = &self.node.config.auth_key else { return Ok(()) };
        if OPEN.iter().any(|open| method.starts_with(open)) {
            return Ok(());
        }
        let now = clock::unix_ms();
        let text = credential.ok_or(CredentialError::Malformed)?;
        let credential = Credential::verify(text, key, method, now)?;
        self.seen.lock().first_time(&credential, now)
    }
}

/// Lets a request through or answers it with the reason why not.
pub(crate) async fn check(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    if gate.node.config.tls.require.refuses_plain() && peer.tls.is_none() {
        Metrics::add(&gate.node.metrics.tls_plain_refused, 1);
        return Status::from(Fault::TlsRequired).into_http();
    }
    let credential = request.headers().get(AUTH_METADATA).and_then(|value| value.to_str().ok());
    match gate.admit(request.uri().path(), credential) {
        Ok(()) => {
            gate.note(&request);
            next.run(request).await
        }
        Err(fault) => {
            if !matches!(fault, Fault::TooManyCalls) {
                gate.node.metrics.auth_failed(peer.addr, "a call was refused");
            }
            Status::from(fault).into_http()
        }
    }
}

/// Nonces by the time in their credential. One is remembered as long as its credential would pass.
struct Seen {
    groups: BTreeMap<u64, HashSet<[u8; 16]>>,
    count: usize,
    most: usize,
}

impl Seen {
    fn new(most: usize) -> Self {
        Self { groups: BTreeMap::new(), count: 0, most }
    }

    fn first_time(&mut self, credential: &Credential, now_unix_ms: u64) -> Result<(), Fault> {
        let oldest = now_unix_ms.saturating_sub(CREDENTIAL_WINDOW_MS) / GROUP_MS;
        while let Some(group) = self.groups.first_entry().filter(|group| *group.key() < oldest) {
            self.count -= group.remove().len();
        }
        let group = credential.unix_ms / GROUP_MS;
        if self.groups.get(&group).is_some_and(|nonces| nonces.contains(&credential.nonce)) {
            return Err(Fault::Replayed);
        }
        if self.count >= self.most {
            return Err(Fault::TooManyCalls);
        }
        self.groups.entry(group).or_default().insert(credential.nonce);
        self.count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_transport::auth::AuthKey;

    fn credential(unix_ms: u64, nonce: u8) -> Credential {
        Credential::new(&AuthKey::open(), "/memkv.v1.Kv/Get", unix_ms, [nonce; 16])
    }

    #[test]
    fn a_credential_passes_once_while_it_is_valid() {
        let mut seen = Seen::new(10);
        let now = 1_000_000;
        assert!(seen.first_time(&credential(now, 1), now).is_ok());
        assert!(seen.first_time(&credential(now, 2), now).is_ok());
        for later in [0, 1, CREDENTIAL_WINDOW_MS] {
            let again = seen.first_time(&credential(now, 1), now + later);
            assert!(matches!(again, Err(Fault::Replayed)), "{later} ms later");
        }
        // One from the future, as far as the window allows, is remembered longer.
        let future = credential(now + CREDENTIAL_WINDOW_MS, 3);
        assert!(seen.first_time(&future, now).is_ok());
        assert!(matches!(seen.first_time(&future, now + 2 * CREDENTIAL_WINDOW_MS), Err(Fault::Replayed)));
    }

    #[test]
    fn a_full_memory_refuses_until_credentials_expire() {
        let mut seen = Seen::new(2);
        let now = 1_000_000;
        assert!(seen.first_time(&credential(now, 1), now).is_ok());
        assert!(seen.first_time(&credential(now, 2), now).is_ok());
        assert!(matches!(seen.first_time(&credential(now, 3), now), Err(Fault::TooManyCalls)));
        let later = now + CREDENTIAL_WINDOW_MS + GROUP_MS;
        assert!(seen.first_time(&credential(later, 3), later).is_ok());
        assert_eq!(seen.count, 1, "the old ones are gone");
    }
}
