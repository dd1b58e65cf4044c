//! Whether time tells one tenant what another has.
//!
//! A stranger asks for keys that somebody has and for keys that nobody has, in random order, and the ranks of the times
//! are compared (Mann and Whitney): if time tells nothing, the statistic is normal with variance 1, whatever the
//! machine does besides. The same instrument has to see a difference where there is one, or the test fails.

use crate::estate::{Estate, Guest, space_of};
use memkv_core::SpaceId;
use memkv_tests::pages::page;
use memkv_tests::random;
use memkv_tests::wire::{DataConn, exists_frame, get_frame, offer_frame};
use std::time::{Duration, Instant};

/// Times of each kind.
const SAMPLES: usize = 1500;
/// By chance alone once in 15 million times.
const SEEN: f64 = 5.3;
const LEN: u32 = 64 << 10;

/// How far apart two kinds of times are, in standard deviations of what chance does.
fn apart(one: &[Duration], other: &[Duration]) -> f64 {
    let mut all: Vec<_> =
        one.iter().map(|time| (*time, true)).chain(other.iter().map(|time| (*time, false))).collect();
    all.sort_by_key(|(time, _)| *time);
    let mut ranks = 0.0;
    let mut at = 0;
    while at < all.len() {
        let end = at + all[at..].iter().take_while(|(time, _)| *time == all[at].0).count();
        // Equal times share their mean rank.
        let mean = (at + 1 + end) as f64 / 2.0;
        ranks += mean * all[at..end].iter().filter(|(_, first)| *first).count() as f64;
        at = end;
    }
    let (n, m) = (one.len() as f64, other.len() as f64);
    let u = ranks - n * (n + 1.0) / 2.0;
    (u - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt()
}

/// Asks with two kinds of frames in random order.
fn compare(data: &mut DataConn, frames: [&[u8]; 2]) -> f64 {
    let mut times = [Vec::new(), Vec::new()];
    for frame in frames {
        data.call(frame).unwrap();
    }
    while times.iter().any(|times| times.len() < SAMPLES) {
        let [kind] = random::<1>();
        let kind = usize::from(kind & 1);
        let begun = Instant::now();
        data.call(frames[kind]).unwrap();
        times[kind].push(begun.elapsed());
    }
    apart(&times[0], &times[1])
}

fn frames(op: &str, space: SpaceId, keys: [&[u8]; 2]) -> [Vec<u8>; 2] {
    keys.map(|key| match op {
        "exists" => exists_frame(7, space, &[key]),
        "get" => get_frame(7, space, &[(key, LEN)], true),
        _ => offer_frame(7, space, &[(key, LEN)]),
    })
}

#[test]
fn time_does_not_tell_what_another_tenant_has() {
    let estate = Estate::start();
    let (mut a, mut b) = (Guest::of(&estate, "a", 1), Guest::of(&estate, "b", 2));
    let (space, own) = (a.control.open_space("s").unwrap(), b.control.open_space("s").unwrap());
    assert_eq!(space, space_of("a", "s"));
    a.data.put(space, b"there", &page(b"there", LEN as usize)).unwrap();
    b.data.put(own, b"mine-", &page(b"mine-", LEN as usize)).unwrap();
    // The instrument works: a tenant can tell its own pages from absent ones by time.
    let [hit, miss] = frames("get", own, [b"mine-", b"gone-"]);
    let seen = compare(&mut b.data, [&hit, &miss]).abs();
    assert!(seen > SEEN, "a page of 64 KiB takes no time: {seen}");
    for op in ["exists", "get", "put"] {
        // In the other's space by its identity, and under the same name in its own (a put would store something there).
        let spaces = if op == "put" { vec![space] } else { vec![space, own] };
        for asked in spaces {
            let [there, absent] = frames(op, asked, [b"there", b"wher3"]);
            // The machine may do something else meanwhile; a leak is there every time.
            let told = (0..3).all(|_| compare(&mut b.data, [&there, &absent]).abs() > SEEN);
            assert!(!told, "{op} tells by time what another tenant has");
        }
        // A space that somebody has, and one that nobody has.
        let [there, _] = frames(op, space, [b"there", b"wher3"]);
        let [absent, _] = frames(op, space_of("a", "t"), [b"there", b"wher3"]);
        let told = (0..3).all(|_| compare(&mut b.data, [&there, &absent]).abs() > SEEN);
        assert!(!told, "{op} tells by time which spaces another tenant has");
    }
}

#[test]
fn the_statistic_sees_a_small_shift_and_none_where_there_is_none() {
    let times = |shift: u64| -> Vec<Duration> {
        // Noise of a few microseconds with rare large values, as a busy machine makes it.
        (0..SAMPLES)
            .map(|_| {
                let noise = u64::from(u16::from_le_bytes(random())) % 5_000;
                let rare = if random::<1>()[0] < 8 { 1_000_000 } else { 0 };
                Duration::from_nanos(50_000 + noise + rare + shift)
            })
            .collect()
    };
    assert!(apart(&times(0), &times(0)).abs() < SEEN);
    assert!(apart(&times(500), &times(0)) > SEEN, "half a microsecond of fifty");
}
