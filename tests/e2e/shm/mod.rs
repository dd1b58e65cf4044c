//! Shared memory between a daemon and clients on its host: who gets it, what it can be used for, and who may go at any
//! moment. What holds for every way of pages is in the transport suite.

mod deaths;
mod raw;
mod rights;
mod staging;

use crate::common::{PATIENCE, assert_all, assert_hits, client_of, config_of, put};
use memkv_client::blocking::{Client, Space};
use memkv_client::{ErrorKind, PageOutcome, SpaceDescription, Transport};
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::pages::{keys, pages};
use memkv_tests::wait_for;
use std::fs;

/// The name of the shared memory in `/proc/self/maps`.
const MEMORY: &str = "memkv-pages";
const SPACE: &str = "shared";

fn space_of(daemon: &Daemon, transport: Transport) -> (Client, Space) {
    let client = client_of(&[daemon.addr()], transport);
    let space = client.space(SpaceDescription::named(SPACE).unwrap()).unwrap();
    (client, space)
}

fn daemon_with(args: &[&str]) -> Daemon {
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    Daemon::start_with(Setup { args, ..Setup::default() }).unwrap()
}

/// Waits until the daemon keeps no page for a client.
#[track_caller]
fn wait_until_nothing_is_lent(daemon: &Daemon) {
    let nothing = || (lent(daemon) == 0.0).then_some(());
    wait_for("no page is lent", PATIENCE, nothing).unwrap();
}

fn lent(daemon: &Daemon) -> f64 {
    daemon.metrics().unwrap().sum("memkv_shm_lent_pages", &[])
}

/// What the shared memory in a process' map is called; for each mapping once.
fn memory_of(process: &str) -> Vec<String> {
    maps_of(process, MEMORY)
}

/// The inodes of memory with this name in a process' map; for each mapping once.
fn maps_of(process: &str, name: &str) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let lines = maps.lines().filter(|line| line.contains(name));
    lines.filter_map(|line| line.split_whitespace().nth(4).map(str::to_owned)).collect()
}

/// How many mappings of a daemon's memory this process has.
fn mappings_of(daemon: &Daemon) -> usize {
    let theirs = memory_of(&daemon.pid().to_string());
    memory_of("self").iter().filter(|memory| theirs.contains(memory)).count()
}

#[test]
fn clients_on_one_host_share_memory_by_themselves() {
    let daemon = Daemon::start().unwrap();
    let (client, space) = space_of(&daemon, Transport::Auto);
    assert_eq!(client.servers()[0].transport, Transport::Shm);
    let keys = keys("auto", 40);
    assert_all(&put(&space, &keys, &pages(&keys, 200_000)), PageOutcome::Stored);
    assert_hits(&space, &keys, 200_000);
    assert_eq!(mappings_of(&daemon), 1, "all connections share one mapping");
    wait_until_nothing_is_lent(&daemon);
    let (other, _space) = space_of(&daemon, Transport::Shm);
    assert_eq!(mappings_of(&daemon), 2, "another client has its own");
    drop((other, _space));
    drop((client, space));
    wait_for("the mappings are gone", PATIENCE, || (mappings_of(&daemon) == 0).then_some(())).unwrap();
}

#[test]
fn without_a_socket_clients_use_tcp_and_shm_is_refused() {
    let daemon = daemon_with(&["--shm-socket", "off"]);
    let (client, space) = space_of(&daemon, Transport::Auto);
    assert_eq!(client.servers()[0].transport, Transport::Tcp);
    let keys = keys("tcp", 3);
    assert_all(&put(&space, &keys, &pages(&keys, 5000)), PageOutcome::Stored);
    assert_hits(&space, &keys, 5000);
    let refused = Client::connect(config_of(&[daemon.addr()], Transport::Shm).unwrap()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotSupported);
    assert!(refused.to_string().contains("no socket for its own host"), "{refused}");
}

#[test]
fn memory_that_is_not_shared_leaves_gets_to_the_socket() {
    for args in [&["--memory-share", "off"][..], &["--memory-backing", "/dev/shm/memkv-test-share"]] {
        let daemon = daemon_with(args);
        let (client, space) = space_of(&daemon, Transport::Shm);
        assert_eq!(client.servers()[0].transport, Transport::Shm);
        let keys = keys(args[1], 20);
        assert_all(&put(&space, &keys, &pages(&keys, 300_000)), PageOutcome::Stored);
        assert_hits(&space, &keys, 300_000);
        assert_eq!(mappings_of(&daemon), 0);
        let says = daemon.log().contains("clients on this host get pages through their sockets");
        assert_eq!(says, args[0] == "--memory-backing", "one line says why, unless it was asked for");
        drop((client, space, daemon));
    }
    fs::remove_dir_all("/dev/shm/memkv-test-share").unwrap();
}

#[test]
fn a_socket_with_a_path_works_and_goes_with_its_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memkv.sock");
    let mut daemon = daemon_with(&["--shm-socket", path.to_str().unwrap()]);
    let (_client, space) = space_of(&daemon, Transport::Shm);
    let keys = keys("path", 3);
    assert_all(&put(&space, &keys, &pages(&keys, 5000)), PageOutcome::Stored);
    assert_hits(&space, &keys, 5000);
    daemon.kill().unwrap();
    assert!(path.exists(), "nobody was there to remove it");
    daemon.restart().unwrap();
    let stored = || (put(&space, &keys, &pages(&keys, 5000))[0] == PageOutcome::Stored).then_some(());
    wait_for("the client is back", PATIENCE, stored).unwrap();
    assert_hits(&space, &keys, 5000);
    daemon.stop().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_client_that_began_with_tcp_climbs_to_shared_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (path, away) = (folder.path().join("memkv.sock"), folder.path().join("away.sock"));
    let daemon = daemon_with(&["--shm-socket", path.to_str().unwrap()]);
    fs::rename(&path, &away).unwrap();
    let (client, space) = space_of(&daemon, Transport::Auto);
    assert_eq!(client.servers()[0].transport, Transport::Tcp);
    let keys = keys("climb", 3);
    assert_all(&put(&space, &keys, &pages(&keys, 5000)), PageOutcome::Stored);
    assert_eq!(mappings_of(&daemon), 0);
    fs::rename(&away, &path).unwrap();
    let climbed = || (client.servers()[0].transport == Transport::Shm).then_some(());
    wait_for("the client found the socket", PATIENCE, climbed).unwrap();
    assert_hits(&space, &keys, 5000);
    assert_eq!(mappings_of(&daemon), 1, "pages came through shared memory");
}
