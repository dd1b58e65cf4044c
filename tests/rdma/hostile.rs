//! Clients that lie: what they name lies inside what they registered, or nothing is moved at all.

use crate::rig::{Memory, metric, server};
use memkv_core::{SpaceDescription, SpaceId};
use memkv_proto::v1;
use memkv_rdma::fake::Fabric;
use memkv_rdma::{Access, Address, Nic, Place, QueuePair, Region, Timing, Verbs as _};
use memkv_server::Server;
use memkv_tests::control::{Control, Session};
use memkv_tests::wire::{DataConn, checksum, frame};
use memkv_transport::frame::{Code, FLAG_REMOTE, Header, Mover, Op};
use memkv_transport::records::{self, Span};
use std::ptr::NonNull;
use std::sync::Arc;
use v1::client_message::Message as Said;
use v1::server_message::Message as Heard;

const KEY: &[u8] = b"key";
const BYTES: usize = 256 << 10;
const HALF: u32 = 128 << 10;

/// A client made by hand.
struct Liar {
    control: Control,
    session: Session,
    space: SpaceId,
    // Before the memory that it is.
    region: Box<dyn Region>,
    memory: Memory,
    nic: Arc<dyn Nic>,
}

impl Liar {
    fn new(fabric: &Fabric, server: &Server) -> Self {
        let control = Control::connect(server.address(), None).unwrap();
        let description = SpaceDescription::named("liar").unwrap();
        let space = description.id();
        let mut kv = v1::kv_client::KvClient::new(control.channel());
        let open = v1::OpenSpaceRequest { space: Some((&description).into()) };
        control.block_on(kv.open_space(control.request("/memkv.v1.Kv/OpenSpace", open))).unwrap();
        let hello = v1::Hello {
            protocol_min: memkv_proto::PROTOCOL_VERSION,
            protocol_max: memkv_proto::PROTOCOL_VERSION,
            client_nonce: vec![7; 32],
            client_name: "liar".into(),
            client_version: "0".into(),
            capabilities: vec!["tcp".into(), "rdma".into()],
            ..v1::Hello::default()
        };
        let session = control.session_with(hello).unwrap();
        assert!(session.accepted.rdma.is_some());
        let nic = fabric.open(&Place { nic: "fake0".into(), port: 1, gid_index: 0 }).unwrap();
        let memory = Memory::new(BYTES);
        // SAFETY: the region is dropped before the memory, which is only touched through raw pointers.
        let region =
            unsafe { nic.register(NonNull::new(memory.at(0)).unwrap(), BYTES, Access::REMOTE) }.unwrap();
        Self { control, session, space, region, memory, nic }
    }

    fn message(&self, id: u32) -> v1::RegisterRegion {
        v1::RegisterRegion {
            region: id,
            bytes: BYTES as u64,
            address: self.memory.at(0) as u64,
            part_bytes: 1 << 30,
            nics: vec![v1::RegionKeys { keys: vec![self.region.remote_key()] }],
        }
    }

    fn register(&self, message: v1::RegisterRegion) -> Result<(), String> {
        self.session.say(Said::RegisterRegion(message)).unwrap();
        match self.session.hear().unwrap() {
            Heard::RegionRegistered(v1::RegionRegistered { refused, .. }) if refused.is_empty() => Ok(()),
            Heard::RegionRegistered(v1::RegionRegistered { refused, .. }) => Err(refused),
            other => panic!("{other:?}"),
        }
    }

    fn connect(&self, address: &Address, change: impl Fn(&mut v1::RdmaConnect)) -> v1::RdmaConnected {
        let mut connect = v1::RdmaConnect {
            tag: 5,
            server_nic: 0,
            client_nic: 0,
            address: Some(v1::RdmaAddress {
                gid: address.gid.to_vec(),
                lid: 0,
                queue_pair: address.qpn,
                sequence: address.psn,
                mtu_bytes: address.mtu_bytes,
                reads: address.reads.into(),
            }),
            trial_region: 3,
        };
        change(&mut connect);
        self.session.say(Said::RdmaConnect(connect)).unwrap();
        match self.session.hear().unwrap() {
            Heard::RdmaConnected(connected) => connected,
            other => panic!("{other:?}"),
        }
    }

    /// A connection that a queue pair is bound to.
    fn bound(&self) -> (DataConn, Box<dyn QueuePair>) {
        let mut pair = self.nic.queue_pair(1, Access::REMOTE).unwrap();
        let connected = self.connect(&pair.address(), |_| {});
        let address = connected.address.unwrap();
        let peer = Address {
            gid: address.gid[..].try_into().unwrap(),
            lid: 0,
            qpn: address.queue_pair,
            psn: address.sequence,
            mtu_bytes: address.mtu_bytes,
            reads: 1,
        };
        pair.connect(&peer, Timing::default()).unwrap();
        let mut conn = self.session.attach().unwrap();
        let bind = bind_frame(&connected.token[..].try_into().unwrap());
        assert_eq!(conn.call(&bind).unwrap().header.status, Code::Ok);
        (conn, pair)
    }
}

fn bind_frame(token: &[u8; 16]) -> Vec<u8> {
    frame(Header::request(Op::Bind, 1, SpaceId::default(), 0), &records::bind(Mover::Rdma, token), &[])
}

fn remote_get(space: SpaceId, spans: &[(u32, u64, u32)]) -> Vec<u8> {
    let mut meta = Vec::new();
    let room = spans.iter().map(|(_, _, len)| *len).fold(0, u32::wrapping_add);
    records::push_wanted(&mut meta, room, memkv_core::Key::new(KEY).unwrap());
    push_spans(&mut meta, spans);
    let mut header = Header::request(Op::Get, 2, space, 1);
    header.flags = FLAG_REMOTE;
    frame(header, &meta, &[])
}

fn remote_put(space: SpaceId, page: &[u8], spans: &[(u32, u64, u32)]) -> Vec<u8> {
    let mut meta = Vec::new();
    let len = u32::try_from(page.len()).unwrap();
    records::push_offered(&mut meta, len, 0, memkv_core::Key::new(KEY).unwrap());
    let record = memkv_core::PageMeta { len, checksum: checksum(space, KEY, page), codec: 0, flags: 0 };
    meta.extend_from_slice(&records::page_record(Code::Ok, record));
    push_spans(&mut meta, spans);
    let mut header = Header::request(Op::Put, 3, space, 1);
    header.flags = FLAG_REMOTE;
    frame(header, &meta, &[])
}

fn push_spans(meta: &mut Vec<u8>, spans: &[(u32, u64, u32)]) {
    records::push_spans(meta, spans.iter().map(|&(region, offset, len)| Span { region, len, offset }));
}

#[test]
fn what_is_named_lies_inside_what_was_registered() {
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let liar = Liar::new(&fabric, &server);
    liar.register(liar.message(3)).unwrap();
    let page = vec![7; HALF as usize];
    let (mut conn, _pair) = liar.bound();
    // Not before: the server tries the way into the first bytes.
    liar.memory.fill(0, &page);
    // An honest put and get, so that what follows fails for the right reason.
    let verdict = conn.call(&remote_put(liar.space, &page, &[(3, 0, HALF)])).unwrap();
    assert_eq!(verdict.verdicts(), [Some(Code::Ok)]);
    let got = conn.call(&remote_get(liar.space, &[(3, u64::from(HALF), HALF)])).unwrap();
    assert_eq!(records::read_page_record(got.meta[..16].try_into().unwrap()).unwrap().0, Code::Ok);
    assert!(liar.memory.read(HALF as usize, page.len()) == page);

    let used = metric(&server, "memkv_dram_used_bytes");
    let posted = |fabric: &Fabric| fabric.counts().posted;
    let end = BYTES as u64;
    let outside = [
        (3, end - u64::from(HALF) + 1, HALF),
        (3, end, HALF),
        (3, u64::MAX - 5, HALF),
        (3, liar.memory.at(0) as u64, HALF),
        (4, 0, HALF),
        (u32::MAX, liar.memory.at(0) as u64, HALF),
    ];
    let mut refused = 0;
    for span in outside {
        for request in [remote_get(liar.space, &[span]), remote_put(liar.space, &page, &[span])] {
            let (mut conn, _pair) = liar.bound();
            let before = posted(&fabric);
            let reply = conn.call(&request).unwrap();
            assert_eq!(reply.header.status, Code::Malformed, "{span:?}");
            assert!(conn.read_to_close().unwrap().is_empty(), "{span:?}");
            assert_eq!(posted(&fabric), before, "{span:?}");
            refused += 1;
        }
    }
    // The put's key is there already, so its span is not used, and is checked all the same.
    assert_eq!(metric(&server, "memkv_rdma_out_of_bounds_total"), refused);
    assert_eq!(metric(&server, "memkv_dram_used_bytes"), used);
    drop(liar.control);
}

#[test]
fn a_region_that_was_taken_back_is_not_written() {
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let liar = Liar::new(&fabric, &server);
    liar.register(liar.message(3)).unwrap();
    liar.register(liar.message(4)).unwrap();
    assert_eq!(metric(&server, "memkv_rdma_regions"), 2);
    assert!(liar.register(liar.message(4)).is_err());
    let (mut conn, _pair) = liar.bound();
    liar.session.say(Said::ForgetRegion(v1::ForgetRegion { region: 4 })).unwrap();
    assert!(matches!(
        liar.session.hear().unwrap(),
        Heard::RegionForgotten(v1::RegionForgotten { region: 4 })
    ));
    assert_eq!(metric(&server, "memkv_rdma_regions"), 1);
    let before = fabric.counts().posted;
    assert_eq!(conn.call(&remote_get(liar.space, &[(4, 0, 8)])).unwrap().header.status, Code::Malformed);
    assert_eq!(fabric.counts().posted, before);
}

#[test]
fn queue_pairs_are_bound_once_and_to_their_own_session() {
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let liar = Liar::new(&fabric, &server);
    let pair = liar.nic.queue_pair(1, Access::REMOTE).unwrap();
    // Before the region is known, there is nowhere to try the way.
    assert!(!liar.connect(&pair.address(), |_| {}).refused.is_empty());
    liar.register(liar.message(3)).unwrap();
    let refused: [fn(&mut v1::RdmaConnect); 6] = [
        |c| c.server_nic = 1,
        |c| c.client_nic = 1,
        |c| c.trial_region = 9,
        |c| c.address = None,
        |c| c.address.as_mut().unwrap().gid = vec![1; 15],
        |c| c.address.as_mut().unwrap().queue_pair = 1 << 24,
    ];
    for change in refused {
        assert!(!liar.connect(&pair.address(), change).refused.is_empty());
    }
    assert_eq!(metric(&server, "memkv_rdma_queue_pairs"), 0);
    let (mut bound, _pair) = liar.bound();
    assert_eq!(metric(&server, "memkv_rdma_queue_pairs"), 1);
    for token in [[0; 16], [9; 16]] {
        let mut conn = liar.session.attach().unwrap();
        assert_eq!(conn.call(&bind_frame(&token)).unwrap().header.status, Code::Malformed);
    }
    // Another session does not get this one's.
    let other = Liar::new(&fabric, &server);
    other.register(other.message(3)).unwrap();
    let connected = other.connect(&pair.address(), |_| {});
    let mut conn = liar.session.attach().unwrap();
    let stolen = bind_frame(&connected.token[..].try_into().unwrap());
    assert_eq!(conn.call(&stolen).unwrap().header.status, Code::Malformed);
    drop(other);
    // A second one on the same connection is refused, and both end.
    let again = liar.connect(&pair.address(), |_| {});
    let second = bind_frame(&again.token[..].try_into().unwrap());
    assert_eq!(bound.call(&second).unwrap().header.status, Code::Malformed);
    let gone = || (metric(&server, "memkv_rdma_queue_pairs") == 0).then_some(());
    memkv_tests::wait_for("queue pairs are gone", crate::rig::PATIENCE, gone).unwrap();
}

#[test]
fn remote_requests_need_a_queue_pair() {
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let liar = Liar::new(&fabric, &server);
    liar.register(liar.message(3)).unwrap();
    let mut conn = liar.session.attach().unwrap();
    assert_eq!(conn.call(&remote_get(liar.space, &[(3, 0, 8)])).unwrap().header.status, Code::Malformed);
}
