//! All besiegers of one kind: a process of its own, as the coordinator sees it and as it is.

use super::besieger::{Besieger, Kind, Plan};
use super::door::{self, Session};
use anyhow::{Context as _, bail};
use memkv_transport::auth::AuthKey;
use serde::{Deserialize, Serialize};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Connections of one session; a server takes 64 by default.
const OF_SESSION: usize = 64;
/// Sessions of one gRPC connection; a server takes 256 streams.
const OF_CHANNEL: usize = 200;
/// A second is done in so many parts: hosts of their own would not act at the same moment.
const PARTS: usize = 500;

/// What to do.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) address: SocketAddr,
    /// The cluster's key, as hex.
    pub(crate) key: String,
    pub(crate) kind: Kind,
    pub(crate) connections: usize,
    /// Connections a second in the place of those that were closed.
    pub(crate) redials: usize,
    /// Keys of pages that are there, and their space, as hex.
    pub(crate) pages: Vec<String>,
    pub(crate) space: String,
}

/// What became of them.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// Connections that the server had when all had come.
    pub(crate) at_begin: usize,
    /// Connections that it has closed since then.
    pub(crate) closed: usize,
}

/// The process; it is killed with this handle.
pub(crate) struct Crew {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Crew {
    /// Starts it, and waits until all of its connections have come.
    ///
    /// # Errors
    ///
    /// If it cannot start, or says why it cannot go on.
    pub(crate) fn start(order: &Order) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        let mut child = command.arg("besiegers").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut orders = child.stdin.take().context("write to the besiegers")?;
        let answers = BufReader::new(child.stdout.take().context("read from the besiegers")?);
        writeln!(orders, "{}", serde_json::to_string(order)?).context("give the besiegers their order")?;
        let mut crew = Self { child, orders: Some(orders), answers };
        crew.answer()?;
        Ok(crew)
    }

    fn answer(&mut self) -> anyhow::Result<Standing> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("hear the besiegers")?;
        serde_json::from_str(&line).context("the besiegers gave up; they said why above")
    }

    /// Ends it, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// If it failed meanwhile.
    pub(crate) fn end(mut self) -> anyhow::Result<Standing> {
        drop(self.orders.take());
        let standing = self.answer();
        self.child.wait().context("wait for the besiegers")?;
        standing
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Runs the process: an order on stdin, then answers on stdout until stdin ends.
///
/// # Errors
///
/// If the server cannot be reached at all.
pub(crate) fn serve() -> anyhow::Result<()> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("hear the order")?;
    let order: Order = serde_json::from_str(&line).context("understand the order")?;
    // Elsewhere it would have a processor of its own. A process that may not be nice is only less so.
    let _nice = rustix::process::nice(19);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rest = Vec::new();
            let _end = std::io::stdin().read_to_end(&mut rest);
            over.store(true, SeqCst);
        });
        let done = besiege(order, &over);
        if let Err(error) = &done {
            eprintln!("besiegers: {error:#}");
            // The other thread waits for an end that comes only when this process goes.
            std::process::exit(1);
        }
        done
    })
}

fn besiege(order: Order, over: &AtomicBool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let sessions = sessions(&runtime, &order)?;
    let plan = Plan::new(order, sessions)?;
    let kind = plan.order.kind;
    let mut all: Vec<Option<Besieger>> = Vec::with_capacity(plan.order.connections);
    let mut failures = 0;
    let first = if kind.is_short() { 0 } else { plan.order.connections };
    for number in 0..first {
        let one = Besieger::open(&plan, number);
        if let Err(error) = &one {
            failures += 1;
            // Who does not read is refused after a while, and that is as it should be.
            let may_fail = !kind.has_key() || kind == Kind::StoppedReader;
            if !may_fail && failures > plan.order.connections / 10 {
                bail!("the server takes no more: {error:#}");
            }
        }
        all.push(one.ok());
        // What the server closes meanwhile comes back later.
        if number % 512 == 511 {
            all.iter_mut().for_each(|one| prune(one, kind));
        }
    }
    all.resize_with(plan.order.connections, || None);
    all.iter_mut().for_each(|one| prune(one, kind));
    let mut standing = Standing { at_begin: all.iter().flatten().count(), closed: 0 };
    say(standing)?;
    let begun = Instant::now();
    let mut opened = 0;
    for part in 0.. {
        if over.load(SeqCst) {
            break;
        }
        for one in all.iter_mut().skip(part % PARTS).step_by(PARTS) {
            if one.as_mut().is_some_and(|besieger| !besieger.go_on(kind)) {
                *one = None;
                standing.closed += 1;
            }
        }
        let due = plan.order.redials * (part + 1) / PARTS;
        for (number, one) in all.iter_mut().enumerate().filter(|(_, one)| one.is_none()) {
            if opened >= due {
                break;
            }
            opened += 1;
            *one = Besieger::open(&plan, number + opened).ok();
            if kind.is_short() {
                *one = None;
                standing.closed += 1;
            }
        }
        // What was not needed is not saved up for later.
        opened = due;
        let next = begun + Duration::from_secs(1) * u32::try_from(part + 1)? / u32::try_from(PARTS)?;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    drop(all);
    say(standing)
}

/// Lets go of one that the server has closed, if it says nothing by itself.
fn prune(one: &mut Option<Besieger>, kind: Kind) {
    let talks = matches!(kind, Kind::SlowHeader | Kind::SlowWriter);
    if !talks && one.as_mut().is_some_and(|besieger| !besieger.go_on(kind)) {
        *one = None;
    }
}

fn say(standing: Standing) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&standing)?)?;
    out.flush().context("answer")
}

/// As many sessions as the connections need; one for those who fail to join it.
fn sessions(runtime: &tokio::runtime::Runtime, order: &Order) -> anyhow::Result<Vec<Session>> {
    let count = match order.kind {
        kind if kind.has_key() => order.connections.div_ceil(OF_SESSION) + 1,
        kind if kind.is_short() => 1,
        _ => 0,
    };
    let key = AuthKey::from_hex(&order.key).context("read the key")?;
    let mut sessions = Vec::with_capacity(count);
    runtime.block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", order.address))?;
        let mut channel = None;
        for number in 0..count {
            if number % OF_CHANNEL == 0 {
                channel = Some(endpoint.connect().await.context("connect for sessions")?);
            }
            let channel = channel.clone().context("there is a channel")?;
            sessions.push(door::open(channel, &key).await.context("open a session")?);
        }
        Ok(sessions)
    })
}
