//! One ready data connection and its buffers.
//!
//! A link belongs to one op at a time. It is put back into its pool only when no exchange is unfinished on it, so
//! the next op starts at a frame boundary. Buffers grow to what ops need and are then reused.

use crate::gates::Permits;
use crate::mover::Bound;
use crate::raw::{BodyCursor, BodyPage, Pieces};
use crate::wire::Wire;
use memkv_core::Limits;
use memkv_transport::frame::{Code, FrameError, HEADER_BYTES, Header};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// The longest text that a reply may carry in place of records.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// About how many bytes one vectored call moves, so that a page is still in the cache for its checksum.
const CALL_BYTES: usize = 1 << 20;

/// Why a connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The peer closed it.
    #[error("the server closed the connection")]
    Closed,
    /// The kernel says so.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The bytes are no frame.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// The frame is no answer to what was asked.
    #[error("the server's answer does not fit the request: {0}")]
    Unexpected(&'static str),
}

/// One ready, authenticated data connection.
pub(crate) struct Link {
    stream: Arc<Wire>,
    /// How pages move on it.
    pub(crate) mover: Bound,
    /// The bounds of the session it belongs to.
    pub(crate) limits: Limits,
    /// The session it belongs to, counted by the pool.
    pub(crate) generation: u64,
    /// The trials that the op is part of.
    pub(crate) permits: Permits,
    /// Whether a byte came since the op began.
    pub(crate) replied: bool,
    /// The last refusal of a whole request since the op began.
    pub(crate) refused: Option<Code>,
    /// Bytes that were written and read so far.
    moved: u64,
    next_id: u64,
    out: Vec<u8>,
    out_done: usize,
    input: Vec<u8>,
    filled: usize,
    /// The pages whose bytes move now.
    pub(crate) body: Vec<BodyPage>,
    /// The pages that the server wants next; put only.
    pub(crate) next_body: Vec<BodyPage>,
}

impl Link {
    /// Wraps a nonblocking stream that has finished its handshake.
    pub(crate) fn new(stream: Wire, mover: Bound, limits: Limits, generation: u64) -> Self {
        Self {
            stream: Arc::new(stream),
            mover,
            limits,
            generation,
            permits: Permits::default(),
            replied: false,
            refused: None,
            moved: 0,
            next_id: 1,
            out: Vec::new(),
            out_done: 0,
            input: Vec::new(),
            filled: 0,
            body: Vec::new(),
            next_body: Vec::new(),
        }
    }

    pub(crate) fn stream(&self) -> &Arc<Wire> {
        &self.stream
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Bytes that went either way so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }

    /// Whether the peer has closed it. Only while no reply is due.
    pub(crate) fn is_closed(&self) -> bool {
        !matches!(self.stream.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Prepares for the next op.
    pub(crate) fn begin(&mut self) {
        self.replied = false;
        self.refused = None;
        self.out.clear();
        self.out_done = 0;
        self.filled = 0;
        self.body.clear();
        self.next_body.clear();
    }

    /// Remembers that a request was refused as a whole.
    pub(crate) fn note_refusal(&mut self, code: Code) {
        self.refused = Some(code);
    }

    /// A request id that no other request of this connection has.
    pub(crate) fn request_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Queues a frame: `fill` appends the meta section.
    pub(crate) fn queue(&mut self, header: &Header, fill: impl FnOnce(&mut Vec<u8>)) {
        if self.out_done == self.out.len() {
            self.out.clear();
            self.out_done = 0;
        }
        let start = self.out.len();
        self.out.resize(start + HEADER_BYTES, 0);
        fill(&mut self.out);
        let (head, meta) = self.out[start..].split_at_mut(HEADER_BYTES);
        head.copy_from_slice(&header.encode(meta));
    }

    /// Queues a frame whose meta section is there already.
    pub(crate) fn queue_meta(&mut self, header: &Header, meta: &[u8]) {
        self.queue(header, |out| out.extend_from_slice(meta));
    }

    /// Whether queued frames wait to be written.
    pub(crate) fn has_output(&self) -> bool {
        self.out_done < self.out.len()
    }

    /// Writes queued frames until they are gone (true) or the socket is full (false).
    pub(crate) fn flush(&mut self) -> Result<bool, LinkError> {
        while self.has_output() {
            let none = BodyCursor::default();
            let head = &self.out[self.out_done..];
            match Pieces::none().write_body(&self.stream, head, &[], none, CALL_BYTES) {
                Ok((went, _)) => {
                    self.moved += went as u64;
                    self.out_done += went;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.settle()
    }

    /// Sends what was written and is still here: all of it (true), or until the socket is full (false).
    fn settle(&self) -> Result<bool, LinkError> {
        loop {
            match self.stream.flush() {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes queued frames and then `self.body[..ready]` from `cursor` on, until all is gone (true) or the socket
    /// is full (false).
    pub(crate) fn flush_body(
        &mut self,
        pieces: &Pieces<'_>,
        cursor: &mut BodyCursor,
        ready: usize,
    ) -> Result<bool, LinkError> {
        let record = memkv_transport::records::PAGE_RECORD_BYTES;
        while self.has_output() || cursor.at < ready {
            let head = &self.out[self.out_done..];
            match pieces.write_body(&self.stream, head, &self.body[..ready], *cursor, CALL_BYTES) {
                Ok((went, _)) => {
                    self.moved += went as u64;
                    let of_head = went.min(head.len());
                    self.out_done += of_head;
                    cursor.advance(&self.body, record, went - of_head);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.settle()
    }

    /// Reads bytes of `self.body` into the pages. `None`: nothing is there now. Else whether more may be there.
    pub(crate) fn read_body(
        &mut self,
        pieces: &mut Pieces<'_>,
        cursor: &mut BodyCursor,
    ) -> Result<Option<bool>, LinkError> {
        match pieces.read_body(&self.stream, &self.body, *cursor, CALL_BYTES) {
            Ok((0, _)) => Err(LinkError::Closed),
            Ok((came, room)) => {
                self.moved += came as u64;
                cursor.advance(&self.body, 0, came);
                Ok(Some(came == room))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Some(true)),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the next reply's header and meta section; `None` if they are not all there yet.
    ///
    /// `ahead` is how many bytes of meta section may be read together with the header. It must be 0 if other frames
    /// or a body may follow a shorter meta section.
    pub(crate) fn read_frame(&mut self, ahead: usize) -> Result<Option<Header>, LinkError> {
        loop {
            let mut target = HEADER_BYTES + ahead;
            if let Some(head) = self.input[..self.filled].first_chunk::<HEADER_BYTES>() {
                let header = Header::decode(head)?;
                let meta_len = header.meta_len as usize;
                if meta_len > TEXT_BYTES_MAX.max(self.limits.frame_meta_bytes_max as usize) {
                    return Err(FrameError::OverLimit("frame_meta_bytes_max").into());
                }
                target = HEADER_BYTES + meta_len;
                if self.filled == target {
                    header.verify(head, &self.input[HEADER_BYTES..target])?;
                    if !header.reply {
                        return Err(LinkError::Unexpected("it is a request"));
                    }
                    return Ok(Some(header));
                }
                if self.filled > target {
                    return Err(LinkError::Unexpected("bytes follow the last reply"));
                }
            }
            if self.input.len() < target {
                self.input.resize(target, 0);
            }
            match self.stream.read(&mut self.input[self.filled..target]) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(came) => {
                    self.moved += came as u64;
                    self.filled += came;
                    self.replied = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The meta section of the frame that [`Link::read_frame`] returned.
    pub(crate) fn meta(&self) -> &[u8] {
        &self.input[HEADER_BYTES..self.filled]
    }

    /// Forgets the frame that [`Link::read_frame`] returned.
    pub(crate) fn end_frame(&mut self) {
        self.filled = 0;
    }
}
