//! The data plane of a client on the same host, byte by byte, so that it can also do what no client should.

use memkv_core::{PageMeta, SpaceId};
use memkv_proto::{PROTOCOL_VERSION, v1};
use memkv_shm::{pass, socket};
use memkv_tests::control::{Control, Session};
use memkv_tests::wire::frame;
use memkv_transport::auth::SessionKey;
use memkv_transport::frame::{
    CAPABILITY_SHM, Code, FLAG_EXACT, FLAG_REMOTE, HEADER_BYTES, Header, Mover, Op,
};
use memkv_transport::handshake::{Attach, CHALLENGE_BYTES, WELCOME_BYTES, read_status};
use memkv_transport::records::{self, PAGE_RECORD_BYTES, SHM_BOUND_BYTES, ShmBound, Span};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A session that wants shared memory.
pub(super) fn session(control: &Control) -> Session {
    let hello = v1::Hello {
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        client_nonce: vec![7; 32],
        client_name: "memkv-tests".into(),
        client_version: "0.0.0".into(),
        capabilities: vec![CAPABILITY_SHM.into()],
        ..v1::Hello::default()
    };
    control.session_with(hello).unwrap()
}

/// A data connection over the daemon's Unix socket.
pub(super) struct NearConn {
    pub(super) stream: UnixStream,
    id: u64,
}

/// One page of a reply: its verdict, its record, and where it is.
pub(super) type Lent = (Code, PageMeta, u64);

impl NearConn {
    /// Joins a session. The error is the daemon's.
    pub(super) fn attach(socket: &str, session_id: [u8; 16], key: &SessionKey) -> io::Result<Self> {
        let mut stream = UnixStream::connect_addr(&socket::address(socket)?)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let attach = Attach { session_id, client_nonce: [3; 32] };
        stream.write_all(&attach.encode())?;
        let mut challenge = [0; CHALLENGE_BYTES];
        stream.read_exact(&mut challenge)?;
        let proof = attach.answer(key, &challenge).map_err(io::Error::other)?;
        stream.write_all(&proof)?;
        let mut welcome = [0; WELCOME_BYTES];
        stream.read_exact(&mut welcome)?;
        read_status(&welcome).map_err(io::Error::other)?;
        Ok(Self { stream, id: 0 })
    }

    pub(super) fn of(session: &Session) -> Self {
        let socket = &session.accepted.shm.as_ref().unwrap().socket;
        Self::attach(socket, session.id, &session.key).unwrap()
    }

    /// Binds, saying that `content` is at `address`.
    pub(super) fn bind(&mut self, address: u64, content: [u8; 8]) -> io::Result<(ShmBound, Option<OwnedFd>)> {
        self.bind_with(address, content, None)
    }

    /// Binds, and passes staging memory along.
    pub(super) fn bind_with(
        &mut self,
        address: u64,
        content: [u8; 8],
        stage: Option<BorrowedFd<'_>>,
    ) -> io::Result<(ShmBound, Option<OwnedFd>)> {
        let meta = records::bind(Mover::Shm, &records::trial(address, content));
        let request = frame(Header::request(Op::Bind, 1, SpaceId::default(), 0), &meta, &[]);
        let sent = match stage {
            Some(stage) => pass::send(&self.stream, &request, stage)?,
            None => 0,
        };
        self.stream.write_all(&request[sent..])?;
        let mut bytes = [0; HEADER_BYTES + SHM_BOUND_BYTES];
        let (came, memory) = pass::receive(&self.stream, &mut bytes)?;
        self.stream.read_exact(&mut bytes[came..])?;
        let header = Header::decode(bytes.first_chunk().unwrap()).map_err(io::Error::other)?;
        if header.status != Code::Ok {
            return Err(io::Error::other(format!("{:?}", header.status)));
        }
        Ok((records::read_shm_bound(&bytes[HEADER_BYTES..]).unwrap(), memory))
    }

    /// Binds as a client does that can be read.
    pub(super) fn bind_well(&mut self) -> (ShmBound, OwnedFd) {
        let content = Box::new(std::hint::black_box(*b"trialtry"));
        let (bound, memory) = self.bind(content.as_ptr().expose_provenance() as u64, *content).unwrap();
        drop(std::hint::black_box(content));
        (bound, memory.unwrap())
    }

    /// Asks where pages are.
    pub(super) fn get(&mut self, space: SpaceId, keys: &[&[u8]], len: usize) -> io::Result<Vec<Lent>> {
        let mut meta = Vec::new();
        for key in keys {
            records::push_wanted(&mut meta, len as u32, memkv_core::Key::new(key).unwrap());
        }
        self.id += 1;
        let mut header = Header::request(Op::Get, self.id, space, keys.len() as u32);
        header.flags = FLAG_EXACT | FLAG_REMOTE;
        let (header, meta) = self.call(&frame(header, &meta, &[]))?;
        assert_eq!((header.status, header.body_len), (Code::Ok, 0));
        let (entries, offsets) = meta.split_at(keys.len() * PAGE_RECORD_BYTES);
        let lent = entries.as_chunks().0.iter().zip(offsets.as_chunks().0).map(|(entry, offset)| {
            let (code, page) = records::read_page_record(entry).unwrap();
            (code, page, u64::from_le_bytes(*offset))
        });
        Ok(lent.collect())
    }

    /// Offers pages by records and spans; returns the verdicts.
    pub(super) fn put(&mut self, space: SpaceId, pages: &[(&[u8], PageMeta, Span)]) -> io::Result<Vec<Code>> {
        let mut meta = Vec::new();
        for (key, page, span) in pages {
            records::push_offered(&mut meta, page.len, 1, memkv_core::Key::new(key).unwrap());
            meta.extend_from_slice(&records::page_record(Code::Ok, *page));
            records::push_spans(&mut meta, [*span].into_iter());
        }
        self.id += 1;
        let mut header = Header::request(Op::Put, self.id, space, pages.len() as u32);
        header.flags = FLAG_REMOTE;
        let (header, meta) = self.call(&frame(header, &meta, &[]))?;
        if header.status != Code::Ok {
            return Ok(vec![header.status]);
        }
        Ok(meta.iter().map(|&byte| Code::from_wire(byte).unwrap()).collect())
    }

    /// Says that the pages are read.
    pub(super) fn release(&mut self) {
        let header = Header::request(Op::Release, self.id, SpaceId::default(), 0);
        self.stream.write_all(&frame(header, &[], &[])).unwrap();
    }

    fn call(&mut self, bytes: &[u8]) -> io::Result<(Header, Vec<u8>)> {
        self.stream.write_all(bytes)?;
        let mut head = [0; HEADER_BYTES];
        self.stream.read_exact(&mut head)?;
        let header = Header::decode(&head).map_err(io::Error::other)?;
        let mut meta = vec![0; header.meta_len as usize];
        self.stream.read_exact(&mut meta)?;
        Ok((header, meta))
    }
}
