//! Snapshots of every table, at 80 columns, from fixed protocol messages.

use super::*;
use crate::view::storage::{
    Pin, PinShare, Pinned, Pins, Quarantined, Segment, ServerDetail, Verified, VerifiedServer,
};
use crate::view::{Answer, Finding, Pinged, Unreachable};
use memkv_proto::v1;

const STYLE: Style = Style { width: Some(80), colour: false };

fn status() -> v1::GetStatusResponse {
    v1::GetStatusResponse {
        node_id: "kv-1".into(),
        version: "0.1.0".into(),
        incarnation: 0xfeed,
        state: v1::ServerState::Serving.into(),
        uptime_ms: 187_200_000,
        now_unix_ms: 1_790_000_000_000,
        key_required: true,
        limits: Some(v1::ServerLimits {
            page_bytes_max: 64 << 20,
            batch_keys_max: 16_384,
            frame_meta_bytes_max: 9 << 20,
            session_connections_max: 64,
            request_ms_max: 30_000,
        }),
        dram: Some(v1::TierStatus {
            capacity_bytes: 64 << 30,
            used_bytes: 12 << 30,
            page_bytes: 11 << 30,
            pages: 49_152,
            classes: vec![v1::ClassStatus {
                slot_bytes: 262_144,
                slots: 65_536,
                slots_used: 49_152,
                chunks: 256,
                asked_bytes: 49_152 * 260_000,
            }],
            backing: "2MiB huge pages".into(),
            hits: 801_000,
            asked_bytes: 49_152 * 260_000,
        }),
        ops: Some(v1::OpCounters {
            get_keys: 1_000_000,
            get_hits: 931_000,
            get_bytes: 220 << 30,
            put_keys: 60_000,
            put_stored: 50_000,
            put_existing: 9_990,
            put_bytes: 12 << 30,
            exists_keys: 2_000_000,
            exists_hits: 1_500_000,
            deleted: 48,
            evicted: 800,
            put_busy: 10,
            put_shed_backlog: 4,
            ..v1::OpCounters::default()
        }),
        sessions: vec![v1::SessionStatus {
            session_id: vec![7; 16],
            client_name: "sglang scheduler on gpu-node-0001.cluster.example pid 4242".into(),
            client_version: "0.1.0".into(),
            peer: "10.0.0.17:51234".into(),
            age_ms: 3_723_000,
            connections: 8,
            sent_bytes: 220 << 30,
            received_bytes: 12 << 30,
            transport: "tcp".into(),
            ..v1::SessionStatus::default()
        }],
        session_count: 1,
        resident_bytes: 65 << 30,
        nvme: Some(nvme()),
        policy: "chain".into(),
        pinned_pages: 128,
        pinned_bytes: 32 << 20,
        pinned_bytes_max: 16 << 30,
        scrub: Some(v1::ScrubStatus {
            bytes_per_second: 16 << 20,
            pages: 65_000,
            bytes: 16 << 30,
            rounds: 1,
            permille: 250,
            quarantined: 1,
        }),
        recovery: Some(v1::RecoveryStatus {
            dram_pages: 40_000,
            nvme_pages: 1_200_000,
            nvme_segments: 1_638,
            took_ms: 2_300,
            spaces: 3,
            ..v1::RecoveryStatus::default()
        }),
        quarantined: 12,
        degraded: vec!["drive /mnt/nvme1/memkv failed: input/output error".into()],
        drain: None,
    }
}

fn nvme() -> v1::NvmeStatus {
    let drive = |path: &str, state: v1::DriveState, reason: &str| v1::DriveStatus {
        path: path.into(),
        state: state.into(),
        reason: reason.into(),
        quota_bytes: 1 << 40,
        used_bytes: 410 << 30,
        live_bytes: 300 << 30,
        live_pages: 1_200_000,
        segments: 1_640,
        direct: true,
        reads: 600_000,
        writes: 1_500_000,
        read_bytes: 150 << 30,
        written_bytes: 420 << 30,
        ..v1::DriveStatus::default()
    };
    let mut failed = drive("/mnt/nvme1/memkv", v1::DriveState::Failed, "input/output error");
    (failed.errors, failed.dropped_failed) = (3, 17);
    v1::NvmeStatus {
        fill: Some(v1::TierStatus {
            capacity_bytes: 2 << 40,
            used_bytes: 300 << 30,
            page_bytes: 300 << 30,
            pages: 1_200_000,
            hits: 130_000,
            ..v1::TierStatus::default()
        }),
        mode: "demote".into(),
        io: "io_uring".into(),
        segment_bytes: 256 << 20,
        drives: vec![drive("/mnt/nvme0/memkv", v1::DriveState::Ok, ""), failed],
        demoted: 1_500_000,
        demoted_bytes: 370 << 30,
        demote_unread: 20_000,
        demote_dropped: 17,
        promoted: 130_000,
        promoted_bytes: 32 << 30,
        read_failures: 2,
        ..v1::NvmeStatus::default()
    }
}

fn detail(server: Server) -> ServerDetail {
    let quarantined = |at: u64| {
        Quarantined::from(v1::QuarantinedPage {
            space_id: vec![0xab; 16],
            key: format!("{at}b1657ff1fc53b92dc18148a1d65dfc2d4b1fa3d677284addd200126d9069_0_8_k").into(),
            tier: "nvme".into(),
            age_ms: at * 60_000,
            reason: "the checksum did not match".into(),
        })
    };
    let segment = |number: u64, state: v1::SegmentState, live_bytes: u64| {
        Segment::from(v1::SegmentStatus {
            drive: 0,
            number,
            state: state.into(),
            bytes: 256 << 20,
            pages: 1_000,
            live_pages: 700,
            live_bytes,
        })
    };
    let segments = vec![
        segment(7, v1::SegmentState::Sealed, 30 << 20),
        segment(8, v1::SegmentState::Sealed, 250 << 20),
        segment(9, v1::SegmentState::Active, 0),
    ];
    ServerDetail { server, quarantined: (1..13).map(quarantined).collect(), segments }
}

fn servers() -> Cluster {
    let long = "a-server-with-quite-a-long-name.storage.example";
    Cluster::new(vec![
        Server::new("kv-1".into(), "10.0.0.5:9900".into(), Ok(status())),
        Server::new(long.into(), "10.0.0.6:9900".into(), Ok(v1::GetStatusResponse::default())),
        Server::new("kv-3".into(), "10.0.0.7:9900".into(), Err("connection refused".into())),
    ])
}

fn space_lists() -> Spaces {
    let sglang = [
        ("engine", "sglang"),
        ("model", "meta-llama/Llama-3.1-70B-Instruct"),
        ("tp_rank", "3"),
        ("tp_size", "8"),
        ("pp_rank", "0"),
        ("pp_size", "1"),
        ("pool", "kv"),
        ("page_bytes", "262144"),
    ];
    let part = |id: u8, fields: &[(&str, &str)], pages: u64| v1::SpaceStatus {
        space_id: vec![id; 16],
        space: Some(v1::Space {
            fields: fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        }),
        pages,
        page_bytes: pages * 262_144,
        get_keys: 2 * pages,
        get_hits: pages,
    };
    let list = |pages| v1::ListSpacesResponse {
        spaces: vec![part(0xab, &sglang, pages), part(0x11, &[("name", "default")], 3)],
    };
    Spaces::new(vec![
        ("kv-1".into(), Ok(list(24_000))),
        ("kv-2".into(), Ok(list(25_000))),
        ("kv-3".into(), Err("connection refused".into())),
    ])
}

fn page() -> Page {
    let record = v1::PageRecord { len: 262_144, checksum: 0x0123_4567_89ab_cdef, codec: 0, flags: 0 };
    let key = v1::KeyStatus {
        key: b"7f83b1657ff1fc53b92dc18148a1d65dfc2d4b1fa3d677284addd200126d9069_0_8_k".to_vec(),
        record: Some(record),
        age_ms: 93_000,
        idle_ms: 850,
        hits: 12,
        slot_bytes: 262_144,
        pins: 1,
        position: 17,
        tier: "dram+nvme".into(),
        pinned_ms: 5_400_000,
    };
    Page::new("kv-1", key)
}

/// No line may be wider than the terminal.
fn at_80_columns(text: String) -> String {
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
    }
    text
}

#[test]
fn the_cluster() {
    insta::assert_snapshot!(at_80_columns(cluster(&servers(), STYLE)));
}

#[test]
fn one_server() {
    let one = detail(servers().servers.remove(0));
    insta::assert_snapshot!(at_80_columns(server(&one, one.server.status.as_ref().unwrap(), STYLE)));
}

#[test]
fn an_empty_server() {
    let server_only = servers().servers.remove(1);
    let one = ServerDetail { server: server_only, quarantined: Vec::new(), segments: Vec::new() };
    insta::assert_snapshot!(at_80_columns(server(&one, one.server.status.as_ref().unwrap(), STYLE)));
}

#[test]
fn all_spaces() {
    insta::assert_snapshot!(at_80_columns(spaces(&space_lists(), STYLE)));
}

#[test]
fn one_space() {
    let lists = space_lists();
    insta::assert_snapshot!(at_80_columns(space(&lists.spaces[1], STYLE)));
}

#[test]
fn one_key() {
    let step = |server: &str, score, found, page, verified, error: Option<&str>| RouteStep {
        server: server.to_owned(),
        score,
        weight: if server == "kv-3" { 30 } else { 100 },
        weight_full: 100,
        why: (score > Some(90.0)).then_some("home"),
        state: if error.is_some() { "connecting" } else { "ready" },
        home: score > Some(90.0),
        asked: match server {
            "kv-1" => Some(1),
            "kv-2" => Some(2),
            _ => None,
        },
        found,
        verified,
        error: error.map(str::to_owned),
        page,
    };
    let place = KeyPlace {
        space_id: "ab".repeat(16),
        key: page().key,
        key_hex: page().key_hex,
        digest: "0123456789abcdef".into(),
        route: vec![
            step("kv-1", Some(812.345), Some(true), Some(page()), Some(true), None),
            step("kv-2", Some(97.04), Some(false), None, None, None),
            step("kv-3", Some(5.5), None, None, None, Some("connection refused")),
            step("kv-4", None, Some(false), None, None, None),
        ],
    };
    insta::assert_snapshot!(at_80_columns(key(&place, STYLE)));
}

#[test]
fn a_listing() {
    let unreachable = vec![Unreachable { server: "kv-3".into(), error: "connection refused".into() }];
    let list = Listing { space_id: "ab".repeat(16), keys: vec![page()], truncated: true, unreachable };
    insta::assert_snapshot!(at_80_columns(listing(&list, STYLE)));
}

#[test]
fn answers_of_exists() {
    let answer = |key: &str, yes| Answer { key: key.into(), key_hex: String::new(), yes };
    let both = Answers { keys: vec![answer("greeting", true), answer("farewell", false)], failed: 0 };
    insta::assert_snapshot!(answers(&both, "yes", "no"), @r"
    yes  greeting
    no   farewell
    ");
}

#[test]
fn pings_of_two_servers() {
    let pinged = |server: &str, times: Option<f64>, lost| Pinged {
        server: server.into(),
        answered: 5 - lost,
        lost,
        min_ms: times,
        median_ms: times,
        max_ms: times.map(|time| time * 2.0),
        error: None,
    };
    let both = Pings { servers: vec![pinged("kv-1", Some(0.25), 0), pinged("kv-2", None, 5)] };
    insta::assert_snapshot!(pings(&both, STYLE), @r"
    SERVER  ANSWERED  LOST      MIN   MEDIAN      MAX
    kv-1           5     0  0.25 ms  0.25 ms  0.50 ms
    kv-2           0     5        -        -        -
    ");
}

#[test]
fn a_diagnosis() {
    let finding = |level, check: &str, text: &str, fix: Option<&str>| Finding {
        level,
        check: check.into(),
        text: text.into(),
        fix: fix.map(str::to_owned),
    };
    let all = Diagnosis {
        findings: vec![
            finding("ok", "configuration", "3 servers, with a key", None),
            finding("note", "huge pages", "none are reserved", Some("sysctl vm.nr_hugepages=1024")),
            finding("problem", "server kv-3", "connection refused", Some("start memkv-server there")),
        ],
        problems: 1,
    };
    insta::assert_snapshot!(diagnosis(&all, STYLE), @r"
    ok       configuration: 3 servers, with a key
    note     huge pages: none are reserved
             fix: sysctl vm.nr_hugepages=1024
    PROBLEM  server kv-3: connection refused
             fix: start memkv-server there

    1 problem, 1 note
    ");
}

#[test]
fn pins_and_their_servers() {
    let pin = |key: &str, left_ms| {
        Pin::new("kv-1", v1::PinStatus { space_id: vec![0xab; 16], key: key.into(), bytes: 262_144, left_ms })
    };
    let share = |server: &str, pinned_bytes| PinShare {
        server: server.into(),
        pinned_bytes,
        pinned_bytes_max: 16 << 30,
    };
    let all = Pins {
        pins: vec![pin("system-prompt-0001", 7_190_000), pin("system-prompt-0002", 86_390_000)],
        servers: vec![share("kv-1", 524_288), share("kv-2", 0)],
        unreachable: Vec::new(),
    };
    insta::assert_snapshot!(at_80_columns(storage::pins(&all, STYLE)), @r"
    KEY                 SPACE       BYTES         LEFT  SERVER
    system-prompt-0001  abababab  256 KiB   1 h 59 min  kv-1
    system-prompt-0002  abababab  256 KiB  23 h 59 min  kv-1

      kv-1  512 KiB of at most 16.0 GiB
      kv-2  0 B of at most 16.0 GiB
    ");
    let pinned =
        Pinned { keys: 9, pinned: 5, missing: 3, over_quota: 1, ttl_ms: 7_200_000, ..Pinned::default() };
    insta::assert_snapshot!(storage::pinned(&pinned), @r"
    pinned 5 pages for 2 h
    not stored: 3 keys
    no room for more pins: 1 page
    ");
}

#[test]
fn a_check_of_two_servers() {
    let server = |server: &str, quarantined, error: Option<&str>| VerifiedServer {
        server: server.into(),
        dram_pages: 49_152,
        nvme_pages: 1_200_000,
        bytes: 312 << 30,
        quarantined,
        error: error.map(str::to_owned),
    };
    let both = vec![server("kv-1", 2, None), server("kv-2", 0, Some("connection refused"))];
    let verified = Verified { servers: both, quarantined: 2 };
    insta::assert_snapshot!(at_80_columns(storage::verified(&verified, STYLE)), @r"
    SERVER    DRAM       NVME    BYTES  QUARANTINED
    kv-1    49,152  1,200,000  312 GiB            2
    kv-2         -          -        -            -
    ");
}

#[test]
fn json_has_the_documented_shape() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&servers()).unwrap());
    insta::assert_snapshot!(serde_json::to_string_pretty(&space_lists()).unwrap());
    insta::assert_snapshot!(serde_json::to_string_pretty(&page()).unwrap());
}
