//! Calls about servers and spaces: always gRPC, each with its own credential.
//!
//! Every call runs on the client's own runtime, so that any executor, or none, may wait for it. A server that does
//! not answer is an `Err` in its place and does not hurt the others.

use crate::client::{Inner, Shared};
use crate::outcome;
use crate::progress::{TIME_MAX, hear};
use crate::server::Server;
use crate::tls::{self, Binding};
use crate::{Client, Error, ErrorKind, ServerAddress, SpaceDescription, SpaceId};
use memkv_proto::{AUTH_METADATA, v1};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::transport::{Channel, Endpoint};
use v1::admin_client::AdminClient;
use v1::kv_client::KvClient;

/// One server's answer to an administrative call.
pub type ServerResult<T> = (ServerAddress, Result<T, Error>);

/// The largest control message: a list of 10,000 keys with their statuses fits.
pub(crate) const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// Largest frame that a server may send: pages come in few large ones, not in 16 KiB each.
const FRAME_BYTES: u32 = 1 << 20;

/// What clearing a space came to.
#[derive(Debug, Default)]
pub struct ClearReport {
    /// Pages removed.
    pub removed_pages: u64,
    /// Bytes of pages removed.
    pub removed_bytes: u64,
    /// Servers that did not clear, and why; their pages are still there.
    pub failed: Vec<(ServerAddress, Error)>,
}

/// The channel to a server. It connects by itself when it is used; call inside the client's runtime.
pub(crate) fn channel(shared: &Shared, address: &ServerAddress, binding: &Binding) -> Result<Channel, Error> {
    let uri = format!("http://{}", address.host_port());
    let endpoint = Endpoint::from_shared(uri).map_err(|error| {
        Error::new(ErrorKind::Config, format!("server {address}: not a usable address")).with_source(error)
    })?;
    let endpoint = endpoint
        .connect_timeout(shared.config.connect_timeout)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(10)))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(FRAME_BYTES);
    #[cfg(feature = "sim")]
    if let Some(net) = shared.net.get() {
        return Ok(crate::sim::channel(&endpoint, net, address));
    }
    Ok(match shared.tls.get() {
        Some(tls) => tls::channel(&endpoint, tls, address, shared.config.connect_timeout, binding),
        None => endpoint.connect_lazy(),
    })
}

/// What a failed gRPC call means.
pub(crate) fn error_of(status: &tonic::Status) -> Error {
    let kind = outcome::kind_of(status.code());
    let mut text = status.message().to_owned();
    // The transport's own texts name no cause; the cause is at the end of the chain. Some layers repeat it.
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    tls::explain(Error::new(kind, text))
}

/// A request with the credential of its method and a time limit.
pub(crate) fn request<T>(
    shared: &Shared,
    method: &'static str,
    message: T,
    limit: Duration,
) -> Result<tonic::Request<T>, Error> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(limit);
    if let Some(secret) = &shared.secret {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(|error| {
            Error::new(ErrorKind::Unavailable, format!("the system has no random numbers: {error}"))
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let text = secret.credential(method, unix_ms, nonce);
        let value = text.parse().expect("a credential is digits, letters and dots");
        request.metadata_mut().insert(AUTH_METADATA, value);
    }
    Ok(request)
}

pub(crate) fn kv_client(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

pub(crate) fn admin_client(server: &Server) -> AdminClient<Channel> {
    AdminClient::new(server.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Makes spaces known to a server.
pub(crate) async fn open_spaces(
    shared: &Shared,
    server: &Server,
    spaces: &[SpaceDescription],
) -> Result<(), Error> {
    for description in spaces {
        let message = v1::OpenSpaceRequest { space: Some(description.into()) };
        let limit = shared.config.connect_timeout;
        let request = request(shared, "/memkv.v1.Kv/OpenSpace", message, limit)?;
        let answer = kv_client(server.channel.clone()).open_space(request).await;
        let answer = answer.map_err(|status| error_of(&status).context("open space"))?;
        if answer.into_inner().space_id != description.id().0 {
            let text = "the server computes another identity for the space; use releases that fit together";
            return Err(Error::new(ErrorKind::VersionMismatch, text));
        }
    }
    Ok(())
}

impl Inner {
    /// The server with this id.
    pub(crate) fn server(&self, server_id: &str) -> Result<Arc<Server>, Error> {
        let members = self.members();
        let server = members.servers.iter().find(|server| server.address.id == server_id);
        server.cloned().ok_or_else(|| {
            let known: Vec<_> = members.servers.iter().map(|server| server.address.id.as_str()).collect();
            Error::bad_input(format!("no server has the id {server_id:?}; the ids are: {}", known.join(", ")))
        })
    }

    /// Runs a future on the client's runtime.
    pub(crate) async fn on_runtime<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.check()?;
        let task = self.handle.spawn(future);
        task.await.unwrap_or_else(|_| Err(crate::client::closed()))
    }

    /// Asks every server at once.
    async fn ask_all<T, F>(&self, ask: impl Fn(Arc<Shared>, Arc<Server>) -> F) -> Vec<ServerResult<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        if self.check().is_err() {
            let closed = |server: &Arc<Server>| {
                (server.address.clone(), self.check().and(Err(crate::client::closed())))
            };
            return self.members().servers.iter().map(closed).collect();
        }
        let members = self.members();
        let asked = members.servers.iter().map(|server| {
            let task = self.handle.spawn(ask(self.shared.clone(), server.clone()));
            (server.address.clone(), task)
        });
        let asked: Vec<_> = asked.collect();
        let mut answers = Vec::with_capacity(asked.len());
        for (address, task) in asked {
            let answer = task.await.unwrap_or_else(|_| Err(crate::client::closed()));
            answers.push((address, answer));
        }
        answers
    }
}

/// One administrative call to one server; the method's path and the client's function belong together.
macro_rules! admin_call {
    ($path:literal, $call:ident, $message:expr) => {
        |shared: Arc<Shared>, server: Arc<Server>| {
            let message = $message;
            async move {
                let limit = shared.config.op_timeout;
                let request = request(&shared, $path, message, limit)?;
                let answer = admin_client(&server).$call(request).await;
                answer.map(tonic::Response::into_inner).map_err(|status| error_of(&status))
            }
        }
    };
}

impl Client {
    /// State, fill, traffic and sessions of every server.
    pub async fn statuses(&self) -> Vec<ServerResult<v1::GetStatusResponse>> {
        let ask = admin_call!("/memkv.v1.Admin/GetStatus", get_status, v1::GetStatusRequest {});
        self.inner.ask_all(ask).await
    }

    /// The spaces that every server knows.
    pub async fn list_spaces(&self) -> Vec<ServerResult<v1::ListSpacesResponse>> {
        let ask = admin_call!("/memkv.v1.Admin/ListSpaces", list_spaces, v1::ListSpacesRequest {});
        self.inner.ask_all(ask).await
    }

    /// One portion of the keys that one server holds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BadInput`] if no server has that id; else what the server says, or that it does not answer.
    pub async fn list_keys(
        &self,
        server_id: &str,
        list: v1::ListKeysRequest,
    ) -> Result<v1::ListKeysResponse, Error> {
        let server = self.inner.server(server_id)?;
        let ask = admin_call!("/memkv.v1.Admin/ListKeys", list_keys, list.clone());
        self.inner.on_runtime(ask(self.inner.shared.clone(), server)).await
    }

    /// What every server knows of a key; with `verify`, servers compute the checksum of the stored bytes again.
    pub async fn inspect_key(
        &self,
        space: SpaceId,
        key: &[u8],
        verify: bool,
    ) -> Vec<ServerResult<v1::InspectKeyResponse>> {
        let ask = admin_call!(
            "/memkv.v1.Admin/InspectKey",
            inspect_key,
            v1::InspectKeyRequest { space_id: space.0.to_vec(), key: key.to_vec(), verify }
        );
        self.inner.ask_all(ask).await
    }

    /// Keeps pages from eviction for `ttl`, on every server that has them: a page's outcome is the best of all answers
    /// for it.
    pub async fn pin(
        &self,
        space: SpaceId,
        keys: &[Vec<u8>],
        ttl: Duration,
    ) -> Vec<ServerResult<v1::PinResponse>> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let ask = admin_call!(
            "/memkv.v1.Admin/Pin",
            pin,
            v1::PinRequest { space_id: space.0.to_vec(), keys: keys.to_vec(), ttl_ms }
        );
        self.inner.ask_all(ask).await
    }

    /// Gives pinned pages back to the servers' policies; without keys, all of the space.
    pub async fn unpin(&self, space: SpaceId, keys: &[Vec<u8>]) -> Vec<ServerResult<v1::UnpinResponse>> {
        let ask = admin_call!(
            "/memkv.v1.Admin/Unpin",
            unpin,
            v1::UnpinRequest { space_id: space.0.to_vec(), keys: keys.to_vec() }
        );
        self.inner.ask_all(ask).await
    }

    /// The pins of every server.
    pub async fn pins(&self) -> Vec<ServerResult<v1::ListPinsResponse>> {
        let ask = admin_call!("/memkv.v1.Admin/ListPins", list_pins, v1::ListPinsRequest {});
        self.inner.ask_all(ask).await
    }

    /// The pages that each server found not to match their checksum, the last ones first.
    pub async fn quarantined(&self) -> Vec<ServerResult<v1::ListQuarantinedResponse>> {
        let ask =
            admin_call!("/memkv.v1.Admin/ListQuarantined", list_quarantined, v1::ListQuarantinedRequest {});
        self.inner.ask_all(ask).await
    }

    /// The tenants of every server, as far as this client may see them.
    pub async fn tenants(&self) -> Vec<ServerResult<v1::ListTenantsResponse>> {
        let ask = admin_call!("/memkv.v1.Admin/ListTenants", list_tenants, v1::ListTenantsRequest {});
        self.inner.ask_all(ask).await
    }

    /// The segments of every server's NVMe tier.
    pub async fn segments(&self) -> Vec<ServerResult<v1::ListSegmentsResponse>> {
        let ask = admin_call!("/memkv.v1.Admin/ListSegments", list_segments, v1::ListSegmentsRequest {});
        self.inner.ask_all(ask).await
    }

    /// Lets one server compare its pages with their checksums. `progress` is called about once a second; the last
    /// answer is returned. Takes as long as it takes; dropping the future ends the check.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BadInput`] if no server has that id; else what the server says, or that it does not answer.
    pub async fn verify(
        &self,
        server_id: &str,
        verify: v1::VerifyRequest,
        progress: impl FnMut(&v1::VerifyResponse),
    ) -> Result<v1::VerifyResponse, Error> {
        let begin = |shared: Arc<Shared>, server: Arc<Server>| async move {
            let request = request(&shared, "/memkv.v1.Admin/Verify", verify, TIME_MAX)?;
            Ok(admin_client(&server).verify(request).await)
        };
        let last = hear(&self.inner, server_id, begin, progress).await?;
        if last.done {
            return Ok(last);
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the server ended the check before it was done; start it again",
        ))
    }

    /// Removes all pages of exactly one space, from every server.
    pub async fn clear_space(&self, space: SpaceId) -> Vec<ServerResult<v1::ClearSpaceResponse>> {
        let ask = admin_call!(
            "/memkv.v1.Admin/ClearSpace",
            clear_space,
            v1::ClearSpaceRequest { space_id: space.0.to_vec() }
        );
        self.inner.ask_all(ask).await
    }

    pub(crate) async fn clear(&self, space: SpaceId) -> Result<ClearReport, Error> {
        self.inner.check()?;
        let mut report = ClearReport::default();
        for (address, answer) in self.clear_space(space).await {
            match answer {
                Ok(cleared) => {
                    report.removed_pages += cleared.removed_pages;
                    report.removed_bytes += cleared.removed_bytes;
                }
                // A server that does not know the space has none of its pages.
                Err(error) if error.kind() == ErrorKind::UnknownSpace => {}
                Err(error) => report.failed.push((address, error)),
            }
        }
        Ok(report)
    }

    /// Registers a space with every ready server.
    pub(crate) async fn register(&self, description: &SpaceDescription) -> Result<(), Error> {
        let spaces = [description.clone()];
        let open = |shared: Arc<Shared>, server: Arc<Server>| {
            let spaces = spaces.clone();
            async move {
                if !server.pool.is_ready() {
                    return Ok(());
                }
                let opened = open_spaces(&shared, &server, &spaces).await;
                if opened.as_ref().is_err_and(Error::is_retryable) {
                    server.reopen_spaces();
                }
                opened
            }
        };
        for (address, answer) in self.inner.ask_all(open).await {
            match answer {
                Err(error) if !error.is_retryable() => return Err(error.context(format!("server {address}"))),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}
