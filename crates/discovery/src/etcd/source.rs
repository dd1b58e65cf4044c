//! The members under a prefix, read once and then watched.
//!
//! After any error everything is read again: the store may have lost its data, and its revisions may have begun
//! again. A record that makes no sense is skipped, and logged once for each time that it was written.

use super::after;
use super::connection::{Connection, said};
use super::rpc::{self, RangeRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use crate::{EtcdLocation, Member, MemberList, NextList, Source, SourceError};
use rpc::event::EventType;
use rpc::kv_client::KvClient;
use rpc::watch_client::WatchClient;
use rpc::watch_request::RequestUnion;
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::metadata::MetadataValue;

/// The most records that are read.
const RECORDS_MAX: i64 = 4096;

/// Members from etcd.
#[derive(Debug)]
pub struct EtcdSource {
    location: EtcdLocation,
    /// Whose turn it is to be asked.
    turn: usize,
    watch: Option<Watch>,
    records: Records,
}

#[derive(Debug)]
struct Watch {
    connection: Connection,
    events: Streaming<WatchResponse>,
    /// Keeps the stream open.
    _requests: mpsc::Sender<WatchRequest>,
}

impl EtcdSource {
    /// A source of the members at a location. Nothing is asked yet.
    #[must_use]
    pub fn new(location: EtcdLocation) -> Self {
        let records = Records { prefix: location.members(), ..Records::default() };
        Self { location, turn: 0, watch: None, records }
    }

    async fn list(&mut self) -> Result<MemberList, SourceError> {
        let Some(watch) = &mut self.watch else { return self.begin().await };
        loop {
            let event = match watch.events.message().await {
                Ok(Some(event)) if !event.canceled => event,
                Ok(Some(event)) => return self.broken(&event.cancel_reason),
                Ok(None) => return self.broken("it ended the watch"),
                Err(status) => return self.broken(&said(&status)),
            };
            if self.records.take(event) {
                return Ok(self.records.list());
            }
        }
    }

    fn broken(&mut self, text: &str) -> Result<MemberList, SourceError> {
        let endpoint = self.watch.take().map(|watch| watch.connection.endpoint).unwrap_or_default();
        self.turn += 1;
        Err(SourceError::Etcd { endpoint, text: text.to_owned() })
    }

    /// Reads all records and begins to watch them.
    async fn begin(&mut self) -> Result<MemberList, SourceError> {
        let begun = self.read_and_watch().await;
        if begun.is_err() {
            self.turn += 1;
        }
        self.watch = Some(begun?);
        Ok(self.records.list())
    }

    async fn read_and_watch(&mut self) -> Result<Watch, SourceError> {
        let connection = Connection::open(&self.location, self.turn).await?;
        let (key, range_end) = (self.records.prefix.clone().into_bytes(), after(&self.records.prefix));
        let range = RangeRequest { key: key.clone(), range_end: range_end.clone(), limit: RECORDS_MAX };
        let mut reader = KvClient::new(connection.service());
        let answer = connection.answer(reader.range(range)).await?;
        if answer.more {
            tracing::warn!(most = RECORDS_MAX, "there are more records of members than are read");
        }
        let revision = answer.header.map_or(0, |header| header.revision);
        let (requests, receiver) = mpsc::channel(1);
        let create = WatchCreateRequest { key, range_end, start_revision: revision + 1 };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(create).await.map_err(|_| connection.error("the watch could not begin"))?;
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        // A member of etcd that has lost the others ends the watch instead of being silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let mut watcher = WatchClient::new(connection.service());
        let events = connection.answer(watcher.watch(request)).await?;
        self.records.read(revision, answer.kvs);
        Ok(Watch { connection, events, _requests: requests })
    }
}

impl Source for EtcdSource {
    fn next(&mut self) -> NextList<'_> {
        Box::pin(self.list())
    }

    fn refresh(&mut self) {
        self.watch = None;
    }
}

/// The records as read and watched so far.
#[derive(Debug, Default)]
struct Records {
    prefix: String,
    revision: u64,
    members: BTreeMap<Vec<u8>, Member>,
    /// Records that make no sense, with the revision at which they were written.
    bad: BTreeMap<Vec<u8>, i64>,
}

impl Records {
    fn list(&self) -> MemberList {
        let mut list = MemberList::new(self.revision, self.members.values().cloned().collect());
        list.skipped = u32::try_from(self.bad.len()).unwrap_or(u32::MAX);
        list
    }

    /// Takes over all that there is.
    fn read(&mut self, revision: i64, records: Vec<rpc::KeyValue>) {
        let known = std::mem::take(&mut self.bad);
        self.members.clear();
        self.revision = u64::try_from(revision).unwrap_or(0);
        for record in records {
            self.put(record, &known);
        }
    }

    /// Takes over changes; returns whether there were any.
    fn take(&mut self, response: WatchResponse) -> bool {
        let changed = !response.events.is_empty();
        for event in response.events {
            let kind = event.r#type();
            let Some(record) = event.kv else { continue };
            self.revision = self.revision.max(u64::try_from(record.mod_revision).unwrap_or(0));
            match kind {
                EventType::Put => self.put(record, &BTreeMap::new()),
                EventType::Delete => {
                    self.members.remove(&record.key);
                    self.bad.remove(&record.key);
                }
            }
        }
        changed
    }

    fn put(&mut self, record: rpc::KeyValue, known: &BTreeMap<Vec<u8>, i64>) {
        let rpc::KeyValue { key, value, mod_revision } = record;
        let id = key.strip_prefix(self.prefix.as_bytes()).map(String::from_utf8_lossy).unwrap_or_default();
        match Member::from_record(&id, &value) {
            Ok(member) => {
                self.bad.remove(&key);
                self.members.insert(key, member);
            }
            Err(error) => {
                if known.get(&key) != Some(&mod_revision) {
                    let id: String = id.chars().take(128).collect();
                    tracing::warn!(?id, %error, "skipped the record of a member, which makes no sense; remove or correct it");
                }
                self.members.remove(&key);
                self.bad.insert(key, mod_revision);
            }
        }
    }
}

/// What is known after etcd has said all there is, and then some changes.
#[cfg(feature = "fuzzing")]
pub(crate) fn list_after(prefix: &str, first: rpc::RangeResponse, changes: Vec<WatchResponse>) -> MemberList {
    let mut records = Records { prefix: prefix.to_owned(), ..Records::default() };
    records.read(first.header.map_or(0, |header| header.revision), first.kvs);
    for change in changes {
        let _changed = records.take(change);
    }
    records.list()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, value: &[u8], mod_revision: i64) -> rpc::KeyValue {
        rpc::KeyValue { key: format!("p/members/{id}").into_bytes(), value: value.to_vec(), mod_revision }
    }

    fn event(kind: EventType, kv: rpc::KeyValue) -> WatchResponse {
        let event = rpc::Event { r#type: kind.into(), kv: Some(kv) };
        WatchResponse { events: vec![event], ..WatchResponse::default() }
    }

    fn ids(records: &Records) -> Vec<String> {
        records.list().members.into_iter().map(|member| member.id).collect()
    }

    #[test]
    fn changes_are_taken_over_with_their_revision() {
        let mut records = Records { prefix: "p/members/".to_owned(), ..Records::default() };
        let good = |id: &str| Member::new(id, "h", 1, 100).to_record();
        records.read(10, vec![record("a", &good("a"), 3), record("b", b"nonsense", 4)]);
        let list = records.list();
        assert_eq!((list.epoch, list.skipped, ids(&records)), (10, 1, vec!["a".to_owned()]));
        assert!(!records.take(WatchResponse { created: true, ..WatchResponse::default() }));
        assert!(records.take(event(EventType::Put, record("b", &good("b"), 12))));
        assert_eq!((records.list().epoch, records.list().skipped, ids(&records).len()), (12, 0, 2));
        assert!(records.take(event(EventType::Put, record("a", b"{}", 13))));
        assert_eq!((ids(&records), records.list().skipped), (vec!["b".to_owned()], 1));
        assert!(records.take(event(EventType::Delete, record("b", b"", 15))));
        assert_eq!((records.list().epoch, ids(&records)), (15, Vec::<String>::new()));
        assert!(records.take(event(EventType::Put, record("d", &good("d"), 16))));
        records.read(2, vec![record("c", &good("c"), 1)]);
        assert_eq!(
            (records.list().epoch, ids(&records)),
            (2, vec!["c".to_owned()]),
            "a new store counts from 1"
        );
    }

    #[test]
    fn keys_and_records_of_any_bytes_do_no_harm() {
        let mut records = Records { prefix: "p/members/".to_owned(), ..Records::default() };
        for (key, value) in
            [(vec![0xff; 300], vec![0xff; 9000]), (vec![], vec![]), (b"p/members/".to_vec(), b"{}".to_vec())]
        {
            records.put(rpc::KeyValue { key, value, mod_revision: -1 }, &BTreeMap::new());
        }
        assert_eq!((records.list().members.len(), records.list().skipped), (0, 3));
    }
}
