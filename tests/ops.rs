//! Ops with fewer arguments, and what tests assert of their results. A module of every binary that uses the client.

use memkv_client::PageOutcome;
use memkv_client::blocking::Space;
use memkv_tests::daemon::Daemon;
use memkv_tests::wait_for;
use std::time::Duration;

/// How long a test waits for something that must happen.
#[allow(dead_code, reason = "one binary has its own")]
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Puts pages of any lengths; returns every page's outcome.
pub(crate) fn put(space: &Space, keys: &[Vec<u8>], pages: &[Vec<u8>]) -> Vec<PageOutcome> {
    let pages: Vec<&[u8]> = pages.iter().map(Vec::as_slice).collect();
    let mut outcomes = vec![PageOutcome::TimedOut; keys.len()];
    space.put_from(keys, &pages, &mut outcomes).unwrap();
    outcomes
}

/// Gets pages of one length; a page's bytes are what lies in the caller's memory afterwards.
pub(crate) fn get(space: &Space, keys: &[Vec<u8>], len: usize) -> Vec<(PageOutcome, Vec<u8>)> {
    let mut pages = vec![vec![0xee; len]; keys.len()];
    let mut slices: Vec<&mut [u8]> = pages.iter_mut().map(Vec::as_mut_slice).collect();
    let mut outcomes = vec![PageOutcome::TimedOut; keys.len()];
    space.get_into(keys, &mut slices, &mut outcomes).unwrap();
    outcomes.into_iter().zip(pages).collect()
}

/// Presence of keys.
pub(crate) fn exists(space: &Space, keys: &[Vec<u8>]) -> Vec<bool> {
    let mut found = vec![false; keys.len()];
    space.exists(keys, &mut found).unwrap();
    found
}

/// Asserts that every outcome is the expected one.
#[track_caller]
pub(crate) fn assert_all(outcomes: &[PageOutcome], expected: PageOutcome) {
    let other = outcomes.iter().enumerate().find(|(_, outcome)| **outcome != expected);
    assert_eq!(other, None, "expected only {expected:?} of {} pages", outcomes.len());
}

/// Asserts that all keys hit with the pages put under them.
#[track_caller]
pub(crate) fn assert_hits(space: &Space, keys: &[Vec<u8>], len: usize) {
    for (key, (outcome, page)) in keys.iter().zip(get(space, keys, len)) {
        assert_eq!(outcome, PageOutcome::Hit, "{}", key.escape_ascii());
        assert!(page == memkv_tests::pages::page(key, len), "wrong bytes under {}", key.escape_ascii());
    }
}

/// Waits until no slot of the daemon's store is in use.
#[allow(dead_code, reason = "not every binary empties a store")]
#[track_caller]
pub(crate) fn wait_until_empty(daemon: &Daemon) {
    let control = daemon.control().unwrap();
    let mut last = None;
    let empty = wait_for("the store is empty", PATIENCE, || {
        let dram = control.status().unwrap().dram.unwrap();
        let slots: u64 = dram.classes.iter().map(|class| class.slots_used).sum();
        last = Some((dram.used_bytes, dram.pages, slots));
        (last == Some((0, 0, 0))).then_some(())
    });
    assert!(empty.is_ok(), "used bytes, pages, slots: {last:?}");
}
