//! Shows that ops on pages allocate nothing once they have run before, however many pages they move.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is reported")]

#[allow(dead_code, reason = "the fake can do more than this test needs")]
#[path = "../faults/fake.rs"]
mod fake;

use fake::Fake;
use memkv_client::blocking::Client;
use memkv_client::{Config, PageOutcome, SpaceDescription};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Counts allocations of each thread by itself: blocking ops run on the caller's thread, and the fake does not.
struct Counting;

// SAFETY: every call is handed on to the system's allocator unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps this function's contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above; `ptr` came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(act: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    act();
    COUNT.get() - before
}

#[test]
fn ops_on_pages_allocate_nothing_after_the_first() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(7)))), 1, "the counter counts");
    let fakes = [Fake::start(), Fake::start()];
    let list = fakes.each_ref().map(|fake| fake.address.to_string()).join(",");
    let config = Config::builder().without_environment().servers(list).build().unwrap();
    let client = Client::connect(config).unwrap();
    let space = client.space(SpaceDescription::named("allocations").unwrap()).unwrap();
    let keys: Vec<String> = (0..300).map(|i| format!("key-{i}")).collect();
    let pages: Vec<Vec<u8>> = (0..300).map(|i| vec![i as u8; 13_000]).collect();
    let sources: Vec<&[u8]> = pages.iter().map(Vec::as_slice).collect();
    let mut room: Vec<Vec<u8>> = pages.iter().map(|page| vec![0; page.len()]).collect();
    let mut targets: Vec<&mut [u8]> = room.iter_mut().map(Vec::as_mut_slice).collect();
    let mut out = vec![PageOutcome::Denied; 300];
    let mut flags = vec![false; 300];
    let mut round = || {
        let put = allocations(|| assert_eq!(space.put_from(&keys, &sources, &mut out).unwrap().ok, 300));
        let get = allocations(|| assert_eq!(space.get_into(&keys, &mut targets, &mut out).unwrap().ok, 300));
        let exists = allocations(|| assert_eq!(space.exists(&keys, &mut flags).unwrap().ok, 300));
        // Removes the pages, so that the next round sends them again.
        let delete = allocations(|| assert_eq!(space.delete(&keys, &mut flags).unwrap().ok, 300));
        [put, get, exists, delete]
    };
    // Which of a server's connections an op gets is chance, so buffers take some rounds to grow everywhere.
    for _ in 0..6 {
        round();
    }
    assert_eq!(round(), [0; 4]);
    assert_eq!(room, pages);
}

#[test]
fn a_batch_that_several_threads_move_allocates_for_the_threads_only() {
    let fake = Fake::start();
    let config = Config::builder().without_environment().servers(fake.address.to_string()).build().unwrap();
    let client = Client::connect(config).unwrap();
    let space = client.space(SpaceDescription::named("allocations").unwrap()).unwrap();
    let round = |count: usize| {
        let keys: Vec<String> = (0..count).map(|i| format!("key-{i}")).collect();
        let page = vec![7; (8 << 20) / count];
        let sources = vec![&page[..]; count];
        let mut out = vec![PageOutcome::Denied; count];
        let mut flags = vec![false; count];
        let put = allocations(|| assert_eq!(space.put_from(&keys, &sources, &mut out).unwrap().ok, count));
        assert_eq!(space.delete(&keys, &mut flags).unwrap().ok, count);
        put
    };
    for _ in 0..4 {
        round(400);
    }
    let few = round(4);
    assert_eq!(round(400), few, "a hundred times the pages");
    assert!(few < 32, "{few} allocations in a batch");
}
