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

    /// Whether pages still go this way, as far as is known without asking the server.
    pub(crate) fn is_usable(&self) -> bool {
        match self {
            Self::None | Self::Shm(_) => true,
            Self::Rdma(pair) => pair.is_usable(),
        }
    }
}
