//! Clusters that change: real daemons that join, leave, restart and fail, and clients that go on meanwhile. One
//! binary, one file for each theme.
//!
//! No test judges speed. Where a time is asserted, it is a deadline that the product promises.

#![forbid(unsafe_code)]

#[cfg(test)]
mod common;
#[cfg(test)]
mod copies;
#[cfg(test)]
mod drain;
#[cfg(test)]
mod etcd;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod guarded;
#[cfg(test)]
mod leaving;
#[cfg(test)]
mod membership;
#[cfg(test)]
mod names;
#[cfg(test)]
mod recorded;
#[cfg(test)]
mod rolling;
#[cfg(test)]
mod stage;
#[cfg(test)]
mod stuck;
#[cfg(test)]
mod upgrades;
