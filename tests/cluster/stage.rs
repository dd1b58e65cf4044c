//! A server of an earlier release, as far as a recording has it: it gives today's client the answers that were recorded.
//!
//! What was answered is sent byte by byte as it was, except for what is fresh in every session (proofs, the number of a
//! ping, a request's id and with it the check of its header). A request is answered if the recorded client said the same: the same
//! op, records and pages. The positions of pages may be others: no answer follows from them. Whatever else the client
//! says is a surprise, and ends its connection.
//!
//! Deliberately absent: any state. A recorded answer is given once, in the order of the recording.

use crate::recorded::{Agreed, Kind, Raw, Step, bytes_of, inner};
use anyhow::{Context as _, bail, ensure};
use memkv_transport::auth::{AuthKey, SessionKey};
use memkv_transport::frame::{FLAG_DIRECT, HEADER_BYTES, Header, Op};
use memkv_transport::handshake::{ATTACH_BYTES, Attach, PREFACE, PROOF_BYTES};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Plays the server of a recording.
pub(crate) struct Stage {
    addr: SocketAddr,
    play: Arc<Play>,
    _runtime: Runtime,
}

/// What it plays, and how that goes.
struct Play {
    key: AuthKey,
    steps: Vec<Step>,
    node_id: String,
    /// The frames that have not been answered yet, by place in `steps`.
    left: Mutex<Vec<usize>>,
    session: Mutex<Option<SessionKey>>,
    surprises: Mutex<Vec<String>>,
    pings: AtomicUsize,
    answered: AtomicUsize,
}

impl Stage {
    /// Begins to listen.
    pub(crate) fn start(steps: Vec<Step>, key: AuthKey) -> anyhow::Result<Self> {
        let is_frame = |(at, step): (usize, &Step)| (step.kind == Kind::Frame).then_some(at);
        let left = Mutex::new(steps.iter().enumerate().filter_map(is_frame).collect());
        let challenge = steps.iter().find(|step| step.kind == Kind::Hello).context("there is a hello")?;
        let node_id = String::from_utf8(bytes_of(&inner(&challenge.answer)?, 4))?;
        let (session, surprises) = (Mutex::default(), Mutex::default());
        let (pings, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let play = Arc::new(Play { key, steps, node_id, left, session, surprises, pings, answered });
        let runtime = Runtime::new()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let addr = listener.local_addr()?;
        let (grpc, connections) = mpsc::channel(16);
        runtime.spawn(accept(listener, play.clone(), grpc));
        let router = tonic::transport::Server::builder()
            .add_service(Sessions(play.clone()))
            .add_service(Calls(play.clone()));
        runtime.spawn(router.serve_with_incoming(ReceiverStream::new(connections)));
        Ok(Self { addr, play, _runtime: runtime })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn node_id(&self) -> &str {
        &self.play.node_id
    }

    /// Pings that were answered.
    pub(crate) fn pings(&self) -> usize {
        self.play.pings.load(Relaxed)
    }

    /// Frames that were answered.
    pub(crate) fn answered(&self) -> usize {
        self.play.answered.load(Relaxed)
    }

    /// What the client said that is not in the recording.
    pub(crate) fn surprises(&self) -> Vec<String> {
        self.play.surprises.lock().unwrap().clone()
    }
}

async fn accept(listener: TcpListener, play: Arc<Play>, grpc: mpsc::Sender<std::io::Result<TcpStream>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (play, grpc) = (play.clone(), grpc.clone());
        tokio::spawn(async move {
            let mut first = [0; PREFACE.len()];
            while matches!(stream.peek(&mut first).await, Ok(1..PREFACE_BYTES)) {
                tokio::task::yield_now().await;
            }
            if first == PREFACE {
                play.note(play.data(stream).await);
            } else {
                // Nobody takes it when the test is over.
                grpc.send(Ok(stream)).await.ok();
            }
        });
    }
}

const PREFACE_BYTES: usize = PREFACE.len();

impl Play {
    fn note(&self, outcome: anyhow::Result<()>) {
        if let Err(surprise) = outcome {
            self.surprises.lock().unwrap().push(format!("{surprise:#}"));
        }
    }

    fn step(&self, kind: &Kind) -> anyhow::Result<&Step> {
        self.steps.iter().find(|step| step.kind == *kind).with_context(|| format!("no {kind:?} was recorded"))
    }

    /// The answers on a session's stream.
    async fn session(
        &self,
        mut said: Streaming<Vec<u8>>,
        say: &mpsc::Sender<Result<Vec<u8>, Status>>,
    ) -> anyhow::Result<()> {
        let hello = said.message().await?.context("the client says nothing")?;
        let recorded = &self.step(&Kind::Hello)?.answer;
        let agreed = Agreed::of(&hello, recorded, &self.key)?;
        let old_proof = bytes_of(&inner(recorded)?, 5);
        say.send(Ok(replaced(recorded, &old_proof, &agreed.server_proof)?)).await?;
        let proof = said.message().await?.context("the client proves nothing")?;
        ensure!(bytes_of(&inner(&proof)?, 1) == agreed.client_proof, "the client's proof is wrong");
        *self.session.lock().unwrap() = Some(agreed.session_key);
        say.send(Ok(self.step(&Kind::Proof)?.answer.clone())).await?;
        let ping = self.step(&Kind::Say)?;
        while let Ok(Some(message)) = said.message().await {
            // A ping is a message of one field, as it was: only the number is another one.
            ensure!(message.first() == ping.sent.first(), "{message:02x?} is no ping");
            say.send(Ok(pong(&message, &ping.answer)?)).await?;
            self.pings.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// The answers on a data connection.
    async fn data(&self, mut stream: TcpStream) -> anyhow::Result<()> {
        let mut attach = [0; ATTACH_BYTES];
        stream.read_exact(&mut attach).await?;
        let recorded = self.step(&Kind::Attach)?;
        ensure!(attach[..16] == recorded.sent[..16], "another handshake: {:02x?}", &attach[..16]);
        let attach = Attach::decode(&attach)?;
        let session = self.session.lock().unwrap().clone().context("there is a session")?;
        let nonce = recorded.answer[16..48].try_into()?;
        let challenge = attach.challenge(&session, &nonce);
        ensure!(challenge[..48] == recorded.answer[..48], "what follows the proof was recorded as it is");
        stream.write_all(&challenge).await?;
        let mut proof = [0; PROOF_BYTES];
        stream.read_exact(&mut proof).await?;
        attach.check(&session, &nonce, &proof)?;
        stream.write_all(&self.step(&Kind::AttachProof)?.answer).await?;
        loop {
            let mut head = [0; HEADER_BYTES];
            if stream.read_exact(&mut head).await.is_err() {
                return Ok(()); // The client has what it wants.
            }
            let header = Header::decode(&head)?;
            let mut rest = vec![0; header.meta_len as usize + usize::try_from(header.body_len)?];
            stream.read_exact(&mut rest).await?;
            stream.write_all(&self.frame(&header, &rest)?).await?;
            self.answered.fetch_add(1, Relaxed);
        }
    }

    /// The answer to a frame that the recorded client sent too.
    fn frame(&self, header: &Header, rest: &[u8]) -> anyhow::Result<Vec<u8>> {
        let same = |at: &usize| {
            let sent = &self.steps[*at].sent;
            let old = sent.first_chunk().map(Header::decode);
            old.is_some_and(|old| {
                old.is_ok_and(|old| {
                    (old.op, old.flags & FLAG_DIRECT, old.space, old.count)
                        == (header.op, header.flags & FLAG_DIRECT, header.space, header.count)
                        && without_positions(&old, &sent[HEADER_BYTES..]) == without_positions(header, rest)
                })
            })
        };
        let mut left = self.left.lock().unwrap();
        let Some(place) = left.iter().position(same) else {
            bail!("{header:?} with {rest:02x?} is not in the recording, or was answered already");
        };
        let mut answer = self.steps[left.remove(place)].answer.clone();
        let head = *answer.first_chunk().context("an answer has a header")?;
        let mut reply = Header::decode(&head)?;
        let meta = answer[HEADER_BYTES..][..reply.meta_len as usize].to_vec();
        reply.request_id = header.request_id;
        let head = reply.encode(&meta);
        // The id, and the check at the end, are fresh; nothing else may be.
        ensure!(
            head[..8] == answer[..8] && head[16..60] == answer[16..60],
            "today's header has other bytes than the recorded one"
        );
        answer[..HEADER_BYTES].copy_from_slice(&head);
        Ok(answer)
    }
}

/// What follows a header, with zeros for the positions of the pages that a put offers.
fn without_positions(header: &Header, rest: &[u8]) -> Vec<u8> {
    let mut rest = rest.to_vec();
    if header.op == Op::Put {
        // u32 page_len, u32 position, u16 key_len, key
        let (mut offered, _) = rest.split_at_mut(header.meta_len as usize);
        while let Some((record, others)) = offered.split_at_mut_checked(10) {
            record[4..8].fill(0);
            let key_len = usize::from(u16::from_le_bytes([record[8], record[9]]));
            offered = others.split_at_mut_checked(key_len).map_or(&mut [], |(_, next)| next);
        }
    }
    rest
}

/// The message with other bytes in one place.
fn replaced(message: &[u8], old: &[u8], new: &[u8]) -> anyhow::Result<Vec<u8>> {
    ensure!(old.len() == new.len() && !old.is_empty(), "as many bytes as before");
    let at = message.windows(old.len()).position(|part| part == old).context("the old bytes are there")?;
    let mut message = message.to_vec();
    message[at..at + new.len()].copy_from_slice(new);
    Ok(message)
}

/// The recorded pong with the number of this ping. The number is the first field of both.
fn pong(ping: &[u8], recorded: &[u8]) -> anyhow::Result<Vec<u8>> {
    let number = |message: &[u8]| -> anyhow::Result<Vec<u8>> {
        ensure!(message.get(2) == Some(&0x08), "{message:02x?} does not begin with its number");
        let len = message[3..].iter().position(|byte| *byte < 0x80).context("the number ends")?;
        Ok(message[3..=3 + len].to_vec())
    };
    // The first ping has the number 0, which protobuf leaves out.
    let number_now = if ping.len() > 2 { number(ping)? } else { vec![0] };
    let rest = &recorded[3 + number(recorded)?.len()..];
    let len = u8::try_from(1 + number_now.len() + rest.len()).ok().filter(|len| *len < 0x80);
    Ok([&[recorded[0], len.context("a pong is short")?, 0x08], &number_now[..], rest].concat())
}

/// The service of sessions.
#[derive(Clone)]
struct Sessions(Arc<Play>);

impl NamedService for Sessions {
    const NAME: &'static str = "memkv.v1.Session";
}

impl tower::Service<http::Request<Body>> for Sessions {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let play = self.0.clone();
        let open = move |request: Request<Streaming<Vec<u8>>>| {
            let play = play.clone();
            let (say, hear) = mpsc::channel(8);
            tokio::spawn(async move { play.note(play.session(request.into_inner(), &say).await) });
            async { Ok::<_, Status>(Response::new(ReceiverStream::new(hear))) }
        };
        Box::pin(async move {
            Ok(tonic::server::Grpc::new(Raw).streaming(tower::service_fn(open), request).await)
        })
    }
}

/// The service of calls about keys and spaces.
#[derive(Clone)]
struct Calls(Arc<Play>);

impl NamedService for Calls {
    const NAME: &'static str = "memkv.v1.Kv";
}

impl tower::Service<http::Request<Body>> for Calls {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (play, method) = (self.0.clone(), request.uri().path().to_owned());
        let call = move |request: Request<Vec<u8>>| {
            let said = request.into_inner();
            let kind = Kind::Call(method.clone());
            let answer = match play.step(&kind) {
                Ok(step) if step.sent == said => Ok(Response::new(step.answer.clone())),
                Ok(_) | Err(_) => {
                    play.note(Err(anyhow::anyhow!("{method} of {said:02x?} is not in the recording")));
                    Err(Status::unimplemented("it is not in the recording"))
                }
            };
            std::future::ready(answer)
        };
        Box::pin(
            async move { Ok(tonic::server::Grpc::new(Raw).unary(tower::service_fn(call), request).await) },
        )
    }
}
