//! Which NICs are used: near ones first, and none whose port is down.

use crate::rig::{
    Memory, PATIENCE, Pieces, SHORT, config, connect, metric, server, server_config, server_with, space,
};
use memkv_client::blocking::Space;
use memkv_client::{PageOutcome, Transport};
use memkv_rdma::fake::{Fabric, Hold};
use memkv_server::config::rdma::RdmaConfig;
use memkv_tests::pages::{keys, pages};
use memkv_tests::wait_for;

const LEN: usize = 64 << 10;
const COUNT: usize = 4;

/// A server that uses these NICs.
fn server_on(fabric: &Fabric, devices: &[&str]) -> memkv_server::Server {
    let devices = devices.iter().map(|&name| name.to_owned()).collect();
    let own = RdmaConfig { devices, ..RdmaConfig::default() };
    server_with(fabric, memkv_server::Config { rdma: own, ..server_config() })
}

/// Stores pages. A call of [`SHORT`] may be too short for a busy machine.
fn store(pieces: &Pieces, space: &Space, names: &[Vec<u8>]) {
    wait_for("pages are stored", PATIENCE, || {
        pieces.put(space, names).iter().all(|outcome| outcome.is_success()).then_some(())
    })
    .unwrap();
}

#[test]
fn near_nics_are_used_and_far_ones_only_when_no_near_one_works() {
    let fabric = Fabric::new(4);
    let server = server(&fabric.at_node(2));
    let client = connect(&fabric.at_node(1), config(&[&server]).op_timeout(SHORT));
    let of = |nic: &str| fabric.queue_pairs_of(nic);
    let space = space(&client);
    let names = keys("near", COUNT);
    let memory = Memory::registered(&client, COUNT * LEN);
    memory.fill(0, &pages(&names, LEN).concat());
    let pieces = Pieces::pages(&memory, COUNT, LEN);
    store(&pieces, &space, &names);
    wait_for("two connections", PATIENCE, || (of("fake1") >= 2 && of("fake2") >= 2).then_some(())).unwrap();
    assert_eq!((of("fake0"), of("fake3")), (0, 0), "the others are on other nodes");
    fabric.set_port("fake1", false);
    wait_for("pages go by a far nic of the client", PATIENCE, || {
        (pieces.get(&space, &names) == [PageOutcome::Hit; COUNT]).then_some(())
    })
    .unwrap();
    assert_eq!(client.servers()[0].transport, Transport::Rdma);
    assert!(of("fake2") > 0, "the server's is still the near one");
    // Who names devices gets them all, wherever they are.
    let named = connect(&fabric.at_node(1), config(&[&server]).set("rdma_devices", "fake0,fake3"));
    wait_for("both are used", PATIENCE, || {
        crate::rig::space(&named).get(b"none").unwrap();
        (of("fake0") > 0 && of("fake3") > 0).then_some(())
    })
    .unwrap();
}

#[test]
fn a_port_of_the_client_that_goes_down_is_left_and_used_again() {
    let fabric = Fabric::new(3);
    let server = server_on(&fabric, &["fake2"]);
    let client = connect(&fabric, config(&[&server]).op_timeout(SHORT).set("rdma_devices", "fake0,fake1"));
    let space = space(&client);
    let names = keys("down", COUNT);
    let memory = Memory::registered(&client, COUNT * LEN);
    let bytes = pages(&names, LEN).concat();
    memory.fill(0, &bytes);
    let pieces = Pieces::pages(&memory, COUNT, LEN);
    store(&pieces, &space, &names);
    for (down, other) in [("fake0", "fake1"), ("fake1", "fake0"), ("fake0", "fake1")] {
        fabric.set_port(down, false);
        // What was on its way by it is missed; after that nothing goes there any more.
        wait_for("pages go by the other port alone", PATIENCE, || {
            memory.fill(0, &vec![0; bytes.len()]);
            let came = pieces.get(&space, &names) == [PageOutcome::Hit; COUNT];
            (came && fabric.queue_pairs_of(down) == 0 && fabric.queue_pairs_of(other) > 0).then_some(())
        })
        .unwrap_or_else(|late| panic!("{down}: {late}"));
        assert!(memory.read(0, bytes.len()) == bytes);
        assert_eq!(client.servers()[0].transport, Transport::Rdma);
        fabric.set_port(down, true);
    }
    assert_eq!(metric(&server, "memkv_rdma_nics_down"), 0, "the server's own port was up");
}

#[test]
fn work_under_way_ends_when_the_port_of_the_server_goes_down() {
    let fabric = Fabric::new(2);
    let server = server_on(&fabric, &["fake1"]);
    // The deadline is far away: it is not what ends the call.
    let auto = config(&[&server]).set("rdma_devices", "fake0").op_timeout(4 * PATIENCE);
    let client = connect(&fabric, auto);
    let space = space(&client);
    let names = keys("cut", COUNT);
    let memory = Memory::registered(&client, COUNT * LEN);
    memory.fill(0, &pages(&names, LEN).concat());
    let pieces = Pieces::pages(&memory, COUNT, LEN);
    store(&pieces, &space, &names);
    fabric.hold(Hold::Transfers);
    std::thread::scope(|scope| {
        let get = scope.spawn(|| Pieces::pages(&memory, COUNT, LEN).get(&space, &names));
        wait_for("work is under way", PATIENCE, || (fabric.counts().held > 0).then_some(())).unwrap();
        fabric.set_port("fake1", false);
        wait_for("the server sees it", PATIENCE, || {
            (metric(&server, "memkv_rdma_nics_down") == 1).then_some(())
        })
        .unwrap();
        assert_eq!(get.join().unwrap(), [PageOutcome::Unavailable; COUNT]);
    });
    fabric.hold(Hold::Nothing);
    fabric.set_port("fake1", true);
    wait_for("pages come again", PATIENCE, || {
        (pieces.get(&space, &names) == [PageOutcome::Hit; COUNT]).then_some(())
    })
    .unwrap();
    wait_for("the server sees that too", PATIENCE, || {
        (metric(&server, "memkv_rdma_nics_down") == 0).then_some(())
    })
    .unwrap();
}

#[test]
fn a_queue_pair_that_one_nic_of_the_server_refuses_is_made_at_another() {
    let fabric = Fabric::new(3);
    let server = server_on(&fabric, &["fake1", "fake2"]);
    fabric.set_port("fake1", false);
    let client = connect(&fabric, config(&[&server]).set("rdma_devices", "fake0"));
    let space = space(&client);
    let names = keys("other", COUNT);
    let memory = Memory::registered(&client, COUNT * LEN);
    memory.fill(0, &pages(&names, LEN).concat());
    let pieces = Pieces::pages(&memory, COUNT, LEN);
    for _ in 0..3 {
        assert!(pieces.put(&space, &names).iter().all(|outcome| outcome.is_success()));
        assert_eq!(pieces.get(&space, &names), [PageOutcome::Hit; COUNT]);
    }
    assert_eq!(fabric.queue_pairs_of("fake1"), 0);
    assert_eq!(client.stats().rdma.bounced_pages + client.stats().rdma.framed_pages, 0);
}

#[test]
fn a_nic_that_is_removed_is_let_go_of_and_used_again_when_it_is_back() {
    let fabric = Fabric::new(2);
    let server = server_on(&fabric, &["fake1"]);
    let client = connect(&fabric, config(&[&server]).op_timeout(SHORT).set("rdma_devices", "fake0"));
    let space = space(&client);
    let names = keys("back", COUNT);
    let bytes = pages(&names, LEN).concat();
    let mut memories = vec![Memory::registered(&client, COUNT * LEN)];
    memories[0].fill(0, &bytes);
    store(&Pieces::pages(&memories[0], COUNT, LEN), &space, &names);
    let comes = |memory: &Memory| {
        memory.fill(0, &vec![0; bytes.len()]);
        let direct = client.stats().rdma.direct_pages;
        let came = Pieces::pages(memory, COUNT, LEN).get(&space, &names) == [PageOutcome::Hit; COUNT];
        assert!(!came || memory.read(0, bytes.len()) == bytes, "a hit of wrong bytes");
        came && client.stats().rdma.direct_pages == direct + COUNT as u64
    };
    for removed in ["fake0", "fake1", "fake0", "fake1"] {
        fabric.remove(removed);
        // A removal ends when nobody has the device open any more, nor anything that was made of it.
        wait_for("it is let go of", PATIENCE, || (fabric.openings_of(removed) == 0).then_some(()))
            .unwrap_or_else(|late| panic!("{removed}: {late}"));
        if removed == "fake0" {
            // Memory may be registered all the same.
            memories.push(Memory::registered(&client, COUNT * LEN));
        }
        fabric.restore(removed);
        for memory in &memories {
            wait_for("pages come by it, without a copy", PATIENCE, || comes(memory).then_some(()))
                .unwrap_or_else(|late| panic!("{removed}: {late}"));
        }
        assert_eq!(fabric.openings_of(removed), 1);
    }
    let counts = fabric.counts();
    // The client's regions and its bounce buffer; the server's memory for pages and its trial.
    assert_eq!(counts.regions, memories.len() + 1 + 2);
    wait_for("no queue pair is left over", PATIENCE, || {
        let of_client = client.stats().rdma.queue_pairs as usize;
        (fabric.counts().queue_pairs == 2 * of_client).then_some(())
    })
    .unwrap();
    drop(memories);
    drop(space);
    drop(client);
    drop(server);
    // Their last tasks may end a moment later.
    wait_for("nothing is open any more", PATIENCE, || {
        let left = fabric.counts();
        let openings = fabric.openings_of("fake0") + fabric.openings_of("fake1");
        ((left.regions, left.queue_pairs, openings) == (0, 0, 0)).then_some(())
    })
    .unwrap();
}
