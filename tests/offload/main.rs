//! The tiers of an engine over real daemons: what comes back is right, and what fails is a miss.
//!
//! No test judges speed. Faults happen at a call of the store or of the device that the test names, not at a time.

#![forbid(unsafe_code)]

#[cfg(test)]
mod deaths;
#[cfg(test)]
mod engine;
#[cfg(test)]
mod sharing;
