//! One of the servers that pages go to, spoken to with the gRPC API that any client may use.
//!
//! Every call has a deadline. A server that did not answer is not asked again for a moment, so that it does not hold
//! up pages that others could take.

use super::progress::Refused;
use super::secure::{self, Secure};
use crate::clock;
use crate::node::Node;
use crate::random;
use bytes::Bytes;
use memkv_core::SpaceId;
use memkv_proto::{AUTH_METADATA, v1};
use memkv_storage::Space;
use memkv_transport::auth::{AuthKey, Credential};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use v1::admin_client::AdminClient;
use v1::kv_client::KvClient;

/// How long a connection and a short call may take.
const CALL_TIME: Duration = Duration::from_secs(5);
/// How long pages may take on top of that: a second for so many bytes.
const SLOWEST_BYTES_PER_S: u64 = 4 << 20;
/// How long a server that did not answer is left alone.
const AWAY: Duration = Duration::from_secs(2);
/// Largest answer that is taken.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// A server as routing and connecting need to know it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) weight: u32,
}

/// A server that takes pages.
#[derive(Clone)]
pub(crate) struct Target {
    inner: Arc<Inner>,
}

struct Inner {
    id: String,
    /// Nobody can be asked at an address that is none.
    channel: Option<Channel>,
    key: Option<AuthKey>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    away_until: Option<Instant>,
    /// Spaces that it knows from us.
    spaces: HashSet<SpaceId>,
}

/// A call that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) why: Refused,
    pub(crate) text: String,
}

impl Target {
    /// A target that is not connected yet; it connects when it is asked. Call inside a runtime.
    pub(crate) fn new(member: Member, node: &Node, tls: Option<&Arc<Secure>>) -> Self {
        let Member { id, host: name, port, .. } = member;
        let host = if name.contains(':') { format!("[{name}]") } else { name.clone() };
        let endpoint = Endpoint::from_shared(format!("http://{host}:{port}"));
        let connect = |endpoint: Endpoint| {
            let endpoint = endpoint.connect_timeout(CALL_TIME).tcp_nodelay(true).http2_adaptive_window(true);
            #[cfg(feature = "sim")]
            if let Some(net) = node.net.get() {
                return crate::sim::channel(&endpoint, Arc::clone(net), name, port);
            }
            match tls {
                Some(tls) => secure::channel(&endpoint, Arc::clone(tls), name, port),
                None => endpoint.connect_lazy(),
            }
        };
        let inner = Inner {
            id,
            channel: endpoint.ok().map(connect),
            key: node.config.auth_key.clone(),
            state: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn id(&self) -> &str {
        &self.inner.id
    }

    /// Its incarnation, if it answers.
    pub(crate) async fn greet(&self) -> Result<u64, String> {
        let channel = self.channel().map_err(|failed| failed.text)?;
        let request = self.request("/memkv.v1.Admin/GetStatus", v1::GetStatusRequest {});
        let mut admin = AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = self.call(CALL_TIME, admin.get_status(request)).await;
        answer.map(|status| status.incarnation).map_err(|failed| failed.text)
    }

    /// Says which of the keys it has, after it was told of the space.
    pub(crate) async fn exists(&self, space: &Space, keys: Vec<Vec<u8>>) -> Result<Vec<bool>, Failed> {
        self.open(space).await?;
        let count = keys.len();
        let message = v1::ExistsRequest { space_id: space.id().0.to_vec(), keys };
        let mut kv = KvClient::new(self.channel()?);
        let request = self.request("/memkv.v1.Kv/Exists", message);
        let present = self.call(CALL_TIME, kv.exists(request)).await?.present;
        if present.len() == count { Ok(present) } else { Err(nonsense("exists")) }
    }

    /// Sends the pages that come out of `pages`, `count` of them with `bytes` in all; says what became of each that
    /// came.
    pub(crate) async fn put(
        &self,
        pages: mpsc::Receiver<v1::PutRequest>,
        bytes: u64,
    ) -> Result<Vec<v1::Status>, Failed> {
        let limit = CALL_TIME + Duration::from_secs(bytes / SLOWEST_BYTES_PER_S);
        let mut kv = KvClient::new(self.channel()?);
        let request = self.request("/memkv.v1.Kv/Put", ReceiverStream::new(pages));
        let answer = self.call(limit, kv.put(request)).await?;
        Ok(answer.statuses().collect())
    }

    /// Removes pages.
    pub(crate) async fn delete(&self, space: SpaceId, keys: Vec<Vec<u8>>) -> Result<(), Failed> {
        let message = v1::DeleteRequest { space_id: space.0.to_vec(), keys };
        let mut kv = KvClient::new(self.channel()?);
        let request = self.request("/memkv.v1.Kv/Delete", message);
        self.call(CALL_TIME, kv.delete(request)).await.map(drop)
    }

    /// Pins pages; returns how many it pinned.
    pub(crate) async fn pin(&self, space: SpaceId, keys: Vec<Vec<u8>>, ttl_ms: u64) -> Result<u64, Failed> {
        let message = v1::PinRequest { space_id: space.0.to_vec(), keys, ttl_ms };
        let mut admin = AdminClient::new(self.channel()?);
        let request = self.request("/memkv.v1.Admin/Pin", message);
        Ok(self.call(CALL_TIME, admin.pin(request)).await?.pinned)
    }

    async fn open(&self, space: &Space) -> Result<(), Failed> {
        if self.inner.state.lock().spaces.contains(&space.id()) {
            return Ok(());
        }
        let message = v1::OpenSpaceRequest { space: Some(space.description().into()) };
        let mut kv = KvClient::new(self.channel()?);
        let request = self.request("/memkv.v1.Kv/OpenSpace", message);
        self.call(CALL_TIME, kv.open_space(request)).await?;
        self.inner.state.lock().spaces.insert(space.id());
        Ok(())
    }

    /// The channel, unless the server is left alone now.
    fn channel(&self) -> Result<Channel, Failed> {
        if self.inner.state.lock().away_until.is_some_and(|until| Instant::now() < until) {
            return Err(Failed { why: Refused::Away, text: "it did not answer a moment ago".to_owned() });
        }
        let none = || Failed { why: Refused::Away, text: "its address cannot be used".to_owned() };
        self.inner.channel.clone().ok_or_else(none)
    }

    fn request<T>(&self, method: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(key) = &self.inner.key {
            let credential = Credential::new(key, method, clock::unix_ms(), random::bytes());
            let value = credential.to_string().parse().expect("a credential is digits, letters and dots");
            request.metadata_mut().insert(AUTH_METADATA, value);
        }
        request
    }

    async fn call<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Failed> {
        let failed = match timeout(limit, call).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => failed(&status),
            Err(_elapsed) => Failed { why: Refused::Away, text: format!("no answer within {limit:?}") },
        };
        let mut state = self.inner.state.lock();
        // Whatever it was, it may have been restarted; then it has forgotten what it was told.
        state.spaces.clear();
        if failed.why == Refused::Away {
            state.away_until = Some(Instant::now() + AWAY);
        }
        Err(failed)
    }
}

/// The first message of a page, with its first bytes, and those with the rest.
pub(crate) fn messages(
    (space, key): (SpaceId, &[u8]),
    (record, position): (v1::PageRecord, u32),
    mut rest: Bytes,
    chunk_bytes: usize,
) -> impl Iterator<Item = v1::PutRequest> {
    let data = rest.split_to(rest.len().min(chunk_bytes));
    let first = v1::PutRequest {
        space_id: space.0.to_vec(),
        key: key.to_vec(),
        record: Some(record),
        data,
        position,
    };
    let more = std::iter::from_fn(move || {
        let data = rest.split_to(rest.len().min(chunk_bytes));
        (!data.is_empty()).then(|| v1::PutRequest { data, ..v1::PutRequest::default() })
    });
    [first].into_iter().chain(more)
}

fn nonsense(call: &str) -> Failed {
    Failed { why: Refused::Denied, text: format!("its answer to {call} does not fit the question") }
}

fn failed(status: &Status) -> Failed {
    let why = match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::Unimplemented
        | Code::OutOfRange => Refused::Denied,
        Code::ResourceExhausted => Refused::Full,
        Code::FailedPrecondition => Refused::Forgot,
        _ => Refused::Away,
    };
    Failed { why, text: status.message().to_owned() }
}
