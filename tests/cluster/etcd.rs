//! An etcd that asks who is there: inside TLS with certificates of both sides, and with users.

use crate::membership::{PATIENCE, client, keys, owners, store, wait_for_members};
use memkv_tests::certs::{Authority, Folder};
use memkv_tests::daemon::{Daemon, Setup, run_server};
use memkv_tests::etcd::{Etcd, EtcdFiles};
use memkv_tests::wait_for;

const PASSWORD: &str = "first";

/// Certificates for etcd and for whoever asks it, and an etcd inside TLS that knows the user `kv`.
fn guarded() -> (Folder, Etcd) {
    let folder = Folder::new().unwrap();
    let authority = Authority::new("the authority of etcd").unwrap();
    folder.write("ca.pem", &authority.pem()).unwrap();
    folder.write_pair("etcd", &authority.sign(&["etcd.example", "127.0.0.1"]).unwrap()).unwrap();
    folder.write_pair("own", &authority.sign_client("kv", "spiffe://example/kv").unwrap()).unwrap();
    folder.write("password", &format!("{PASSWORD}\n")).unwrap();
    let files = EtcdFiles {
        cert: folder.path("etcd.pem"),
        key: folder.path("etcd.key"),
        client_ca: folder.path("ca.pem"),
    };
    let etcd = Etcd::start_with(Some(files)).unwrap();
    etcd.require_users("kv", PASSWORD, "kv").unwrap();
    (folder, etcd)
}

/// Everything that this etcd asks for.
fn location(folder: &Folder, etcd: &Etcd) -> String {
    let text = |name| folder.text(name);
    format!(
        "{}?ttl=2&user=kv&password_file={}&ca={}&cert={}&key={}&name=etcd.example",
        etcd.tls_location("kv"),
        text("password"),
        text("ca.pem"),
        text("own.pem"),
        text("own.key"),
    )
}

fn member(location: &str, id: &str) -> Daemon {
    let args = ["--node-id", id, "--discovery", location].map(str::to_owned).to_vec();
    Daemon::start_with(Setup { args, ..Setup::default() }).unwrap()
}

#[test]
fn servers_and_clients_prove_who_they_are_and_go_on_after_a_new_password() {
    let (folder, etcd) = guarded();
    let location = location(&folder, &etcd);
    let one = member(&location, "kv-1");
    let (client, space) = client(&location, &[]);
    wait_for_members(&client, &["kv-1"]);
    store(&space, &keys(10));
    let registered = |daemon: &Daemon| daemon.metrics().unwrap().sum("memkv_registered", &[]);
    assert_eq!(registered(&one), 1.0);
    // The file first, then the password: whoever is asked to log in again reads the new one.
    folder.write("password", "second").unwrap();
    etcd.change_password(PASSWORD, "kv", "second").unwrap();
    let two = member(&location, "kv-2");
    wait_for_members(&client, &["kv-1", "kv-2"]);
    // More than two lives of a record later: it is still the first registration of the first server.
    let renewed = std::time::Instant::now() + std::time::Duration::from_secs(5);
    wait_for("records are renewed", PATIENCE, || {
        assert_eq!((registered(&one), registered(&two)), (1.0, 1.0));
        (std::time::Instant::now() > renewed).then_some(())
    })
    .unwrap();
    let metrics = one.metrics().unwrap();
    assert_eq!(metrics.sum("memkv_registrations_total", &[]), 1.0);
    assert_eq!(metrics.sum("memkv_discovery_failures_total", &[]), 0.0);
    assert!(owners(&client, &space, &keys(100)).iter().any(|owner| owner == "kv-2"));
    // Neither a password nor a key is in what is logged.
    for text in [PASSWORD, "second", "PRIVATE KEY"] {
        assert!(!one.log().lines().any(|line| line.contains(text)), "{text}");
    }
    client.close();
}

#[test]
fn who_proves_nothing_is_told_what_is_missing() {
    let (folder, etcd) = guarded();
    let whole = location(&folder, &etcd);
    let other = Authority::new("another authority").unwrap();
    folder.write("other.pem", &other.pem()).unwrap();
    folder.write("wrong", "not the password").unwrap();
    let cases = [
        (whole.replace("ca.pem", "other.pem"), "UnknownIssuer"),
        (whole.replace("name=etcd.example", "name=elsewhere.example"), "elsewhere.example"),
        (whole.replace("/password&", "/wrong&"), "authentication failed"),
        (whole.replace("/password&", "/nowhere&"), "cannot read"),
        (etcd.location("kv"), "user name is empty"),
    ];
    for (location, words) in cases {
        let (client, _) = client(&location, &[("connect_timeout", "500ms")]);
        let mut last = None;
        let told = wait_for("the client says why it has no members", PATIENCE, || {
            last = client.membership().error;
            last.as_ref().is_some_and(|error| error.contains(words)).then_some(())
        });
        assert!(told.is_ok(), "{words:?} is not in {last:?}");
        assert!(client.membership().members.is_empty());
        client.close();
    }
    // What cannot be right is an error at start.
    let without_ca = etcd.tls_location("kv");
    let (status, text) = run_server(&["--discovery", &without_ca], &[]).unwrap();
    assert!(!status.success() && text.contains("?ca=PATH"), "{text}");
}
