//! The clients of a run: what they do, and what they check about every answer.

use crate::book::{PAGES, Page, SPACES};
use crate::cluster::{Phase, Shared};
use crate::net::Port;
use crate::rng::Rng;
use crate::source::Simulated;
use memkv_client::{
    AuthKey, Client, Config, ErrorKind, PageOutcome, ServerState, Space, SpaceDescription, Transport,
};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Workers of one client.
const WORKERS: u64 = 3;
/// By how much an answer may be late: a step of simulated time and what the runtime makes of it.
const LATE: Duration = Duration::from_millis(20);
/// How many looks a get of unknown length takes at most.
const LOOKS: u32 = 4;
/// How often a page that must be there is read again in the end, and the pause before each time. Reads that find no room in
/// memory are not counted: they say nothing of the drive, and in a memory of few chunks two clients that read pages of many
/// sizes can take each other's room for long.
const LAST_READS: u32 = 6;
const LAST_READS_MAX: u32 = 100;
const LAST_PAUSE: Duration = Duration::from_millis(100);
/// Connections that a client keeps to a server without being asked for more. An op that is given up costs its connection,
/// and without any an op does not wait for a connect.
const CONNECTIONS: usize = 2;
/// How long a new connection takes at most where nothing is wrong.
const RECONNECT: Duration = Duration::from_millis(300);

/// The cluster's key.
pub(crate) fn key() -> AuthKey {
    AuthKey::from_bytes([7; 32])
}

/// One client host, from its start to the end of the run.
pub(crate) async fn run(shared: Arc<Shared>, me: usize) {
    let (client, spaces) = connect(&shared, me).await;
    client.follow_members(Box::new(Simulated::new(shared.clone(), me))).await;
    let mut workers = Vec::new();
    for worker in 0..WORKERS {
        let rng = Rng::new(shared.seed, 1000 + me as u64 * 10 + worker);
        let worker = Worker { shared: shared.clone(), spaces: spaces.clone(), me, rng, missed: Vec::new() };
        workers.push(tokio::spawn(worker.run()));
    }
    for worker in workers {
        // A worker that panicked has said so, and that is a failure by itself.
        drop(worker.await);
    }
    while shared.phase() == Phase::Disturbed {
        sleep(Duration::from_millis(10)).await;
    }
    settle(&shared, &client, me).await;
    let rng = Rng::new(shared.seed, 77);
    let mut last = Worker { shared: shared.clone(), spaces: spaces.clone(), me, rng, missed: Vec::new() };
    last.read_all().await;
    shared.settled.fetch_add(1, Relaxed);
    // Everybody reads before anybody leaves.
    while shared.phase() != Phase::Closing {
        sleep(Duration::from_millis(10)).await;
    }
    drop((last, spaces));
    client.close().await;
    shared.closed.fetch_add(1, Relaxed);
    shared.trace.note("closed");
}

async fn connect(shared: &Arc<Shared>, me: usize) -> (Client, Vec<Space>) {
    let config = Config {
        servers: shared.members.lock().1.iter().map(|(member, _)| member.clone()).collect(),
        auth_key: Some(key()),
        transport: if shared.plan.grpc[me] { Transport::Grpc } else { Transport::Tcp },
        connect_timeout: Duration::from_millis(800),
        op_timeout: Duration::from_millis(shared.plan.op_timeout_ms),
        client_name: format!("c{me}"),
        replicas: shared.plan.replicas,
        member_ramp: Duration::from_millis(shared.plan.member_ramp_ms),
        member_grace: Duration::from_millis(shared.plan.member_grace_ms),
        ..Config::default()
    };
    // Servers were there first.
    sleep(Duration::from_millis(10)).await;
    let port = Arc::new(Port { net: shared.net.clone(), host: format!("c{me}") });
    loop {
        match Client::connect_simulated(config.clone(), port.clone()).await {
            Ok(client) => {
                let mut spaces = Vec::new();
                while spaces.len() < SPACES {
                    let name = format!("space-{}", spaces.len());
                    let description = SpaceDescription::named(&name).expect("a short name");
                    match client.space(description).await {
                        Ok(space) => spaces.push(space),
                        Err(error) => tell_odd(shared, "open space", error.kind(), &error.to_string()),
                    }
                    sleep(Duration::from_millis(5)).await;
                }
                return (client, spaces);
            }
            Err(error) => tell_odd(shared, "connect", error.kind(), &error.to_string()),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// An error of a whole call: only clocks that are far off explain one.
fn tell_odd(shared: &Shared, what: &str, kind: ErrorKind, text: &str) {
    let explained = kind == ErrorKind::Unauthenticated && !shared.plan.is_calm();
    if explained {
        shared.trace.note(&format!("{what}: {text}"));
    } else {
        shared.trace.wrong(format!("{what} failed: {text}"));
    }
}

/// Waits until the client sees every member ready.
async fn settle(shared: &Shared, client: &Client, me: usize) {
    let until = Instant::now() + Duration::from_secs(25);
    loop {
        let wanted: Vec<_> = shared.members.lock().1.iter().map(|(member, _)| member.id.clone()).collect();
        let seen = client.servers();
        let ids: Vec<_> = seen.iter().map(|server| server.address.id.clone()).collect();
        if ids == wanted && seen.iter().all(|server| server.state == ServerState::Ready) {
            shared.trace.note("settled");
            return;
        }
        if Instant::now() > until {
            let states: Vec<_> =
                seen.iter().map(|server| (&server.address.id, &server.state, &server.last_error)).collect();
            return shared.trace.wrong(format!("c{me} does not see the cluster as it is: {states:?}"));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// One of a client's tasks.
struct Worker {
    shared: Arc<Shared>,
    spaces: Vec<Space>,
    me: usize,
    rng: Rng,
    /// Pages that had to be there and were not.
    missed: Vec<Page>,
}

impl Worker {
    async fn run(mut self) {
        while self.shared.phase() == Phase::Disturbed {
            self.step().await;
            let pause = if self.rng.permille(800) { self.rng.range(1, 12) } else { self.rng.range(12, 120) };
            sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Some neighbours in a space.
    fn some(&mut self) -> Vec<Page> {
        let space = self.rng.range(0, SPACES as u64) as usize;
        // Some pages are asked for more often than others.
        let most = if self.rng.permille(600) { 20 } else { PAGES };
        let from = self.rng.range(0, most as u64) as usize;
        let count = self.rng.range(1, 9) as usize;
        (from..(from + count).min(PAGES)).map(|number| Page { space, number }).collect()
    }

    async fn step(&mut self) {
        let pages = self.some();
        match self.rng.range(0, 100) {
            0..34 => self.put(&pages, None).await,
            34..70 => self.get(&pages, None).await,
            70..75 => self.get_one(pages[0]).await,
            75..83 => self.exists(&pages).await,
            83..87 => self.touch(&pages).await,
            87..94 => self.delete(&pages).await,
            94..97 => {
                let patience = self.rng.range(1, 40);
                self.get(&pages, Some(patience)).await;
            }
            97..100 if !self.shared.plan.is_calm() => {
                let patience = self.rng.range(1, 40);
                self.put(&pages, Some(patience)).await;
            }
            _ => self.odd_length(pages[0]).await,
        }
    }

    fn space(&self, pages: &[Page]) -> Space {
        self.spaces[pages[0].space].at_position(pages[0].position())
    }

    /// Notes what an op came to, and whether it kept its deadline.
    fn tell(&self, what: &str, pages: &[Page], outcome: &dyn std::fmt::Debug, begun: Instant, looks: u32) {
        let took = begun.elapsed();
        let (first, count) = (pages[0], pages.len());
        let text = format!(
            "{what} {}/{}+{count} in {} us: {outcome:?}",
            first.space,
            first.number,
            took.as_micros()
        );
        self.shared.trace.note(&text);
        self.shared.ops.fetch_add(1, Relaxed);
        if took > Duration::from_millis(self.shared.plan.op_timeout_ms) * looks + LATE {
            self.shared.trace.wrong(format!("c{} was kept past its deadline: {text}", self.me));
        }
    }

    /// Notes that an op was given up.
    fn give_up(&self, what: &str, pages: &[Page], begun: Instant) {
        self.shared.given_up[self.me].lock().push(Instant::now());
        self.tell(what, pages, &"", begun, 1);
    }

    /// Whether the client had just given up as many ops as it has connections when an op began, or did so since.
    fn gave_all_up(&self, begun: Instant) -> bool {
        let given_up = self.shared.given_up[self.me].lock();
        given_up.iter().rev().nth(CONNECTIONS - 1).is_some_and(|&moment| moment + RECONNECT >= begun)
    }

    /// In a calm run everything works.
    fn check_calm(&self, what: &str, page: Page, outcome: PageOutcome, begun: Instant) {
        use PageOutcome::{Busy, Corrupt, Denied, SizeMismatch, TimedOut, TooLarge, Unavailable};
        let plan = &self.shared.plan;
        let wrong = match outcome {
            Unavailable if self.gave_all_up(begun) => false,
            Unavailable | TimedOut | Busy => plan.is_calm() && outcome != Busy,
            Corrupt => !plan.flips(),
            // Credentials of calls have a time, and a server whose clock is far off takes none.
            Denied => !(plan.grpc[self.me] && plan.jumps()),
            TooLarge | SizeMismatch => true,
            PageOutcome::Hit | PageOutcome::Stored | PageOutcome::Exists | PageOutcome::Miss => false,
        };
        if wrong {
            self.shared.trace.wrong(format!("c{}: {what} of {page:?} came to {outcome:?}", self.me));
        }
    }

    /// Checks that the page could be there.
    fn check_hit(&self, page: Page, begun: u64) {
        self.shared.hits.fetch_add(1, Relaxed);
        let mut book = self.shared.book.lock();
        if !book.was_put(page) {
            self.shared.trace.wrong(format!("c{}: {page:?} was hit and nobody ever put it", self.me));
        }
        if let Some(text) = book.revived(page, begun) {
            self.shared.trace.note(&format!("revived: {text}"));
            self.shared.revived.lock().push(format!("c{}: {text}", self.me));
        }
    }

    fn check_miss(&mut self, page: Page, begun: u64) {
        let ended = self.shared.moment();
        let plan = &self.shared.plan;
        if (plan.is_calm() || plan.is_durable()) && self.shared.book.lock().must_be_there(page, begun, ended)
        {
            self.shared.lost.lock().push(format!("c{}: {page:?} was not found", self.me));
            self.missed.push(page);
        }
    }

    async fn put(&mut self, pages: &[Page], patience_ms: Option<u64>) {
        let (space, begun, began) = (self.space(pages), Instant::now(), self.shared.moment());
        let keys: Vec<_> = pages.iter().map(|page| page.key()).collect();
        let (values, puts): (Vec<_>, Vec<_>) = {
            let mut book = self.shared.book.lock();
            pages.iter().map(|page| (book.bytes(*page).to_vec(), book.begin_put(*page, began))).unzip()
        };
        let slices: Vec<_> = values.iter().map(Vec::as_slice).collect();
        let mut out = vec![PageOutcome::Unavailable; pages.len()];
        let op = space.put_from(&keys, &slices, &mut out);
        let Some(result) = patient(op, patience_ms).await else {
            return self.give_up("gave up a put", pages, begun);
        };
        self.tell("put", pages, &out, begun, 1);
        if let Err(error) = result {
            return self.shared.trace.wrong(format!("a put is an error: {error}"));
        }
        let ended = self.shared.moment();
        for ((page, put), outcome) in pages.iter().zip(puts).zip(out) {
            // That the page was there already says nothing of the drive that another put may still wait for.
            let promised = outcome == PageOutcome::Stored || !self.shared.plan.is_durable();
            if outcome.is_success() {
                self.shared.book.lock().end_put(*page, put, ended, promised);
            }
            self.check_calm("put", *page, outcome, begun);
        }
    }

    async fn get(&mut self, pages: &[Page], patience_ms: Option<u64>) {
        let (space, begun, began) = (self.space(pages), Instant::now(), self.shared.moment());
        let keys: Vec<_> = pages.iter().map(|page| page.key()).collect();
        let values: Vec<_> = pages.iter().map(|page| self.shared.book.lock().bytes(*page).to_vec()).collect();
        let mut rooms: Vec<_> = values.iter().map(|value| vec![0xEE; value.len()]).collect();
        let mut out = vec![PageOutcome::Unavailable; pages.len()];
        let mut slices: Vec<_> = rooms.iter_mut().map(Vec::as_mut_slice).collect();
        let op = space.get_into(&keys, &mut slices, &mut out);
        let Some(result) = patient(op, patience_ms).await else {
            return self.give_up("gave up a get", pages, begun);
        };
        self.tell("get", pages, &out, begun, 1);
        if let Err(error) = result {
            return self.shared.trace.wrong(format!("a get is an error: {error}"));
        }
        for (((page, outcome), room), value) in pages.iter().zip(out).zip(rooms).zip(values) {
            self.check_calm("get", *page, outcome, begun);
            match outcome {
                PageOutcome::Hit if room == value => self.check_hit(*page, began),
                PageOutcome::Hit => self.shared.trace.wrong(format!("c{}: WRONG BYTES of {page:?}", self.me)),
                PageOutcome::Miss => self.check_miss(*page, began),
                _ => {}
            }
        }
    }

    async fn get_one(&mut self, page: Page) {
        let (space, begun, began) = (self.space(&[page]), Instant::now(), self.shared.moment());
        let result = space.get(page.key().as_bytes()).await;
        let len = result.as_ref().ok().map(|found| found.as_ref().map(Vec::len));
        self.tell("look", &[page], &len, begun, LOOKS);
        if let Ok(Some(bytes)) = result {
            if bytes == self.shared.book.lock().bytes(page) {
                self.check_hit(page, began);
            } else {
                self.shared.trace.wrong(format!("c{}: WRONG BYTES of {page:?} by a look", self.me));
            }
        }
    }

    /// A get into room of another length never succeeds.
    async fn odd_length(&mut self, page: Page) {
        let (space, begun) = (self.space(&[page]), Instant::now());
        let mut room = vec![0; self.shared.book.lock().bytes(page).len() + 1];
        let mut out = [PageOutcome::Unavailable];
        let result = space.get_into(&[page.key()], &mut [&mut room], &mut out).await;
        self.tell("odd get", &[page], &out, begun, 1);
        if result.is_err() || out[0] == PageOutcome::Hit {
            self.shared.trace.wrong(format!("c{}: a get of the wrong length: {result:?}, {out:?}", self.me));
        }
    }

    async fn exists(&mut self, pages: &[Page]) {
        let (space, begun, began) = (self.space(pages), Instant::now(), self.shared.moment());
        let keys: Vec<_> = pages.iter().map(|page| page.key()).collect();
        let mut found = vec![false; pages.len()];
        if self.rng.permille(400) {
            let run = space.exists_prefix(&keys).await;
            self.tell("prefix", pages, &run.as_ref().ok(), begun, 1);
            found.iter_mut().take(run.unwrap_or(0)).for_each(|found| *found = true);
        } else {
            let report = space.exists(&keys, &mut found).await;
            self.tell("exists", pages, &found, begun, 1);
            if report.is_err() {
                self.shared.trace.wrong(format!("an exists is an error: {report:?}"));
            }
        }
        for (page, _) in pages.iter().zip(found).filter(|(_, found)| *found) {
            self.check_hit(*page, began);
        }
    }

    async fn touch(&mut self, pages: &[Page]) {
        let (space, begun, began) = (self.space(pages), Instant::now(), self.shared.moment());
        let keys: Vec<_> = pages.iter().map(|page| page.key()).collect();
        let mut found = vec![false; pages.len()];
        let report = space.touch(&keys, &mut found).await;
        self.tell("touch", pages, &found, begun, 1);
        if report.is_err() {
            self.shared.trace.wrong(format!("a touch is an error: {report:?}"));
        }
        for (page, _) in pages.iter().zip(found).filter(|(_, found)| *found) {
            self.check_hit(*page, began);
        }
    }

    async fn delete(&mut self, pages: &[Page]) {
        let (space, begun, began) = (self.space(pages), Instant::now(), self.shared.moment());
        let keys: Vec<_> = pages.iter().map(|page| page.key()).collect();
        let mut gone = vec![false; pages.len()];
        let removals: Vec<_> =
            pages.iter().map(|page| self.shared.book.lock().begin_removal(*page, began)).collect();
        let report = space.delete(&keys, &mut gone).await;
        self.tell("delete", pages, &gone, begun, 1);
        let Ok(report) = report else {
            return self.shared.trace.wrong(format!("a delete is an error: {report:?}"));
        };
        let ended = self.shared.moment();
        for ((page, gone), removal) in pages.iter().zip(gone).zip(removals) {
            // Without a failure, a page that was not there is known not to be there.
            if gone || report.failed == 0 {
                self.shared.book.lock().end_removal(*page, removal, ended);
            }
        }
    }

    /// Reads every page once, and again what must be there and was not.
    async fn read_all(&mut self) {
        for space in 0..SPACES {
            for from in (0..PAGES).step_by(16) {
                let pages: Vec<_> = (from..from + 16).map(|number| Page { space, number }).collect();
                self.get(&pages, None).await;
            }
        }
        let (mut left, mut most) =
            (if self.shared.plan.is_durable() { LAST_READS } else { 0 }, LAST_READS_MAX);
        while left > 0 && most > 0 && !self.missed.is_empty() {
            let before = self.shared.without_room();
            for page in std::mem::take(&mut self.missed) {
                sleep(LAST_PAUSE).await;
                self.get(&[page], None).await;
            }
            left -= u32::from(self.shared.without_room() == before);
            most -= 1;
        }
        let gone = self.missed.iter().map(|page| format!("c{}: {page:?} is lost", self.me));
        self.shared.gone.lock().extend(gone);
    }
}

/// An op's result; `None` if the caller's patience ended first, and the op was dropped.
async fn patient<T>(op: impl Future<Output = T>, patience_ms: Option<u64>) -> Option<T> {
    match patience_ms {
        Some(ms) => timeout(Duration::from_millis(ms), op).await.ok(),
        None => Some(op.await),
    }
}
