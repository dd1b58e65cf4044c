//! Other stores, on this machine and on loopback, as subjects.
//!
//! A peer is skipped with a reason where it is absent. What a peer needs is kept in a cache folder of its own; nothing of
//! the system is changed. Their servers run as their documents advise for pages in memory: no persistence, no eviction,
//! room enough. Where a small client of ours is likely to be faster than the usual one, it is ours, so that the figures
//! are those of the server and the protocol.

pub(crate) mod install;
mod lmcache;
mod memcached;
mod process;
mod resp;
mod scripted;

use crate::subject::Subject;
use anyhow::Context as _;
use clap::ValueEnum;
use install::Cache;

/// A store that we can compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    Redis,
    Valkey,
    Memcached,
    Lmcache,
    Mooncake,
}

impl Peer {
    pub(crate) const ALL: [Self; 5] =
        [Self::Redis, Self::Valkey, Self::Memcached, Self::Lmcache, Self::Mooncake];

    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Valkey => "valkey",
            Self::Memcached => "memcached",
            Self::Lmcache => "lmcache",
            Self::Mooncake => "mooncake",
        }
    }

    /// Starts its server and connects.
    ///
    /// # Errors
    ///
    /// The reason why it cannot be measured here.
    pub(crate) fn start(self, cache: &Cache, room_bytes: u64) -> anyhow::Result<Box<dyn Subject>> {
        let started: anyhow::Result<Box<dyn Subject>> = match self {
            Self::Redis => resp::redis(cache, room_bytes),
            Self::Valkey => resp::valkey(cache, room_bytes),
            Self::Memcached => memcached::start(cache, room_bytes),
            Self::Lmcache => lmcache::start(cache),
            Self::Mooncake => scripted::mooncake(cache, room_bytes),
        };
        started.with_context(|| format!("start {}", self.name()))
    }
}
