//! The same ops through the gRPC API, for networks that let nothing else through.
//!
//! Calls run on the client's own runtime with copies of what they need. Pages are copied into and out of the
//! caller's memory on the caller's thread or task only, which is what makes dropping an op safe here too: the
//! dropped op's calls are cancelled, and none of them knows the caller's memory.

use crate::breaker::{Failure, Kind};
use crate::client::Shared;
use crate::control::{kv_client, request};
use crate::drive;
use crate::exchange::Batch;
use crate::gates::Permits;
use crate::outcome::{self, PageOutcome};
use crate::server::Server;
use crate::stats::Shed;
use bytes::Bytes;
use memkv_core::{Limits, SpaceId};
use memkv_proto::v1;
use memkv_transport::frame::{FLAG_EXACT, Op};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Bytes of a page in one message.
const CHUNK_BYTES: usize = 512 << 10;
/// The most bytes of keys in one request; gRPC servers refuse messages above 4 MiB.
const KEY_BYTES_MAX: u32 = 2 << 20;
/// Messages between the calls and the caller.
const QUEUE: usize = 16;

/// Something that a call says to the caller.
enum Event {
    /// Outcomes of the places from `from` on.
    Outcomes { from: usize, outcomes: Vec<PageOutcome> },
    /// A part of a page; its index counts from place `from`.
    Part { from: usize, part: v1::GetResponse },
    /// A call to a server ended.
    End { server: usize, result: Result<(), Status> },
}

/// Everything a call needs, apart from the caller's memory.
struct Task {
    shared: Arc<Shared>,
    server: Arc<Server>,
    index: usize,
    space: SpaceId,
    op: Op,
    left: Duration,
    tell: mpsc::Sender<Event>,
}

/// The keys of one request.
struct Portion {
    from: usize,
    keys: Vec<Vec<u8>>,
    expected: Vec<u32>,
}

/// Runs a batch through the gRPC API.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    handle: &Handle,
    servers: &[Arc<Server>],
    ends: &[usize],
    batch: &mut Batch<'_>,
) {
    let (tell, mut hear) = mpsc::channel(QUEUE);
    let mut calls = JoinSet::new();
    let mut open = vec![0; servers.len()];
    let mut feeds = Vec::new();
    let mut reserved = Vec::new();
    for (index, server) in servers.iter().enumerate() {
        let (from, to) = drive::group(ends, index);
        if from == to {
            continue;
        }
        if !server.is_available() {
            drive::shed(server, (from, to), Shed::Refused, batch);
            continue;
        }
        if batch.op == Op::Put {
            if !server.takes_stores() {
                drive::shed(server, (from, to), Shed::Slow, batch);
                continue;
            }
            let Some(bytes) = server.reserve(batch.bytes(from, to), batch.care.store_backlog) else {
                drive::shed(server, (from, to), Shed::Backlog, batch);
                continue;
            };
            reserved.push(bytes);
        }
        let left = batch.deadline.saturating_duration_since(Instant::now());
        let task = || Task {
            shared: shared.clone(),
            server: server.clone(),
            index,
            space: batch.space,
            op: batch.op,
            left: left.max(Duration::from_millis(1)),
            tell: tell.clone(),
        };
        if batch.op == Op::Put {
            let most = (server.limits().batch_keys_max as usize).max(1);
            for from in (from..to).step_by(most) {
                let to = to.min(from + most);
                let (feed, fed) = mpsc::channel(4);
                feeds.push((from, to, feed));
                calls.spawn_on(task().put(from, to - from, ReceiverStream::new(fed)), handle);
                open[index] += 1;
            }
        } else {
            let portions = portions(batch, from, to, &server.limits());
            calls.spawn_on(task().ask(portions), handle);
            open[index] += 1;
        }
    }
    drop(tell);
    let deadline = batch.deadline;
    drive::before(handle, deadline, exchange(servers, batch, &mut hear, feeds, &mut open)).await;
    for (index, server) in servers.iter().enumerate().filter(|(index, _)| open[*index] > 0) {
        server.failed(Kind::of(batch.op), if batch.is_early { Failure::Left } else { Failure::Slow });
        let (from, to) = drive::group(ends, index);
        for &page in &batch.order[from..to] {
            let outcome = &mut batch.outcomes[page as usize];
            if *outcome == PageOutcome::Unavailable {
                *outcome = PageOutcome::TimedOut;
            }
        }
    }
}

/// Cuts a server's pages into requests.
fn portions(batch: &Batch<'_>, from: usize, to: usize, limits: &Limits) -> Vec<Portion> {
    let limits = Limits { frame_meta_bytes_max: limits.frame_meta_bytes_max.min(KEY_BYTES_MAX), ..*limits };
    let mut portions = Vec::new();
    let mut at = from;
    while at < to {
        let end = batch.cut(at, to, &limits);
        let pages = &batch.order[at..end];
        let keys = pages.iter().map(|&page| batch.key_bytes(page as usize).to_vec()).collect();
        let exact = batch.op == Op::Get && batch.flags & FLAG_EXACT != 0;
        let expected = |&page: &u32| u32::try_from(batch.pieces.page_len(page as usize)).unwrap_or(u32::MAX);
        let expected = if exact { pages.iter().map(expected).collect() } else { Vec::new() };
        portions.push(Portion { from: at, keys, expected });
        at = end;
    }
    portions
}

/// Carries messages between the caller's memory and the calls until all calls have ended.
async fn exchange(
    servers: &[Arc<Server>],
    batch: &mut Batch<'_>,
    hear: &mut mpsc::Receiver<Event>,
    feeds: Vec<(usize, usize, mpsc::Sender<v1::PutRequest>)>,
    open: &mut [usize],
) {
    if batch.op == Op::Put {
        let source = Source { batch };
        let mut feeding: Vec<Pin<Box<dyn Future<Output = ()> + Send + '_>>> = Vec::new();
        for (from, to, feed) in feeds {
            feeding.push(Box::pin(source.feed(from, to, feed)));
        }
        std::future::poll_fn(|cx| {
            feeding.retain_mut(|feed| feed.as_mut().poll(cx).is_pending());
            if feeding.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
    let mut page = Page::default();
    while let Some(event) = hear.recv().await {
        match event {
            Event::Outcomes { from, outcomes } => {
                for (outcome, at) in outcomes.into_iter().zip(from..) {
                    batch.outcomes[batch.order[at] as usize] = outcome;
                }
            }
            Event::Part { from, part } => page.take(batch, from, &part),
            Event::End { server, result } => {
                open[server] -= 1;
                end(&servers[server], Kind::of(batch.op), result);
            }
        }
    }
}

/// Counts the end of a server's call.
fn end(server: &Server, kind: Kind, result: Result<(), Status>) {
    match result {
        Ok(()) => server.succeeded(kind, Permits::default()),
        Err(status) => {
            let error = crate::control::error_of(&status);
            server.note_error(&error.to_string());
            match error.kind() {
                crate::ErrorKind::UnknownSpace => server.reopen_spaces(),
                crate::ErrorKind::Timeout => server.failed(kind, Failure::Slow),
                crate::ErrorKind::Unavailable | crate::ErrorKind::Protocol => {
                    server.failed(kind, Failure::Broken)
                }
                crate::ErrorKind::Config
                | crate::ErrorKind::BadInput
                | crate::ErrorKind::Unauthenticated
                | crate::ErrorKind::VersionMismatch
                | crate::ErrorKind::NotSupported
                | crate::ErrorKind::Closed => {}
            }
        }
    }
}

/// What a put reads from.
struct Source<'b, 'a> {
    batch: &'b Batch<'a>,
}

impl Source<'_, '_> {
    /// Sends the pages of one server to its call, as fast as the call takes them.
    async fn feed(&self, from: usize, to: usize, feed: mpsc::Sender<v1::PutRequest>) {
        let Batch { pieces, digests, order, .. } = self.batch;
        for at in from..to {
            let page = order[at] as usize;
            let len = pieces.page_len(page);
            let record = v1::PageRecord {
                len: u32::try_from(len).unwrap_or(u32::MAX),
                checksum: pieces.checksum(page, len, digests[page]),
                codec: 0,
                flags: 0,
            };
            for begin in (0..len).step_by(CHUNK_BYTES) {
                let mut data = Vec::with_capacity(CHUNK_BYTES.min(len - begin));
                pieces.copy_out(page, begin, len.min(begin + CHUNK_BYTES), &mut data);
                let mut message = v1::PutRequest { data: Bytes::from(data), ..Default::default() };
                if begin == 0 {
                    message.key = self.batch.key_bytes(page).to_vec();
                    message.record = Some(record);
                    message.position = self.batch.position(page);
                    if at == from {
                        message.space_id = self.batch.space.0.to_vec();
                    }
                }
                if feed.send(message).await.is_err() {
                    return; // The call has ended; its result says why.
                }
            }
        }
    }
}

/// The page of each server's stream that comes in now.
#[derive(Default)]
struct Page {
    /// By the place its portion begins at: index, bytes so far, whole length, checksum.
    now: Vec<(usize, u32, usize, usize, u64)>,
}

impl Page {
    fn take(&mut self, batch: &mut Batch<'_>, from: usize, part: &v1::GetResponse) {
        let status = part.status();
        if status != v1::Status::Unspecified {
            self.now.retain(|entry| entry.0 != from);
            self.begin(batch, from, part, status);
        }
        let Some(entry) = self.now.iter_mut().find(|entry| entry.0 == from) else { return };
        let Some(&page) = batch.order.get(from + entry.1 as usize) else { return };
        let page = page as usize;
        if !batch.pieces.copy_in(page, entry.2, &part.data) {
            batch.outcomes[page] = PageOutcome::Corrupt;
            return;
        }
        entry.2 += part.data.len();
        if entry.2 == entry.3 {
            let found = batch.pieces.checksum(page, entry.3, batch.digests[page]);
            batch.outcomes[page] = if found == entry.4 { PageOutcome::Hit } else { PageOutcome::Corrupt };
        }
    }

    /// The first message of a key.
    fn begin(&mut self, batch: &mut Batch<'_>, from: usize, part: &v1::GetResponse, status: v1::Status) {
        let Some(&page) = batch.order.get(from + part.index as usize) else { return };
        let page = page as usize;
        let record = part.record.unwrap_or_default();
        if matches!(status, v1::Status::Ok | v1::Status::SizeMismatch) {
            batch.seen_len = record.len;
        }
        if status != v1::Status::Ok {
            if let Some(outcome) = outcome::from_status(status, false) {
                batch.outcomes[page] = outcome;
            }
            return;
        }
        let (len, room) = (record.len as usize, batch.pieces.page_len(page));
        let exact = batch.flags & FLAG_EXACT != 0;
        if len > room || (exact && len != room) {
            batch.outcomes[page] = PageOutcome::SizeMismatch;
            return;
        }
        if record.codec != 0 || record.flags != 0 {
            // Only raw bytes can be handed out; another codec is of another release.
            batch.outcomes[page] = PageOutcome::Miss;
            return;
        }
        self.now.push((from, part.index, 0, len, record.checksum));
    }
}

impl Task {
    /// Sends events until the caller has gone.
    async fn tell(&self, event: Event) {
        // A caller that has gone needs no answers, and its calls are being cancelled.
        drop(self.tell.send(event).await);
    }

    async fn ask(self, portions: Vec<Portion>) {
        let mut result = Ok(());
        for portion in portions {
            let (from, count) = (portion.from, portion.keys.len());
            let asked = match self.op {
                Op::Get => self.get(portion).await,
                _ => self.keys(portion).await,
            };
            if let Err(status) = asked {
                let outcomes = vec![outcome::from_call_failure(status.code(), false); count];
                self.tell(Event::Outcomes { from, outcomes }).await;
                result = Err(status);
                break;
            }
        }
        self.tell(Event::End { server: self.index, result }).await;
    }

    fn request<T>(&self, method: &'static str, message: T) -> Result<tonic::Request<T>, Status> {
        request(&self.shared, method, message, self.left).map_err(|error| Status::internal(error.to_string()))
    }

    async fn keys(&self, portion: Portion) -> Result<(), Status> {
        let mut client = kv_client(self.server.channel.clone());
        let (space_id, keys) = (self.space.0.to_vec(), portion.keys);
        let count = keys.len();
        let present = match self.op {
            Op::Delete => {
                let message = v1::DeleteRequest { space_id, keys };
                client.delete(self.request("/memkv.v1.Kv/Delete", message)?).await?.into_inner().removed
            }
            Op::Touch => {
                let message = v1::TouchRequest { space_id, keys };
                client.touch(self.request("/memkv.v1.Kv/Touch", message)?).await?.into_inner().present
            }
            Op::Exists | Op::Get | Op::Put | Op::PutData | Op::Ping | Op::Bind | Op::Release => {
                let message = v1::ExistsRequest { space_id, keys };
                client.exists(self.request("/memkv.v1.Kv/Exists", message)?).await?.into_inner().present
            }
        };
        if present.len() != count {
            return Err(Status::internal("the server answered for another number of keys"));
        }
        let of = |&present: &bool| if present { PageOutcome::Hit } else { PageOutcome::Miss };
        self.tell(Event::Outcomes { from: portion.from, outcomes: present.iter().map(of).collect() }).await;
        Ok(())
    }

    async fn get(&self, portion: Portion) -> Result<(), Status> {
        let message = v1::GetRequest {
            space_id: self.space.0.to_vec(),
            keys: portion.keys,
            expected_bytes: portion.expected,
        };
        let mut client = kv_client(self.server.channel.clone());
        let mut parts = client.get(self.request("/memkv.v1.Kv/Get", message)?).await?.into_inner();
        while let Some(part) = parts.message().await? {
            self.tell(Event::Part { from: portion.from, part }).await;
        }
        Ok(())
    }

    async fn put(self, from: usize, count: usize, pages: ReceiverStream<v1::PutRequest>) {
        let result = self.put_pages(from, pages).await;
        if let Err(status) = &result {
            let outcomes = vec![outcome::from_call_failure(status.code(), true); count];
            self.tell(Event::Outcomes { from, outcomes }).await;
        }
        self.tell(Event::End { server: self.index, result }).await;
    }

    async fn put_pages(&self, from: usize, pages: ReceiverStream<v1::PutRequest>) -> Result<(), Status> {
        let mut client = kv_client(self.server.channel.clone());
        let answer = client.put(self.request("/memkv.v1.Kv/Put", pages)?).await?.into_inner();
        let of = |status| outcome::from_status(status, true).unwrap_or(PageOutcome::Unavailable);
        self.tell(Event::Outcomes { from, outcomes: answer.statuses().map(of).collect() }).await;
        Ok(())
    }
}
