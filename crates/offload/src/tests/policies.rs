//! When pages go down the tiers, and what holds them meanwhile.

use super::fake::{Call, Fake};
use super::rig::{PAGE_TOKENS, Rig, Setup, keys, names, prompt};
use memkv_radix::WritePolicy;

fn rig(write: WritePolicy) -> Rig {
    Rig::new(&Setup { write, ..Setup::default() }, &Fake::default())
}

fn assert_stored(rig: &Rig, prompt: &[u32]) {
    for (key, name) in keys(prompt).into_iter().zip(names(prompt)) {
        assert_eq!(rig.store.page(key).as_deref(), Some(&name.0[..]));
    }
}

#[test]
fn write_through_takes_new_pages_to_host_and_store() {
    let mut rig = rig(WritePolicy::Through);
    let text = prompt(1, 10);
    assert_eq!(rig.serve(&text), 0);
    rig.settle();
    assert_eq!(rig.store.len(), 10);
    assert_stored(&rig, &text);
    let stats = rig.tiers.stats();
    assert_eq!((stats.backed_up_pages, stats.stored_pages, stats.unstored_pages), (10, 10, 0));
    assert_eq!(rig.store.take_calls(), [Call::Put(0, 4), Call::Put(4, 4), Call::Put(8, 2)]);
    rig.assert_nothing_lost();
}

#[test]
fn a_write_says_how_deep_in_its_chain_it_begins() {
    let mut rig = rig(WritePolicy::Through);
    rig.serve(&prompt(1, 6));
    rig.settle();
    rig.store.take_calls();
    // The same beginning, and three pages more.
    assert_eq!(rig.serve(&prompt(1, 9)), 6);
    rig.settle();
    assert_eq!(rig.store.take_calls(), [Call::Put(6, 3)]);
    assert_stored(&rig, &prompt(1, 9));
    rig.assert_nothing_lost();
}

#[test]
fn selective_waits_for_the_second_hit() {
    let mut rig = rig(WritePolicy::Selective);
    let text = prompt(1, 5);
    rig.serve(&text);
    rig.settle();
    assert_eq!((rig.store.len(), rig.tiers.stats().backed_up_pages), (0, 0));
    assert_eq!(rig.serve(&text), 5);
    rig.settle();
    assert_eq!((rig.store.len(), rig.tiers.stats().backed_up_pages), (5, 5));
    assert_stored(&rig, &text);
    rig.assert_nothing_lost();
}

#[test]
fn write_back_copies_what_is_evicted_and_frees_it_then() {
    let mut rig = rig(WritePolicy::Back);
    let text = prompt(1, 8);
    rig.serve(&text);
    rig.serve(&text);
    rig.settle();
    assert_eq!(rig.tiers.stats().backed_up_pages, 0);
    let free = rig.cache.device().free();
    let room = rig.tiers.make_room(&mut rig.cache, 8 * PAGE_TOKENS);
    assert_eq!((room.freed_tokens, room.pending_tokens), (0, 8 * PAGE_TOKENS));
    assert_eq!(rig.cache.device().free(), free);
    rig.settle();
    assert_eq!(rig.cache.device().free(), free + 8);
    assert_stored(&rig, &text);
    assert_eq!(rig.serve_warm(&text), 8);
    assert_eq!(rig.tiers.stats().loaded_pages, 8);
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn write_back_without_room_for_copies_loses_the_pages_and_says_so() {
    let mut setup = Setup { write: WritePolicy::Back, ..Setup::default() };
    setup.options.max_backups = 1;
    let mut rig = Rig::new(&setup, &Fake::default());
    rig.serve(&prompt(1, 4));
    rig.serve(&prompt(2, 4));
    let room = rig.tiers.make_room(&mut rig.cache, 8 * PAGE_TOKENS);
    assert_eq!((room.freed_tokens, room.pending_tokens), (4 * PAGE_TOKENS, 4 * PAGE_TOKENS));
    assert_eq!(rig.tiers.stats().dropped_backups, 1);
    rig.settle();
    assert_eq!(rig.store.len(), 4);
    rig.assert_nothing_lost();
}

#[test]
fn a_backup_locks_its_pages_until_it_is_acknowledged() {
    let mut rig = rig(WritePolicy::Through);
    let text = prompt(1, 8);
    rig.serve(&text);
    rig.poll();
    assert_eq!(rig.hand.len(), 1);
    assert_eq!(rig.tiers.make_room(&mut rig.cache, usize::MAX).freed_tokens, 0);
    // The copy is over, but the cache has not heard of it.
    while rig.hand.turn() {}
    assert_eq!(rig.tiers.make_room(&mut rig.cache, usize::MAX).freed_tokens, 0);
    rig.poll();
    // Now the write to the store runs, which needs the host pages alone.
    assert!(!rig.tiers.is_idle());
    assert_eq!(rig.tiers.make_room(&mut rig.cache, usize::MAX).freed_tokens, 8 * PAGE_TOKENS);
    assert_eq!(rig.cache.evict_host(8), 0, "a write to the store holds the host pages");
    rig.settle();
    assert_stored(&rig, &text);
    assert_eq!(rig.serve_warm(&text), 8);
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn a_split_during_a_backup_loses_nothing() {
    let mut rig = rig(WritePolicy::Through);
    let text = prompt(1, 8);
    rig.serve(&text);
    rig.poll();
    rig.hand.turn();
    // A prompt that shares three pages splits the node that is being copied.
    let mut fork = text.clone();
    fork[3 * PAGE_TOKENS..].iter_mut().for_each(|token| *token += 50_000);
    assert_eq!(rig.serve(&fork), 3);
    rig.settle();
    assert_stored(&rig, &text);
    assert_stored(&rig, &fork);
    rig.clear_device();
    assert_eq!((rig.serve_warm(&fork), rig.serve_warm(&text)), (8, 8));
    rig.settle();
    rig.assert_nothing_lost();
}
