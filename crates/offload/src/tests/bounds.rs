//! Every queue has a bound, and what does not fit is told and counted.

use super::fake::Fake;
use super::rig::{PAGE_BYTES, Rig, Setup, prompt};
use crate::{DevicePool as _, NotStarted, Options, PageRegion, SetupError, Tiers};
use memkv_radix::{Access, Tokens};

#[test]
fn backups_wait_in_the_cache() {
    let mut setup = Setup::default();
    setup.options.max_backups = 2;
    let mut rig = Rig::new(&setup, &Fake::default());
    for seed in 1..=5 {
        rig.serve(&prompt(seed, 3));
    }
    rig.poll();
    assert_eq!(rig.hand.len(), 2);
    rig.settle();
    assert_eq!(rig.tiers.stats().backed_up_pages, 15);
    rig.assert_nothing_lost();
}

#[test]
fn writes_to_the_store_beyond_the_bound_are_dropped_and_counted() {
    let mut setup = Setup::default();
    setup.options.max_stores = 2;
    let mut rig = Rig::new(&setup, &Fake::default());
    rig.store.freeze(true);
    for seed in 1..=5 {
        rig.serve(&prompt(seed, 3));
    }
    for _ in 0..20 {
        rig.poll();
        rig.hand.turn();
    }
    let stats = rig.tiers.stats();
    assert_eq!((stats.dropped_stores, stats.unstored_pages), (3, 9));
    rig.store.freeze(false);
    rig.settle();
    assert_eq!(rig.store.len(), 6);
    rig.assert_nothing_lost();
}

#[test]
fn at_most_so_many_writes_move_bytes_at_one_time() {
    let mut setup = Setup::default();
    setup.options.writes = 2;
    let mut rig = Rig::new(&setup, &Fake::default());
    rig.store.freeze(true);
    for seed in 1..=5 {
        rig.serve(&prompt(seed, 3));
    }
    for _ in 0..20 {
        rig.poll();
        rig.hand.turn();
    }
    assert_eq!((rig.hand.len(), rig.store.take_calls().len()), (5, 2));
    rig.store.freeze(false);
    rig.settle();
    assert_eq!(rig.store.len(), 15);
    rig.assert_nothing_lost();
}

#[test]
fn prefetches_and_loads_beyond_the_bound_are_refused() {
    let mut setup = Setup::default();
    setup.options.max_prefetches = 1;
    setup.options.max_loads = 1;
    let mut rig = Rig::new(&setup, &Fake::default());
    for seed in 1..=2 {
        rig.serve(&prompt(seed, 3));
    }
    rig.settle();
    rig.clear_device();
    let nodes: Vec<_> = (1..=2)
        .map(|seed| {
            let request = rig.start(&prompt(seed, 3));
            let node = request.host_hit().0;
            rig.cache.abort(request);
            node
        })
        .collect();
    let load = rig.tiers.load_back(&mut rig.cache, nodes[0]).unwrap();
    assert_eq!(rig.tiers.load_back(&mut rig.cache, nodes[1]).unwrap_err(), NotStarted::Full);
    let space = rig.space.clone();
    let (one, two) = (prompt(7, 5), prompt(8, 5));
    let asked = rig.tiers.prefetch(&mut rig.cache, Access::of(&space), Tokens::from(&one)).unwrap();
    let refused = rig.tiers.prefetch(&mut rig.cache, Access::of(&space), Tokens::from(&two));
    assert_eq!(refused.unwrap_err(), NotStarted::Full);
    let stats = rig.tiers.stats();
    assert_eq!((stats.refused_loads, stats.refused_prefetches), (1, 1));
    rig.settle();
    drop((load, asked));
    rig.poll();
    rig.assert_nothing_lost();
}

#[test]
fn after_a_shutdown_nothing_begins() {
    let mut rig = Rig::new(&Setup::default(), &Fake::default());
    let text = prompt(1, 6);
    rig.serve(&text);
    rig.tiers.cancel_all();
    rig.settle();
    assert_eq!(rig.tiers.stats().backed_up_pages, 0);
    let space = rig.space.clone();
    let refused = rig.tiers.prefetch(&mut rig.cache, Access::of(&space), Tokens::from(&prompt(2, 6)));
    assert_eq!(refused.unwrap_err(), NotStarted::Closed);
    assert_eq!(rig.serve_warm(&text), 6);
    rig.assert_nothing_lost();
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let rig = Rig::new(&Setup::default(), &Fake::default());
    let region = |pages, bytes| PageRegion::new(pages, bytes).unwrap();
    let tiers =
        |device, host| Tiers::new(&rig.cache, device, host, Fake::default(), Options::default()).err();
    let wrong = tiers(region(40, PAGE_BYTES), region(100, PAGE_BYTES + 1));
    assert!(matches!(wrong, Some(SetupError::PageBytes { device: 32, host: 33 })), "{wrong:?}");
    let wrong = tiers(region(39, PAGE_BYTES), region(100, PAGE_BYTES));
    assert!(matches!(wrong, Some(SetupError::TooFewPages { medium: "the device", .. })), "{wrong:?}");
    let wrong = tiers(region(40, PAGE_BYTES), region(99, PAGE_BYTES));
    assert!(matches!(wrong, Some(SetupError::TooFewPages { medium: "host memory", .. })), "{wrong:?}");
    assert_eq!(rig.device.pages(), 40);
}
