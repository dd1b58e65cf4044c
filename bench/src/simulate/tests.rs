//! What the simulator and the policies promise.

use super::exact::{Exact, ExactLru, ExactS3Fifo, ExactSieve, replay_exact};
use super::optimum::optimum;
use super::replay::{Rules, replay};
use super::shapes::Shape;
use super::suite::{Suite, run, table, worst_and_mean};
use super::trace::{Line, Trace};
use super::{blocks_of, parse_share, simulate};
use memkv_storage::PolicyKind;

fn shipped() -> Trace {
    Trace::parse(include_str!("../../traces/mooncake_synthetic_trace.jsonl")).unwrap()
}

fn line(timestamp: u64, input_length: u64, hash_ids: &[u64]) -> Line {
    Line { timestamp, input_length, output_length: 0, hash_ids: hash_ids.to_vec() }
}

fn made(lines: &[(u64, &[u64])]) -> Trace {
    let lines = lines.iter().map(|(tokens, ids)| line(0, *tokens, ids)).zip(0..);
    Trace::from_lines(lines.map(|(line, timestamp)| Line { timestamp, ..line }).collect()).unwrap()
}

#[test]
fn a_part_of_a_block_counts_as_it_is() {
    let trace = made(&[(700, &[1, 2]), (700, &[1, 2]), (1200, &[1, 2, 3])]);
    let hits = replay(&trace, &*PolicyKind::Lru.build(9), 9, Rules::default());
    assert_eq!(hits, 700 + 1024);
    assert_eq!(optimum(&trace, 9), hits);
}

#[test]
fn only_the_leading_run_is_hit_and_a_request_keeps_its_own_blocks() {
    // Room for three: the second request evicts the deepest block of the first, the third finds only what is before it.
    let trace = made(&[(1536, &[1, 2, 3]), (512, &[4]), (1536, &[1, 2, 3]), (2560, &[5, 6, 7, 8, 9])]);
    for kind in PolicyKind::ALL {
        assert_eq!(replay(&trace, &*kind.build(3), 3, Rules::default()), 1024, "{kind}");
    }
    // Of a prompt that is too long the first blocks are stored.
    let trace = made(&[(2560, &[5, 6, 7, 8, 9]), (2560, &[5, 6, 7, 8, 9])]);
    for kind in PolicyKind::ALL {
        assert_eq!(replay(&trace, &*kind.build(3), 3, Rules::default()), 1536, "{kind}");
    }
    assert_eq!(optimum(&trace, 3), 1536);
}

#[test]
fn blocks_that_are_put_apart_are_a_chain_of_their_own() {
    // Room for five; a request each millisecond. Block 3 is put when 5 and 6 are read, as the first of its chain. So it
    // outlives 1 and 2, read before, and 6, the deepest of that moment.
    let trace = made(&[
        (1024, &[5, 6]),
        (1024, &[1, 2]),
        (1536, &[1, 2, 3]),
        (1024, &[5, 6]),
        (1536, &[7, 8, 9]),
        (512, &[3]),
    ]);
    let tokens = |apart| replay(&trace, &*PolicyKind::Lru.build(5), 5, Rules { apart, ..Rules::default() });
    assert_eq!((tokens(false), tokens(true)), (1024 + 1024, 1024 + 1024 + 512));
}

#[test]
fn bad_lines_are_named() {
    let good = r#"{"timestamp": 1.5, "input_length": 600, "hash_ids": [1, 2]}"#;
    assert_eq!(Trace::parse(good).unwrap().requests[0].now.ms, 1);
    let bad = [
        r#"{"timestamp": 0"#,
        r#"{"timestamp": -1, "input_length": 600, "hash_ids": [1, 2]}"#,
        r#"{"timestamp": 0, "input_length": 5, "hash_ids": [1, 2]}"#,
        r#"{"timestamp": 0, "input_length": 600, "hash_ids": [1, 1]}"#,
        r#"{"timestamp": 0, "hash_ids": [1]}"#,
    ];
    for bad in bad {
        let error = Trace::parse(&format!("{good}\n\n{bad}\n")).unwrap_err().to_string();
        assert!(error.starts_with("line 3: "), "{error}");
    }
    assert!(Trace::parse("\n").is_err());
}

#[test]
fn requests_of_one_time_come_evenly_until_the_next() {
    let times = |times: &[u64]| -> Vec<u64> {
        let lines = times.iter().map(|&time| line(time, 100, &[1])).collect();
        Trace::from_lines(lines).unwrap().requests.iter().map(|request| request.now.ms).collect()
    };
    assert_eq!(times(&[0, 0, 0, 3000, 3000, 9000, 9000]), [0, 1000, 2000, 3000, 6000, 9000, 11_250]);
    assert_eq!(times(&[5, 5, 6, 40, 39]), [5, 5, 6, 40, 48], "no step is longer than it is");
    assert_eq!(times(&[7, 7, 7]), [7, 8, 9], "a trace without times");
}

#[test]
fn shares_are_read() {
    assert_eq!((parse_share("5%"), parse_share("0.05")), (Ok(0.05), Ok(0.05)));
    for bad in ["0%", "101%", "five", "-1"] {
        assert!(parse_share(bad).is_err(), "{bad}");
    }
}

/// The most that anybody can hit, by trying everything.
fn best(trace: &Trace, number: usize, stored: &[u32], capacity: usize) -> u64 {
    let Some(request) = trace.requests.get(number) else { return 0 };
    let hits = request.blocks.iter().take_while(|block| stored.contains(block)).count();
    let others: Vec<u32> = stored.iter().copied().filter(|block| !request.blocks.contains(block)).collect();
    let room = capacity.saturating_sub(request.blocks.len());
    let mut most = 0;
    for chosen in 0_u32..1 << others.len() {
        if chosen.count_ones() as usize <= room {
            let kept = others.iter().enumerate().filter(|(at, _)| chosen >> at & 1 == 1);
            let mut next: Vec<u32> = kept.map(|(_, block)| *block).collect();
            next.extend(request.blocks.iter().take(capacity));
            most = most.max(best(trace, number + 1, &next, capacity));
        }
    }
    request.tokens(hits) + most
}

#[test]
fn nobody_does_better_than_the_optimum() {
    let chains: [&[u64]; 5] = [&[1, 2, 3], &[1, 2, 4], &[5, 6], &[7], &[1, 8]];
    for seed in 0..40_u64 {
        let pick = |number: u64| chains[((seed * 31 + 7) * (number + 3) * (number + 11) / 5 % 5) as usize];
        let lines: Vec<(u64, &[u64])> =
            (0..7).map(|number| (pick(number).len() as u64 * 512, pick(number))).collect();
        let trace = made(&lines);
        for capacity in [2, 4, 5] {
            assert_eq!(optimum(&trace, capacity), best(&trace, 0, &[], capacity), "{seed} {capacity}");
        }
    }
}

/// A policy as it is in the books, with room for so many blocks.
fn exact(kind: PolicyKind, capacity: usize) -> Option<Box<dyn Exact>> {
    match kind {
        PolicyKind::Lru => Some(Box::new(ExactLru::new(capacity))),
        PolicyKind::S3Fifo => Some(Box::new(ExactS3Fifo::new(capacity))),
        PolicyKind::Sieve => Some(Box::new(ExactSieve::new(capacity))),
        PolicyKind::Chain => None,
    }
}

#[test]
fn block_by_block_the_classics_are_those_of_the_books() {
    // Prompts of one block, some of them popular.
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % 400
    };
    let ids: Vec<[u64; 1]> = (0..6000).map(|_| [next() * next() / 400]).collect();
    let trace = made(&ids.iter().map(|ids| (512, &ids[..])).collect::<Vec<_>>());
    for capacity in [7, 30, 90] {
        for kind in PolicyKind::ALL {
            let Some(mut exact) = exact(kind, capacity) else { continue };
            let (ours, theirs) = (
                replay(&trace, &*kind.build(capacity), capacity, Rules::default()),
                replay_exact(&trace, &mut *exact),
            );
            let error = ours.abs_diff(theirs) as f64 / theirs as f64;
            // Ours leaves out the block that just came when it measures the small queue.
            let allowed = if kind == PolicyKind::S3Fifo { 0.1 } else { 0.0 };
            assert!(error <= allowed, "{kind} at {capacity}: ours {ours}, by the book {theirs}");
        }
    }
}

#[test]
fn on_the_shipped_trace_the_default_is_at_least_as_good_as_the_best_of_the_classics() {
    let trace = shipped();
    assert_eq!((trace.requests.len(), trace.distinct()), (3993, 43_924));
    let report = simulate(&trace, &PolicyKind::ALL, &[0.01, 0.05, 0.1], Rules::default());
    for row in &report.rows {
        let own =
            row.hit_ratio.iter().find(|(name, _)| *name == PolicyKind::default().to_string()).unwrap().1;
        for (name, ratio) in &row.hit_ratio {
            assert!(own >= *ratio, "{name} has {ratio} with room for {}, the default {own}", row.blocks);
        }
        for kind in PolicyKind::ALL {
            let Some(mut exact) = exact(kind, row.blocks) else { continue };
            let ratio = replay_exact(&trace, &mut *exact) as f64 / trace.input_tokens as f64;
            // By the book S3-FIFO is a little better than ours: see the document.
            assert!(own >= ratio * 0.99, "{kind} by the book has {ratio} with room for {}", row.blocks);
        }
    }
    assert!((0.37..0.41).contains(&report.rows[1].optimum), "{}", report.rows[1].optimum);
}

#[test]
fn on_no_shape_the_default_is_far_behind_the_best_of_the_classics() {
    // With room for a tenth the classics differ most from one another, and our own ranking alone is 4 % behind on drift.
    let suite = Suite { seeds: vec![1], requests: 1500, shares: vec![0.1] };
    let cells = run(&suite, None, Rules::default()).unwrap();
    assert_eq!(cells.len(), Shape::ALL.len());
    for cell in &cells {
        assert!(cell.ratio() >= 0.97 && cell.own <= cell.optimum, "{cell:?}");
    }
    let (worst, mean) = worst_and_mean(&cells);
    assert!(worst <= mean && mean >= 1.0, "{}", table(&cells));
}

#[test]
fn replays_and_shapes_are_the_same_each_time() {
    for shape in Shape::ALL {
        let lines = shape.trace(3, 200);
        assert_eq!(lines, shape.trace(3, 200));
        assert_ne!(lines, shape.trace(4, 200));
        assert_eq!((lines.len(), shape.name().parse()), (200, Ok(shape)));
        let text: Vec<String> = lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
        let trace = Trace::parse(&text.join("\n")).unwrap();
        assert_eq!(trace, Trace::from_lines(lines).unwrap());
        let capacity = blocks_of(&trace, 0.1);
        for kind in PolicyKind::ALL {
            let once = replay(&trace, &*kind.build(capacity), capacity, Rules::default());
            assert_eq!(
                once,
                replay(&trace, &*kind.build(capacity), capacity, Rules::default()),
                "{shape} {kind}"
            );
            assert!(once <= optimum(&trace, capacity), "{shape} {kind}");
        }
    }
}
