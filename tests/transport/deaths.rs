//! Clients that are killed in the middle of what they do leave nothing behind.

use crate::ops::{PATIENCE, assert_all, assert_hits, exists, put, wait_until_empty};
use crate::rig::{Rig, open, tests};
use memkv_client::{PageOutcome, Transport};
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::wait_for;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};

tests![clients_killed_at_any_moment_leave_nothing_behind];

/// Makes this binary a client that puts and gets until it is killed: a transport and an address.
const VICTIM: &str = "MEMKV_TEST_VICTIM";
/// Pages of one batch.
const BATCH: usize = 16;
/// Bytes of a page.
const LEN: usize = 256 << 10;

/// Whether this process is a client that is going to be killed.
pub(crate) fn is_victim() -> bool {
    std::env::var_os(VICTIM).is_some()
}

/// What such a client does.
pub(crate) fn victim() -> ExitCode {
    let what = std::env::var(VICTIM).unwrap();
    let (transport, addr) = what.split_once(' ').unwrap();
    let (transport, addr): (Transport, SocketAddr) = (transport.parse().unwrap(), addr.parse().unwrap());
    let config = Rig::new(transport).config(&[addr]).build().unwrap();
    let client = memkv_client::blocking::Client::connect(config).unwrap();
    let space = open(&client, "killed");
    for lap in 0_u32.. {
        let all = keys(&format!("{}-{lap}", std::process::id()), BATCH);
        put(&space, &all, &pages(&all, LEN));
        assert_hits(&space, &keys("there", BATCH), LEN);
        if writeln!(std::io::stdout(), "{lap}").is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}

struct Victim(Child);

impl Victim {
    /// Starts a client and waits until it has moved pages.
    fn start(rig: &Rig, daemon: &Daemon) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(VICTIM, format!("{} {}", rig.transport, daemon.addr()));
        let mut victim = Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
        let mut first = String::new();
        BufReader::new(victim.0.stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert_eq!(first, "0\n", "the client did not get as far as its second batch");
        victim
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn clients_killed_at_any_moment_leave_nothing_behind(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "killed");
    let there = keys("there", BATCH);
    assert_all(&put(&space, &there, &pages(&there, LEN)), PageOutcome::Stored);
    let control = daemon.control().unwrap();
    let rounds = rig.pick(6, 3);
    let mut files = Vec::new();
    for round in 0..rounds {
        // A moment into its next batch; which byte of which op it is does not matter, only that it varies.
        let victim = Victim::start(rig, &daemon);
        let pid = victim.0.id();
        std::thread::sleep(std::time::Duration::from_millis(round * 3));
        drop(victim);
        wait_for("its session is gone", PATIENCE, || {
            (control.status().unwrap().session_count == 1).then_some(())
        })
        .unwrap();
        wait_for("nothing is in flight", PATIENCE, || {
            (daemon.metrics().unwrap().sum("memkv_requests_in_flight", &[]) == 0.0).then_some(())
        })
        .unwrap();
        files.push(daemon.open_files().unwrap());
        // What it had begun is whole or absent, and its keys are free.
        for lap in 0..3 {
            let all = keys(&format!("{pid}-{lap}"), BATCH);
            let known: Vec<_> =
                all.into_iter().zip(exists(&space, &keys(&format!("{pid}-{lap}"), BATCH))).collect();
            for (key, was_there) in known {
                let outcome = put(&space, std::slice::from_ref(&key), &[page(&key, LEN)]).remove(0);
                let expected = if was_there { PageOutcome::Exists } else { PageOutcome::Stored };
                assert_eq!(outcome, expected, "{}", key.escape_ascii());
                assert_hits(&space, &[key], LEN);
            }
        }
        space.clear().unwrap();
        wait_until_empty(&daemon);
        assert_all(&put(&space, &there, &pages(&there, LEN)), PageOutcome::Stored);
    }
    let (first, last) = (files[0], files[files.len() - 1]);
    assert!(last <= first + 2, "the server's open files grew: {files:?}");
    client.close();
}
