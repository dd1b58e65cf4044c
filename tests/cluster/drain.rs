//! Draining: a server leaves, and its pages stay.

use crate::common::{
    PATIENCE, StopAtEnd, assert_all, assert_hits, cli, client_of, exists, get, named_servers, put, space_of,
};
use memkv_client::PageOutcome;
use memkv_client::blocking::Space;
use memkv_proto::v1;
use memkv_tests::control::Control;
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::pages::{keys, pages};
use memkv_tests::{http, wait_for};
use serde_json::Value;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const LEN: usize = 16 << 10;
const PAGES: usize = 600;

fn cluster(count: usize) -> Vec<Daemon> {
    (0..count).map(|_| Daemon::start().unwrap()).collect()
}

/// A server that keeps its pages over a restart, also after `kill -9`.
fn durable(folder: &std::path::Path) -> Daemon {
    let path = format!("{}:64MiB", folder.display());
    let args = ["--nvme-paths", &path, "--nvme-mode", "write-through", "--nvme-segment", "16MiB"];
    let args = args.map(str::to_owned).to_vec();
    let daemon = Daemon::start_with(Setup { args, ..Setup::default() }).unwrap();
    daemon.allow("unclean");
    daemon
}

fn state_of(control: &Control) -> v1::ServerState {
    control.status().unwrap().state()
}

/// What `memkv-cli drain` says in JSON, and whether it was content.
fn drain(servers: &str, arguments: &[&str]) -> (bool, Value) {
    let output = cli(servers).arg("drain").args(arguments).arg("--json").output().unwrap();
    let (text, talk) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}, {talk}"));
    (output.status.success(), json)
}

fn number(json: &Value, name: &str) -> u64 {
    json[name].as_u64().unwrap_or_else(|| panic!("{name} in {json}"))
}

/// Reads all keys again and again until `stop`; every one must be there each time. Returns how often it looked.
fn read_all_the_while(space: &Space, all: &[Vec<u8>], stop: &AtomicBool) -> usize {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) || rounds == 0 {
        for part in all.chunks(100) {
            assert_hits(space, part, LEN);
        }
        rounds += 1;
    }
    rounds
}

#[test]
fn no_page_is_lost_and_all_can_be_read_all_the_while() {
    let daemons = cluster(4);
    let all_servers = named_servers(&daemons, &[]);
    let client = client_of(&all_servers);
    let space = space_of(&client, "drain");
    let other = space_of(&client, "another");
    let (old, new) = (keys("old", PAGES), keys("new", 200));
    for space in [&space, &other] {
        assert_all(&put(space, &old, &pages(&old, LEN)), PageOutcome::Stored);
    }
    let leaving = daemons[0].control().unwrap();
    let held = leaving.status().unwrap().dram.unwrap().pages;
    assert!(held > 100, "{held}");
    let (stop, stored) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        scope.spawn(|| read_all_the_while(&space, &old, &stop));
        scope.spawn(|| {
            // New pages meanwhile: each is stored somewhere, and can be read at once.
            for key in new.chunks(10) {
                wait_for("the pages are stored", PATIENCE, || {
                    let outcomes = put(&space, key, &pages(key, LEN));
                    outcomes.iter().all(|outcome| outcome.is_success()).then_some(())
                })
                .unwrap();
                assert_hits(&space, key, LEN);
                stored.fetch_add(key.len(), Ordering::Relaxed);
            }
        });
        let (ok, done) = drain(&all_servers, &["kv-0", "--rate", "8MiB"]);
        stop.store(true, Ordering::Relaxed);
        assert!(ok && done["state"] == "drained" && done["done"] == true, "{done}");
        assert_eq!(number(&done, "lost_pages") + number(&done, "gone_pages"), 0, "{done}");
        let (moved, existing) = (number(&done, "moved_pages"), number(&done, "existing_pages"));
        assert!(moved >= held && moved + existing == number(&done, "pages"), "{done}");
        assert!(done["targets"].as_array().unwrap().len() == 3, "{done}");
    });
    assert_eq!(stored.load(Ordering::Relaxed), new.len());
    assert_eq!(state_of(&leaving), v1::ServerState::Drained);
    assert_eq!(http::get(daemons[0].admin_addr(), "/readyz").unwrap(), (200, "drained\n".to_owned()));
    let metrics = daemons[0].metrics().unwrap();
    assert_eq!(metrics.sum("memkv_drained", &[]), 1.0);
    assert!(metrics.sum("memkv_drain_moved_pages_total", &[]) >= held as f64);
    // Who knows only the others finds everything, and so does who still knows all.
    let later = client_of(&named_servers(&daemons, &[0]));
    for client in [&client, &later] {
        for name in ["drain", "another"] {
            assert_hits(&space_of(client, name), &old, LEN);
        }
        assert_hits(&space_of(client, "drain"), &new, LEN);
    }
    later.close();
    client.close();
}

#[test]
fn a_draining_server_refuses_new_pages_before_they_move_and_answers_reads() {
    let daemons = cluster(2);
    let servers = named_servers(&daemons, &[]);
    let control = daemons[0].control().unwrap();
    let space = control.open_space("direct").unwrap();
    let page = vec![7; LEN];
    for at in 0..200_u32 {
        let key = format!("there-{at}");
        let statuses = control.put(space, &[(key.as_bytes(), &page)], LEN).unwrap();
        assert_eq!(statuses, [v1::Status::Ok]);
    }
    // So slow that it is under way during all of this.
    let mut running = cli(&servers).args(["drain", "kv-0", "--rate", "64KiB"]).spawn().unwrap();
    wait_for("the drain begins", PATIENCE, || {
        (state_of(&control) == v1::ServerState::Draining).then_some(())
    })
    .unwrap();
    assert_eq!(http::get(daemons[0].admin_addr(), "/readyz").unwrap(), (200, "draining\n".to_owned()));
    let both: [(&[u8], &[u8]); 2] = [(b"new", &page), (b"there-3", &page)];
    let expected = [v1::Status::Busy, v1::Status::Exists];
    assert_eq!(control.put(space, &both, LEN).unwrap(), expected);
    let session = control.session().unwrap();
    let mut data = session.attach().unwrap();
    assert_eq!(data.put(space, b"new", &page).unwrap(), memkv_transport::frame::Code::Busy);
    assert_eq!(data.put(space, b"there-4", &page).unwrap(), memkv_transport::frame::Code::Exists);
    let (code, read) = data.get(space, b"there-5", LEN as u32).unwrap();
    assert!(code == memkv_transport::frame::Code::Ok && read == page, "{code:?}");
    let metrics = daemons[0].metrics().unwrap();
    assert_eq!(metrics.sum("memkv_put_draining_total", &[]), 2.0);
    assert_eq!(metrics.sum("memkv_put_busy_total", &[]), 0.0, "nothing was full");
    // The drain does not depend on whoever began it.
    running.kill().unwrap();
    running.wait().unwrap();
    let (ok, now) = drain(&servers, &["kv-0", "--status"]);
    assert!(ok && now["state"] == "draining" && now["done"] == false, "{now}");
    let (ok, cancelled) = drain(&servers, &["kv-0", "--cancel"]);
    assert!(ok && cancelled["state"] == "serving" && cancelled["done"] == true, "{cancelled}");
    daemons[0].allow("the drain ended before");
    assert_eq!(control.put(space, &[(b"new", &page)], LEN).unwrap(), [v1::Status::Ok]);
    assert_eq!(http::get(daemons[0].admin_addr(), "/readyz").unwrap(), (200, "ready\n".to_owned()));
}

#[test]
fn a_drain_that_was_killed_is_taken_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemons = vec![durable(folder.path())];
    daemons.extend(cluster(2));
    let servers = named_servers(&daemons, &[]);
    let client = client_of(&servers);
    let space = space_of(&client, "killed");
    let all = keys("killed", PAGES);
    assert_all(&put(&space, &all, &pages(&all, LEN)), PageOutcome::Stored);
    client.close();
    let mut running = cli(&servers).args(["drain", "kv-0", "--rate", "1MiB"]).spawn().unwrap();
    let moved = || daemons[0].metrics().unwrap().sum("memkv_drain_moved_pages_total", &[]);
    wait_for("some pages are moved", PATIENCE, || (moved() >= 20.0).then_some(())).unwrap();
    daemons[0].kill().unwrap();
    assert!(!running.wait().unwrap().success(), "the command says that the server is gone");
    daemons[0].restart().unwrap();
    assert_eq!(state_of(&daemons[0].control().unwrap()), v1::ServerState::Serving);
    let (ok, done) = drain(&servers, &["kv-0"]);
    assert!(ok && done["state"] == "drained", "{done}");
    assert!(number(&done, "existing_pages") >= 20, "what was moved is not sent again: {done}");
    assert!(number(&done, "moved_pages") > 0, "{done}");
    daemons[0].stop().unwrap();
    let later = client_of(&named_servers(&daemons, &[0]));
    assert_hits(&space_of(&later, "killed"), &all, LEN);
    later.close();
}

#[test]
fn a_server_that_dies_while_it_takes_pages_costs_none() {
    let mut daemons = cluster(3);
    let servers = named_servers(&daemons, &[]);
    let client = client_of(&servers);
    let space = space_of(&client, "dying");
    let all = keys("dying", PAGES);
    assert_all(&put(&space, &all, &pages(&all, LEN)), PageOutcome::Stored);
    client.close();
    let leaving = daemons[0].control().unwrap();
    let held = leaving.status().unwrap().dram.unwrap().pages;
    let mut running = cli(&servers).args(["drain", "kv-0", "--rate", "1MiB"]).spawn().unwrap();
    let taken = || daemons[1].control().unwrap().status().unwrap().ops.unwrap().put_stored;
    let before = all.len() as u64 - held;
    wait_for("it takes pages", PATIENCE, || (taken() > before / 2 + 5).then_some(())).unwrap();
    daemons[1].kill().unwrap();
    // The rest need not be slow.
    let (ok, done) = drain(&servers, &["kv-0", "--rate", "1GiB"]);
    running.wait().unwrap();
    assert!(ok && done["state"] == "drained", "{done}");
    assert!(number(&done, "elsewhere_pages") > 0 && number(&done, "lost_pages") == 0, "{done}");
    // It comes back without what it had; the drained server still has its own pages, and sends them again.
    daemons[1].restart().unwrap();
    let (ok, again) = drain(&servers, &["kv-0"]);
    assert!(ok && again["state"] == "drained", "{again}");
    assert_eq!(number(&again, "pages"), held, "{again}");
    assert_eq!(number(&again, "elsewhere_pages"), 0, "{again}");
    let first = leaving.status().unwrap().drain.unwrap();
    assert_eq!(
        first.targets.iter().map(|target| target.moved_pages + target.existing_pages).sum::<u64>(),
        held
    );
    daemons[0].stop().unwrap();
    let later = client_of(&named_servers(&daemons, &[0]));
    let space = space_of(&later, "dying");
    let found = exists(&space, &all).iter().filter(|found| **found).count() as u64;
    // Only what the killed server alone had is gone.
    assert!(found >= held, "{found} of {} are left, {held} were drained", all.len());
    later.close();
}

#[test]
fn pins_and_positions_come_along_and_what_was_deleted_stays_away() {
    let daemons = cluster(2);
    let servers = named_servers(&daemons, &[]);
    let client = client_of(&servers);
    let space = space_of(&client, "pins");
    let control = daemons[0].control().unwrap();
    let id = control.open_space("pins").unwrap();
    let page = vec![3; 4096];
    // One that is at home on the server that leaves: a client looks there.
    let is_home = |key: &String| client.route(id, key.as_bytes())[0].server.id == "kv-0";
    let gone = (0..).map(|at| format!("gone-{at}")).find(is_home).unwrap().into_bytes();
    assert_eq!(control.put(id, &[(b"pinned", &page), (&gone, &page)], 4096).unwrap(), [v1::Status::Ok; 2]);
    let keys = vec![b"pinned".to_vec()];
    let pin = v1::PinRequest { space_id: id.0.to_vec(), keys, ttl_ms: 3_600_000 };
    let pinned = control.block_on(control.admin().pin(control.request("/memkv.v1.Admin/Pin", pin))).unwrap();
    assert_eq!(pinned.into_inner().pinned, 1);
    let (ok, done) = drain(&servers, &["kv-0"]);
    assert!(ok && number(&done, "pinned_pages") == 1 && number(&done, "unpinned_pages") == 0, "{done}");
    let pins = |control: &Control| {
        let request = control.request("/memkv.v1.Admin/ListPins", v1::ListPinsRequest {});
        control.block_on(control.admin().list_pins(request)).unwrap().into_inner().pins
    };
    let taker = daemons[1].control().unwrap();
    let there = pins(&taker);
    assert_eq!((there.len(), &there[0].key[..]), (1, &b"pinned"[..]));
    assert!(there[0].left_ms <= 3_600_000 && there[0].left_ms > 3_000_000, "{}", there[0].left_ms);
    // A client that knows both deletes both copies.
    let mut removed = [false];
    wait_for("the client knows of the drain", PATIENCE, || {
        client.route(id, &gone).iter().any(|entry| entry.draining).then_some(())
    })
    .unwrap();
    space.delete(&[&gone], &mut removed).unwrap();
    assert!(removed[0]);
    for control in [&control, &taker] {
        let left = control.get(id, &[&gone], &[]).unwrap();
        assert_eq!(left[0].0, v1::Status::Miss);
    }
    client.close();
}

#[test]
fn nonsense_is_refused_with_a_text_that_says_what_to_do() {
    let daemons = cluster(2);
    let port = daemons[0].port();
    // The same server under two names would seem to have all pages already.
    let twice = format!("a=127.0.0.1:{port},b=127.0.0.1:{port}");
    let output = cli(&twice).args(["drain", "a"]).output().unwrap();
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && talk.contains("this server itself"), "{talk}");
    let alone = format!("a=127.0.0.1:{port}");
    let output = cli(&alone).args(["drain", "a"]).output().unwrap();
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && talk.contains("no other server"), "{talk}");
    let away = format!("a=127.0.0.1:{port},b=127.0.0.1:1");
    let output = cli(&away).args(["drain", "a"]).output().unwrap();
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && talk.contains("no member answers"), "{talk}");
    assert_eq!(state_of(&daemons[0].control().unwrap()), v1::ServerState::Serving);
    let (ok, none) = drain(&named_servers(&daemons, &[]), &["kv-0", "--status"]);
    assert!(ok && none["state"] == "serving" && none["done"] == true, "{none}");
}

#[test]
fn pages_on_drives_are_drained_without_being_brought_into_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = format!("{}:256MiB", folder.path().display());
    let args = ["--nvme-paths", &path, "--nvme-segment", "16MiB", "--nvme-admit-unread"];
    let args = args.map(str::to_owned).to_vec();
    let leaving = Daemon::start_with(Setup { dram: "64MiB".into(), args, ..Setup::default() }).unwrap();
    let taker = Daemon::start_with(Setup { dram: "256MiB".into(), ..Setup::default() }).unwrap();
    let daemons = vec![leaving, taker];
    let control = daemons[0].control().unwrap();
    let space = control.open_space("drives").unwrap();
    let page_bytes = 256 << 10;
    let all = keys("drives", 480);
    let put_all = || {
        for part in all.chunks(8) {
            let pages = pages(part, page_bytes);
            let both: Vec<_> = part.iter().zip(&pages).map(|(key, page)| (&key[..], &page[..])).collect();
            control.put(space, &both, 1 << 20).unwrap();
        }
    };
    // A busy drive takes less than is pushed out, and the rest is gone: it is put again.
    let nvme = || control.status().unwrap().nvme.unwrap();
    wait_for("pages are on the drive", PATIENCE, || {
        put_all();
        (nvme().fill.unwrap().pages > 150).then_some(())
    })
    .unwrap();
    let before = nvme();
    let (ok, done) = drain(&named_servers(&daemons, &[]), &["kv-0"]);
    assert!(ok && done["state"] == "drained", "{done}");
    // Pages that the last puts pushed out may go for good until the drain is under way, so what counts is what the
    // server holds after it: all of that was copied, and all that was copied can be read.
    let held = control.block_on(async {
        let request = control.request("/memkv.v1.Admin/ListSpaces", v1::ListSpacesRequest {});
        control.admin().list_spaces(request).await.unwrap().into_inner().spaces[0].pages
    });
    let moved = number(&done, "moved_pages");
    assert!(held > 300 && moved >= held, "{held} are held: {done}");
    assert_eq!(nvme().promoted, before.promoted, "a drain does not use pages");
    let later = client_of(&named_servers(&daemons, &[0]));
    let space = space_of(&later, "drives");
    let hits = get(&space, &all, page_bytes);
    let hits = hits.iter().zip(&all).filter(|((outcome, page), key)| {
        *outcome == PageOutcome::Hit && *page == memkv_tests::pages::page(key, page_bytes)
    });
    assert_eq!(hits.count() as u64, moved);
    later.close();
}
