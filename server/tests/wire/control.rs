//! The control plane: credentials, the key-value API, administration, health, reflection, and the admin port.

use crate::harness::{Fixture, KEY, credential, meta_of, page};
use memkv_core::{SpaceDescription, SpaceId};
use memkv_proto::v1;
use memkv_proto::v1::admin_client::AdminClient;
use memkv_proto::v1::kv_client::KvClient;
use memkv_transport::auth::AuthKey;
use tonic::{Code, Request, Status};

const EXISTS: &str = "/memkv.v1.Kv/Exists";

fn exists_request(space: SpaceId, keys: &[&[u8]]) -> v1::ExistsRequest {
    v1::ExistsRequest { space_id: space.0.to_vec(), keys: keys.iter().map(|key| key.to_vec()).collect() }
}

/// The messages of one page, with its bytes in pieces of `piece` bytes.
fn put_page(space: SpaceId, key: &[u8], bytes: &[u8], piece: usize) -> Vec<v1::PutRequest> {
    let mut pieces = bytes.chunks(piece).map(|chunk| chunk.to_vec().into());
    let first = v1::PutRequest {
        space_id: space.0.to_vec(),
        key: key.to_vec(),
        record: Some(meta_of(space, key, bytes).into()),
        data: pieces.next().unwrap_or_default(),
        position: 1,
    };
    let rest = pieces.map(|data| v1::PutRequest { data, ..Default::default() });
    std::iter::once(first).chain(rest).collect()
}

fn put(fixture: &Fixture, messages: Vec<v1::PutRequest>) -> Result<Vec<v1::Status>, Status> {
    let request = fixture.call("/memkv.v1.Kv/Put", tokio_stream::iter(messages));
    let mut kv = KvClient::new(fixture.channel());
    let response = fixture.runtime.block_on(kv.put(request))?.into_inner();
    Ok(response.statuses().collect())
}

/// Makes a put wrong.
type Spoil = fn(&mut Vec<v1::PutRequest>);
/// One page of a get.
type Got = (v1::Status, Option<v1::PageRecord>, Vec<u8>);

fn get(fixture: &Fixture, space: SpaceId, keys: &[&[u8]], expected: &[u32]) -> Result<Vec<Got>, Status> {
    let request = v1::GetRequest {
        space_id: space.0.to_vec(),
        keys: keys.iter().map(|key| key.to_vec()).collect(),
        expected_bytes: expected.to_vec(),
    };
    let request = fixture.call("/memkv.v1.Kv/Get", request);
    let mut kv = KvClient::new(fixture.channel());
    fixture.runtime.block_on(async {
        let mut stream = kv.get(request).await?.into_inner();
        let mut pages: Vec<Got> = Vec::new();
        while let Some(response) = stream.message().await? {
            if response.status != 0 {
                assert_eq!(response.index as usize, pages.len());
                pages.push((response.status(), response.record, Vec::new()));
            }
            pages[response.index as usize].2.extend_from_slice(&response.data);
        }
        Ok(pages)
    })
}

#[test]
fn calls_need_a_credential_that_is_right_and_fresh() {
    let fixture = Fixture::with_key(&[]);
    let key = AuthKey::from_hex(KEY).unwrap();
    let mut kv = KvClient::new(fixture.channel());
    let mut ask = |credential: Option<&tonic::metadata::MetadataValue<_>>| {
        let mut request = Request::new(exists_request(SpaceId::default(), &[b"k"]));
        if let Some(credential) = credential {
            request.metadata_mut().insert("memkv-auth", credential.clone());
        }
        fixture.runtime.block_on(kv.exists(request)).map(drop)
    };
    let refused = ask(None).unwrap_err();
    assert!(refused.code() == Code::Unauthenticated && refused.message().contains("MEMKV_AUTH_KEY"));
    let good = credential(&key, EXISTS);
    ask(Some(&good)).unwrap();
    let replayed = ask(Some(&good)).unwrap_err();
    assert!(replayed.code() == Code::Unauthenticated && replayed.message().contains("used before"));
    for bad in [
        credential(&key, "/memkv.v1.Kv/Get"),
        credential(&AuthKey::open(), EXISTS),
        "v1.1.00112233445566778899aabbccddeeff.00".parse().unwrap(),
        "nonsense".parse().unwrap(),
    ] {
        assert_eq!(ask(Some(&bad)).unwrap_err().code(), Code::Unauthenticated);
    }
    ask(Some(&credential(&key, EXISTS))).unwrap();
    let mut admin = AdminClient::new(fixture.channel());
    let refused = fixture.runtime.block_on(admin.get_status(v1::GetStatusRequest {})).unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(fixture.status().ops.unwrap().auth_failures, 7);
}

#[test]
fn health_and_reflection_are_open() {
    let fixture = Fixture::with_key(&[]);
    let channel = fixture.channel();
    fixture.runtime.block_on(async {
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        for service in ["", "memkv.v1.Kv"] {
            let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
            let answer = health.check(request).await.unwrap().into_inner();
            assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
        }
        use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::v1::{
            ServerReflectionRequest, server_reflection_response::MessageResponse,
        };
        let list = MessageRequest::ListServices(String::new());
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
        let mut reflection = ServerReflectionClient::new(channel);
        let answers = reflection.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap().message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
        let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
        assert!(
            ["memkv.v1.Session", "memkv.v1.Kv", "memkv.v1.Admin"].iter().all(|name| names.contains(name))
        );
    });
}

#[test]
fn pages_go_in_and_out_in_pieces() {
    let fixture = Fixture::with_key(&[]);
    let space = fixture.open_space("control");
    let (small, large) = (page(1, 5), page(2, (3 << 20) + 1));
    let mut messages = put_page(space, b"small", &small, 2);
    messages.extend(put_page(space, b"large", &large, 1_000_000));
    messages.extend(put_page(space, b"small", &small, 100));
    assert_eq!(put(&fixture, messages).unwrap(), [v1::Status::Ok, v1::Status::Ok, v1::Status::Exists]);
    let pages = get(&fixture, space, &[b"large", b"absent", b"small"], &[]).unwrap();
    assert_eq!(pages[0].1, Some(meta_of(space, b"large", &large).into()));
    assert!(pages[0].2 == large);
    assert_eq!(pages[1], (v1::Status::Miss, None, vec![]));
    assert_eq!((pages[2].0, &pages[2].2), (v1::Status::Ok, &small));
    let sized = get(&fixture, space, &[b"small", b"small"], &[4, 5]).unwrap();
    assert_eq!((sized[0].0, sized[0].1.unwrap().len, sized[0].2.len()), (v1::Status::SizeMismatch, 5, 0));
    assert_eq!(sized[1].2, small);
    // Both planes are one store.
    let (_session, mut wire) = fixture.wire();
    assert!(wire.get(space, 0, &[(b"large", 4 << 20)])[0].2 == large);
}

#[test]
fn many_keys_in_one_get() {
    let fixture = Fixture::open(&[]);
    let space = fixture.open_space("control");
    let keys: Vec<_> = (0..100_u32).map(u32::to_le_bytes).collect();
    let pages: Vec<_> = (0..100).map(|i| page(i, 100 + i as usize)).collect();
    let messages = keys.iter().zip(&pages).flat_map(|(key, page)| put_page(space, key, page, 64));
    assert!(put(&fixture, messages.collect()).unwrap().iter().all(|status| *status == v1::Status::Ok));
    let keys: Vec<_> = keys.iter().map(|key| &key[..]).collect();
    let got = get(&fixture, space, &keys, &[]).unwrap();
    assert!(got.iter().zip(&pages).all(|(got, page)| got.2 == *page) && got.len() == 100);
}

#[test]
fn a_put_that_is_wrong_stores_nothing() {
    let fixture = Fixture::open(&["--page-max", "1MiB"]);
    let space = fixture.open_space("control");
    let bytes = page(1, 1000);
    let spoil = |change: Spoil| {
        let mut messages = put_page(space, b"k", &bytes, 400);
        change(&mut messages);
        put(&fixture, messages)
    };
    // The last piece never comes, a piece too much, no key, a key too long, no record, a page inside a page.
    let cases: [(Spoil, &str); 6] = [
        (|m| drop(m.pop()), "in the middle of a page"),
        (|m| m[2].data = vec![0; 201].into(), "more bytes than its record says"),
        (|m| m[0].key.clear(), "the key is empty"),
        (|m| m[0].key = vec![b'x'; 513], "the key has 513 bytes"),
        (|m| m[0].record = None, "\"record\" is missing"),
        (|m| m[1] = m[0].clone(), "began before the last one was whole"),
    ];
    for (change, text) in cases {
        let refused = spoil(change).unwrap_err();
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains(text), "{refused:?}");
    }
    assert_eq!(spoil(|m| m[2].data = vec![0; 200].into()).unwrap(), [v1::Status::Corrupt]);
    let too_large = put_page(space, b"large", &page(1, (1 << 20) + 1), 1 << 20);
    assert_eq!(put(&fixture, too_large).unwrap(), [v1::Status::TooLarge]);
    assert_eq!(put(&fixture, put_page(space, b"empty", b"", 1)).unwrap(), [v1::Status::TooLarge]);
    let unknown = SpaceDescription::named("never opened").unwrap().id();
    let refused = put(&fixture, put_page(unknown, b"k", &bytes, 400)).unwrap_err();
    assert!(refused.code() == Code::FailedPrecondition && refused.message().contains("Kv.OpenSpace"));
    assert_eq!(get(&fixture, space, &[b"k"], &[]).unwrap()[0].0, v1::Status::Miss);
    assert_eq!(fixture.status().dram.unwrap().used_bytes, 0);
}

#[test]
fn exists_touch_and_delete() {
    let fixture = Fixture::open(&["--limits-batch-keys-max", "3"]);
    let space = fixture.open_space("control");
    put(&fixture, put_page(space, b"a", b"1", 9)).unwrap();
    let mut kv = KvClient::new(fixture.channel());
    let (space_id, keys) = (space.0.to_vec(), vec![b"a".to_vec(), b"b".to_vec()]);
    fixture.runtime.block_on(async {
        let present = kv.exists(exists_request(space, &[b"a", b"b"])).await.unwrap().into_inner().present;
        assert_eq!(present, [true, false]);
        let touch = v1::TouchRequest { space_id: space_id.clone(), keys: keys.clone() };
        assert_eq!(kv.touch(touch).await.unwrap().into_inner().present, [true, false]);
        let delete = v1::DeleteRequest { space_id, keys };
        assert_eq!(kv.delete(delete).await.unwrap().into_inner().removed, [true, false]);
        assert_eq!(kv.exists(exists_request(space, &[b"a"])).await.unwrap().into_inner().present, [false]);
        for (keys, text) in [
            (vec![&b""[..]], "the key is empty"),
            (vec![&[b'x'; 513][..]], "513 bytes"),
            (vec![&b"k"[..]; 4], "takes 3 at once"),
        ] {
            let refused = kv.exists(exists_request(space, &keys)).await.unwrap_err();
            assert!(
                refused.code() == Code::InvalidArgument && refused.message().contains(text),
                "{refused:?}"
            );
        }
        let short = v1::ExistsRequest { space_id: vec![1; 15], keys: vec![] };
        assert_eq!(kv.exists(short).await.unwrap_err().code(), Code::InvalidArgument);
        let bad = v1::Space { fields: [("Bad Name".to_owned(), String::new())].into() };
        let refused = kv.open_space(v1::OpenSpaceRequest { space: Some(bad) }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    });
}

#[test]
fn administration_shows_and_clears_exactly_one_space() {
    let fixture = Fixture::with_key(&["--limits-spaces-max", "2"]);
    let (space, other) = (fixture.open_space("one"), fixture.open_space("two"));
    for key in [&b"x1"[..], b"x2", b"y1"] {
        put(&fixture, put_page(space, key, &page(1, 5000), 5000)).unwrap();
    }
    put(&fixture, put_page(other, b"x1", &page(2, 10), 10)).unwrap();
    get(&fixture, space, &[b"x1", b"absent"], &[]).unwrap();
    let mut admin = AdminClient::new(fixture.channel());
    let mut list = |prefix: &[u8], limit, cursor| {
        let request =
            v1::ListKeysRequest { space_id: space.0.to_vec(), prefix: prefix.to_vec(), limit, cursor };
        let request = fixture.call("/memkv.v1.Admin/ListKeys", request);
        fixture.runtime.block_on(admin.list_keys(request)).map(tonic::Response::into_inner)
    };
    let mut names: Vec<_> = list(b"x", 0, vec![]).unwrap().keys.into_iter().map(|key| key.key).collect();
    names.sort();
    assert_eq!(names, [b"x1", b"x2"]);
    let first = list(b"", 2, vec![]).unwrap();
    let second = list(b"", 2, first.next_cursor).unwrap();
    assert_eq!((first.keys.len(), second.keys.len(), second.next_cursor.len()), (2, 1, 0));
    assert_eq!(list(b"", 2, vec![0xff; 3]).unwrap_err().code(), Code::InvalidArgument);

    let found = fixture.inspect(space, b"x1", true);
    let status = found.status.unwrap();
    assert!(found.found && found.verified);
    assert_eq!((status.slot_bytes, status.position, status.tier.as_str()), (8192, 1, "dram"));
    assert!(status.hits >= 1);
    assert!(!fixture.inspect(space, b"absent", true).found);

    let mut admin = AdminClient::new(fixture.channel());
    let call = fixture.call("/memkv.v1.Admin/ListSpaces", v1::ListSpacesRequest {});
    let spaces = fixture.runtime.block_on(admin.list_spaces(call)).unwrap().into_inner().spaces;
    let one = spaces.iter().find(|status| status.space_id == space.0).unwrap();
    assert_eq!((one.pages, one.page_bytes, spaces.len()), (3, 15_000, 2));
    assert_eq!(one.space.as_ref().unwrap().fields["name"], "one");

    let call =
        fixture.call("/memkv.v1.Admin/ClearSpace", v1::ClearSpaceRequest { space_id: space.0.to_vec() });
    let cleared = fixture.runtime.block_on(admin.clear_space(call)).unwrap().into_inner();
    assert_eq!((cleared.removed_pages, cleared.removed_bytes), (3, 15_000));
    assert_eq!(get(&fixture, space, &[b"x1"], &[]).unwrap()[0].0, v1::Status::Miss);
    assert_eq!(get(&fixture, other, &[b"x1"], &[]).unwrap()[0].0, v1::Status::Ok);

    let third = SpaceDescription::named("three").unwrap();
    let call = fixture.call("/memkv.v1.Kv/OpenSpace", v1::OpenSpaceRequest { space: Some((&third).into()) });
    let refused = fixture.runtime.block_on(KvClient::new(fixture.channel()).open_space(call)).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
}

#[test]
fn the_admin_port_shows_numbers_and_no_secrets() {
    let fixture = Fixture::with_key(&["--node-id", "node-9"]);
    let space = fixture.open_space("control");
    let (_session, mut wire) = fixture.wire();
    wire.put(space, &[(b"a secret prompt", &[1; 100])]);
    wire.get(space, 0, &[(b"a secret prompt", 100)]);
    let pages = ["/", "/metrics", "/healthz", "/readyz"].map(|path| fixture.http(path));
    for text in &pages {
        assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
        assert!(!text.contains(KEY) && !text.contains("a secret prompt"), "{text}");
    }
    assert!(pages[0].contains("node-9") && pages[0].contains("1 (100 bytes)"), "{}", pages[0]);
    for series in [
        "memkv_get_hits_total 1\n",
        "memkv_put_bytes_total 100\n",
        "memkv_sessions 1\n",
        "memkv_data_connections 1\n",
        "memkv_dram_pages 1\n",
        "memkv_ready 1\n",
        "memkv_request_duration_seconds_count{op=\"put-data\"} 1\n",
    ] {
        assert!(pages[1].contains(series), "{series} in {}", pages[1]);
    }
    assert!(fixture.http("/nothing").starts_with("HTTP/1.1 404"));
}
