//! Events: what they add up to, how they join, and what happens if nobody reads them.

use super::{config, end_backup, evict, insert};
use crate::{Access, Event, Medium, Namespace, Policy, RadixCache, Sharing, UserId, WritePolicy};
use std::collections::BTreeSet;

/// A reader that keeps what the events tell it.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) content: BTreeSet<(Medium, i64)>,
}

impl Reader {
    pub(super) fn read(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::AllBlocksCleared => self.content.clear(),
                Event::BlockStored(stored) => {
                    for hash in stored.hashes {
                        assert!(self.content.insert((stored.medium, hash)), "stored twice");
                    }
                }
                Event::BlockRemoved { hashes, medium } => {
                    for hash in hashes {
                        assert!(self.content.remove(&(medium, hash)), "removed what was not stored");
                    }
                }
            }
        }
    }
}

#[test]
fn neighbouring_events_are_one() {
    let mut config = config(2, 16);
    config.max_events = 8;
    let mut cache = RadixCache::new(config).unwrap();
    let namespace = Namespace::new(Some("adapter"), Some("tenant")).unwrap();
    insert(&mut cache, Access::of(&namespace), &[1, 2, 3, 4]);
    insert(&mut cache, Access::of(&namespace), &[1, 2, 3, 4, 5, 6]);
    insert(&mut cache, Access::of(&namespace), &[9, 9]);
    let events = cache.take_events();
    assert_eq!(events.len(), 2, "{events:?}");
    let Event::BlockStored(first) = &events[0] else { panic!("{events:?}") };
    assert_eq!(first.hashes.len(), 3);
    assert_eq!(first.tokens.as_tokens().iter().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!((first.parent, first.block_size, first.medium), (None, 2, Medium::Gpu));
    assert_eq!((first.extra_key.as_deref(), first.cache_salt.as_deref()), (Some("adapter"), Some("tenant")));
    assert_eq!(cache.evict_device(8).tokens, 8);
    let events = cache.take_events();
    assert!(matches!(&events[..], [Event::BlockRemoved { hashes, .. }] if hashes.len() == 4), "{events:?}");
}

#[test]
fn an_event_says_what_it_continues_and_whose_it_is() {
    let mut config = config(1, 16);
    config.max_events = 8;
    config.sharing = Sharing::Declared;
    let mut cache = RadixCache::new(config).unwrap();
    let namespace = Namespace::default();
    insert(&mut cache, Access::by(&namespace, UserId(1)), &[1, 2]);
    insert(&mut cache, Access::by(&namespace, UserId(1)), &[1, 3]);
    let events = cache.take_events();
    let [Event::BlockStored(first), Event::BlockStored(second)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(second.parent, Some(first.hashes[0]));
    assert_eq!(second.cache_salt, Some(namespace.owner_salt(UserId(1)).into()));
}

#[test]
fn events_that_nobody_reads_give_way_to_a_listing() {
    let mut config = config(1, 64).with_host(64, WritePolicy::Through);
    config.max_events = 3;
    config.policy = Box::new(Policy::Fifo);
    let mut cache = RadixCache::new(config).unwrap();
    let namespace = Namespace::default();
    let mut reader = Reader::default();
    insert(&mut cache, Access::of(&namespace), &[50, 51]);
    reader.read(cache.take_events());
    assert_eq!(reader.content.len(), 2);
    for start in 0..10u32 {
        insert(&mut cache, Access::of(&namespace), &[start, start + 1]);
        evict(&mut cache, 1);
    }
    while let Some(plan) = cache.next_backup() {
        end_backup(&mut cache, plan, true);
    }
    reader.read(cache.take_events());
    let stats = cache.stats();
    assert_eq!(reader.content.len(), stats.evictable_tokens + (64 - stats.host_free));
    evict(&mut cache, 1);
    reader.read(cache.take_events());
    cache.clear();
    reader.read(cache.take_events());
    assert!(reader.content.is_empty());
    cache.check().unwrap();
}
