//! Nothing is left behind: slots, regions and queue pairs are counted after many beginnings and violent ends.

use crate::rig::{
    Memory, PATIENCE, Pieces, config, connect, metric, server, server_config, server_with, space,
};
use memkv_client::{PageOutcome, RawPieces};
use memkv_rdma::fake::{Counts, Fabric, Hold};
use memkv_server::Server;
use memkv_tests::pages::{keys, page};
use memkv_tests::wait_for;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};

const LEN: usize = 32 << 10;

/// What the server and the network have of what ends with clients.
fn settled(fabric: &Fabric, server: &Server, baseline: Counts, used: u64) {
    let look = || {
        let counts = fabric.counts();
        let own =
            ["memkv_rdma_queue_pairs", "memkv_rdma_regions", "memkv_data_connections", "memkv_sessions"];
        let is_clean = counts.regions == baseline.regions
            && counts.queue_pairs == baseline.queue_pairs
            && counts.held == 0
            && own.iter().all(|name| metric(server, name) == 0)
            && metric(server, "memkv_dram_used_bytes") == used;
        is_clean.then_some(())
    };
    wait_for("everything is given back", PATIENCE, look)
        .unwrap_or_else(|late| panic!("{late}: {:?}", fabric.counts()));
}

#[test]
fn a_thousand_clients_come_and_go() {
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let (baseline, used) = (fabric.counts(), metric(&server, "memkv_dram_used_bytes"));
    let name = keys("gone", 1);
    for round in 0..1000 {
        let client = connect(&fabric, config(&[&server]).set("rdma_bounce", "64KiB"));
        if round % 10 == 0 {
            let space = space(&client);
            let memory = Memory::registered(&client, LEN);
            memory.fill(0, &page(&name[0], LEN));
            assert_eq!(Pieces::pages(&memory, 1, LEN).put(&space, &name), [PageOutcome::Stored]);
            assert!(space.delete(&name, &mut [false]).unwrap().ok == 1);
            assert_eq!(client.stats().rdma.direct_pages, 1);
        }
    }
    settled(&fabric, &server, baseline, used);
}

#[test]
fn two_hundred_clients_die_in_the_middle() {
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let (baseline, used) = (fabric.counts(), metric(&server, "memkv_dram_used_bytes"));
    let name = keys("dies", 1);
    for _ in 0..200 {
        let client = connect(&fabric, config(&[&server]).set("rdma_bounce", "64KiB"));
        let space = space(&client);
        let memory = Memory::registered(&client, LEN);
        memory.fill(0, &page(&name[0], LEN));
        fabric.hold(Hold::Transfers);
        let (ptrs, lens) = ([memory.at(0)], [LEN]);
        let raw = RawPieces { ptrs: &ptrs, lens: &lens, per_page: 1 };
        let mut out = [PageOutcome::Unavailable];
        {
            // SAFETY: the memory outlives the future, which is dropped before it is used again.
            let put = unsafe { space.asynchronous().put_from_raw(&name, raw, &mut out) };
            let mut put = pin!(put);
            assert!(put.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            wait_for("work is under way", PATIENCE, || (fabric.counts().held > 0).then_some(())).unwrap();
        }
        drop((space, memory, client));
        fabric.hold(Hold::Nothing);
    }
    settled(&fabric, &server, baseline, used);
    assert_eq!(metric(&server, "memkv_dram_pages"), 0);
}

#[test]
fn servers_die_in_the_middle_again_and_again() {
    let fabric = Fabric::new(1);
    let nothing = fabric.counts();
    let mut config_of = server_config();
    config_of.data_threads = 1;
    let first = server_with(&fabric, config_of.clone());
    config_of.listen = first.address();
    // The port behind it may be anybody's by then.
    config_of.admin_listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let client = connect(&fabric, config(&[&first]).set("rdma_bounce", "64KiB"));
    let space = space(&client);
    let memory = Memory::registered(&client, LEN);
    let name = keys("server", 1);
    let bytes = page(&name[0], LEN);
    let mut server = first;
    for round in 0..20 {
        memory.fill(0, &bytes);
        wait_for("the server takes the page", PATIENCE, || {
            Pieces::pages(&memory, 1, LEN).put(&space, &name)[0].is_success().then_some(())
        })
        .unwrap_or_else(|late| panic!("round {round}: {late}"));
        fabric.hold(Hold::Transfers);
        std::thread::scope(|scope| {
            let get = scope.spawn(|| Pieces::pages(&memory, 1, LEN).get(&space, &name));
            wait_for("work is under way", PATIENCE, || (fabric.counts().held > 0).then_some(())).unwrap();
            drop(server);
            assert_eq!(get.join().unwrap(), [PageOutcome::Unavailable]);
        });
        fabric.hold(Hold::Nothing);
        let again = || Server::start_with(config_of.clone(), Some(Arc::new(fabric.clone()))).ok();
        // Somebody may have had the port for a moment.
        server = wait_for("the server is back", PATIENCE, again).unwrap();
    }
    drop((memory, space, client, server));
    let gone = || {
        let counts = fabric.counts();
        ((counts.regions, counts.queue_pairs, counts.held) == (nothing.regions, nothing.queue_pairs, 0))
            .then_some(())
    };
    wait_for("everything is given back", PATIENCE, gone)
        .unwrap_or_else(|late| panic!("{late}: {:?}", fabric.counts()));
}
