//! A client may say how deep in its chain a batch begins; every page keeps its own place.

use crate::common::{client_of, put};
use memkv_client::{PageOutcome, SpaceDescription, Transport};
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::{keys, pages};

/// What servers say of the positions of keys.
fn positions(
    client: &memkv_client::blocking::Client,
    space: memkv_client::SpaceId,
    keys: &[Vec<u8>],
) -> Vec<u32> {
    let of = |key: &Vec<u8>| {
        let answers = client.inspect_key(space, key, false).into_iter();
        let status = answers.filter_map(|(_, answer)| answer.unwrap().status).next();
        status.expect("the key is stored").position
    };
    keys.iter().map(of).collect()
}

#[test]
fn consecutive_keys_have_consecutive_positions_wherever_they_are_routed() {
    let (one, two) = (Daemon::start().unwrap(), Daemon::start().unwrap());
    for transport in [Transport::Tcp, Transport::Grpc] {
        let client = client_of(&[one.addr(), two.addr()], transport);
        let space = client.space(SpaceDescription::named(&format!("chain {transport}")).unwrap()).unwrap();
        let all = keys("page", 50);
        let bytes = pages(&all, 5000);
        assert_eq!(put(&space.at_position(7), &all[..40], &bytes[..40]), vec![PageOutcome::Stored; 40]);
        assert_eq!(put(&space, &all[40..], &bytes[40..]), vec![PageOutcome::Stored; 10]);
        let found = positions(&client, space.id(), &all);
        assert_eq!(found[..40], (7..47).collect::<Vec<_>>(), "{transport}");
        assert_eq!(found[40..], [0; 10], "{transport}: what is not said is not known");
        let owners: std::collections::BTreeSet<_> =
            all.iter().map(|key| client.route(space.id(), key)[0].server.id.clone()).collect();
        assert_eq!(owners.len(), 2, "the pages lie on both servers");
        client.close();
    }
}
