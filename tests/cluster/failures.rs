//! One bad server among three: dead, unreachable, frozen, slow, lying. Its keys are misses within the deadline, and after
//! the breaker opened at once and without a word to it; the others' keys hit all the while, in the same batches.

use crate::common::{PATIENCE, assert_all, assert_hits, exists, get, put};
use crate::names::{Names, a, srv};
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, PageOutcome, ServerState, ServerStats, SpaceDescription, Transport};
use memkv_tests::daemon::{Daemon, KEY, Setup};
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::proxy::{Faults, Proxy, Way};
use memkv_tests::wait_for;
use memkv_tests::wire::{DataConn, offer_frame};
use memkv_transport::frame::Code;
use std::net::TcpListener;
use std::time::{Duration, Instant};

const LEN: usize = 64 << 10;
const OP_TIMEOUT: Duration = Duration::from_secs(2);
/// What a busy machine may add to a deadline before a test calls it broken.
const SLACK: Duration = Duration::from_secs(3);
/// Batches after which a server that answers none of them must be suspected.
const BATCHES: usize = 20;

/// Three servers; the first is behind a proxy.
struct Rig {
    daemons: [Daemon; 3],
    proxy: Proxy,
    client: Client,
    space: Space,
    bad: Vec<Vec<u8>>,
    good: Vec<Vec<u8>>,
}

fn config(servers: &str) -> memkv_client::ConfigBuilder {
    let config = Config::builder().without_environment().servers(servers).auth_key_hex(KEY);
    config.transport(Transport::Tcp).op_timeout(OP_TIMEOUT).connect_timeout(Duration::from_secs(2))
}

impl Rig {
    /// All pages are stored.
    fn start(change: impl Fn(memkv_client::ConfigBuilder) -> memkv_client::ConfigBuilder) -> Self {
        let daemons = std::array::from_fn(|_| Daemon::start().unwrap());
        let proxy = Proxy::start(daemons[0].addr()).unwrap();
        let servers = format!("bad={},b={},c={}", proxy.addr(), daemons[1].addr(), daemons[2].addr());
        let client = Client::connect(change(config(&servers)).build().unwrap()).unwrap();
        let space = client.space(SpaceDescription::named("failures").unwrap()).unwrap();
        let owned = |key: &Vec<u8>| client.route(space.id(), key)[0].server.id == "bad";
        let (bad, good): (Vec<_>, Vec<_>) = keys("page", 45).into_iter().partition(owned);
        assert!(bad.len() >= 8 && good.len() >= 20);
        let rig = Self { daemons, proxy, client, space, bad, good };
        assert_all(&put(&rig.space, &rig.bad, &pages(&rig.bad, LEN)), PageOutcome::Stored);
        assert_all(&put(&rig.space, &rig.good, &pages(&rig.good, LEN)), PageOutcome::Stored);
        rig
    }

    fn all(&self) -> Vec<Vec<u8>> {
        [&self.bad[..], &self.good[..]].concat()
    }

    fn stats(&self) -> ServerStats {
        self.client.stats().servers.into_iter().find(|server| server.id == "bad").unwrap()
    }

    fn state(&self) -> ServerState {
        self.client.servers().into_iter().find(|server| server.address.id == "bad").unwrap().state
    }

    fn is_ready(&self) -> bool {
        self.state() == ServerState::Ready
    }

    /// A batch over all servers: in time, the others' pages whole, and never a wrong byte. Returns the outcomes of the bad
    /// server's pages.
    fn batch(&self) -> Vec<PageOutcome> {
        let all = self.all();
        let start = Instant::now();
        let got = get(&self.space, &all, LEN);
        assert!(start.elapsed() < OP_TIMEOUT + SLACK, "a batch took {:?}", start.elapsed());
        for (key, (outcome, bytes)) in all.iter().zip(&got) {
            assert!(*outcome != PageOutcome::Hit || *bytes == page(key, LEN), "wrong bytes");
        }
        let (bad, good) = got.split_at(self.bad.len());
        let good: Vec<_> = good.iter().map(|(outcome, _)| *outcome).collect();
        assert_all(&good, PageOutcome::Hit);
        bad.iter().map(|(outcome, _)| *outcome).collect()
    }

    /// Batches until the server is suspected; the outcomes of its pages meanwhile.
    fn until_suspected(&self) -> Vec<PageOutcome> {
        let mut outcomes = Vec::new();
        for _ in 0..BATCHES {
            outcomes.extend(self.batch());
            if !self.is_ready() {
                return outcomes;
            }
        }
        panic!("{BATCHES} batches did not make the server suspected: {:?}", self.stats());
    }

    /// While the server is suspected, calls for its keys are over at once: they are refused, not tried.
    fn refused_without_a_word(&self) {
        let mut seen = 0;
        wait_for("calls to a suspected server", PATIENCE, || {
            let (before, suspected) = (self.stats(), !self.is_ready());
            let outcomes: Vec<_> = get(&self.space, &self.bad, LEN).into_iter().map(|(o, _)| o).collect();
            let after = self.stats();
            // A probe that came in between may have let one in.
            if suspected && !self.is_ready() && before.breaker_opened == after.breaker_opened {
                assert_all(&outcomes, PageOutcome::Unavailable);
                let tried = |stats: &ServerStats| stats.completed + stats.timeouts + stats.broken;
                assert_eq!(tried(&before), tried(&after), "{after:?}");
                assert_eq!(before.refused + self.bad.len() as u64, after.refused);
                seen += 1;
            }
            (seen >= 5).then_some(())
        })
        .unwrap();
    }

    /// The fault is over: everything hits again by itself.
    fn recovers(&self) {
        wait_for("its pages hit again", PATIENCE, || {
            self.batch().iter().all(|outcome| *outcome == PageOutcome::Hit).then_some(())
        })
        .unwrap();
        for _ in 0..10 {
            assert_all(&self.batch(), PageOutcome::Hit);
        }
    }

    fn end(self) {
        self.client.close();
    }
}

fn none_hit(outcomes: &[PageOutcome]) {
    assert!(outcomes.iter().all(|outcome| !outcome.is_success()), "{outcomes:?}");
}

#[test]
fn a_dead_server() {
    let mut rig = Rig::start(|config| config);
    rig.daemons[0].kill().unwrap();
    none_hit(&rig.until_suspected());
    rig.refused_without_a_word();
    rig.daemons[0].restart().unwrap();
    let (space, bad) = (&rig.space, &rig.bad);
    wait_for("it takes pages again", PATIENCE, || {
        put(space, bad, &pages(bad, LEN)).iter().all(|outcome| outcome.is_success()).then_some(())
    })
    .unwrap();
    rig.recovers();
    rig.end();
}

#[test]
fn an_unreachable_server() {
    let rig = Rig::start(|config| config);
    rig.proxy.set(Faults { dark: true, ..Faults::default() });
    none_hit(&rig.until_suspected());
    rig.refused_without_a_word();
    rig.proxy.set(Faults::default());
    rig.recovers();
    rig.end();
}

#[test]
fn a_frozen_server() {
    let rig = Rig::start(|config| config);
    rig.daemons[0].freeze().unwrap();
    none_hit(&rig.until_suspected());
    rig.refused_without_a_word();
    rig.daemons[0].thaw().unwrap();
    rig.recovers();
    rig.end();
}

/// It answers small requests in time all the while, which must not excuse it.
#[test]
fn a_slow_server() {
    let rig = Rig::start(|config| config);
    rig.proxy.set(Faults { rate: Some((Way::Down, 192 << 10)), ..Faults::default() });
    let mut outcomes = rig.batch();
    while rig.is_ready() && outcomes.len() < BATCHES * rig.bad.len() {
        assert!(exists(&rig.space, &rig.bad[..1])[0], "exists fails");
        outcomes.extend(rig.batch());
    }
    assert!(
        matches!(rig.state(), ServerState::Suspect { reason } if reason.contains("slow")),
        "{:?}",
        rig.state()
    );
    let hits = outcomes.iter().filter(|outcome| **outcome == PageOutcome::Hit).count();
    assert!(hits > 0, "what had come before the deadline was thrown away: {outcomes:?}");
    assert!(outcomes.contains(&PageOutcome::TimedOut));
    rig.refused_without_a_word();
    // It does not come back by answering probes: of many batches few are kept waiting.
    let opened = rig.stats().breaker_opened;
    for _ in 0..200 {
        rig.batch();
    }
    let after = rig.stats();
    assert!(after.breaker_opened - opened < 20, "{after:?}");
    rig.proxy.set(Faults::default());
    rig.recovers();
    rig.end();
}

#[test]
fn a_lying_server() {
    let rig = Rig::start(|config| config);
    rig.proxy.set(Faults { lie: true, ..Faults::default() });
    let outcomes = rig.until_suspected();
    assert!(outcomes.contains(&PageOutcome::Corrupt));
    assert!(
        matches!(rig.state(), ServerState::Suspect { reason } if reason.contains("corrupt")),
        "{:?}",
        rig.state()
    );
    let stats = rig.stats();
    assert!(stats.corrupt >= 8 && stats.corrupt == rig.client.stats().corrupt, "{stats:?}");
    assert!(rig.proxy.flips() >= 8);
    // It is left alone for seconds; not a byte goes to it.
    let sent = rig.proxy.passed(Way::Up);
    rig.refused_without_a_word();
    assert_eq!(sent, rig.proxy.passed(Way::Up));
    rig.proxy.set(Faults::default());
    rig.recovers();
    rig.end();
}

/// Loads go on while stores to the same server are too slow, which are shed.
#[test]
fn a_server_too_slow_for_stores() {
    let rig = Rig::start(|config| config.connections_per_server(3));
    rig.proxy.set(Faults { rate: Some((Way::Up, 16 << 10)), ..Faults::default() });
    let new: Vec<_> = keys("new", 300)
        .into_iter()
        .filter(|key| rig.client.route(rig.space.id(), key)[0].server.id == "bad")
        .collect();
    std::thread::scope(|scope| {
        // More stores than there are connections.
        let storing: Vec<_> = new
            .chunks(16)
            .take(4)
            .map(|some| scope.spawn(|| put(&rig.space, some, &pages(some, LEN))))
            .collect();
        while !storing.iter().all(|thread| thread.is_finished()) {
            assert!(get(&rig.space, &rig.bad[..1], LEN)[0].0 == PageOutcome::Hit, "loads wait for stores");
        }
        for thread in storing {
            let outcomes = thread.join().unwrap();
            assert!(outcomes.iter().any(|outcome| !outcome.is_success()), "{outcomes:?}");
        }
    });
    wait_for("stores are shed", PATIENCE, || {
        put(&rig.space, &new[64..80], &pages(&new[64..80], LEN)).contains(&PageOutcome::Busy).then_some(())
    })
    .unwrap();
    let stats = rig.stats();
    assert!(stats.stores_closed > 0 && stats.shed_slow > 0 && stats.breaker_opened == 0, "{stats:?}");
    assert_eq!(rig.client.stats().shed_slow, stats.shed_slow);
    assert_hits(&rig.space, &rig.bad[..2], LEN);
    rig.proxy.set(Faults::default());
    wait_for("it takes pages again", PATIENCE, || {
        put(&rig.space, &new, &pages(&new, LEN)).iter().all(|outcome| outcome.is_success()).then_some(())
    })
    .unwrap();
    rig.end();
}

#[test]
fn stores_are_shed_under_backlog_and_loads_are_not() {
    let rig = Rig::start(|config| config.store_backlog(1 << 20));
    let owned = |key: &Vec<u8>| rig.client.route(rig.space.id(), key)[0].server.id == "bad";
    let new: Vec<_> = keys("new", 200).into_iter().filter(owned).take(32).collect();
    let (first, second) = new.split_at(16);
    rig.proxy.set(Faults { rate: Some((Way::Up, 256 << 10)), ..Faults::default() });
    std::thread::scope(|scope| {
        let before = rig.proxy.passed(Way::Up);
        let storing = scope.spawn(|| put(&rig.space, first, &pages(first, LEN)));
        wait_for("the first put is under way", PATIENCE, || {
            (rig.proxy.passed(Way::Up) > before + (8 << 10)).then_some(())
        })
        .unwrap();
        // One page more is too much as long as the other sixteen are on their way.
        assert_all(&put(&rig.space, &second[..1], &pages(&second[..1], LEN)), PageOutcome::Busy);
        let stats = rig.stats();
        assert!(stats.shed_backlog > 0 && stats.shed_slow == 0, "{stats:?}");
        assert_eq!(get(&rig.space, &rig.bad[..1], LEN)[0].0, PageOutcome::Hit);
        // Other servers have a backlog of their own.
        let other: Vec<_> = keys("other", 30).into_iter().filter(|key| !owned(key)).collect();
        assert_all(&put(&rig.space, &other, &pages(&other, LEN)), PageOutcome::Stored);
        storing.join().unwrap();
    });
    rig.proxy.set(Faults::default());
    wait_for("a batch larger than the bound is sent when it is alone", PATIENCE, || {
        put(&rig.space, &new, &pages(&new, LEN)).iter().all(|outcome| outcome.is_success()).then_some(())
    })
    .unwrap();
    rig.end();
}

#[test]
fn no_call_waits_for_a_connect() {
    let rig = Rig::start(|config| config.connections_per_server(1));
    rig.proxy.set(Faults { dark: true, ..Faults::default() });
    assert_all(&rig.batch(), PageOutcome::TimedOut);
    // The only connection is closed with the call that it failed. A new one takes seconds not to come, and the breaker
    // is still closed after one timeout.
    let before = rig.stats();
    assert_eq!((before.timeouts, before.breaker_opened), (1, 0));
    assert_all(&rig.batch(), PageOutcome::Unavailable);
    let after = rig.stats();
    assert_eq!((after.timeouts, after.refused), (1, before.refused + rig.bad.len() as u64), "{after:?}");
    rig.proxy.set(Faults::default());
    rig.recovers();
    rig.end();
}

/// A member that has just been found has no session yet, and one that never answers never will. Calls go on without it.
#[test]
fn no_first_call_to_a_new_member_waits_for_a_connect() {
    for transport in [Transport::Tcp, Transport::Grpc] {
        let (names, daemon) = (Names::start(), Daemon::start().unwrap());
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let record = |port| srv("_memkv._tcp.kv.example.", (0, 100, port), &format!("kv-{port}.example."), 1);
        let address = |port: u16| a(&format!("kv-{port}.example."), [127, 0, 0, 1], 1);
        let all = [daemon.port(), silent.local_addr().unwrap().port()];
        names.set(vec![record(all[0]), address(all[0])]);
        let config = Config::builder().without_environment().auth_key_hex(KEY).transport(transport);
        let config = config.op_timeout(OP_TIMEOUT).connect_timeout(Duration::from_secs(60));
        let config =
            config.discovery(names.location("srv://_memkv._tcp.kv.example.")).set("member_ramp", "off");
        let client = Client::connect(config.set("move_grace", "off").build().unwrap()).unwrap();
        let space = client.space(SpaceDescription::named("failures").unwrap()).unwrap();
        let keys = keys("page", 40);
        assert_all(&put(&space, &keys, &pages(&keys, LEN)), PageOutcome::Stored);
        names.set(all.into_iter().flat_map(|port| [record(port), address(port)]).collect());
        wait_for("the client knows of the new member", PATIENCE, || {
            (client.servers().len() == 2).then_some(())
        })
        .unwrap();
        let is_new = |key: &Vec<u8>| client.route(space.id(), key)[0].server.port == all[1];
        for (key, (outcome, _)) in keys.iter().zip(get(&space, &keys, LEN)) {
            // A call that had waited would say that the time was over.
            let expected = if is_new(key) { PageOutcome::Unavailable } else { PageOutcome::Hit };
            assert_eq!(outcome, expected, "{transport:?}, {}", key.escape_ascii());
        }
        assert!(keys.iter().any(is_new) && !keys.iter().all(is_new));
        let stats = client.stats().servers;
        assert!(stats.iter().all(|server| server.timeouts == 0), "{stats:?}");
        client.close();
    }
}

/// Slots that wait for pages of all connections together have a bound; beyond it puts are refused, and gets are not.
#[test]
fn a_server_refuses_puts_while_too_many_pages_are_on_their_way() {
    const LEN: u32 = 1 << 20;
    let setup =
        Setup { dram: "64MiB".into(), args: vec!["--page-max".into(), "2MiB".into()], ..Setup::default() };
    let daemon = Daemon::start_with(setup).unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("behind").unwrap();
    let session = control.session().unwrap();
    let mut other: DataConn = session.attach().unwrap();
    assert_eq!(other.put(space, b"there", &page(b"there", 1000)).unwrap(), Code::Ok);
    let names: Vec<Vec<u8>> = keys("waiting", 60);
    let (mut wanted, mut conns) = (0, Vec::new());
    for some in names.chunks(12) {
        let mut conn = session.attach().unwrap();
        let offers: Vec<_> = some.iter().map(|key| (&key[..], LEN)).collect();
        let id = conn.id();
        let verdicts = conn.call(&offer_frame(id, space, &offers)).unwrap().verdicts();
        wanted += verdicts.iter().filter(|verdict| **verdict == Some(Code::Want)).count();
        assert!(
            verdicts.iter().all(|verdict| matches!(verdict, Some(Code::Want | Code::Busy))),
            "{verdicts:?}"
        );
        conns.push(conn);
    }
    assert!((24..=32).contains(&wanted), "{wanted} MiB of 64 wait");
    let metrics = daemon.metrics().unwrap();
    let shed = metrics.sum("memkv_put_shed_backlog_total", &[]);
    assert_eq!(shed as usize, names.len() - wanted);
    let status = control.status().unwrap().ops.unwrap();
    assert_eq!((status.put_shed_backlog as usize, status.put_busy), (names.len() - wanted, 0));
    assert_eq!(other.get(space, b"there", 1000).unwrap().0, Code::Ok);
    // What is there already is never refused.
    assert_eq!(other.put(space, b"there", &page(b"there", 1000)).unwrap(), Code::Exists);
    drop(conns);
    wait_for("the slots are given back", PATIENCE, || {
        (other.put(space, b"new", &page(b"new", 1000)).unwrap() == Code::Ok).then_some(())
    })
    .unwrap();
}
