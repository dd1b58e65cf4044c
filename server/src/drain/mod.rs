//! Draining: a server that is to leave copies its pages to their next owners, and answers reads all the while.
//!
//! - `scan`: which pages there are, the most valuable first;
//! - `batch`: pages of one space on their way to their owners;
//! - `target`: one of the other servers, spoken to with the gRPC API that any client uses;
//! - `secure`: TLS to it;
//! - `pace`: so many bytes in a second;
//! - `settled`: which pages need not be looked at again;
//! - `progress`: what an operator sees.
//!
//! From the moment a drain begins no new page is taken. Then it waits for the puts that were under way, so that what
//! is scanned afterwards is all there will ever be. A page is copied, not moved: until the daemon is stopped, it
//! answers for every page it had, and a drain that is cancelled has taken nothing away.
//!
//! Nothing about a drain is written down. After a restart the server serves, and a new drain finds with one question
//! per batch what the last one did.
//!
//! Invariants:
//! - a server is [`Duty::Drained`] only if every page that it held is with another server, or was removed here;
//! - at most one drain runs; it ends when it is cancelled or the daemon stops;
//! - what is in flight is bounded: `BATCHES` batches of at most `BATCH_BYTES` (or one page) each.
//!
//! Deliberately absent: who the other servers are. Whoever asks for a drain says it.

mod batch;
mod pace;
mod progress;
mod scan;
mod secure;
mod settled;
mod target;

use crate::metrics::Metrics;
use crate::node::{Node, Phase};
use batch::{Batch, Item};
use memkv_core::route;
use memkv_proto::v1;
use pace::Pace;
use parking_lot::Mutex;
pub(crate) use progress::Progress;
use scan::{Found, Pass};
use settled::Settled;
use std::sync::Arc;
use std::time::Duration;
pub(crate) use target::Member;
use target::Target;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Bytes of pages in one batch, unless one page is larger.
const BATCH_BYTES: u64 = 16 << 20;
/// Pages of one batch.
const BATCH_PAGES: usize = 256;
/// Batches in flight.
const BATCHES: usize = 4;
/// Chunks of a scan that wait.
const CHUNKS: usize = 1;
/// How often everything is gone through as long as pages are lost, and the pause before each time but the first.
const PASSES: u32 = 3;
const PASS_PAUSE: Duration = Duration::from_secs(2);

/// Whether the server takes new pages. The phases of the process are [`Phase`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    /// It does.
    Serving,
    /// It does not, and copies its pages to their next owners (or has not managed to).
    Draining,
    /// It does not, and every page it holds is with its next owner.
    Drained,
}

/// Why a drain does not begin. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoDrain {
    /// A member is this server.
    #[error(
        "the member {0} is this server itself; name the members without the server that is to be drained"
    )]
    Itself(String),
    /// Nobody would take the pages.
    #[error("no member answers, so nobody would take the pages; {0}")]
    NobodyAnswers(String),
    /// No member may have pages.
    #[error("no member has a weight above 0, so nobody would take the pages")]
    NoWeight,
    /// The server's own certificate does not help to reach others.
    #[error("the other servers cannot be reached over TLS: {0}")]
    Tls(#[from] memkv_tls::TlsError),
    /// The daemon stops.
    #[error("the server is stopping")]
    Stopping,
}

/// What a drain is asked to do.
pub(crate) struct Asked {
    /// Where pages go: all members after this server has left.
    pub(crate) members: Vec<Member>,
    /// 0 for no limit.
    pub(crate) bytes_per_second: u64,
    /// Copies of each page, at least 1.
    pub(crate) copies: usize,
}

/// The drains of one server.
pub(crate) struct Drain {
    duty: watch::Sender<Duty>,
    job: Mutex<Option<Arc<Job>>>,
    /// One drain begins at a time.
    beginning: tokio::sync::Mutex<()>,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            duty: watch::Sender::new(Duty::Serving),
            job: Mutex::default(),
            beginning: tokio::sync::Mutex::default(),
        }
    }
}

impl Drain {
    /// Whether new pages are taken.
    pub(crate) fn duty(&self) -> Duty {
        *self.duty.borrow()
    }

    /// Changes of [`Drain::duty`]; for whoever tells others about this server.
    pub(crate) fn duties(&self) -> watch::Receiver<Duty> {
        self.duty.subscribe()
    }

    /// The drain that is running, or the last one.
    pub(crate) fn job(&self) -> Option<Arc<Job>> {
        self.job.lock().clone()
    }

    /// Forgets the last drain, which holds the server as the server holds it. For one that ends before its process.
    #[cfg(feature = "sim")]
    pub(crate) fn forget(&self) {
        let job = self.job.lock().take();
        drop(job);
    }

    /// Begins a drain, or joins the one that is running.
    pub(crate) async fn start(node: &Arc<Node>, asked: Asked) -> Result<Arc<Job>, NoDrain> {
        let drain = &node.drain;
        let _beginning = drain.beginning.lock().await;
        if let Some(running) = drain.job().filter(|job| !job.is_over()) {
            if asked.bytes_per_second > 0 {
                running.pace.set(asked.bytes_per_second);
            }
            return Ok(running);
        }
        if node.phase() != Phase::Serving {
            return Err(NoDrain::Stopping);
        }
        let job = Arc::new(Job::new(node, asked)?);
        job.greet().await?;
        *drain.job.lock() = Some(Arc::clone(&job));
        drain.duty.send_replace(Duty::Draining);
        tracing::info!(members = job.targets.len(), pages = job.progress.totals().0, "draining");
        tokio::spawn(Arc::clone(&job).run());
        Ok(job)
    }

    /// Ends the drain, and takes new pages again. Returns when no page is sent any more.
    pub(crate) async fn cancel(&self) -> Option<Arc<Job>> {
        let _beginning = self.beginning.lock().await;
        let job = self.job();
        if let Some(job) = &job {
            job.cancelled.send_replace(true);
            job.wait_over().await;
        }
        if self.duty() != Duty::Serving {
            self.duty.send_replace(Duty::Serving);
            tracing::info!("drain cancelled; new pages are taken again");
        }
        job
    }
}

/// One drain.
pub(crate) struct Job {
    node: Arc<Node>,
    /// The members as routing sees them, in the order of `targets`.
    nodes: Vec<route::Node>,
    targets: Vec<Target>,
    copies: usize,
    pace: Pace,
    settled: Settled,
    pub(crate) progress: Progress,
    cancelled: watch::Sender<bool>,
    over: watch::Sender<bool>,
}

impl Job {
    fn new(node: &Arc<Node>, asked: Asked) -> Result<Self, NoDrain> {
        let nodes: Vec<_> =
            asked.members.iter().map(|member| route::Node::new(member.id.as_str(), member.weight)).collect();
        let places = nodes.iter().filter(|node| node.weight > 0).count();
        if places == 0 {
            return Err(NoDrain::NoWeight);
        }
        let ids = asked.members.iter().map(|member| member.id.clone()).collect();
        let tls = secure::open(&node.config.tls)?;
        let targets =
            asked.members.into_iter().map(|member| Target::new(member, node, tls.as_ref())).collect();
        let spaces = node.engine.spaces();
        let held = spaces
            .iter()
            .map(|space| space.stats())
            .fold((0, 0), |(pages, bytes), stats| (pages + stats.pages, bytes + stats.bytes));
        Ok(Self {
            node: Arc::clone(node),
            nodes,
            targets,
            copies: asked.copies.clamp(1, places),
            pace: Pace::new(asked.bytes_per_second),
            settled: Settled::default(),
            progress: Progress::new(held, ids),
            cancelled: watch::Sender::new(false),
            over: watch::Sender::new(false),
        })
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Resolves when it has ended.
    pub(crate) async fn wait_over(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let mut over = self.over.subscribe();
        let _over = over.wait_for(|over| *over).await;
    }

    /// What an operator sees.
    pub(crate) fn view(&self) -> v1::DrainProgress {
        let mut view = self.progress.view();
        view.set_state(self.node.state());
        view.done = self.is_over();
        if view.done {
            view.left_ms = 0;
        }
        view
    }

    /// Looks at every member: one that is this server would seem to have every page already.
    async fn greet(&self) -> Result<(), NoDrain> {
        let mut asked = JoinSet::new();
        for target in &self.targets {
            let (target, incarnation) = (target.clone(), self.node.incarnation);
            asked.spawn(async move {
                let answer = target.greet().await;
                let itself = answer.as_ref().is_ok_and(|theirs| *theirs == incarnation);
                (target.id().to_owned(), itself, answer.err())
            });
        }
        let mut failures = Vec::new();
        while let Some(Ok((id, itself, error))) = asked.join_next().await {
            if itself {
                return Err(NoDrain::Itself(id));
            }
            failures.extend(error.map(|error| format!("{id}: {error}")));
        }
        if failures.len() == self.targets.len() {
            failures.extend(secure::hint(&self.node.config.tls));
            return Err(NoDrain::NobodyAnswers(failures.join("; ")));
        }
        for failure in failures {
            tracing::warn!(failure, "a member does not answer; its pages go to the next in their order");
        }
        Ok(())
    }

    async fn run(self: Arc<Self>) {
        let mut cancelled = self.cancelled.subscribe();
        let mut phases = self.node.phases();
        let error = tokio::select! {
            biased;
            _cancelled = cancelled.wait_for(|cancelled| *cancelled) => Some("it was cancelled".to_owned()),
            _stopping = phases.wait_for(|phase| *phase != Phase::Serving) => Some("the server is stopping".to_owned()),
            error = self.all_pages() => error,
        };
        match &error {
            None => {
                self.node.drain.duty.send_replace(Duty::Drained);
                let view = self.progress.view();
                tracing::info!(moved = view.moved_pages, existing = view.existing_pages, "drained");
            }
            Some(error) => tracing::warn!(error, "the drain ended before all pages were copied"),
        }
        self.progress.ended(error);
        self.over.send_replace(true);
    }

    /// Goes through all pages until none is lost, or it is no use. Returns what is wrong then.
    async fn all_pages(self: &Arc<Self>) -> Option<String> {
        let most = Duration::from_millis(self.node.limits.request_ms_max.into()) * 2;
        if timeout(most, self.node.in_flight.wait_earlier()).await.is_err() {
            tracing::debug!(
                "requests outlive their deadline; pages that they bring are found by the last scan"
            );
        }
        let begun_ms = self.node.clock.now_ms();
        for pass in 0..PASSES {
            if pass > 0 {
                sleep(PASS_PAUSE * pass).await;
                self.progress.forget_lost();
                self.settled.forget_lost();
            }
            for class in scan::classes() {
                let again = pass > 0 || (class == Pass::Again && self.settled.is_full());
                self.one_class(scan::Scan { class, begun_ms }, again).await;
            }
            if self.progress.lost() == 0 {
                return None;
            }
        }
        let lost = self.progress.lost();
        let metrics = &self.node.metrics;
        Metrics::add(&metrics.drain_lost, lost);
        Some(format!(
            "{lost} pages could not be copied; see the reasons, then drain again, or cancel, or stop the server without them"
        ))
    }

    /// Sends the pages of one class. `again` if they may have been looked at before.
    async fn one_class(self: &Arc<Self>, scan: scan::Scan, again: bool) {
        let (out, chunks) = mpsc::channel(CHUNKS);
        let node = Arc::clone(&self.node);
        // Ends when nobody reads any more.
        let scan = move || scan.run(&node.engine, &out);
        #[cfg(feature = "sim")]
        if self.node.net.get().is_some() {
            // There are no threads, and no more pages than fit one chunk.
            scan();
            // With it goes the sender, whose end is the end of the chunks.
            drop(scan);
            return self.send_all(chunks, again).await;
        }
        tokio::task::spawn_blocking(scan);
        self.send_all(chunks, again).await;
    }

    /// Sends pages as they come out of `chunks`.
    async fn send_all(self: &Arc<Self>, mut chunks: mpsc::Receiver<Vec<Found>>, again: bool) {
        let places = Arc::new(Semaphore::new(BATCHES));
        let mut sending = JoinSet::new();
        while let Some(chunk) = chunks.recv().await {
            for batch in self.batches(chunk) {
                let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
                let job = Arc::clone(self);
                sending.spawn(async move {
                    batch.send(&job, again).await;
                    drop(place);
                });
                while sending.try_join_next().is_some() {}
            }
        }
        while sending.join_next().await.is_some() {}
    }

    /// Groups pages by space, in their order, into batches that are small enough.
    fn batches(&self, chunk: Vec<Found>) -> Vec<Batch> {
        let bytes_max = self.pace.burst_bytes().min(BATCH_BYTES);
        let (mut open, mut full): (Vec<Batch>, Vec<Batch>) = (Vec::new(), Vec::new());
        for found in chunk.into_iter().filter(|found| !self.settled.has(found.digest)) {
            let at = open.iter().position(|batch| batch.space.id() == found.space.id());
            let at = at.unwrap_or_else(|| {
                open.push(Batch::new(Arc::clone(&found.space)));
                open.len() - 1
            });
            let batch = &mut open[at];
            let order = route::order(&self.nodes, found.digest);
            batch.push(Item::new(found, order));
            if batch.bytes() >= bytes_max || batch.len() >= BATCH_PAGES {
                full.push(open.remove(at));
            }
        }
        full.append(&mut open);
        full
    }
}
