//! How pages move beside a connection, once a mover is bound to it.
//!
//! - [`shm`]: the client reads pages from memory it shares with the server, and the server reads pages from the
//!   client's memory;
//! - [`rdma`]: the server writes and reads the client's registered regions.
//!
//! A mover never judges a request: that is the desk's work, the same for all ways.

pub(crate) mod rdma;
pub(crate) mod shm;

/// The mover of one connection.
#[derive(Debug, Default)]
pub(crate) enum Bound {
    /// Pages move inside frames.
    #[default]
    None,
    /// Pages move through shared memory.
    Shm(shm::Shm),
    /// Pages move by RDMA.
    Rdma(Box<rdma::Queue>),
}
