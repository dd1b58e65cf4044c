//! Random operations against a naive oracle, with restarts clean and not.

use super::bed::{Bed, OTHER, SPACE, content, digest};
use crate::{Gone, IoChoice, Log};
use memkv_core::SpaceId;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<(bool, u8, u16)>),
    Delete(Vec<u8>),
    Clear(bool),
    Hot(u8, bool),
    Release(u8),
    Reopen { close: bool },
    Walk,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let page = (any::<bool>(), 0_u8..24, 0_u16..40_000);
    let step = prop_oneof![
        8 => proptest::collection::vec(page, 1..12).prop_map(Step::Append),
        3 => proptest::collection::vec(0_u8..24, 1..4).prop_map(Step::Delete),
        1 => any::<bool>().prop_map(Step::Clear),
        3 => (0_u8..24, any::<bool>()).prop_map(|(key, hot)| Step::Hot(key, hot)),
        1 => (0_u8..24).prop_map(Step::Release),
        2 => any::<bool>().prop_map(|close| Step::Reopen { close }),
        1 => Just(Step::Walk),
    ];
    proptest::collection::vec(step, 1..60)
}

fn space(other: bool) -> SpaceId {
    if other { OTHER } else { SPACE }
}

/// What may and must be there.
#[derive(Default)]
struct Oracle {
    /// Length of each page that was written and not deleted since, by digest. It may be gone, if the log said so.
    alive: HashMap<u64, (String, usize)>,
    released: HashSet<u64>,
}

struct Run {
    log: Option<Arc<Log>>,
    oracle: Oracle,
    /// After the log: a log that is there would write into directories that are being removed.
    bed: Bed,
}

impl Run {
    fn log(&self) -> &Log {
        self.log.as_ref().unwrap()
    }

    fn append(&mut self, pages: &[(bool, u8, u16)]) {
        // The same key always has the same bytes, as pages have; so its length is part of the name.
        let named = pages.iter().map(|&(other, key, len)| (other, format!("{key}-{}", len % 3), len % 3));
        let pages: Vec<_> = named
            .map(|(other, key, turn)| {
                (self.bed.page(space(other), &key, 1 + usize::from(turn) * 17_000), key)
            })
            .collect();
        let heads: Vec<_> = pages.iter().map(|(page, key)| (page.head.clone(), key.clone())).collect();
        let results = self.log().append(pages.into_iter().map(|(page, _)| page).collect()).wait();
        let mut known = self.bed.holder.known.lock();
        for ((head, key), result) in heads.into_iter().zip(results) {
            let extent = result.expect("there is room");
            self.oracle.alive.insert(head.digest, (key, head.meta.len as usize));
            self.oracle.released.remove(&head.digest);
            if let Some((_, old, _)) = known.pages.insert(head.digest, (head, extent, 0)) {
                self.log().release(old);
            }
        }
    }

    fn delete(&mut self, keys: &[u8]) {
        let names = keys.iter().flat_map(|key| (0..3).map(move |turn| format!("{key}-{turn}")));
        let digests: Vec<_> = names.map(|name| digest(SPACE, &name)).collect();
        let mut known = self.bed.holder.known.lock();
        for digest in &digests {
            known.pages.remove(digest);
            self.oracle.alive.remove(digest);
        }
        drop(known);
        let gone: Vec<_> = digests.into_iter().map(|digest| Gone { space: SPACE, digest }).collect();
        self.log().delete(&gone).wait().unwrap();
    }

    fn clear(&mut self, space: SpaceId) {
        let mut known = self.bed.holder.known.lock();
        let of_space: Vec<_> =
            (0..24).flat_map(|key| (0..3).map(move |turn| digest(space, &format!("{key}-{turn}")))).collect();
        for digest in of_space {
            known.pages.remove(&digest);
            self.oracle.alive.remove(&digest);
        }
        drop(known);
        self.log().clear_space(space).wait().unwrap();
    }

    fn reopen(&mut self, close: bool) {
        if close {
            self.log().close();
        }
        self.log = None;
        let (known, hot) = {
            let known = self.bed.holder.known.lock();
            (known.pages.keys().copied().collect::<HashSet<_>>(), known.hot.clone())
        };
        let (log, report) = self.bed.open();
        self.log = Some(log);
        assert_eq!((report.damaged_headers, report.damaged_pages, report.lost_segments), (0, 0, 0));
        let mut found = self.bed.holder.known.lock();
        found.hot = hot;
        for digest in known {
            let reported = found.lost.contains(&digest);
            assert!(reported || found.pages.contains_key(&digest), "an acknowledged page is lost");
        }
        for digest in found.pages.keys() {
            assert!(self.oracle.alive.contains_key(digest), "a page came back that was deleted or never was");
        }
    }

    /// Every page that the owner points at reads back right.
    fn check(&self) {
        let pages: Vec<_> = self.bed.holder.known.lock().pages.values().cloned().collect();
        for (head, extent, _) in pages {
            let (name, len) = &self.oracle.alive[&head.digest];
            match self.bed.read(self.log(), &head, extent) {
                Some(bytes) => assert_eq!(bytes, content(name, *len)),
                None => {
                    // It may have moved or gone since the list was made.
                    let known = self.bed.holder.known.lock();
                    let now = known.pages.get(&head.digest).map(|(_, now, _)| *now);
                    assert_ne!(now, Some(extent), "a page that the log holds cannot be read");
                }
            }
        }
    }
}

fn run(steps: Vec<Step>, io: IoChoice, sync: bool) {
    let mut bed = Bed::new(2, io);
    bed.config.sync = sync;
    for drive in &mut bed.config.drives {
        drive.quota_bytes = 8 * (128 << 10);
    }
    let (log, _) = bed.open();
    let mut run = Run { bed, log: Some(log), oracle: Oracle::default() };
    for step in steps {
        match step {
            Step::Append(pages) => run.append(&pages),
            Step::Delete(keys) => run.delete(&keys),
            Step::Clear(other) => run.clear(space(other)),
            Step::Hot(key, hot) => {
                let mut known = run.bed.holder.known.lock();
                for turn in 0..3 {
                    let digest = digest(SPACE, &format!("{key}-{turn}"));
                    let _changed = if hot { known.hot.insert(digest) } else { known.hot.remove(&digest) };
                }
            }
            Step::Release(key) => {
                let digest = digest(SPACE, &format!("{key}-0"));
                let held = run.bed.holder.known.lock().pages.remove(&digest);
                if let Some((_, extent, _)) = held {
                    run.log().release(extent);
                    run.oracle.released.insert(digest);
                }
            }
            Step::Reopen { close } => run.reopen(close),
            Step::Walk => {
                for segment in run.log().segments() {
                    if let Some(walk) = run.log().walk(segment.drive, segment.sequence) {
                        walk.for_each(|page| assert!(page.intact, "{page:?}"));
                    }
                }
            }
        }
        run.check();
    }
    run.reopen(false);
    run.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_log_agrees_with_an_oracle(steps in steps(), threads: bool, sync: bool) {
        run(steps, if threads { IoChoice::Threads } else { IoChoice::Auto }, sync);
    }
}
