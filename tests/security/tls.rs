//! TLS on the one port and on the admin port: who is let in, what is refused and how that is told, certificates that
//! change, and what goes wrong on the way.

mod changes;
mod raw;
mod refusals;
mod wire;

use crate::ops;
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, ConfigBuilder, Error, SpaceDescription};
use memkv_tests::certs::{Authority, Folder};
use memkv_tests::daemon::{Daemon, KEY, Setup};
use memkv_tests::pages;
use std::net::SocketAddr;
use std::time::Duration;

/// Size of an ordinary page in these tests.
const LEN: usize = 200_000;

/// An authority, and what it has signed: `ca.pem`, `server.pem`, `client.pem` and their keys.
struct Rig {
    authority: Authority,
    folder: Folder,
}

impl Rig {
    fn new() -> Self {
        let (authority, folder) = (Authority::new("the authority").unwrap(), Folder::new().unwrap());
        let rig = Self { authority, folder };
        rig.folder.write("ca.pem", &rig.authority.pem()).unwrap();
        rig.certify_server();
        let engine = rig.authority.sign_client("engine-7", "spiffe://cluster/engine").unwrap();
        rig.folder.write_pair("client", &engine).unwrap();
        rig
    }

    /// A new certificate for the server.
    fn certify_server(&self) {
        let pair = self.authority.sign(&["127.0.0.1", "kv.test"]).unwrap();
        self.folder.write_pair("server", &pair).unwrap();
    }

    /// A daemon with the certificate, and these flags besides. Its admin port speaks both, for the harness.
    fn setup(&self, flags: &[&str]) -> Setup {
        let [cert, key] = ["server.pem", "server.key"].map(|name| self.folder.text(name));
        let mut args = vec!["--tls-cert".into(), cert, "--tls-key".into(), key];
        args.extend(["--tls-admin", "both", "--log-filter", "info,memkv_server=debug"].map(str::to_owned));
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        Setup { args, ..Setup::default() }
    }

    fn daemon(&self, flags: &[&str]) -> Daemon {
        Daemon::start_with(self.setup(flags)).unwrap()
    }

    /// The flags of a server that asks clients for certificates.
    fn client_auth(&self, mode: &'static str) -> [String; 4] {
        let ca = self.folder.text("ca.pem");
        ["--tls-client-ca".into(), ca, "--tls-client-auth".into(), mode.into()]
    }

    /// A client that speaks TLS and believes the authority.
    fn config(&self, addr: SocketAddr) -> ConfigBuilder {
        plain(addr).set("tls", "on").set("tls_ca", self.folder.text("ca.pem"))
    }

    /// The same with a certificate of its own.
    fn config_with_certificate(&self, addr: SocketAddr, name: &str) -> ConfigBuilder {
        let [cert, key] = ["pem", "key"].map(|end| self.folder.text(&format!("{name}.{end}")));
        self.config(addr).set("tls_cert", cert).set("tls_key", key)
    }
}

/// A client that speaks plain text over TCP.
fn plain(addr: SocketAddr) -> ConfigBuilder {
    let config = Config::builder().without_environment().servers(addr.to_string()).auth_key_hex(KEY);
    config
        .set("transport", "tcp")
        .op_timeout(Duration::from_secs(10))
        .connect_timeout(Duration::from_secs(10))
}

fn connect(config: ConfigBuilder) -> Result<Client, Error> {
    Client::connect(config.build()?)
}

/// Why a client is not let in.
fn refusal(config: ConfigBuilder) -> String {
    connect(config).expect_err("the client is refused").to_string()
}

fn open(client: &Client) -> Space {
    client.space(SpaceDescription::named("tls").unwrap()).unwrap()
}

/// Puts pages and reads them back.
fn works(client: &Client) {
    let space = open(client);
    let keys = pages::keys("page", 8);
    let bytes: Vec<_> = keys.iter().map(|key| pages::page(key, LEN)).collect();
    let outcomes = ops::put(&space, &keys, &bytes);
    assert!(outcomes.iter().all(|outcome| outcome.is_success()), "{outcomes:?} {:?}", client.servers());
    ops::assert_hits(&space, &keys, LEN);
    assert_eq!(ops::exists(&space, &keys), [true; 8]);
}

#[test]
fn both_planes_speak_tls_and_plain_text_on_one_port() {
    let rig = Rig::new();
    let daemon = rig.daemon(&[]);
    for transport in ["tcp", "grpc"] {
        works(&connect(rig.config(daemon.addr()).set("transport", transport)).unwrap());
        works(&connect(plain(daemon.addr()).set("transport", transport)).unwrap());
    }
    let metrics = daemon.metrics().unwrap();
    // A session and two data connections, and the session of the gRPC client.
    assert!(metrics.sum("memkv_tls_handshakes_total", &[]) >= 4.0);
    assert_eq!(metrics.sum("memkv_tls_handshakes_failed_total", &[]), 0.0);
    // Neither the name in the certificate nor an address in it matters to the pages.
    works(&connect(rig.config(daemon.addr()).set("tls_server_name", "kv.test")).unwrap());
}

#[test]
fn pages_of_every_size_come_back_whole() {
    let rig = Rig::new();
    let daemon =
        Daemon::start_with(Setup { dram: "256MiB".into(), ..rig.setup(&["--page-max", "8MiB"]) }).unwrap();
    let client = connect(rig.config(daemon.addr())).unwrap();
    let space = open(&client);
    // Around the size of a record, and more than sockets and buffers hold.
    for (round, len) in [1, 16_383, 16_384, 16_385, 65_536, 3_000_001, 8 << 20].into_iter().enumerate() {
        let keys = pages::keys(&format!("size {round}"), if len > 1 << 20 { 6 } else { 100 });
        let bytes: Vec<_> = keys.iter().map(|key| pages::page(key, len)).collect();
        let outcomes = ops::put(&space, &keys, &bytes);
        assert!(outcomes.iter().all(|outcome| outcome.is_success()), "{len}: {outcomes:?}");
        ops::assert_hits(&space, &keys, len);
    }
}

#[test]
fn clients_show_certificates() {
    let rig = Rig::new();
    let stranger = Authority::new("another authority").unwrap();
    rig.folder
        .write_pair("stranger", &stranger.sign_client("engine-7", "spiffe://cluster/engine").unwrap())
        .unwrap();
    let required = rig.client_auth("require");
    let daemon =
        rig.daemon(&[&required.each_ref().map(String::as_str)[..], &["--require-tls", "true"]].concat());
    daemon.allow("authentication failed");
    works(&connect(rig.config_with_certificate(daemon.addr(), "client")).unwrap());
    let none = refusal(rig.config(daemon.addr()));
    assert!(none.contains("requires a client certificate; set MEMKV_TLS_CERT"), "{none}");
    let wrong = refusal(rig.config_with_certificate(daemon.addr(), "stranger"));
    assert!(wrong.contains("does not trust this client's certificate"), "{wrong}");
    assert!(daemon.metrics().unwrap().sum("memkv_auth_failures_total", &[]) >= 2.0);
    let optional = rig.client_auth("optional");
    let daemon = rig.daemon(&optional.each_ref().map(String::as_str));
    daemon.allow("authentication failed");
    works(&connect(rig.config(daemon.addr())).unwrap());
    works(&connect(rig.config_with_certificate(daemon.addr(), "client")).unwrap());
    let wrong = refusal(rig.config_with_certificate(daemon.addr(), "stranger"));
    assert!(wrong.contains("does not trust this client's certificate"), "{wrong}");
}

#[test]
fn private_keys_are_in_no_log() {
    let rig = Rig::new();
    let daemon = rig.daemon(&["--log-filter", "trace"]);
    works(&connect(rig.config(daemon.addr())).unwrap());
    let key = std::fs::read_to_string(rig.folder.path("server.key")).unwrap();
    let log = daemon.log();
    assert!(log.contains("tls"));
    for line in key.lines().filter(|line| !line.starts_with("---")) {
        assert!(!log.contains(&line[..line.len().min(20)]), "a private key is in the log");
    }
}
