//! What is put comes back, byte for byte, and nothing else does.

use crate::ops::{assert_all, assert_hits, exists, get, put};
use crate::rig::{Rig, open, tests};
use memkv_client::{PageOutcome, SpaceDescription, Transport};
use memkv_tests::pages::{keys, page, pages};

tests![
    pages_of_many_sizes_round_trip,
    the_largest_page_round_trips,
    batches_of_many_sizes_round_trip,
    one_batch_holds_pages_of_different_sizes,
    a_batch_reports_each_page_in_its_place,
    destinations_of_missed_pages_stay_untouched,
    the_first_put_wins,
    another_length_is_a_mismatch_and_writes_nothing,
    single_ops_work_without_knowing_the_length,
    keys_of_1_and_512_bytes_work,
    a_key_twice_in_a_batch_is_read_twice_and_stored_once,
    other_transports_see_the_same_pages,
];

fn pages_of_many_sizes_round_trip(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "sizes");
    let sizes = [1, 63, 4095, 4096, 4097, 65_535, 65_536, 100_001, 1 << 20, (4 << 20) + 1];
    for len in sizes {
        let keys = keys(&format!("size-{len}"), 3);
        assert_all(&put(&space, &keys, &pages(&keys, len)), PageOutcome::Stored);
        assert_hits(&space, &keys, len);
    }
    let dram = daemon.control().unwrap().status().unwrap().dram.unwrap();
    assert_eq!(dram.pages, 3 * sizes.len() as u64);
    client.close();
}

fn the_largest_page_round_trips(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "largest");
    let (keys, len) = (keys("largest", 2), rig.page_bytes_max());
    assert_eq!(client.servers()[0].limits.page_bytes_max as usize, len);
    assert_all(&put(&space, &keys, &pages(&keys, len)), PageOutcome::Stored);
    assert_hits(&space, &keys, len);
    client.close();
}

fn batches_of_many_sizes_round_trip(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "batches");
    for (count, len) in [(1, 70_000), (2, 70_000), (128, 64 << 10), (1000, rig.pick(12_345, 2345))] {
        let keys = keys(&format!("batch-{count}"), count);
        assert_all(&put(&space, &keys, &pages(&keys, len)), PageOutcome::Stored);
        assert_hits(&space, &keys, len);
        assert_all(&put(&space, &keys, &pages(&keys, len)), PageOutcome::Exists);
    }
    client.close();
}

fn one_batch_holds_pages_of_different_sizes(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "mixed");
    let keys = keys("mixed", 60);
    // As many sizes as a small store has room for, each in its own chunk.
    let len_of = |i: usize| 1 + 20 * (i % 10_usize).pow(4);
    let mixed: Vec<_> = keys.iter().enumerate().map(|(i, key)| page(key, len_of(i))).collect();
    assert_all(&put(&space, &keys, &mixed), PageOutcome::Stored);
    let mut room: Vec<Vec<u8>> = mixed.iter().map(|page| vec![0; page.len()]).collect();
    let mut slices: Vec<&mut [u8]> = room.iter_mut().map(Vec::as_mut_slice).collect();
    let mut outcomes = vec![PageOutcome::Busy; keys.len()];
    space.get_into(&keys, &mut slices, &mut outcomes).unwrap();
    assert_all(&outcomes, PageOutcome::Hit);
    assert!(room == mixed);
    client.close();
}

fn a_batch_reports_each_page_in_its_place(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "places");
    let all = keys("batch", 300);
    let stored: Vec<_> = all.iter().step_by(3).cloned().collect();
    assert_all(&put(&space, &stored, &pages(&stored, 5000)), PageOutcome::Stored);
    let found = exists(&space, &all);
    let mut pages = vec![vec![0_u8; 5000]; all.len()];
    let mut slices: Vec<&mut [u8]> = pages.iter_mut().map(Vec::as_mut_slice).collect();
    let mut outcomes = vec![PageOutcome::Busy; all.len()];
    let report = space.get_into(&all, &mut slices, &mut outcomes).unwrap();
    assert_eq!((report.ok, report.bytes, report.failed), (100, 500_000, 0));
    for (i, key) in all.iter().enumerate() {
        let expected = if i % 3 == 0 { PageOutcome::Hit } else { PageOutcome::Miss };
        assert_eq!((outcomes[i], found[i]), (expected, i % 3 == 0));
        assert!(i % 3 != 0 || pages[i] == page(key, 5000), "wrong bytes at {i}");
    }
    client.close();
}

fn destinations_of_missed_pages_stay_untouched(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "untouched");
    for len in [100, 70_000] {
        let all = keys(&format!("untouched-{len}"), 40);
        let stored: Vec<_> = all.iter().skip(1).step_by(2).cloned().collect();
        assert_all(&put(&space, &stored, &pages(&stored, len)), PageOutcome::Stored);
        for (i, (outcome, bytes)) in get(&space, &all, len).iter().enumerate() {
            if i % 2 == 1 {
                assert!(*outcome == PageOutcome::Hit && *bytes == page(&all[i], len), "{i}: {outcome:?}");
            } else {
                assert_eq!(*outcome, PageOutcome::Miss);
                assert!(bytes.iter().all(|&byte| byte == 0xee), "the destination of a miss was written");
            }
        }
    }
    client.close();
}

fn the_first_put_wins(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "first");
    for len in [4096, 1 << 20] {
        let key = keys(&format!("once-{len}"), 1);
        assert_all(&put(&space, &key, &[page(b"first", len)]), PageOutcome::Stored);
        assert_all(&put(&space, &key, &[page(b"second", len)]), PageOutcome::Exists);
        let (outcome, bytes) = get(&space, &key, len).remove(0);
        assert_eq!(outcome, PageOutcome::Hit);
        assert!(bytes == page(b"first", len));
    }
    client.close();
}

fn another_length_is_a_mismatch_and_writes_nothing(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "length");
    let key = keys("length", 1);
    assert_all(&put(&space, &key, &pages(&key, 4096)), PageOutcome::Stored);
    for len in [4095, 4097, 1, 100_000] {
        let (outcome, bytes) = get(&space, &key, len).remove(0);
        assert_eq!(outcome, PageOutcome::SizeMismatch);
        assert!(bytes.iter().all(|&byte| byte == 0xee), "the destination was written");
    }
    // A mismatch says nothing about its neighbours.
    let both = [keys("length", 2), key.clone()].concat();
    assert_all(&put(&space, &both[1..2], &pages(&both[1..2], 5000)), PageOutcome::Stored);
    let outcomes: Vec<_> = get(&space, &both, 4096).into_iter().map(|(outcome, _)| outcome).collect();
    assert_eq!(outcomes, [PageOutcome::Hit, PageOutcome::SizeMismatch, PageOutcome::Hit]);
    assert_hits(&space, &key, 4096);
    client.close();
}

fn single_ops_work_without_knowing_the_length(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "single");
    for (key, len) in [(&b"small"[..], 12), (b"single", 12_345), (b"large", (1 << 20) + 1), (b"again", 12)] {
        let bytes = page(key, len);
        assert_eq!(space.get(key).unwrap(), None);
        assert_eq!(space.put(key, &bytes).unwrap(), PageOutcome::Stored);
        assert!(space.get(key).unwrap() == Some(bytes), "{len} bytes");
    }
    client.close();
}

fn keys_of_1_and_512_bytes_work(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "keys");
    let all = vec![vec![0], vec![0xff; 512]];
    assert_all(&put(&space, &all, &pages(&all, 64)), PageOutcome::Stored);
    assert_hits(&space, &all, 64);
    client.close();
}

fn a_key_twice_in_a_batch_is_read_twice_and_stored_once(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "twice");
    let all = [keys("twice", 2), keys("twice", 2)].concat();
    let outcomes = put(&space, &all, &pages(&all, 9000));
    let stored = outcomes.iter().filter(|outcome| **outcome == PageOutcome::Stored).count();
    assert_eq!(stored, 2, "{outcomes:?}");
    assert_hits(&space, &all, 9000);
    client.close();
}

fn other_transports_see_the_same_pages(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "same");
    for transport in [Transport::Tcp, Transport::Grpc] {
        let other = Rig::new(transport);
        let (other_client, over_other) = other.space(&[&daemon], "same");
        assert_eq!(space.id(), over_other.id());
        let all = keys(&format!("with {transport}"), 20);
        assert_all(&put(&space, &all[..10], &pages(&all[..10], 70_000)), PageOutcome::Stored);
        assert_all(&put(&over_other, &all[10..], &pages(&all[10..], 70_000)), PageOutcome::Stored);
        assert_hits(&space, &all, 70_000);
        assert_hits(&over_other, &all, 70_000);
        other_client.close();
    }
    // Another space of the same client has none of them.
    let elsewhere = client.space(SpaceDescription::named("elsewhere").unwrap()).unwrap();
    assert!(exists(&elsewhere, &keys("with tcp", 20)).iter().all(|found| !found));
    assert_eq!(open(&client, "same").id(), space.id());
    client.close();
}
