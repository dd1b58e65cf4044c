//! Checks the per-call credential of every call but those that open sessions, ask for health, or reflect.
//!
//! What is not listed as open needs a credential, so a service that is added later is closed until somebody decides
//! otherwise. Whose call it is goes with the request, as a [`Caller`]; a service that does not ask for it would not be
//! able to find a space.

use super::body::{Holding, counted};
use super::status::Fault;
use crate::accept::Peer;
use crate::clock;
use crate::metrics::Metrics;
use crate::node::Node;
use crate::tenants::Tenant;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use memkv_credentials::Rights;
use memkv_proto::AUTH_METADATA;
use memkv_transport::auth::CREDENTIAL_WINDOW_MS;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use tonic::Status;

/// Methods that need no credential begin with one of these.
const OPEN: [&str; 3] =
    ["/memkv.v1.Session/", "/grpc.health.v1.Health/", "/grpc.reflection.v1.ServerReflection/"];
/// Methods for those who administer.
const ADMIN: &str = "/memkv.v1.Admin/";
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

    /// Whose call it is; nobody's if it is open to all.
    fn admit(&self, method: &str, credential: Option<&str>, peer: &Peer) -> Result<Option<Caller>, Fault> {
        if OPEN.iter().any(|open| method.starts_with(open)) {
            return Ok(None);
        }
        if !self.node.attempts.may_try(peer.addr) {
            return Err(Fault::TooManyAttempts);
        }
        let now = clock::unix_ms();
        let (tenant, nonce) = self.node.tenants.caller(credential, peer.tls.as_deref(), method, now)?;
        if let Some((unix_ms, nonce)) = nonce {
            self.seen.lock().first_time(unix_ms, nonce, now, &tenant)?;
        }
        if method.starts_with(ADMIN) && !tenant.may(Rights::ADMIN) {
            return Err(Fault::NoRight("administer"));
        }
        Ok(Some(Caller(tenant)))
    }
}

/// Whose call a request is.
#[derive(Clone)]
pub(crate) struct Caller(pub(crate) Arc<Tenant>);

/// Whose call it is.
pub(crate) fn caller<T>(request: &tonic::Request<T>) -> Result<Arc<Tenant>, Fault> {
    let caller = request.extensions().get::<Caller>();
    caller.map(|caller| Arc::clone(&caller.0)).ok_or(Fault::NoRight("call this"))
}

/// Lets a request through or answers it with the reason why not.
pub(crate) async fn check(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    if gate.node.config.tls.require.refuses_plain() && peer.tls.is_none() {
        Metrics::add(&gate.node.metrics.tls_plain_refused, 1);
        return Status::from(Fault::TlsRequired).into_http();
    }
    let credential = request.headers().get(AUTH_METADATA).and_then(|value| value.to_str().ok());
    match gate.admit(request.uri().path(), credential, &peer) {
        Ok(caller) => {
            let tenant = caller.as_ref().map(|caller| Arc::clone(&caller.0));
            if tenant.as_ref().is_some_and(|tenant| !peer.line.prove(tenant)) {
                return Status::from(Fault::TooManyConnections).into_http();
            }
            gate.note(&request);
            // Held until the call is over, also by whoever works on its message.
            let holding = Holding::new(&gate.node, &peer.line, tenant);
            request.extensions_mut().insert(holding.clone());
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            let (head, body) = request.into_parts();
            let keys_max = gate.node.limits.batch_keys_max;
            let body = counted(body, head.uri.path(), keys_max, holding.clone());
            let answer = next.run(Request::from_parts(head, body)).await;
            drop(holding);
            answer
        }
        Err(fault) => {
            if matches!(fault, Fault::Credential(_) | Fault::Replayed) {
                gate.node.auth_failed(peer.addr, "a call was refused");
            }
            Status::from(fault).into_http()
        }
    }
}

/// Nonces by the time in their credential. One is remembered as long as its credential would pass.
///
/// A tenant may have as many remembered as are free: so however many of them call without end, there is room for the next one.
struct Seen {
    groups: BTreeMap<u64, Group>,
    count: usize,
    of_tenants: HashMap<String, usize>,
    most: usize,
}

/// Nonces of a few seconds, and how many each tenant has among them.
#[derive(Default)]
struct Group {
    nonces: HashSet<[u8; 16]>,
    of_tenants: HashMap<String, usize>,
}

impl Seen {
    fn new(most: usize) -> Self {
        Self { groups: BTreeMap::new(), count: 0, of_tenants: HashMap::new(), most }
    }

    fn first_time(
        &mut self,
        unix_ms: u64,
        nonce: [u8; 16],
        now_unix_ms: u64,
        tenant: &Tenant,
    ) -> Result<(), Fault> {
        let oldest = now_unix_ms.saturating_sub(CREDENTIAL_WINDOW_MS) / GROUP_MS;
        while let Some(group) = self.groups.first_entry().filter(|group| *group.key() < oldest) {
            let group = group.remove();
            self.forget(&group);
        }
        let group = unix_ms / GROUP_MS;
        if self.groups.get(&group).is_some_and(|group| group.nonces.contains(&nonce)) {
            return Err(Fault::Replayed);
        }
        let free = self.most.saturating_sub(self.count);
        let own = self.of_tenants.get(tenant.name()).copied().unwrap_or(0);
        if free == 0 || (!tenant.is_operator() && own >= free) {
            return Err(Fault::TooManyCalls);
        }
        let group = self.groups.entry(group).or_default();
        group.nonces.insert(nonce);
        self.count += 1;
        for counts in [&mut group.of_tenants, &mut self.of_tenants] {
            match counts.get_mut(tenant.name()) {
                Some(count) => *count += 1,
                None => drop(counts.insert(tenant.name().to_owned(), 1)),
            }
        }
        Ok(())
    }

    /// Nobody's credential of that time would pass any more.
    fn forget(&mut self, group: &Group) {
        self.count -= group.nonces.len();
        for (tenant, count) in &group.of_tenants {
            if let Some(all) = self.of_tenants.get_mut(tenant) {
                *all -= count;
                if *all == 0 {
                    self.of_tenants.remove(tenant);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenants::tenant::Shares;

    fn operator() -> Tenant {
        Tenant::cluster(true, Shares::default())
    }

    #[test]
    fn a_tenant_that_calls_without_end_leaves_room_for_the_next() {
        let mut seen = Seen::new(100);
        let now = 1_000_000;
        let mut nonces = (0_u128..).map(u128::to_le_bytes);
        let mut calls = |seen: &mut Seen, name: &str| {
            let tenant = Tenant::new(name, Shares::default());
            (0..1000)
                .take_while(|_| seen.first_time(now, nonces.next().unwrap(), now, &tenant).is_ok())
                .count()
        };
        assert_eq!(["a", "b", "c"].map(|name| calls(&mut seen, name)), [50, 25, 13]);
        assert_eq!(calls(&mut seen, "a"), 0);
        assert!(seen.first_time(now, [255; 16], now, &operator()).is_ok(), "the operator has what is left");
        let later = now + CREDENTIAL_WINDOW_MS + GROUP_MS;
        let tenant = Tenant::new("a", Shares::default());
        assert!(seen.first_time(later, [254; 16], later, &tenant).is_ok());
        assert_eq!((seen.count, seen.of_tenants.len()), (1, 1));
    }

    #[test]
    fn a_credential_passes_once_while_it_is_valid() {
        let mut seen = Seen::new(10);
        let now = 1_000_000;
        assert!(seen.first_time(now, [1; 16], now, &operator()).is_ok());
        assert!(seen.first_time(now, [2; 16], now, &operator()).is_ok());
        for later in [0, 1, CREDENTIAL_WINDOW_MS] {
            let again = seen.first_time(now, [1; 16], now + later, &operator());
            assert!(matches!(again, Err(Fault::Replayed)), "{later} ms later");
        }
        // One from the future, as far as the window allows, is remembered longer.
        let future = now + CREDENTIAL_WINDOW_MS;
        assert!(seen.first_time(future, [3; 16], now, &operator()).is_ok());
        let again = seen.first_time(future, [3; 16], now + 2 * CREDENTIAL_WINDOW_MS, &operator());
        assert!(matches!(again, Err(Fault::Replayed)));
    }

    #[test]
    fn a_full_memory_refuses_until_credentials_expire() {
        let mut seen = Seen::new(2);
        let now = 1_000_000;
        assert!(seen.first_time(now, [1; 16], now, &operator()).is_ok());
        assert!(seen.first_time(now, [2; 16], now, &operator()).is_ok());
        assert!(matches!(seen.first_time(now, [3; 16], now, &operator()), Err(Fault::TooManyCalls)));
        let later = now + CREDENTIAL_WINDOW_MS + GROUP_MS;
        assert!(seen.first_time(later, [3; 16], later, &operator()).is_ok());
        assert_eq!(seen.count, 1, "the old ones are gone");
    }
}
