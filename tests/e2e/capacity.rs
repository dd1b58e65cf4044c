//! Full stores: what goes, what stays, and how much memory it takes.

use crate::common::{assert_all, exists, get, put, tcp_space};
use memkv_client::PageOutcome;
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::pages::{keys, page, pages};
use std::time::Duration;

#[test]
fn a_full_store_evicts_and_never_lies() {
    let daemon = Daemon::start_with(Setup { dram: "128MiB".into(), ..Setup::default() }).unwrap();
    let (client, space) = tcp_space(&[&daemon], "full");
    let len = 1 << 20;
    let (mut stored, mut busy) = (Vec::new(), 0);
    let mut resident = Vec::new();
    for lap in 0..4 {
        for batch in 0..10 {
            let all = keys(&format!("lap-{lap}-{batch}"), 16);
            for (key, outcome) in all.iter().zip(put(&space, &all, &pages(&all, len))) {
                match outcome {
                    PageOutcome::Stored => stored.push(key.clone()),
                    PageOutcome::Busy => busy += 1,
                    other => panic!("a put into a full store became {other:?}"),
                }
            }
        }
        resident.push(daemon.resident_bytes().unwrap());
    }
    assert!(stored.len() > 256, "{} stored, {busy} busy", stored.len());
    let mut hits = Vec::new();
    for chunk in stored.chunks(16) {
        for (key, (outcome, bytes)) in chunk.iter().zip(get(&space, chunk, len)) {
            match outcome {
                PageOutcome::Hit => {
                    assert!(bytes == page(key, len), "wrong bytes under {}", key.escape_ascii());
                    hits.push(key.clone());
                }
                PageOutcome::Miss => {}
                other => panic!("a get from a full store became {other:?}"),
            }
        }
    }
    assert!((32..=128).contains(&hits.len()), "{} pages of 1 MiB in 128 MiB", hits.len());
    assert!(hits.last() == stored.last(), "the newest page is not there");
    assert!(!hits.contains(&stored[0]), "the oldest page survived three times its store");
    let status = daemon.control().unwrap().status().unwrap();
    assert!(status.ops.unwrap().evicted >= (stored.len() - 128) as u64);
    let dram = status.dram.unwrap();
    assert!(dram.used_bytes <= dram.capacity_bytes);
    // The first lap fills the store; what comes later takes no more memory.
    let grown = resident[3].saturating_sub(resident[0]);
    assert!(grown < 32 << 20, "three more laps grew the server by {grown} bytes: {resident:?}");
    assert!(resident[3] < 256 << 20, "{resident:?}");
    client.close();
}

/// An engine that does not say where in its chain a batch begins, as SGLang does not unless it is asked to.
#[test]
fn of_pages_put_together_the_first_stay_longest_though_nobody_says_where_they_are() {
    let daemon = Daemon::start_with(Setup { dram: "64MiB".into(), ..Setup::default() }).unwrap();
    let (client, space) = tcp_space(&[&daemon], "chains");
    // No more than a store above its low mark has free slots for.
    let length = 8;
    let (full, mut stored, mut cuts) = (4096 / length, Vec::new(), 0);
    for number in 0..full + 100 {
        let chain = keys(&format!("chain-{number}"), length);
        assert_all(&put(&space, &chain, &pages(&chain, 16 << 10)), PageOutcome::Stored);
        stored.extend(chain);
        if number < full - 4 {
            continue;
        }
        // Room is made in the background.
        std::thread::sleep(Duration::from_millis(20));
        for (older, found) in exists(&space, &stored).chunks(length).enumerate() {
            let kept = found.iter().take_while(|found| **found).count();
            assert!(
                !found[kept..].contains(&true),
                "of chain {older} of {number} a page went before later ones: {found:?}"
            );
            cuts += usize::from(kept > 0 && kept < length);
        }
    }
    assert!(cuts > 20, "{cuts} chains were seen of which a part was left");
    client.close();
}

#[test]
fn a_full_store_takes_pages_of_another_size() {
    let daemon = Daemon::start_with(Setup { dram: "192MiB".into(), ..Setup::default() }).unwrap();
    let (client, space) = tcp_space(&[&daemon], "sizes");
    for len in [1 << 20, 100_000, 3 << 20] {
        let mut newest = Vec::new();
        for batch in 0..(400 << 20) / len / 16 {
            let all = keys(&format!("{len}-{batch}"), 16);
            let outcomes = put(&space, &all, &pages(&all, len));
            newest = all
                .iter()
                .zip(outcomes)
                .filter(|(_, o)| *o == PageOutcome::Stored)
                .map(|(k, _)| k.clone())
                .collect();
        }
        assert!(!newest.is_empty(), "pages of {len} bytes find no room");
        let hits = get(&space, &newest, len);
        for (key, (outcome, bytes)) in newest.iter().zip(hits) {
            assert!(outcome == PageOutcome::Miss || (outcome == PageOutcome::Hit && bytes == page(key, len)));
        }
    }
    client.close();
}

#[test]
fn a_server_holds_little_more_than_its_pages() {
    let daemon = Daemon::start_with(Setup { dram: "256MiB".into(), ..Setup::default() }).unwrap();
    let (client, space) = tcp_space(&[&daemon], "memory");
    let before = daemon.resident_bytes().unwrap();
    let all = keys("memory", 128);
    for chunk in all.chunks(16) {
        assert_all(&put(&space, chunk, &pages(chunk, 1 << 20)), PageOutcome::Stored);
    }
    let grown = daemon.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < (128 + 80) << 20, "128 MiB of pages made the server grow by {grown} bytes");
    client.close();
}
