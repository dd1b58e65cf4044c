//! The data plane: data connections, from their handshake to their last frame.
//!
//! - [`connection`]: the loop that reads frames and writes replies;
//! - [`desk`]: what each op means;
//! - [`offers`]: slots between a put's offer and its pages;
//! - [`inbox`], [`transfer`], [`wire`]: bytes between socket and memory;
//! - [`aside`]: large transfers, on threads of their own; [`follow`]: on which processor;
//! - [`movers`]: the ways for pages beside the socket.
//!
//! Everything that a connection holds lives in its one task. When the session ends or the server closes, the task
//! is dropped at its next await, and slots, pins and its place in the limits go with it.

mod aside;
mod connection;
mod desk;
mod follow;
mod inbox;
mod movers;
mod offers;
mod shed;
mod slow;
mod transfer;
mod wire;

use crate::metrics::Metrics;
use crate::node::{Node, Phase};
use crate::sessions::Attachment;
pub(crate) use aside::Asides;
use memkv_transport::handshake::{
    ATTACH_BYTES, Attach, AttachError, AttachStatus, PREFACE, PROOF_BYTES, key_on, refusal, welcome,
};
pub(crate) use movers::rdma::{Nics, SessionRdma, session as rdma_session};
pub(crate) use shed::{Arrivals, Arriving, Room, Shed, Sheds};
pub(crate) use slow::Slow;
use std::sync::Arc;
use tokio::time::Instant;
use transfer::{Broken, Patience, read_exact, write_reply};
pub(crate) use wire::{Secure, Wire};

/// Serves a connection from this host, which is for data only.
pub(crate) async fn serve_near(node: Arc<Node>, stream: Wire) {
    let limit = node.config.handshake_timeout;
    let patience = Patience { stall: limit, until: Instant::now() + limit };
    let mut preface = [0; PREFACE.len()];
    let read = tokio::select! {
        biased;
        () = node.wait_closing() => return,
        read = read_exact(&stream, &patience, &mut preface) => read,
    };
    if read.is_err() || preface != PREFACE {
        Metrics::add(&node.metrics.protocol_errors, 1);
        tracing::debug!("a connection from this host does not speak the data protocol");
        return;
    }
    serve(node, stream).await;
}

/// Serves a connection whose first eight bytes were [`PREFACE`], until it ends.
pub(crate) async fn serve(node: Arc<Node>, stream: Wire) {
    tokio::select! {
        biased;
        () = node.wait_closing() => {}
        () = serve_session(&node, stream) => {}
    }
}

async fn serve_session(node: &Arc<Node>, stream: Wire) {
    let Some(attachment) = attach(node, &stream).await else { return };
    if let Err(error) = stream.limit_buffer() {
        // It works without, only slower.
        tracing::debug!(%error, "the kernel keeps its own buffer size");
    }
    let session = Arc::clone(&attachment.session);
    let connection = connection::Connection::new(Arc::clone(node), attachment, stream);
    tokio::select! {
        biased;
        () = session.wait_ended() => {}
        () = connection.run() => {}
    }
}

/// Performs the handshake; `None` if the connection was refused.
async fn attach(node: &Arc<Node>, stream: &Wire) -> Option<Attachment> {
    let limit = node.config.handshake_timeout;
    let patience = Patience { stall: limit, until: Instant::now() + limit };
    match handshake(node, stream, &patience).await {
        Ok(Ok(attachment)) => {
            node.guests.prove(stream.peer_addr());
            Some(attachment)
        }
        Ok(Err(status)) => {
            if status == AttachStatus::Denied {
                let peer = stream.peer_addr();
                node.auth_failed(peer, "a data connection does not know its session's key");
            }
            tracing::debug!(?status, "data connection refused");
            None
        }
        Err(broken) => {
            Metrics::add(&node.metrics.protocol_errors, 1);
            tracing::debug!(%broken, "data connection ended during its handshake");
            None
        }
    }
}

/// The four steps. The inner error has been told to the client.
async fn handshake(
    node: &Arc<Node>,
    stream: &Wire,
    patience: &Patience,
) -> Result<Result<Attachment, AttachStatus>, Broken> {
    let mut step1 = [0; ATTACH_BYTES];
    step1[..PREFACE.len()].copy_from_slice(&PREFACE);
    read_exact(stream, patience, &mut step1[PREFACE.len()..]).await?;
    let refused = |status| async move {
        send(stream, patience, &refusal(status)).await?;
        Ok(Err(status))
    };
    let attach = match Attach::decode(&step1) {
        Ok(attach) => attach,
        Err(AttachError::Version(_)) => return refused(AttachStatus::Version).await,
        Err(
            AttachError::NotMemkv
            | AttachError::Refused(_)
            | AttachError::WrongProof
            | AttachError::TlsRequired,
        ) => {
            return Err(Broken::Closed);
        }
    };
    if node.phase() != Phase::Serving {
        return refused(AttachStatus::Stopping).await;
    }
    if !node.attempts.may_try(stream.peer_addr()) {
        return refused(AttachStatus::Denied).await;
    }
    let Some(session) = node.sessions.find(&attach.session_id) else {
        return refused(AttachStatus::UnknownSession).await;
    };
    // What was said in secret is not to be repeated in public, nor by somebody else. A Unix socket leads nowhere.
    match (&session.tls, stream.tls()) {
        (Some(_), None) if stream.leaves_host() => {
            Metrics::add(&node.metrics.tls_plain_refused, 1);
            return refused(AttachStatus::TlsRequired).await;
        }
        (Some(opened), Some(joins)) if opened.identity != joins.identity => {
            return refused(AttachStatus::Denied).await;
        }
        _ => {}
    }
    let Some(attachment) = session.attach(node.limits.session_connections_max, node.slow.is_short()) else {
        return refused(AttachStatus::TooMany).await;
    };
    let server_nonce = crate::random::bytes();
    let key = key_on(&session.key, stream.tls().map(|tls| &tls.channel));
    send(stream, patience, &attach.challenge(&key, &server_nonce)).await?;
    let mut proof = [0; PROOF_BYTES];
    read_exact(stream, patience, &mut proof).await?;
    let status = match attach.check(&key, &server_nonce, &proof) {
        Ok(()) => AttachStatus::Ok,
        Err(_wrong) => AttachStatus::Denied,
    };
    send(stream, patience, &welcome(status)).await?;
    Ok(if status == AttachStatus::Ok { Ok(attachment) } else { Err(status) })
}

async fn send(stream: &Wire, patience: &Patience, bytes: &[u8]) -> Result<(), Broken> {
    write_reply(stream, patience, None, (bytes, &[]), &mut Vec::new()).await
}

/// Reads a client's message about its memory; `None` if it makes no sense, else whether the server may move `len` bytes at `offset`.
#[cfg(feature = "fuzzing")]
pub(crate) fn reads_region(message: memkv_proto::v1::RegisterRegion, offset: u64, len: u32) -> Option<bool> {
    movers::rdma::reads_region(message, offset, len)
}
