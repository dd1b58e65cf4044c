//! The ports of real devices, taken down and up again under a client. Only for a machine that is made for it, with nothing
//! else running there: the VM of `cargo xtask rdma`.

use crate::ops::{assert_all, assert_hits, get, put};
use crate::rig::{Rig, tests};
use memkv_client::{PageOutcome, Transport};
use memkv_tests::pages::{keys, pages};
use memkv_tests::wait_for;
use std::process::Command;
use std::time::Duration;

tests![pages_take_another_way_while_the_ports_are_down];

/// Set where these tests, and no others, are to run.
pub(crate) const VARIABLE: &str = "MEMKV_TEST_PORTS";

/// The machine is emulated, and its devices are software.
const PATIENCE: Duration = Duration::from_secs(90);

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}: {status}");
}

/// The link between the two devices, which takes its routes along when it goes down.
fn link(up: bool) {
    if !up {
        ip("link set vb down");
        return;
    }
    ip("link set vb up");
    let address = |end: &str| std::env::var(format!("RDMA_VM_ADDRESS_{end}")).unwrap();
    let (a, b) = (address("A"), address("B"));
    ip(&format!("route replace {b} dev va src {a} table 77"));
    ip(&format!("route replace {a} dev vb src {b} table 77"));
}

fn pages_take_another_way_while_the_ports_are_down(rig: &Rig) {
    let daemon = rig.daemon();
    daemon.allow("rdma");
    let (client, space) = rig.space(&[&daemon], "ports");
    let way = || client.servers()[0].transport;
    let down = || daemon.metrics().unwrap().sum("memkv_rdma_nics_down", &[]);
    let (all, len) = (keys("ports", 16), 64 << 10);
    assert_all(&put(&space, &all, &pages(&all, len)), PageOutcome::Stored);
    assert_hits(&space, &all, len);
    assert_eq!((way(), down() > 0.0), (Transport::Rdma, false));
    for _ in 0..2 {
        link(false);
        wait_for("the server sees it", PATIENCE, || (down() > 0.0).then_some(())).unwrap();
        wait_for("pages come by another way", PATIENCE, || {
            let came = get(&space, &all, len).iter().all(|(outcome, _)| *outcome == PageOutcome::Hit);
            (came && way() != Transport::Rdma).then_some(())
        })
        .unwrap();
        assert_hits(&space, &all, len);
        link(true);
        wait_for("pages come by rdma again", PATIENCE, || {
            let moved = || client.stats().rdma.bounced_pages;
            let before = moved();
            let came = get(&space, &all, len).iter().all(|(outcome, _)| *outcome == PageOutcome::Hit);
            (came && way() == Transport::Rdma && moved() > before).then_some(())
        })
        .unwrap();
        assert_hits(&space, &all, len);
        wait_for("the server sees that too", PATIENCE, || (down() == 0.0).then_some(())).unwrap();
    }
    client.close();
}
