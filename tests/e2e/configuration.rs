//! What a daemon and a client refuse at their start, and how they say so.

use crate::common::PATIENCE;
use memkv_client::blocking::Client;
use memkv_client::{Config, ErrorKind, Transport};
use memkv_tests::daemon::{Daemon, KEY, PATIENCE as STOP, free_port_pair, run_server};
use memkv_tests::{http, wait_for};
use std::net::TcpListener;

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn a_typo_in_the_servers_file_fails_the_check_and_names_the_right_word() {
    let config = file("listen: 127.0.0.1:9900\ndrma: 64MiB\n");
    let path = config.path().to_str().unwrap();
    let (status, text) = run_server(&["--check-config", "--config", path], &[]).unwrap();
    assert!(!status.success(), "{text}");
    assert!(text.contains("drma") && text.contains("\"dram\""), "{text}");
    let good = file("listen: 127.0.0.1:9900\ndram: 64MiB\n");
    let (status, text) =
        run_server(&["--check-config", "--config", good.path().to_str().unwrap()], &[]).unwrap();
    assert!(status.success(), "{text}");
}

#[test]
fn a_server_starts_with_an_unknown_key_and_warns() {
    let setup = memkv_tests::daemon::Setup { config: Some("drma: 1GiB\n".into()), ..Default::default() };
    let daemon = Daemon::start_with(setup).unwrap();
    assert_eq!(daemon.unexpected_log_lines().len(), 1, "{}", daemon.log());
    daemon.allow("drma");
    assert!(daemon.unexpected_log_lines().is_empty());
}

#[test]
fn values_that_make_no_sense_are_named_with_their_source() {
    let config = file("dram: 64 parsecs\n");
    let path = config.path().to_str().unwrap();
    type Texts<'a> = &'a [&'a str];
    /// Arguments, variables, and what the error has to say.
    type Case<'a> = (Texts<'a>, &'a [(&'a str, &'a str)], Texts<'a>);
    let cases: [Case; 5] = [
        (&["--config", path], &[], &["dram", "64 parsecs"]),
        (&["--dram", "lots"], &[], &["--dram", "lots"]),
        (&[], &[("MEMKV_SERVER_DRAM", "-1")], &["MEMKV_SERVER_DRAM"]),
        (&["--listen", "nowhere"], &[], &["--listen", "nowhere"]),
        (&[], &[("MEMKV_SERVER_AUTH_KEY", "abc")], &["MEMKV_SERVER_AUTH_KEY", "64 hex digits"]),
    ];
    for (args, env, words) in cases {
        let (status, text) = run_server(args, env).unwrap();
        assert!(!status.success(), "{args:?} {env:?} was accepted");
        for word in words {
            assert!(text.contains(word), "{args:?} {env:?}: {text}");
        }
    }
}

#[test]
fn no_secret_is_ever_shown() {
    let daemon = Daemon::start().unwrap();
    assert!(!daemon.log().contains(KEY), "the log shows the key");
    let (_, text) = run_server(&["--print-config"], &[("MEMKV_SERVER_AUTH_KEY", KEY)]).unwrap();
    assert!(!text.contains(&KEY[..16]), "--print-config shows the key");
    let (_, text) = run_server(&["--dram", "x"], &[("MEMKV_SERVER_AUTH_KEY", &KEY[1..])]).unwrap();
    assert!(!text.contains(&KEY[1..17]), "an error shows the key: {text}");
}

#[test]
fn without_a_key_only_loopback_is_bound() {
    let port = free_port_pair().unwrap();
    let (status, text) =
        run_server(&["--listen", &format!("0.0.0.0:{port}"), "--dram", "64MiB"], &[]).unwrap();
    assert!(!status.success(), "it ran without a key on all addresses");
    assert!(text.contains("MEMKV_SERVER_AUTH_KEY") && text.contains("127.0.0.1"), "{text}");
}

#[test]
fn a_port_in_use_is_named() {
    let port = free_port_pair().unwrap();
    for (taken, which) in [(port, "main"), (port + 1, "admin")] {
        let _listener = TcpListener::bind(("127.0.0.1", taken)).unwrap();
        let args = ["--listen", &format!("127.0.0.1:{port}"), "--dram", "64MiB"];
        let (status, text) = run_server(&args, &[("MEMKV_SERVER_AUTH_KEY", KEY)]).unwrap();
        assert!(!status.success(), "it started without its {which} port");
        assert!(text.contains(&taken.to_string()) && text.contains("in use"), "{which}: {text}");
    }
}

#[test]
fn health_and_readiness_are_told_apart() {
    let mut daemon = Daemon::start().unwrap();
    assert_eq!(http::get(daemon.admin_addr(), "/healthz").unwrap().0, 200);
    assert_eq!(http::get(daemon.admin_addr(), "/readyz").unwrap().0, 200);
    assert_eq!(http::get(daemon.admin_addr(), "/nothing").unwrap().0, 404);
    let status = daemon.stop().unwrap();
    assert!(status.success(), "{status}");
    wait_for("the ports are free", STOP, || TcpListener::bind(daemon.addr()).ok()).unwrap();
}

#[test]
fn a_client_names_what_it_cannot_read() {
    let base = || Config::builder().without_environment();
    let cases = [
        (base().servers("127.0.0.1:notaport").build(), "notaport"),
        (base().servers("host:1,,host:2*x").build(), "host:2*x"),
        (base().servers("a:1").auth_key_hex("123").build(), "64 hex digits"),
        (base().servers("a:1").set("op_timeout", "soon").build(), "soon"),
        (base().servers("a:1").set("op_timeuot", "3s").build(), "op_timeout"),
    ];
    for (config, word) in cases {
        let error = config.err().unwrap_or_else(|| panic!("accepted; expected an error about {word}"));
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(word), "{error} does not mention {word}");
    }
}

#[test]
fn a_server_that_cannot_start_says_why_once() {
    let cases = [
        (["--dram", "1KiB", "--listen", "127.0.0.1:0"], "are too few"),
        (["--tls-cert", "/no/such.pem", "--tls-key", "/no/such.key"], "cannot read /no/such.pem"),
    ];
    for (args, why) in cases {
        let (status, text) = run_server(&args, &[]).unwrap();
        assert_eq!((status.code(), text.matches(why).count()), (Some(1), 1), "{text}");
    }
}

#[test]
fn rdma_where_there_is_none_is_refused_with_its_reason_and_the_fix() {
    let config = Config::builder().without_environment().servers("127.0.0.1:9").transport(Transport::Rdma);
    // With a device there is nothing to refuse: only the server is absent, and may come later.
    let Err(error) = config.build().and_then(Client::connect) else { return };
    assert_eq!(error.kind(), ErrorKind::NotSupported, "{error}");
    assert!(error.to_string().contains("the transport is rdma, but there is none"), "{error}");
}

#[test]
fn a_cluster_that_is_not_there_yet_is_joined_later() {
    let port = free_port_pair().unwrap();
    let config = Config::builder()
        .without_environment()
        .servers(format!("127.0.0.1:{port}"))
        .auth_key_hex(KEY)
        .connect_timeout(std::time::Duration::from_millis(300))
        .build()
        .unwrap();
    let client = Client::connect(config).unwrap();
    let space = client.space(memkv_client::SpaceDescription::named("later").unwrap()).unwrap();
    let key = memkv_tests::pages::keys("later", 1);
    let page = memkv_tests::pages::pages(&key, 100);
    assert!(!crate::common::put(&space, &key, &page)[0].is_success());
    let setup = memkv_tests::daemon::Setup { port: Some(port), ..Default::default() };
    let _daemon = Daemon::start_with(setup).unwrap();
    wait_for("the put succeeds", PATIENCE, || {
        crate::common::put(&space, &key, &page)[0].is_success().then_some(())
    })
    .unwrap();
    crate::common::assert_hits(&space, &key, 100);
    client.close();
}
