//! How pages move on one connection.

use crate::way::Way;
use crate::{rdma, shm};

/// What is bound to a connection.
pub(crate) enum Bound {
    /// Nothing: pages move inside frames.
    None,
    /// Memory shared with the server.
    Shm(shm::Shared),
    /// A queue pair.
    Rdma(rdma::QueuePair),
}

impl Bound {
    /// The way that pages take.
    pub(crate) fn way(&self) -> Way {
        match self {
            Self::None => Way::Tcp,
            Self::Shm(_) => Way::Shm,
            Self::Rdma(_) => Way::Rdma,
        }
    }
}
