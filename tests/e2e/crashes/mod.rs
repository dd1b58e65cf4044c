//! `kill -9` at random moments, with damage between the lives: whatever was acknowledged is there exactly, or it is a
//! legitimate miss; nothing else ever appears.
//!
//! A loop is one life of the daemon: it starts, every page is looked at, threads put, get and delete, and the process is
//! killed. What must hold is written down key by key in [`ledger`]; [`damage`] hurts the files between two lives.
//!
//! Five loops in the usual run; `MEMKV_TEST_LONG=1` (or `cargo xtask test --long`) makes it fifty. Every run prints its
//! seed; `MEMKV_TEST_SEED` repeats the choices of one.

mod broken_drives;
mod damage;
mod ledger;
mod load;
mod restarts;
mod rng;

use crate::common::PATIENCE;
use damage::Damage;
use ledger::Ledger;
use load::{LEN_CLASSES, Load};
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::wait_for;
use rng::Rng;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// Threads that put, get and delete.
const THREADS: u64 = 3;
/// Bytes that one loop may write at most, so that no drive comes near its quota.
const LOOP_BYTES_MAX: u64 = 24 << 20;

/// Where a daemon keeps what outlives it.
struct Places {
    drives: Vec<PathBuf>,
    backing: Option<PathBuf>,
    /// Removed at the end.
    _folders: Vec<TempDir>,
}

/// What a profile promises about an acknowledged put after a crash without damage.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// It is there: it was written through, or memory outlived the process and nothing was evicted.
    There,
    /// It is there or it is a miss.
    Exact,
}

fn loops() -> u64 {
    if std::env::var("MEMKV_TEST_LONG").is_ok_and(|value| value == "1") { 50 } else { 5 }
}

fn seed(profile: &str) -> Rng {
    let given = std::env::var("MEMKV_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from_le_bytes(memkv_tests::random()));
    eprintln!("{profile}: MEMKV_TEST_SEED={seed}");
    Rng::new(seed)
}

fn folder_in(parent: &Path) -> TempDir {
    tempfile::Builder::new().prefix("memkv-crash-").tempdir_in(parent).unwrap()
}

fn drives(count: usize) -> Places {
    let folders: Vec<_> = (0..count).map(|_| folder_in(&std::env::temp_dir())).collect();
    let drives = folders.iter().map(|folder| folder.path().join("pages")).collect();
    Places { drives, backing: None, _folders: folders }
}

/// Memory that outlives the process, if this machine has a tmpfs.
fn backed(mut places: Places) -> Option<Places> {
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        eprintln!("skipped: this machine has no /dev/shm");
        return None;
    }
    let folder = folder_in(shm);
    places.backing = Some(folder.path().join("pages"));
    places._folders.push(folder);
    Some(places)
}

fn start(places: &Places, dram: &str, more: &[&str]) -> Daemon {
    let mut args: Vec<String> = more.iter().map(|arg| (*arg).to_owned()).collect();
    if !places.drives.is_empty() {
        let list: Vec<_> = places.drives.iter().map(|path| format!("{}:2GiB", path.display())).collect();
        args.extend([
            "--nvme-paths".to_owned(),
            list.join(","),
            "--nvme-segment".to_owned(),
            "16MiB".to_owned(),
        ]);
    }
    if let Some(backing) = &places.backing {
        args.extend(["--memory-backing".to_owned(), backing.display().to_string()]);
    }
    Daemon::start_with(Setup { dram: dram.to_owned(), args, ..Setup::default() }).unwrap()
}

/// The life of a store, over as many crashes as the run has.
fn crash(profile: &str, places: &Places, dram: &str, more: &[&str], promise: Promise) {
    let mut rng = seed(profile);
    let mut daemon = start(places, dram, more);
    // What is broken on purpose is noticed and said.
    for text in
        ["damaged", "not match", "checksum", "took out", "lost", "cut", "could not", "torn", "verified"]
    {
        daemon.allow(text);
    }
    let mut ledgers: Vec<Ledger> = (0..THREADS).map(Ledger::new).collect();
    for round in 0..loops() {
        let load = Load::start(&daemon, ledgers, &mut rng, LOOP_BYTES_MAX);
        // The load begins at once; the moment of the kill is what varies.
        std::thread::sleep(Duration::from_millis(rng.below(400)));
        daemon.kill().unwrap();
        ledgers = load.end();
        // An unhurt life first, then one that begins with damage.
        let damage = if round % 2 == 1 { Damage::some(&mut rng, places) } else { Damage::None };
        damage.inflict(&mut rng, places);
        if damage != Damage::None {
            ledgers.iter_mut().for_each(Ledger::doubt_all);
        }
        daemon.restart().unwrap_or_else(|error| panic!("{profile} {round} after {damage:?}: {error:#}"));
        let strict = promise == Promise::There && damage == Damage::None;
        let context = format!("{profile}, life {round}, after {damage:?}");
        ledgers.iter_mut().for_each(|ledger| ledger.check(&daemon, strict, &context));
        check_phantoms(&daemon, &ledgers, &context);
    }
    let seen: usize = ledgers.iter().map(Ledger::acknowledged).sum();
    assert!(seen > 100, "{profile}: only {seen} puts were ever acknowledged; the load does not load");
    let found: u64 = ledgers.iter().map(Ledger::found_after_a_crash).sum();
    assert!(found > 0, "{profile}: no page ever outlived a crash");
    // Nothing is stuck: the store still ends gracefully.
    assert!(daemon.stop().unwrap().success());
}

/// Every key that the server lists was put by somebody, and is not known to be gone.
fn check_phantoms(daemon: &Daemon, ledgers: &[Ledger], context: &str) {
    let control = daemon.control().unwrap();
    let space = control.open_space(load::SPACE).unwrap();
    let mut cursor = Vec::new();
    loop {
        let list = memkv_proto::v1::ListKeysRequest {
            space_id: space.0.to_vec(),
            limit: 10_000,
            cursor,
            ..Default::default()
        };
        let request = control.request("/memkv.v1.Admin/ListKeys", list);
        let answer = control.block_on(control.admin().list_keys(request)).unwrap().into_inner();
        for status in answer.keys {
            let allowed = ledgers.iter().any(|ledger| ledger.may_be_there(&status.key));
            assert!(allowed, "{context}: {} is listed", status.key.escape_ascii());
        }
        cursor = answer.next_cursor;
        if cursor.is_empty() {
            return;
        }
    }
}

#[test]
fn what_was_written_through_outlives_a_kill() {
    crash("write-through", &drives(2), "64MiB", &["--nvme-mode", "write-through"], Promise::There);
}

#[test]
fn what_was_written_through_by_threads_and_synced_outlives_a_kill() {
    let more = ["--nvme-mode", "write-through", "--nvme-io", "threads", "--nvme-sync=true"];
    crash("write-through, threads, synced", &drives(1), "64MiB", &more, Promise::There);
}

#[test]
fn memory_in_a_file_outlives_a_kill() {
    let Some(places) = backed(drives(0)) else { return };
    crash("backing", &places, "512MiB", &[], Promise::There);
}

#[test]
fn memory_in_a_file_above_drives_outlives_a_kill() {
    let Some(places) = backed(drives(1)) else { return };
    crash("backing and demotion", &places, "64MiB", &["--nvme-admit-unread=true"], Promise::Exact);
}

/// A page is as long as its key says.
fn len_of(key: &[u8]) -> usize {
    LEN_CLASSES[usize::from(key[key.len() - 1]) % LEN_CLASSES.len()]
}

/// Waits until a daemon says `wanted` of itself.
fn wait_for_status(
    daemon: &Daemon,
    what: &str,
    wanted: impl Fn(&memkv_proto::v1::GetStatusResponse) -> bool,
) -> memkv_proto::v1::GetStatusResponse {
    let control = daemon.control().unwrap();
    wait_for(what, PATIENCE, || control.status().ok().filter(|status| wanted(status))).unwrap()
}
