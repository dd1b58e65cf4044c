//! A network that stalls. What servers do that die, freeze and come back is in the transport suite.

use crate::common::{OP_TIMEOUT, PATIENCE, SLACK, assert_all, get, put};
use memkv_client::PageOutcome;
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::proxy::{Faults, Proxy};
use memkv_tests::wait_for;
use std::time::Instant;

const LEN: usize = 20_000;

#[test]
fn a_stalled_network_is_like_a_frozen_server() {
    let daemon = Daemon::start().unwrap();
    let proxy = Proxy::start(daemon.addr()).unwrap();
    let client = crate::common::client_of(&[proxy.addr()], memkv_client::Transport::Tcp);
    let space = client.space(memkv_client::SpaceDescription::named("stall").unwrap()).unwrap();
    let all = keys("stall", 10);
    assert_all(&put(&space, &all, &pages(&all, LEN)), PageOutcome::Stored);
    proxy.set(Faults { stall: true, ..Faults::default() });
    let start = Instant::now();
    assert!(get(&space, &all, LEN).iter().all(|(outcome, _)| !outcome.is_success()));
    assert!(start.elapsed() < OP_TIMEOUT + SLACK, "{:?}", start.elapsed());
    proxy.set(Faults::default());
    // Late bytes of the old replies must not land in these pages.
    wait_for("pages hit again", PATIENCE, || {
        let got = get(&space, &all, LEN);
        for (key, (outcome, bytes)) in all.iter().zip(&got) {
            assert!(*outcome != PageOutcome::Hit || *bytes == page(key, LEN), "wrong bytes");
        }
        got.iter().all(|(outcome, _)| *outcome == PageOutcome::Hit).then_some(())
    })
    .unwrap();
    client.close();
}
