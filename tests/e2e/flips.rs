//! A bit that flips on the way is a miss or an error, never wrong bytes.

use crate::common::{PATIENCE, client_of, config_of};
use memkv_client::blocking::Client;
use memkv_client::{PageOutcome, SpaceDescription, Transport};
use memkv_tests::control::Session;
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::page;
use memkv_tests::proxy::{Faults, Proxy, Way};
use memkv_tests::wire::{DataConn, checksum, get_frame};
use memkv_transport::frame::Code;
use std::time::Duration;

const LEN: usize = 200;

/// Attaches through the proxy and puts one page; `None` if any of it failed.
fn put_through(session: &Session, proxy: &Proxy, space: memkv_core::SpaceId, key: &[u8]) -> Option<Code> {
    let mut conn: DataConn = session.attach_via(proxy.addr()).ok()?;
    // A lost reply must not hold the test up.
    conn.stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    conn.put(space, key, &page(key, LEN)).ok()
}

#[test]
fn the_server_stores_no_page_that_was_altered_on_its_way() {
    let daemon = Daemon::start().unwrap();
    daemon.allow("authentication failed");
    daemon.allow("corrupt");
    let control = daemon.control().unwrap();
    let space = control.open_space("flips").unwrap();
    let session = control.session().unwrap();
    let proxy = Proxy::start(daemon.addr()).unwrap();
    let mut direct = session.attach().unwrap();
    // Undisturbed, to know how far the conversation goes: attach 64 + 32, offer 64 + 12, data 64 + 16 + page.
    assert_eq!(put_through(&session, &proxy, space, b"ok"), Some(Code::Ok));
    let (attach, end) = (64 + 32, 64 + 32 + 64 + 12 + 64 + 16 + LEN as u64);
    // An address that fails to prove itself more often than 32 times in ten seconds is not listened to any more.
    let places: Vec<u64> = (0..attach).step_by(4).chain(attach..end).collect();
    let (mut refused, mut corrupt) = (0, 0);
    for &at in &places {
        proxy.set(Faults { flip: Some((Way::Up, at)), ..Faults::default() });
        match put_through(&session, &proxy, space, b"xx") {
            None | Some(Code::Malformed | Code::OverLimit) => refused += 1,
            Some(Code::Corrupt) => corrupt += 1,
            Some(code) => panic!("a put with bit {at} flipped was answered with {code:?}"),
        }
        assert_eq!(direct.exists(space, &[b"xx"]).unwrap(), [false], "stored with bit {at} flipped");
    }
    assert_eq!(proxy.flips(), places.len() as u64, "some bits were not flipped");
    assert!(refused > 150 && corrupt >= LEN, "refused {refused}, corrupt {corrupt}");
    let counted = daemon.metrics().unwrap().sum("memkv_corrupt_pages_total", &[]);
    assert!(counted >= LEN as f64, "{counted} corrupt pages counted");
}

#[test]
fn an_altered_get_is_refused_or_seen_by_its_checksum() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("flips").unwrap();
    let session = control.session().unwrap();
    let proxy = Proxy::start(daemon.addr()).unwrap();
    let mut direct = session.attach().unwrap();
    assert_eq!(direct.put(space, b"xx", &page(b"xx", LEN)).unwrap(), Code::Ok);
    // Attach 64 + 32, then the request.
    let request = get_frame(3, space, &[(b"xx", LEN as u32)], true);
    for at in 96..96 + request.len() as u64 {
        proxy.set(Faults { flip: Some((Way::Up, at)), ..Faults::default() });
        let mut conn = session.attach_via(proxy.addr()).unwrap();
        conn.stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        conn.send(&request).unwrap();
        let Ok(reply) = conn.reply() else { continue };
        assert!(matches!(reply.header.status, Code::Malformed | Code::OverLimit), "bit {at}: {reply:?}");
    }
    assert_eq!(
        checksum(space, b"xx", &page(b"xx", LEN)),
        checksum(space, b"xx", &direct.get(space, b"xx", 200).unwrap().1)
    );
}

#[test]
fn the_client_never_hands_out_altered_bytes() {
    let daemon = Daemon::start().unwrap();
    daemon.allow("corrupt");
    daemon.allow("authentication failed");
    let proxy = Proxy::start(daemon.addr()).unwrap();
    let truth = client_of(&[daemon.addr()], Transport::Tcp);
    let description = SpaceDescription::named("flips").unwrap();
    let direct = truth.space(description.clone()).unwrap();
    let key = vec![b"yy".to_vec()];
    let mut hits_refused = 0;
    for way in [Way::Up, Way::Down] {
        for at in (0..700).step_by(11) {
            proxy.set(Faults { flip: Some((way, at)), ..Faults::default() });
            let config = config_of(&[proxy.addr()], Transport::Tcp).unwrap();
            // A flip in the attach is a wrong proof; there is no client then, so there are no bytes either.
            let Ok(client) = Client::connect(config) else {
                hits_refused += 1;
                continue;
            };
            let space = client.space(description.clone()).unwrap();
            let put = crate::common::put(&space, &key, &[page(&key[0], LEN)]).remove(0);
            let (got, bytes) = crate::common::get(&space, &key, LEN).remove(0);
            assert!(got != PageOutcome::Hit || bytes == page(&key[0], LEN), "{way:?} {at}: wrong bytes");
            hits_refused += usize::from(got != PageOutcome::Hit);
            // What the server holds is right, whatever the client was told.
            let (held, bytes) = crate::common::get(&direct, &key, LEN).remove(0);
            match held {
                PageOutcome::Hit => assert!(bytes == page(&key[0], LEN), "{way:?} {at}: wrong bytes stored"),
                PageOutcome::Miss => {
                    assert_ne!(put, PageOutcome::Stored, "{way:?} {at}: a stored page is lost")
                }
                other => panic!("{way:?} {at}: {other:?}"),
            }
            direct.delete(&key, &mut [false]).unwrap();
            client.close();
        }
    }
    assert!(hits_refused > 20, "only {hits_refused} gets were disturbed");
    truth.close();
}

#[test]
fn a_slow_network_changes_nothing_but_time() {
    let daemon = Daemon::start().unwrap();
    let proxy = Proxy::start(daemon.addr()).unwrap();
    proxy.set(Faults { delay: Duration::from_millis(5), ..Faults::default() });
    let client = client_of(&[proxy.addr()], Transport::Tcp);
    let space = client.space(SpaceDescription::named("slow").unwrap()).unwrap();
    let keys = memkv_tests::pages::keys("slow", 8);
    let outcomes = crate::common::put(&space, &keys, &memkv_tests::pages::pages(&keys, 50_000));
    crate::common::assert_all(&outcomes, PageOutcome::Stored);
    crate::common::assert_hits(&space, &keys, 50_000);
    client.close();
}

#[test]
fn a_connection_cut_inside_a_reply_gives_no_page() {
    let daemon = Daemon::start().unwrap();
    let proxy = Proxy::start(daemon.addr()).unwrap();
    let client = client_of(&[proxy.addr()], Transport::Tcp);
    let space = client.space(SpaceDescription::named("cut").unwrap()).unwrap();
    let keys = memkv_tests::pages::keys("cut", 4);
    crate::common::put(&space, &keys, &memkv_tests::pages::pages(&keys, 100_000));
    // Every connection ends after its attach and half a page more.
    proxy.set(Faults { cut: Some((Way::Down, 50_000)), ..Faults::default() });
    let got = crate::common::get(&space, &keys, 100_000);
    assert!(got.iter().all(|(outcome, _)| *outcome == PageOutcome::Unavailable), "{:?}", got[0].0);
    // The client comes back by itself.
    proxy.set(Faults::default());
    let back = memkv_tests::wait_for("pages hit again", PATIENCE, || {
        crate::common::get(&space, &keys, 100_000).iter().all(|(o, _)| *o == PageOutcome::Hit).then_some(())
    });
    back.unwrap();
    crate::common::assert_hits(&space, &keys, 100_000);
    client.close();
}
