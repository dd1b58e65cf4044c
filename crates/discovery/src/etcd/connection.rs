//! A connection to one of etcd's endpoints: in plain text or inside TLS, with or without a user.
//!
//! A user's password is exchanged for a token, which goes with every call. etcd forgets tokens (after minutes, or when
//! the password changes); a call that is refused for that is made once more with a new one.
//!
//! Deliberately absent: a way back to plain text, and the system's CAs.

use super::rpc::auth_client::AuthClient;
use super::rpc::kv_client::KvClient;
use super::rpc::{AuthenticateRequest, TxnRequest, TxnResponse};
use crate::location::EtcdUser;
use crate::{EtcdLocation, EtcdTls, SourceError};
use hyper_util::rt::TokioIo;
use memkv_tls::rustls::pki_types::ServerName;
use memkv_tls::{ClientFiles, ClientTls, Plane};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// How long a connection to etcd and one answer of it may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// How often a silent connection is asked whether it is alive; etcd takes offence if it is much more often.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Calls go through this.
pub(super) type Service = InterceptedService<Channel, Token>;

/// The token of a user, if there is one; put into every call.
#[derive(Clone, Debug, Default)]
pub(super) struct Token(Arc<Mutex<Option<AsciiMetadataValue>>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &*self.0.lock() {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(request)
    }
}

/// A connection to one of the endpoints.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) endpoint: String,
    channel: Channel,
    user: Option<EtcdUser>,
    token: Token,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to the endpoint whose turn it is, and logs in if there is a user.
    pub(super) async fn open(location: &EtcdLocation, turn: usize) -> Result<Self, SourceError> {
        let endpoint = location.endpoints[turn % location.endpoints.len()].clone();
        let failed = |text: String| SourceError::Etcd { endpoint: endpoint.clone(), text };
        let builder = Endpoint::from_shared(format!("http://{endpoint}"))
            .map_err(|error| failed(error.to_string()))?
            .connect_timeout(PATIENCE)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(PATIENCE);
        let connect = async {
            match &location.tls {
                None => builder.connect().await.map_err(|error| with_causes(error.to_string(), &error)),
                Some(tls) => connect_inside(&builder, tls, &endpoint).await,
            }
        };
        let channel = tokio::time::timeout(PATIENCE, connect).await;
        let channel = channel.map_err(|_| failed(no_answer()))?.map_err(failed)?;
        let connection = Self { endpoint, channel, user: location.user.clone(), token: Token::default() };
        connection.log_in().await?;
        Ok(connection)
    }

    /// What calls are made through.
    pub(super) fn service(&self) -> Service {
        InterceptedService::new(self.channel.clone(), self.token.clone())
    }

    pub(super) fn error(&self, text: impl Into<String>) -> SourceError {
        SourceError::Etcd { endpoint: self.endpoint.clone(), text: text.into() }
    }

    /// Exchanges the user's password, as its file has it now, for a token.
    async fn log_in(&self) -> Result<(), SourceError> {
        let Some(user) = &self.user else { return Ok(()) };
        let password = std::fs::read_to_string(&user.password_file)
            .map_err(|error| self.error(format!("cannot read {}: {error}", user.password_file.display())))?;
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        let request = AuthenticateRequest { name: user.name.clone(), password };
        let mut client = AuthClient::new(self.channel.clone());
        let answer = self.answer(client.authenticate(request)).await?;
        let token = answer.token.parse().map_err(|_| self.error("its token is no text"))?;
        *self.token.0.lock() = Some(token);
        Ok(())
    }

    /// Waits for one answer.
    pub(super) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, SourceError> {
        self.try_answer(call).await?.map_err(|status| self.error(said(&status)))
    }

    async fn try_answer<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<Result<T, Status>, SourceError> {
        let answer = tokio::time::timeout(PATIENCE, call).await.map_err(|_| self.error(no_answer()))?;
        Ok(answer.map(tonic::Response::into_inner))
    }

    /// Several reads and writes at once.
    pub(super) async fn transact(&self, txn: TxnRequest) -> Result<TxnResponse, SourceError> {
        let mut client = KvClient::new(self.service());
        match self.try_answer(client.txn(txn.clone())).await? {
            Err(status) if self.user.is_some() && is_forgotten(&status) => {
                self.log_in().await?;
                self.answer(client.txn(txn)).await
            }
            answer => answer.map_err(|status| self.error(said(&status))),
        }
    }
}

/// Whether the token is not taken any more: it has expired, or it is older than a change of users.
fn is_forgotten(status: &Status) -> bool {
    status.code() == Code::Unauthenticated || status.message().contains("auth store is old")
}

async fn connect_inside(builder: &Endpoint, tls: &EtcdTls, endpoint: &str) -> Result<Channel, String> {
    let files = ClientFiles { ca: tls.ca.clone(), own: tls.own.clone() };
    let opened = Arc::new(ClientTls::open(files).map_err(|error| error.to_string())?);
    let (host, _) = crate::host_and_port(endpoint, 0)?;
    let name = tls.name.clone().unwrap_or_else(|| host.to_owned());
    let name = ServerName::try_from(name.clone())
        .map_err(|_| format!("{name:?} is no name that a certificate can have"))?;
    let address = endpoint.to_owned();
    let connect = move |_| {
        let (opened, name, address) = (Arc::clone(&opened), name.clone(), address.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let stream = opened.connector(Plane::Control).connect(name, stream).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    };
    let channel = builder.connect_with_connector(tower::service_fn(connect)).await;
    channel.map_err(|error| with_causes(error.to_string(), &error))
}

pub(super) fn no_answer() -> String {
    format!("no answer within {PATIENCE:?}")
}

/// What a call of etcd failed with.
pub(super) fn said(status: &Status) -> String {
    with_causes(status.message().to_owned(), status)
}

/// A text and the causes of the error that it is about, which the transport's own texts leave out.
fn with_causes(mut text: String, error: &dyn std::error::Error) -> String {
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}
