//! Who is refused, and what both sides are told.

use super::{Rig, connect, plain, refusal, works};
use memkv_client::ErrorKind;
use memkv_tests::certs::Authority;
use memkv_tests::daemon::{Daemon, run_server};
use memkv_tests::{http, wire};
use memkv_transport::handshake::{Attach, AttachError, CHALLENGE_BYTES, read_status};
use std::io::{Read as _, Write as _};
use std::time::Duration;

#[test]
fn a_server_that_is_not_the_one_is_not_believed() {
    let rig = Rig::new();
    let daemon = rig.daemon(&[]);
    let kind = |config| connect(config).expect_err("the client is refused").kind();
    rig.folder.write("other-ca.pem", &Authority::new("the authority").unwrap().pem()).unwrap();
    let other = || rig.config(daemon.addr()).set("tls_ca", rig.folder.text("other-ca.pem"));
    let text = refusal(other());
    assert!(text.contains("is not from the CA in MEMKV_TLS_CA"), "{text}");
    assert_eq!(kind(other()), ErrorKind::Unauthenticated);
    let name = refusal(rig.config(daemon.addr()).set("tls_server_name", "somebody.else"));
    assert!(name.contains("for another name; set MEMKV_TLS_SERVER_NAME"), "{name}");
    assert!(daemon.metrics().unwrap().sum("memkv_tls_handshakes_failed_total", &[]) >= 3.0);
    let over = rig.authority.sign_with(&["127.0.0.1"], |params| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    rig.folder.write_pair("server", &over.unwrap()).unwrap();
    let late = rig.daemon(&[]);
    late.allow("has expired; clients refuse this server");
    let text = refusal(rig.config(late.addr()));
    assert!(text.contains("the server's certificate has expired"), "{text}");
    let admin = http::get(late.admin_addr(), "/").unwrap().1;
    assert!(admin.contains("expired"), "{admin}");
}

#[test]
fn plain_text_is_refused_where_tls_is_required() {
    let rig = Rig::new();
    let daemon = rig.daemon(&["--require-tls", "true"]);
    works(&connect(rig.config(daemon.addr())).unwrap());
    for transport in ["tcp", "grpc"] {
        let config = || plain(daemon.addr()).set("transport", transport);
        let text = refusal(config());
        assert!(text.contains("this server requires TLS; set MEMKV_TLS=on"), "{text}");
        assert!(!connect(config()).err().unwrap().is_retryable(), "nobody can wait it away");
    }
    // A call of any gRPC client, of every service.
    let control = daemon.control().unwrap();
    let status = control.status().unwrap_err();
    assert!(format!("{status:#}").contains("requires TLS"), "{status:#}");
    let mut health = tonic_health::pb::health_client::HealthClient::new(control.channel());
    let asked = control.block_on(health.check(tonic_health::pb::HealthCheckRequest::default()));
    assert_eq!(asked.unwrap_err().code(), tonic::Code::Unauthenticated);
    // A data connection, whatever session it names.
    let mut stream = wire::dial(daemon.addr()).unwrap();
    stream.write_all(&Attach { session_id: [7; 16], client_nonce: [1; 32] }.encode()).unwrap();
    let mut answer = [0; CHALLENGE_BYTES];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(read_status(&answer), Err(AttachError::TlsRequired));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "and it is closed");
    assert!(daemon.metrics().unwrap().sum("memkv_tls_plain_refused_total", &[]) >= 5.0);
}

#[test]
fn a_server_without_a_certificate_says_so() {
    let rig = Rig::new();
    let daemon = Daemon::start().unwrap();
    let config = || rig.config(daemon.addr());
    let text = refusal(config());
    assert!(text.contains("the server does not speak TLS") && text.contains("MEMKV_TLS=off"), "{text}");
    assert_eq!(connect(config()).err().unwrap().kind(), ErrorKind::NotSupported);
    assert!(daemon.metrics().unwrap().sum("memkv_tls_handshakes_failed_total", &[]) >= 1.0);
    works(&connect(plain(daemon.addr())).unwrap());
}

#[test]
fn rdma_is_refused_where_payload_must_be_encrypted() {
    let rig = Rig::new();
    let [cert, key] = ["server.pem", "server.key"].map(|name| rig.folder.text(name));
    let files = ["--tls-cert", &cert, "--tls-key", &key, "--require-tls", "payload"];
    let (status, text) = run_server(&[&files[..], &["--rdma-mode", "require"]].concat(), &[]).unwrap();
    assert_eq!(status.code(), Some(2));
    assert!(text.contains("RDMA does not encrypt"), "{text}");
    // With auto the server starts, and has none.
    let daemon = rig.daemon(&["--require-tls", "payload"]);
    assert!(daemon.log().contains("no rdma: require_tls is payload"), "{}", daemon.log());
    works(&connect(rig.config(daemon.addr()).set("transport", "auto")).unwrap());
    // A client can demand it too.
    let text = refusal(rig.config(daemon.addr()).set("tls", "payload").set("transport", "rdma"));
    assert!(text.contains("RDMA does not encrypt"), "{text}");
    works(&connect(rig.config(daemon.addr()).set("tls", "payload").set("transport", "auto")).unwrap());
}

#[test]
fn half_a_configuration_is_refused_before_anything_starts() {
    let rig = Rig::new();
    let [cert, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| rig.folder.text(name));
    let cases: [(&[&str], &str); 8] = [
        (&["--tls-cert", &cert], "tls.cert and tls.key belong together"),
        (&["--require-tls", "true"], "there is no certificate; set tls.cert"),
        (&["--tls-cert", &cert, "--tls-key", &key, "--tls-client-auth", "require"], "set tls.client_ca"),
        (&["--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &ca], "set tls.client_auth"),
        (&["--tls-admin", "require"], "there is no certificate"),
        (
            &["--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &ca, "--tls-client-auth", "require"],
            "which shows no certificate, is taken; set require_tls",
        ),
        (&["--tls-cert", &ca, "--tls-key", &key], "do not fit together"),
        (&["--tls-cert", &key, "--tls-key", &key], "holds no certificate"),
    ];
    for (flags, expected) in cases {
        let (status, text) = run_server(&[flags, &["--listen", "127.0.0.1:0"]].concat(), &[]).unwrap();
        assert!(!status.success() && text.contains(expected), "{flags:?}: {text}");
        assert!(!text.contains("-----BEGIN"), "{text}");
    }
    let addr = "127.0.0.1:1".parse().unwrap();
    let off = refusal(rig.config(addr).set("tls", "off"));
    assert!(off.contains("certificates are configured but TLS is off"), "{off}");
    let no_ca = refusal(plain(addr).set("tls", "on"));
    assert!(no_ca.contains("set MEMKV_TLS_CA"), "{no_ca}");
    let half = refusal(rig.config(addr).set("tls_cert", rig.folder.text("client.pem")));
    assert!(half.contains("MEMKV_TLS_CERT and MEMKV_TLS_KEY belong together"), "{half}");
}

#[test]
fn half_a_handshake_holds_nothing_for_long() {
    let rig = Rig::new();
    let daemon = rig.daemon(&["--limits-handshake-time-max", "300ms"]);
    works(&connect(rig.config(daemon.addr())).unwrap());
    let before = daemon.open_files().unwrap();
    // A hello that never ends, one that is nonsense, one that is only announced, and nothing at all.
    let beginnings: [&[u8]; 4] =
        [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc], &[0x16, 3, 1, 0, 4, 9, 9, 9, 9], &[0x16, 3], &[]];
    let silent: Vec<_> = (0..40)
        .map(|at| {
            let mut stream = wire::dial(daemon.addr()).unwrap();
            stream.write_all(beginnings[at % 4]).unwrap();
            stream
        })
        .collect();
    let gone = memkv_tests::wait_for("all are closed", Duration::from_secs(20), || {
        (daemon.open_files().unwrap() <= before).then_some(())
    });
    assert!(gone.is_ok(), "{before} files before, {} now", daemon.open_files().unwrap());
    drop(silent);
    works(&connect(rig.config(daemon.addr())).unwrap());
}
