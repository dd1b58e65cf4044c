//! Pages through memory that the server and a client on the same host share.

/// Shared memory of one connection.
#[derive(Debug)]
pub(crate) enum Shm {}
