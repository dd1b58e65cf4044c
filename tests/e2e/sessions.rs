//! What a session holds comes back when it ends, however it ends.

use crate::common::{PATIENCE, wait_until_empty};
use memkv_proto::v1;
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::pages::page;
use memkv_tests::wait_for;
use memkv_tests::wire::{get_frame, offer_frame};
use memkv_transport::frame::Code;

#[test]
fn the_end_of_a_session_frees_everything_it_held() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("sessions").unwrap();
    let session = control.session().unwrap();
    // Reservations: offers whose pages never come.
    let mut holder = session.attach().unwrap();
    let offer = holder.call(&offer_frame(1, space, &[(b"a", 4096), (b"b", 100_000)])).unwrap();
    assert_eq!(offer.verdicts(), [Some(Code::Want); 2]);
    let status = control.status().unwrap();
    assert_eq!((status.session_count, status.sessions[0].connections), (1, 1));
    assert!(status.dram.unwrap().used_bytes >= 104_096, "an offer reserves its slots");
    drop(session);
    assert!(holder.read_to_close().unwrap().is_empty(), "its data connections are closed");
    wait_until_empty(&daemon);
    wait_for("the session is gone", PATIENCE, || {
        (control.status().unwrap().session_count == 0).then_some(())
    })
    .unwrap();
    assert_eq!(daemon.metrics().unwrap().sum("memkv_data_connections", &[]), 0.0);
    // Its keys are free.
    let session = control.session().unwrap();
    assert_eq!(session.attach().unwrap().put(space, b"a", &page(b"a", 4096)).unwrap(), Code::Ok);
}

#[test]
fn the_end_of_a_session_drops_its_pins() {
    let daemon = Daemon::start_with(Setup { dram: "256MiB".into(), ..Setup::default() }).unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("sessions").unwrap();
    let session = control.session().unwrap();
    let mut conn = session.attach().unwrap();
    let len = 16 << 20;
    assert_eq!(conn.put(space, b"big", &page(b"big", len)).unwrap(), Code::Ok);
    // A reader that does not read: its page stays pinned while the server waits for room in the socket.
    let wanted = [(&b"big"[..], len as u32); 4];
    conn.send(&get_frame(1, space, &wanted, true)).unwrap();
    wait_for("the page is pinned", PATIENCE, || (pins(&control, space, b"big") > 0).then_some(())).unwrap();
    drop(session);
    wait_for("the pins are gone", PATIENCE, || (pins(&control, space, b"big") == 0).then_some(())).unwrap();
    wait_for("nothing is in flight", PATIENCE, || {
        (daemon.metrics().unwrap().sum("memkv_requests_in_flight", &[]) == 0.0).then_some(())
    })
    .unwrap();
    // A page that nobody pins can be removed, and its slot is free.
    let request = v1::DeleteRequest { space_id: space.0.to_vec(), keys: vec![b"big".to_vec()] };
    let request = control.request("/memkv.v1.Kv/Delete", request);
    assert_eq!(control.block_on(control.kv().delete(request)).unwrap().into_inner().removed, [true]);
    wait_until_empty(&daemon);
}

/// How many readers hold the page now.
pub(crate) fn pins(control: &memkv_tests::control::Control, space: memkv_core::SpaceId, key: &[u8]) -> u32 {
    let message = v1::InspectKeyRequest { space_id: space.0.to_vec(), key: key.to_vec(), verify: false };
    let request = control.request("/memkv.v1.Admin/InspectKey", message);
    let response = control.block_on(control.admin().inspect_key(request)).unwrap().into_inner();
    response.status.map_or(0, |status| status.pins)
}

#[test]
fn a_deleted_page_is_read_to_its_end_by_those_who_began() {
    // The reader waits for as long as the other pages take.
    let args = ["--limits-stall-time-max=10m", "--limits-request-time-max=10m"].map(str::to_owned).to_vec();
    let daemon = Daemon::start_with(Setup { dram: "256MiB".into(), args, ..Setup::default() }).unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("sessions").unwrap();
    let session = control.session().unwrap();
    let (mut reader, mut other) = (session.attach().unwrap(), session.attach().unwrap());
    let len = 16 << 20;
    assert_eq!(other.put(space, b"big", &page(b"big", len)).unwrap(), Code::Ok);
    reader.send(&get_frame(1, space, &[(b"big", len as u32)], true)).unwrap();
    wait_for("the page is pinned", PATIENCE, || (pins(&control, space, b"big") > 0).then_some(())).unwrap();
    let request = v1::ClearSpaceRequest { space_id: space.0.to_vec() };
    let request = control.request("/memkv.v1.Admin/ClearSpace", request);
    control.block_on(control.admin().clear_space(request)).unwrap();
    assert_eq!(other.exists(space, &[b"big"]).unwrap(), [false]);
    // Other pages take every slot they can get, but not the one that is being read.
    for i in 0..12_u8 {
        other.put(space, &[i], &page(&[i], len)).unwrap();
    }
    let pages = reader.reply().unwrap().pages().unwrap();
    assert_eq!(pages[0].0, Code::Ok);
    assert!(pages[0].2 == page(b"big", len), "the reader saw another page's bytes");
}

#[test]
fn many_sessions_leave_nothing_behind() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("sessions").unwrap();
    let round = |count: usize| {
        for i in 0..count {
            let session = control.session().unwrap();
            let mut conns = [session.attach().unwrap(), session.attach().unwrap()];
            assert_eq!(conns[0].exists(space, &[b"x"]).unwrap(), [false]);
            if i % 2 == 0 {
                conns[1].call(&offer_frame(1, space, &[(b"x", 4096)])).unwrap();
            }
        }
        wait_for("all sessions are gone", PATIENCE, || {
            (control.status().unwrap().session_count == 0).then_some(())
        })
        .unwrap();
        wait_for("all connections are gone", PATIENCE, || {
            (daemon.metrics().unwrap().sum("memkv_data_connections", &[]) == 0.0).then_some(())
        })
        .unwrap();
    };
    round(10);
    let before = daemon.open_files().unwrap();
    round(150);
    let after = daemon.open_files().unwrap();
    assert!(after <= before + 5, "{before} open files became {after}");
    wait_until_empty(&daemon);
}

#[test]
fn a_client_that_goes_away_without_a_word_is_forgotten() {
    let args = vec!["--limits-ping-interval".into(), "1s".into()];
    let daemon = Daemon::start_with(Setup { args, ..Setup::default() }).unwrap();
    let control = daemon.control().unwrap();
    // The proxy keeps both ends open; the client's silence is all the server sees.
    let session = control.session().unwrap();
    assert_eq!(session.accepted.ping_interval_ms, 1000);
    let mut conn = session.attach().unwrap();
    let silent = session.fall_silent();
    wait_for("the session is given up", PATIENCE, || {
        (control.status().unwrap().session_count == 0).then_some(())
    })
    .unwrap();
    assert!(conn.read_to_close().unwrap().is_empty());
    drop(silent);
}

#[test]
fn sessions_and_connections_have_a_limit() {
    let args = ["--limits-sessions-max", "3", "--limits-session-connections-max", "2"].map(str::to_owned);
    let daemon = Daemon::start_with(Setup { args: args.into(), ..Setup::default() }).unwrap();
    let control = daemon.control().unwrap();
    let mut sessions: Vec<_> = (0..3).map(|_| control.session().unwrap()).collect();
    let error = format!("{:#}", control.session().unwrap_err());
    assert!(error.contains("sessions"), "{error}");
    let conns = [sessions[0].attach().unwrap(), sessions[0].attach().unwrap()];
    let error = sessions[0].attach().unwrap_err().to_string();
    assert!(error.contains("TooMany"), "{error}");
    drop(conns);
    wait_for("a connection is free again", PATIENCE, || sessions[0].attach().ok()).unwrap();
    sessions.pop();
    wait_for("a session is free again", PATIENCE, || control.session().ok()).unwrap();
    daemon.allow("too many");
}
