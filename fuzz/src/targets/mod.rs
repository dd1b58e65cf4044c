//! The targets: what is tried, where it begins, and how long an input may be.

#[cfg(feature = "engine")]
mod answers;
#[cfg(feature = "engine")]
mod config;
#[cfg(feature = "engine")]
mod connection;
#[cfg(feature = "engine")]
mod discovery;
mod disk;
mod files;
mod handshake;
#[cfg(feature = "engine")]
mod messages;
#[cfg(feature = "engine")]
mod recovery;
#[cfg(feature = "engine")]
mod script;
mod trace;
mod wire;

/// One thing to try.
pub struct Target {
    /// Its name on the command line and of its corpus.
    pub name: &'static str,
    /// What it tries.
    pub about: &'static str,
    /// Tries one input. Panics when an invariant breaks.
    pub run: fn(&[u8]),
    /// Inputs to begin with, made from real messages.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// The longest input, bytes.
    pub most: usize,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "frame",
        about: "frame headers: decoding, the check over the meta section, and writing them again",
        run: wire::frame,
        seeds: wire::frame_seeds,
        most: 256,
    },
    Target {
        name: "records",
        about: "the lists inside a frame: keys, wanted and offered pages, spans, page records, bitmaps, binds",
        run: wire::records,
        seeds: wire::record_seeds,
        most: 1024,
    },
    Target {
        name: "handshake",
        about: "the four steps of a data connection on both sides, keys in hex, and per-call credentials",
        run: handshake::run,
        seeds: handshake::seeds,
        most: 256,
    },
    #[cfg(feature = "engine")]
    Target {
        name: "connection",
        about: "a server's whole data connection: frames in any order, cut anywhere, over TCP's way and shared memory",
        run: connection::run,
        seeds: connection::seeds,
        most: 2048,
    },
    #[cfg(feature = "engine")]
    Target {
        name: "answers",
        about: "all that a client reads from a server that lies: replies in frames and by shared memory, pongs, limits",
        run: answers::run,
        seeds: answers::seeds,
        most: 1024,
    },
    #[cfg(feature = "engine")]
    Target {
        name: "messages",
        about: "the messages of the session and of the gRPC services, and their conversion into strict types",
        run: messages::run,
        seeds: messages::seeds,
        most: 1024,
    },
    #[cfg(feature = "engine")]
    Target {
        name: "server_config",
        about: "the daemon's configuration file",
        run: config::server,
        seeds: config::server_seeds,
        most: 4096,
    },
    #[cfg(feature = "engine")]
    Target {
        name: "client_config",
        about: "the client's configuration file, options and list of servers",
        run: config::client,
        seeds: config::client_seeds,
        most: 2048,
    },
    Target {
        name: "segment",
        about: "segments on drives: header, seal, batches and records, with right and wrong checksums",
        run: disk::segment,
        seeds: disk::segment_seeds,
        most: 32 << 10,
    },
    Target {
        name: "drive_files",
        about: "the small files beside the segments: which drives belong together, descriptions of spaces",
        run: disk::small_files,
        seeds: disk::small_seeds,
        most: 2048,
    },
    #[cfg(feature = "engine")]
    Target {
        name: "recovery",
        about: "a start of the engine over damaged drives; every page that it then serves is checked",
        run: recovery::drives,
        seeds: recovery::drive_seeds,
        most: 256,
    },
    #[cfg(feature = "engine")]
    Target {
        name: "arena",
        about: "a start over a damaged memory file; every page that it then serves is checked",
        run: recovery::arena,
        seeds: recovery::arena_seeds,
        most: 256,
    },
    Target {
        name: "credentials",
        about: "the file of tenants, their keys, rights and quotas",
        run: files::credentials,
        seeds: files::credential_seeds,
        most: 2048,
    },
    #[cfg(feature = "engine")]
    Target {
        name: "member",
        about: "records of servers in etcd",
        run: files::member,
        seeds: files::member_seeds,
        most: 512,
    },
    #[cfg(feature = "engine")]
    Target {
        name: "discovery",
        about: "answers of name servers and of etcd, which say who the servers are",
        run: discovery::run,
        seeds: discovery::seeds,
        most: 2048,
    },
    Target {
        name: "trace",
        about: "traces of requests, as the benchmarks read them",
        run: trace::run,
        seeds: trace::seeds,
        most: 1024,
    },
];

/// The target with this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
