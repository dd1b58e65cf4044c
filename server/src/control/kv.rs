//! `memkv.v1.Kv`: the complete key-value API for any language, over the same engine as the data plane.

use super::body::Holding;
use super::gate::caller;
use super::status::Fault;
use crate::accept::Peer;
use crate::allowance::Lease;
use crate::config::storage::NvmeMode;
use crate::data::{Arriving, Room, Shed, Sheds};
use crate::drain::Duty;
use crate::line::{Line, Waiting};
use crate::metrics::Metrics;
use crate::node::{Node, Phase, RequestGuard};
use crate::tenants::{Found, Tenant};
use bytes::Bytes;
use memkv_core::{Key, PageHasher, PageMeta, SpaceDescription, SpaceId};
use memkv_credentials::Rights;
use memkv_proto::{Invalid, keys_from_wire, space_id_from_wire, v1};
use memkv_storage::{Filling, HashedKey, PagePin, Published, Refusal, Space};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of a page in one response.
const CHUNK_BYTES: usize = 1 << 20;
/// Responses that wait for a client that does not read them.
const OUTBOX: usize = 4;
/// How long a request of a tenant that is over its rate may be held back.
const RATE_WAIT_MAX: Duration = Duration::from_millis(250);
/// How long a get may wait until answers of the same client have left.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(2);
/// Pages that one get pins at once.
const PINS: usize = 16;

/// The service.
#[derive(Clone)]
pub(crate) struct KvService {
    node: Arc<Node>,
}

impl KvService {
    /// A service over the node's engine.
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    fn enter(&self) -> Result<RequestGuard, Fault> {
        // Counted first: a stop that begins now either sees this call or is seen by it.
        let guard = self.node.in_flight.enter();
        match self.node.phase() {
            Phase::Serving => Ok(guard),
            Phase::Stopping | Phase::Closing => Err(Fault::Stopping),
        }
    }

    /// Whether a tenant may make a request now; waits a little if it is over its rate.
    async fn admit(&self, tenant: &Tenant, right: Rights) -> Result<(), Fault> {
        if !tenant.may(right) {
            return Err(Fault::NoRight(if right == Rights::READ { "read" } else { "write" }));
        }
        let wait = tenant.request();
        if wait > RATE_WAIT_MAX {
            tenant.counters.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Fault::OverRate);
        }
        if !wait.is_zero() {
            tenant.counters.delayed.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(wait).await;
        }
        tenant.begin();
        Ok(())
    }

    fn check_count(&self, keys: usize) -> Result<(), Fault> {
        let most = self.node.limits.batch_keys_max;
        if keys > most as usize { Err(Fault::TooManyKeys { keys, most }) } else { Ok(()) }
    }

    /// Runs `ask` over the keys of a space; a space that was never opened has no pages.
    async fn presence(
        &self,
        (tenant, right): (&Tenant, Rights),
        space_id: &[u8],
        keys: &[Vec<u8>],
        ask: impl FnOnce(&Space, &[HashedKey<'_>], &mut [bool]),
    ) -> Result<Vec<bool>, Fault> {
        let _in_flight = self.enter()?;
        self.admit(tenant, right).await?;
        self.check_count(keys.len())?;
        let id = space_id_from_wire(space_id)?;
        let keys: Vec<_> = keys_from_wire(keys)?.into_iter().map(|key| HashedKey::new(id, key)).collect();
        let mut found = vec![false; keys.len()];
        match tenant.find(&self.node.engine, id) {
            Found::No => {}
            Found::Readable(_) if right == Rights::WRITE => return Err(Fault::NoRight("change this space")),
            Found::Readable(space) | Found::Own(space) => ask(&space, &keys, &mut found),
        }
        Ok(found)
    }
}

fn count(found: &[bool]) -> u64 {
    found.iter().filter(|found| **found).count() as u64
}

#[tonic::async_trait]
impl v1::kv_server::Kv for KvService {
    type GetStream = ReceiverStream<Result<v1::GetResponse, Status>>;

    async fn open_space(
        &self,
        request: Request<v1::OpenSpaceRequest>,
    ) -> Result<Response<v1::OpenSpaceResponse>, Status> {
        let _in_flight = self.enter()?;
        let tenant = caller(&request)?;
        let space = request.into_inner().space.ok_or(Fault::Invalid(Invalid::Missing("space")))?;
        let description = SpaceDescription::try_from(space).map_err(Fault::Invalid)?;
        let id = self.node.tenants.open_space(&tenant, description, &self.node.engine)?;
        Ok(Response::new(v1::OpenSpaceResponse { space_id: id.0.to_vec() }))
    }

    async fn exists(
        &self,
        request: Request<v1::ExistsRequest>,
    ) -> Result<Response<v1::ExistsResponse>, Status> {
        let tenant = caller(&request)?;
        let request = request.into_inner();
        let engine = &self.node.engine;
        let asked =
            self.presence((&tenant, Rights::READ), &request.space_id, &request.keys, |space, keys, found| {
                engine.exists_batch(space, keys, found);
            });
        let present = asked.await?;
        Metrics::add(&self.node.metrics.exists_keys, present.len() as u64);
        Metrics::add(&self.node.metrics.exists_hits, count(&present));
        Ok(Response::new(v1::ExistsResponse { present }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        let in_flight = self.enter()?;
        let tenant = caller(&request)?;
        let holding = request.extensions().get::<Holding>().cloned();
        self.admit(&tenant, Rights::READ).await?;
        let request = request.into_inner();
        self.check_count(request.keys.len())?;
        let answer = reserve(holding.as_ref(), &request).await?;
        if !request.expected_bytes.is_empty() && request.expected_bytes.len() != request.keys.len() {
            return Err(Fault::Invalid(Invalid::OutOfRange("expected_bytes")).into());
        }
        let id = space_id_from_wire(&request.space_id).map_err(Fault::Invalid)?;
        keys_from_wire(&request.keys).map_err(Fault::Invalid)?;
        let (outbox, responses) = mpsc::channel(OUTBOX);
        let get = Get { node: Arc::clone(&self.node), tenant, id, request, outbox };
        tokio::spawn(async move {
            get.run().await;
            drop((in_flight, answer, holding));
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn put(
        &self,
        request: Request<Streaming<v1::PutRequest>>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        let _in_flight = self.enter()?;
        let tenant = caller(&request)?;
        let line = request.extensions().get::<Peer>().map(|peer| Arc::clone(&peer.line));
        self.admit(&tenant, Rights::WRITE).await?;
        let until = Instant::now() + Duration::from_millis(self.node.limits.request_ms_max.into());
        let put = Put {
            node: &self.node,
            tenant: &tenant,
            line,
            space: None,
            page: None,
            statuses: Vec::new(),
            stored: Vec::new(),
        };
        Ok(Response::new(put.run(request.into_inner(), until).await?))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let tenant = caller(&request)?;
        let request = request.into_inner();
        let engine = &self.node.engine;
        let asked = self.presence(
            (&tenant, Rights::WRITE),
            &request.space_id,
            &request.keys,
            |space, keys, removed| {
                engine.delete_batch(space, keys, removed);
            },
        );
        let removed = asked.await?;
        engine.settle_removals().await;
        Metrics::add(&self.node.metrics.deleted, count(&removed));
        Ok(Response::new(v1::DeleteResponse { removed }))
    }

    async fn touch(&self, request: Request<v1::TouchRequest>) -> Result<Response<v1::TouchResponse>, Status> {
        let tenant = caller(&request)?;
        let request = request.into_inner();
        let now_ms = self.node.clock.now_ms();
        let engine = &self.node.engine;
        let asked =
            self.presence((&tenant, Rights::READ), &request.space_id, &request.keys, |space, keys, found| {
                engine.touch_batch(space, keys, found, now_ms);
            });
        let present = asked.await?;
        Ok(Response::new(v1::TouchResponse { present }))
    }
}

/// Holds what the pieces of an answer take that are on their way, if the client may have so much at once.
async fn reserve(holding: Option<&Holding>, request: &v1::GetRequest) -> Result<Option<Lease>, Fault> {
    let Some(mut lease) = holding.and_then(Holding::lease) else { return Ok(None) };
    let asked = request.expected_bytes.iter().map(|&bytes| u64::from(bytes)).sum::<u64>();
    let known = request.expected_bytes.len() == request.keys.len();
    // One piece is encoded while another one leaves.
    let most = 2 * CHUNK_BYTES;
    let bytes = if known { usize::try_from(asked).unwrap_or(most).min(most) } else { most };
    if lease.hold_within(bytes, ANSWER_WAIT_MAX).await { Ok(Some(lease)) } else { Err(Fault::TooMuchHeld) }
}

/// Owns a pin while pieces of its page are on their way out.
struct PinnedBytes(PagePin);

impl AsRef<[u8]> for PinnedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A get whose request was checked.
struct Get {
    node: Arc<Node>,
    tenant: Arc<Tenant>,
    id: SpaceId,
    request: v1::GetRequest,
    outbox: mpsc::Sender<Result<v1::GetResponse, Status>>,
}

impl Get {
    async fn run(self) {
        let until = Instant::now() + Duration::from_millis(self.node.limits.request_ms_max.into());
        // Dropping the outbox early ends the client's stream with an error.
        if timeout_at(until, self.send_all()).await.is_err() {
            let _unread = self.outbox.try_send(Err(Fault::Silent.into()));
        }
    }

    async fn send_all(&self) {
        let space = self.tenant.find(&self.node.engine, self.id).readable();
        let mut pins = Vec::new();
        for (group, keys) in self.request.keys.chunks(PINS).enumerate() {
            let hashed =
                keys.iter().filter_map(|key| Key::new(key).ok()).map(|key| HashedKey::new(self.id, key));
            let hashed: Vec<_> = hashed.collect();
            pins.clear();
            match &space {
                Some(space) => {
                    self.node.engine.pin_batch(space, &hashed, self.node.clock.now_ms(), &mut pins).await;
                }
                None => pins.resize_with(hashed.len(), || None),
            }
            for (at, pin) in pins.drain(..).enumerate() {
                if self.send_page(group * PINS + at, pin).await.is_none() {
                    return;
                }
            }
        }
    }

    /// `None` once the client does not read any more.
    async fn send_page(&self, index: usize, pin: Option<PagePin>) -> Option<()> {
        let metrics = &self.node.metrics;
        Metrics::add(&metrics.get_keys, 1);
        let expected = self.request.expected_bytes.get(index).copied();
        let index = u32::try_from(index).ok()?;
        let mut first = v1::GetResponse { index, ..Default::default() };
        let Some(pin) = pin else {
            first.set_status(v1::Status::Miss);
            return self.send(first).await;
        };
        Metrics::add(&metrics.get_hits, 1);
        let meta = pin.meta();
        first.record = Some(meta.into());
        if expected.is_some_and(|expected| expected != meta.len) {
            first.set_status(v1::Status::SizeMismatch);
            return self.send(first).await;
        }
        Metrics::add(&metrics.get_bytes, meta.len.into());
        self.tenant.sent(meta.len.into());
        first.set_status(v1::Status::Ok);
        let mut rest = Bytes::from_owner(PinnedBytes(pin));
        first.data = rest.split_to(rest.len().min(CHUNK_BYTES));
        self.send(first).await?;
        while !rest.is_empty() {
            let data = rest.split_to(rest.len().min(CHUNK_BYTES));
            self.send(v1::GetResponse { index, data, ..Default::default() }).await?;
        }
        Some(())
    }

    async fn send(&self, response: v1::GetResponse) -> Option<()> {
        timeout(self.node.config.stall_timeout, self.outbox.send(Ok(response))).await.ok()?.ok()
    }
}

/// A put's stream, message by message.
struct Put<'a> {
    node: &'a Node,
    tenant: &'a Arc<Tenant>,
    /// Its connection's slots that wait for their pages.
    line: Option<Arc<Line>>,
    space: Option<Arc<Space>>,
    page: Option<Page>,
    statuses: Vec<v1::Status>,
    /// Keys of stored pages that must be on a drive before they are acknowledged.
    stored: Vec<Vec<u8>>,
}

/// The page that is coming.
struct Page {
    /// Its key, with write-through.
    key: Option<Vec<u8>>,
    meta: PageMeta,
    came: usize,
    /// Where its bytes go, or why they are thrown away.
    target: Result<(Filling, PageHasher), v1::Status>,
    /// Keeps its slot counted.
    _counted: Option<(Arriving, Option<Waiting>)>,
}

impl Put<'_> {
    async fn run(
        mut self,
        mut inbox: Streaming<v1::PutRequest>,
        until: Instant,
    ) -> Result<v1::PutResponse, Status> {
        loop {
            let end = until.min(Instant::now() + self.node.config.stall_timeout);
            let message = timeout_at(end, inbox.message()).await.map_err(|_| Fault::Silent)??;
            let Some(message) = message else { break };
            self.take(message)?;
        }
        if self.page.is_some() {
            return Err(Fault::Sequence("the stream ended in the middle of a page").into());
        }
        if let Some(space) = &self.space {
            let keys = self.stored.iter().filter_map(|key| Key::new(key).ok());
            let keys: Vec<_> = keys.map(|key| HashedKey::new(space.id(), key)).collect();
            self.node.persist(space, &keys).await;
        }
        Ok(v1::PutResponse { statuses: self.statuses.into_iter().map(i32::from).collect() })
    }

    fn take(&mut self, message: v1::PutRequest) -> Result<(), Fault> {
        if message.record.is_some() || !message.key.is_empty() {
            if self.page.is_some() {
                return Err(Fault::Sequence("a page began before the last one was whole"));
            }
            self.page = Some(self.begin(&message)?);
        }
        let Some(page) = &mut self.page else {
            return Err(Fault::Sequence("the first message of a page has its key and record"));
        };
        let len = page.meta.len as usize;
        let end = page.came.saturating_add(message.data.len());
        if end > len {
            return Err(Fault::Sequence("a page has more bytes than its record says"));
        }
        if let Ok((filling, hasher)) = &mut page.target {
            filling.bytes_mut()[page.came..end].copy_from_slice(&message.data);
            hasher.update(&message.data);
        }
        page.came = end;
        self.tenant.received(message.data.len() as u64);
        if end == len
            && let Some(page) = self.page.take()
        {
            self.finish(page);
        }
        Ok(())
    }

    fn begin(&mut self, message: &v1::PutRequest) -> Result<Page, Fault> {
        let limits = &self.node.limits;
        if self.statuses.len() >= limits.batch_keys_max as usize {
            return Err(Fault::TooManyKeys { keys: self.statuses.len() + 1, most: limits.batch_keys_max });
        }
        let space = match &self.space {
            Some(space) => Arc::clone(space),
            None => {
                let id = space_id_from_wire(&message.space_id)?;
                match self.tenant.find(&self.node.engine, id) {
                    Found::No => return Err(Fault::UnknownSpace(id)),
                    Found::Readable(_) => return Err(Fault::NoRight("change this space")),
                    Found::Own(space) => Arc::clone(self.space.insert(space)),
                }
            }
        };
        let key = Key::new(&message.key).map_err(Invalid::Key)?;
        let meta = PageMeta::try_from(message.record.ok_or(Invalid::Missing("record"))?)?;
        let key = HashedKey::new(space.id(), key);
        Metrics::add(&self.node.metrics.put_keys, 1);
        let target = if meta.len == 0 || meta.len > limits.page_bytes_max {
            Err(v1::Status::TooLarge)
        } else {
            let reserved = match self.lacks(meta.len) {
                Some(why) => Err(self.turned_away(&space, key, why)),
                None => {
                    let reserved = self.node.engine.reserve(&space, key, meta.len, message.position);
                    let busy = matches!(reserved, Err(Refusal::Busy));
                    Metrics::add(&self.node.metrics.put_busy, busy.into());
                    reserved
                }
            };
            match reserved {
                Ok(filling) => Ok((filling, PageHasher::new(key.digest))),
                Err(Refusal::Exists) => Err(v1::Status::Exists),
                Err(Refusal::Busy) => Err(v1::Status::Busy),
                Err(Refusal::TooLarge { .. }) => Err(v1::Status::TooLarge),
            }
        };
        let write_through = self.node.config.storage.nvme_mode == NvmeMode::WriteThrough;
        let counted = target.is_ok().then(|| {
            let bytes = meta.len.into();
            (
                self.node.arrivals.count(self.tenant, bytes),
                self.line.as_ref().map(|line| line.arriving(bytes)),
            )
        });
        Ok(Page { key: write_through.then(|| message.key.clone()), meta, came: 0, target, _counted: counted })
    }

    /// Why there is no room for a page of this length; `None` if there is.
    fn lacks(&self, len: u32) -> Option<Shed> {
        let leaving = self.node.drain.duty() != Duty::Serving;
        let held = self.line.as_ref().map_or(0, |line| line.arriving_bytes());
        Room::of(self.node, self.tenant, (held, true), leaving).lacks(len)
    }

    /// The answer to a page for which there is no place, and why is counted: one that is here already is never refused.
    fn turned_away(&self, space: &Space, key: HashedKey<'_>, why: Shed) -> Refusal {
        let mut found = [false];
        self.node.engine.exists_batch(space, &[key], &mut found);
        if found[0] {
            return Refusal::Exists;
        }
        let mut sheds = Sheds::default();
        sheds.add(why);
        sheds.count(&self.node.metrics);
        Refusal::Busy
    }

    fn finish(&mut self, page: Page) {
        let now_ms = self.node.clock.now_ms();
        let status = match page.target {
            Err(status) => status,
            Ok((filling, hasher)) => match filling.verify_streamed(page.meta, hasher.finish()) {
                Ok(sealed) => match sealed.publish(now_ms) {
                    Published::Stored => v1::Status::Ok,
                    Published::Exists => v1::Status::Exists,
                },
                Err(_corrupt) => v1::Status::Corrupt,
            },
        };
        let metrics = &self.node.metrics;
        match status {
            v1::Status::Ok => {
                self.stored.extend(page.key);
                Metrics::add(&metrics.put_stored, 1);
                Metrics::add(&metrics.put_bytes, page.meta.len.into());
            }
            v1::Status::Exists => Metrics::add(&metrics.put_existing, 1),
            // The engine counts corrupt pages; refused ones were counted when they were refused.
            v1::Status::Corrupt
            | v1::Status::Busy
            | v1::Status::Unspecified
            | v1::Status::Miss
            | v1::Status::SizeMismatch
            | v1::Status::TooLarge => {}
        }
        self.statuses.push(status);
    }
}
