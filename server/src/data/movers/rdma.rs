//! Pages by RDMA that the server issues.

/// The queue pair of one connection.
#[derive(Debug)]
pub(crate) enum Rdma {}
