//! Listing keys piece by piece.

use super::*;
use std::collections::BTreeSet;

fn filled() -> (Arc<Engine>, Arc<Space>) {
    let engine = engine(16 << 20);
    let (listed, other) = (space(&engine, "listed"), space(&engine, "other"));
    for n in 0..1000 {
        put(&engine, &listed, format!("{}/{n}", n % 7).as_bytes(), b"page").unwrap();
        put(&engine, &other, format!("other/{n}").as_bytes(), b"page").unwrap();
    }
    (engine, listed)
}

/// All keys, piece by piece.
fn all(engine: &Engine, space: &Space, prefix: &[u8], limit: usize) -> Vec<Vec<u8>> {
    let (mut keys, mut cursor) = (Vec::new(), Vec::new());
    loop {
        let piece = engine.list(space, prefix, limit, &cursor).unwrap();
        assert!(piece.entries.len() <= limit.max(1));
        keys.extend(piece.entries.into_iter().map(|info| info.key));
        cursor = piece.next_cursor;
        if cursor.is_empty() {
            return keys;
        }
    }
}

#[test]
fn every_key_is_listed_once_whatever_the_piece() {
    let (engine, space) = filled();
    for prefix in ["", "3/", "3/5", "none"] {
        let expected: BTreeSet<_> = (0..1000).map(|n| format!("{}/{n}", n % 7)).collect();
        let expected: BTreeSet<_> =
            expected.into_iter().filter(|key| key.starts_with(prefix)).map(String::into_bytes).collect();
        for limit in [0, 1, 7, 100, 1000, usize::MAX] {
            let keys = all(&engine, &space, prefix.as_bytes(), limit);
            assert_eq!(keys.len(), expected.len(), "{prefix} {limit}");
            assert_eq!(keys.into_iter().collect::<BTreeSet<_>>(), expected);
        }
    }
}

#[test]
fn a_call_looks_at_a_bounded_number_of_entries() {
    let (engine, space) = filled();
    let (mut keys, mut cursor, mut calls) = (BTreeSet::new(), Vec::new(), 0);
    loop {
        let piece = crate::list::list(&engine.state, &space, b"3/", (usize::MAX, 100), &cursor).unwrap();
        calls += 1;
        keys.extend(piece.entries.into_iter().map(|info| info.key));
        cursor = piece.next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(keys.len(), (0..1000).filter(|n| n % 7 == 3).count());
    // 2000 entries in shards of about 8.
    assert!((15..=20).contains(&calls), "{calls}");
}

#[test]
fn keys_that_stay_are_listed_while_others_come_and_go() {
    let (engine, space) = filled();
    let (mut keys, mut cursor) = (BTreeSet::new(), Vec::new());
    for round in 0.. {
        let piece = engine.list(&space, b"", 10, &cursor).unwrap();
        keys.extend(piece.entries.into_iter().map(|info| info.key));
        cursor = piece.next_cursor;
        if cursor.is_empty() {
            break;
        }
        // The last key of the piece, at which the cursor points, is among those that go.
        delete(&engine, &space, keys.iter().next_back().unwrap());
        put(&engine, &space, format!("new/{round}").as_bytes(), b"page").unwrap();
    }
    assert!((0..1000).all(|n| keys.contains(format!("{}/{n}", n % 7).as_bytes())));
}

#[test]
fn strange_cursors_are_refused() {
    let (engine, space) = filled();
    for cursor in [&[0][..], &[1], &[2, 0], &[1; 515]] {
        assert_eq!(engine.list(&space, b"", 10, cursor), Err(BadCursor), "{cursor:?}");
    }
    let (longest, last_shard) = ([1; 514], [1, 255]);
    for cursor in [&longest[..], &last_shard] {
        assert!(engine.list(&space, b"", 10, cursor).is_ok());
    }
}

#[test]
fn entries_tell_about_their_pages() {
    let engine = engine(4 << 20);
    let space = space(&engine, "a");
    put_at(&engine, &space, b"k", &[1; 5000], (3, 8)).unwrap();
    let listing = engine.list(&space, b"", 10, b"").unwrap();
    assert_eq!(listing.entries, [engine.inspect(&space, hashed(&space, b"k")).unwrap()]);
    assert!(listing.next_cursor.is_empty());
}
