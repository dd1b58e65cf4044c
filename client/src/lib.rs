//! The MemKV client: keeps pages on a cluster of servers and gets them back.
//!
//! [`Client`] is the asynchronous core, [`blocking`] the same without a runtime on the data path. A [`Space`] is a
//! client plus the set of pages it may share ([`SpaceDescription`]); all ops on pages are methods of it.
//!
//! Invariants:
//! - a page that an op reports as [`PageOutcome::Hit`] has the bytes that were put under that key in that space;
//! - no op takes longer than the configured `op_timeout`, and no op waits for a connect;
//! - a server that fails costs only its own keys: its pages are reported, the others keep their results;
//! - the caller's memory is touched only while the call runs: on the thread or task that called, and by threads that a
//!   large blocking batch starts and joins.
//!
//! Deliberately absent: retries of data ops (a miss is fine, KV can be computed again), any order between two
//! calls, and global state: every [`Client`] owns its connections and its one background thread.

#![deny(unsafe_code)]

mod address;
mod attach;
mod backoff;
pub mod blocking;
mod breaker;
mod client;
pub mod config;
mod control;
mod discovery;
mod drain;
mod drive;
mod error;
mod exchange;
mod fill;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gates;
mod grpc;
mod hedge;
mod hot;
mod link;
mod members;
mod mover;
mod ops;
mod outcome;
mod plan;
mod pool;
mod progress;
#[allow(unsafe_code, reason = "the one place where a caller's raw memory becomes slices for vectored I/O")]
mod raw;
mod rdma;
mod server;
mod session;
mod shm;
#[cfg(feature = "sim")]
pub mod sim;
mod space;
mod spin;
mod spread;
mod stats;
mod tls;
mod way;
mod wire;

pub use address::{BadAddress, DEFAULT_PORT, DEFAULT_WEIGHT, ServerAddress};
pub use client::{Client, RouteEntry, ServerState, ServerView};
pub use config::{Config, ConfigBuilder, TlsConfig, TlsMode, Transport};
pub use control::{ClearReport, ServerResult};
pub use discovery::{DiscoveryStats, MemberView, Membership};
pub use error::{Error, ErrorKind};
pub use hedge::Hedge;
pub use memkv_core::{SpaceDescription, SpaceId};
pub use memkv_discovery::{Location, Member, MemberState};
pub use memkv_proto::v1;
pub use memkv_transport::auth::AuthKey;
pub use outcome::{BatchReport, PageOutcome};
pub use raw::RawPieces;
pub use rdma::{RdmaStats, Region};
pub use space::Space;
pub use stats::{ClientStats, CopyStats, OpStats, ServerStats};
