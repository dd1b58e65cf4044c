//! Requests whose pages move by RDMA: the desk decides, the queue pair moves, then comes the reply.

use super::{Connection, Next};
use crate::data::desk::Taken;
use crate::data::movers::Bound;
use crate::data::movers::rdma::Queue;
use crate::data::movers::rdma::queue::{Failed, Watch};
use crate::data::offers::Held;
use crate::data::transfer::Broken;
use crate::metrics::Metrics;
use memkv_core::PageMeta;
use memkv_storage::{HashedKey, Space};
use memkv_transport::frame::{Code, FrameError, Header, Op};
use memkv_transport::records;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use tokio::time::Instant;

impl Connection {
    /// Ties the queue pair that `token` stands for to this connection, once it has shown that bytes get through.
    pub(super) async fn bind_rdma(
        &mut self,
        header: &Header,
        token: &[u8; 16],
        deadline: Instant,
    ) -> Result<Next, Broken> {
        let prepared = match self.attachment.session.rdma.take(token) {
            Some(prepared) if matches!(self.mover, Bound::None) => prepared,
            _ => return self.protocol_error(Some(header), FrameError::Records).await,
        };
        let mut queue = Queue::new(prepared, self.stream.as_fd()).map_err(|error| {
            tracing::warn!(%error, "a queue pair is not bound to its connection");
            Broken::Closed
        })?;
        let watch = Watch { stream: &self.stream, until: deadline };
        if let Err(failed) = queue.try_out(watch).await {
            drop(queue);
            return self.rdma_failed(header, failed).await;
        }
        self.mover = Bound::Rdma(Box::new(queue));
        self.desk.meta.clear();
        self.desk.pins.clear();
        self.reply(&Header::reply_to(header, Code::Ok, 0)).await
    }

    /// A get or put whose pages lie in the client's regions.
    pub(super) async fn remote_rdma(
        &mut self,
        header: &Header,
        meta: &[u8],
        deadline: Instant,
    ) -> Result<Next, Broken> {
        match header.op {
            Op::Get => self.get_rdma(header, meta, deadline).await,
            Op::Put => self.put_rdma(header, meta, deadline).await,
            Op::Exists | Op::Touch | Op::Delete | Op::PutData | Op::Ping | Op::Bind | Op::Release => {
                self.protocol_error(Some(header), FrameError::Records).await
            }
        }
    }

    async fn get_rdma(&mut self, header: &Header, meta: &[u8], deadline: Instant) -> Result<Next, Broken> {
        let now = self.attachment.session.moment(&self.node.clock);
        let reply = match self.desk.get_remote(header, meta, now).await {
            Ok(reply) => reply,
            Err(error) => return self.protocol_error(Some(header), error).await,
        };
        let Bound::Rdma(queue) = &mut self.mover else {
            return self.protocol_error(Some(header), FrameError::Records).await;
        };
        let pins = std::mem::take(&mut self.desk.pins);
        let spans =
            records::remote_wanted(meta, header.count).map_while(Result::ok).map(|page| page.spans.iter());
        let watch = Watch { stream: &self.stream, until: deadline };
        match queue.send(pins, spans, watch).await {
            Ok(bytes) => {
                self.attachment.session.sent(bytes);
                self.reply(&reply).await
            }
            Err(failed) => self.rdma_failed(header, failed).await,
        }
    }

    async fn put_rdma(&mut self, header: &Header, meta: &[u8], deadline: Instant) -> Result<Next, Broken> {
        let (space, held) = match self.desk.take_remote(header, meta, &self.offers) {
            Ok(Taken::Pages(space, held)) => (space, held),
            Ok(Taken::Refused(reply)) => return self.reply(&reply).await,
            Err(error) => return self.protocol_error(Some(header), error).await,
        };
        let Bound::Rdma(queue) = &mut self.mover else {
            return self.protocol_error(Some(header), FrameError::Records).await;
        };
        let now = self.attachment.session.moment(&self.node.clock);
        let pages = || records::remote_offered(meta, header.count).map_while(Result::ok);
        let metas: Vec<PageMeta> = pages().map(|page| page.meta).collect();
        let spans = pages().map(|page| (page.page.len, page.spans.iter()));
        let mut stored_bytes = 0;
        let whole = |page: usize, held: &mut Held| stored_bytes += held.judge(metas[page], now);
        let watch = Watch { stream: &self.stream, until: deadline };
        match queue.fetch(held, spans, watch, whole).await {
            Ok((held, bytes)) => {
                self.attachment.session.received(bytes);
                self.stored(header, &space, &held, stored_bytes).await
            }
            Err(failed) => self.rdma_failed(header, failed).await,
        }
    }

    /// Says what became of the pages of a put.
    pub(super) async fn stored(
        &mut self,
        header: &Header,
        space: &Arc<Space>,
        held: &[Held],
        stored_bytes: u64,
    ) -> Result<Next, Broken> {
        self.desk.pins.clear();
        self.desk.meta.clear();
        self.desk.meta.extend(held.iter().map(|page| page.verdict() as u8));
        self.count_put(&self.desk.meta, stored_bytes);
        let keys: Vec<HashedKey<'_>> = held.iter().filter_map(|page| page.stored_key(space.id())).collect();
        self.node.persist(space, &keys).await;
        self.reply(&Header::reply_to(header, Code::Ok, header.count)).await
    }

    /// Pages did not move: the connection and its queue pair end.
    async fn rdma_failed(&mut self, header: &Header, failed: Failed) -> Result<Next, Broken> {
        tracing::debug!(%failed, client = self.attachment.session.client_name, "no pages by rdma, closing");
        // The queue pair ends before anything else is said: nothing is written to the client from here on.
        self.mover = Bound::None;
        match failed {
            Failed::OutOfBounds => {
                Metrics::add(&self.node.metrics.rdma_bounds, 1);
                self.protocol_error(Some(header), FrameError::Records).await
            }
            Failed::Late => Err(Broken::Stalled),
            Failed::NotRegistered | Failed::Queue(_) | Failed::Work(_) | Failed::Gone => Err(Broken::Closed),
        }
    }
}
