//! Drives that fill up or go away while the daemon runs: the server stays up and says so.

use super::{drives, start, wait_for_status};
use crate::common::{get, put, tcp_space};
use memkv_client::PageOutcome;
use memkv_client::blocking::Space;
use memkv_proto::v1::{DriveState, GetStatusResponse};
use memkv_tests::daemon::{Daemon, KEY, PATIENCE, Setup, clean_command};
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::{program, wait_for};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const LEN: usize = 256 << 10;

/// Puts batches until the server says `wanted`; every page of every batch must be acknowledged.
fn put_until(
    daemon: &Daemon,
    space: &Space,
    name: &str,
    wanted: impl Fn(&GetStatusResponse) -> bool,
) -> Vec<Vec<u8>> {
    let control = daemon.control().unwrap();
    let mut all = Vec::new();
    for batch in 0..200 {
        let some = keys(&format!("{name}-{batch}"), 8);
        for outcome in put(space, &some, &pages(&some, LEN)) {
            assert!(matches!(outcome, PageOutcome::Stored | PageOutcome::Busy), "{outcome:?}");
        }
        all.extend(some);
        if wanted(&control.status().unwrap()) {
            return all;
        }
    }
    panic!("{name}: it never came to that: {:?}", control.status().unwrap().nvme)
}

/// Every page is exact or a miss; returns how many hit.
fn check(space: &Space, all: &[Vec<u8>]) -> usize {
    let mut hits = 0;
    for batch in all.chunks(16) {
        for (key, (outcome, bytes)) in batch.iter().zip(get(space, batch, LEN)) {
            match outcome {
                PageOutcome::Hit => {
                    assert!(bytes == page(key, LEN), "wrong bytes under {}", key.escape_ascii())
                }
                PageOutcome::Miss => continue,
                other => panic!("a get became {other:?}"),
            }
            hits += 1;
        }
    }
    hits
}

fn states(status: &GetStatusResponse) -> Vec<DriveState> {
    status.nvme.iter().flat_map(|nvme| &nvme.drives).map(|drive| drive.state()).collect()
}

#[test]
fn a_drive_that_goes_away_costs_its_pages_and_nothing_else() {
    let places = drives(2);
    let mut daemon = start(&places, "64MiB", &["--nvme-mode", "write-through"]);
    daemon.allow("degraded");
    daemon.allow("drive");
    let (client, space) = tcp_space(&[&daemon], "failing");
    let before = put_until(&daemon, &space, "before", |status| {
        status.nvme.as_ref().is_some_and(|nvme| nvme.fill.as_ref().is_some_and(|fill| fill.pages > 300))
    });
    assert_eq!(check(&space, &before), before.len(), "memory and drives have all pages");
    // The server may just be making a file there.
    let gone = || fs::remove_dir_all(&places.drives[0]).is_ok() || !places.drives[0].exists();
    wait_for("the drive goes away", PATIENCE, || gone().then_some(())).unwrap();
    let during = put_until(&daemon, &space, "during", |status| states(status)[0] == DriveState::Failed);
    let status = wait_for_status(&daemon, "it says what is wrong", |status| !status.degraded.is_empty());
    assert_eq!(states(&status)[1], DriveState::Ok);
    assert!(status.degraded[0].contains(&places.drives[0].display().to_string()), "{:?}", status.degraded);
    assert_eq!(memkv_tests::http::get(daemon.admin_addr(), "/readyz").unwrap().0, 200, "it still serves");
    assert_eq!(daemon.metrics().unwrap().sum("memkv_drive_ok", &[]), 1.0);
    let mut inspect = clean_command(&program::cli().unwrap());
    inspect.env("MEMKV_SERVERS", daemon.addr().to_string()).env("MEMKV_AUTH_KEY", KEY);
    let shown = inspect.args(["inspect", "server", &daemon.addr().to_string()]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("state          degraded") && shown.contains("failed"), "{shown}");
    // What rests in memory or on the other drive is still there; the rest are misses.
    let hits = check(&space, &before);
    assert!(0 < hits && hits < before.len(), "{hits} of {} hit", before.len());
    assert!(check(&space, &during) > 0);
    let after = keys("after", 8);
    assert_eq!(put(&space, &after, &pages(&after, LEN)), vec![PageOutcome::Stored; 8]);
    assert_eq!(check(&space, &after), 8);
    client.close();
    assert!(daemon.stop().unwrap().success());
}

/// A file system of its own that is too small; unmounted when it goes away.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(mib: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "memkv-test"]).arg(folder.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self { folder }),
            _ => None,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("pages")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the daemon that used it may not have closed all its files yet.
        let unmounted = Command::new("umount").arg("-l").arg(self.folder.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn on_one_drive(path: &Path, quota: &str) -> Daemon {
    let args = [
        "--nvme-paths",
        &format!("{}:{quota}", path.display()),
        "--nvme-segment",
        "8MiB",
        "--nvme-mode",
        "write-through",
    ];
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    Daemon::start_with(Setup { dram: "64MiB".into(), args, ..Setup::default() }).unwrap()
}

#[test]
fn a_full_disk_is_a_counted_drop_and_no_error() {
    let Some(disk) = SmallDisk::mount(64) else {
        eprintln!("skipped: this user may not mount a small file system");
        return;
    };
    // Somebody else took all the room, so that there is none for a single segment.
    let filler = disk.folder.path().join("filler");
    fs::write(&filler, vec![1; 60 << 20]).unwrap();
    let mut daemon = on_one_drive(&disk.path(), "1GiB");
    daemon.allow("room");
    daemon.allow("degraded");
    let (client, space) = tcp_space(&[&daemon], "full disk");
    let dropped =
        |status: &GetStatusResponse| status.nvme.as_ref().is_some_and(|nvme| nvme.persist_dropped > 0);
    let all = put_until(&daemon, &space, "full", dropped);
    let status = daemon.control().unwrap().status().unwrap();
    assert!(status.nvme.as_ref().unwrap().drives[0].dropped_full > 0, "the reason is told");
    assert_eq!(states(&status), [DriveState::Full]);
    assert_eq!(check(&space, &all), all.len(), "the pages are in memory");
    // With room again it writes again, by itself, and that outlives a crash.
    fs::remove_file(&filler).unwrap();
    wait_for_status(&daemon, "the drive is used again", |status| states(status) == [DriveState::Ok]);
    let more = keys("more", 8);
    assert_eq!(put(&space, &more, &pages(&more, LEN)), vec![PageOutcome::Stored; 8]);
    client.close();
    daemon.kill().unwrap();
    daemon.restart().unwrap();
    let (client, space) = tcp_space(&[&daemon], "full disk");
    assert_eq!(check(&space, &more), 8);
    client.close();
    assert!(daemon.stop().unwrap().success());
}

#[test]
fn a_disk_that_is_smaller_than_its_quota_keeps_the_newest_pages() {
    let Some(disk) = SmallDisk::mount(64) else {
        eprintln!("skipped: this user may not mount a small file system");
        return;
    };
    let mut daemon = on_one_drive(&disk.path(), "1GiB");
    daemon.allow("room");
    daemon.allow("degraded");
    let (client, space) = tcp_space(&[&daemon], "small disk");
    let crowded = |status: &GetStatusResponse| {
        status.nvme.as_ref().is_some_and(|nvme| nvme.drives[0].reclaimed_segments > 4)
    };
    let all = put_until(&daemon, &space, "small", crowded);
    client.close();
    daemon.kill().unwrap();
    daemon.restart().unwrap();
    let (client, space) = tcp_space(&[&daemon], "small disk");
    let hits = check(&space, &all);
    assert!(0 < hits && hits < all.len(), "{hits} of {}", all.len());
    client.close();
    assert!(daemon.stop().unwrap().success());
}

#[test]
fn a_quota_is_kept_and_old_pages_go_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pages");
    let mut daemon = on_one_drive(&path, "64MiB");
    let (client, space) = tcp_space(&[&daemon], "quota");
    let reclaimed = |status: &GetStatusResponse| {
        status.nvme.as_ref().is_some_and(|nvme| nvme.drives[0].reclaimed_segments > 8)
    };
    let all = put_until(&daemon, &space, "quota", reclaimed);
    let used: u64 = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(used <= 64 << 20, "{used} bytes on a drive that may hold 64 MiB");
    daemon.kill().unwrap();
    daemon.restart().unwrap();
    client.close();
    let (client, space) = tcp_space(&[&daemon], "quota");
    let hits = check(&space, &all);
    assert!(0 < hits && hits < all.len(), "{hits} of {}", all.len());
    let newest = &all[all.len() - 8..];
    assert_eq!(check(&space, newest), 8, "the last ones are there");
    client.close();
    assert!(daemon.stop().unwrap().success());
}
