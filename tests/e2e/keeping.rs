//! What operators do to pages: pin them, check them, see what was taken out.

use crate::common::{assert_all, assert_hits, get, put, tcp_space};
use memkv_client::PageOutcome;
use memkv_tests::daemon::{Daemon, KEY, Setup, clean_command};
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::program;
use serde_json::Value;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const LEN: usize = 1 << 20;

/// Runs the CLI with `--json`; returns its exit code and what it printed.
fn cli(daemon: &Daemon, args: &[&str]) -> (i32, Value) {
    let mut command = clean_command(&program::cli().unwrap());
    command.env("MEMKV_SERVERS", daemon.addr().to_string()).env("MEMKV_AUTH_KEY", KEY);
    let output = command.args(args).arg("--json").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let json = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text:?}, {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), json)
}

fn names(keys: &[Vec<u8>]) -> Vec<&str> {
    keys.iter().map(|key| std::str::from_utf8(key).unwrap()).collect()
}

#[test]
fn pinned_pages_outlive_a_store_that_turns_over() {
    let daemon = Daemon::start_with(Setup { dram: "96MiB".into(), ..Setup::default() }).unwrap();
    let (client, space) = tcp_space(&[&daemon], "pins");
    let system = keys("system", 8);
    assert_all(&put(&space, &system, &pages(&system, LEN)), PageOutcome::Stored);
    let pin = |keys: &[Vec<u8>]| {
        let mut args = vec!["pin"];
        args.extend(names(keys));
        args.extend(["--space", "pins", "--ttl", "2h"]);
        cli(&daemon, &args)
    };
    let (code, pinned) = pin(&system);
    assert_eq!((code, &pinned["pinned"], &pinned["missing"]), (0, &8.into(), &0.into()), "{pinned}");
    let mut other = Vec::new();
    for lap in 0..30 {
        let more = keys(&format!("lap-{lap}"), 10);
        put(&space, &more, &pages(&more, LEN));
        other.extend(more);
    }
    assert_hits(&space, &system, LEN);
    let left =
        get(&space, &other, LEN).into_iter().filter(|(outcome, _)| *outcome == PageOutcome::Hit).count();
    assert!(left < 100, "{left} of 300 other pages are left: the store did not turn over");
    let (code, pins) = cli(&daemon, &["pins"]);
    assert_eq!((code, pins["pins"].as_array().unwrap().len()), (0, 8));
    // A quarter of the store may be pinned; a key that is not there cannot be.
    let many = keys("lap-29", 10).into_iter().chain(keys("lap-28", 10)).chain(keys("lap-27", 10));
    let (code, refused) = pin(&many.collect::<Vec<_>>());
    assert_eq!(code, 1, "{refused}");
    assert!(refused["over_quota"].as_u64().unwrap() > 0, "{refused}");
    let (code, absent) = pin(&keys("absent", 2));
    assert_eq!((code, &absent["missing"]), (1, &2.into()), "{absent}");
    let (code, unpinned) = cli(&daemon, &["unpin", "--all", "--space", "pins"]);
    assert!(code == 0 && unpinned["unpinned"].as_u64().unwrap() >= 8, "{unpinned}");
    assert_eq!(cli(&daemon, &["pins"]).1["pins"].as_array().unwrap().len(), 0);
    client.close();
}

/// Turns a bit in many blocks of every segment, past the headers.
fn damage(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().extension().is_none_or(|ending| ending != "segment") {
            continue;
        }
        let file = std::fs::File::options().read(true).write(true).open(entry.path()).unwrap();
        let len = file.metadata().unwrap().len();
        for at in (100_000..len).step_by(777_777) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        }
    }
}

#[test]
fn a_check_finds_damage_on_a_drive_and_takes_it_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pages");
    let args = [
        "--nvme-paths",
        &format!("{}:1GiB", path.display()),
        "--nvme-segment",
        "16MiB",
        "--nvme-mode",
        "write-through",
        "--scrub-rate",
        "0B",
    ];
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let mut daemon = Daemon::start_with(Setup { dram: "128MiB".into(), args, ..Setup::default() }).unwrap();
    daemon.allow("took out");
    daemon.allow("did not match");
    let (client, space) = tcp_space(&[&daemon], "damage");
    let all = keys("damage", 40);
    assert_all(&put(&space, &all, &pages(&all, LEN)), PageOutcome::Stored);
    let (code, fine) = cli(&daemon, &["verify"]);
    assert_eq!((code, &fine["quarantined"]), (0, &0.into()), "{fine}");
    assert_eq!(fine["servers"][0]["nvme_pages"], 40, "{fine}");
    client.close();
    // Afterwards the pages are on the drive alone.
    assert!(daemon.stop().unwrap().success());
    daemon.restart().unwrap();
    damage(&path);
    let (code, found) = cli(&daemon, &["verify", "--space", "damage", "--rate", "1GiB"]);
    let quarantined = found["quarantined"].as_u64().unwrap();
    assert!(code == 1 && quarantined > 0, "{code}: {found}");
    let (_, server) = cli(&daemon, &["inspect", "server", &daemon.addr().to_string()]);
    assert_eq!(server["status"]["quarantined_pages"], quarantined, "{server}");
    assert_eq!(server["quarantined"][0]["tier"], "nvme");
    assert!(!server["segments"].as_array().unwrap().is_empty());
    let (client, space) = tcp_space(&[&daemon], "damage");
    let mut hits = 0;
    for (key, (outcome, bytes)) in all.iter().zip(get(&space, &all, LEN)) {
        match outcome {
            PageOutcome::Hit => assert!(bytes == page(key, LEN), "wrong bytes under {}", key.escape_ascii()),
            other => assert_eq!(other, PageOutcome::Miss),
        }
        hits += u64::from(outcome == PageOutcome::Hit);
    }
    assert_eq!(hits + quarantined, 40, "what was taken out is a miss, and nothing else is");
    assert_eq!(cli(&daemon, &["verify"]).0, 0, "nothing is left to find");
    client.close();
}
