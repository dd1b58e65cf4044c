//! Sessions: who gets in, what belongs to one, and how it ends.

use crate::harness::{Fixture, LONG, OpenSession, Wire, message, next};
use memkv_proto::v1;
use memkv_proto::v1::client_message::Message as FromClient;
use memkv_proto::v1::server_message::Message as FromServer;
use memkv_transport::auth::AuthKey;
use memkv_transport::frame;
use memkv_transport::handshake::{
    ATTACH_BYTES, Attach, AttachError, AttachStatus, CHALLENGE_BYTES, read_status,
};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

#[test]
fn a_session_tells_what_both_sides_need() {
    let fixture = Fixture::with_key(&["--node-id", "node-7", "--limits-batch-keys-max", "99"]);
    let session = fixture.session();
    let limits = session.accepted.limits.unwrap();
    assert_eq!((limits.batch_keys_max, limits.page_bytes_max), (99, 8 << 20));
    assert_eq!(session.accepted.capabilities, ["tcp"]);
    assert_eq!((session.challenge.node_id.as_str(), session.challenge.key_required), ("node-7", true));
    let other = fixture.session();
    assert_eq!(session.accepted.incarnation, other.accepted.incarnation);
    assert_ne!(session.id, other.id);
    assert_ne!(session.challenge.server_nonce, other.challenge.server_nonce);
    let status = fixture.status();
    assert_eq!((status.session_count, status.sessions.len()), (2, 2));
    assert_eq!(status.sessions[0].client_name, "wire test");
}

#[test]
fn another_key_opens_no_session() {
    let fixture = Fixture::with_key(&[]);
    for key in [AuthKey::open(), AuthKey::from_hex(&"ab".repeat(32)).unwrap()] {
        let refused = fixture.try_session(Some(&key)).err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains("MEMKV_AUTH_KEY"));
    }
    let status = fixture.status();
    assert_eq!((status.ops.unwrap().auth_failures, status.session_count), (2, 0));
    fixture.session();
}

#[test]
fn bad_hellos_are_answered_with_what_is_wrong() {
    let fixture = Fixture::open(&[]);
    let open_key = AuthKey::open();
    type Spoil = fn(&mut v1::Hello);
    let cases: [(Spoil, Code, &str); 5] = [
        (
            |hello| (hello.protocol_min, hello.protocol_max) = (2, 3),
            Code::FailedPrecondition,
            "version 1, the client 2 to 3",
        ),
        (
            |hello| (hello.protocol_min, hello.protocol_max) = (0, 0),
            Code::FailedPrecondition,
            "upgrade the client",
        ),
        (|hello| hello.client_nonce = vec![1; 31], Code::InvalidArgument, "client_nonce"),
        (|hello| hello.client_name = "x".repeat(257), Code::InvalidArgument, "client_name"),
        (|hello| hello.client_version = "x".repeat(257), Code::InvalidArgument, "client_version"),
    ];
    for (spoil, code, text) in cases {
        let opened = OpenSession::open(fixture.channel(), &open_key, spoil);
        let refused = fixture.runtime.block_on(opened).err().unwrap();
        assert!(refused.code() == code && refused.message().contains(text), "{refused:?}");
    }
    // A newer client that still speaks our version is fine.
    let newer = OpenSession::open(fixture.channel(), &open_key, |hello| hello.protocol_max = 9);
    assert!(fixture.runtime.block_on(newer).is_ok());
}

#[test]
fn messages_out_of_order_or_never_end_the_stream() {
    let fixture = Fixture::open(&["--limits-handshake-time-max", "200ms"]);
    let open = |first: Option<FromClient>| {
        fixture.runtime.block_on(async {
            let (outbox, messages) = mpsc::channel(1);
            if let Some(first) = first {
                outbox.send(message(first)).await.unwrap();
            }
            let channel =
                tonic::transport::Channel::from_shared(format!("http://{}", fixture.address)).unwrap();
            let mut client = v1::session_client::SessionClient::new(channel.connect().await.unwrap());
            let mut inbox = client.open(ReceiverStream::new(messages)).await.unwrap().into_inner();
            let answer = next(&mut inbox).await;
            drop(outbox);
            answer.unwrap_err()
        })
    };
    assert_eq!(open(Some(FromClient::Ping(v1::Ping { sequence: 1 }))).code(), Code::InvalidArgument);
    assert_eq!(open(Some(FromClient::Proof(v1::Proof::default()))).code(), Code::InvalidArgument);
    assert_eq!(open(None).code(), Code::DeadlineExceeded);
}

#[test]
fn pings_are_answered_and_silence_ends_the_session() {
    let fixture = Fixture::open(&["--limits-ping-interval", "100ms"]);
    let (mut session, mut wire) = fixture.wire();
    assert_eq!(session.accepted.ping_interval_ms, 100);
    let started = std::time::Instant::now();
    fixture.runtime.block_on(async {
        for sequence in 0..3 {
            session.outbox.send(message(FromClient::Ping(v1::Ping { sequence }))).await.unwrap();
            let Ok(Some(FromServer::Pong(pong))) = next(&mut session.inbox).await else { panic!("no pong") };
            assert_eq!((pong.sequence, pong.state()), (sequence, v1::ServerState::Serving));
        }
        // Now we say nothing.
        assert_eq!(next(&mut session.inbox).await.unwrap_err().code(), Code::DeadlineExceeded);
    });
    assert!(started.elapsed() >= std::time::Duration::from_millis(300));
    wire.wait_closed();
    assert_eq!(fixture.attach(&session).unwrap_err(), AttachError::Refused(AttachStatus::UnknownSession));
}

#[test]
fn the_end_of_a_session_closes_its_connections_and_no_others() {
    let fixture = Fixture::open(&["--dram", "1GiB"]);
    let space = fixture.open_space("sessions");
    let (session, mut idle) = fixture.wire();
    let mut offering = fixture.attach(&session).unwrap();
    let (header, meta) = offering.offer(space, &[(b"k", &[1; 9000])]);
    offering.ask(&header, &meta);
    let mut reading = fixture.attach(&session).unwrap();
    let bytes = vec![3; 20 << 20];
    assert_eq!(reading.put(space, &[(b"big", &bytes)]), [frame::Code::Ok]);
    let (header, meta) = reading.get_request(space, 0, &[(b"big", 20 << 20)]);
    reading.send(&header, &meta, b"");
    let (_other_session, mut other) = fixture.wire();
    let used = |status: &v1::GetStatusResponse| status.dram.as_ref().unwrap().used_bytes;
    assert!(used(&fixture.status()) > 20 << 20);
    drop(session);
    idle.wait_closed();
    offering.wait_closed();
    reading.wait_closed();
    assert_eq!(fixture.inspect(space, b"big", false).status.unwrap().pins, 0);
    assert!(other.exists(space, b"big"));
    fixture.wait_status("the offered slot free", |status| used(status) == 20 << 20);
    fixture.wait_status("one session", |status| status.session_count == 1);
}

#[test]
fn sessions_and_their_connections_have_bounds() {
    let fixture = Fixture::open(&["--limits-sessions-max", "2", "--limits-session-connections-max", "2"]);
    let (session, first) = fixture.wire();
    let _second = fixture.attach(&session).unwrap();
    assert_eq!(fixture.attach(&session).unwrap_err(), AttachError::Refused(AttachStatus::TooMany));
    drop(first);
    fixture.wait_status("a free place", |status| status.sessions[0].connections == 1);
    fixture.attach(&session).unwrap();

    let _other = fixture.session();
    let refused = fixture.try_session(None).err().unwrap();
    assert!(refused.code() == Code::ResourceExhausted && refused.message().contains("limits.sessions_max"));
}

#[test]
fn a_data_connection_must_know_its_sessions_key() {
    let fixture = Fixture::with_key(&[]);
    let (session, other) = (fixture.session(), fixture.session());
    // The client finds out that the server's proof is not for this key.
    let refused = Wire::attach(fixture.address, session.id, &other.key).unwrap_err();
    assert_eq!(refused, AttachError::WrongProof);
    let unknown = Wire::attach(fixture.address, [0; 16], &session.key).unwrap_err();
    assert_eq!(unknown, AttachError::Refused(AttachStatus::UnknownSession));
    // A client that does not care gets no further.
    let (status, _) =
        handshake(&fixture, Attach { session_id: session.id, client_nonce: [1; 32] }.encode(), [0; 32]);
    assert_eq!(status, Err(AttachError::Refused(AttachStatus::Denied)));
    assert_eq!(fixture.status().ops.unwrap().auth_failures, 1);
    assert_eq!(fixture.status().sessions.iter().map(|session| session.connections).sum::<u32>(), 0);
}

#[test]
fn a_recorded_attach_cannot_be_played_again() {
    let fixture = Fixture::with_key(&[]);
    let session = fixture.session();
    let attach = Attach { session_id: session.id, client_nonce: [1; 32] };
    let mut stream = TcpStream::connect(fixture.address).unwrap();
    stream.write_all(&attach.encode()).unwrap();
    let mut challenge = [0; CHALLENGE_BYTES];
    stream.read_exact(&mut challenge).unwrap();
    let proof = attach.answer(&session.key, &challenge).unwrap();
    let (first, nonce) = handshake(&fixture, attach.encode(), proof);
    assert_eq!(first, Err(AttachError::Refused(AttachStatus::Denied)));
    assert_ne!(nonce, challenge[16..48], "the server's nonce is fresh every time");
}

#[test]
fn another_layout_version_is_answered_with_ours() {
    let fixture = Fixture::open(&[]);
    let session = fixture.session();
    let mut step1 = Attach { session_id: session.id, client_nonce: [1; 32] }.encode();
    step1[8..10].copy_from_slice(&2_u16.to_le_bytes());
    let mut stream = TcpStream::connect(fixture.address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(&step1).unwrap();
    let mut answer = [0; CHALLENGE_BYTES];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(read_status(&answer), Err(AttachError::Version(1)));
}

/// Sends step 1 and a proof as they are; returns step 4 and the server's nonce.
fn handshake(
    fixture: &Fixture,
    step1: [u8; ATTACH_BYTES],
    proof: [u8; 32],
) -> (Result<(), AttachError>, Vec<u8>) {
    let mut stream = TcpStream::connect(fixture.address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(&step1).unwrap();
    let mut challenge = [0; CHALLENGE_BYTES];
    stream.read_exact(&mut challenge).unwrap();
    stream.write_all(&proof).unwrap();
    let mut welcome = Vec::new();
    stream.read_to_end(&mut welcome).unwrap();
    (read_status(&welcome), challenge[16..48].to_vec())
}
