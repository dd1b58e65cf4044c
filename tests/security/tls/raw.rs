//! The session handshake inside TLS, spoken by hand: proofs belong to their connection, and what began in secret is not
//! continued in public.

use super::Rig;
use anyhow::{Context as _, bail};
use hyper_util::rt::TokioIo;
use memkv_proto::{PROTOCOL_VERSION, v1};
use memkv_tests::daemon::{Daemon, KEY};
use memkv_tests::wire::DataConn;
use memkv_tls::{ClientFiles, ClientTls, Plane};
use memkv_transport::auth::{AuthKey, SessionKey, SessionTranscript, same_secret};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint, Uri};
use v1::client_message::Message as Said;
use v1::server_message::Message as Heard;

/// Which TLS connection a proof is made for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Channels {
    /// The one that it is sent on.
    This,
    /// Another one: the proof was relayed.
    Another,
    /// None: the client believes that it speaks plain text.
    None,
}

/// An open session, for as long as it lives.
struct Opened {
    id: [u8; 16],
    key: SessionKey,
    _say: mpsc::Sender<v1::ClientMessage>,
    _hear: Streaming<v1::ServerMessage>,
}

/// A gRPC channel inside TLS, and what only its two ends know.
async fn dial(tls: Arc<ClientTls>, addr: SocketAddr) -> anyhow::Result<(Channel, [u8; 32])> {
    let secret = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&secret);
    let connect = move |_: Uri| {
        let (tls, seen) = (Arc::clone(&tls), Arc::clone(&seen));
        async move {
            let stream = TcpStream::connect(addr).await?;
            let name = "127.0.0.1".try_into().map_err(std::io::Error::other)?;
            let stream = tls.connector(Plane::Control).connect(name, stream).await?;
            *seen.lock().expect("nobody panics") = memkv_tls::channel(stream.get_ref().1).ok();
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    };
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))?;
    let channel = endpoint.connect_with_connector(tower::service_fn(connect)).await?;
    let secret = secret.lock().expect("nobody panics").context("a handshake was done")?;
    Ok((channel, secret))
}

/// Opens a session inside TLS.
async fn open(tls: Arc<ClientTls>, addr: SocketAddr, channels: Channels) -> anyhow::Result<Opened> {
    let key = AuthKey::from_hex(KEY)?;
    let (channel, secret) = dial(tls, addr).await?;
    let (say, said) = mpsc::channel(4);
    let message = |message| v1::ClientMessage { message: Some(message) };
    let hello = v1::Hello {
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        client_nonce: vec![5; 32],
        client_name: "by hand".to_owned(),
        ..v1::Hello::default()
    };
    say.send(message(Said::Hello(hello))).await?;
    let mut session = v1::session_client::SessionClient::new(channel);
    let mut hear = session.open(ReceiverStream::new(said)).await?.into_inner();
    let Some(Heard::Challenge(challenge)) = hear.message().await?.and_then(|heard| heard.message) else {
        bail!("no challenge");
    };
    let bound: &[u8] = match channels {
        Channels::This => &secret,
        Channels::Another => &[9; 32],
        Channels::None => &[],
    };
    let transcript = SessionTranscript {
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        protocol: challenge.protocol,
        client_nonce: &[5; 32],
        server_nonce: &challenge.server_nonce,
        session_id: &challenge.session_id,
        node_id: &challenge.node_id,
        key_required: true,
        identity: ("", ""),
        channel: bound,
    };
    let fits = same_secret(&transcript.server_proof(&key), &challenge.server_proof);
    assert_eq!(fits, channels == Channels::This, "the server's proof is for this connection");
    let proof = v1::Proof { client_proof: transcript.client_proof(&key).to_vec() };
    say.send(message(Said::Proof(proof))).await?;
    let Some(Heard::Accepted(_)) = hear.message().await?.and_then(|heard| heard.message) else {
        bail!("not accepted");
    };
    let id = challenge.session_id.as_slice().try_into()?;
    Ok(Opened { id, key: transcript.session_key(&key), _say: say, _hear: hear })
}

fn setup() -> (Rig, Daemon, Runtime, Arc<ClientTls>) {
    let rig = Rig::new();
    let daemon = rig.daemon(&[]);
    let tls = ClientTls::open(ClientFiles { ca: rig.folder.path("ca.pem"), own: None }).unwrap();
    (rig, daemon, Runtime::new().unwrap(), Arc::new(tls))
}

#[test]
fn a_proof_made_for_another_tls_connection_is_refused() {
    let (_rig, daemon, runtime, tls) = setup();
    daemon.allow("authentication failed");
    runtime.block_on(open(Arc::clone(&tls), daemon.addr(), Channels::This)).unwrap();
    for relayed in [Channels::Another, Channels::None] {
        let error = runtime.block_on(open(Arc::clone(&tls), daemon.addr(), relayed)).err().unwrap();
        assert!(format!("{error:#}").contains("key"), "{error:#}");
    }
}

#[test]
fn a_session_inside_tls_has_no_data_connection_in_plain_text() {
    let (_rig, daemon, runtime, tls) = setup();
    let session = runtime.block_on(open(tls, daemon.addr(), Channels::This)).unwrap();
    let refused = DataConn::attach(daemon.addr(), session.id, &session.key).unwrap_err();
    assert!(format!("{refused:#}").contains("requires TLS"), "{refused:#}");
    assert!(daemon.metrics().unwrap().sum("memkv_tls_plain_refused_total", &[]) >= 1.0);
    // One of plain text has.
    let control = daemon.control().unwrap();
    let session = control.session().unwrap();
    DataConn::attach(daemon.addr(), session.id, &session.key).unwrap();
}
