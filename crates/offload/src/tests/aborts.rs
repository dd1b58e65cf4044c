//! Everything that can be broken off, at every await point: the tree is consistent, nothing is lost, and no wrong
//! byte is served afterwards.

use super::fake::Fake;
use super::rig::{Rig, Setup, prompt};
use crate::Warmup;
use memkv_radix::{Access, Request, WritePolicy};

/// How a transfer is broken off.
#[derive(Clone, Copy, Debug)]
enum How {
    /// Its future is dropped, as a runtime does that goes away.
    Drop,
    /// The tiers are told to end.
    Cancel,
    /// The request that wanted it goes away.
    Abandon,
}

/// What is under way when it happens.
struct Scene {
    rig: Rig,
    waiting: Option<(Request, Warmup)>,
    text: Vec<u32>,
}

impl Scene {
    /// A request computed `text` before, and its copies are about to begin.
    fn backup(write: WritePolicy) -> Self {
        let text = prompt(1, 9);
        let mut rig = Rig::new(&Setup { write, ..Setup::default() }, &Fake::default());
        rig.serve(&text);
        if write == WritePolicy::Back {
            rig.tiers.make_room(&mut rig.cache, usize::MAX);
        }
        Self { rig, waiting: None, text }
    }

    /// A request waits for `text`, which the store has, or host memory too.
    fn warm(host_has_it: bool) -> Self {
        let (text, store) = (prompt(1, 9), Fake::default());
        let mut rig = Rig::new(&Setup::default(), &store);
        rig.serve(&text);
        rig.settle();
        if host_has_it {
            rig.clear_device();
        } else {
            rig = Rig::new(&Setup::default(), &store);
        }
        let request = rig.start(&text);
        Self { rig, waiting: Some((request, Warmup::default())), text }
    }

    /// One step of the engine. Says whether there is anything left to do.
    fn step(&mut self) -> bool {
        let space = self.rig.space.clone();
        let mut more = false;
        if let Some((request, warmup)) = &mut self.waiting {
            let rig = &mut self.rig;
            more |= !rig.tiers.warm(&mut rig.cache, Access::of(&space), request, warmup);
        }
        more |= self.rig.hand.turn();
        self.rig.poll();
        more || !self.rig.tiers.is_idle()
    }

    fn break_off(&mut self, how: How) {
        match how {
            How::Drop => self.rig.hand.drop_all(),
            How::Cancel => self.rig.tiers.cancel_all(),
            How::Abandon => {
                if let Some((request, warmup)) = self.waiting.take() {
                    drop(warmup);
                    self.rig.cache.abort(request);
                }
            }
        }
        self.rig.cache.check().unwrap();
    }

    /// Everything ends by itself, and whoever comes next is served right.
    fn end(mut self) {
        for _ in 0..1000 {
            if !self.step() {
                break;
            }
        }
        if let Some((request, _)) = self.waiting.take() {
            self.rig.compute(request, &self.text);
        }
        self.rig.settle();
        let text = self.text.clone();
        self.rig.serve_warm(&text);
        self.rig.settle();
        self.rig.assert_nothing_lost();
    }
}

fn at_every_await(make: impl Fn() -> Scene) -> usize {
    let mut points = 0;
    for how in [How::Drop, How::Cancel, How::Abandon] {
        for steps in 0.. {
            assert!(steps < 1000, "the scene does not end");
            let mut scene = make();
            let mut more = true;
            for _ in 0..steps {
                more = scene.step();
            }
            scene.break_off(how);
            scene.end();
            points += 1;
            if !more {
                break;
            }
        }
    }
    points
}

#[test]
fn backups_and_stores() {
    for write in [WritePolicy::Through, WritePolicy::Back] {
        let points = at_every_await(|| Scene::backup(write));
        // Five copies of two pages and nine pages to the store, three times.
        assert!(points > 3 * (5 + 9), "{points} points");
    }
}

#[test]
fn prefetches_with_the_load_after_them() {
    let points = at_every_await(|| Scene::warm(false));
    assert!(points > 3 * (1 + 9 + 5), "{points} points");
}

#[test]
fn loads() {
    let points = at_every_await(|| Scene::warm(true));
    assert!(points > 3 * 5, "{points} points");
}

#[test]
fn two_requests_that_wait_for_the_same_pages() {
    let store = Fake::default();
    let text = prompt(1, 9);
    let mut first = Rig::new(&Setup::default(), &store);
    first.serve(&text);
    first.settle();
    for steps in 0..60 {
        let mut rig = Rig::new(&Setup::default(), &store);
        let space = rig.space.clone();
        let mut waiting: Vec<_> = (0..2).map(|_| Some((rig.start(&text), Warmup::default()))).collect();
        let mut served = Vec::new();
        for step in 0..200 {
            if step == steps
                && let Some((request, warmup)) = waiting[0].take()
            {
                drop(warmup);
                rig.cache.abort(request);
            }
            for place in &mut waiting {
                let Some((request, warmup)) = place else { continue };
                if rig.tiers.warm(&mut rig.cache, Access::of(&space), request, warmup)
                    && let Some((request, _)) = place.take()
                {
                    served.push(rig.compute(request, &text));
                }
            }
            rig.hand.turn();
            rig.poll();
        }
        assert!(served.iter().all(|pages| *pages == 9) && !served.is_empty(), "{steps}: {served:?}");
        rig.settle();
        rig.assert_nothing_lost();
    }
}
