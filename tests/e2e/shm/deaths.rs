//! Clients and daemons that freeze and die while memory is shared.

use super::raw::{self, NearConn};
use super::staging::STAGE;
use super::{
    SPACE, daemon_with, lent, mappings_of, maps_of, memory_of, space_of, wait_until_nothing_is_lent,
};
use crate::common::{PATIENCE, assert_all, assert_hits, get, put};
use memkv_client::{PageOutcome, Transport};
use memkv_core::SpaceId;
use memkv_shm::View;
use memkv_tests::daemon::{Daemon, clean_command};
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::wait_for;
use memkv_tests::wire::checksum;
use std::io::Read as _;
use std::process::{Child, Stdio};

/// What a client process does: see [`a_client_process`].
const ROLE: &str = "MEMKV_TEST_SHM_ROLE";
const ADDRESS: &str = "MEMKV_TEST_SHM_ADDRESS";

/// This test binary as a client process in this role.
fn client_process(role: &str, daemon: &Daemon) -> Child {
    let mut command = clean_command(&std::env::current_exe().unwrap());
    command.args(["--exact", "shm::deaths::a_client_process"]).env(ROLE, role);
    command.env(ADDRESS, daemon.addr().to_string()).stdout(Stdio::null()).spawn().unwrap()
}

/// No test by itself, and passes: what the processes of the others do, until they are killed.
#[test]
fn a_client_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let address = std::env::var(ADDRESS).unwrap().parse().unwrap();
    let client = crate::common::client_of(&[address], Transport::Shm);
    let space = client.space(memkv_client::SpaceDescription::named(SPACE).unwrap()).unwrap();
    let keys = keys("page", 16);
    let pages = pages(&keys, 1 << 20);
    for round in 0_u64.. {
        if role == "get" {
            get(&space, &keys, 1 << 20);
            continue;
        }
        let keys: Vec<_> = keys.iter().map(|key| [key, &round.to_le_bytes()[..]].concat()).collect();
        put(&space, &keys, &pages);
    }
}

#[test]
fn a_client_that_is_killed_in_the_middle_leaves_nothing_behind() {
    let daemon = daemon_with(&["--dram", "256MiB"]);
    let (own, space) = space_of(&daemon, Transport::Tcp);
    let keys = keys("page", 16);
    assert_all(&put(&space, &keys, &pages(&keys, 1 << 20)), PageOutcome::Stored);
    let control = daemon.control().unwrap();
    for role in ["get", "put"] {
        for _ in 0..3 {
            let mut client = client_process(role, &daemon);
            let total = if role == "get" { "memkv_get_hits_total" } else { "memkv_put_stored_total" };
            let before = daemon.metrics().unwrap().sum(total, &[]);
            let busy = || (daemon.metrics().unwrap().sum(total, &[]) > before + 32.0).then_some(());
            wait_for("the client is at work", PATIENCE, busy).unwrap();
            client.kill().unwrap();
            client.wait().unwrap();
            wait_until_nothing_is_lent(&daemon);
            let at_rest = || {
                let metrics = daemon.metrics().unwrap();
                let dram = control.status().unwrap().dram.unwrap();
                let slots: u64 = dram.classes.iter().map(|class| class.slots_used).sum();
                let connections = metrics.sum("memkv_data_connections", &[]);
                let staged = maps_of(&daemon.pid().to_string(), STAGE).len();
                let ours = f64::from(own.servers()[0].connections);
                (connections == ours && slots == dram.pages && staged == 0).then_some(())
            };
            wait_for("its connections, slots and memory are gone", PATIENCE, at_rest).unwrap();
        }
    }
    let (outcomes, _): (Vec<_>, Vec<_>) = get(&space, &keys, 1 << 20).into_iter().unzip();
    assert!(
        outcomes.iter().all(|outcome| matches!(outcome, PageOutcome::Hit | PageOutcome::Miss)),
        "{outcomes:?}"
    );
}

/// The page in the memory that was lent, if it is still there.
fn copy(view: &View, space: SpaceId, key: &[u8], lent: raw::Lent) -> Option<Vec<u8>> {
    let (_, meta, offset) = lent;
    let mut bytes = vec![0; meta.len as usize];
    assert!(view.read(offset, &mut bytes));
    (checksum(space, key, &bytes) == meta.checksum).then_some(bytes)
}

#[test]
fn a_client_that_freezes_loses_its_pages_and_can_tell() {
    let daemon = daemon_with(&["--limits-stall-time-max", "1s"]);
    let control = daemon.control().unwrap();
    let space = control.open_space(SPACE).unwrap();
    let len = 1 << 20;
    control.put(space, &[(b"page", &page(b"page", len))], 1 << 20).unwrap();
    let session = raw::session(&control);
    let mut frozen = NearConn::of(&session);
    let (bound, memory) = frozen.bind_well();
    let view = View::map(&memory, bound.memory_bytes).unwrap();
    let borrowed = frozen.get(space, &[b"page"], len).unwrap()[0];
    assert_eq!(copy(&view, space, b"page", borrowed).unwrap(), page(b"page", len));
    // The page goes, and its slot stays for as long as somebody may read it.
    assert!(
        control
            .block_on(control.kv().clone().delete(control.request(
                "/memkv.v1.Kv/Delete",
                memkv_proto::v1::DeleteRequest { space_id: space.0.to_vec(), keys: vec![b"page".to_vec()] },
            )))
            .is_ok()
    );
    assert_eq!(lent(&daemon), 1.0);
    assert_eq!(copy(&view, space, b"page", borrowed).unwrap(), page(b"page", len));
    wait_until_nothing_is_lent(&daemon);
    // Others use the memory by now; whoever copies late sees another checksum, and a closed connection.
    for i in 0..60_u8 {
        control.put(space, &[(&[i], &page(&[i], len))], 1 << 20).unwrap();
    }
    assert_eq!(copy(&view, space, b"page", borrowed), None);
    assert_eq!(frozen.stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(daemon.metrics().unwrap().sum("memkv_connections_stalled_total", &[]), 1.0);
}

#[test]
fn a_daemon_that_is_killed_leaves_misses_and_its_successor_new_memory() {
    let mut daemon = daemon_with(&["--dram", "256MiB"]);
    let (_client, space) = space_of(&daemon, Transport::Shm);
    let keys = keys("page", 64);
    assert_all(&put(&space, &keys, &pages(&keys, 1 << 20)), PageOutcome::Stored);
    let [old] = &memory_of(&daemon.pid().to_string())[..] else { panic!("a daemon maps its memory once") };
    let old = old.clone();
    assert!(memory_of("self").contains(&old));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            loop {
                let got = get(&space, &keys, 1 << 20);
                for (key, (outcome, bytes)) in keys.iter().zip(&got) {
                    // What was copied before the end, or out of memory that outlives it, is right.
                    assert!(*outcome != PageOutcome::Hit || *bytes == page(key, 1 << 20));
                    assert_ne!(*outcome, PageOutcome::Corrupt);
                }
                if got.iter().all(|(outcome, _)| *outcome != PageOutcome::Hit) {
                    return;
                }
            }
        });
        daemon.kill().unwrap();
        reader.join().unwrap();
    });
    daemon.restart().unwrap();
    let back = || (put(&space, &keys, &pages(&keys, 1 << 20))[0] == PageOutcome::Stored).then_some(());
    wait_for("the client is back", PATIENCE, back).unwrap();
    assert_hits(&space, &keys[..1], 1 << 20);
    assert_eq!(mappings_of(&daemon), 1);
    let unmapped = || (!memory_of("self").contains(&old)).then_some(());
    wait_for("the memory of the dead is unmapped", PATIENCE, unmapped).unwrap();
}
