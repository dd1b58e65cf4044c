//! Whether time tells one tenant what another has.
//!
//! A stranger asks for keys that somebody has and for keys that nobody has, in random order, and the ranks of the times
//! are compared (Mann and Whitney): if time tells nothing, the statistic is normal with variance 1, whatever the
//! machine does besides. The same instrument has to see a difference where there is one, or the test fails.

use crate::estate::{Estate, Guest, secret, space_of, tenant};
use memkv_core::SpaceId;
use memkv_credentials::Credentials;
use memkv_proto::v1;
use memkv_tests::control::Control;
use memkv_tests::pages::page;
use memkv_tests::random;
use memkv_tests::wire::{exists_frame, frame, get_frame, key_list, offer_frame};
use memkv_transport::frame::{Header, Op};
use memkv_transport::tenant::ClientSecret;
use std::time::{Duration, Instant};

/// Times of each kind on a data connection, and through gRPC.
const SAMPLES: usize = 1500;
const CALLS: usize = 500;
/// By chance alone once in 15 million times.
const SEEN: f64 = 5.3;
const LEN: u32 = 64 << 10;

/// How far apart two kinds of times are, in standard deviations of what chance does.
fn apart(one: &[Duration], other: &[Duration]) -> f64 {
    let mut all: Vec<_> =
        one.iter().map(|time| (*time, true)).chain(other.iter().map(|time| (*time, false))).collect();
    all.sort_by_key(|(time, _)| *time);
    let mut ranks = 0.0;
    let mut at = 0;
    while at < all.len() {
        let end = at + all[at..].iter().take_while(|(time, _)| *time == all[at].0).count();
        // Equal times share their mean rank.
        let mean = (at + 1 + end) as f64 / 2.0;
        ranks += mean * all[at..end].iter().filter(|(_, first)| *first).count() as f64;
        at = end;
    }
    let (n, m) = (one.len() as f64, other.len() as f64);
    let u = ranks - n * (n + 1.0) / 2.0;
    (u - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt()
}

/// How far apart the times of two kinds of questions are that are asked in random order, so many times each.
fn compare(samples: usize, mut ask: impl FnMut(usize)) -> f64 {
    let mut times = [Vec::new(), Vec::new()];
    (0..20).for_each(|number| ask(number % 2));
    while times.iter().any(|times| times.len() < samples) {
        let [kind] = random::<1>();
        let kind = usize::from(kind & 1);
        let begun = Instant::now();
        ask(kind);
        times[kind].push(begun.elapsed());
    }
    apart(&times[0], &times[1])
}

/// Whether the times of two kinds of questions tell them apart. The machine may do something else meanwhile; a leak is there every
/// time.
fn tells(samples: usize, mut ask: impl FnMut(usize)) -> bool {
    (0..3).all(|_| compare(samples, &mut ask).abs() > SEEN)
}

/// Whether they tell them apart at least once: what is there is seen at last, also on a machine that does something else meanwhile.
fn may_tell(samples: usize, mut ask: impl FnMut(usize)) -> bool {
    (0..10).any(|_| compare(samples, &mut ask).abs() > SEEN)
}

fn frames(op: &str, space: SpaceId, keys: [&[u8]; 2]) -> [Vec<u8>; 2] {
    keys.map(|key| match op {
        "exists" => exists_frame(7, space, &[key]),
        "get" => get_frame(7, space, &[(key, LEN)], true),
        "touch" => frame(Header::request(Op::Touch, 7, space, 1), &key_list(&[key]), &[]),
        "delete" => frame(Header::request(Op::Delete, 7, space, 1), &key_list(&[key]), &[]),
        _ => offer_frame(7, space, &[(key, LEN)]),
    })
}

/// Two tenants, one of which has a page `there` in its space `s`; the other one and its own space `s` with the page `mine-`.
fn neighbours() -> (Estate, Guest, SpaceId, SpaceId) {
    let estate = Estate::start();
    let (mut a, mut b) = (Guest::of(&estate, "a", 1), Guest::of(&estate, "b", 2));
    let (space, own) = (a.control.open_space("s").unwrap(), b.control.open_space("s").unwrap());
    assert_eq!(space, space_of("a", "s"));
    a.data.put(space, b"there", &page(b"there", LEN as usize)).unwrap();
    b.data.put(own, b"mine-", &page(b"mine-", LEN as usize)).unwrap();
    // Its session may go; the space and the page stay.
    drop(a);
    (estate, b, space, own)
}

#[test]
fn time_does_not_tell_what_another_tenant_has() {
    let (_estate, mut b, space, own) = neighbours();
    // The instrument works: a tenant can tell its own pages from absent ones by time.
    let [hit, miss] = frames("get", own, [b"mine-", b"gone-"]);
    assert!(
        may_tell(SAMPLES, |kind| drop(b.data.call([&hit, &miss][kind]).unwrap())),
        "a page of 64 KiB takes no time"
    );
    for op in ["exists", "get", "put", "touch", "delete"] {
        // In the other's space by its identity, and under the same name in its own (a put would store something there).
        let spaces = if op == "put" { vec![space] } else { vec![space, own] };
        for asked in spaces {
            let both = frames(op, asked, [b"there", b"wher3"]);
            let told = tells(SAMPLES, |kind| drop(b.data.call(&both[kind]).unwrap()));
            assert!(!told, "{op} tells by time what another tenant has");
        }
        // A space that somebody has, and one that nobody has.
        let [there, _] = frames(op, space, [b"there", b"wher3"]);
        let [absent, _] = frames(op, space_of("a", "t"), [b"there", b"wher3"]);
        let told = tells(SAMPLES, |kind| drop(b.data.call([&there, &absent][kind]).unwrap()));
        assert!(!told, "{op} tells by time which spaces another tenant has");
    }
}

/// One call through gRPC about one key.
fn call(control: &Control, op: &str, space: SpaceId, key: &[u8]) {
    let (space_id, keys) = (space.0.to_vec(), vec![key.to_vec()]);
    let method = |service: &str| format!("/memkv.v1.{service}/{op}");
    match op {
        "Get" => drop(control.get(space, &[key], &[]).unwrap()),
        "Exists" => {
            let request = control.request(&method("Kv"), v1::ExistsRequest { space_id, keys });
            control.block_on(control.kv().exists(request)).map(drop).unwrap();
        }
        "Touch" => {
            let request = control.request(&method("Kv"), v1::TouchRequest { space_id, keys });
            control.block_on(control.kv().touch(request)).map(drop).unwrap();
        }
        "Delete" => {
            let request = control.request(&method("Kv"), v1::DeleteRequest { space_id, keys });
            control.block_on(control.kv().delete(request)).map(drop).unwrap();
        }
        "Pin" => {
            let message = v1::PinRequest { space_id, keys, ttl_ms: 1000 };
            let request = control.request(&method("Admin"), message);
            control.block_on(control.admin().pin(request)).map(drop).unwrap();
        }
        "InspectKey" => {
            let message = v1::InspectKeyRequest { space_id, key: key.to_vec(), verify: true };
            let request = control.request(&method("Admin"), message);
            control.block_on(control.admin().inspect_key(request)).map(drop).unwrap();
        }
        _ => {
            let request = control.request(&method("Admin"), v1::ClearSpaceRequest { space_id });
            control.block_on(control.admin().clear_space(request)).map(drop).unwrap();
        }
    }
}

#[test]
fn time_does_not_tell_through_grpc_what_another_tenant_has() {
    let (_estate, b, space, own) = neighbours();
    assert!(
        may_tell(CALLS, |kind| call(&b.control, "Get", own, [b"mine-", b"gone-"][kind])),
        "a page of 64 KiB takes no time"
    );
    for op in ["Get", "Exists", "Touch", "Delete", "Pin", "InspectKey"] {
        for asked in [space, own] {
            let told = tells(CALLS, |kind| call(&b.control, op, asked, [b"there", b"wher3"][kind]));
            assert!(!told, "{op} tells by time what another tenant has");
        }
    }
    for op in ["Get", "Exists", "Delete", "Pin", "ClearSpace"] {
        let told = tells(CALLS, |kind| call(&b.control, op, [space, space_of("a", "t")][kind], b"there"));
        assert!(!told, "{op} tells by time which spaces another tenant has");
    }
}

/// The time until a session's challenge for this identity; nothing is proved, so nothing fails.
fn challenge(control: &Control, hello: &v1::Hello) {
    control.block_on(async {
        let said = v1::ClientMessage { message: Some(v1::client_message::Message::Hello(hello.clone())) };
        let messages = tokio_stream::iter([said]);
        let mut client = v1::session_client::SessionClient::new(control.channel());
        let mut heard = client.open(messages).await.unwrap().into_inner();
        assert!(heard.message().await.unwrap().is_some());
        // To its end, so that the next one does not overtake it.
        while let Ok(Some(_)) = heard.message().await {}
    });
}

#[test]
fn time_does_not_tell_which_tenants_there_are() {
    // Many tenants, so that a search among them would take its time.
    let tenants = (0..200).map(|number| tenant(&format!("t{number}"), 3));
    let estate =
        Estate::with(&Credentials { tenants: tenants.chain([tenant("a", 1)]).collect(), public: Vec::new() });
    estate.daemon.allow("authentication failed");
    let guest = Control::connect(estate.daemon.addr(), None).unwrap();
    let hello = |secret: ClientSecret| {
        let (tenant, key_id) = secret.identity();
        v1::Hello {
            protocol_min: 1,
            protocol_max: 1,
            client_nonce: vec![7; 32],
            tenant: tenant.to_owned(),
            key_id: key_id.to_owned(),
            ..v1::Hello::default()
        }
    };
    // A right key's name, a wrong key's name, and a tenant that there is not.
    let hellos = [secret("a", 1), secret("a", 7), secret("x", 1)].map(hello);
    for other in [1, 2] {
        let told = tells(CALLS, |kind| challenge(&guest, &hellos[[0, other][kind]]));
        assert!(!told, "the time to a challenge tells which tenants there are");
    }
    // Calls with a wrong key: an address may fail 32 times, so there are many addresses.
    let wrong: Vec<_> =
        [secret("a", 7), secret("x", 1)].into_iter().map(|secret| secret_of(secret, &estate)).collect();
    let mut asked = 0;
    let told = tells(CALLS / 2, |kind| {
        asked += 1;
        wrong[kind](asked / ATTEMPTS);
    });
    assert!(!told, "the time of a refusal tells which tenants there are");
}

/// Failures of one address that are answered.
const ATTEMPTS: usize = 24;

/// Makes calls with a wrong key, from the address of this number.
fn secret_of(secret: ClientSecret, estate: &Estate) -> impl Fn(usize) + use<> {
    let addr = estate.daemon.addr();
    let channels: std::cell::RefCell<Vec<Control>> = std::cell::RefCell::default();
    move |number| {
        let mut channels = channels.borrow_mut();
        while channels.len() <= number {
            let from = [127, 0, 2 + (channels.len() / 200) as u8, 1 + (channels.len() % 200) as u8];
            channels.push(Control::connect_from(from.into(), addr, Some(secret.clone())).unwrap());
        }
        let status = channels[number].status().unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
    }
}

#[test]
fn the_statistic_sees_a_small_shift_and_none_where_there_is_none() {
    let times = |shift: u64| -> Vec<Duration> {
        // Noise of a few microseconds with rare large values, as a busy machine makes it.
        (0..SAMPLES)
            .map(|_| {
                let noise = u64::from(u16::from_le_bytes(random())) % 5_000;
                let rare = if random::<1>()[0] < 8 { 1_000_000 } else { 0 };
                Duration::from_nanos(50_000 + noise + rare + shift)
            })
            .collect()
    };
    assert!(apart(&times(0), &times(0)).abs() < SEEN);
    assert!(apart(&times(500), &times(0)) > SEEN, "half a microsecond of fifty");
}
