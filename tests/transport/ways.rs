//! Whether pages really take the way that the other tests are about.

use crate::ops::{assert_all, assert_hits, put};
use crate::rig::{Rig, tests};
use memkv_client::{PageOutcome, Transport};
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::{keys, pages};
use std::fs;

tests![pages_go_through_sockets_exactly_where_they_should];

/// Bytes that the daemon has read and written through descriptors.
fn bytes_read_and_written(daemon: &Daemon) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{}/io", daemon.pid())).unwrap();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    (field("rchar:"), field("wchar:"))
}

fn pages_go_through_sockets_exactly_where_they_should(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "ways");
    let (all, len) = (keys("ways", 64), 64 << 10);
    let bytes = (all.len() * len) as u64;
    let check = |moved: u64, what: &str| {
        let right = match rig.transport {
            // Records of TLS are received by calls that are not in the kernel's sums. There is no other way for them: a client
            // that speaks TLS has no plain TCP.
            Transport::Tcp if rig.is_secure() => true,
            // What came with a header is not in the sum.
            Transport::Tcp => moved > bytes / 4 * 3,
            Transport::Shm | Transport::Rdma => moved < bytes / 4,
            // Some of the calls that gRPC makes are not in the kernel's sums.
            Transport::Grpc | Transport::Auto => true,
        };
        assert!(right, "{what} of {bytes} bytes of pages moved {moved} bytes through sockets");
    };
    let before = bytes_read_and_written(&daemon);
    assert_all(&put(&space, &all, &pages(&all, len)), PageOutcome::Stored);
    let between = bytes_read_and_written(&daemon);
    check(between.0 - before.0, "puts");
    assert_hits(&space, &all, len);
    check(bytes_read_and_written(&daemon).1 - between.1, "gets");
    client.close();
}
