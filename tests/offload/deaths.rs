//! Servers that die, freeze or lie, in the middle of what engines do.

use crate::engine::{BATCH, Engine, Setup, Watch, keys, prompt};
use memkv_client::Transport;
use memkv_offload::StopPolicy;
use memkv_tests::daemon::Daemon;
use memkv_tests::proxy::{Faults, Proxy, Way};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PAGES: usize = 60;

/// Daemons that have the pages of `prompt(1, PAGES)` in the space `name`.
fn filled(count: usize, name: &str) -> (Vec<Arc<Mutex<Daemon>>>, Vec<SocketAddr>) {
    let daemons: Vec<Daemon> = (0..count).map(|_| Daemon::start().unwrap()).collect();
    let addrs: Vec<SocketAddr> = daemons.iter().map(Daemon::addr).collect();
    let mut writer = Engine::new(&addrs, name, Setup::default());
    writer.serve(&prompt(1, PAGES));
    writer.settle();
    assert_eq!(writer.stats().stored_pages as usize, PAGES);
    writer.end();
    (daemons.into_iter().map(|daemon| Arc::new(Mutex::new(daemon))).collect(), addrs)
}

/// Does something to a daemon before call number `at`. A transfer's thread may outlive the test,
/// so the hook only borrows the daemon: the test is what ends it.
fn at_call(at: usize, daemon: &Arc<Mutex<Daemon>>, act: fn(&mut Daemon)) -> Arc<Watch> {
    let daemon = Arc::downgrade(daemon);
    Watch::with(move |call| {
        if call == at
            && let Some(daemon) = daemon.upgrade()
        {
            act(&mut daemon.lock().unwrap());
        }
    })
}

/// [`at_call`] for reads from the store.
fn at_read(at: usize, daemon: &Arc<Mutex<Daemon>>, act: fn(&mut Daemon)) -> Setup {
    Setup { gets: at_call(at, daemon, act), ..Setup::default() }
}

fn kill(daemon: &mut Daemon) {
    daemon.kill().unwrap();
}

fn freeze(daemon: &mut Daemon) {
    daemon.freeze().unwrap();
}

#[test]
fn a_server_killed_in_the_middle_of_a_prefetch_costs_the_pages_behind() {
    let (daemons, addrs) = filled(1, "killed");
    let mut engine = Engine::new(&addrs, "killed", at_read(2, &daemons[0], kill));
    assert_eq!(engine.serve(&prompt(1, PAGES)), 2 * BATCH);
    let stats = engine.stats();
    assert_eq!((stats.hit_pages as usize, stats.prefetched_pages as usize), (PAGES, 2 * BATCH));
    assert!(stats.unavailable_pages + stats.timed_out_pages > 0, "{stats:?}");
    // What was computed anew cannot be stored now; the engine has it all the same.
    engine.settle();
    assert_eq!(engine.stats().stored_pages, 0);
    engine.clear_device();
    assert_eq!(engine.serve(&prompt(1, PAGES)), PAGES);
    engine.end();
}

#[test]
fn one_dead_server_of_three_costs_the_run_up_to_its_first_page() {
    let (daemons, addrs) = filled(3, "one of three");
    let mut engine = Engine::new(&addrs, "one of three", at_read(1, &daemons[1], kill));
    let found = engine.serve(&prompt(1, PAGES));
    let space = engine.tiers.store().space.clone();
    let owner = |key: &memkv_offload::PageKey| {
        space.client().route(space.id(), key.as_ref())[0].server.port == addrs[1].port()
    };
    let expected = keys(&prompt(1, PAGES)).iter().skip(BATCH).position(owner).unwrap() + BATCH;
    assert_eq!(found, expected);
    engine.settle();
    engine.end();
}

#[test]
fn a_killed_server_is_used_again_after_its_restart() {
    let (daemons, addrs) = filled(1, "restart");
    let mut engine = Engine::new(&addrs, "restart", at_read(0, &daemons[0], kill));
    assert_eq!(engine.serve(&prompt(1, PAGES)), 0);
    engine.settle();
    daemons[0].lock().unwrap().restart().unwrap();
    let space = engine.tiers.store().space.clone();
    memkv_tests::wait_for("the client is back", crate::engine::PATIENCE, || {
        let ready = memkv_client::ServerState::Ready;
        (space.client().servers()[0].state == ready).then_some(())
    })
    .unwrap();
    engine.serve(&prompt(2, PAGES / 2));
    engine.settle();
    assert_eq!(engine.stats().stored_pages as usize, PAGES / 2);
    let mut other = Engine::new(&addrs, "restart", Setup::default());
    assert_eq!(other.serve(&prompt(2, PAGES / 2)), PAGES / 2);
    other.end();
    engine.end();
}

#[test]
fn a_frozen_server_costs_one_deadline() {
    let (daemons, addrs) = filled(1, "frozen");
    let mut engine = Engine::new(&addrs, "frozen", at_read(3, &daemons[0], freeze));
    // Waiting for everything still ends, because every read has a deadline.
    assert_eq!(engine.serve(&prompt(1, PAGES)), 3 * BATCH);
    assert_eq!(engine.stats().timed_out_pages as usize, BATCH);
    engine.settle();
    assert_eq!(engine.stats().stored_pages, 0);
    daemons[0].lock().unwrap().thaw().unwrap();
    engine.end();
}

#[test]
fn a_request_with_a_timeout_does_not_wait_for_the_deadline_of_a_frozen_read() {
    let (daemons, addrs) = filled(1, "impatient");
    let mut setup = at_read(2, &daemons[0], freeze);
    // The read's own deadline is later; nothing else could end the wait.
    setup.stop = StopPolicy::Timeout { base: Duration::from_secs(3), per_1024_tokens: Duration::ZERO };
    setup.op_timeout = Duration::from_secs(25);
    let gets = setup.gets.clone();
    let mut engine = Engine::new(&addrs, "impatient", setup);
    let found = engine.serve(&prompt(1, PAGES));
    assert_eq!(found, 2 * BATCH);
    let stats = engine.stats();
    assert_eq!((stats.stopped_prefetches, stats.timed_out_pages), (1, 0));
    assert_eq!(gets.under_way(), 1, "the read still hangs");
    assert!(!engine.tiers.is_idle(), "and still has its pages");
    // What it brings in the end was computed meanwhile.
    daemons[0].lock().unwrap().thaw().unwrap();
    engine.settle();
    assert_eq!(gets.under_way(), 0);
    assert_eq!(engine.stats().prefetched_pages as usize, 2 * BATCH);
    engine.end();
}

#[test]
fn a_server_killed_in_the_middle_of_a_load_back_does_not_matter() {
    let daemon = Arc::new(Mutex::new(Daemon::start().unwrap()));
    let addr = daemon.lock().unwrap().addr();
    let copies = at_call(5, &daemon, kill);
    let mut engine = Engine::new(&[addr], "load back", Setup { copies, ..Setup::default() });
    assert_eq!(engine.serve(&prompt(1, PAGES)), 0);
    engine.clear_device();
    // Another prompt is on its way to the store while the first one comes back.
    assert_eq!(engine.serve(&prompt(2, 30)), 0);
    assert_eq!(engine.serve(&prompt(1, PAGES)), PAGES);
    assert_eq!(engine.stats().loaded_pages as usize, PAGES);
    engine.settle();
    assert_eq!(engine.serve(&prompt(2, 30)), 30);
    engine.end();
}

#[test]
fn a_connection_cut_in_the_middle_of_a_page_and_a_flipped_bit_are_misses() {
    let name = "wire";
    let (daemons, addrs) = filled(1, name);
    daemons[0].lock().unwrap().allow("");
    let cut = Faults { cut: Some((Way::Down, 90_000)), ..Faults::default() };
    let flip = Faults { flip: Some((Way::Down, 90_000)), ..Faults::default() };
    for (faults, what) in [(cut, "cut"), (flip, "flip")] {
        let proxy = Proxy::start(addrs[0]).unwrap();
        proxy.set(faults);
        let mut engine = Engine::new(&[proxy.addr()], name, Setup::default());
        let found = engine.serve(&prompt(1, PAGES));
        let stats = engine.stats();
        assert!(found < PAGES, "{what}: {stats:?}");
        let failed = stats.corrupt_pages + stats.unavailable_pages + stats.timed_out_pages;
        assert!(failed > 0, "{what}: {stats:?}");
        if what == "flip" {
            assert!(proxy.flips() > 0 && stats.corrupt_pages > 0, "{stats:?}");
        }
        engine.settle();
        assert_eq!(engine.serve(&prompt(1, PAGES)), PAGES, "{what}");
        engine.end();
    }
}

#[test]
fn a_runtime_that_goes_away_in_the_middle_leaves_the_tree_consistent() {
    let (_daemons, addrs) = filled(1, "runtime");
    for transport in [Transport::Tcp, Transport::Grpc] {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let slot = Arc::new(Mutex::new(Some(runtime)));
        let gets = Watch::with(move |call| {
            if call == 2
                && let Some(runtime) = slot.lock().unwrap().take()
            {
                // From inside: the transfer is dropped when it next has to wait.
                runtime.shutdown_background();
            }
        });
        let setup = Setup { transport, gets, runtime: Some(handle), ..Setup::default() };
        let mut engine = Engine::new(&addrs, "runtime", setup);
        assert_eq!(engine.serve(&prompt(1, PAGES)), 0, "the load back found no runtime");
        let came = engine.stats().prefetched_pages as usize;
        assert!(came >= 2 * BATCH, "{came} pages: what came before stays");
        engine.settle();
        engine.end();
    }
}
