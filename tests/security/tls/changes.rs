//! Certificates that change while the server runs, and those that should.

use super::{LEN, Rig, connect, open, refusal, works};
use crate::ops;
use memkv_client::PageOutcome;
use memkv_tests::certs::Authority;
use memkv_tests::daemon::Daemon;
use memkv_tests::{pages, wait_for};
use rustix::process::Signal;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const PATIENCE: Duration = Duration::from_secs(60);

fn wait_for_metric(daemon: &Daemon, name: &str, least: f64) {
    wait_for(name, PATIENCE, || (daemon.metrics().unwrap().sum(name, &[]) >= least).then_some(())).unwrap();
}

#[test]
fn a_new_certificate_is_taken_over_without_breaking_anything() {
    let rig = Rig::new();
    let daemon = rig.daemon(&[]);
    let client = connect(rig.config(daemon.addr())).unwrap();
    let space = open(&client);
    let keys = pages::keys("busy", 16);
    let bytes: Vec<_> = keys.iter().map(|key| pages::page(key, LEN)).collect();
    ops::assert_all(&ops::put(&space, &keys, &bytes), PageOutcome::Stored);
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let stopping = memkv_tests::StopAtEnd(&stop);
        let reader = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                ops::assert_hits(&space, &keys, LEN);
                rounds += 1;
            }
            rounds
        });
        for change in 1..=3 {
            rig.certify_server();
            if change == 3 {
                // Whoever does not want to wait says so.
                daemon.signal(Signal::HUP).unwrap();
            }
            wait_for_metric(&daemon, "memkv_tls_reloads_total", f64::from(change));
            works(&connect(rig.config(daemon.addr())).unwrap());
        }
        drop(stopping);
        reader.join().unwrap()
    });
    assert!(rounds > 0);
    let stats = client.stats();
    assert!(stats.servers.iter().all(|server| server.sessions == 1), "the session outlived it: {stats:?}");
}

#[test]
fn an_authority_is_replaced_in_two_steps() {
    let rig = Rig::new();
    let daemon = rig.daemon(&[]);
    let next = Authority::new("the next authority").unwrap();
    let both = format!("{}{}", rig.authority.pem(), next.pem());
    // First everybody believes both; then the server's certificate is of the next; then nobody believes the old one.
    rig.folder.write("both.pem", &both).unwrap();
    rig.folder.write("next.pem", &next.pem()).unwrap();
    let ready = || rig.config(daemon.addr()).set("tls_ca", rig.folder.text("both.pem"));
    works(&connect(ready()).unwrap());
    rig.folder.write_pair("server", &next.sign(&["127.0.0.1"]).unwrap()).unwrap();
    wait_for_metric(&daemon, "memkv_tls_reloads_total", 1.0);
    works(&connect(ready()).unwrap());
    works(&connect(rig.config(daemon.addr()).set("tls_ca", rig.folder.text("next.pem"))).unwrap());
    let late = refusal(rig.config(daemon.addr()));
    assert!(late.contains("is not from the CA in MEMKV_TLS_CA"), "{late}");
}

#[test]
fn a_client_whose_authority_is_dropped_is_not_let_in_again() {
    let rig = Rig::new();
    rig.folder.write("clients.pem", &rig.authority.pem()).unwrap();
    let clients = rig.folder.text("clients.pem");
    let flags = ["--tls-client-ca", &clients, "--tls-client-auth", "require", "--require-tls", "true"];
    let daemon = rig.daemon(&flags);
    daemon.allow("authentication failed");
    works(&connect(rig.config_with_certificate(daemon.addr(), "client")).unwrap());
    let next = Authority::new("the next authority").unwrap();
    rig.folder.write_pair("new", &next.sign_client("engine-7", "spiffe://cluster/engine").unwrap()).unwrap();
    rig.folder.write("clients.pem", &next.pem()).unwrap();
    wait_for_metric(&daemon, "memkv_tls_reloads_total", 1.0);
    works(&connect(rig.config_with_certificate(daemon.addr(), "new")).unwrap());
    let old = refusal(rig.config_with_certificate(daemon.addr(), "client"));
    assert!(old.contains("does not trust this client's certificate"), "{old}");
}

#[test]
fn files_that_cannot_be_used_change_nothing_and_are_told_once() {
    let rig = Rig::new();
    let daemon = rig.daemon(&[]);
    daemon.allow("new certificates cannot be used");
    let expires = || daemon.metrics().unwrap().sum("memkv_tls_certificate_expires_seconds", &[]);
    wait_for_metric(&daemon, "memkv_tls_certificate_expires_seconds", 1.0);
    let before = expires();
    rig.folder.write("server.pem", "not a certificate").unwrap();
    wait_for_metric(&daemon, "memkv_tls_reloads_refused_total", 1.0);
    works(&connect(rig.config(daemon.addr())).unwrap());
    assert_eq!(expires(), before);
    rig.certify_server();
    wait_for_metric(&daemon, "memkv_tls_reloads_total", 1.0);
    assert_eq!(daemon.log().matches("new certificates cannot be used").count(), 1);
    works(&connect(rig.config(daemon.addr())).unwrap());
}

#[test]
fn what_needs_an_operator_is_warned_of() {
    let rig = Rig::new();
    let soon = rig.authority.sign_with(&["127.0.0.1"], |params| {
        let week = Duration::from_secs(7 * 24 * 3600);
        params.not_before = rcgen::date_time_ymd(2025, 1, 1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + week;
    });
    rig.folder.write_pair("server", &soon.unwrap()).unwrap();
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(rig.folder.path("server.key"), open).unwrap();
    let daemon = rig.daemon(&[]);
    daemon.allow("expires soon; renew it");
    daemon.allow("can be read or written by anybody on this machine");
    let log = wait_for("both are warned of", PATIENCE, || {
        Some(daemon.log()).filter(|log| log.contains("expires soon") && log.contains("chmod 600"))
    });
    assert!(log.is_ok(), "{}", daemon.log());
    let degraded = daemon.control().unwrap().status().unwrap().degraded;
    assert!(degraded.iter().any(|why| why.contains("the TLS certificate expires in")), "{degraded:?}");
    works(&connect(rig.config(daemon.addr())).unwrap());
}
