//! Who is a member, and how clients learn it: etcd (a real one), DNS, and what becomes of keys meanwhile.

use crate::common::get;
use crate::names::{Names, a, srv};
use crate::stuck::Stuck;
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, MemberState, PageOutcome, SpaceDescription, Transport};
use memkv_tests::daemon::{Daemon, KEY, Setup, run_server};
use memkv_tests::etcd::Etcd;
use memkv_tests::pages::page;
use memkv_tests::wait_for;
use std::time::Duration;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a record outlives its server in these tests, seconds.
const TTL: u32 = 2;

/// A daemon that registers as `id`.
pub(crate) fn member(etcd: &Etcd, id: &str, more: &[&str]) -> Daemon {
    let location = format!("{}?ttl={TTL}", etcd.location("kv"));
    let mut args: Vec<String> = ["--node-id", id, "--discovery", &location].map(str::to_owned).to_vec();
    args.extend(["--limits-ping-interval", "300ms"].map(str::to_owned));
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    Daemon::start_with(Setup { args, ..Setup::default() }).unwrap()
}

/// The configuration of a client that finds its servers.
fn config(location: &str, options: &[(&str, &str)]) -> Config {
    let mut builder = Config::builder()
        .without_environment()
        .auth_key_hex(KEY)
        .transport(Transport::Tcp)
        .op_timeout(Duration::from_secs(2))
        .discovery(location);
    for (name, value) in options {
        builder = builder.set(*name, *value);
    }
    builder.build().unwrap()
}

/// A client without a ramp, and its space.
pub(crate) fn client(location: &str, options: &[(&str, &str)]) -> (Client, Space) {
    let options = [&[("member_ramp", "off")], options].concat();
    let client = Client::connect(config(location, &options)).unwrap();
    let space = client.space(SpaceDescription::named("members").unwrap()).unwrap();
    (client, space)
}

/// The members that are not lost, each as `id` or, with weight 0, `id*0`.
pub(crate) fn members(client: &Client) -> Vec<String> {
    let members = client.membership().members;
    let present = members.into_iter().filter(|view| !view.lost);
    present.map(|view| if view.weight == 0 { view.member.id + "*0" } else { view.member.id }).collect()
}

/// Waits until the client has exactly these members, with a session to each.
#[track_caller]
pub(crate) fn wait_for_members(client: &Client, expected: &[&str]) {
    let mut last = Vec::new();
    let there = wait_for("the members", PATIENCE, || {
        last = members(client);
        let ready =
            client.servers().iter().filter(|view| view.state == memkv_client::ServerState::Ready).count();
        (last == expected && ready >= expected.len()).then_some(())
    });
    assert!(there.is_ok(), "wanted {expected:?}, there are {last:?}: {:?}", client.membership());
}

pub(crate) fn keys(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|i| format!("key-{i}").into_bytes()).collect()
}

/// Which server owns each of the keys.
pub(crate) fn owners(client: &Client, space: &Space, keys: &[Vec<u8>]) -> Vec<String> {
    let owner = |key: &Vec<u8>| client.route(space.id(), key).first().map(|entry| entry.server.id.clone());
    keys.iter().map(|key| owner(key).unwrap_or_default()).collect()
}

/// Puts pages under the keys and returns what became of each.
pub(crate) fn put(space: &Space, keys: &[Vec<u8>]) -> Vec<PageOutcome> {
    keys.iter().map(|key| space.put(key, &page(key, 100)).unwrap()).collect()
}

/// Puts pages under the keys until all are stored; a busy machine may shed some at first.
pub(crate) fn store(space: &Space, keys: &[Vec<u8>]) {
    let stored = |key: &Vec<u8>| space.put(key, &page(key, 100)).unwrap().is_success();
    for key in keys {
        wait_for("a page is stored", PATIENCE, || stored(key).then_some(())).unwrap();
    }
}

/// How many of the keys hit with the right bytes.
fn hits(space: &Space, keys: &[Vec<u8>]) -> usize {
    let got = get(space, keys, 100);
    let hits = keys.iter().zip(got).filter(|(_, (outcome, _))| *outcome == PageOutcome::Hit);
    hits.inspect(|(key, (_, bytes))| assert!(*bytes == page(key, 100), "wrong bytes under {key:?}")).count()
}

#[test]
fn servers_join_and_clients_find_them() {
    let etcd = Etcd::start().unwrap();
    // Nobody is there yet: the client begins empty-handed, and every key is a miss.
    let (client, space) = client(&etcd.location("kv"), &[("connect_timeout", "300ms")]);
    assert_eq!((members(&client), hits(&space, &keys(3))), (Vec::new(), 0));
    let _one = member(&etcd, "kv-1", &[]);
    wait_for_members(&client, &["kv-1"]);
    store(&space, &keys(20));
    assert_eq!(hits(&space, &keys(20)), 20);
    let before = client.membership().epoch;
    let _two = member(&etcd, "kv-2", &["--weight", "300"]);
    wait_for_members(&client, &["kv-1", "kv-2"]);
    let now = client.membership();
    assert!(now.epoch > before && now.error.is_none(), "{now:?}");
    assert_eq!(now.members.iter().map(|view| view.weight).collect::<Vec<_>>(), [100, 300]);
    let view = &now.members[1].member;
    assert!(view.since_unix_ms > 0 && view.incarnation != 0 && !view.version.is_empty(), "{view:?}");
    assert!(owners(&client, &space, &keys(100)).iter().filter(|owner| *owner == "kv-2").count() > 50);
    // What was stored before is where it was, or has moved; nothing is wrong.
    assert!(hits(&space, &keys(20)) > 0);
    // A client that starts now sees the same.
    let (other, _) = self::client(&etcd.location("kv"), &[]);
    assert_eq!(members(&other), ["kv-1", "kv-2"]);
    assert_eq!(owners(&other, &space, &keys(100)), owners(&client, &space, &keys(100)));
}

#[test]
fn a_new_member_takes_its_weight_gradually() {
    let etcd = Etcd::start().unwrap();
    let _one = member(&etcd, "kv-1", &[]);
    let ramp = ("member_ramp", "3s");
    let early = Client::connect(config(&etcd.location("kv"), &[ramp])).unwrap();
    wait_for_members(&early, &["kv-1"]);
    // Members that begin this close together would have started together.
    std::thread::sleep(Duration::from_millis(700));
    let _two = member(&etcd, "kv-2", &[]);
    let mut seen = Vec::new();
    wait_for("the full weight", PATIENCE, || {
        let weight = early.membership().members.get(1).map(|view| view.weight)?;
        if seen.last() != Some(&weight) {
            seen.push(weight);
        }
        (weight == 100).then_some(())
    })
    .unwrap();
    assert!(seen.len() > 3 && seen.is_sorted() && seen.iter().all(|weight| weight % 10 == 0), "{seen:?}");
    assert_eq!(early.membership().members[0].weight, 100);
}

#[test]
fn a_killed_server_keeps_its_keys_for_the_grace_and_no_longer() {
    let etcd = Etcd::start().unwrap();
    let _one = member(&etcd, "kv-1", &[]);
    let mut two = member(&etcd, "kv-2", &[]);
    let (client, space) = client(&etcd.location("kv"), &[("member_grace", "2s")]);
    wait_for_members(&client, &["kv-1", "kv-2"]);
    let keys = keys(40);
    let before = owners(&client, &space, &keys);
    two.kill().unwrap();
    // The lease runs out: the server is lost, but its keys are still its own, and misses.
    wait_for("the loss", PATIENCE, || (members(&client) == ["kv-1"]).then_some(())).unwrap();
    let lost = client.membership().members.into_iter().find(|view| view.lost).unwrap();
    assert_eq!((lost.member.id.as_str(), lost.weight), ("kv-2", 100));
    assert_eq!(owners(&client, &space, &keys), before);
    // The grace passes: the rest of the cluster has all keys.
    wait_for("the end of the grace", PATIENCE, || (client.membership().members.len() == 1).then_some(()))
        .unwrap();
    assert!(owners(&client, &space, &keys).iter().all(|owner| owner == "kv-1"));
    store(&space, &keys);
    assert_eq!(hits(&space, &keys), keys.len());
}

#[test]
fn a_restart_on_another_port_moves_no_key() {
    let etcd = Etcd::start().unwrap();
    let _one = member(&etcd, "kv-1", &[]);
    // Long enough for a start on a busy machine.
    let longer = format!("{}?ttl=4", etcd.location("kv"));
    let start = || member(&etcd, "kv-2", &["--discovery", &longer]);
    let mut two = start();
    // With a ramp, a server that counted as new would lose most of its keys.
    let location = etcd.location("kv");
    let client =
        Client::connect(config(&location, &[("member_ramp", "60m"), ("member_grace", "60m")])).unwrap();
    let space = client.space(SpaceDescription::named("members").unwrap()).unwrap();
    wait_for_members(&client, &["kv-1", "kv-2"]);
    let keys = keys(100);
    let (before, view) = (owners(&client, &space, &keys), client.membership().members.remove(1));
    let came_back = |view: &memkv_client::MemberView, client: &Client| {
        let now = client.membership().members.into_iter().find(|now| now.member.id == "kv-2").unwrap();
        (now.member.incarnation != view.member.incarnation && !now.lost).then_some(now)
    };
    // A graceful stop leaves the record, so that nothing happens until the server is back.
    assert!(two.stop().unwrap().success());
    assert!(etcd.has(b"kv/members/kv-2").unwrap());
    assert_eq!(members(&client), ["kv-1", "kv-2"]);
    let mut two = start();
    let now = wait_for("the new record", PATIENCE, || came_back(&view, &client)).unwrap();
    assert_eq!((now.member.since_unix_ms, now.weight), (view.member.since_unix_ms, 100));
    assert_ne!(now.member.port, view.member.port);
    assert_eq!(owners(&client, &space, &keys), before);
    // The same after a crash, when the record has run out before the server is back.
    two.kill().unwrap();
    wait_for("the loss", PATIENCE, || (members(&client) == ["kv-1"]).then_some(())).unwrap();
    assert_eq!(owners(&client, &space, &keys), before);
    let _two = start();
    let again = wait_for("the next record", PATIENCE, || came_back(&now, &client)).unwrap();
    assert_eq!((again.member.since_unix_ms, again.weight), (view.member.since_unix_ms, 100));
    assert_eq!(owners(&client, &space, &keys), before);
    wait_for_members(&client, &["kv-1", "kv-2"]);
    store(&space, &keys);
}

#[test]
fn etcd_may_be_away() {
    let mut etcd = Etcd::start().unwrap();
    let one = member(&etcd, "kv-1", &[]);
    let two = member(&etcd, "kv-2", &[]);
    for daemon in [&one, &two] {
        daemon.allow("the source of members does not answer");
        daemon.allow("this server is not registered");
    }
    let (client, space) = client(&etcd.location("kv"), &[]);
    wait_for_members(&client, &["kv-1", "kv-2"]);
    let keys = keys(40);
    store(&space, &keys);
    let before = owners(&client, &space, &keys);
    etcd.kill().unwrap();
    wait_for("the client notices", PATIENCE, || client.membership().error).unwrap();
    for daemon in [&one, &two] {
        wait_for("the server notices", PATIENCE, || {
            (daemon.metrics().unwrap().sum("memkv_registered", &[]) == 0.0).then_some(())
        })
        .unwrap();
    }
    assert_eq!((hits(&space, &keys), owners(&client, &space, &keys)), (keys.len(), before.clone()));
    // A client that starts now has nothing to go by; it is no error, and it catches up.
    let (late, late_space) = self::client(&etcd.location("kv"), &[("connect_timeout", "300ms")]);
    assert_eq!((members(&late), hits(&late_space, &keys)), (Vec::new(), 0));
    etcd.restart(true).unwrap();
    wait_for_members(&late, &["kv-1", "kv-2"]);
    assert_eq!(hits(&late_space, &keys), keys.len());
    // All data of etcd is lost: the servers register again, and nobody who knew them has lost a key.
    wait_for("both are registered", PATIENCE, || client.membership().error.is_none().then_some(())).unwrap();
    etcd.kill().unwrap();
    etcd.restart(false).unwrap();
    for id in ["kv-1", "kv-2"] {
        let key = format!("kv/members/{id}");
        wait_for("the new record", PATIENCE, || etcd.has(key.as_bytes()).unwrap().then_some(())).unwrap();
    }
    wait_for_members(&client, &["kv-1", "kv-2"]);
    assert_eq!((hits(&space, &keys), owners(&client, &space, &keys)), (keys.len(), before));
    let stats = client.stats().discovery;
    assert!(stats.failures > 0 && stats.lists >= 3, "{stats:?}");
}

#[test]
fn a_client_with_an_old_list_is_told_and_catches_up() {
    let etcd = Etcd::start().unwrap();
    let _one = member(&etcd, "kv-1", &[]);
    let way = Stuck::start(etcd.addr());
    let (client, _space) = client(&format!("etcd://{}/kv", way.addr()), &[]);
    wait_for_members(&client, &["kv-1"]);
    // The client's watch hears nothing any more, and does not break either; only the server can tell.
    way.stick();
    let _two = member(&etcd, "kv-2", &[]);
    wait_for_members(&client, &["kv-1", "kv-2"]);
    let stats = client.stats().discovery;
    assert!(stats.told_stale >= 1 && stats.failures == 0, "{stats:?}");
}

#[test]
fn records_that_make_no_sense_are_skipped() {
    let etcd = Etcd::start().unwrap();
    let nonsense: [(&[u8], &[u8]); 5] = [
        (b"kv/members/garbage", b"\xff\x00\xfe"),
        (b"kv/members/other", br#"{"id":"kv-1","host":"h","port":1}"#),
        (b"kv/members/far", br#"{"id":"far","host":"10.0.0.1","port":99999}"#),
        (b"kv/members/", b"{}"),
        (b"kv/members/\xff\xff", b"[1,2"),
    ];
    for (key, value) in nonsense {
        etcd.put(key, value).unwrap();
    }
    let one = member(&etcd, "kv-1", &[]);
    one.allow("skipped the record of a member");
    let (client, space) = client(&etcd.location("kv"), &[]);
    wait_for_members(&client, &["kv-1"]);
    assert_eq!(client.stats().discovery.skipped_records, 5);
    // More of it, and of a member that made sense, while everybody watches.
    etcd.put(b"kv/members/late", b"null").unwrap();
    wait_for("the late one", PATIENCE, || (client.stats().discovery.skipped_records == 6).then_some(()))
        .unwrap();
    for (key, _) in nonsense {
        etcd.delete(key).unwrap();
    }
    wait_for("the rest", PATIENCE, || (client.stats().discovery.skipped_records == 1).then_some(())).unwrap();
    // Somebody writes over the server's own record, and removes it: it is written again.
    etcd.delete(b"kv/members/kv-1").unwrap();
    wait_for("its own record", PATIENCE, || etcd.has(b"kv/members/kv-1").unwrap().then_some(())).unwrap();
    etcd.put(b"kv/members/kv-1", b"nothing").unwrap();
    wait_for("its own record", PATIENCE, || (client.stats().discovery.skipped_records == 1).then_some(()))
        .unwrap();
    wait_for_members(&client, &["kv-1"]);
    store(&space, &keys(1));
}

#[test]
fn states_and_weights_that_an_operator_writes_are_heard() {
    let etcd = Etcd::start().unwrap();
    let one = member(&etcd, "kv-1", &[]);
    let record = format!(
        r#"{{"id":"by-hand","host":"127.0.0.1","port":{},"weight":50,"state":"draining"}}"#,
        one.port()
    );
    etcd.put(b"kv/members/by-hand", record.as_bytes()).unwrap();
    let (client, space) = client(&etcd.location("kv"), &[]);
    wait_for_members(&client, &["by-hand*0", "kv-1"]);
    assert_eq!(client.membership().members[0].member.state, MemberState::Draining);
    assert!(owners(&client, &space, &keys(50)).iter().all(|owner| owner == "kv-1"));
    etcd.put(b"kv/members/by-hand", record.replace("draining", "serving").as_bytes()).unwrap();
    wait_for_members(&client, &["by-hand", "kv-1"]);
}

#[test]
fn a_second_server_with_the_same_id_is_noticed() {
    let etcd = Etcd::start().unwrap();
    let first = member(&etcd, "kv-1", &[]);
    first.allow("another server registers as \\\"kv-1\\\"");
    first.allow("another server registers as \"kv-1\"");
    let second = member(&etcd, "kv-1", &[]);
    let port = second.port();
    let (client, _space) = client(&etcd.location("kv"), &[]);
    let at = |client: &Client| client.membership().members.first().map(|view| view.member.port);
    wait_for("the newest one counts", PATIENCE, || (at(&client) == Some(port)).then_some(())).unwrap();
    wait_for("the first one says so", PATIENCE, || {
        first.log().contains("another server registers").then_some(())
    })
    .unwrap();
    assert_eq!(at(&client), Some(port), "they do not take turns");
}

#[test]
fn dns_is_asked_again_when_records_have_expired() {
    let names = Names::start();
    let (mut one, mut two) = (Daemon::start().unwrap(), Daemon::start().unwrap());
    let service = "_memkv._tcp.kv.example.";
    let record = |name: &str, daemon: &Daemon| srv(service, (0, 10, daemon.port()), name, 1);
    names.set(vec![
        record("kv-1.example.", &one),
        a("kv-1.example.", [127, 0, 0, 1], 1),
        srv(service, (5, 10, 1), "not-the-lowest-priority.example.", 1),
    ]);
    let (client, space) = client(&names.location("srv://_memkv._tcp.kv.example."), &[("member_grace", "1s")]);
    wait_for_members(&client, &["kv-1.example"]);
    store(&space, &keys(20));
    let both = |one: &Daemon, two: &Daemon| {
        let mut records = vec![record("kv-1.example.", one), record("kv-2.example.", two)];
        records.extend(["kv-1.example.", "kv-2.example."].map(|name| a(name, [127, 0, 0, 1], 1)));
        records
    };
    names.set(both(&one, &two));
    wait_for_members(&client, &["kv-1.example", "kv-2.example"]);
    // Away, or without any records: nothing changes.
    let (before, epoch) = (owners(&client, &space, &keys(50)), client.membership().epoch);
    for failing in [true, false] {
        names.fail(failing);
        names.set(Vec::new());
        let (asked, failures) = (names.questions(), client.stats().discovery.failures);
        wait_for("some more questions", PATIENCE, || {
            (names.questions() > asked + 2 && client.stats().discovery.failures > failures + 1).then_some(())
        })
        .unwrap();
        assert_eq!(owners(&client, &space, &keys(50)), before);
        assert!(client.membership().error.is_some());
    }
    // A name that moves to another port keeps its keys; one that is gone loses them after the grace.
    let moved = Daemon::start().unwrap();
    two.stop().unwrap();
    names.set(both(&one, &moved));
    wait_for_members(&client, &["kv-1.example", "kv-2.example"]);
    wait_for("the new port", PATIENCE, || {
        client.servers().iter().any(|view| view.address.port == moved.port()).then_some(())
    })
    .unwrap();
    assert_eq!(owners(&client, &space, &keys(50)), before);
    assert!(client.membership().epoch > epoch);
    names.set(both(&one, &moved).into_iter().filter(|record| !record.to_string().contains("kv-1")).collect());
    wait_for("kv-1 goes", PATIENCE, || (client.membership().members.len() == 1).then_some(())).unwrap();
    store(&space, &keys(20));
    one.stop().unwrap();
}

#[test]
fn addresses_are_members_too() {
    let names = Names::start();
    let one = Daemon::start().unwrap();
    // The same port on another address of loopback; nobody is there, and that is nobody's problem.
    names.set(vec![a("kv.example.", [127, 0, 0, 1], 1), a("kv.example.", [127, 0, 0, 77], 1)]);
    let location = names.location(&format!("dns://kv.example.:{}", one.port()));
    let (client, space) = client(&location, &[("connect_timeout", "1s")]);
    let expected = [format!("127.0.0.1:{}", one.port()), format!("127.0.0.77:{}", one.port())];
    assert_eq!(members(&client), expected);
    let stored = put(&space, &keys(40)).iter().filter(|outcome| outcome.is_success()).count();
    assert!(stored > 5 && stored < 40, "{stored}");
}

#[test]
fn what_cannot_work_is_refused_at_start() {
    let location = ["--discovery", "etcd://127.0.0.1:1/kv"];
    let key = ("MEMKV_SERVER_AUTH_KEY", KEY);
    let every = [&["--listen", "0.0.0.0:0"][..], &location].concat();
    let (status, text) = run_server(&every, &[key]).unwrap();
    assert!(!status.success() && text.contains("advertise"), "{text}");
    let spaced = [&["--listen", "127.0.0.1:0", "--node-id", "a b"][..], &location].concat();
    let (status, text) = run_server(&spaced, &[key]).unwrap();
    assert!(!status.success() && text.contains("node_id"), "{text}");
    let (status, text) = run_server(&["--discovery", "dns://kv"], &[key]).unwrap();
    assert!(!status.success() && text.contains("etcd://HOST:PORT/PREFIX"), "{text}");
    let wrong = Config::builder().without_environment().discovery("etcd:/x").build().unwrap_err();
    assert!(wrong.to_string().contains("etcd://HOST:PORT/PREFIX"), "{wrong}");
}
