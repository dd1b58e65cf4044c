//! Releases that meet: a session of an earlier one, things that only a newer one could say, and a restart of server
//! after server while clients go on.

use crate::common::{
    PATIENCE, StopAtEnd, assert_all, assert_hits, client_of, get, named_servers, put, space_of,
};
use crate::recorded::{Kind, Player, Step, compare, parse, to_text};
use memkv_client::{PageOutcome, ServerState};
use memkv_core::SpaceDescription;
use memkv_proto::v1;
use memkv_tests::daemon::{Daemon, KEY, Setup};
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::{random, wait_for, wire};
use memkv_transport::auth::AuthKey;
use memkv_transport::frame::{Code, Header, Op};
use prost::Message as _;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

const LEN: usize = 16 << 10;
/// The space and the page of recorded sessions.
const SPACE: &str = "recorded";
const PAGE_BYTES: usize = 300;

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/samples")
}

/// What a client does in a recorded session, without the answers.
fn script() -> Vec<Step> {
    let step = |kind, sent| Step { kind, sent, answer: Vec::new() };
    let say = |message| v1::ClientMessage { message: Some(message) }.encode_to_vec();
    let hello = v1::Hello {
        protocol_min: 1,
        protocol_max: 1,
        client_nonce: (0..32).collect(),
        client_name: "a recorded client".into(),
        client_version: env!("CARGO_PKG_VERSION").into(),
        capabilities: vec!["tcp".into(), "put-direct".into()],
        ..Default::default()
    };
    let description = SpaceDescription::named(SPACE).unwrap();
    let space = description.id();
    let open = v1::OpenSpaceRequest { space: Some((&description).into()) };
    let [first, second] = [b"first".as_slice(), b"second"];
    let (page, len) = (page(first, PAGE_BYTES), PAGE_BYTES as u32);
    let attach = memkv_transport::handshake::Attach { session_id: [0; 16], client_nonce: [7; 32] };
    let of = |op, id, keys: &[&[u8]]| {
        let count = u32::try_from(keys.len()).unwrap();
        wire::frame(Header::request(op, id, space, count), &wire::key_list(keys), b"")
    };
    let frames = [
        wire::exists_frame(1, space, &[first, second]),
        wire::offer_frame(2, space, &[(first, len)]),
        wire::data_frame(2, space, &[(first, &page)]),
        wire::offer_frame(3, space, &[(first, len)]),
        wire::get_frame(4, space, &[(first, len), (second, len)], true),
        of(Op::Touch, 5, &[first, second]),
        of(Op::Delete, 6, &[first, second]),
        wire::get_frame(7, space, &[(first, len)], true),
        wire::frame(Header::request(Op::Ping, 8, space, 0), b"", b""),
    ];
    let exists = v1::ExistsRequest { space_id: space.0.to_vec(), keys: vec![first.to_vec()] };
    let mut steps = vec![
        step(Kind::Hello, say(v1::client_message::Message::Hello(hello))),
        step(Kind::Proof, say(v1::client_message::Message::Proof(v1::Proof { client_proof: vec![0; 32] }))),
        step(Kind::Say, say(v1::client_message::Message::Ping(v1::Ping { sequence: 77 }))),
        step(Kind::Call("/memkv.v1.Kv/OpenSpace".into()), open.encode_to_vec()),
        step(Kind::Call("/memkv.v1.Kv/Exists".into()), exists.encode_to_vec()),
        step(Kind::Attach, attach.encode().to_vec()),
        step(Kind::AttachProof, vec![0; 32]),
    ];
    steps.extend(frames.map(|frame| step(Kind::Frame, frame)));
    steps
}

#[test]
fn sessions_of_earlier_releases_are_served_as_they_were() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let key = AuthKey::from_hex(KEY).unwrap();
    if let Some(path) = std::env::var_os("MEMKV_RECORD_SESSION") {
        let mut player = Player::new(daemon.addr(), &control, key.clone());
        let record = |mut step: Step| {
            step.answer = player.play(&step).unwrap();
            step
        };
        let steps: Vec<_> = script().into_iter().map(record).collect();
        std::fs::write(path, to_text(env!("CARGO_PKG_VERSION"), &steps)).unwrap();
    }
    let mut played = 0;
    for file in std::fs::read_dir(samples()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        let steps = parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert!(steps.len() > 10, "{}", path.display());
        let mut player = Player::new(daemon.addr(), &control, key.clone());
        for (at, step) in steps.iter().enumerate() {
            let compared = player.play(step).and_then(|today| compare(step, &today));
            compared
                .unwrap_or_else(|error| panic!("{}, step {at}, {:?}: {error:#}", path.display(), step.kind));
        }
        played += 1;
    }
    assert!(played > 0, "there is a sample");
}

fn hello(min: u32, max: u32) -> v1::Hello {
    v1::Hello {
        protocol_min: min,
        protocol_max: max,
        client_nonce: random::<32>().to_vec(),
        client_name: "newer".into(),
        client_version: "9.0.0".into(),
        capabilities: vec!["tcp".into(), "telepathy".into()],
        ..Default::default()
    }
}

#[test]
fn a_newer_client_is_served_with_what_both_know() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    // It speaks newer versions too, and has capabilities that this server has never heard of.
    let session = control.session_with(hello(1, 7)).unwrap();
    assert!(session.accepted.capabilities.iter().all(|name| name != "telepathy"), "{:?}", session.accepted);
    let space = control.open_space("newer").unwrap();
    let mut data = session.attach().unwrap();
    assert_eq!(data.put(space, b"key", b"page").unwrap(), Code::Ok);
    // Fields of messages that this release does not know are passed over.
    let mut message =
        v1::ExistsRequest { space_id: space.0.to_vec(), keys: vec![b"key".to_vec()] }.encode_to_vec();
    message.extend_from_slice(&[0xfa, 0x3e, 3, b'n', b'e', b'w', 0xf0, 0x3e, 1]);
    let step = Step { kind: Kind::Call("/memkv.v1.Kv/Exists".into()), sent: message, answer: Vec::new() };
    let mut player = Player::new(daemon.addr(), &control, daemon.auth_key());
    let answer = player.play(&step).unwrap();
    assert_eq!(v1::ExistsResponse::decode(&answer[..]).unwrap().present, [true]);
    // Frames are not: a flag or an op that was never agreed on would change what the rest means.
    for (at, byte) in [(7, 0x40), (5, 0x3f)] {
        let mut frame = wire::exists_frame(1, space, &[b"key"]);
        frame[at] = byte;
        let mut data = session.attach().unwrap();
        let reply = data.call(&frame).unwrap();
        assert_eq!(reply.header.status, Code::Malformed, "{}", reply.text());
        assert_eq!(data.read_to_close().unwrap(), b"");
    }
    let (code, page) = data.get(space, b"key", 4).unwrap();
    assert_eq!((code, &page[..]), (Code::Ok, &b"page"[..]), "other connections go on");
}

#[test]
fn without_a_common_version_the_older_side_is_named() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    for (versions, older) in [((2, 3), "upgrade the server"), ((0, 0), "upgrade the client")] {
        let refused = control.session_with(hello(versions.0, versions.1)).unwrap_err();
        let text = format!("{refused:#}");
        assert!(text.contains(older) && text.contains("protocol version 1"), "{text}");
    }
    assert!(control.session_with(hello(1, 1)).is_ok());
}

/// Starts a server whose memory outlives it.
fn warm(folder: &Path) -> Daemon {
    let backing = folder.display().to_string();
    let args = vec!["--memory-backing".to_owned(), backing];
    Daemon::start_with(Setup { args, ..Setup::default() }).unwrap()
}

#[test]
fn servers_are_restarted_one_by_one_under_load_and_nothing_is_lost() {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir_in("/dev/shm").unwrap()).collect();
    let mut daemons: Vec<_> = folders.iter().map(|folder| warm(folder.path())).collect();
    let servers = named_servers(&daemons, &[]);
    let client = client_of(&servers);
    let space = space_of(&client, "rolling");
    let old = keys("old", 300);
    assert_all(&put(&space, &old, &pages(&old, LEN)), PageOutcome::Stored);
    let (stop, stored) = (AtomicBool::new(false), Mutex::new(HashSet::new()));
    let all_ready = || {
        let ready = || client.servers().iter().all(|server| server.state == ServerState::Ready).then_some(());
        wait_for("the client has a session with each server", PATIENCE, ready).unwrap();
    };
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for reader in 0..2 {
            let (space, old, stop) = (&space, &old, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for part in old.chunks(50 + reader) {
                        for (key, (outcome, bytes)) in part.iter().zip(get(space, part, LEN)) {
                            // A server that is away is a miss at once: not an error, not a timeout.
                            let may_be = [PageOutcome::Hit, PageOutcome::Miss, PageOutcome::Unavailable];
                            assert!(may_be.contains(&outcome), "{outcome:?} of {}", key.escape_ascii());
                            assert!(outcome != PageOutcome::Hit || bytes == page(key, LEN));
                        }
                    }
                }
            });
        }
        let (space, stop, stored) = (&space, &stop, &stored);
        scope.spawn(move || {
            for name in 0.. {
                if stop.load(Ordering::Relaxed) || name == 400 {
                    break;
                }
                let new = keys(&format!("new-{name}"), 5);
                for (key, outcome) in new.iter().zip(put(space, &new, &pages(&new, LEN))) {
                    let may_be = [PageOutcome::Stored, PageOutcome::Unavailable, PageOutcome::Busy];
                    assert!(may_be.contains(&outcome), "{outcome:?} of {}", key.escape_ascii());
                    if outcome == PageOutcome::Stored {
                        stored.lock().unwrap().insert(key.clone());
                    }
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        });
        for daemon in &mut daemons {
            assert!(daemon.stop().unwrap().success());
            daemon.restart().unwrap();
            all_ready();
        }
        stop.store(true, Ordering::Relaxed);
    });
    all_ready();
    assert_hits(&space, &old, LEN);
    let stored: Vec<_> = stored.into_inner().unwrap().into_iter().collect();
    assert!(stored.len() > 20, "{}", stored.len());
    assert_hits(&space, &stored, LEN);
    client.close();
}
