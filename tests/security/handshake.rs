//! The handshake of sessions and data connections, against those who try to get around it.

use crate::estate::{Estate, Guest, PATIENCE, auth_key, key_hex, of, secret, tenant};
use memkv_proto::v1;
use memkv_proto::v1::client_message::Message as Said;
use memkv_proto::v1::server_message::Message as Heard;
use memkv_tests::control::Control;
use memkv_tests::daemon::KEY;
use memkv_tests::random;
use memkv_tests::wait_for;
use memkv_tests::wire::DataConn;
use memkv_transport::auth::{AuthKey, SessionTranscript};
use memkv_transport::tenant::ClientSecret;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

/// What a liar does with the challenge.
type Lie<'l> = &'l dyn Fn(&v1::Hello, &v1::Challenge) -> Vec<u8>;

fn hello(secret: &ClientSecret) -> v1::Hello {
    let (tenant, key_id) = secret.identity();
    v1::Hello {
        protocol_min: 1,
        protocol_max: 1,
        client_nonce: random::<32>().to_vec(),
        client_name: "handshake".into(),
        client_version: "0".into(),
        tenant: tenant.to_owned(),
        key_id: key_id.to_owned(),
        ..v1::Hello::default()
    }
}

fn transcript<'a>(hello: &'a v1::Hello, challenge: &'a v1::Challenge) -> SessionTranscript<'a> {
    SessionTranscript {
        protocol_min: hello.protocol_min,
        protocol_max: hello.protocol_max,
        protocol: challenge.protocol,
        client_nonce: &hello.client_nonce,
        server_nonce: &challenge.server_nonce,
        session_id: &challenge.session_id,
        node_id: &challenge.node_id,
        key_required: challenge.key_required,
        identity: (&hello.tenant, &hello.key_id),
        channel: &[],
    }
}

/// Opens a session with the proof that `lie` makes; what the server says to it.
fn try_open(control: &Control, hello: v1::Hello, lie: Lie<'_>) -> Result<v1::Accepted, tonic::Status> {
    control.block_on(async {
        let (say, said) = tokio::sync::mpsc::channel(4);
        let send = |message| v1::ClientMessage { message: Some(message) };
        say.send(send(Said::Hello(hello.clone()))).await.unwrap();
        let mut client = v1::session_client::SessionClient::new(control.channel());
        let mut hear = client.open(ReceiverStream::new(said)).await?.into_inner();
        let first = hear.message().await?.and_then(|message| message.message);
        let Some(Heard::Challenge(challenge)) = first else { panic!("{first:?}") };
        let proof = v1::Proof { client_proof: lie(&hello, &challenge) };
        say.send(send(Said::Proof(proof))).await.unwrap();
        match hear.message().await?.and_then(|message| message.message) {
            Some(Heard::Accepted(accepted)) => Ok(accepted),
            other => panic!("{other:?}"),
        }
    })
}

fn refused(estate: &Estate, hello: v1::Hello, lie: Lie<'_>) -> String {
    let status = try_open(&estate.operator(), hello, lie).unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    status.message().to_owned()
}

#[test]
fn an_unknown_tenant_and_a_wrong_key_get_the_same_answer() {
    let estate = Estate::start();
    estate.daemon.allow("authentication failed");
    let honest = |secret: ClientSecret| {
        let hello = hello(&secret);
        refused(&estate, hello, &move |hello, challenge| {
            assert!(challenge.key_required && challenge.server_proof.len() == 32);
            assert_ne!(challenge.server_proof, secret.server_proof(&transcript(hello, challenge)));
            secret.client_proof(&transcript(hello, challenge)).to_vec()
        })
    };
    let answers =
        [secret("a", 7), secret("nobody", 1), secret("b", 1), ClientSecret::Cluster(auth_key(7))].map(honest);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let call =
        |secret| Control::connect_as(estate.daemon.addr(), Some(secret)).unwrap().status().unwrap_err();
    let (known, unknown) = (call(secret("a", 7)), call(secret("nobody", 1)));
    assert_eq!((known.code(), known.message()), (unknown.code(), unknown.message()));
    let accepted = try_open(&estate.operator(), hello(&secret("a", 1)), &|hello, challenge| {
        secret("a", 1).client_proof(&transcript(hello, challenge)).to_vec()
    });
    assert_eq!(accepted.unwrap().tenant, "a", "and who has the key is let in");
}

#[test]
fn proofs_that_were_reflected_replayed_or_made_for_something_else_are_refused() {
    let estate = Estate::start();
    estate.daemon.allow("authentication failed");
    let key = secret("a", 1);
    let honest = |hello: &v1::Hello, challenge: &v1::Challenge| {
        key.client_proof(&transcript(hello, challenge)).to_vec()
    };
    // Reflection: the server's own proof.
    refused(&estate, hello(&key), &|_, challenge| challenge.server_proof.clone());
    // Replay: a proof that was good a moment ago, with the same hello.
    let recorded = std::cell::RefCell::new(Vec::new());
    let first = hello(&key);
    try_open(&estate.operator(), first.clone(), &|hello, challenge| {
        *recorded.borrow_mut() = honest(hello, challenge);
        recorded.borrow().clone()
    })
    .unwrap();
    refused(&estate, first, &|_, _| recorded.borrow().clone());
    // Downgrade: somebody on the way changed what the client offered.
    refused(&estate, hello(&key), &|hello, challenge| {
        let offered = v1::Hello { protocol_max: 2, ..hello.clone() };
        key.client_proof(&transcript(&offered, challenge)).to_vec()
    });
    // Downgrade: somebody on the way says that no key is needed.
    refused(&estate, hello(&key), &|hello, challenge| {
        let open = v1::Challenge { key_required: false, ..challenge.clone() };
        key.client_proof(&transcript(hello, &open)).to_vec()
    });
    // Key confusion: the tenant's key as the cluster's, and the cluster's as a tenant's.
    refused(&estate, hello(&ClientSecret::Cluster(auth_key(1))), &|hello, challenge| {
        ClientSecret::Cluster(auth_key(1)).client_proof(&transcript(hello, challenge)).to_vec()
    });
    refused(&estate, hello(&key), &|hello, challenge| {
        let cluster = ClientSecret::Cluster(AuthKey::from_hex(KEY).unwrap());
        cluster.client_proof(&transcript(hello, challenge)).to_vec()
    });
    // Another tenant's name on one's own proof.
    refused(&estate, hello(&secret("b", 2)), &|hello, challenge| {
        key.client_proof(&transcript(hello, challenge)).to_vec()
    });
    // Relay: the proof of a client on another TLS connection.
    refused(&estate, hello(&key), &|hello, challenge| {
        let elsewhere = SessionTranscript { channel: &[1; 32], ..transcript(hello, challenge) };
        key.client_proof(&elsewhere).to_vec()
    });
    refused(&estate, hello(&key), &|_, _| Vec::new());
}

#[test]
fn a_calls_credential_is_good_once_and_for_one_method() {
    let estate = Estate::start();
    estate.daemon.allow("authentication failed");
    let control = estate.control("a", 1);
    let call = |credential: &tonic::metadata::MetadataValue<tonic::metadata::Ascii>| {
        let mut request = tonic::Request::new(v1::ListSpacesRequest {});
        request.metadata_mut().insert(memkv_proto::AUTH_METADATA, credential.clone());
        control.block_on(control.admin().list_spaces(request)).map(drop)
    };
    let made = control
        .request("/memkv.v1.Admin/ListSpaces", ())
        .metadata()
        .get(memkv_proto::AUTH_METADATA)
        .unwrap()
        .clone();
    call(&made).unwrap();
    let again = call(&made).unwrap_err();
    assert!(again.code() == Code::Unauthenticated && again.message().contains("used before"), "{again:?}");
    let other = control
        .request("/memkv.v1.Admin/ListPins", ())
        .metadata()
        .get(memkv_proto::AUTH_METADATA)
        .unwrap()
        .clone();
    assert_eq!(call(&other).unwrap_err().code(), Code::Unauthenticated);
}

#[test]
fn a_data_connection_joins_no_session_but_its_own() {
    let estate = Estate::start();
    estate.daemon.allow("authentication failed");
    let (a, b) = (Guest::of(&estate, "a", 1), Guest::of(&estate, "b", 2));
    let addr = estate.daemon.addr();
    assert!(DataConn::attach(addr, a.session.id, &b.session.key).is_err(), "another tenant's session");
    let again = a.control.session().unwrap();
    assert!(DataConn::attach(addr, a.session.id, &again.key).is_err(), "another session of the same tenant");
    assert!(DataConn::attach(addr, random(), &a.session.key).is_err(), "a session that there is not");
    assert!(DataConn::attach(addr, a.session.id, &a.session.key).is_ok());
    let (id, key) = (a.session.id, a.session.key.clone());
    drop(a);
    wait_for("it is over with its session", PATIENCE, || {
        DataConn::attach(addr, id, &key).is_err().then_some(())
    })
    .unwrap();
}

#[test]
fn an_address_that_keeps_failing_is_refused_counted_and_logged_once() {
    let estate = Estate::start();
    estate.daemon.allow("authentication failed");
    let stranger = Control::connect_as(estate.daemon.addr(), Some(secret("a", 7))).unwrap();
    let mut failures = 0;
    let limited = loop {
        let status = stranger.status().unwrap_err();
        if status.code() == Code::ResourceExhausted {
            break status;
        }
        assert_eq!(status.code(), Code::Unauthenticated);
        failures += 1;
        assert!(failures <= 32, "nobody stops it");
    };
    assert!(
        failures == 32 && limited.message().contains("too many failed attempts"),
        "{failures} {limited:?}"
    );
    let open = try_open(&stranger, hello(&secret("a", 1)), &|_, _| Vec::new()).unwrap_err();
    assert_eq!(open.code(), Code::ResourceExhausted, "sessions count as well");
    assert_eq!(estate.daemon.metrics().unwrap().sum("memkv_auth_failures_total", &[]), 32.0);
    assert_eq!(estate.daemon.log().matches("authentication failed").count(), 1);
}

#[test]
fn no_core_file_is_written() {
    let estate = Estate::start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", estate.daemon.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let numbers: Vec<_> = line.split_whitespace().skip(4).take(2).collect();
    assert_eq!(numbers, ["0", "0"], "{line}");
}

#[test]
fn no_secret_is_logged_or_shown() {
    let estate = Estate::with(&of([tenant("a", 1), tenant("b", 2)]));
    estate.daemon.allow("authentication failed");
    estate.daemon.allow("the credentials stay as they were");
    let guest = Guest::of(&estate, "a", 1);
    let _wrong = Control::connect_as(estate.daemon.addr(), Some(secret("a", 7))).unwrap().status();
    let file = std::fs::read_to_string(estate.file()).unwrap();
    std::fs::write(estate.file(), format!("{file}\nnonsense: [")).unwrap();
    wait_for("it says so", PATIENCE, || estate.daemon.log().contains("stay as they were").then_some(()))
        .unwrap();
    let operator = estate.operator();
    let request = operator.request("/memkv.v1.Admin/ListTenants", v1::ListTenantsRequest {});
    let tenants = operator.block_on(operator.admin().list_tenants(request)).unwrap();
    let (_, page) = memkv_tests::http::get(estate.daemon.admin_addr(), "/").unwrap();
    let (_, metrics) = memkv_tests::http::get(estate.daemon.admin_addr(), "/metrics").unwrap();
    let shown = [
        estate.daemon.log(),
        format!("{:?} {tenants:?}", operator.status().unwrap()),
        page,
        metrics,
        format!("{:?} {:?} {:?}", secret("a", 1), guest.session, guest.control),
    ];
    let verifiers: Vec<String> =
        file.split('"').filter(|text| text.len() == 128).map(str::to_owned).collect();
    assert_eq!(verifiers.len(), 2, "the file has a verifier for each key");
    let secrets = [KEY.to_owned(), key_hex(1), key_hex(2)];
    let pieces = verifiers.iter().flat_map(|text| [text[..32].to_owned(), text[64..96].to_owned()]);
    for secret in secrets.into_iter().map(|text| text[..32].to_owned()).chain(pieces) {
        for text in &shown {
            assert!(!text.contains(&secret), "{secret} is in {text}");
        }
    }
    assert!(!file.contains(&key_hex(1)[..32]), "the file has no key");
}
