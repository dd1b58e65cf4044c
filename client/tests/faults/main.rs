//! The client against a server that misbehaves in every way a test can think of.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is reported")]

mod fake;
mod parts;

use fake::{Act, Fake};
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, ErrorKind, PageOutcome, RawPieces, ServerState, SpaceDescription, Transport};
use memkv_core::Limits;
use memkv_transport::frame::{HEADER_BYTES, Op};
use memkv_transport::records::PAGE_RECORD_BYTES;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// Far more than any of these calls takes when it does not hang.
const SOON: Duration = Duration::from_secs(10);

fn space_description() -> SpaceDescription {
    SpaceDescription::named("faults").unwrap()
}

fn config(fakes: &[&Fake]) -> memkv_client::ConfigBuilder {
    let list: Vec<String> = fakes.iter().map(|fake| fake.address.to_string()).collect();
    Config::builder().without_environment().servers(list.join(","))
}

fn connect(fakes: &[&Fake]) -> (Client, Space) {
    connect_with(config(fakes).op_timeout(SOON))
}

fn connect_with(config: memkv_client::ConfigBuilder) -> (Client, Space) {
    let client = Client::connect(config.build().unwrap()).unwrap();
    let space = client.space(space_description()).unwrap();
    (client, space)
}

fn page(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31) ^ (i >> 7) ^ (seed * 97)) as u8).collect()
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("key-{i}")).collect()
}

fn get(space: &Space, keys: &[String], len: usize) -> (Vec<PageOutcome>, Vec<Vec<u8>>) {
    let mut pages = vec![vec![0xee; len]; keys.len()];
    let mut out = vec![PageOutcome::Denied; keys.len()];
    let mut slices: Vec<&mut [u8]> = pages.iter_mut().map(Vec::as_mut_slice).collect();
    space.get_into(keys, &mut slices, &mut out).unwrap();
    (out, pages)
}

fn put(space: &Space, keys: &[String], pages: &[Vec<u8>]) -> Vec<PageOutcome> {
    let mut out = vec![PageOutcome::Denied; keys.len()];
    let slices: Vec<&[u8]> = pages.iter().map(Vec::as_slice).collect();
    space.put_from(keys, &slices, &mut out).unwrap();
    out
}

/// Waits until ops go to all servers again.
fn until_ready(client: &Client) {
    let begin = Instant::now();
    while client.servers().iter().any(|server| server.state != ServerState::Ready) {
        assert!(begin.elapsed() < SOON, "{:?}", client.servers());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn pages_come_back_byte_for_byte_over_two_servers() {
    let (a, b) = (Fake::start(), Fake::start());
    let (client, space) = connect(&[&a, &b]);
    let keys = keys(100);
    let pages: Vec<_> = (0..100).map(|i| page(i, 70_000)).collect();
    assert_eq!(put(&space, &keys, &pages), vec![PageOutcome::Stored; 100]);
    assert_eq!(put(&space, &keys, &pages), vec![PageOutcome::Exists; 100]);
    let (out, read) = get(&space, &keys, 70_000);
    assert_eq!(out, vec![PageOutcome::Hit; 100]);
    assert!(read == pages);
    let held = [&a, &b].map(|fake| fake.state.pages.lock().unwrap().len());
    assert!(held[0] > 20 && held[1] > 20 && held[0] + held[1] == 100, "{held:?}");

    let mut there = vec![false; 100];
    assert_eq!(space.exists(&keys, &mut there).unwrap().ok, 100);
    space.delete(&keys[40..41], &mut there[..1]).unwrap();
    assert_eq!(space.exists_prefix(&keys).unwrap(), 40);
    assert_eq!(space.touch(&keys, &mut there).unwrap().ok, 99);
    assert!(!there[40] && there[41]);
    let stats = client.stats();
    assert_eq!((stats.put.ok, stats.get.ok, stats.already_stored), (200, 100, 100));
    assert_eq!(stats.get.bytes, 7_000_000);
}

#[test]
#[allow(unsafe_code, reason = "the raw ops are what is tested")]
fn raw_pieces_are_read_and_written_in_place() {
    let fake = Fake::start();
    let (_client, space) = connect(&[&fake]);
    let keys = keys(9);
    // Every page is five pieces of different lengths, so a page's boundaries fall anywhere.
    let lens: Vec<usize> = (0..45).map(|i| 1 + (i * 7919) % 30_000).collect();
    let mut pieces: Vec<Vec<u8>> = lens.iter().enumerate().map(|(i, &len)| page(i, len)).collect();
    let expected = pieces.clone();
    let ptrs: Vec<*mut u8> = pieces.iter_mut().map(|piece| piece.as_mut_ptr()).collect();
    let raw = RawPieces { ptrs: &ptrs, lens: &lens, per_page: 5 };
    let mut out = [PageOutcome::Denied; 9];
    // SAFETY: `pieces` are separate allocations of the given lengths, untouched until the call returns.
    unsafe { space.put_from_raw(&keys, raw, &mut out) }.unwrap();
    assert_eq!(out, [PageOutcome::Stored; 9]);
    assert_eq!(fake.state.pages.lock().unwrap()[b"key-3".as_slice()].0, expected[15..20].concat());
    pieces.iter_mut().for_each(|piece| piece.fill(0));
    let ptrs: Vec<*mut u8> = pieces.iter_mut().map(|piece| piece.as_mut_ptr()).collect();
    let raw = RawPieces { ptrs: &ptrs, lens: &lens, per_page: 5 };
    // SAFETY: as above.
    let report = unsafe { space.get_into_raw(&keys, raw, &mut out) }.unwrap();
    assert_eq!((report.ok, out), (9, [PageOutcome::Hit; 9]));
    assert!(pieces == expected);
    let bad = RawPieces { ptrs: &ptrs, lens: &lens, per_page: 4 };
    // SAFETY: refused before anything is touched.
    let error = unsafe { space.get_into_raw(&keys, bad, &mut out) }.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
}

#[test]
fn a_get_cut_at_any_byte_reports_what_came_whole() {
    let fake = Fake::start();
    for i in 0..3 {
        fake.store(&space_description(), &format!("key-{i}"), &page(i, 5));
    }
    let whole = HEADER_BYTES + 3 * 16 + 15;
    for cut in 0..whole {
        let (client, space) = connect(&[&fake]);
        fake.script(move |_, reply| {
            assert_eq!(reply.len(), whole);
            Act::SendAndClose(reply[..cut].to_vec())
        });
        let (out, pages) = get(&space, &keys(3), 5);
        for (i, (outcome, read)) in out.iter().zip(&pages).enumerate() {
            let came = cut >= HEADER_BYTES + 48 + 5 * (i + 1);
            let expected = if came { PageOutcome::Hit } else { PageOutcome::Unavailable };
            assert_eq!(*outcome, expected, "cut at {cut}, page {i}");
            assert!(!came || *read == page(i, 5));
        }
        client.close();
    }
}

/// Puts pages that are there already, so that the next put asks first.
fn make_it_ask(space: &Space) {
    let names: Vec<_> = (0..200).map(|i| format!("there-{i}")).collect();
    let pages = vec![vec![1; 10]; 200];
    assert_eq!(put(space, &names, &pages), vec![PageOutcome::Stored; 200]);
    assert_eq!(put(space, &names, &pages), vec![PageOutcome::Exists; 200]);
}

#[test]
fn other_replies_cut_at_any_byte_are_no_success() {
    let fake = Fake::start();
    for (op, whole) in [(Op::Exists, 65), (Op::Put, 67), (Op::PutData, 67)] {
        for cut in 0..whole {
            fake.state.pages.lock().unwrap().clear();
            let (client, space) = connect(&[&fake]);
            if op == Op::PutData {
                fake.script(|_, reply| Act::Send(reply));
                make_it_ask(&space);
            }
            fake.script(move |asked, reply| {
                if asked == op { Act::SendAndClose(reply[..cut].to_vec()) } else { Act::Send(reply) }
            });
            let keys = keys(3);
            if op == Op::Exists {
                fake.store(&space_description(), "key-0", b"x");
                let mut found = [true; 3];
                let report = space.exists(&keys, &mut found).unwrap();
                assert_eq!((report.failed, found), (3, [false; 3]), "cut at {cut}");
            } else {
                let out = put(&space, &keys, &[page(0, 5), page(1, 5), page(2, 5)]);
                // What was stored before a reply got lost may be found by the one retry.
                let lost =
                    |outcome: &PageOutcome| matches!(outcome, PageOutcome::Unavailable | PageOutcome::Exists);
                assert!(out.iter().all(lost), "{op:?} cut at {cut}: {out:?}");
                assert!(cut == 0 || out == [PageOutcome::Unavailable; 3], "{op:?} cut at {cut}: {out:?}");
            }
            client.close();
        }
    }
}

#[test]
fn altered_replies_are_never_taken_for_pages() {
    let fake = Fake::start();
    for i in 0..3 {
        fake.store(&space_description(), &format!("key-{i}"), &page(i, 5));
    }
    let (client, space) = connect(&[&fake]);
    // A flipped bit of the second page.
    fake.script(|_, mut reply| {
        reply[HEADER_BYTES + 48 + 7] ^= 4;
        Act::Send(reply)
    });
    let (out, pages) = get(&space, &keys(3), 5);
    assert_eq!(out, [PageOutcome::Hit, PageOutcome::Corrupt, PageOutcome::Hit]);
    assert_eq!((&pages[0], &pages[2]), (&page(0, 5), &page(2, 5)));
    assert_eq!(client.stats().corrupt, 1);
    // The connection is in step: the same one goes on.
    fake.be_honest();
    assert_eq!(get(&space, &keys(3), 5).0, [PageOutcome::Hit; 3]);
    assert_eq!(client.stats().servers[0].broken, 0);
    client.close();
    // A flipped bit anywhere before the pages.
    for at in 0..HEADER_BYTES + 48 {
        let (client, space) = connect_with(config(&[&fake]).op_timeout(Duration::from_millis(300)));
        fake.script(move |_, mut reply| {
            reply[at] ^= 1;
            Act::Send(reply)
        });
        let (out, _) = get(&space, &keys(3), 5);
        let none =
            out.iter().all(|outcome| matches!(outcome, PageOutcome::Unavailable | PageOutcome::TimedOut));
        assert!(none, "byte {at}: {out:?}");
        client.close();
    }
}

#[test]
fn a_silent_server_costs_the_deadline_and_only_its_own_keys() {
    let (good, silent) = (Fake::start(), Fake::start());
    let (client, space) = connect_with(config(&[&good, &silent]).op_timeout(Duration::from_millis(300)));
    let keys = keys(40);
    let pages: Vec<_> = (0..40).map(|i| page(i, 100)).collect();
    assert_eq!(put(&space, &keys, &pages), vec![PageOutcome::Stored; 40]);
    silent.script(|_, _| Act::Hang);
    let of_good = good.state.pages.lock().unwrap().len();
    for round in 0..2 {
        let begin = Instant::now();
        let (out, _) = get(&space, &keys, 100);
        assert!((Duration::from_millis(300)..SOON).contains(&begin.elapsed()));
        for (key, outcome) in keys.iter().zip(out) {
            let owned = good.state.pages.lock().unwrap().contains_key(key.as_bytes());
            let expected = if owned { PageOutcome::Hit } else { PageOutcome::TimedOut };
            assert_eq!(outcome, expected, "round {round}");
        }
    }
    assert!(matches!(client.servers()[1].state, ServerState::Suspect { .. }));
    assert_eq!(client.servers()[0].state, ServerState::Ready);
    let before = *silent.state.requests.borrow();
    let mut found = vec![false; 40];
    let report = space.exists(&keys, &mut found).unwrap();
    assert_eq!((report.ok, report.failed), (of_good, 40 - of_good));
    assert_eq!(*silent.state.requests.borrow(), before, "an open breaker keeps calls away");
    assert_eq!(client.stats().servers[1].breaker_opened, 1);
    silent.be_honest();
    until_ready(&client);
    assert_eq!(get(&space, &keys, 100).0, vec![PageOutcome::Hit; 40]);
}

#[test]
fn a_dropped_future_closes_its_connection() {
    let fake = Fake::start();
    fake.store(&space_description(), "key-0", &page(0, 5));
    let (client, blocking_space) = connect(&[&fake]);
    let space = blocking_space.asynchronous().clone();
    fake.script(|_, reply| Act::Send(reply[..HEADER_BYTES + 18].to_vec()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut room = [0; 5];
        let mut slices = [&mut room[..]];
        let mut out = [PageOutcome::Denied];
        let keys = ["key-0"];
        let mut asked = fake.state.requests.subscribe();
        let mut get = Box::pin(space.get_into(&keys, &mut slices, &mut out));
        tokio::select! {
            _ = &mut get => panic!("the rest of the page never comes"),
            asked = asked.wait_for(|asked| *asked == 1) => drop(asked.unwrap()),
        }
        drop(get);
    });
    fake.wait_for(&fake.state.ended, 1);
    fake.be_honest();
    assert_eq!(get(&blocking_space, &keys(1), 5), (vec![PageOutcome::Hit], vec![page(0, 5)]));
    assert_eq!(client.stats().servers[0].broken, 0, "giving up says nothing about the server");
}

#[test]
fn the_async_form_works_on_any_executor_and_in_any_runtime() {
    let fake = Fake::start();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    // A runtime without I/O or time of its own; the client is made, used and dropped inside it.
    runtime.block_on(async {
        let config = config(&[&fake]).op_timeout(SOON).build().unwrap();
        let client = memkv_client::Client::connect(config).await.unwrap();
        let space = client.space(space_description()).await.unwrap();
        let pages: Vec<Vec<u8>> = (0..8).map(|i| page(i, 1 << 20)).collect();
        let slices: Vec<&[u8]> = pages.iter().map(Vec::as_slice).collect();
        let mut out = [PageOutcome::Denied; 8];
        let report = space.put_from(&keys(8), &slices, &mut out).await.unwrap();
        assert_eq!((report.ok, report.bytes), (8, 8 << 20));
        let mut read = vec![vec![0; 1 << 20]; 8];
        let mut slices: Vec<&mut [u8]> = read.iter_mut().map(Vec::as_mut_slice).collect();
        assert_eq!(space.get_into(&keys(8), &mut slices, &mut out).await.unwrap().ok, 8);
        assert!(read == pages);
        assert_eq!(space.exists_prefix(&keys(9)).await.unwrap(), 8);
    });
    fake.wait_for(&fake.state.ended, 2);
}

#[test]
fn only_wanted_pages_are_sent() {
    let fake = Fake::start();
    let (_client, space) = connect(&[&fake]);
    let names = ["a", "busy-b", "c", "d", "busy-e"].map(str::to_owned);
    fake.store(&space_description(), "c", &page(2, 10));
    let pages: Vec<_> = (0..5).map(|i| page(i, 10 + i)).collect();
    use PageOutcome::{Busy, Exists, Stored};
    assert_eq!(put(&space, &names, &pages), [Stored, Busy, Exists, Stored, Busy]);
    let held = fake.state.pages.lock().unwrap();
    assert_eq!((held.len(), &held[b"d".as_slice()].0), (3, &page(3, 13)));
}

#[test]
fn pages_are_sent_unasked_while_they_are_seldom_there() {
    let fake = Fake::start();
    let (_client, space) = connect(&[&fake]);
    let pages: Vec<_> = (0..100).map(|i| page(i, 1000)).collect();
    let sent = |names: &str, outcome| {
        let keys: Vec<_> = (0..100).map(|i| format!("{names}-{i}")).collect();
        let (bytes, requests) = (fake.state.body_bytes.load(SeqCst), *fake.state.requests.borrow());
        assert_eq!(put(&space, &keys, &pages), vec![outcome; 100]);
        (fake.state.body_bytes.load(SeqCst) - bytes, *fake.state.requests.borrow() - requests)
    };
    const ALL: u64 = 100 * (1000 + PAGE_RECORD_BYTES as u64);
    assert_eq!(sent("a", PageOutcome::Stored), (ALL, 1), "unasked: one request");
    assert_eq!(sent("a", PageOutcome::Exists), (ALL, 1), "nobody could know");
    assert_eq!(sent("a", PageOutcome::Exists), (0, 1), "asked: nothing is sent in vain");
    assert_eq!(sent("b", PageOutcome::Stored), (ALL, 2), "asked: an offer and its pages");
    for round in 0..8 {
        sent(&format!("c{round}"), PageOutcome::Stored);
    }
    assert_eq!(sent("d", PageOutcome::Stored), (ALL, 1), "new pages again: unasked");
}

#[test]
fn a_server_that_takes_no_unasked_pages_is_asked() {
    let fake = Fake::start();
    fake.state.capabilities.lock().unwrap().clear();
    let (_client, space) = connect(&[&fake]);
    assert_eq!(put(&space, &["a".to_owned()], &[page(0, 10)]), [PageOutcome::Stored]);
    assert_eq!(*fake.state.requests.borrow(), 2, "an offer and its page");
}

#[test]
fn long_batches_are_cut_and_pipelined() {
    let limits = Limits { batch_keys_max: 3, frame_meta_bytes_max: 45, ..Limits::default() };
    let fake = Fake::with(None, limits);
    let (_client, space) = connect(&[&fake]);
    let keys = keys(50);
    let pages: Vec<_> = (0..50).map(|i| page(i, 30_000 + i)).collect();
    assert_eq!(put(&space, &keys, &pages), vec![PageOutcome::Stored; 50]);
    let asked = *fake.state.requests.borrow();
    // "key-10" offered takes 16 bytes of the 45: two to a frame, three for shorter keys at most.
    assert!(asked >= 17, "{asked}");
    // The same with the question first.
    assert_eq!(put(&space, &keys, &pages), vec![PageOutcome::Exists; 50]);
    assert_eq!(put(&space, &keys, &pages), vec![PageOutcome::Exists; 50]);
    fake.state.pages.lock().unwrap().clear();
    let before = *fake.state.requests.borrow();
    assert_eq!(put(&space, &keys, &pages), vec![PageOutcome::Stored; 50]);
    let asked = *fake.state.requests.borrow() - before;
    assert!(asked >= 2 * 17, "{asked}");
    let mut there = vec![false; 50];
    assert_eq!(space.exists(&keys, &mut there).unwrap().ok, 50);
    let mut room: Vec<Vec<u8>> = pages.iter().map(|page| vec![0; page.len()]).collect();
    let mut slices: Vec<&mut [u8]> = room.iter_mut().map(Vec::as_mut_slice).collect();
    let mut out = vec![PageOutcome::Denied; 50];
    space.get_into(&keys, &mut slices, &mut out).unwrap();
    assert_eq!(out, vec![PageOutcome::Hit; 50]);
    assert!(room == pages);
}

#[test]
fn frames_of_32_mib_follow_each_other() {
    let fake = Fake::start();
    let (_client, space) = connect(&[&fake]);
    let keys = keys(90);
    let pages: Vec<_> = (0..90).map(|i| page(i, 1 << 20)).collect();
    assert_eq!(put(&space, &keys, &pages), vec![PageOutcome::Stored; 90]);
    let (out, read) = get(&space, &keys, 1 << 20);
    assert_eq!(out, vec![PageOutcome::Hit; 90]);
    assert!(read == pages);
}

#[test]
fn bad_arguments_are_refused_before_anything_is_sent() {
    let fake = Fake::start();
    let (client, space) = connect(&[&fake]);
    let mut found = [false];
    let mut out = [PageOutcome::Denied];
    for key in [&b""[..], &[7; 513]] {
        let error = space.exists(&[key], &mut found).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(error.to_string().contains("1 to 512 bytes"), "{error}");
        assert_eq!(space.put_from(&[key], &[b"x"], &mut out).unwrap_err().kind(), ErrorKind::BadInput);
        assert_eq!(space.get(key).unwrap_err().kind(), ErrorKind::BadInput);
    }
    assert!(space.exists(&[[7; 512]], &mut found).is_ok());
    let kind = |result: Result<_, memkv_client::Error>| result.unwrap_err().kind();
    assert_eq!(kind(space.exists(&["a", "b"], &mut found)), ErrorKind::BadInput);
    assert_eq!(kind(space.put_from(&["a"], &[b"x", b"y"], &mut out)), ErrorKind::BadInput);
    assert_eq!(kind(space.put_from(&["a"], &[b""], &mut out)), ErrorKind::BadInput);
    assert_eq!(*fake.state.requests.borrow(), 1);
    assert!(space.exists::<&str>(&[], &mut []).is_ok());
    client.clone().close();
    assert_eq!(kind(space.exists(&["a"], &mut found)), ErrorKind::Closed);
}

#[test]
fn a_page_of_another_length_is_no_hit() {
    let fake = Fake::start();
    let (client, space) = connect(&[&fake]);
    fake.store(&space_description(), "key-0", &page(0, 100));
    for room in [99, 101, 1, 100_000] {
        assert_eq!(get(&space, &keys(1), room).0, [PageOutcome::SizeMismatch]);
    }
    assert_eq!(client.stats().size_mismatches, 4);
    assert_eq!(space.get(b"key-0").unwrap(), Some(page(0, 100)));
    fake.store(&space_description(), "large", &page(1, 1_000_000));
    assert_eq!(space.get(b"large").unwrap(), Some(page(1, 1_000_000)));
    assert_eq!(space.get(b"absent").unwrap(), None);
}

#[test]
fn a_connection_that_was_closed_while_idle_is_replaced_once() {
    let fake = Fake::start();
    fake.store(&space_description(), "key-0", &page(0, 5));
    let (client, space) = connect(&[&fake]);
    let first = Arc::new(AtomicUsize::new(0));
    let seen = first.clone();
    fake.script(move |_, reply| {
        if seen.fetch_add(1, SeqCst) == 0 { Act::SendAndClose(Vec::new()) } else { Act::Send(reply) }
    });
    assert_eq!(get(&space, &keys(1), 5).0, [PageOutcome::Hit]);
    assert_eq!(first.load(SeqCst), 2);
    assert_eq!(client.servers()[0].state, ServerState::Ready);
}

#[test]
fn threads_wait_for_a_connection_rather_than_fail() {
    let fake = Fake::start();
    fake.store(&space_description(), "key-0", &page(0, 5000));
    let (client, space) = connect_with(config(&[&fake]).op_timeout(SOON).connections_per_server(1));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(get(&space, &keys(1), 5000).0, [PageOutcome::Hit]);
                }
            });
        }
    });
    assert_eq!(client.stats().get.ok, 400);
    assert_eq!(fake.state.attached.load(SeqCst), 1);
}

#[test]
fn more_connections_are_opened_when_all_are_lent() {
    let fake = Fake::start();
    fake.store(&space_description(), "key-0", &page(0, 5));
    let (client, space) = connect_with(config(&[&fake]).op_timeout(SOON).connections_per_server(4));
    let held = Arc::new(AtomicUsize::new(0));
    let count = held.clone();
    // The first two requests are never answered, so that their connections stay lent.
    fake.script(move |_, reply| if count.fetch_add(1, SeqCst) < 2 { Act::Hang } else { Act::Send(reply) });
    let hanging = space.asynchronous().clone();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let ask = async || hanging.exists(&["key-0"], &mut [false]).await;
        let (mut one, mut two) = (Box::pin(ask()), Box::pin(ask()));
        let mut asked = fake.state.requests.subscribe();
        tokio::select! {
            _ = &mut one => panic!("no answer comes"),
            _ = &mut two => panic!("no answer comes"),
            asked = asked.wait_for(|asked| *asked == 2) => drop(asked.unwrap()),
        }
        assert!(hanging.exists(&["key-0"], &mut [false]).await.unwrap().ok == 1);
    });
    assert_eq!(client.stats().exists.ok, 1);
    assert!(fake.state.attached.load(SeqCst) >= 3);
}

#[test]
fn a_server_that_forgot_the_space_is_told_again() {
    let fake = Fake::start();
    let (_client, space) = connect(&[&fake]);
    fake.store(&space_description(), "key-0", &page(0, 5));
    let before = *fake.state.opened_spaces.borrow();
    assert_eq!(before, 1);
    fake.state.forgetful.store(true, SeqCst);
    assert_eq!(get(&space, &keys(1), 5).0, [PageOutcome::Miss]);
    fake.wait_for(&fake.state.opened_spaces, before + 1);
    assert_eq!(put(&space, &keys(1), &[page(0, 5)]), [PageOutcome::Unavailable]);
    fake.wait_for(&fake.state.opened_spaces, before + 2);
    fake.state.forgetful.store(false, SeqCst);
    assert_eq!(get(&space, &keys(1), 5).0, [PageOutcome::Hit]);
}

#[test]
fn a_lost_server_comes_back_with_its_spaces() {
    let fake = Fake::start();
    let address = fake.address;
    let (client, space) = connect(&[&fake]);
    drop(fake);
    let mut found = [true];
    let begin = Instant::now();
    while client.servers()[0].state == ServerState::Ready {
        space.exists(&["key-0"], &mut found).unwrap();
        assert!(begin.elapsed() < SOON);
    }
    let report = space.exists(&["key-0"], &mut found).unwrap();
    assert_eq!((report.failed, found), (1, [false]));
    let again = Fake::at(address);
    again.store(&space_description(), "key-0", &page(0, 5));
    until_ready(&client);
    assert_eq!(*again.state.opened_spaces.borrow(), 1);
    assert_eq!(get(&space, &keys(1), 5).0, [PageOutcome::Hit]);
    assert_eq!(client.stats().servers[0].sessions, 2);
}

#[test]
fn keys_must_be_the_same_on_both_sides() {
    let (keyed, open) = (Fake::with(Some(KEY), Limits::default()), Fake::start());
    let connect = |config: memkv_client::ConfigBuilder| Client::connect(config.build().unwrap());
    assert!(connect(config(&[&keyed]).auth_key_hex(KEY)).is_ok());
    let wrong = connect(config(&[&keyed]).auth_key_hex("ff".repeat(32))).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Unauthenticated);
    assert!(wrong.to_string().contains("MEMKV_AUTH_KEY"), "{wrong}");
    let none = connect(config(&[&keyed])).unwrap_err();
    assert!(
        none.kind() == ErrorKind::Unauthenticated && none.to_string().contains("requires a key"),
        "{none}"
    );
    let downgrade = connect(config(&[&open]).auth_key_hex(KEY)).unwrap_err();
    assert_eq!(downgrade.kind(), ErrorKind::Unauthenticated, "a server without a key may be anybody");
}

#[test]
fn what_cannot_work_is_said_at_connect() {
    let connect = |config: memkv_client::ConfigBuilder| Client::connect(config.build().unwrap());
    let builder = || Config::builder().without_environment();
    // A machine that has a NIC can only tell that the server does not answer.
    match connect(builder().servers("127.0.0.1:1").transport(Transport::Rdma)) {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NotSupported);
            assert!(error.to_string().contains("MEMKV_TRANSPORT=auto"), "{error}");
        }
        Ok(client) => assert_eq!(client.servers()[0].state, ServerState::Connecting),
    }
    let error = connect(builder()).unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("MEMKV_SERVERS"), "{error}");
    let client = connect(builder().servers("127.0.0.1:1")).unwrap();
    let space = client.space(space_description()).unwrap();
    assert_eq!(client.servers()[0].state, ServerState::Connecting);
    assert_eq!(space.put(b"k", b"page").unwrap(), PageOutcome::Unavailable);
    assert_eq!(space.get(b"k").unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(client.statuses()[0].1.as_ref().unwrap_err().is_retryable());
    let report = space.clear().unwrap();
    assert_eq!((report.removed_pages, report.failed.len()), (0, 1));
}

#[test]
fn a_server_of_another_time_is_said_at_connect() {
    for (chosen, text) in [(0, "5 to 7, the client 1; upgrade the client"), (9, "upgrade the client")] {
        let fake = Fake::start();
        fake.state.protocol.store(chosen, std::sync::atomic::Ordering::SeqCst);
        let error = Client::connect(config(&[&fake]).build().unwrap()).unwrap_err();
        assert!(error.kind() == ErrorKind::VersionMismatch && error.to_string().contains(text), "{error}");
    }
}
