//! `memkv.v1.Admin.Verify`: a check of all stored pages, on a thread of its own, whose progress is streamed.

use super::status::Fault;
use crate::node::{Node, Phase};
use memkv_proto::{space_id_from_wire, v1};
use memkv_storage::{VerifyProgress, VerifyRequest};
use parking_lot::Mutex;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Answers that wait for a client that does not read them.
const OUTBOX: usize = 4;
/// The least time between two answers.
const INTERVAL: Duration = Duration::from_millis(500);

/// A stream of progress.
pub(super) type Steps = ReceiverStream<Result<v1::VerifyResponse, Status>>;

/// Starts the check; `place` is given back at its end.
pub(super) fn start(
    node: &Arc<Node>,
    request: &v1::VerifyRequest,
    place: OwnedSemaphorePermit,
) -> Result<Steps, Fault> {
    let space = match &request.space_id[..] {
        [] => None,
        id => Some(space_id_from_wire(id)?),
    };
    let pace = (request.bytes_per_second > 0).then_some(request.bytes_per_second);
    let asked = VerifyRequest { space, bytes_per_s: pace };
    let (outbox, steps) = mpsc::channel(OUTBOX);
    let node = Arc::clone(node);
    let check = move || {
        run(&node, asked, &outbox);
        drop(place);
    };
    let started = std::thread::Builder::new().name("memkv-verify".to_owned()).spawn(check);
    started.map_err(|error| Fault::NoThread(error.to_string()))?;
    Ok(ReceiverStream::new(steps))
}

fn run(node: &Node, asked: VerifyRequest, outbox: &mpsc::Sender<Result<v1::VerifyResponse, Status>>) {
    tracing::info!(space = ?asked.space, "checking stored pages");
    let told = Mutex::new(None::<Instant>);
    let report = node.engine.verify(asked, &|progress| {
        // A client that has gone, or a server that stops, needs no answer.
        if outbox.is_closed() || node.phase() != Phase::Serving {
            return ControlFlow::Break(());
        }
        let mut told = told.lock();
        if told.is_none_or(|last| last.elapsed() >= INTERVAL) {
            *told = Some(Instant::now());
            // With a full outbox the next answer says it all.
            drop(outbox.try_send(Ok(response(progress, false))));
        }
        ControlFlow::Continue(())
    });
    let progress = report.progress;
    let (dram, nvme, corrupt) = (progress.dram_pages, progress.nvme_pages, progress.corrupt);
    tracing::info!(dram_pages = dram, nvme_pages = nvme, quarantined = corrupt, "checked stored pages");
    if corrupt > 0 {
        tracing::error!(
            pages = corrupt,
            "stored pages did not match their checksums and were taken out; see memkv-cli inspect server"
        );
    }
    let last = if report.stopped { Err(Fault::Stopping.into()) } else { Ok(response(progress, true)) };
    // The client may have gone; then nobody needs it.
    drop(outbox.blocking_send(last));
}

fn response(progress: VerifyProgress, done: bool) -> v1::VerifyResponse {
    v1::VerifyResponse {
        dram_pages: progress.dram_pages,
        nvme_pages: progress.nvme_pages,
        bytes: progress.bytes,
        total_bytes: progress.total_bytes,
        quarantined: progress.corrupt,
        done,
    }
}
