//! Security: what the protocol document and the security page promise, against real daemons.
//!
//! One binary, tests as modules, one module for each theme.

#![deny(unsafe_code)]

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod certificates;
#[cfg(test)]
mod estate;
#[cfg(test)]
mod handshake;
#[cfg(test)]
mod http2;
#[cfg(test)]
#[path = "../ops.rs"]
mod ops;
#[cfg(test)]
mod siege;
#[cfg(test)]
mod statements;
#[cfg(test)]
mod tenants;
#[cfg(test)]
mod timing;
#[cfg(test)]
mod tls;
