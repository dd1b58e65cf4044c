//! End-to-end tests: real daemons, real sockets, faults from outside. One binary, tests as modules. What holds for
//! every transport is in the transport suite beside this.
//!
//! No test judges speed. Where a time is asserted, it is a deadline that the product promises.

#![deny(unsafe_code)]

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod capacity;
#[cfg(test)]
mod common;
#[cfg(test)]
mod configuration;
#[cfg(test)]
mod crashes;
#[cfg(test)]
mod cuts;
#[cfg(test)]
mod flips;
#[cfg(test)]
mod grpc_api;
#[cfg(test)]
mod keeping;
#[cfg(test)]
mod outages;
#[cfg(test)]
mod sessions;
#[cfg(test)]
#[allow(unsafe_code, reason = "that memory cannot be mapped writable is only seen by trying")]
mod shm;
#[cfg(test)]
mod slow_readers;
#[cfg(test)]
mod tiny_engine;
#[cfg(test)]
mod tools;
