//! A restart of server after server, as an upgrade is one, while clients go on: no call fails, and nothing is lost.
//!
//! What keeps the pages is another thing in each test: memory that outlives the process, drives, or both.

use crate::common::{
    PATIENCE, StopAtEnd, assert_all, assert_hits, client_with, get, named_servers, put, space_of,
};
use memkv_client::blocking::{Client, Space};
use memkv_client::{PageOutcome, ServerState};
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::wait_for;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const LEN: usize = 16 << 10;
/// Pages that are there before anything is restarted.
const OLD: usize = 300;

/// Starts a server that keeps its pages over a restart, under a folder in memory and one on a drive.
type Start = fn(&Path, &Path) -> Daemon;

fn start(args: &[&str]) -> Daemon {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    Daemon::start_with(Setup { args, ..Setup::default() }).unwrap()
}

fn with_backing(memory: &Path, _: &Path) -> Daemon {
    start(&["--memory-backing", &memory.display().to_string()])
}

fn with_drive(_: &Path, drive: &Path) -> Daemon {
    let path = format!("{}:128MiB", drive.display());
    start(&["--nvme-paths", &path, "--nvme-mode", "write-through", "--nvme-segment", "16MiB"])
}

fn with_both(memory: &Path, drive: &Path) -> Daemon {
    let (backing, path) = (memory.display().to_string(), format!("{}:128MiB", drive.display()));
    start(&["--memory-backing", &backing, "--nvme-paths", &path, "--nvme-segment", "16MiB"])
}

fn wait_until_ready(client: &Client) {
    let ready = || client.servers().iter().all(|server| server.state == ServerState::Ready).then_some(());
    wait_for("the client has a session with each server", PATIENCE, ready).unwrap();
}

/// Reads pages with one copy: each is there, or its server is away.
fn read_single(space: &Space, old: &[Vec<u8>], part: usize, stop: &AtomicBool, away: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        for part in old.chunks(part) {
            for (key, (outcome, bytes)) in part.iter().zip(get(space, part, LEN)) {
                // A server that is away is a miss at once: not an error, not a timeout. One that is back has all
                // of its pages from the first moment.
                let may_be = [PageOutcome::Hit, PageOutcome::Unavailable];
                assert!(may_be.contains(&outcome), "{outcome:?} of {}", key.escape_ascii());
                assert!(outcome != PageOutcome::Hit || bytes == page(key, LEN));
                away.fetch_add(usize::from(outcome != PageOutcome::Hit), Ordering::Relaxed);
            }
        }
    }
}

/// Stores new pages, a few at a time; returns those that a server took.
fn store(space: &Space, stop: &AtomicBool) -> Vec<Vec<u8>> {
    let mut stored = Vec::new();
    for name in 0..400 {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let new = keys(&format!("new-{name}"), 5);
        for (key, outcome) in new.iter().zip(put(space, &new, &pages(&new, LEN))) {
            let may_be = [PageOutcome::Stored, PageOutcome::Unavailable, PageOutcome::Busy];
            assert!(may_be.contains(&outcome), "{outcome:?} of {}", key.escape_ascii());
            if outcome == PageOutcome::Stored {
                stored.push(key.clone());
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    stored
}

/// Restarts three servers one by one under load.
fn roll(start: Start) {
    let memory: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir_in("/dev/shm").unwrap()).collect();
    let drives: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let folders = memory.iter().zip(&drives);
    let mut daemons: Vec<_> = folders.map(|(memory, drive)| start(memory.path(), drive.path())).collect();
    let servers = named_servers(&daemons, &[]);
    // What is read may have to come from a drive that others keep busy.
    let patient = [("servers", &*servers), ("op_timeout", "30s")];
    let client = client_with(&patient);
    let careful = client_with(&[&patient[..], &[("replicas", "2")]].concat());
    let (space, twice) = (space_of(&client, "rolling"), space_of(&careful, "rolling, twice"));
    let old = keys("old", OLD);
    assert_all(&put(&space, &old, &pages(&old, LEN)), PageOutcome::Stored);
    assert_all(&put(&twice, &old, &pages(&old, LEN)), PageOutcome::Stored);
    let (stop, stored, away) = (AtomicBool::new(false), Mutex::new(HashSet::new()), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        let (space, twice, old, stop, stored, away) = (&space, &twice, &old, &stop, &stored, &away);
        scope.spawn(move || read_single(space, old, 50, stop, away));
        scope.spawn(move || {
            // With two copies even the pages of the server that is away are there.
            while !stop.load(Ordering::Relaxed) {
                old.chunks(64).for_each(|part| assert_hits(twice, part, LEN));
            }
        });
        scope.spawn(move || stored.lock().unwrap().extend(store(space, stop)));
        for daemon in &mut daemons {
            assert!(daemon.stop().unwrap().success());
            daemon.restart().unwrap();
            wait_until_ready(&client);
            wait_until_ready(&careful);
        }
        stop.store(true, Ordering::Relaxed);
    });
    wait_until_ready(&client);
    let stored: Vec<_> = stored.into_inner().unwrap().into_iter().collect();
    assert!(stored.len() > 20 && away.into_inner() > 0, "{}", stored.len());
    for (space, keys) in [(&space, &old), (&space, &stored), (&twice, &old)] {
        assert_hits(space, keys, LEN);
    }
    careful.close();
    client.close();
}

#[test]
fn memory_that_outlives_the_process_loses_nothing() {
    roll(with_backing);
}

#[test]
fn drives_that_are_written_through_lose_nothing() {
    roll(with_drive);
}

#[test]
fn memory_and_drives_together_lose_nothing() {
    roll(with_both);
}
