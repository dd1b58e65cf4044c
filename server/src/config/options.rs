//! The table of all options: the only list of them. File, environment, flags, help, `--print-config` and the
//! reference in `docs/configuration-server.md` all follow it.

use super::rdma::{self, RdmaMode};
use super::shm;
use super::storage::{self, Io, Numa, NvmeMode, Share};
use super::units::{parse_duration, parse_size, show_duration, show_size};
use super::values::{
    address, count, from_str, log_filter, millis32, node_id, one_of, optional, put, quoted, size32,
};
use super::{Config, HugePages, LogFormat};
use memkv_transport::auth::AuthKey;
use std::path::PathBuf;

/// One option.
#[derive(Debug)]
pub struct Opt {
    /// Its key in the file; a dot separates a section from a name.
    pub key: &'static str,
    /// Its environment variable.
    pub env: &'static str,
    /// Its flag without the dashes; none for secrets, which other users could see in the process list.
    pub flag: Option<&'static str>,
    /// What a value is, for the help.
    pub value: &'static str,
    /// What it does, for the help and the reference.
    pub help: &'static str,
    /// Reads a value; the error says what a value looks like.
    pub(crate) set: fn(&mut Config, &str) -> Result<(), String>,
    /// Writes the effective value as YAML.
    pub(crate) show: fn(&Config) -> String,
}

impl Opt {
    /// The value without any configuration, as YAML.
    #[must_use]
    pub fn default_text(&self) -> String {
        (self.show)(&Config::default())
    }
}

/// All options, those of one section together.
pub const OPTIONS: &[Opt] = &[
    Opt {
        key: "listen",
        env: "MEMKV_SERVER_LISTEN",
        flag: Some("listen"),
        value: "IP:PORT",
        help: "Address for clients: gRPC and data connections. Without a key it must be a loopback address.",
        set: |c, text| put(&mut c.listen, address(text)),
        show: |c| quoted(c.listen),
    },
    Opt {
        key: "admin_listen",
        env: "MEMKV_SERVER_ADMIN_LISTEN",
        flag: Some("admin-listen"),
        value: "IP:PORT",
        help: "Address of /metrics, /healthz, /readyz and the status page. Empty: 127.0.0.1, port of listen + 1.",
        set: |c, text| put(&mut c.admin_listen, optional(text, address)),
        show: |c| quoted(c.admin_listen.map(|a| a.to_string()).unwrap_or_default()),
    },
    Opt {
        key: "node_id",
        env: "MEMKV_SERVER_NODE_ID",
        flag: Some("node-id"),
        value: "NAME",
        help: "Stable identity of this server, 1 to 256 bytes. Keep it when the address changes. Empty: the address of listen.",
        set: |c, text| put(&mut c.node_id, optional(text, node_id)),
        show: |c| quoted(c.node_id.clone().unwrap_or_default()),
    },
    Opt {
        key: "auth_key",
        env: "MEMKV_SERVER_AUTH_KEY",
        flag: None,
        value: "64 HEX DIGITS",
        help: "Key that every client must know; make one with: openssl rand -hex 32. Empty: MEMKV_AUTH_KEY, else no key, loopback only.",
        set: |c, text| {
            put(&mut c.auth_key, optional(text, |t| AuthKey::from_hex(t).map_err(|e| e.to_string())))
        },
        show: |c| if c.auth_key.is_some() { "(set)".to_owned() } else { quoted("") },
    },
    Opt {
        key: "auth_key_file",
        env: "MEMKV_SERVER_AUTH_KEY_FILE",
        flag: Some("auth-key-file"),
        value: "PATH",
        help: "File that holds the key, read once at start. Instead of auth_key.",
        set: |c, text| put(&mut c.auth_key_file, optional(text, |t| Ok(PathBuf::from(t)))),
        show: |c| quoted(c.auth_key_file.as_ref().map(|p| p.display().to_string()).unwrap_or_default()),
    },
    Opt {
        key: "dram",
        env: "MEMKV_SERVER_DRAM",
        flag: Some("dram"),
        value: "SIZE",
        help: "Memory for pages, reserved at start.",
        set: |c, text| put(&mut c.dram_bytes, parse_size(text)),
        show: |c| quoted(show_size(c.dram_bytes)),
    },
    Opt {
        key: "page_max",
        env: "MEMKV_SERVER_PAGE_MAX",
        flag: Some("page-max"),
        value: "SIZE",
        help: "Largest page, up to 64MiB.",
        set: |c, text| put(&mut c.limits.page_bytes_max, size32(text)),
        show: |c| quoted(show_size(c.limits.page_bytes_max.into())),
    },
    Opt {
        key: "prefault",
        env: "MEMKV_SERVER_PREFAULT",
        flag: Some("prefault"),
        value: "BOOL",
        help: "Whether to touch all memory for pages at start: slower start, no page faults later, and no surprise when memory is short.",
        set: |c, text| put(&mut c.prefault, from_str(text, "true or false")),
        show: |c| c.prefault.to_string(),
    },
    Opt {
        key: "huge_pages",
        env: "MEMKV_SERVER_HUGE_PAGES",
        flag: Some("huge-pages"),
        value: "auto|off",
        help: "auto: use huge pages where the system gives them. off: ordinary pages only.",
        set: |c, text| {
            put(&mut c.huge_pages, one_of(text, &[("auto", HugePages::Auto), ("off", HugePages::Off)]))
        },
        show: |c| match c.huge_pages {
            HugePages::Auto => "auto".to_owned(),
            HugePages::Off => "\"off\"".to_owned(),
        },
    },
    Opt {
        key: "high_watermark",
        env: "MEMKV_SERVER_HIGH_WATERMARK",
        flag: Some("high-watermark"),
        value: "FRACTION",
        help: "Fill at which background eviction begins, 0 to 1.",
        set: |c, text| put(&mut c.high_watermark, from_str(text, "a fraction such as 0.997")),
        show: |c| c.high_watermark.to_string(),
    },
    Opt {
        key: "low_watermark",
        env: "MEMKV_SERVER_LOW_WATERMARK",
        flag: Some("low-watermark"),
        value: "FRACTION",
        help: "Fill at which background eviction ends, 0 to high_watermark.",
        set: |c, text| put(&mut c.low_watermark, from_str(text, "a fraction such as 0.993")),
        show: |c| c.low_watermark.to_string(),
    },
    Opt {
        key: "data_threads",
        env: "MEMKV_SERVER_DATA_THREADS",
        flag: Some("data-threads"),
        value: "COUNT",
        help: "Threads that move pages. 0: one per core.",
        set: |c, text| put(&mut c.data_threads, from_str(text, "a whole number")),
        show: |c| c.data_threads.to_string(),
    },
    Opt {
        key: "shutdown_timeout",
        env: "MEMKV_SERVER_SHUTDOWN_TIMEOUT",
        flag: Some("shutdown-timeout"),
        value: "DURATION",
        help: "How long a graceful stop waits for requests in flight.",
        set: |c, text| put(&mut c.shutdown_timeout, parse_duration(text)),
        show: |c| quoted(show_duration(c.shutdown_timeout)),
    },
    Opt {
        key: "memory.backing",
        env: "MEMKV_SERVER_MEMORY_BACKING",
        flag: Some("memory-backing"),
        value: "PATH",
        help: "Directory in tmpfs or hugetlbfs, such as /dev/shm/memkv, for a file that holds the memory for pages, so that they survive a restart of the daemon. Empty: memory of the process alone.",
        set: |c, text| put(&mut c.storage.backing, optional(text, storage::directory)),
        show: |c| quoted(c.storage.backing.as_ref().map(|p| p.display().to_string()).unwrap_or_default()),
    },
    Opt {
        key: "memory.mlock",
        env: "MEMKV_SERVER_MEMORY_MLOCK",
        flag: Some("memory-mlock"),
        value: "BOOL",
        help: "Whether to lock the memory for pages, so that it is never swapped out. Needs the right to (LimitMEMLOCK).",
        set: |c, text| put(&mut c.storage.mlock, from_str(text, "true or false")),
        show: |c| c.storage.mlock.to_string(),
    },
    Opt {
        key: "memory.numa",
        env: "MEMKV_SERVER_MEMORY_NUMA",
        flag: Some("memory-numa"),
        value: "auto|off",
        help: "auto: spread the memory for pages over the NUMA nodes, if there is more than one. off: let the system choose.",
        set: |c, text| put(&mut c.storage.numa, one_of(text, &[("auto", Numa::Auto), ("off", Numa::Off)])),
        show: |c| match c.storage.numa {
            Numa::Auto => "auto".to_owned(),
            Numa::Off => "\"off\"".to_owned(),
        },
    },
    Opt {
        key: "memory.share",
        env: "MEMKV_SERVER_MEMORY_SHARE",
        flag: Some("memory-share"),
        value: "auto|on|off",
        help: "Whether clients on the same host may map the memory for pages, to read it only. auto: where it costs no huge pages. Memory in a file (memory.backing) is never shared.",
        set: |c, text| put(&mut c.storage.share, one_of(text, &Share::NAMES)),
        show: |c| match c.storage.share {
            Share::Auto => "auto".to_owned(),
            on_or_off => quoted(on_or_off.text()),
        },
    },
    Opt {
        key: "nvme.paths",
        env: "MEMKV_SERVER_NVME_PATHS",
        flag: Some("nvme-paths"),
        value: "PATH[:SIZE],…",
        help: "Directories for pages on NVMe drives, one per drive, each with the most bytes that it may hold. Without a size: nine tenths of its file system. Empty: no NVMe tier.",
        set: |c, text| put(&mut c.storage.drives, storage::drives(text)),
        show: |c| quoted(storage::show_drives(&c.storage.drives)),
    },
    Opt {
        key: "nvme.mode",
        env: "MEMKV_SERVER_NVME_MODE",
        flag: Some("nvme-mode"),
        value: "demote|write-through",
        help: "demote: a page is written when it is evicted from DRAM. write-through: before its put is acknowledged, so that it survives a crash.",
        set: |c, text| put(&mut c.storage.nvme_mode, one_of(text, &NvmeMode::NAMES)),
        show: |c| c.storage.nvme_mode.text().to_owned(),
    },
    Opt {
        key: "nvme.io",
        env: "MEMKV_SERVER_NVME_IO",
        flag: Some("nvme-io"),
        value: "auto|uring|threads",
        help: "How drives are read and written: io_uring, or threads where it is forbidden. auto: io_uring if it works.",
        set: |c, text| put(&mut c.storage.nvme_io, one_of(text, &Io::NAMES)),
        show: |c| c.storage.nvme_io.text().to_owned(),
    },
    Opt {
        key: "nvme.sync",
        env: "MEMKV_SERVER_NVME_SYNC",
        flag: Some("nvme-sync"),
        value: "BOOL",
        help: "Whether a write counts only once the drive has been told to keep it (fdatasync), so that it survives a power failure too.",
        set: |c, text| put(&mut c.storage.nvme_sync, from_str(text, "true or false")),
        show: |c| c.storage.nvme_sync.to_string(),
    },
    Opt {
        key: "nvme.segment",
        env: "MEMKV_SERVER_NVME_SEGMENT",
        flag: Some("nvme-segment"),
        value: "SIZE",
        help: "Size of one file of the log on a drive; space is reclaimed file by file.",
        set: |c, text| put(&mut c.storage.segment_bytes, parse_size(text)),
        show: |c| quoted(show_size(c.storage.segment_bytes)),
    },
    Opt {
        key: "nvme.queue_depth",
        env: "MEMKV_SERVER_NVME_QUEUE_DEPTH",
        flag: Some("nvme-queue-depth"),
        value: "COUNT",
        help: "Most reads and writes under way at once on one drive.",
        set: |c, text| put(&mut c.storage.queue_depth, count(text)),
        show: |c| c.storage.queue_depth.to_string(),
    },
    Opt {
        key: "nvme.admit_unread",
        env: "MEMKV_SERVER_NVME_ADMIT_UNREAD",
        flag: Some("nvme-admit-unread"),
        value: "BOOL",
        help: "With demote: whether a page that was never read is written to NVMe when it is evicted. false spares the drives.",
        set: |c, text| put(&mut c.storage.admit_unread, from_str(text, "true or false")),
        show: |c| c.storage.admit_unread.to_string(),
    },
    Opt {
        key: "eviction.policy",
        env: "MEMKV_SERVER_EVICTION_POLICY",
        flag: Some("eviction-policy"),
        value: "chain|lru|s3-fifo|sieve",
        help: "Which pages go first when room is needed.",
        set: |c, text| put(&mut c.storage.policy, storage::policy(text)),
        show: |c| c.storage.policy.name().to_owned(),
    },
    Opt {
        key: "eviction.pin_share",
        env: "MEMKV_SERVER_EVICTION_PIN_SHARE",
        flag: Some("eviction-pin-share"),
        value: "FRACTION",
        help: "Most of the memory for pages that memkv-cli pin may keep from eviction, 0 to 0.9. 0: no pins.",
        set: |c, text| put(&mut c.storage.pin_share, from_str(text, "a fraction such as 0.25")),
        show: |c| c.storage.pin_share.to_string(),
    },
    Opt {
        key: "scrub.rate",
        env: "MEMKV_SERVER_SCRUB_RATE",
        flag: Some("scrub-rate"),
        value: "SIZE",
        help: "Bytes per second at which stored pages are checked against their checksums in the background. 0B: never.",
        set: |c, text| put(&mut c.storage.scrub_bytes_per_s, parse_size(text)),
        show: |c| quoted(show_size(c.storage.scrub_bytes_per_s)),
    },
    Opt {
        key: "limits.sessions_max",
        env: "MEMKV_SERVER_LIMITS_SESSIONS_MAX",
        flag: Some("limits-sessions-max"),
        value: "COUNT",
        help: "Most sessions open at once.",
        set: |c, text| put(&mut c.limits.sessions_max, count(text)),
        show: |c| c.limits.sessions_max.to_string(),
    },
    Opt {
        key: "limits.connections_max",
        env: "MEMKV_SERVER_LIMITS_CONNECTIONS_MAX",
        flag: Some("limits-connections-max"),
        value: "COUNT",
        help: "Most connections of any kind open at once on the main port.",
        set: |c, text| put(&mut c.limits.connections_max, count(text)),
        show: |c| c.limits.connections_max.to_string(),
    },
    Opt {
        key: "limits.session_connections_max",
        env: "MEMKV_SERVER_LIMITS_SESSION_CONNECTIONS_MAX",
        flag: Some("limits-session-connections-max"),
        value: "COUNT",
        help: "Most data connections of one session.",
        set: |c, text| put(&mut c.limits.session_connections_max, count(text)),
        show: |c| c.limits.session_connections_max.to_string(),
    },
    Opt {
        key: "limits.spaces_max",
        env: "MEMKV_SERVER_LIMITS_SPACES_MAX",
        flag: Some("limits-spaces-max"),
        value: "COUNT",
        help: "Most spaces the server knows.",
        set: |c, text| put(&mut c.limits.spaces_max, count(text)),
        show: |c| c.limits.spaces_max.to_string(),
    },
    Opt {
        key: "limits.batch_keys_max",
        env: "MEMKV_SERVER_LIMITS_BATCH_KEYS_MAX",
        flag: Some("limits-batch-keys-max"),
        value: "COUNT",
        help: "Most keys in one request, up to 65536.",
        set: |c, text| put(&mut c.limits.batch_keys_max, count(text)),
        show: |c| c.limits.batch_keys_max.to_string(),
    },
    Opt {
        key: "limits.request_time_max",
        env: "MEMKV_SERVER_LIMITS_REQUEST_TIME_MAX",
        flag: Some("limits-request-time-max"),
        value: "DURATION",
        help: "Longest time one request may take; a longer deadline is cut to it.",
        set: |c, text| put(&mut c.limits.request_ms_max, millis32(text)),
        show: |c| quoted(show_duration(std::time::Duration::from_millis(c.limits.request_ms_max.into()))),
    },
    Opt {
        key: "limits.stall_time_max",
        env: "MEMKV_SERVER_LIMITS_STALL_TIME_MAX",
        flag: Some("limits-stall-time-max"),
        value: "DURATION",
        help: "How long a client may read or send nothing in the middle of a request before it is dropped.",
        set: |c, text| put(&mut c.stall_timeout, parse_duration(text)),
        show: |c| quoted(show_duration(c.stall_timeout)),
    },
    Opt {
        key: "limits.handshake_time_max",
        env: "MEMKV_SERVER_LIMITS_HANDSHAKE_TIME_MAX",
        flag: Some("limits-handshake-time-max"),
        value: "DURATION",
        help: "How long a new connection or session may take to say who it is.",
        set: |c, text| put(&mut c.handshake_timeout, parse_duration(text)),
        show: |c| quoted(show_duration(c.handshake_timeout)),
    },
    Opt {
        key: "limits.ping_interval",
        env: "MEMKV_SERVER_LIMITS_PING_INTERVAL",
        flag: Some("limits-ping-interval"),
        value: "DURATION",
        help: "How often clients ping; a session ends after three intervals of silence.",
        set: |c, text| put(&mut c.ping_interval, parse_duration(text)),
        show: |c| quoted(show_duration(c.ping_interval)),
    },
    Opt {
        key: "rdma.mode",
        env: "MEMKV_SERVER_RDMA_MODE",
        flag: Some("rdma-mode"),
        value: "auto|off|require",
        help: "Whether pages may move by RDMA. auto: where there is a device that works. require: the server does not start without.",
        set: |c, text| put(&mut c.rdma.mode, one_of(text, &RdmaMode::NAMES)),
        show: |c| c.rdma.mode.text().to_owned(),
    },
    Opt {
        key: "rdma.devices",
        env: "MEMKV_SERVER_RDMA_DEVICES",
        flag: Some("rdma-devices"),
        value: "NAMES",
        help: "RDMA devices to use, separated by commas, each as mlx5_0 or, for one port of it, mlx5_0:2. Empty: all.",
        set: |c, text| put(&mut c.rdma.devices, rdma::names(text)),
        show: |c| quoted(c.rdma.devices.join(",")),
    },
    Opt {
        key: "rdma.gid_index",
        env: "MEMKV_SERVER_RDMA_GID_INDEX",
        flag: Some("rdma-gid-index"),
        value: "INDEX",
        help: "Entry of the devices' GID tables. Empty: the best one, RoCE v2 before others.",
        set: |c, text| put(&mut c.rdma.gid_index, optional(text, count)),
        show: |c| quoted(c.rdma.gid_index.map(|index| index.to_string()).unwrap_or_default()),
    },
    Opt {
        key: "rdma.queue_depth",
        env: "MEMKV_SERVER_RDMA_QUEUE_DEPTH",
        flag: Some("rdma-queue-depth"),
        value: "COUNT",
        help: "Most work requests under way at once on one queue pair, 2 to 16384, as far as the device allows.",
        set: |c, text| put(&mut c.rdma.queue_depth, count(text)),
        show: |c| c.rdma.queue_depth.to_string(),
    },
    Opt {
        key: "shm.socket",
        env: "MEMKV_SERVER_SHM_SOCKET",
        flag: Some("shm-socket"),
        value: "auto|off|PATH|@NAME",
        help: "Unix socket for clients on the same host: a path, or @NAME for an abstract one. auto: an abstract one whose name is new at every start. off: none.",
        set: |c, text| put(&mut c.shm_socket, shm::socket(text)),
        show: |c| quoted(c.shm_socket.text()),
    },
    Opt {
        key: "log.format",
        env: "MEMKV_SERVER_LOG_FORMAT",
        flag: Some("log-format"),
        value: "text|json",
        help: "Form of the log lines on standard error.",
        set: |c, text| {
            put(&mut c.log_format, one_of(text, &[("text", LogFormat::Text), ("json", LogFormat::Json)]))
        },
        show: |c| match c.log_format {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        },
    },
    Opt {
        key: "log.filter",
        env: "MEMKV_SERVER_LOG_FILTER",
        flag: Some("log-filter"),
        value: "FILTER",
        help: "What is logged: error, warn, info, debug, trace, also per module, as in \"info,memkv_server::data=debug\".",
        set: |c, text| put(&mut c.log_filter, log_filter(text)),
        show: |c| quoted(&c.log_filter),
    },
];

/// The name with the fewest edits to `wrong`.
pub(crate) fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> &'a str {
    names.min_by_key(|name| edits(wrong, name)).unwrap_or_default()
}

/// Levenshtein distance over bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_the_key() {
        for option in OPTIONS {
            let upper = option.key.to_uppercase().replace('.', "_");
            assert_eq!(option.env, format!("MEMKV_SERVER_{upper}"));
            if let Some(flag) = option.flag {
                assert_eq!(flag, option.key.replace(['.', '_'], "-"));
            }
        }
    }

    #[test]
    fn the_nearest_name_has_the_fewest_edits() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(nearest("drm", ["listen", "dram", "log.format"].into_iter()), "dram");
    }
}
