//! Rules of the books, and a model test against plain sets.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

const CHUNK: u32 = 64 << 10;

fn exact(len: u32) -> u32 {
    class::exact(len).unwrap()
}

fn take(books: &mut Books, len: u32) -> Result<Taken, Full> {
    books.take(len, exact(len))
}

#[test]
fn slots_are_exactly_the_page_rounded_up() {
    let mut books = Books::new(CHUNK, 4);
    take(&mut books, 5000).unwrap();
    take(&mut books, 8000).unwrap();
    let classes = books.classes();
    assert_eq!(classes.len(), 1);
    assert_eq!((classes[0].slot_bytes, classes[0].in_use, classes[0].slots), (8192, 2, 8));
    assert_eq!((books.held_bytes(), books.asked_bytes()), (16384, 13000));
}

#[test]
fn an_empty_chunk_may_change_class() {
    let mut books = Books::new(CHUNK, 1);
    let taken = take(&mut books, 4096).unwrap();
    assert!(taken.new_chunk);
    assert_eq!(take(&mut books, 8192).unwrap_err(), Full { slot_bytes: 8192 });
    assert!(books.give(taken.chunk, taken.slot, 4096));
    assert!(take(&mut books, 8192).is_ok());
}

#[test]
fn who_makes_memory_resident_is_told_of_each_step_of_it_once() {
    const PAGE: u32 = 1 << 20;
    let mut books = Books::new(8 << 20, 8);
    let taken: Vec<_> = (0..12).map(|_| take(&mut books, PAGE).unwrap()).collect();
    let told: Vec<_> = (0..12).filter(|&at| taken[at].goes_on).collect();
    assert_eq!(told, [0, 4, 8], "steps are 4 MiB, chunks 8");
    let next = |untouched| Upcoming::new([Some(2), Some(3), Some(4), Some(5)], 8 << 20, untouched);
    assert_eq!(books.upcoming(), next(u64::from(4 * PAGE)));
    books.give(taken[9].chunk, taken[9].slot, PAGE);
    assert!(!take(&mut books, PAGE).unwrap().goes_on, "memory that was used before is resident");
    assert!(take(&mut books, PAGE).unwrap().goes_on);
}

#[test]
fn a_full_table_falls_back_to_quarter_steps() {
    let mut books = Books::new(1 << 20, 100);
    for units in 1..=u32::try_from(books.learned_max).unwrap() {
        take(&mut books, units * 4096).unwrap();
    }
    // 65 units lie between 64 and 80.
    let taken = take(&mut books, 65 * 4096 - 100).unwrap();
    assert_eq!(taken.fill.slot_bytes, 80 * 4096);
}

#[test]
fn an_idle_class_leaves_a_full_table() {
    let mut books = Books::new(1 << 20, 100);
    let mut last = None;
    for units in 1..=u32::try_from(books.learned_max).unwrap() {
        last = Some((take(&mut books, units * 4096).unwrap(), units * 4096));
    }
    let (taken, len) = last.unwrap();
    books.give(taken.chunk, taken.slot, len);
    assert_eq!(take(&mut books, 65 * 4096).unwrap().fill.slot_bytes, 65 * 4096);
    assert!(books.classes().iter().all(|class| class.slot_bytes != len));
}

#[test]
fn a_draining_chunk_hands_out_nothing_and_goes_free() {
    let mut books = Books::new(CHUNK, 1);
    let first = take(&mut books, 4096).unwrap();
    assert!(books.drain(first.chunk));
    assert!(!books.drain(first.chunk));
    assert!(take(&mut books, 4096).is_err());
    assert_eq!((books.free_chunk_count(), books.draining_chunk_count()), (0, 1));
    assert!(books.give(first.chunk, first.slot, 4096));
    assert_eq!((books.free_chunk_count(), books.draining_chunk_count()), (1, 0));
    assert!(!books.drain(first.chunk), "a free chunk has nothing to drain");
}

#[test]
fn demand_is_told_once() {
    let mut books = Books::new(CHUNK, 1);
    take(&mut books, CHUNK).unwrap();
    take(&mut books, CHUNK).unwrap_err();
    let demand = books.take_demand();
    assert_eq!(demand.len(), 1);
    assert_eq!((demand[0].fill.available, demand[0].fill.potential), (0, 1));
    assert!(books.take_demand().is_empty());
}

#[test]
#[should_panic(expected = "not in use")]
fn a_slot_cannot_be_given_back_twice() {
    let mut books = Books::new(CHUNK, 1);
    take(&mut books, 4096).unwrap();
    let taken = take(&mut books, 4096).unwrap();
    books.give(taken.chunk, taken.slot, 4096);
    books.give(taken.chunk, taken.slot, 4096);
}

#[derive(Clone, Debug)]
enum Op {
    Take(u32),
    Give(usize),
    Drain(u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1_u32..=CHUNK).prop_map(Op::Take),
        3 => (1_u32..4).prop_map(|n| Op::Take(n * 9000)),
        6 => any::<usize>().prop_map(Op::Give),
        1 => (0_u32..6).prop_map(Op::Drain),
    ]
}

fn check(books: &Books, held: &HashMap<(u32, u32), (u32, u32)>) {
    let held_bytes: u64 = held.values().map(|&(_, slot_bytes)| u64::from(slot_bytes)).sum();
    let asked_bytes: u64 = held.values().map(|&(len, _)| u64::from(len)).sum();
    assert_eq!((books.held_bytes, books.asked_bytes), (held_bytes, asked_bytes));
    for (index, chunk) in books.chunks.iter().enumerate() {
        let in_use = held.keys().filter(|key| key.0 as usize == index).count();
        assert_eq!(chunk.in_use as usize, in_use);
        let pooled = books.free_chunks.iter().any(|&free| free as usize == index);
        assert_eq!(pooled, in_use == 0, "exactly the empty chunks are in the pool");
    }
    for class in &books.classes {
        let of_class = || books.chunks.iter().filter(|chunk| chunk.slot_bytes == class.slot_bytes);
        let open = of_class().filter(|chunk| !chunk.draining && chunk.in_use < chunk.slots).count();
        let free: u32 =
            of_class().filter(|chunk| !chunk.draining).map(|chunk| chunk.slots - chunk.in_use).sum();
        assert_eq!(class.open.len(), open);
        assert_eq!(class.free_slots, u64::from(free));
        assert_eq!(class.chunks as usize, of_class().count());
        for (place, &index) in class.open.iter().enumerate() {
            assert_eq!(books.chunks[index as usize].place, place);
        }
    }
}

proptest! {
    #[test]
    fn the_books_agree_with_plain_sets(ops in proptest::collection::vec(op(), 1..200)) {
        let mut books = Books::new(CHUNK, 6);
        let mut held: HashMap<(u32, u32), (u32, u32)> = HashMap::new();
        for op in ops {
            match op {
                Op::Take(len) => if let Ok(taken) = take(&mut books, len) {
                    prop_assert!(taken.fill.slot_bytes >= len);
                    prop_assert!((taken.slot + 1) * taken.fill.slot_bytes <= CHUNK);
                    let before = held.insert((taken.chunk, taken.slot), (len, taken.fill.slot_bytes));
                    prop_assert!(before.is_none(), "handed out twice");
                },
                Op::Give(which) => {
                    let mut keys: Vec<_> = held.keys().copied().collect();
                    keys.sort_unstable();
                    if !keys.is_empty() {
                        let key = keys[which % keys.len()];
                        let (len, _) = held.remove(&key).unwrap();
                        books.give(key.0, key.1, len);
                    }
                }
                Op::Drain(chunk) => { books.drain(chunk); }
            }
            check(&books, &held);
        }
        for ((chunk, slot), (len, _)) in held.drain() {
            books.give(chunk, slot, len);
        }
        prop_assert_eq!((books.held_bytes(), books.free_chunk_count(), books.draining_chunk_count()), (0, 6, 0));
    }
}
