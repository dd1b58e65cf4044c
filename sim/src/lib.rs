//! Clients and servers on a simulated network, from a seed.

#![forbid(unsafe_code)]
