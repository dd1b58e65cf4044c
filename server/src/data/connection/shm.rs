//! Requests of a client on the same host whose pages move through memory: the desk decides, one side copies.

use super::{Connection, Next};
use crate::data::desk::Taken;
use crate::data::movers::{Bound, shm};
use crate::data::transfer::{Broken, write_reply};
use crate::data::wire::Wire;
use memkv_shm::{Peer, View, pass};
use memkv_storage::PagePin;
use memkv_transport::frame::{Code, FrameError, HEADER_BYTES, Header, Op};
use memkv_transport::records::{self, STAGE_BYTES_MAX, ShmBound};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::time::{Instant, timeout_at};

impl Connection {
    /// Gives the client the memory for pages, and tries whether the client's own can be read. What cannot be done is left
    /// out, and its pages go in frames.
    pub(super) async fn bind_shm(&mut self, header: &Header, token: &[u8; 16]) -> Result<Next, Broken> {
        let Wire::Unix(stream, passed) = &self.stream else {
            return self.protocol_error(Some(header), FrameError::Records).await;
        };
        if !matches!(self.mover, Bound::None) {
            return self.protocol_error(Some(header), FrameError::Records).await;
        }
        let about = stream.peer_cred().map_err(|_| Broken::Closed)?;
        let (address, content) = records::trial_of(token);
        let peer = Peer::new(about.pid(), about.uid(), address, content);
        let peer = peer
            .inspect_err(|error| {
                let client = &self.attachment.session.client_name;
                tracing::info!(%error, client, "large pages that this client puts come through its socket");
            })
            .ok();
        let stage = passed.take().and_then(|memory| {
            let client = &self.attachment.session.client_name;
            let stage = View::of_other(memory, STAGE_BYTES_MAX);
            stage
                .inspect_err(|error| tracing::info!(%error, client, "a client's staging memory is refused"))
                .ok()
        });
        let node = Arc::clone(&self.node);
        let memory = node.engine.shared_memory();
        let memory_bytes = memory.map_or(0, |(_, bytes)| bytes);
        self.desk.pins.clear();
        self.desk.meta.clear();
        let bound = ShmBound { memory_bytes, reads_client: peer.is_some(), reads_stage: stage.is_some() };
        self.desk.meta.extend_from_slice(&records::shm_bound(bound));
        self.mover = Bound::Shm(shm::Shm::new(shm::Reads::new(peer, stage), memory.is_some()));
        let reply = Header::reply_to(header, Code::Ok, 0);
        match memory {
            Some((memory, _)) => self.reply_with(&reply, memory).await,
            None => self.reply(&reply).await,
        }
    }

    /// Replies, and passes a descriptor along.
    async fn reply_with(&mut self, reply: &Header, descriptor: BorrowedFd<'_>) -> Result<Next, Broken> {
        let Wire::Unix(stream, _) = &self.stream else { return Err(Broken::Closed) };
        let patience = self.patience();
        let head: [u8; HEADER_BYTES] = reply.encode(&self.desk.meta);
        let bytes = [&head[..], &self.desk.meta].concat();
        let went = loop {
            match stream.try_io(Interest::WRITABLE, || pass::send(stream, &bytes, descriptor)) {
                Ok(went) => break went,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let end = patience.until.min(Instant::now() + patience.stall);
                    let ready = timeout_at(end, stream.writable()).await.map_err(|_| Broken::Stalled)?;
                    ready.map_err(|_| Broken::Closed)?;
                }
                Err(_) => return Err(Broken::Closed),
            }
        };
        let rest = &bytes[went..];
        write_reply(&self.stream, &patience, None, (rest, &[]), &mut self.desk.pins).await?;
        Ok(Next::Go)
    }

    /// A get or put whose pages do not go through the socket.
    pub(super) async fn remote_shm(&mut self, header: &Header, meta: &[u8]) -> Result<Next, Broken> {
        match header.op {
            Op::Get => self.get_shm(header, meta).await,
            Op::Put => self.put_shm(header, meta).await,
            Op::Exists | Op::Touch | Op::Delete | Op::PutData | Op::Ping | Op::Bind | Op::Release => {
                self.protocol_error(Some(header), FrameError::Records).await
            }
        }
    }

    async fn get_shm(&mut self, header: &Header, meta: &[u8]) -> Result<Next, Broken> {
        let now = self.attachment.session.moment(&self.node.clock);
        let asked = self.desk.get(header, meta, now).await;
        let (mut reply, shm) = match (asked, &mut self.mover) {
            (Ok(reply), Bound::Shm(shm)) if shm.is_shared => (reply, shm),
            (Err(error), _) => return self.protocol_error(Some(header), error).await,
            (Ok(_), _) => return self.protocol_error(Some(header), FrameError::Records).await,
        };
        let session = &self.attachment.session;
        session.sent(std::mem::take(&mut reply.body_len));
        for pin in &self.desk.pins {
            let offset = pin.as_ref().map_or(0, PagePin::offset);
            self.desk.meta.extend_from_slice(&offset.to_le_bytes());
        }
        let until = Instant::now() + self.node.config.stall_timeout;
        shm.lend(&mut self.desk.pins, until, &self.node.metrics);
        self.reply(&reply).await
    }

    async fn put_shm(&mut self, header: &Header, meta: &[u8]) -> Result<Next, Broken> {
        let Bound::Shm(shm::Shm { reads, .. }) = &self.mover else {
            return self.protocol_error(Some(header), FrameError::Records).await;
        };
        let pages = || records::remote_offered(meta, header.count).map_while(Result::ok);
        if !pages().all(|page| reads.allow(page.spans)) {
            return self.protocol_error(Some(header), FrameError::Records).await;
        }
        let (space, mut held) = match self.desk.take_remote(header, meta, &self.offers) {
            Ok(Taken::Pages(space, held)) => (space, held),
            Ok(Taken::Refused(reply)) => return self.reply(&reply).await,
            Err(error) => return self.protocol_error(Some(header), error).await,
        };
        let now = self.attachment.session.moment(&self.node.clock);
        let mut copy = || {
            held.iter_mut().zip(pages()).try_fold(0_u64, |stored, (held, page)| {
                held.bring(page.meta, now, reads.reader(page.spans)).map(|bytes| stored + bytes)
            })
        };
        let bytes: u64 = pages().map(|page| u64::from(page.page.len)).sum();
        let is_quick = reads.is_quick(bytes, pages().map(|page| page.spans));
        let copied = if is_quick { copy() } else { tokio::task::block_in_place(copy) };
        let stored_bytes = copied.map_err(|error| {
            let client = &self.attachment.session.client_name;
            tracing::debug!(%error, client, "a client's memory cannot be read any more, closing");
            Broken::Closed
        })?;
        self.attachment.session.received(bytes);
        self.stored(header, &space, &held, stored_bytes).await
    }

    /// Gives back what the client was lent. Any request says that it has it.
    pub(super) fn release(&mut self) {
        if let Bound::Shm(shm) = &mut self.mover {
            shm.release(&self.node.metrics);
        }
    }

    /// Until when the client may read what it was lent.
    pub(super) fn lent_until(&self) -> Option<Instant> {
        match &self.mover {
            Bound::Shm(shm) => shm.lent_until(),
            Bound::None | Bound::Rdma(_) => None,
        }
    }
}
