//! Tenants: what is theirs, what they may do, and how much of it.

use crate::estate::{Estate, Guest, PATIENCE, described, key, key_hex, of, open, public, space_of, tenant};
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, PageOutcome, SpaceDescription, Transport};
use memkv_credentials::{Credentials, Quotas, Rights};
use memkv_proto::v1;
use memkv_tests::control::Control;
use memkv_tests::daemon::{KEY, Setup};
use memkv_tests::pages::page;
use memkv_tests::wait_for;
use memkv_transport::frame::Code;
use tonic::Code as Status;

const NAME: &str = "space";

fn config(estate: &Estate, name: &str, number: u8, transport: Transport) -> Config {
    Config::builder()
        .without_environment()
        .servers(estate.daemon.addr().to_string())
        .auth_key_hex(key_hex(number))
        .tenant(name)
        .transport(transport)
        .build()
        .unwrap()
}

fn has(space: &Space, key: &[u8]) -> bool {
    let mut found = [false];
    space.exists(&[key], &mut found).unwrap();
    found[0]
}

#[test]
fn two_tenants_with_one_name_for_everything_share_nothing() {
    let estate = Estate::start();
    for transport in [Transport::Tcp, Transport::Grpc, Transport::Shm] {
        let space = |name, number| {
            let client = Client::connect(config(&estate, name, number, transport)).unwrap();
            let space = client.space(SpaceDescription::named(&transport.to_string()).unwrap()).unwrap();
            (client, space)
        };
        let ((one, of_a), (other, of_b)) = (space("a", 1), space("b", 2));
        let (small, large) = (page(b"of a", 5000), page(b"of a too", 300_000));
        assert_eq!(of_a.put(b"k", &small).unwrap(), PageOutcome::Stored, "{transport}");
        assert_eq!(of_a.put(b"l", &large).unwrap(), PageOutcome::Stored, "{transport}");
        assert!(!has(&of_b, b"k") && !has(&of_b, b"l"), "{transport}");
        assert_eq!(of_b.get(b"k").unwrap(), None, "{transport}");
        let own = page(b"of b", 5000);
        assert_eq!(of_b.put(b"k", &own).unwrap(), PageOutcome::Stored, "{transport}");
        let mut removed = [true];
        of_b.delete(&[b"l"], &mut removed).unwrap();
        assert_eq!(removed, [false], "{transport}");
        assert_eq!(of_a.get(b"k").unwrap().as_deref(), Some(&small[..]), "{transport}");
        assert_eq!(of_a.get(b"l").unwrap().as_deref(), Some(&large[..]), "{transport}");
        assert_eq!(of_b.get(b"k").unwrap().as_deref(), Some(&own[..]), "{transport}");
        one.close();
        other.close();
    }
}

#[test]
fn who_knows_the_identity_of_anothers_space_finds_nothing_in_it() {
    let estate = Estate::start();
    let (mut a, mut b) = (Guest::of(&estate, "a", 1), Guest::of(&estate, "b", 2));
    let space = a.control.open_space(NAME).unwrap();
    assert_eq!(space, space_of("a", NAME), "the server adds whose it is");
    let bytes = page(b"k", 5000);
    assert_eq!(a.data.put(space, b"k", &bytes).unwrap(), Code::Ok);
    // On the data plane.
    assert_eq!(b.data.exists(space, &[b"k"]).unwrap(), [false]);
    assert_eq!(b.data.get(space, b"k", 5000).unwrap().0, Code::Miss);
    assert_eq!(b.data.put(space, b"k", &bytes).unwrap(), Code::UnknownSpace);
    assert_eq!(b.data.put(space, b"new", &bytes).unwrap(), Code::UnknownSpace);
    // Through gRPC.
    assert_eq!(b.control.get(space, &[b"k"], &[]).unwrap()[0].0, v1::Status::Miss);
    let unknown = b.control.put(space, &[(b"new", &bytes)], 1 << 20).unwrap_err();
    assert_eq!(unknown.code(), Status::FailedPrecondition);
    let nobody = b.control.put(space_of("a", "nobody has it"), &[(b"new", &bytes)], 1 << 20).unwrap_err();
    let stripped = |status: &tonic::Status| status.message().replace(|c: char| c.is_ascii_hexdigit(), "");
    assert_eq!((nobody.code(), stripped(&nobody)), (unknown.code(), stripped(&unknown)), "the same answer");
    for method in ["/memkv.v1.Kv/Exists", "/memkv.v1.Kv/Touch", "/memkv.v1.Kv/Delete"] {
        assert_eq!(presence(&b.control, method, space), [false], "{method}");
    }
    // And it cannot be opened.
    assert_eq!(open(&b.control, &described("a", NAME)).unwrap_err().code(), Status::PermissionDenied);
    let absent = open(&b.control, &described("a", "nobody has it")).unwrap_err();
    assert_eq!(absent.message(), open(&b.control, &described("a", NAME)).unwrap_err().message());
    assert_eq!(a.data.get(space, b"k", 5000).unwrap(), (Code::Ok, bytes));
    drop((a.session, b.session));
}

fn presence(control: &Control, method: &str, space: memkv_core::SpaceId) -> Vec<bool> {
    let (space_id, keys) = (space.0.to_vec(), vec![b"k".to_vec()]);
    control.block_on(async {
        let mut kv = control.kv();
        match method {
            "/memkv.v1.Kv/Exists" => {
                let asked = control.request(method, v1::ExistsRequest { space_id, keys });
                kv.exists(asked).await.unwrap().into_inner().present
            }
            "/memkv.v1.Kv/Touch" => {
                let asked = control.request(method, v1::TouchRequest { space_id, keys });
                kv.touch(asked).await.unwrap().into_inner().present
            }
            _ => {
                let asked = control.request(method, v1::DeleteRequest { space_id, keys });
                kv.delete(asked).await.unwrap().into_inner().removed
            }
        }
    })
}

/// Makes one administrative call.
macro_rules! admin {
    ($control:expr, $path:literal, $call:ident, $message:expr) => {{
        let request = $control.request(concat!("/memkv.v1.Admin/", $path), $message);
        $control.block_on($control.admin().$call(request)).map(tonic::Response::into_inner)
    }};
}

#[test]
fn administrators_of_another_tenant_see_and_change_nothing() {
    let estate = Estate::start();
    let (a, b) = (estate.control("a", 1), estate.control("b", 2));
    let space = a.open_space(NAME).unwrap();
    a.put(space, &[(b"k", &page(b"k", 5000))], 1 << 20).unwrap();
    let (space_id, keys) = (space.0.to_vec(), vec![b"k".to_vec()]);
    let pin = v1::PinRequest { space_id: space_id.clone(), keys: keys.clone(), ttl_ms: 60_000 };
    assert_eq!(admin!(a, "Pin", pin, pin.clone()).unwrap().pinned, 1);
    // Every call of the service, by the wrong tenant.
    let list = v1::ListKeysRequest { space_id: space_id.clone(), ..Default::default() };
    assert!(admin!(b, "ListKeys", list_keys, list.clone()).unwrap().keys.is_empty());
    let inspect = v1::InspectKeyRequest { space_id: space_id.clone(), key: b"k".to_vec(), verify: true };
    assert!(!admin!(b, "InspectKey", inspect_key, inspect.clone()).unwrap().found);
    assert!(admin!(b, "ListSpaces", list_spaces, v1::ListSpacesRequest {}).unwrap().spaces.is_empty());
    let pinned = admin!(b, "Pin", pin, pin).unwrap();
    assert_eq!((pinned.pinned, pinned.missing, pinned.pinned_bytes), (0, 1, 0));
    let pins = admin!(b, "ListPins", list_pins, v1::ListPinsRequest {}).unwrap();
    assert!(pins.pins.is_empty() && pins.pinned_bytes == 0);
    let unpin = v1::UnpinRequest { space_id: space_id.clone(), keys };
    assert_eq!(admin!(b, "Unpin", unpin, unpin).unwrap().unpinned, 0);
    let clear = v1::ClearSpaceRequest { space_id: space_id.clone() };
    assert_eq!(admin!(b, "ClearSpace", clear_space, clear).unwrap().removed_pages, 0);
    let quarantined = admin!(b, "ListQuarantined", list_quarantined, v1::ListQuarantinedRequest {}).unwrap();
    assert!(quarantined.pages.is_empty() && quarantined.count == 0);
    let verify = v1::VerifyRequest { space_id, bytes_per_second: 0 };
    assert_eq!(admin!(b, "Verify", verify, verify).unwrap_err().code(), Status::PermissionDenied);
    let segments = admin!(b, "ListSegments", list_segments, v1::ListSegmentsRequest {});
    assert_eq!(segments.unwrap_err().code(), Status::PermissionDenied);
    let drain = admin!(b, "Drain", drain, v1::DrainRequest::default());
    assert_eq!(drain.unwrap_err().code(), Status::PermissionDenied);
    let tenants = admin!(b, "ListTenants", list_tenants, v1::ListTenantsRequest {}).unwrap().tenants;
    assert_eq!(tenants.iter().map(|t| (t.name.as_str(), t.pages)).collect::<Vec<_>>(), [("b", 0)]);
    let _session_of_a = a.session().unwrap();
    let status = b.status().unwrap();
    assert_eq!((status.session_count, status.sessions.len(), status.pinned_pages), (0, 0, 0));
    assert_eq!((status.dram.unwrap().pages, status.ops.unwrap().put_keys), (0, 0));
    // The owner sees all of it, untouched; so does the operator.
    for control in [&a, &estate.operator()] {
        assert_eq!(admin!(control, "ListKeys", list_keys, list.clone()).unwrap().keys.len(), 1);
        assert!(admin!(control, "InspectKey", inspect_key, inspect.clone()).unwrap().verified);
        assert_eq!(admin!(control, "ListPins", list_pins, v1::ListPinsRequest {}).unwrap().pins.len(), 1);
    }
    let tenants = admin!(estate.operator(), "ListTenants", list_tenants, v1::ListTenantsRequest {}).unwrap();
    let names: Vec<_> = tenants.tenants.iter().map(|t| (t.name.as_str(), t.pages)).collect();
    assert_eq!(names, [("-", 0), ("a", 1), ("b", 0)]);
}

#[test]
fn rights_are_kept_on_both_planes() {
    let entry = |name: &str, number, rights| memkv_credentials::Tenant { rights, ..tenant(name, number) };
    let estate = Estate::with(&of([
        entry("reader", 1, Rights::READ),
        entry("writer", 2, Rights::WRITE),
        entry("nobody", 3, Rights::default()),
    ]));
    let bytes = page(b"k", 100);
    let mut writer = Guest::of(&estate, "writer", 2);
    let space = writer.control.open_space(NAME).unwrap();
    assert_eq!(writer.data.put(space, b"k", &bytes).unwrap(), Code::Ok);
    assert!(writer.data.exists(space, &[b"k"]).unwrap_err().to_string().contains("Denied"));
    assert_eq!(writer.control.get(space, &[b"k"], &[]).unwrap_err().code(), Status::PermissionDenied);
    assert_eq!(writer.control.status().unwrap_err().code(), Status::PermissionDenied);
    let mut reader = Guest::of(&estate, "reader", 1);
    let space = reader.control.open_space(NAME).unwrap();
    assert_eq!(reader.data.exists(space, &[b"k"]).unwrap(), [false]);
    assert_eq!(reader.data.put(space, b"k", &bytes).unwrap(), Code::Denied);
    let denied = reader.control.put(space, &[(b"k", &bytes)], 1 << 20).unwrap_err();
    assert_eq!(denied.code(), Status::PermissionDenied);
    let mut nobody = Guest::of(&estate, "nobody", 3);
    assert!(nobody.data.exists(space, &[b"k"]).unwrap_err().to_string().contains("Denied"));
}

#[test]
fn public_spaces_are_read_by_others_and_written_by_their_owner_only() {
    let mut credentials = of([tenant("a", 1), tenant("b", 2)]);
    credentials.public = vec![public("a", "base-*")];
    let estate = Estate::with(&credentials);
    let (mut a, mut b) = (Guest::of(&estate, "a", 1), Guest::of(&estate, "b", 2));
    let bytes = page(b"k", 5000);
    let space = a.control.open_space("base-1").unwrap();
    assert_eq!(a.data.put(space, b"k", &bytes).unwrap(), Code::Ok);
    assert_eq!(open(&b.control, &described("a", "base-1")).unwrap(), space);
    assert_eq!(b.data.exists(space, &[b"k"]).unwrap(), [true]);
    assert_eq!(b.data.get(space, b"k", 5000).unwrap(), (Code::Ok, bytes.clone()));
    assert_eq!(b.control.get(space, &[b"k"], &[]).unwrap()[0], (v1::Status::Ok, bytes.clone()));
    assert_eq!(b.data.put(space, b"new", &bytes).unwrap(), Code::Denied);
    let denied = b.control.put(space, &[(b"new", &bytes)], 1 << 20).unwrap_err();
    assert_eq!(denied.code(), Status::PermissionDenied);
    let delete = v1::DeleteRequest { space_id: space.0.to_vec(), keys: vec![b"k".to_vec()] };
    let delete = b.control.request("/memkv.v1.Kv/Delete", delete);
    let denied = b.control.block_on(b.control.kv().delete(delete)).unwrap_err();
    assert_eq!(denied.code(), Status::PermissionDenied);
    let spaces = admin!(b.control, "ListSpaces", list_spaces, v1::ListSpacesRequest {}).unwrap().spaces;
    assert!(spaces.is_empty(), "who may read a space does not administer it");
    // The Rust client says whose space it means.
    let client = Client::connect(config(&estate, "b", 2, Transport::Tcp)).unwrap();
    let of_a = client.space(described("a", "base-1")).unwrap();
    assert_eq!(of_a.get(b"k").unwrap().as_deref(), Some(&bytes[..]));
    client.close();
    // What is public no more is gone for others at once.
    estate.change(&of([tenant("a", 1), tenant("b", 2)]));
    assert_eq!(b.data.exists(space, &[b"k"]).unwrap(), [false]);
    assert_eq!(a.data.exists(space, &[b"k"]).unwrap(), [true]);
}

#[test]
fn a_tenant_over_its_bytes_loses_its_own_pages_and_nobody_elses() {
    let quotas = Quotas { dram_bytes: Some(4 << 20), ..Quotas::default() };
    let estate = Estate::with(&of([memkv_credentials::Tenant { quotas, ..tenant("a", 1) }, tenant("b", 2)]));
    let (mut a, mut b) = (Guest::of(&estate, "a", 1), Guest::of(&estate, "b", 2));
    let of_b = b.control.open_space(NAME).unwrap();
    let bytes = page(b"page", 64 << 10);
    let keys: Vec<Vec<u8>> = (0..400_u32).map(|n| n.to_le_bytes().to_vec()).collect();
    for key in &keys {
        assert_eq!(b.data.put(of_b, key, &page(key, 64 << 10)).unwrap(), Code::Ok);
    }
    let of_a = a.control.open_space(NAME).unwrap();
    let mut stored = 0;
    for round in 0..2000_u32 {
        match a.data.put(of_a, &round.to_be_bytes(), &bytes).unwrap() {
            Code::Ok => stored += 1,
            Code::Busy => {}
            code => panic!("{code:?}"),
        }
        if round % 200 == 0 {
            let used = usage(&estate, "a").dram_bytes;
            assert!(used <= 4 << 20, "{used} bytes");
        }
    }
    assert!(stored > 200, "it goes on with its own room: {stored}");
    let kept = keys.iter().filter(|key| b.data.exists(of_b, &[key]).unwrap()[0]).count();
    assert_eq!(kept, keys.len(), "the other tenant's pages stay");
    let now = usage(&estate, "a");
    assert!(now.evicted_pages > 0 && now.dram_bytes_max == 4 << 20, "{now:?}");
    let bytes_shown = estate.daemon.metrics().unwrap().sum("memkv_tenant_dram_bytes", &["tenant=\"a\""]);
    assert!(bytes_shown > 0.0 && bytes_shown <= f64::from(4 << 20), "{bytes_shown}");
    // Slots that are only reserved count too.
    let offers: Vec<_> = (0..128_u32).map(|n| ([b"o", &n.to_be_bytes()[..]].concat(), 64 << 10)).collect();
    let offers: Vec<_> = offers.iter().map(|(key, len)| (&key[..], *len)).collect();
    let id = a.data.id();
    let reply = a.data.call(&memkv_tests::wire::offer_frame(id, of_a, &offers)).unwrap();
    let wanted = reply.verdicts().iter().filter(|verdict| **verdict == Some(Code::Want)).count();
    assert!(wanted <= 64, "{wanted} slots of 64 KiB are more than 4 MiB");
}

#[test]
fn a_tenant_over_its_bytes_on_drives_loses_its_own_pages_and_nobody_elses() {
    const DRAM: u64 = 4 << 20;
    const NVME: u64 = 8 << 20;
    let drive = tempfile::tempdir().unwrap();
    let path = format!("{}:256MiB", drive.path().display());
    let args = ["--nvme-paths", &path, "--nvme-segment", "4MiB", "--nvme-mode", "write-through"];
    let setup = Setup { args: args.map(str::to_owned).into(), ..Setup::default() };
    let quotas = Quotas { dram_bytes: Some(DRAM), nvme_bytes: Some(NVME), ..Quotas::default() };
    let small = Quotas { dram_bytes: Some(DRAM), ..Quotas::default() };
    let tenants = [
        memkv_credentials::Tenant { quotas, ..tenant("a", 1) },
        memkv_credentials::Tenant { quotas: small, ..tenant("b", 2) },
    ];
    let estate = Estate::with_setup(&of(tenants), setup);
    let (mut a, mut b) = (Guest::of(&estate, "a", 1), Guest::of(&estate, "b", 2));
    let (of_a, of_b) = (a.control.open_space(NAME).unwrap(), b.control.open_space(NAME).unwrap());
    let keys: Vec<[u8; 4]> = (0..300_u32).map(u32::to_le_bytes).collect();
    let put_all = |guest: &mut Guest, space| {
        for key in &keys {
            let bytes = page(key, 64 << 10);
            let stored = || (guest.data.put(space, key, &bytes).unwrap() == Code::Ok).then_some(());
            wait_for("room for a page", PATIENCE, stored).unwrap();
        }
    };
    put_all(&mut b, of_b);
    put_all(&mut a, of_a);
    // A page on its drive that leaves memory may exceed the bound until the next round.
    let within = || Some(usage(&estate, "a")).filter(|usage| usage.nvme_bytes <= NVME);
    let now = wait_for("the bound of drives", PATIENCE, within).unwrap();
    assert!(now.nvme_bytes > 0 && now.nvme_bytes_max == NVME && now.evicted_pages > 0, "{now:?}");
    let kept = |guest: &mut Guest, space| {
        keys.iter().filter(|key| guest.data.exists(space, &[&key[..]]).unwrap()[0]).count()
    };
    let (of_mine, of_others) = (kept(&mut a, of_a), kept(&mut b, of_b));
    assert_eq!(of_others, keys.len(), "the other tenant has no bound on drives");
    assert!(of_mine * (64 << 10) <= (DRAM + NVME) as usize, "{of_mine} pages");
    assert!(of_mine > 50, "what is within the bounds stays: {of_mine} pages");
}

fn usage(estate: &Estate, name: &str) -> v1::TenantStatus {
    let operator = estate.operator();
    let tenants = admin!(operator, "ListTenants", list_tenants, v1::ListTenantsRequest {}).unwrap().tenants;
    tenants.into_iter().find(|tenant| tenant.name == name).unwrap()
}

#[test]
fn a_tenant_over_its_rate_waits_and_its_puts_are_busy() {
    let quotas = Quotas { requests_per_s: Some(20), ..Quotas::default() };
    let estate = Estate::with(&of([memkv_credentials::Tenant { quotas, ..tenant("a", 1) }, tenant("b", 2)]));
    let (mut a, mut b) = (Guest::of(&estate, "a", 1), Guest::of(&estate, "b", 2));
    let space = a.control.open_space(NAME).unwrap();
    let of_b = b.control.open_space(NAME).unwrap();
    let bytes = page(b"k", 100);
    let busy =
        (0..100_u32).filter(|n| a.data.put(space, &n.to_be_bytes(), &bytes).unwrap() == Code::Busy).count();
    assert!(busy > 0, "a hundred requests at once are more than a second's");
    // A read is late and right.
    for _ in 0..3 {
        a.data.exists(space, &[b"k"]).unwrap();
    }
    for n in 0..100_u32 {
        assert_eq!(b.data.put(of_b, &n.to_be_bytes(), &bytes).unwrap(), Code::Ok, "nobody else waits");
    }
    let now = usage(&estate, "a");
    assert!(now.refused >= busy as u64 && now.delayed > 0, "{now:?}");
    assert_eq!(usage(&estate, "b").refused, 0);
    let refused = estate.daemon.metrics().unwrap().sum("memkv_tenant_refused_total", &["tenant=\"a\""]);
    assert!(refused >= busy as f64, "{refused}");
}

#[test]
fn bytes_are_counted_against_the_rate_both_ways() {
    let quotas = Quotas { bytes_per_s: Some(1 << 20), ..Quotas::default() };
    let estate = Estate::with(&of([memkv_credentials::Tenant { quotas, ..tenant("a", 1) }]));
    let mut a = Guest::of(&estate, "a", 1);
    let space = a.control.open_space(NAME).unwrap();
    let large = page(b"k", 3 << 20);
    assert_eq!(a.data.put(space, b"k", &large).unwrap(), Code::Ok, "what is saved may be used at once");
    assert_eq!(a.data.put(space, b"l", &page(b"l", 10)).unwrap(), Code::Busy, "and is paid afterwards");
    let busy = a.data.exists(space, &[b"k"]).unwrap_err().to_string();
    assert!(busy.contains("Busy") && busy.contains("over its rate"), "{busy}");
    let over = a.control.get(space, &[b"k"], &[]).unwrap_err();
    assert_eq!(over.code(), Status::ResourceExhausted);
}

#[test]
fn keys_are_rotated_under_load_without_a_failure() {
    let estate = Estate::with(&of([tenant("a", 1)]));
    let with = |numbers: &[u8]| {
        let keys = numbers.iter().map(|number| key("a", *number)).collect();
        of([memkv_credentials::Tenant { keys, ..tenant("a", 1) }])
    };
    let old = Client::connect(config(&estate, "a", 1, Transport::Tcp)).unwrap();
    let space = old.space(SpaceDescription::named(NAME).unwrap()).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let stop = &stop;
    std::thread::scope(|scope| {
        let stopping = memkv_tests::StopAtEnd(stop);
        let load = scope.spawn(move || {
            let mut rounds = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // Few enough that none is evicted.
                let key = (rounds % 1000).to_be_bytes();
                let bytes = page(&key, 1000);
                assert!(space.put(&key, &bytes).unwrap().is_success());
                assert_eq!(space.get(&key).unwrap().as_deref(), Some(&bytes[..]));
                rounds += 1;
            }
            rounds
        });
        estate.change(&with(&[1, 2]));
        let new = Client::connect(config(&estate, "a", 2, Transport::Tcp)).unwrap();
        let fresh = new.space(SpaceDescription::named(NAME).unwrap()).unwrap();
        wait_for("both keys work", PATIENCE, || has(&fresh, &0_u64.to_be_bytes()).then_some(())).unwrap();
        drop(stopping);
        assert!(load.join().unwrap() > 0);
        // From here on only the new key counts: the old one's session ends, and it cannot come back.
        estate.change(&with(&[2]));
        assert!(has(&fresh, &0_u64.to_be_bytes()));
        assert!(estate.control("a", 1).session().is_err());
        assert_eq!(estate.control("a", 1).status().unwrap_err().code(), Status::Unauthenticated);
        assert!(estate.daemon.log().contains("sessions_ended=1"));
        new.close();
    });
    old.close();
    estate.daemon.allow("authentication failed");
}

#[test]
fn a_broken_file_changes_nothing_and_a_signal_makes_it_read() {
    let estate = Estate::start();
    estate.daemon.allow("the credentials stay as they were");
    estate.daemon.allow("authentication failed");
    std::fs::write(estate.file(), "tenants: [{name: a, rights: [reed]}]").unwrap();
    wait_for("it says so", PATIENCE, || estate.daemon.log().contains("stay as they were").then_some(()))
        .unwrap();
    assert!(estate.control("a", 1).status().is_ok(), "the old credentials count");
    assert!(estate.control("b", 2).session().is_ok());
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(estate.daemon.log().matches("stay as they were").count(), 1, "said once");
    estate.daemon.signal(rustix::process::Signal::HUP).unwrap();
    let twice = || (estate.daemon.log().matches("stay as they were").count() == 2).then_some(());
    wait_for("a signal makes it look again", PATIENCE, twice).unwrap();
    estate.change(&Credentials::default());
    assert_eq!(estate.control("a", 1).status().unwrap_err().code(), Status::Unauthenticated);
    assert!(estate.operator().status().is_ok(), "the cluster's key is the operator's");
}

#[test]
fn pages_keep_their_owner_over_a_restart() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let backing = format!("memory:\n  backing: {}\n", folder.path().display());
    let setup = Setup { config: Some(backing), ..Setup::default() };
    let mut estate = Estate::with_setup(&of([tenant("a", 1), tenant("b", 2)]), setup);
    let bytes = page(b"k", 5000);
    let space = {
        let mut a = Guest::of(&estate, "a", 1);
        let space = a.control.open_space(NAME).unwrap();
        assert_eq!(a.data.put(space, b"k", &bytes).unwrap(), Code::Ok);
        space
    };
    estate.daemon.stop().unwrap();
    estate.daemon.restart().unwrap();
    let (mut a, mut b) = (Guest::of(&estate, "a", 1), Guest::of(&estate, "b", 2));
    assert_eq!(a.data.get(space, b"k", 5000).unwrap(), (Code::Ok, bytes));
    assert_eq!(b.data.exists(space, &[b"k"]).unwrap(), [false]);
    assert_eq!((usage(&estate, "a").pages, usage(&estate, "a").dram_bytes), (1, 8192));
}

#[test]
fn no_client_maps_the_memory_of_a_server_with_tenants() {
    let shared = |estate: &Estate| {
        let folder = format!("/proc/{}/fd", estate.daemon.pid());
        let links = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().contains("memfd:")).count()
    };
    let estate = Estate::start();
    assert_eq!(shared(&estate), 0, "there is nothing to map");
    let setup = Setup { args: vec!["--memory-share=on".into()], ..Setup::default() };
    let args: Vec<&str> = setup.args.iter().map(String::as_str).collect();
    let file = format!("--credentials={}", estate.file().display());
    let args = [&args[..], &[&file, "--check-config"]].concat();
    let (status, text) = memkv_tests::daemon::run_server(&args, &[("MEMKV_SERVER_AUTH_KEY", KEY)]).unwrap();
    assert!(!status.success() && text.contains("all tenants"), "{text}");
}

#[test]
fn the_operator_may_do_everything_and_a_tenant_may_be_one() {
    let operator = memkv_credentials::Tenant { operator: true, ..tenant("root", 9) };
    let estate = Estate::with(&of([tenant("a", 1), operator]));
    let mut a = Guest::of(&estate, "a", 1);
    let space = a.control.open_space(NAME).unwrap();
    a.data.put(space, b"k", &page(b"k", 100)).unwrap();
    let mut root = Guest::of(&estate, "root", 9);
    assert_eq!(root.data.exists(space, &[b"k"]).unwrap(), [true]);
    assert!(root.control.status().unwrap().session_count >= 2);
    let clear = v1::ClearSpaceRequest { space_id: space.0.to_vec() };
    assert_eq!(admin!(root.control, "ClearSpace", clear_space, clear).unwrap().removed_pages, 1);
}

#[test]
fn who_may_not_see_a_page_does_not_make_it_hot_and_is_not_told_that_it_is() {
    let args = ["--hot-reads=50", "--limits-ping-interval=200ms"].map(str::to_owned).to_vec();
    let estate =
        Estate::with_setup(&of([tenant("a", 1), tenant("b", 2)]), Setup { args, ..Setup::default() });
    let (mut a, mut b) = (Guest::of(&estate, "a", 1), Guest::of(&estate, "b", 2));
    let space = a.control.open_space(NAME).unwrap();
    a.data.put(space, b"k", &page(b"k", 100)).unwrap();
    let after_pong = |guest: &Guest| {
        let before = guest.session.pongs().0;
        wait_for("a pong", PATIENCE, || {
            (guest.session.pongs().0 > before + 1).then(|| guest.session.pongs().1)
        })
        .unwrap()
    };
    // What is hot is decided once a second, so this goes on for more than two.
    let begun = a.session.pongs().0;
    while a.session.pongs().0 < begun + 12 {
        for _ in 0..50 {
            assert_eq!(b.data.get(space, b"k", 100).unwrap().0, Code::Miss);
        }
        assert_eq!(a.session.pongs().1, 0, "another tenant's requests are nothing to this one");
    }
    wait_for("its own reads make it hot", PATIENCE, || {
        for _ in 0..500 {
            assert_eq!(a.data.get(space, b"k", 100).unwrap().0, Code::Ok);
        }
        (a.session.pongs().1 > 0).then_some(())
    })
    .unwrap();
    assert_eq!(after_pong(&b), 0, "and the other one does not learn of it");
}
