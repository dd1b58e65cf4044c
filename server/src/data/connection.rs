//! The loop of one data connection: a frame in, a reply out, in order.

mod rdma;
mod shm;

use super::desk::{Desk, Taken};
use super::inbox::Inbox;
use super::movers::Bound;
use super::offers::{Held, Offer, Offers, PIECES, Receiving};
use super::transfer::{Broken, Patience, Shared, read_exact, read_some, write_reply};
use super::wire::Wire;
use crate::allowance::{FREE_BYTES, Lease};
use crate::metrics::Metrics;
use crate::node::{Node, Phase};
use crate::sessions::Attachment;
use memkv_credentials::Rights;
use memkv_storage::Space;
use memkv_transport::frame::{Code, FLAG_DIRECT, FLAG_REMOTE, FrameError, HEADER_BYTES, Header, Mover, Op};
use memkv_transport::records;
use std::io::IoSliceMut;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long the last reply of a broken connection may take to leave.
const LAST_WORD: Duration = Duration::from_millis(500);
/// How long a request of a tenant that is over its rate may be held back.
const RATE_WAIT_MAX: Duration = Duration::from_millis(250);
/// What a key takes while its request is at work: its digest, its record, its pin.
const BYTES_OF_KEY: usize = 64;
/// Why a request is not taken.
const OVER: &str = "requests of this session or tenant that are at work hold too many bytes; wait for some of them, or send smaller ones";
/// Bytes that are thrown away so that the last reply is not lost to a reset.
const LAST_BYTES: usize = 1 << 20;

/// One attached connection.
pub(crate) struct Connection {
    node: Arc<Node>,
    attachment: Attachment,
    stream: Wire,
    inbox: Inbox,
    desk: Desk,
    offers: Offers,
    mover: Bound,
    /// What the request at work holds.
    lease: Lease,
}

/// What to do after a request.
enum Next {
    /// Read the next frame.
    Go,
    /// Close: the stream cannot be trusted any more.
    Close,
}

impl Connection {
    /// A connection that has finished its handshake.
    pub(crate) fn new(node: Arc<Node>, attachment: Attachment, stream: Wire) -> Self {
        node.metrics.data_connections.fetch_add(1, Ordering::Relaxed);
        let session = &attachment.session;
        let lease = session.tenant.allowances(&session.held, &node.held).lease();
        let desk = Desk::new(Arc::clone(&node), Arc::clone(&attachment.session.tenant));
        Self {
            node,
            attachment,
            stream,
            inbox: Inbox::new(),
            desk,
            offers: Offers::default(),
            mover: Bound::None,
            lease,
        }
    }

    /// Serves requests until the connection ends.
    pub(crate) async fn run(mut self) {
        loop {
            match self.next_request().await {
                Ok(Next::Go) => {}
                Ok(Next::Close) => return self.leave().await,
                Err(Broken::Closed) => return,
                Err(broken @ (Broken::Stalled | Broken::Unread)) => {
                    if matches!(broken, Broken::Unread) {
                        self.attachment.session.rest(Instant::now());
                    }
                    Metrics::add(&self.node.metrics.stalled, 1);
                    self.stream.forget_unsent();
                    tracing::debug!(%broken, client = self.attachment.session.client_name, "data connection dropped");
                    return;
                }
            }
        }
    }

    async fn next_request(&mut self) -> Result<Next, Broken> {
        self.wait_for_frame().await?;
        let started = std::time::Instant::now();
        let patience = self.patience();
        let only_header = !self.offers.is_empty();
        let bytes = self.inbox.header(&self.stream, &patience, only_header).await?;
        let header = match Header::decode(&bytes) {
            Ok(header) => header,
            Err(error) => return self.protocol_error(None, error).await,
        };
        if let Err(error) = self.within_limits(&header) {
            return self.protocol_error(Some(&header), error).await;
        }
        let _in_flight = self.node.in_flight.enter();
        let bytes_held = (header.meta_len as usize).max(header.count as usize * BYTES_OF_KEY);
        let is_long = bytes_held > FREE_BYTES && header.op != Op::PutData;
        if is_long && !self.lease.hold(bytes_held) {
            return self.too_much(&header, &patience).await;
        }
        let meta = self.inbox.meta(&self.stream, &patience, header.meta_len as usize).await?;
        if let Err(error) = header.verify(&bytes, &meta) {
            return self.protocol_error(None, error).await;
        }
        let received = self.inbox.filled_at();
        let most = Duration::from_millis(self.node.limits.request_ms_max.into());
        let asked = Duration::from_millis(header.deadline_ms.into());
        // 0 means that the client set no deadline of its own.
        let deadline = received + if asked.is_zero() { most } else { asked.min(most) };
        let next = self.answer(header, meta, deadline).await?;
        if is_long {
            self.desk.settle();
            let _nothing = self.lease.hold(0);
        }
        self.node.metrics.request_took(header.op, started.elapsed());
        Ok(next)
    }

    /// Refuses a request whose keys and answer would be too much beside others that are at work.
    async fn too_much(&mut self, header: &Header, patience: &Patience) -> Result<Next, Broken> {
        Metrics::add(&self.node.metrics.requests_over, 1);
        self.release();
        self.skip(u64::from(header.meta_len) + header.body_len, patience).await?;
        let reply = self.desk.refuse(header, Code::Busy, OVER);
        self.reply(&reply).await
    }

    /// Waits for a frame's first byte and gives expired slots back meanwhile.
    async fn wait_for_frame(&mut self) -> Result<(), Broken> {
        loop {
            let only_header = !self.offers.is_empty();
            let expiries = [self.offers.next_expiry(), self.lent_until()];
            let Some(expiry) = expiries.into_iter().flatten().min() else {
                return self.inbox.wait(&self.stream, only_header).await;
            };
            match timeout_at(expiry, self.inbox.wait(&self.stream, only_header)).await {
                Ok(outcome) => return outcome,
                // The socket closes before the pages can change, so that the client can tell.
                Err(_elapsed) if self.lent_until() == Some(expiry) => return Err(Broken::Stalled),
                Err(_elapsed) => self.offers.expire(Instant::now()),
            }
        }
    }

    /// How long the peer may take for what it does next.
    fn patience(&self) -> Patience {
        let most = Duration::from_millis(self.node.limits.request_ms_max.into());
        Patience { stall: self.node.config.stall_timeout, until: Instant::now() + most }
    }

    /// Everything about a header that must hold before memory is set aside for the rest of its frame.
    fn within_limits(&self, header: &Header) -> Result<(), FrameError> {
        let limits = &self.node.limits;
        if header.reply {
            return Err(FrameError::Reserved);
        }
        if header.meta_len > limits.frame_meta_bytes_max {
            return Err(FrameError::OverLimit("bytes of keys and records in a frame"));
        }
        if header.count > limits.batch_keys_max {
            return Err(FrameError::OverLimit("keys in a request"));
        }
        if header.op != Op::PutData && !is_direct(header) && header.body_len != 0 {
            return Err(FrameError::Records);
        }
        Ok(())
    }

    async fn answer(&mut self, header: Header, meta: Vec<u8>, deadline: Instant) -> Result<Next, Broken> {
        self.release();
        if header.op == Op::Release && matches!(self.mover, Bound::Shm(_)) {
            self.inbox.recycle(meta);
            return Ok(Next::Go);
        }
        if header.op == Op::PutData {
            let known = self.offers.take(header.request_id).filter(|_| meta.is_empty());
            self.inbox.recycle(meta);
            return match known {
                Some(offer) => self.put_data(header, offer).await,
                None => self.protocol_error(Some(&header), FrameError::Records).await,
            };
        }
        let mut refused = self.turn_away(&header, deadline);
        if refused.is_none() {
            refused = self.admit(&header, deadline).await;
        }
        if let Some(reply) = refused {
            self.inbox.recycle(meta);
            self.skip(header.body_len, &self.patience()).await?;
            return self.reply(&reply).await;
        }
        if header.flags & FLAG_REMOTE != 0 || header.op == Op::Bind {
            let next = self.beside(&header, &meta, deadline).await;
            self.inbox.recycle(meta);
            return next;
        }
        if is_direct(&header) {
            let taken = self.desk.take_direct(&header, &meta, &self.offers);
            self.inbox.recycle(meta);
            return match taken {
                Ok(Taken::Pages(space, held)) => self.receive(header, &space, held).await,
                Ok(Taken::Refused(reply)) => {
                    self.skip(header.body_len, &self.patience()).await?;
                    self.reply(&reply).await
                }
                Err(error) => self.protocol_error(Some(&header), error).await,
            };
        }
        let now = self.attachment.session.moment(&self.node.clock);
        let outcome = match header.op {
            Op::Exists | Op::Touch => self.desk.presence(&header, &meta, now),
            Op::Delete => {
                let reply = self.desk.presence(&header, &meta, now);
                // Who hears that a page is gone may rely on it after a crash too.
                self.node.engine.settle_removals().await;
                reply
            }
            Op::Get => self.desk.get(&header, &meta, now).await,
            Op::Put => self.desk.offer(&header, &meta, &mut self.offers, deadline),
            Op::Bind | Op::Release => Err(FrameError::Records),
            Op::Ping | Op::PutData => Ok(self.desk.refuse(&header, Code::Ok, "")),
        };
        self.inbox.recycle(meta);
        match outcome {
            Ok(reply) => {
                self.attachment.session.sent(reply.body_len);
                self.reply(&reply).await
            }
            Err(error) => self.protocol_error(Some(&header), error).await,
        }
    }

    /// A request about a mover, or one whose pages move beside the connection.
    async fn beside(&mut self, header: &Header, meta: &[u8], deadline: Instant) -> Result<Next, Broken> {
        if header.op == Op::Bind {
            return match records::read_bind(meta) {
                Ok((Mover::Rdma, token)) => self.bind_rdma(header, &token, deadline).await,
                Ok((Mover::Shm, token)) => self.bind_shm(header, &token).await,
                Err(error) => self.protocol_error(Some(header), error).await,
            };
        }
        match &self.mover {
            Bound::Shm(_) => self.remote_shm(header, meta).await,
            Bound::Rdma(_) => self.remote_rdma(header, meta, deadline).await,
            Bound::None => self.protocol_error(Some(header), FrameError::Records).await,
        }
    }

    /// The reply to a request that is not to be carried out.
    fn turn_away(&mut self, header: &Header, deadline: Instant) -> Option<Header> {
        if self.node.phase() != Phase::Serving {
            return Some(self.desk.refuse(header, Code::Stopping, "the server is stopping"));
        }
        if Instant::now() >= deadline {
            Metrics::add(&self.node.metrics.expired, 1);
            return Some(self.desk.refuse(
                header,
                Code::Expired,
                "the deadline passed before the request's turn came",
            ));
        }
        None
    }

    /// The reply to a request that its tenant may not make, or not now. Whoever is over its rate waits a little, if the
    /// request has time for that; only a put is refused at once, since it would keep others from being told.
    async fn admit(&mut self, header: &Header, deadline: Instant) -> Option<Header> {
        let tenant = Arc::clone(&self.attachment.session.tenant);
        if !tenant.is_limited() {
            return None;
        }
        let right = match header.op {
            Op::Exists | Op::Get | Op::Touch => Rights::READ,
            Op::Put | Op::Delete => Rights::WRITE,
            Op::PutData | Op::Ping | Op::Bind | Op::Release => return None,
        };
        if !tenant.may(right) {
            return Some(self.desk.refuse(header, Code::Denied, "this tenant lacks the right to do that"));
        }
        let wait = tenant.request();
        if !wait.is_zero() {
            let time = deadline.saturating_duration_since(Instant::now()) / 2;
            if header.op == Op::Put || wait > time.min(RATE_WAIT_MAX) {
                tenant.counters.refused.fetch_add(1, Ordering::Relaxed);
                return Some(self.desk.refuse(header, Code::Busy, "this tenant is over its rate"));
            }
            tenant.counters.delayed.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(wait).await;
        }
        tenant.begin();
        None
    }

    /// Receives the pages of an offer.
    async fn put_data(&mut self, header: Header, offer: Offer) -> Result<Next, Broken> {
        let patience = self.patience();
        if header.count != offer.pages || header.body_len != offer.body_len {
            return self.protocol_error(Some(&header), FrameError::Records).await;
        }
        if offer.held.is_empty() {
            self.skip(header.body_len, &patience).await?;
            Metrics::add(&self.node.metrics.expired, 1);
            let reply = self.desk.refuse(&header, Code::Expired, "the offer expired before its pages came");
            return self.reply(&reply).await;
        }
        self.receive(header, &offer.space, offer.held).await
    }

    /// Receives pages into the slots that are held for them, and says what became of each.
    async fn receive(&mut self, header: Header, space: &Space, held: Vec<Held>) -> Result<Next, Broken> {
        let patience = self.patience();
        let session = Arc::clone(&self.attachment.session);
        let mut pages = Receiving::new(held, self.attachment.session.moment(&self.node.clock));
        let buffered = self.inbox.buffered(usize::try_from(header.body_len).unwrap_or(usize::MAX));
        let mut outcome = pages.copy_from(buffered);
        if let Ok(used) = outcome {
            self.inbox.consume(used);
        }
        if outcome.is_ok() && !pages.is_done() {
            let received = self.node.asides.receive(&self.stream, &patience, header.body_len, &mut pages)?;
            outcome = received.map(|()| 0);
        }
        while outcome.is_ok() && !pages.is_done() {
            let bytes = read_some(&self.stream, &patience, |stream| {
                let mut slices = std::array::from_fn::<_, PIECES, _>(|_| IoSliceMut::new(&mut []));
                let used = pages.slices(&mut slices);
                stream.try_read_vectored(&mut slices[..used])
            })
            .await?;
            outcome = pages.arrived(bytes).map(|()| bytes);
        }
        if outcome.is_err() {
            return self.protocol_error(Some(&header), FrameError::Records).await;
        }
        session.received(header.body_len);
        self.count_put(&pages.verdicts, pages.stored_bytes);
        self.node.persist(space, &pages.stored_keys(space.id())).await;
        self.desk.pins.clear();
        self.desk.meta.clear();
        self.desk.meta.extend_from_slice(&pages.verdicts);
        drop(pages);
        let reply = Header::reply_to(&header, Code::Ok, header.count);
        self.reply(&reply).await
    }

    fn count_put(&self, verdicts: &[u8], stored_bytes: u64) {
        let count = |code: Code| verdicts.iter().filter(|verdict| **verdict == code as u8).count() as u64;
        let metrics = &self.node.metrics;
        Metrics::add(&metrics.put_stored, count(Code::Ok));
        Metrics::add(&metrics.put_existing, count(Code::Exists));
        Metrics::add(&metrics.put_bytes, stored_bytes);
    }

    /// Throws away the next `len` bytes.
    async fn skip(&mut self, len: u64, patience: &Patience) -> Result<(), Broken> {
        let buffered = self.inbox.buffered(usize::try_from(len).unwrap_or(usize::MAX)).len();
        self.inbox.consume(buffered);
        let mut left = len - buffered as u64;
        let mut scratch = [0; 16 << 10];
        while left > 0 {
            let next = usize::try_from(left).unwrap_or(usize::MAX).min(scratch.len());
            read_exact(&self.stream, patience, &mut scratch[..next]).await?;
            left -= next as u64;
        }
        Ok(())
    }

    async fn reply(&mut self, reply: &Header) -> Result<Next, Broken> {
        let patience = self.patience();
        let head: [u8; HEADER_BYTES] = reply.encode(&self.desk.meta);
        self.send(&patience, &head).await?;
        Ok(Next::Go)
    }

    /// Writes a header, then what the desk has prepared.
    async fn send(&mut self, patience: &Patience, head: &[u8]) -> Result<(), Broken> {
        let Desk { meta, pins, .. } = &mut self.desk;
        let (asides, slow) = (&self.node.asides, &self.node.slow);
        let shared = Shared { asides, slow, session: &self.attachment.session };
        write_reply(&self.stream, patience, Some(shared), (head, meta), pins).await
    }

    /// Counts the error, tells the peer if it is known which request it was, and closes.
    async fn protocol_error(&mut self, header: Option<&Header>, error: FrameError) -> Result<Next, Broken> {
        Metrics::add(&self.node.metrics.protocol_errors, 1);
        tracing::debug!(%error, client = self.attachment.session.client_name, "malformed frame, closing");
        let unknown = Header::request(Op::Ping, 0, Default::default(), 0);
        let reply = self.desk.refuse(header.unwrap_or(&unknown), error.code(), &error.to_string());
        let patience = Patience { stall: LAST_WORD, until: Instant::now() + LAST_WORD };
        let head = reply.encode(&self.desk.meta);
        self.send(&patience, &head).await?;
        Ok(Next::Close)
    }

    /// Closes so that the last reply arrives: unread bytes would turn the close into a reset, which may
    /// overtake it.
    async fn leave(&mut self) {
        // Slots that were held are free from here on.
        self.offers = Offers::default();
        let stream = &self.stream;
        if stream.shutdown_write().is_err() {
            return;
        }
        let patience = Patience { stall: LAST_WORD, until: Instant::now() + LAST_WORD };
        let mut scratch = [0; 4 << 10];
        let mut left = LAST_BYTES;
        while left > 0 {
            match read_some(stream, &patience, |stream| stream.try_read(&mut scratch)).await {
                Ok(bytes) => left = left.saturating_sub(bytes),
                Err(_) => return,
            }
        }
    }
}

/// Whether a request brings its pages along.
fn is_direct(header: &Header) -> bool {
    header.op == Op::Put && header.flags & FLAG_DIRECT != 0
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.lent_until().is_some() {
            // The client sees that it was given up on before what it is copying can change.
            let _closed = self.stream.shutdown_write();
        }
        self.release();
        self.node.metrics.data_connections.fetch_sub(1, Ordering::Relaxed);
    }
}
