//! Several servers: pages are where the route says, and remember their places in their chains.

use crate::ops::{assert_all, assert_hits, put};
use crate::rig::{Rig, open, tests};
use memkv_client::blocking::Client;
use memkv_client::{PageOutcome, SpaceId};
use memkv_proto::v1::InspectKeyRequest;
use memkv_tests::control::Control;
use memkv_tests::pages::{keys, pages};
use std::collections::BTreeSet;

tests![
    a_batch_is_spread_over_all_servers,
    consecutive_keys_have_consecutive_positions_wherever_they_are_routed,
];

fn a_batch_is_spread_over_all_servers(rig: &Rig) {
    let daemons = [rig.daemon(), rig.daemon(), rig.daemon()];
    let (client, space) = rig.space(&daemons.each_ref(), "spread");
    let all = keys("spread", 300);
    assert_all(&put(&space, &all, &pages(&all, 4096)), PageOutcome::Stored);
    assert_hits(&space, &all, 4096);
    let held: Vec<u64> = daemons
        .iter()
        .map(|daemon| daemon.control().unwrap().status().unwrap().dram.unwrap().pages)
        .collect();
    assert_eq!(held.iter().sum::<u64>(), 300);
    assert!(held.iter().all(|&pages| pages > 30), "{held:?}");
    // Pages are where the route says.
    let controls: Vec<_> = daemons.iter().map(|daemon| (daemon.port(), daemon.control().unwrap())).collect();
    for key in all.iter().step_by(10) {
        let owner = client.route(space.id(), key)[0].server.port;
        for (port, control) in &controls {
            assert_eq!(is_held(control, space.id(), key), *port == owner, "{}", key.escape_ascii());
        }
    }
    client.close();
}

fn is_held(control: &Control, space: SpaceId, key: &[u8]) -> bool {
    let message = InspectKeyRequest { space_id: space.0.to_vec(), key: key.to_vec(), verify: true };
    let request = control.request("/memkv.v1.Admin/InspectKey", message);
    let response = control.block_on(control.admin().inspect_key(request)).unwrap().into_inner();
    assert_eq!(response.found, response.verified, "a stored page does not match its checksum");
    response.found
}

/// What servers say of the positions of keys.
fn positions(client: &Client, space: SpaceId, keys: &[Vec<u8>]) -> Vec<u32> {
    let of = |key: &Vec<u8>| {
        let answers = client.inspect_key(space, key, false).into_iter();
        let status = answers.filter_map(|(_, answer)| answer.unwrap().status).next();
        status.expect("the key is stored").position
    };
    keys.iter().map(of).collect()
}

fn consecutive_keys_have_consecutive_positions_wherever_they_are_routed(rig: &Rig) {
    let (one, two) = (rig.daemon(), rig.daemon());
    let client = rig.client(&[&one, &two]);
    let space = open(&client, "chain");
    let all = keys("page", 50);
    let bytes = pages(&all, 5000);
    assert_eq!(put(&space.at_position(7), &all[..40], &bytes[..40]), vec![PageOutcome::Stored; 40]);
    assert_eq!(put(&space, &all[40..], &bytes[40..]), vec![PageOutcome::Stored; 10]);
    let found = positions(&client, space.id(), &all);
    assert_eq!(found[..40], (7..47).collect::<Vec<_>>());
    assert_eq!(found[40..], [0; 10], "what is not said is not known");
    let owners: BTreeSet<_> =
        all.iter().map(|key| client.route(space.id(), key)[0].server.id.clone()).collect();
    assert_eq!(owners.len(), 2, "the pages lie on both servers");
    client.close();
}
