//! The gRPC API is complete on its own, and means the same as the data plane.

use memkv_proto::v1::{self, Status};
use memkv_tests::control::put_messages;
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::{keys, page};
use memkv_transport::frame::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

#[test]
fn both_planes_agree_on_every_outcome() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("api").unwrap();
    assert_eq!(control.open_space("api").unwrap(), space, "opening again changes nothing");
    let session = control.session().unwrap();
    let mut conn = session.attach().unwrap();
    let (one, two) = (page(b"1", 70_000), page(b"2", 70_000));
    // Stored on one plane, seen on the other.
    assert_eq!(control.put(space, &[(b"1", &one)], 16_384).unwrap(), [Status::Ok]);
    assert_eq!(conn.put(space, b"1", &two).unwrap(), Code::Exists);
    assert_eq!(conn.get(space, b"1", 70_000).unwrap(), (Code::Ok, one.clone()));
    assert_eq!(conn.put(space, b"2", &two).unwrap(), Code::Ok);
    assert_eq!(
        control.put(space, &[(b"2", &one), (b"3", &one)], 1 << 20).unwrap(),
        [Status::Exists, Status::Ok]
    );
    let got = control.get(space, &[b"2", b"none", b"1"], &[]).unwrap();
    assert!(got == [(Status::Ok, two), (Status::Miss, vec![]), (Status::Ok, one.clone())]);
    let got = control.get(space, &[b"1", b"1", b"none"], &[70_000, 69_999, 1]).unwrap();
    assert!(got == [(Status::Ok, one), (Status::SizeMismatch, vec![]), (Status::Miss, vec![])]);
    // Exists, touch, delete.
    let names: Vec<Vec<u8>> = vec![b"1".to_vec(), b"none".to_vec(), b"3".to_vec()];
    let space_id = space.0.to_vec();
    let request = v1::ExistsRequest { space_id: space_id.clone(), keys: names.clone() };
    let request = control.request("/memkv.v1.Kv/Exists", request);
    assert_eq!(
        control.block_on(control.kv().exists(request)).unwrap().into_inner().present,
        [true, false, true]
    );
    let request = v1::TouchRequest { space_id: space_id.clone(), keys: names.clone() };
    let request = control.request("/memkv.v1.Kv/Touch", request);
    assert_eq!(
        control.block_on(control.kv().touch(request)).unwrap().into_inner().present,
        [true, false, true]
    );
    let request = v1::DeleteRequest { space_id, keys: names };
    let request = control.request("/memkv.v1.Kv/Delete", request);
    assert_eq!(
        control.block_on(control.kv().delete(request)).unwrap().into_inner().removed,
        [true, false, true]
    );
    assert_eq!(conn.exists(space, &[b"1", b"2", b"3"]).unwrap(), [false, true, false]);
}

#[test]
fn a_put_whose_record_is_wrong_stores_nothing() {
    let daemon = Daemon::start().unwrap();
    daemon.allow("corrupt");
    let control = daemon.control().unwrap();
    let space = control.open_space("api").unwrap();
    let bytes = page(b"x", 5000);
    let put = |change: &dyn Fn(&mut v1::PutRequest)| {
        let mut messages = put_messages(space, b"x", &bytes, 2000);
        change(&mut messages[0]);
        let request = control.request("/memkv.v1.Kv/Put", tokio_stream::iter(messages));
        control.block_on(control.kv().put(request)).map(|r| r.into_inner().statuses().collect::<Vec<_>>())
    };
    let record = |m: &mut v1::PutRequest| m.record.take().unwrap();
    let wrong_checksum = put(&|m| m.record = Some(v1::PageRecord { checksum: 1, ..record(m) }));
    assert_eq!(wrong_checksum.unwrap(), [Status::Corrupt]);
    for (what, change) in [
        (
            "shorter than its record",
            &(|m: &mut v1::PutRequest| m.record = Some(v1::PageRecord { len: 5001, ..record(m) }))
                as &dyn Fn(&mut v1::PutRequest),
        ),
        ("longer than its record", &|m| m.record = Some(v1::PageRecord { len: 4999, ..record(m) })),
        ("without a record", &|m| m.record = None),
        ("without a key", &|m| m.key = vec![]),
        ("without a space", &|m| m.space_id = vec![]),
        ("with a codec out of range", &|m| m.record = Some(v1::PageRecord { codec: 256, ..record(m) })),
    ] {
        let status = put(change).expect_err(what);
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "a page {what}: {status}");
    }
    assert_eq!(control.get(space, &[b"x"], &[]).unwrap()[0].0, Status::Miss);
    crate::common::wait_until_empty(&daemon);
}

#[test]
fn listing_pages_through_all_keys_once() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("list").unwrap();
    let session = control.session().unwrap();
    let mut conn = session.attach().unwrap();
    let mut all = keys("a/list", 57);
    all.extend(keys("b/list", 20));
    for key in &all {
        assert_eq!(conn.put(space, key, &page(key, 300)).unwrap(), Code::Ok);
    }
    let list = |prefix: &[u8], limit: u32| {
        let (mut found, mut cursor, mut calls) = (Vec::new(), Vec::new(), 0);
        loop {
            let message =
                v1::ListKeysRequest { space_id: space.0.to_vec(), prefix: prefix.to_vec(), limit, cursor };
            let request = control.request("/memkv.v1.Admin/ListKeys", message);
            let response = control.block_on(control.admin().list_keys(request)).unwrap().into_inner();
            assert!(limit == 0 || response.keys.len() <= limit as usize);
            calls += 1;
            found.extend(response.keys.into_iter().map(|status| {
                assert_eq!(status.record.unwrap().len, 300);
                status.key
            }));
            cursor = response.next_cursor;
            if cursor.is_empty() {
                found.sort();
                return (found, calls);
            }
        }
    };
    assert_eq!(list(b"", 10), (all.clone(), 8));
    assert_eq!(list(b"b/", 0), (all[57..].to_vec(), 1));
    assert_eq!(list(b"c", 0).0, Vec::<Vec<u8>>::new());
}

#[test]
fn status_and_spaces_show_what_happened() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("shown").unwrap();
    let session = control.session().unwrap();
    let mut conn = session.attach().unwrap();
    for key in keys("shown", 3) {
        conn.put(space, &key, &page(&key, 1000)).unwrap();
        conn.get(space, &key, 1000).unwrap();
    }
    conn.get(space, b"none", 1000).unwrap();
    let status = control.status().unwrap();
    assert!(status.key_required && !status.node_id.is_empty() && status.incarnation != 0);
    assert_eq!(status.state(), v1::ServerState::Serving);
    assert_eq!(status.node_id, session.node_id);
    let ops = status.ops.unwrap();
    assert_eq!(
        (ops.put_stored, ops.put_bytes, ops.get_keys, ops.get_hits, ops.get_bytes),
        (3, 3000, 4, 3, 3000)
    );
    let dram = status.dram.unwrap();
    assert_eq!((dram.pages, dram.page_bytes), (3, 3000));
    assert_eq!(status.sessions[0].client_name, "memkv-tests");
    let request = control.request("/memkv.v1.Admin/ListSpaces", v1::ListSpacesRequest {});
    let spaces = control.block_on(control.admin().list_spaces(request)).unwrap().into_inner().spaces;
    let shown = spaces.iter().find(|s| s.space_id == space.0).unwrap();
    assert_eq!((shown.pages, shown.page_bytes, shown.get_keys, shown.get_hits), (3, 3000, 4, 3));
    assert_eq!(shown.space.as_ref().unwrap().fields["name"], "shown");
}

#[test]
fn health_and_reflection_answer() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let mut health = HealthClient::new(control.channel());
    for service in ["", "memkv.v1.Kv"] {
        let request = HealthCheckRequest { service: service.into() };
        let answer = control.block_on(health.check(request)).unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    let mut reflection = ServerReflectionClient::new(control.channel());
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let names = control.block_on(async {
        let mut stream =
            reflection.server_reflection_info(tokio_stream::iter([ask])).await.unwrap().into_inner();
        match stream.message().await.unwrap().unwrap().message_response.unwrap() {
            MessageResponse::ListServicesResponse(list) => list.service,
            other => panic!("{other:?}"),
        }
    });
    let names: Vec<_> = names.into_iter().map(|service| service.name).collect();
    for expected in ["memkv.v1.Session", "memkv.v1.Kv", "memkv.v1.Admin", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|name| name == expected), "{names:?}");
    }
}
