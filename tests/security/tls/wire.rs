//! What happens to bytes on the way, and the admin port.

use super::{LEN, Rig, connect, open, works};
use crate::ops;
use memkv_client::PageOutcome;
use memkv_server::Server;
use memkv_server::config::Config;
use memkv_server::config::tls::{AdminTls, RequireTls};
use memkv_tests::{http, pages, wait_for};
use memkv_tls::rustls::pki_types::CertificateDer;
use memkv_tls::rustls::pki_types::pem::PemObject as _;
use memkv_tls::rustls::{ClientConfig, ClientConnection, RootCertStore, Stream, crypto};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Passes connections on, and flips a bit of what the server sends once in a while, for as long as it is told to.
fn flipping_proxy(target: SocketAddr, flip: &Arc<AtomicBool>, flips: &Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let (flip, flips) = (Arc::clone(flip), Arc::clone(flips));
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(target) else { return };
            let pass =
                |mut from: TcpStream, mut to: TcpStream, flip: Option<(Arc<AtomicBool>, Arc<AtomicU64>)>| {
                    std::thread::spawn(move || {
                        let mut bytes = [0; 16 << 10];
                        while let Ok(came @ 1..) = from.read(&mut bytes) {
                            // Pages only: a full buffer is no part of a handshake.
                            if let Some((flip, flips)) = &flip
                                && came > 12 << 10
                                && flip.load(Ordering::SeqCst)
                            {
                                bytes[came / 2] ^= 1;
                                flips.fetch_add(1, Ordering::SeqCst);
                            }
                            if to.write_all(&bytes[..came]).is_err() {
                                break;
                            }
                        }
                        to.shutdown(Shutdown::Write).ok();
                    });
                };
            pass(client.try_clone().unwrap(), server.try_clone().unwrap(), None);
            pass(server, client, Some((Arc::clone(&flip), Arc::clone(&flips))));
        }
    });
    addr
}

#[test]
fn a_bit_that_flips_inside_tls_is_a_miss_and_never_a_byte() {
    let rig = Rig::new();
    let daemon = rig.daemon(&[]);
    let (flip, flips) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let addr = flipping_proxy(daemon.addr(), &flip, &flips);
    let client = connect(rig.config(addr)).unwrap();
    let space = open(&client);
    let keys = pages::keys("flip", 8);
    let bytes: Vec<_> = keys.iter().map(|key| pages::page(key, LEN)).collect();
    ops::assert_all(&ops::put(&space, &keys, &bytes), PageOutcome::Stored);
    flip.store(true, Ordering::SeqCst);
    for (key, (outcome, page)) in keys.iter().zip(ops::get(&space, &keys, LEN)) {
        let whole = page == pages::page(key, LEN);
        assert!(outcome != PageOutcome::Hit || whole, "wrong bytes under {}", key.escape_ascii());
    }
    assert!(flips.load(Ordering::SeqCst) > 0, "the fault did not happen");
    flip.store(false, Ordering::SeqCst);
    let healed = wait_for("pages are hits again", Duration::from_secs(20), || {
        ops::get(&space, &keys, LEN).iter().all(|(outcome, _)| *outcome == PageOutcome::Hit).then_some(())
    });
    assert!(healed.is_ok(), "{:?}", client.servers());
    ops::assert_hits(&space, &keys, LEN);
}

/// Fetches `path` by HTTPS; the whole answer.
fn https(rig: &Rig, addr: SocketAddr, path: &str) -> String {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(rig.authority.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let mut session = ClientConnection::new(Arc::new(config), "kv.test".try_into().unwrap()).unwrap();
    let mut socket = TcpStream::connect(addr).unwrap();
    let mut stream = Stream::new(&mut session, &mut socket);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: kv.test\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Ok(_) => answer,
        // The server may leave out the farewell of TLS.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => answer,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_admin_port_speaks_tls_too() {
    let rig = Rig::new();
    let daemon = rig.daemon(&[]);
    assert!(https(&rig, daemon.admin_addr(), "/healthz").contains("200 OK"));
    let metrics = https(&rig, daemon.admin_addr(), "/metrics");
    assert!(metrics.contains("memkv_tls_certificate_expires_seconds"), "{metrics}");
    assert_eq!(
        http::get(daemon.admin_addr(), "/healthz").unwrap().0,
        200,
        "and plain text, as it was told to"
    );
    works(&connect(rig.config(daemon.addr())).unwrap());
}

#[test]
fn the_admin_port_of_a_server_that_requires_tls_refuses_plain_text() {
    let rig = Rig::new();
    let mut config =
        Config { listen: (Ipv4Addr::LOCALHOST, 0).into(), dram_bytes: 64 << 20, ..Config::default() };
    config.tls.cert = Some(rig.folder.path("server.pem"));
    config.tls.key = Some(rig.folder.path("server.key"));
    config.tls.require = RequireTls::True;
    config.tls.admin = AdminTls::Auto;
    let server = Server::start(config).unwrap();
    assert!(https(&rig, server.admin_address(), "/readyz").contains("200 OK"));
    let (code, text) = http::get(server.admin_address(), "/readyz").unwrap();
    assert_eq!(code, 426);
    assert!(text.contains("requires TLS; use https://"), "{text}");
}
