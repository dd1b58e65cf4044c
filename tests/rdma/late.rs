//! Late writes: whatever is still under way when a call returns never reaches the caller's memory.

use crate::rig::{Memory, PATIENCE, Pieces, SHORT, client, config, connect, metric, server, space};
use memkv_client::{PageOutcome, RawPieces};
use memkv_rdma::fake::{Fabric, Hold, Order};
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::wait_for;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

const LEN: usize = 64 << 10;
const COUNT: usize = 8;

/// Waits until the server has posted work that is held back.
fn wait_held(fabric: &Fabric) -> usize {
    wait_for("work is under way", PATIENCE, || Some(fabric.counts().held).filter(|held| *held > 0)).unwrap()
}

fn wait_nothing_held(fabric: &Fabric) {
    wait_for("the work is gone", PATIENCE, || (fabric.counts().held == 0).then_some(())).unwrap();
}

/// Checks that a call of [`SHORT`] was given up while its work was held back. The server gives up at the same moment, and when
/// its end of the connection is seen first, the pages are unavailable instead of late.
fn assert_given_up(fabric: &Fabric, posted_before: u64, outcomes: &[PageOutcome]) {
    let is_given_up =
        |outcome: &PageOutcome| matches!(outcome, PageOutcome::TimedOut | PageOutcome::Unavailable);
    assert!(outcomes.iter().all(is_given_up), "{outcomes:?}");
    assert!(fabric.counts().posted > posted_before, "nothing was under way");
}

#[test]
fn a_get_that_gave_up_leaves_the_memory_alone() {
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let patient = client(&fabric, &[&server]);
    let hasty = connect(&fabric, config(&[&server]).op_timeout(SHORT));
    let names = keys("late", COUNT);
    let source = Memory::registered(&patient, COUNT * LEN);
    source.fill(0, &pages(&names, LEN).concat());
    let put = Pieces::pages(&source, COUNT, LEN).put(&space(&patient), &names);
    assert!(put.iter().all(|outcome| *outcome == PageOutcome::Stored), "{put:?}");

    let target = Memory::registered(&hasty, COUNT * LEN);
    let (space, wanted) = (space(&hasty), Pieces::pages(&target, COUNT, LEN));
    let posted = fabric.counts().posted;
    fabric.hold(Hold::Transfers);
    assert_given_up(&fabric, posted, &wanted.get(&space, &names));
    // From here on the memory is the caller's again.
    let own = vec![0xA5; COUNT * LEN];
    target.fill(0, &own);
    let moved = fabric.counts().moved_bytes;
    fabric.hold(Hold::Nothing);
    wait_nothing_held(&fabric);
    assert!(target.read(0, COUNT * LEN) == own, "a late write changed the caller's memory");
    // Connections that are opened meanwhile are tried with less.
    assert!(fabric.counts().moved_bytes - moved < LEN as u64, "pages moved");
    // And it is no end: the same call goes through afterwards.
    wait_for("the server is used again", PATIENCE, || {
        (wanted.get(&space, &names) == [PageOutcome::Hit; COUNT]).then_some(())
    })
    .unwrap();
    assert!(target.read(0, COUNT * LEN) == pages(&names, LEN).concat());
}

#[test]
fn a_dropped_future_leaves_the_memory_alone() {
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let client = client(&fabric, &[&server]);
    let space = space(&client);
    let names = keys("dropped", 1);
    let memory = Memory::registered(&client, LEN);
    memory.fill(0, &page(&names[0], LEN));
    assert_eq!(Pieces::pages(&memory, 1, LEN).put(&space, &names), [PageOutcome::Stored]);
    let own = vec![0x5A; LEN];
    memory.fill(0, &own);
    fabric.hold(Hold::Transfers);
    {
        let (ptrs, lens) = ([memory.at(0)], [LEN]);
        let raw = RawPieces { ptrs: &ptrs, lens: &lens, per_page: 1 };
        let mut out = [PageOutcome::Unavailable];
        // SAFETY: the memory outlives the future, which is dropped before it is used again.
        let get = unsafe { space.asynchronous().get_into_raw(&names, raw, &mut out) };
        let mut get = pin!(get);
        assert!(get.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        wait_held(&fabric);
    }
    fabric.hold(Hold::Nothing);
    wait_nothing_held(&fabric);
    assert!(memory.read(0, LEN) == own, "a late write changed the caller's memory");
}

#[test]
fn a_put_that_gave_up_stores_nothing_of_what_came_later() {
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let hasty = connect(&fabric, config(&[&server]).op_timeout(SHORT));
    let space = space(&hasty);
    let names = keys("half", COUNT);
    let memory = Memory::registered(&hasty, COUNT * LEN);
    memory.fill(0, &pages(&names, LEN).concat());
    let used = metric(&server, "memkv_dram_used_bytes");
    let posted = fabric.counts().posted;
    fabric.hold(Hold::Transfers);
    assert_given_up(&fabric, posted, &Pieces::pages(&memory, COUNT, LEN).put(&space, &names));
    memory.fill(0, &vec![9; COUNT * LEN]);
    fabric.hold(Hold::Nothing);
    wait_for("slots are given back", PATIENCE, || {
        (metric(&server, "memkv_dram_used_bytes") == used).then_some(())
    })
    .unwrap();
    wait_for("the server is used again", PATIENCE, || {
        let mut found = vec![true; COUNT];
        let report = space.exists(&names, &mut found).unwrap();
        (report.failed == 0 && found == [false; COUNT]).then_some(())
    })
    .unwrap();
    assert_eq!(metric(&server, "memkv_dram_pages"), 0);
}

#[test]
fn slots_stay_where_they_are_while_work_is_under_way() {
    // The server gives up at the request's deadline, and what it lent stays lent until then.
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let hasty = connect(&fabric, config(&[&server]).op_timeout(SHORT));
    let space = space(&hasty);
    let names = keys("pinned", COUNT);
    let memory = Memory::registered(&hasty, COUNT * LEN);
    memory.fill(0, &pages(&names, LEN).concat());
    let pieces = Pieces::pages(&memory, COUNT, LEN);
    fabric.hold(Hold::Transfers);
    std::thread::scope(|scope| {
        let put = scope.spawn(|| Pieces::pages(&memory, COUNT, LEN).put(&space, &names));
        wait_held(&fabric);
        assert!(metric(&server, "memkv_dram_used_bytes") >= (COUNT * LEN) as u64 / 2);
        put.join().unwrap();
    });
    fabric.hold(Hold::Nothing);
    wait_for("slots are given back", PATIENCE, || {
        (metric(&server, "memkv_dram_used_bytes") == 0).then_some(())
    })
    .unwrap();
    wait_for("a put goes through", PATIENCE, || {
        (pieces.put(&space, &names) == [PageOutcome::Stored; COUNT]).then_some(())
    })
    .unwrap();
}

#[test]
fn completions_may_be_late_and_in_any_order() {
    let fabric = Fabric::new(2);
    let server = server(&fabric);
    let client = client(&fabric, &[&server]);
    let space = space(&client);
    let names = keys("order", 64);
    let memory = Memory::registered(&client, 64 * LEN);
    let bytes = pages(&names, LEN).concat();
    memory.fill(0, &bytes);
    let done = std::sync::atomic::AtomicBool::new(false);
    for hold in [Hold::Completions, Hold::Transfers] {
        std::thread::scope(|scope| {
            let deliver = || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    if fabric.deliver(1, Order::Newest) == 0 {
                        std::thread::yield_now();
                    }
                }
            };
            scope.spawn(deliver);
            let pieces = Pieces::pages(&memory, 64, LEN);
            fabric.hold(hold);
            memory.fill(0, &bytes);
            let put = pieces.put(&space, &names);
            assert!(put.iter().all(|outcome| outcome.is_success()), "{put:?}");
            memory.fill(0, &vec![0; bytes.len()]);
            assert_eq!(pieces.get(&space, &names), [PageOutcome::Hit; 64]);
            assert!(memory.read(0, bytes.len()) == bytes);
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        done.store(false, std::sync::atomic::Ordering::Relaxed);
        fabric.hold(Hold::Nothing);
    }
}
