//! The ports of real devices, taken down and up again under a client, and devices that are removed. Only for a machine that
//! is made for it, with nothing else running there: the VM of `cargo xtask rdma`.

use crate::ops::{assert_all, assert_hits, get, put};
use crate::rig::{Rig, tests};
use memkv_client::{PageOutcome, Transport};
use memkv_tests::pages::{keys, pages};
use memkv_tests::{StopAtEnd, wait_for};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

tests![
    pages_take_another_way_while_the_ports_are_down,
    devices_that_are_removed_under_load_are_let_go_of_and_used_again,
];

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

/// Runs `rdma` of iproute2. Whether it ended well before [`PATIENCE`] was over: a removal waits for all programs that have
/// the device open.
fn rdma(arguments: &str) -> bool {
    let seconds = PATIENCE.as_secs().to_string();
    let status = Command::new("timeout").arg(seconds).arg("rdma").args(arguments.split_whitespace()).status();
    status.unwrap().success()
}

fn devices_that_are_removed_under_load_are_let_go_of_and_used_again(rig: &Rig) {
    let daemon = rig.daemon();
    daemon.allow("rdma");
    let (client, space) = rig.space(&[&daemon], "removed");
    let way = || client.servers()[0].transport;
    let gauge = |name: &str| daemon.metrics().unwrap().sum(name, &[]);
    let (all, len) = (keys("removed", 16), 64 << 10);
    assert_all(&put(&space, &all, &pages(&all, len)), PageOutcome::Stored);
    assert_hits(&space, &all, len);
    assert_eq!(way(), Transport::Rdma);
    let regions = gauge("memkv_rdma_regions");
    let (stop, rounds) = (AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        // Hits have the right bytes whatever happens; misses are what a removal may cost.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (key, (outcome, bytes)) in all.iter().zip(get(&space, &all, len)) {
                    assert!(outcome != PageOutcome::Hit || bytes == memkv_tests::pages::page(key, len));
                }
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        let comes_by_rdma = || {
            let before = client.stats().rdma.bounced_pages;
            let came = get(&space, &all, len).iter().all(|(outcome, _)| *outcome == PageOutcome::Hit);
            came && way() == Transport::Rdma && client.stats().rdma.bounced_pages > before
        };
        for _ in 0..2 {
            assert!(rdma("link delete rxe1"), "somebody holds the device");
            wait_for("pages come by the other device", PATIENCE, || comes_by_rdma().then_some(())).unwrap();
            assert!(rdma("link delete rxe0"), "somebody holds the device");
            wait_for("pages come by another way", PATIENCE, || {
                let came = get(&space, &all, len).iter().all(|(outcome, _)| *outcome == PageOutcome::Hit);
                (came && way() != Transport::Rdma).then_some(())
            })
            .unwrap();
            assert!((gauge("memkv_rdma_nics_down") - 2.0).abs() < 0.1);
            assert!(rdma("link add rxe0 type rxe netdev va") && rdma("link add rxe1 type rxe netdev vb"));
            wait_for("both are used again", PATIENCE, || {
                (gauge("memkv_rdma_nics_down") == 0.0).then_some(())
            })
            .unwrap();
            wait_for("pages come by rdma again", PATIENCE, || comes_by_rdma().then_some(())).unwrap();
        }
        assert!(rounds.load(Ordering::Relaxed) > 0);
    });
    assert_hits(&space, &all, len);
    // The client has another session by now, and what the earlier ones had is gone.
    wait_for("nothing is left over", PATIENCE, || {
        let pairs = f64::from(client.stats().rdma.queue_pairs);
        let is_same = |name: &str, value: f64| (gauge(name) - value).abs() < 0.1;
        (is_same("memkv_rdma_regions", regions) && is_same("memkv_rdma_queue_pairs", pairs)).then_some(())
    })
    .unwrap();
    client.close();
}
