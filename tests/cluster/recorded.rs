//! Sessions of earlier releases, byte by byte, played to today's server.
//!
//! A recording is a list of steps: what the client sent, and what the server answered. Bytes that are fresh in every
//! session (nonces, identities, proofs) are put in or left out when it is played; all others are sent as they were, and
//! none of them is made by today's code. An answer may have more than the recorded one had, and nothing less.

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, BufMut as _};
use memkv_proto::AUTH_METADATA;
use memkv_tests::control::{Control, unix_ms};
use memkv_tests::random;
use memkv_tests::wire::dial;
use memkv_transport::auth::{AuthKey, Credential, SECRET_BYTES, SessionKey, SessionTranscript};
use memkv_transport::frame::{HEADER_BYTES, Header};
use memkv_transport::handshake::{Attach, CHALLENGE_BYTES, WELCOME_BYTES};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::str::FromStr;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status, Streaming};

/// What a step is; the first word of its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// First message of the session's stream; answered with the challenge.
    Hello,
    /// Second message; its last 32 bytes are the proof.
    Proof,
    /// A later message.
    Say,
    /// A unary call of this method.
    Call(String),
    /// The first bytes of a data connection; the session's identity is at 16..32.
    Attach,
    /// The proof of a data connection.
    AttachProof,
    /// A frame.
    Frame,
}

/// One step.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) kind: Kind,
    pub(crate) sent: Vec<u8>,
    pub(crate) answer: Vec<u8>,
}

/// Reads a recording.
pub(crate) fn parse(text: &str) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    while let Some(name) = lines.next() {
        let mut bytes = |mark: &str| -> anyhow::Result<Vec<u8>> {
            let line = lines.next().with_context(|| format!("{name}: a line is missing"))?;
            hex(line.strip_prefix(mark).with_context(|| format!("{name}: {line:?} has no {mark:?}"))?)
        };
        let kind = match name.split_once(' ') {
            Some(("call", method)) => Kind::Call(method.to_owned()),
            None => match name {
                "hello" => Kind::Hello,
                "proof" => Kind::Proof,
                "say" => Kind::Say,
                "attach" => Kind::Attach,
                "attach-proof" => Kind::AttachProof,
                "frame" => Kind::Frame,
                other => bail!("{other:?} is no step"),
            },
            Some(_) => bail!("{name:?} is no step"),
        };
        steps.push(Step { kind, sent: bytes(">")?, answer: bytes("<")? });
    }
    Ok(steps)
}

/// Writes a recording.
pub(crate) fn to_text(release: &str, steps: &[Step]) -> String {
    let mut text = format!("# A session of release {release}; see README.md.\n");
    for step in steps {
        let name = match &step.kind {
            Kind::Hello => "hello".to_owned(),
            Kind::Proof => "proof".to_owned(),
            Kind::Say => "say".to_owned(),
            Kind::Call(method) => format!("call {method}"),
            Kind::Attach => "attach".to_owned(),
            Kind::AttachProof => "attach-proof".to_owned(),
            Kind::Frame => "frame".to_owned(),
        };
        let digits = |bytes: &[u8]| {
            bytes.iter().fold(String::new(), |mut text, byte| {
                write!(text, "{byte:02x}").expect("a string takes text");
                text
            })
        };
        text += &format!("{name}\n>{}\n<{}\n", digits(&step.sent), digits(&step.answer));
    }
    text
}

fn hex(text: &str) -> anyhow::Result<Vec<u8>> {
    ensure!(text.len().is_multiple_of(2) && text.is_ascii(), "an odd number of digits");
    (0..text.len()).step_by(2).map(|at| Ok(u8::from_str_radix(&text[at..at + 2], 16)?)).collect()
}

/// What is said and heard on a session's stream.
type Talk = (mpsc::Sender<Vec<u8>>, Streaming<Vec<u8>>);

/// A player at one server.
pub(crate) struct Player<'a> {
    addr: SocketAddr,
    control: &'a Control,
    key: AuthKey,
    hello: Vec<u8>,
    stream: Option<Talk>,
    session: Option<([u8; 16], SessionKey, Vec<u8>)>,
    data: Option<(TcpStream, Attach, [u8; CHALLENGE_BYTES])>,
}

impl<'a> Player<'a> {
    pub(crate) fn new(addr: SocketAddr, control: &'a Control, key: AuthKey) -> Self {
        Self { addr, control, key, hello: Vec::new(), stream: None, session: None, data: None }
    }

    /// Does one step; returns what the server answers.
    pub(crate) fn play(&mut self, step: &Step) -> anyhow::Result<Vec<u8>> {
        match &step.kind {
            Kind::Hello => self.hello(&step.sent),
            Kind::Proof => {
                let (_, _, proof) = self.session.as_ref().context("a proof follows a challenge")?;
                let mut message = step.sent.clone();
                let at = message.len().checked_sub(proof.len()).context("a proof has 32 bytes")?;
                message[at..].copy_from_slice(proof);
                self.say(message)
            }
            Kind::Say => self.say(step.sent.clone()),
            Kind::Call(method) => self.call(method, step.sent.clone()),
            Kind::Attach => self.attach(&step.sent),
            Kind::AttachProof => {
                let (_, key, _) = self.session.as_ref().context("there is a session")?;
                let (stream, attach, challenge) = self.data.as_mut().context("there is a connection")?;
                stream.write_all(&attach.answer(key, challenge)?)?;
                let mut welcome = [0; WELCOME_BYTES];
                stream.read_exact(&mut welcome)?;
                Ok(welcome.to_vec())
            }
            Kind::Frame => {
                let (stream, ..) = self.data.as_mut().context("there is a connection")?;
                stream.write_all(&step.sent)?;
                read_frame(stream)
            }
        }
    }

    fn hello(&mut self, sent: &[u8]) -> anyhow::Result<Vec<u8>> {
        let (say, said) = mpsc::channel(8);
        let control = self.control;
        let mut grpc = tonic::client::Grpc::new(control.channel());
        let (answer, hear) = control.block_on(async {
            say.send(sent.to_vec()).await?;
            grpc.ready().await?;
            let path = "/memkv.v1.Session/Open".parse()?;
            let answer = grpc.streaming(Request::new(ReceiverStream::new(said)), path, Raw).await?;
            let mut hear = answer.into_inner();
            let first = hear.message().await?.context("the stream ended before the challenge")?;
            anyhow::Ok((first, hear))
        })?;
        let agreed = Agreed::of(sent, &answer, &self.key)?;
        ensure!(agreed.server_proof[..] == bytes_of(&inner(&answer)?, 5)[..], "the server's proof is wrong");
        self.session = Some((agreed.session_id, agreed.session_key, agreed.client_proof.to_vec()));
        self.stream = Some((say, hear));
        self.hello = sent.to_vec();
        Ok(answer)
    }

    fn say(&mut self, message: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let (say, hear) = self.stream.as_mut().context("there is a stream")?;
        self.control.block_on(async {
            say.send(message).await?;
            hear.message().await?.context("the stream ended")
        })
    }

    fn call(&self, method: &str, message: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let mut request = Request::new(message);
        let credential = Credential::new(&self.key, method, unix_ms(), random()).to_string();
        request.metadata_mut().insert(AUTH_METADATA, credential.parse()?);
        let mut grpc = tonic::client::Grpc::new(self.control.channel());
        self.control.block_on(async {
            grpc.ready().await?;
            Ok(grpc.unary(request, FromStr::from_str(method)?, Raw).await?.into_inner())
        })
    }

    fn attach(&mut self, sent: &[u8]) -> anyhow::Result<Vec<u8>> {
        let (session_id, ..) = self.session.as_ref().context("there is a session")?;
        let mut bytes = sent.to_vec();
        bytes[16..32].copy_from_slice(session_id);
        let attach = Attach { session_id: *session_id, client_nonce: sent[32..64].try_into()? };
        let mut stream = dial(self.addr)?;
        stream.write_all(&bytes)?;
        let mut challenge = [0; CHALLENGE_BYTES];
        stream.read_exact(&mut challenge)?;
        self.data = Some((stream, attach, challenge));
        Ok(challenge.to_vec())
    }
}

/// What follows from the first two messages of a session.
pub(crate) struct Agreed {
    pub(crate) session_id: [u8; 16],
    pub(crate) session_key: SessionKey,
    pub(crate) server_proof: [u8; SECRET_BYTES],
    pub(crate) client_proof: [u8; SECRET_BYTES],
}

impl Agreed {
    /// `hello` and `challenge` are whole messages of the stream.
    pub(crate) fn of(hello: &[u8], challenge: &[u8], key: &AuthKey) -> anyhow::Result<Self> {
        let (hello, challenge) = (inner(hello)?, inner(challenge)?);
        let number = |fields: &[Field], number| find(fields, number).map_or(0, |field| field.value);
        let (server_nonce, session_id) = (bytes_of(&challenge, 2), bytes_of(&challenge, 3));
        let (client_nonce, node_id) = (bytes_of(&hello, 3), String::from_utf8(bytes_of(&challenge, 4))?);
        let transcript = SessionTranscript {
            protocol_min: u32::try_from(number(&hello, 1))?,
            protocol_max: u32::try_from(number(&hello, 2))?,
            protocol: u32::try_from(number(&challenge, 1))?,
            client_nonce: &client_nonce,
            server_nonce: &server_nonce,
            session_id: &session_id,
            node_id: &node_id,
            key_required: number(&challenge, 6) == 1,
            identity: ("", ""),
            channel: &[],
        };
        Ok(Self {
            session_id: session_id[..].try_into().context("a session's identity has 16 bytes")?,
            session_key: transcript.session_key(key),
            server_proof: transcript.server_proof(key),
            client_proof: transcript.client_proof(key),
        })
    }
}

fn read_frame(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let decoded = Header::decode(&header)?;
    let mut rest = vec![0; decoded.meta_len as usize + usize::try_from(decoded.body_len)?];
    stream.read_exact(&mut rest)?;
    Ok([&header[..], &rest].concat())
}

/// Compares what today's server answers with what was recorded.
pub(crate) fn compare(step: &Step, today: &[u8]) -> anyhow::Result<()> {
    let same = |masked: &[u32]| keeps(&inner(&step.answer)?, &inner(today)?, masked);
    match &step.kind {
        // Nonce, identity, node and proof are fresh.
        Kind::Hello => same(&[2, 3, 4, 5]),
        // Limits, release, incarnation and interval may be others.
        Kind::Proof => same(&[1, 3, 4, 5]),
        Kind::Say => same(&[]),
        Kind::Call(_) => keeps(&fields(&step.answer)?, &fields(today)?, &[]),
        Kind::Attach => {
            ensure!(
                today.len() == step.answer.len() && today[..16] == step.answer[..16],
                "another challenge"
            );
            Ok(())
        }
        Kind::AttachProof | Kind::Frame => {
            ensure!(today == step.answer, "{today:02x?} and not {:02x?}", step.answer);
            Ok(())
        }
    }
}

fn find(fields: &[Field], number: u32) -> Option<&Field> {
    fields.iter().find(|field| field.number == number)
}

/// The bytes of a field; none if it is not there.
pub(crate) fn bytes_of(fields: &[Field], number: u32) -> Vec<u8> {
    find(fields, number).map(|field| field.bytes.clone()).unwrap_or_default()
}

/// One field of a protobuf message, as it is on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) number: u32,
    wire: u8,
    value: u64,
    bytes: Vec<u8>,
}

/// Fails unless each recorded field is there today, and, if it is not masked, with the same value.
fn keeps(recorded: &[Field], today: &[Field], masked: &[u32]) -> anyhow::Result<()> {
    for old in recorded {
        let kept = today.iter().any(|new| {
            (new.number, new.wire) == (old.number, old.wire) && (masked.contains(&old.number) || new == old)
        });
        ensure!(kept, "the field {} = {} {:02x?} is gone or another", old.number, old.value, old.bytes);
    }
    Ok(())
}

/// The fields of the one message that a message of a stream carries.
pub(crate) fn inner(message: &[u8]) -> anyhow::Result<Vec<Field>> {
    let outer = fields(message)?;
    let [only] = &outer[..] else { bail!("a message of a stream carries one message: {outer:?}") };
    let mut within = fields(&only.bytes)?;
    // Which one it is must be the same too.
    within.push(Field { number: u32::MAX, wire: 0, value: only.number.into(), bytes: Vec::new() });
    Ok(within)
}

fn fields(mut rest: &[u8]) -> anyhow::Result<Vec<Field>> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let (number, wire) = (u32::try_from(tag >> 3)?, (tag & 7) as u8);
        let (mut value, mut bytes) = (0, Vec::new());
        match wire {
            0 => value = varint(&mut rest)?,
            1 => bytes = rest.split_off(..8).context("eight bytes")?.to_vec(),
            2 => {
                let len = usize::try_from(varint(&mut rest)?)?;
                bytes = rest.split_off(..len).context("a field's bytes")?.to_vec();
            }
            5 => bytes = rest.split_off(..4).context("four bytes")?.to_vec(),
            other => bail!("wire type {other}"),
        }
        fields.push(Field { number, wire, value, bytes });
    }
    Ok(fields)
}

fn varint(rest: &mut &[u8]) -> anyhow::Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *rest.split_off_first().context("a number ends early")?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    bail!("a number has too many bytes")
}

/// Messages as the bytes they are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; bytes.remaining()];
        bytes.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}
