//! What is there, what goes away, and what belongs to whom.

use crate::ops::{assert_all, assert_hits, exists, get, put, wait_until_empty};
use crate::rig::{Rig, open, tests};
use memkv_client::PageOutcome;
use memkv_tests::pages::{keys, page, pages};

tests![
    deleted_pages_are_gone_and_can_be_put_again,
    touch_says_what_is_there,
    a_prefix_ends_at_the_first_gap,
    clear_removes_exactly_its_own_space,
    thousands_of_keys_in_one_exists,
    pages_of_one_space_are_misses_in_another,
];

fn deleted_pages_are_gone_and_can_be_put_again(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "delete");
    let all = keys("delete", 10);
    assert_all(&put(&space, &all, &pages(&all, 4096)), PageOutcome::Stored);
    let mut removed = [false; 5];
    space.delete(&all[..5], &mut removed).unwrap();
    assert_eq!(removed, [true; 5]);
    space.delete(&all[..5], &mut removed).unwrap();
    assert_eq!(removed, [false; 5]);
    assert_eq!(exists(&space, &all), [[false; 5], [true; 5]].concat());
    assert_eq!(daemon.control().unwrap().status().unwrap().dram.unwrap().pages, 5);
    assert_all(&put(&space, &all[..5], &pages(&all[..5], 4096)), PageOutcome::Stored);
    assert_hits(&space, &all, 4096);
    // What a client has read and then removed is held by nobody, while the client lives.
    let mut removed = [false; 10];
    space.delete(&all, &mut removed).unwrap();
    assert_eq!(removed, [true; 10]);
    exists(&space, &all);
    wait_until_empty(&daemon);
    client.close();
}

fn touch_says_what_is_there(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "touch");
    let all = keys("touch", 4);
    assert_all(&put(&space, &all[1..3], &pages(&all[1..3], 100)), PageOutcome::Stored);
    let mut present = [true; 4];
    space.touch(&all, &mut present).unwrap();
    assert_eq!(present, [false, true, true, false]);
    client.close();
}

fn a_prefix_ends_at_the_first_gap(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "prefix");
    let all = keys("prefix", 50);
    let stored: Vec<_> = all[..20].iter().chain(&all[21..]).cloned().collect();
    assert_all(&put(&space, &stored, &pages(&stored, 100)), PageOutcome::Stored);
    assert_eq!(space.exists_prefix(&all).unwrap(), 20);
    assert_eq!(space.exists_prefix(&all[21..]).unwrap(), 29);
    assert_eq!(space.exists_prefix(&all[20..]).unwrap(), 0);
    client.close();
}

fn clear_removes_exactly_its_own_space(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "clear");
    let other = open(&client, "other");
    let all = keys("clear", 40);
    let others: Vec<_> = all.iter().map(|key| page(&[key, &b"other"[..]].concat(), 3000)).collect();
    assert_all(&put(&space, &all, &pages(&all, 3000)), PageOutcome::Stored);
    // Same keys, other bytes: the two spaces must never mix.
    assert_all(&put(&other, &all, &others), PageOutcome::Stored);
    assert_hits(&space, &all, 3000);
    space.clear().unwrap();
    assert!(exists(&space, &all).iter().all(|found| !found));
    for ((outcome, bytes), expected) in get(&other, &all, 3000).iter().zip(&others) {
        assert_eq!(*outcome, PageOutcome::Hit);
        assert!(bytes == expected, "one space shows another's bytes");
    }
    assert_all(&put(&space, &all, &pages(&all, 3000)), PageOutcome::Stored);
    assert_hits(&space, &all, 3000);
    client.close();
}

fn thousands_of_keys_in_one_exists(rig: &Rig) {
    let daemons = [rig.daemon(), rig.daemon(), rig.daemon()];
    let (client, space) = rig.space(&daemons.each_ref(), "many");
    let all = keys("many", rig.pick(8192, 2048));
    let stored: Vec<_> = all.iter().step_by(7).cloned().collect();
    for chunk in stored.chunks(512) {
        assert_all(&put(&space, chunk, &pages(chunk, 64)), PageOutcome::Stored);
    }
    for (i, found) in exists(&space, &all).iter().enumerate() {
        assert_eq!(*found, i % 7 == 0, "key {i}");
    }
    client.close();
}

fn pages_of_one_space_are_misses_in_another(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "mine");
    let all = keys("mine", 20);
    assert_all(&put(&space, &all, &pages(&all, 20_000)), PageOutcome::Stored);
    let (other_client, other) = rig.space(&[&daemon], "theirs");
    for (outcome, bytes) in get(&other, &all, 20_000) {
        assert_eq!(outcome, PageOutcome::Miss);
        assert!(bytes.iter().all(|&byte| byte == 0xee), "another space's page was written");
    }
    let mut removed = [true; 20];
    other.delete(&all, &mut removed).unwrap();
    assert_eq!(removed, [false; 20]);
    assert_hits(&space, &all, 20_000);
    other_client.close();
    client.close();
}
