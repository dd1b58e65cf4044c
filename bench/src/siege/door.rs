//! Sessions and data connections without a client library: what besiegers with a key need, and no more.

use anyhow::{Context as _, bail};
use memkv_proto::v1;
use memkv_proto::v1::client_message::Message as Say;
use memkv_proto::v1::server_message::Message as Heard;
use memkv_transport::auth::{AuthKey, SessionKey, SessionTranscript};
use memkv_transport::handshake::{Attach, CHALLENGE_BYTES, WELCOME_BYTES, read_status};
use memkv_transport::tenant::ClientSecret;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// How long a server may take for a step of a handshake.
const PATIENCE: Duration = Duration::from_secs(30);

/// An open session: its name and what binds connections to it.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) id: [u8; 16],
    pub(crate) key: SessionKey,
}

/// Opens a session and pings in it for as long as the runtime lives.
pub(crate) async fn open(channel: Channel, key: &AuthKey) -> anyhow::Result<Session> {
    let secret = ClientSecret::new(key.clone(), None);
    let (say, said) = mpsc::channel(4);
    let message = |message| v1::ClientMessage { message: Some(message) };
    let hello = v1::Hello {
        protocol_min: memkv_proto::PROTOCOL_VERSION,
        protocol_max: memkv_proto::PROTOCOL_VERSION,
        client_nonce: random::<32>()?.to_vec(),
        client_name: "memkv-bench".to_owned(),
        ..v1::Hello::default()
    };
    say.send(message(Say::Hello(hello.clone()))).await?;
    let mut client = v1::session_client::SessionClient::new(channel);
    let mut hear = client.open(ReceiverStream::new(said)).await?.into_inner();
    let first = hear.message().await?.and_then(|message| message.message);
    let Some(Heard::Challenge(challenge)) = first else { bail!("there was no challenge") };
    let transcript = SessionTranscript {
        protocol_min: hello.protocol_min,
        protocol_max: hello.protocol_max,
        protocol: challenge.protocol,
        client_nonce: &hello.client_nonce,
        server_nonce: &challenge.server_nonce,
        session_id: &challenge.session_id,
        node_id: &challenge.node_id,
        key_required: challenge.key_required,
        identity: secret.identity(),
        channel: &[],
    };
    let proof = secret.client_proof(&transcript).to_vec();
    say.send(message(Say::Proof(v1::Proof { client_proof: proof }))).await?;
    let second = hear.message().await?.and_then(|message| message.message);
    let Some(Heard::Accepted(accepted)) = second else { bail!("the session was not accepted") };
    let session = Session {
        id: challenge.session_id[..].try_into().context("a session id has 16 bytes")?,
        key: secret.session_key(&transcript),
    };
    let interval = Duration::from_millis(u64::from(accepted.ping_interval_ms.max(1)));
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(interval);
        loop {
            tokio::select! {
                tick = ticks.tick() => {
                    let ping = v1::Ping { sequence: u64::try_from(tick.elapsed().as_millis()).unwrap_or(0) };
                    if say.send(message(Say::Ping(ping))).await.is_err() {
                        return;
                    }
                }
                heard = hear.message() => if !matches!(heard, Ok(Some(_))) { return },
            }
        }
    });
    Ok(session)
}

/// A connection from the address of this host with that number.
pub(crate) fn dial(from: u8, to: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddr::from(([127, 0, 1, from], 0)))?;
    connect(&socket, &to)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Joins a session; fails if the server refuses.
pub(crate) fn attach(stream: &mut TcpStream, session: &Session) -> anyhow::Result<()> {
    let attach = Attach { session_id: session.id, client_nonce: random()? };
    stream.write_all(&attach.encode())?;
    let mut challenge = [0; CHALLENGE_BYTES];
    stream.read_exact(&mut challenge)?;
    stream.write_all(&attach.answer(&session.key, &challenge)?)?;
    let mut welcome = [0; WELCOME_BYTES];
    stream.read_exact(&mut welcome)?;
    Ok(read_status(&welcome)?)
}

pub(crate) fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("make random bytes")?;
    Ok(bytes)
}
