//! What operators look at: metrics, and `memkv-cli inspect`.

use crate::common::{assert_all, put, tcp_space};
use memkv_client::PageOutcome;
use memkv_tests::daemon::{Daemon, KEY, clean_command};
use memkv_tests::pages::{keys, pages};
use memkv_tests::program;

#[test]
fn every_metric_is_there_and_counts() {
    let daemon = Daemon::start().unwrap();
    let (client, space) = tcp_space(&[&daemon], "metrics");
    let all = keys("metrics", 10);
    assert_all(&put(&space, &all, &pages(&all, 1000)), PageOutcome::Stored);
    assert_all(&put(&space, &all, &pages(&all, 1000)), PageOutcome::Exists);
    crate::common::assert_hits(&space, &all, 1000);
    crate::common::exists(&space, &keys("other", 5));
    let metrics = daemon.metrics().unwrap();
    let expected = [
        ("memkv_get_keys_total", 10.0),
        ("memkv_get_hits_total", 10.0),
        ("memkv_get_bytes_total", 10_000.0),
        ("memkv_put_keys_total", 20.0),
        ("memkv_put_stored_total", 10.0),
        ("memkv_put_existing_total", 10.0),
        ("memkv_put_bytes_total", 10_000.0),
        ("memkv_put_busy_total", 0.0),
        ("memkv_exists_keys_total", 5.0),
        ("memkv_exists_hits_total", 0.0),
        ("memkv_deleted_pages_total", 0.0),
        ("memkv_evicted_pages_total", 0.0),
        ("memkv_corrupt_pages_total", 0.0),
        ("memkv_protocol_errors_total", 0.0),
        ("memkv_auth_failures_total", 0.0),
        ("memkv_sessions", 1.0),
        ("memkv_dram_pages", 10.0),
        ("memkv_dram_page_bytes", 10_000.0),
        ("memkv_ready", 1.0),
    ];
    for (name, value) in expected {
        assert!(metrics.names().contains(name), "{name} is missing");
        assert_eq!(metrics.sum(name, &[]), value, "{name}");
    }
    for name in ["memkv_dram_capacity_bytes", "memkv_dram_used_bytes", "memkv_process_resident_bytes"] {
        assert!(metrics.sum(name, &[]) > 0.0, "{name}");
    }
    assert!(metrics.sum("memkv_request_duration_seconds_count", &["op=\"get\""]) >= 1.0);
    client.close();
}

#[test]
fn inspect_shows_three_servers_as_json() {
    let mut daemons = [Daemon::start().unwrap(), Daemon::start().unwrap(), Daemon::start().unwrap()];
    let (client, space) = tcp_space(&daemons.each_ref(), "inspect");
    let all = keys("inspect", 60);
    assert_all(&put(&space, &all, &pages(&all, 4096)), PageOutcome::Stored);
    let servers: Vec<String> = daemons.iter().map(|daemon| daemon.addr().to_string()).collect();
    let inspect = || {
        let mut command = clean_command(&program::cli().unwrap());
        command.env("MEMKV_SERVERS", servers.join(",")).env("MEMKV_AUTH_KEY", KEY);
        let output = command.args(["inspect", "--json"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {text:?}, {}", String::from_utf8_lossy(&output.stderr)));
        (output.status, json.to_string())
    };
    let (status, json) = inspect();
    assert!(status.success(), "{status}: {json}");
    for server in &servers {
        assert!(json.contains(server.as_str()), "{server} is not in {json}");
    }
    // A dead server is shown, and does not hide the others.
    daemons[1].kill().unwrap();
    let (_, json) = inspect();
    for server in &servers {
        assert!(json.contains(server.as_str()), "{server} is not in {json}");
    }
    client.close();
}
