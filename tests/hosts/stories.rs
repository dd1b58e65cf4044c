//! What happens between the hosts, and what the client must make of it: the bad host's keys are misses within the deadline,
//! the good host's keys hit all the while in the same batches, no byte is wrong, and it all ends by itself.

use crate::network::{Network, address};
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, PageOutcome, ServerState, SpaceDescription, Transport};
use memkv_tests::daemon::KEY;
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::{program, wait_for};
use std::net::TcpStream;
use std::process::Child;
use std::time::{Duration, Instant};

const LEN: usize = 32 << 10;
const OP_TIMEOUT: Duration = Duration::from_secs(1);
/// What a busy machine may add to a deadline before a test calls it broken.
const SLACK: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);
/// Batches after which a host that answers none of them must be suspected.
const BATCHES: usize = 20;

/// What a story takes besides namespaces.
#[derive(Clone, Copy)]
pub(crate) enum Need {
    Links,
    Filter,
    Shaping,
}

/// A story's name, what it takes, and the story.
type Told = (&'static str, Need, fn(&Network));

pub(crate) const STORIES: &[Told] = &[
    ("a_host_whose_cable_is_moved", Need::Links, a_host_whose_cable_is_moved),
    ("a_partition", Need::Filter, a_partition),
    ("packets_lost_on_the_way_there", Need::Filter, packets_lost_on_the_way_there),
    ("packets_lost_on_the_way_back", Need::Filter, packets_lost_on_the_way_back),
    ("some_packets_lost_one_way", Need::Filter, some_packets_lost_one_way),
    ("a_slow_link", Need::Shaping, a_slow_link),
];

/// A server on a host; it ends with this.
struct Node(Child);

impl Node {
    fn start(network: &Network, host: &str) -> Self {
        let mut command = network.command(host, &program::server().unwrap());
        let listen = format!("{}:9900", address(host));
        command.args(["--listen", &listen, "--dram", "64MiB"]).env("MEMKV_SERVER_AUTH_KEY", KEY);
        let node = Self(command.spawn().unwrap());
        wait_for("the server listens", PATIENCE, || TcpStream::connect(&listen).ok()).unwrap();
        node
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

struct Rig {
    _nodes: [Node; 2],
    client: Client,
    space: Space,
    bad: Vec<Vec<u8>>,
    good: Vec<Vec<u8>>,
}

impl Rig {
    /// All pages are stored.
    fn start(network: &Network) -> Self {
        let nodes = ["bad", "good"].map(|host| Node::start(network, host));
        let servers = ["bad", "good"].map(|host| format!("{host}={}:9900", address(host)));
        let config = Config::builder().without_environment().servers(servers.join(",")).auth_key_hex(KEY);
        let config = config.transport(Transport::Tcp).op_timeout(OP_TIMEOUT);
        let client =
            Client::connect(config.connect_timeout(Duration::from_secs(2)).build().unwrap()).unwrap();
        let space = client.space(SpaceDescription::named("hosts").unwrap()).unwrap();
        let owned = |key: &Vec<u8>| client.route(space.id(), key)[0].server.id == "bad";
        let (bad, good): (Vec<_>, Vec<_>) = keys("page", 30).into_iter().partition(owned);
        let rig = Self { _nodes: nodes, client, space, bad, good };
        for some in [&rig.bad, &rig.good] {
            assert!(some.len() >= 5);
            let bytes = pages(some, LEN);
            let sources: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
            let mut out = vec![PageOutcome::Busy; some.len()];
            rig.space.put_from(some, &sources, &mut out).unwrap();
            assert!(out.iter().all(|outcome| *outcome == PageOutcome::Stored), "{out:?}");
        }
        rig
    }

    fn is_ready(&self) -> bool {
        let servers = self.client.servers();
        servers.iter().any(|server| server.address.id == "bad" && server.state == ServerState::Ready)
    }

    /// A batch over both hosts: in time, the good one's pages whole, and never a wrong byte. Returns the outcomes of the
    /// bad one's pages.
    fn batch(&self) -> Vec<PageOutcome> {
        let all = [&self.bad[..], &self.good[..]].concat();
        let mut room = vec![vec![0xee; LEN]; all.len()];
        let mut slices: Vec<&mut [u8]> = room.iter_mut().map(Vec::as_mut_slice).collect();
        let mut out = vec![PageOutcome::Busy; all.len()];
        let start = Instant::now();
        self.space.get_into(&all, &mut slices, &mut out).unwrap();
        assert!(start.elapsed() < OP_TIMEOUT + SLACK, "a batch took {:?}", start.elapsed());
        for ((key, outcome), bytes) in all.iter().zip(&out).zip(&room) {
            assert!(*outcome != PageOutcome::Hit || *bytes == page(key, LEN), "wrong bytes");
        }
        let (bad, good) = out.split_at(self.bad.len());
        assert!(good.iter().all(|outcome| *outcome == PageOutcome::Hit), "the good host: {good:?}");
        bad.to_vec()
    }

    /// The bad host cannot be spoken with.
    fn is_lost(&self) {
        for batch in 0.. {
            let outcomes = self.batch();
            assert!(outcomes.iter().all(|outcome| !outcome.is_success()), "{outcomes:?}");
            if !self.is_ready() {
                break;
            }
            assert!(batch < BATCHES, "the host is not suspected: {:?}", self.client.stats().servers);
        }
        // From now on its keys are refused, not tried.
        let refused = self.client.stats().refused;
        for _ in 0..10 {
            self.batch();
        }
        assert!(self.client.stats().refused > refused);
    }

    fn recovers(&self) {
        wait_for("its pages hit again", PATIENCE, || {
            self.batch().iter().all(|outcome| *outcome == PageOutcome::Hit).then_some(())
        })
        .unwrap();
    }
}

fn a_host_whose_cable_is_moved(network: &Network) {
    let rig = Rig::start(network);
    network.plug("bad", false);
    rig.is_lost();
    network.plug("bad", true);
    rig.recovers();
}

fn a_partition(network: &Network) {
    let rig = Rig::start(network);
    network.drop_packets("client", "bad", "");
    network.drop_packets("bad", "client", "");
    rig.is_lost();
    network.pass_packets("bad");
    network.pass_packets("client");
    rig.recovers();
}

fn packets_lost_on_the_way_there(network: &Network) {
    let rig = Rig::start(network);
    network.drop_packets("client", "bad", "");
    rig.is_lost();
    network.pass_packets("bad");
    rig.recovers();
}

fn packets_lost_on_the_way_back(network: &Network) {
    let rig = Rig::start(network);
    network.drop_packets("bad", "client", "");
    rig.is_lost();
    network.pass_packets("client");
    rig.recovers();
}

/// TCP sends again what was lost, so that much of it still comes, late. What comes is right, what does not is a miss.
fn some_packets_lost_one_way(network: &Network) {
    let rig = Rig::start(network);
    network.drop_packets("bad", "client", "numgen random mod 100 < 40");
    let mut outcomes = Vec::new();
    for _ in 0..BATCHES {
        outcomes.extend(rig.batch());
    }
    assert!(outcomes.iter().any(|outcome| !outcome.is_success()), "40 of 100 packets were lost unnoticed");
    network.pass_packets("client");
    rig.recovers();
}

fn a_slow_link(network: &Network) {
    let rig = Rig::start(network);
    network.slow("bad", Some("1mbit"));
    let mut outcomes = Vec::new();
    while rig.is_ready() {
        outcomes.extend(rig.batch());
        assert!(outcomes.len() < BATCHES * rig.bad.len(), "a slow host is not suspected");
    }
    assert!(outcomes.contains(&PageOutcome::TimedOut), "{outcomes:?}");
    network.slow("bad", None);
    rig.recovers();
}
