//! Keeps a server's record in etcd for as long as the server lives.
//!
//! The record is tied to a lease that is renewed every third of its time. A server that dies leaves a record
//! that runs out; one that stops leaves it too, because it may be back before that. Only a server that shall never be
//! asked again removes its record ([`Wish::Absent`]).
//!
//! | what is found at a (re-)registration | what happens |
//! |--------------------------------------|--------------|
//! | no record | it is written |
//! | a record of this life of the server | it is written again |
//! | a record of another life, and this one has just begun | it is replaced: the server was restarted |
//! | a record of another life, and this one had a record before | it stays: another server has the same id; an error in the log |
//!
//! `since` is what the record, or the key beside it, says; else now.

use super::connection::{Connection, PATIENCE, no_answer, said};
use super::rpc::{self, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use super::rpc::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::follow::Pauses;
use crate::{EtcdLocation, Member, SourceError};
use parking_lot::Mutex;
use rpc::compare::{CompareResult, CompareTarget, TargetUnion};
use rpc::lease_client::LeaseClient;
use rpc::request_op::Request;
use rpc::response_op::Response;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// How many TTLs the key with `since` outlives its server.
const SINCE_TTLS: i64 = 3;

/// What shall be in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The member's record; `since_unix_ms` is filled in when it is written.
    Present(Member),
    /// No record of this member: it shall never be asked again.
    Absent(Member),
}

/// How the registration goes, for whoever looks.
#[derive(Debug, Default)]
pub struct Registered {
    /// What is in etcd now, as far as this server knows.
    now: watch::Sender<Option<Wish>>,
    times: AtomicU64,
    failures: AtomicU64,
    since_unix_ms: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Registered {
    /// Whether the record is there now, as far as this server knows.
    #[must_use]
    pub fn now(&self) -> bool {
        matches!(*self.now.borrow(), Some(Wish::Present(_)))
    }

    /// Waits until the wish has come true.
    pub async fn wait(&self, wish: &Wish) {
        let mut now = self.now.subscribe();
        // The sender lives in `self`, so waiting cannot fail while somebody waits.
        let _now = now.wait_for(|now| now.as_ref() == Some(wish)).await;
    }

    /// How often the record was written under a new lease.
    #[must_use]
    pub fn times(&self) -> u64 {
        self.times.load(Relaxed)
    }

    /// Attempts to write it that failed, and leases that were lost.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// Since when the server is a member, Unix time in milliseconds; 0 before the first registration.
    #[must_use]
    pub fn since_unix_ms(&self) -> u64 {
        self.since_unix_ms.load(Relaxed)
    }

    /// Why the record is not there, while it is not.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.error.lock().clone()
    }
}

/// Why there is no record.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("another server registers as {0:?}; give one of the two another node_id")]
    Twin(String),
}

/// Keeps a server's record as `wanted` says; ends when its sender is gone. `unix_ms` is the clock for `since`.
pub async fn register(
    location: EtcdLocation,
    mut wanted: watch::Receiver<Wish>,
    registered: &Registered,
    unix_ms: fn() -> u64,
) {
    let mut pauses = Pauses::default();
    let mut turn = 0;
    loop {
        let registrar = Registrar { location: &location, registered, unix_ms };
        let Err(problem) = registrar.keep(turn, &mut wanted, &mut pauses).await else { return };
        turn += 1;
        registered.now.send_replace(None);
        registered.failures.fetch_add(1, Relaxed);
        let known = registered.error.lock().replace(problem.to_string());
        match &problem {
            Problem::Twin(_) if known.as_ref() != Some(&problem.to_string()) => {
                tracing::error!(%problem, "this server is not registered");
            }
            Problem::Source(_) if known.is_none() => {
                tracing::warn!(%problem, "this server is not registered; clients that know it go on, others do not find it");
            }
            Problem::Twin(_) | Problem::Source(_) => tracing::debug!(%problem, "still not registered"),
        }
        tokio::select! {
            () = sleep(pauses.next()) => {}
            Err(_) = wanted.changed() => return,
        }
    }
}

struct Registrar<'a> {
    location: &'a EtcdLocation,
    registered: &'a Registered,
    unix_ms: fn() -> u64,
}

/// The two leases of a registration, and the stream that renews them.
struct Leases {
    short: i64,
    long: i64,
    ask: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl Registrar<'_> {
    /// Registers and stays registered; returns when nobody wants it any more.
    async fn keep(
        &self,
        turn: usize,
        wanted: &mut watch::Receiver<Wish>,
        pauses: &mut Pauses,
    ) -> Result<(), Problem> {
        let connection = Connection::open(self.location, turn).await?;
        let mut leases = self.leases(&connection).await?;
        self.fulfil(&connection, &leases, wanted).await?;
        let outage = self.registered.error.lock().take();
        *pauses = Pauses::default();
        self.registered.times.fetch_add(1, Relaxed);
        if outage.is_some() {
            tracing::info!(location = %self.location, "this server is registered again");
        } else {
            tracing::info!(location = %self.location, "this server is registered");
        }
        let mut renewals = interval(Duration::from_secs(self.location.ttl_s.into()) / 3);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = renewals.tick() => {
                    leases.renew(&connection).await?;
                    self.look(&connection, &leases, wanted).await?;
                }
                changed = wanted.changed() => match changed {
                    Ok(()) => self.fulfil(&connection, &leases, wanted).await?,
                    Err(_) => return Ok(()),
                },
            }
        }
    }

    async fn leases(&self, connection: &Connection) -> Result<Leases, SourceError> {
        let mut client = LeaseClient::new(connection.service());
        let mut granted = [0; 2];
        for (lease, times) in granted.iter_mut().zip([1, SINCE_TTLS]) {
            let request = LeaseGrantRequest { ttl: i64::from(self.location.ttl_s) * times };
            let answer = connection.answer(client.lease_grant(request)).await?;
            if !answer.error.is_empty() {
                return Err(connection.error(answer.error));
            }
            *lease = answer.id;
        }
        let [short, long] = granted;
        let (ask, requests) = mpsc::channel(2);
        for id in granted {
            let sent = ask.send(LeaseKeepAliveRequest { id }).await;
            sent.map_err(|_| connection.error("the lease could not be renewed"))?;
        }
        let answers = connection.answer(client.lease_keep_alive(ReceiverStream::new(requests))).await?;
        let mut leases = Leases { short, long, ask, answers };
        leases.hear(connection).await?;
        Ok(leases)
    }

    async fn fulfil(
        &self,
        connection: &Connection,
        leases: &Leases,
        wanted: &mut watch::Receiver<Wish>,
    ) -> Result<(), Problem> {
        let wish = wanted.borrow_and_update().clone();
        match &wish {
            Wish::Present(member) => self.write(connection, leases, member.clone()).await?,
            Wish::Absent(member) => self.remove(connection, member).await?,
        }
        self.registered.now.send_replace(Some(wish));
        Ok(())
    }

    /// Writes the record.
    async fn write(
        &self,
        connection: &Connection,
        leases: &Leases,
        mut member: Member,
    ) -> Result<(), Problem> {
        loop {
            let found = self.find(connection, &member.id).await?;
            let before = self.registered.since_unix_ms();
            if let Some(other) = &found.record
                && other.incarnation != member.incarnation
                && before > 0
            {
                return Err(Problem::Twin(member.id));
            }
            let known = [before, found.record.as_ref().map_or(0, |record| record.since_unix_ms), found.since];
            member.since_unix_ms = known.into_iter().find(|since| *since > 0).unwrap_or_else(self.unix_ms);
            let txn = TxnRequest {
                // Whoever wrote meanwhile may be a twin: then everything is looked at again.
                compare: vec![unchanged(self.location.member(&member.id), found.revision)],
                success: vec![
                    put(self.location.member(&member.id), member.to_record(), leases.short),
                    put(
                        self.location.since(&member.id),
                        member.since_unix_ms.to_string().into_bytes(),
                        leases.long,
                    ),
                ],
                failure: Vec::new(),
            };
            if connection.transact(txn).await?.succeeded {
                self.registered.since_unix_ms.store(member.since_unix_ms, Relaxed);
                return Ok(());
            }
        }
    }

    /// Removes the record, if it is ours. Its `since` goes too: if this server is ever back, it is a new member.
    async fn remove(&self, connection: &Connection, member: &Member) -> Result<(), SourceError> {
        let found = self.find(connection, &member.id).await?;
        if found.record.is_some_and(|record| record.incarnation != member.incarnation) {
            return Ok(());
        }
        let delete = |key| {
            let request = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
            RequestOp { request: Some(Request::RequestDeleteRange(request)) }
        };
        let keys = [self.location.member(&member.id), self.location.since(&member.id)];
        let success = keys.into_iter().map(delete).collect();
        connection.transact(TxnRequest { success, ..TxnRequest::default() }).await?;
        Ok(())
    }

    /// Looks whether the record is still there and still ours.
    async fn look(
        &self,
        connection: &Connection,
        leases: &Leases,
        wanted: &watch::Receiver<Wish>,
    ) -> Result<(), Problem> {
        let Wish::Present(member) = wanted.borrow().clone() else { return Ok(()) };
        let found = self.find(connection, &member.id).await?;
        match found.record {
            Some(record) if record.incarnation == member.incarnation => Ok(()),
            Some(_) => Err(Problem::Twin(member.id)),
            None => self.write(connection, leases, member).await,
        }
    }

    async fn find(&self, connection: &Connection, id: &str) -> Result<Found, SourceError> {
        let read = |key| RequestOp {
            request: Some(Request::RequestRange(RangeRequest { key, ..RangeRequest::default() })),
        };
        let keys = vec![read(self.location.member(id)), read(self.location.since(id))];
        let answer = connection.transact(TxnRequest { success: keys, ..TxnRequest::default() }).await?;
        let mut values = answer.responses.into_iter().map(|response| match response.response {
            Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => None,
        });
        let (record, since) = (values.next().flatten(), values.next().flatten());
        Ok(Found {
            revision: record.as_ref().map_or(0, |record| record.mod_revision),
            record: record.and_then(|record| Member::from_record(id, &record.value).ok()),
            since: since.and_then(|since| std::str::from_utf8(&since.value).ok()?.parse().ok()).unwrap_or(0),
        })
    }
}

/// What etcd has of a member.
struct Found {
    /// When the record was written last; 0 if there is none.
    revision: i64,
    /// The record, if it makes sense.
    record: Option<Member>,
    /// What the key beside it says; 0 if there is none.
    since: u64,
}

impl Leases {
    async fn renew(&mut self, connection: &Connection) -> Result<(), SourceError> {
        for id in [self.short, self.long] {
            let sent = self.ask.send(LeaseKeepAliveRequest { id }).await;
            sent.map_err(|_| connection.error("the lease's stream ended"))?;
        }
        self.hear(connection).await
    }

    /// Waits for the answers about both leases.
    async fn hear(&mut self, connection: &Connection) -> Result<(), SourceError> {
        for _ in [self.short, self.long] {
            let answer = timeout(PATIENCE, self.answers.message()).await;
            let answer = answer.map_err(|_| connection.error(no_answer()))?;
            match answer.map_err(|status| connection.error(said(&status)))? {
                Some(lease) if lease.ttl > 0 => {}
                Some(_) => return Err(connection.error("the lease has run out")),
                None => return Err(connection.error("the lease's stream ended")),
            }
        }
        Ok(())
    }
}

fn put(key: Vec<u8>, value: Vec<u8>, lease: i64) -> RequestOp {
    RequestOp { request: Some(Request::RequestPut(PutRequest { key, value, lease })) }
}

fn unchanged(key: Vec<u8>, revision: i64) -> rpc::Compare {
    rpc::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key,
        target_union: Some(TargetUnion::ModRevision(revision)),
    }
}
