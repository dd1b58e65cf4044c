//! Tiers under a radix cache: device, host, MemKV.

#![forbid(unsafe_code)]

mod device;
mod executor;
mod job;
mod jobs;
mod options;
mod progress;
mod ranks;
mod region;
mod stats;
mod store;
#[cfg(test)]
mod tests;
mod ticket;
mod tiers;
mod warm;

pub use device::{DeviceError, DevicePool};
pub use options::{Options, StopPolicy};
pub use ranks::{OneRank, Ranks, RanksLost};
pub use region::{BadRegion, PageRead, PageRegion, PageWrite};
pub use stats::Stats;
pub use store::{Found, PageKey, PageStore};
pub use ticket::{LoadTicket, NotStarted, PrefetchEnd, PrefetchTicket};
pub use tiers::{Room, SetupError, Tiers};
pub use warm::Warmup;
