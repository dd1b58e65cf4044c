//! `memkv.v1.Admin.Drain`: begins, shows and cancels a drain, whose progress is streamed.

use super::status::Fault;
use crate::drain::{Asked, Drain, Job, Member};
use crate::node::Node;
use memkv_proto::{Invalid, v1};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Answers that wait for a client that does not read them.
const OUTBOX: usize = 4;
/// The time between two answers.
const INTERVAL: Duration = Duration::from_millis(500);
/// Most members of a list.
const MEMBERS_MAX: usize = 1024;
/// Longest id and host name, bytes.
const NAME_BYTES_MAX: usize = 256;

/// A stream of progress.
pub(super) type Steps = ReceiverStream<Result<v1::DrainProgress, Status>>;

/// Does what is asked; the stream ends with the drain.
pub(super) async fn run(node: &Arc<Node>, request: v1::DrainRequest) -> Result<Steps, Fault> {
    let job = match request.action() {
        v1::DrainAction::Start => Some(Drain::start(node, asked(request)?).await?),
        v1::DrainAction::Show => node.drain.job(),
        v1::DrainAction::Cancel => node.drain.cancel().await,
        v1::DrainAction::Unspecified => return Err(Invalid::Missing("action").into()),
    };
    let (outbox, steps) = mpsc::channel(OUTBOX);
    match job {
        Some(job) => {
            tokio::spawn(tell(job, outbox));
        }
        None => {
            let mut nothing = v1::DrainProgress { done: true, ..Default::default() };
            nothing.set_state(node.state());
            // The channel is new.
            drop(outbox.try_send(Ok(nothing)));
        }
    }
    Ok(ReceiverStream::new(steps))
}

/// Tells how far the drain is until it has ended or nobody listens; the drain goes on all the same.
async fn tell(job: Arc<Job>, outbox: mpsc::Sender<Result<v1::DrainProgress, Status>>) {
    loop {
        let view = job.view();
        let done = view.done;
        if outbox.send(Ok(view)).await.is_err() || done {
            return;
        }
        tokio::select! {
            // Whether it ended or the time passed, the next answer says.
            _ended = timeout(INTERVAL, job.wait_over()) => {}
            () = outbox.closed() => return,
        }
    }
}

fn asked(request: v1::DrainRequest) -> Result<Asked, Fault> {
    if request.members.is_empty() || request.members.len() > MEMBERS_MAX {
        return Err(Invalid::OutOfRange("members").into());
    }
    let mut members = Vec::with_capacity(request.members.len());
    for member in request.members {
        let fits = |text: &str| (1..=NAME_BYTES_MAX).contains(&text.len());
        let port = u16::try_from(member.port).ok().filter(|port| *port > 0);
        let (true, true, Some(port)) = (fits(&member.id), fits(&member.host), port) else {
            return Err(Invalid::OutOfRange("members").into());
        };
        if members.iter().any(|known: &Member| known.id == member.id) {
            return Err(Invalid::OutOfRange("members: two have one id").into());
        }
        members.push(Member { id: member.id, host: member.host, port, weight: member.weight });
    }
    let copies = request.copies.max(1) as usize;
    Ok(Asked { members, bytes_per_second: request.bytes_per_second, copies })
}
