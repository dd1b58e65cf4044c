//! The MemKV daemon as a library.
//!
//! - [`config`]: file, environment and flags become one checked [`Config`];
//! - [`app`]: builds a [`Server`] from it and stops it again;
//! - `control`: gRPC services; `data`: data connections; `http`: admin HTTP; `accept`: the port they share;
//! - `tenants`: who may do what, and how much of it.
//!
//! Invariants: every bound is known and all memory for pages is reserved before the port listens; what a client
//! holds (slots, pins, places) belongs to its connection's task and goes with it.
//!
//! Deliberately absent: routing between servers. Each server owns its pages and knows no other; one that is drained is
//! told the others for that time.

#![deny(unsafe_code)]

mod accept;
mod allowance;
pub mod app;
mod background;
mod clock;
pub mod config;
mod control;
pub mod cores;
mod data;
mod door;
mod drain;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod greeting;
mod guests;
mod hot;
mod http;
mod line;
pub mod logging;
mod membership;
mod metrics;
mod near;
mod node;
mod opening;
mod random;
mod sessions;
#[cfg(feature = "sim")]
pub mod sim;
mod tenants;
mod tls;

pub use app::{Server, StartError, Stopped};
pub use config::{Config, ConfigError};
