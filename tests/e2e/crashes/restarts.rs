//! Planned restarts keep the cache: memory in a file, pages on drives, one server after the other.

use super::{Places, backed, drives, start, wait_for_status};
use crate::common::{assert_all, assert_hits, exists, put, tcp_space};
use memkv_client::PageOutcome;
use memkv_proto::v1::RecoveryStatus;
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::{keys, pages};

const LEN: usize = 100_000;

fn recovery(daemon: &Daemon) -> RecoveryStatus {
    daemon.control().unwrap().status().unwrap().recovery.unwrap()
}

/// Stores 200 pages, lets `end` end the daemon, and finds all pages after the restart.
fn over_a_restart(places: &Places, args: &[&str], end: impl FnOnce(&mut Daemon)) -> RecoveryStatus {
    let mut daemon = start(places, "128MiB", args);
    let (client, space) = tcp_space(&[&daemon], "restart");
    let all = keys("restart", 200);
    assert_all(&put(&space, &all, &pages(&all, LEN)), PageOutcome::Stored);
    let mut removed = [false];
    space.delete(&all[7..8], &mut removed).unwrap();
    assert_eq!(removed, [true]);
    client.close();
    end(&mut daemon);
    daemon.restart().unwrap();
    let (client, space) = tcp_space(&[&daemon], "restart");
    let kept: Vec<_> = all.iter().filter(|key| **key != all[7]).cloned().collect();
    assert_hits(&space, &kept, LEN);
    assert_eq!(exists(&space, &all[7..8]), [false], "a deleted page stays deleted");
    client.close();
    let found = recovery(&daemon);
    assert!(daemon.stop().unwrap().success());
    found
}

#[test]
fn memory_in_a_file_outlives_a_planned_restart_without_a_second_look() {
    let Some(places) = backed(drives(0)) else { return };
    let found = over_a_restart(&places, &[], |daemon| assert!(daemon.stop().unwrap().success()));
    assert_eq!((found.dram_pages, found.dram_unverified), (199, 0));
}

#[test]
fn memory_in_a_file_is_looked_at_again_after_a_kill() {
    let Some(places) = backed(drives(0)) else { return };
    let found = over_a_restart(&places, &[], |daemon| daemon.kill().unwrap());
    assert_eq!((found.dram_pages, found.dram_unverified), (199, 199));
}

#[test]
fn drives_outlive_a_planned_restart() {
    let args = ["--nvme-mode", "write-through"];
    let found = over_a_restart(&drives(2), &args, |daemon| assert!(daemon.stop().unwrap().success()));
    assert_eq!((found.dram_pages, found.nvme_pages), (0, 199));
}

#[test]
fn servers_that_restart_one_after_the_other_keep_the_clusters_cache() {
    let (Some(one), Some(two)) = (backed(drives(0)), backed(drives(0))) else { return };
    let mut daemons = [start(&one, "128MiB", &[]), start(&two, "128MiB", &[])];
    let (client, space) = tcp_space(&[&daemons[0], &daemons[1]], "rolling");
    let all = keys("rolling", 200);
    assert_all(&put(&space, &all, &pages(&all, LEN)), PageOutcome::Stored);
    for daemon in &mut daemons {
        assert!(daemon.stop().unwrap().success());
        daemon.restart().unwrap();
        assert!(recovery(daemon).dram_pages > 0);
    }
    // The same client goes on: it notices the restarts by itself.
    memkv_tests::wait_for("the client is connected again", crate::common::PATIENCE, || {
        exists(&space, &all).iter().all(|found| *found).then_some(())
    })
    .unwrap();
    assert_hits(&space, &all, LEN);
    client.close();
}

#[test]
fn spaces_are_known_after_a_restart_before_any_client_opens_them() {
    let places = drives(1);
    let mut daemon = start(&places, "64MiB", &["--nvme-mode", "write-through"]);
    let (client, space) = tcp_space(&[&daemon], "known before");
    let all = keys("known", 10);
    assert_all(&put(&space, &all, &pages(&all, LEN)), PageOutcome::Stored);
    client.close();
    daemon.kill().unwrap();
    daemon.restart().unwrap();
    wait_for_status(&daemon, "it is ready", |_| true);
    let control = daemon.control().unwrap();
    let request = control.request("/memkv.v1.Admin/ListSpaces", memkv_proto::v1::ListSpacesRequest {});
    let spaces = control.block_on(control.admin().list_spaces(request)).unwrap().into_inner().spaces;
    let names: Vec<_> = spaces.iter().filter_map(|space| space.space.as_ref()?.fields.get("name")).collect();
    assert_eq!(names, ["known before"]);
    assert_eq!(spaces[0].pages, 10);
}
