//! Releases that meet: sessions of earlier ones, played to today's server and to today's client, and things that only a
//! newer one could say.

use crate::common::{PATIENCE, client_of, exists, get, put, space_of};
use crate::recorded::{Kind, Player, Step, compare, parse, to_text};
use crate::stage::Stage;
use memkv_client::blocking::Space;
use memkv_client::{PageOutcome, ServerState};
use memkv_core::SpaceDescription;
use memkv_proto::v1;
use memkv_tests::daemon::{Daemon, KEY};
use memkv_tests::pages::page;
use memkv_tests::{random, wait_for, wire};
use memkv_transport::auth::AuthKey;
use memkv_transport::frame::{Code, Header, Op};
use prost::Message as _;
use std::path::{Path, PathBuf};

/// The space and the page of recorded sessions.
const SPACE: &str = "recorded";
const PAGE_BYTES: usize = 300;

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/samples")
}

/// The recorded sessions.
fn recordings() -> impl Iterator<Item = PathBuf> {
    let files = std::fs::read_dir(samples()).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
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
    let [first, second, third] = [b"first".as_slice(), b"second", b"third"];
    let other = page(third, PAGE_BYTES);
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
        wire::direct_frame(9, space, &[(third, &other)]),
        wire::direct_frame(10, space, &[(third, &other)]),
        of(Op::Delete, 11, &[third]),
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
    for path in recordings() {
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

/// What the recorded sessions have, asked for by a client of today.
fn story(space: &Space) {
    let [first, second, third] = ["first", "second", "third"].map(|key| key.as_bytes().to_vec());
    let both = [first.clone(), second];
    assert_eq!(exists(space, &both), [false, false]);
    let (third, other) = ([third.clone()], [page(&third, PAGE_BYTES)]);
    assert_eq!(put(space, &third, &other), [PageOutcome::Stored]);
    assert_eq!(put(space, &third, &other), [PageOutcome::Exists]);
    let got = get(space, &both, PAGE_BYTES);
    assert_eq!(got[0], (PageOutcome::Hit, page(&first, PAGE_BYTES)));
    assert_eq!(got[1].0, PageOutcome::Miss);
    let mut found = [false; 2];
    space.touch(&both, &mut found).unwrap();
    assert_eq!(found, [true, false]);
    space.delete(&both, &mut found).unwrap();
    assert_eq!(found, [true, false]);
    assert_eq!(get(space, &both[..1], PAGE_BYTES)[0].0, PageOutcome::Miss);
    space.delete(&third, &mut found[..1]).unwrap();
    assert!(found[0]);
}

#[test]
fn servers_of_earlier_releases_are_understood() {
    let mut played = 0;
    for path in recordings() {
        let steps = parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let frames = steps.iter().filter(|step| step.kind == Kind::Frame).count();
        let stage = Stage::start(steps, AuthKey::from_hex(KEY).unwrap()).unwrap();
        let client = client_of(&format!("old={}", stage.addr()));
        story(&space_of(&client, SPACE));
        wait_for("the server is asked whether it lives", PATIENCE, || (stage.pings() > 0).then_some(()))
            .unwrap();
        let server = &client.servers()[0];
        assert_eq!((&server.state, &server.last_error), (&ServerState::Ready, &None), "{}", path.display());
        assert_eq!(server.node_id.as_deref(), Some(stage.node_id()), "{}", path.display());
        assert_eq!(stage.surprises(), [] as [String; 0], "{}", path.display());
        // All but the offers and the ping, which are for servers and clients that do without the direct put.
        assert_eq!(stage.answered(), frames - 4, "{}", path.display());
        client.close();
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
