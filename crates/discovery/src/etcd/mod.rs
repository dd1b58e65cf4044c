//! Members in etcd: servers register records, everybody watches them.
//!
//! | key | value | lives |
//! |-----|-------|-------|
//! | `PREFIX/members/ID` | the member's record ([`crate::Member::to_record`]) | as long as the server says that it lives, plus the TTL of the location |
//! | `PREFIX/since/ID` | when it became a member, Unix time in milliseconds, decimal | two more TTLs |
//!
//! The second key is why a server that restarts after its record has run out is still no new member. The epoch of a
//! list is the revision at which etcd told of it.
//!
//! etcd is spoken to through a description of our own of the few calls that are needed (`proto/`), without TLS and
//! without users: etcd must be on a network that only the cluster reaches.

mod register;
mod source;

pub use register::{Registered, Wish, register};
pub use source::EtcdSource;
#[cfg(feature = "fuzzing")]
pub(crate) use source::list_after;

use crate::{EtcdLocation, SourceError};
use rpc::kv_client::KvClient;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// The generated messages and clients.
pub(crate) mod rpc {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    tonic::include_proto!("etcdserverpb");
}

/// How long a connection to etcd and one answer of it may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a silent connection is asked whether it is alive; etcd takes offence if it is much more often.
const KEEPALIVE: Duration = Duration::from_secs(10);

impl EtcdLocation {
    /// Where the records are: every key that begins with this is a record's.
    fn members(&self) -> String {
        format!("{}/members/", self.prefix)
    }

    fn member(&self, id: &str) -> Vec<u8> {
        format!("{}{id}", self.members()).into_bytes()
    }

    fn since(&self, id: &str) -> Vec<u8> {
        format!("{}/since/{id}", self.prefix).into_bytes()
    }
}

/// The first key after all that begin with `prefix`.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // The prefix ends with '/', so the last byte can be counted up.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// A connection to one of the endpoints.
#[derive(Clone)]
struct Connection {
    endpoint: String,
    channel: Channel,
}

impl Connection {
    /// Connects to the endpoint whose turn it is.
    async fn open(location: &EtcdLocation, turn: usize) -> Result<Self, SourceError> {
        let endpoint = location.endpoints[turn % location.endpoints.len()].clone();
        let failed = |text: String| SourceError::Etcd { endpoint: endpoint.clone(), text };
        let builder = Endpoint::from_shared(format!("http://{endpoint}"))
            .map_err(|error| failed(error.to_string()))?
            .connect_timeout(PATIENCE)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(PATIENCE);
        let channel = tokio::time::timeout(PATIENCE, builder.connect()).await;
        let channel = channel
            .map_err(|_| failed(no_answer()))?
            .map_err(|error| failed(with_causes(error.to_string(), &error)))?;
        Ok(Self { endpoint, channel })
    }

    fn error(&self, text: impl Into<String>) -> SourceError {
        SourceError::Etcd { endpoint: self.endpoint.clone(), text: text.into() }
    }

    /// Waits for one answer.
    async fn answer<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, SourceError> {
        match tokio::time::timeout(PATIENCE, call).await {
            Err(_) => Err(self.error(no_answer())),
            Ok(Err(status)) => Err(self.error(said(&status))),
            Ok(Ok(answer)) => Ok(answer.into_inner()),
        }
    }

    /// Several reads and writes at once.
    async fn transact(&self, txn: rpc::TxnRequest) -> Result<rpc::TxnResponse, SourceError> {
        self.answer(KvClient::new(self.channel.clone()).txn(txn)).await
    }
}

fn no_answer() -> String {
    format!("no answer within {PATIENCE:?}")
}

/// What a call of etcd failed with.
fn said(status: &tonic::Status) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_every_id_and_nothing_else() {
        let location: crate::Location = "etcd://e/a/b".parse().unwrap();
        let crate::Location::Etcd(location) = location else { panic!("{location}") };
        let (begin, end) = (location.members().into_bytes(), after(&location.members()));
        for id in ["a", "\u{10ffff}", "z/members/0"] {
            let key = location.member(id);
            assert!(begin <= key && key < end);
        }
        assert!(location.since("a") >= end);
    }
}
