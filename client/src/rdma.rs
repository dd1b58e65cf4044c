//! RDMA to and from the caller's registered memory, issued by the server.

use crate::link::Link;
use crate::session::Attacher;
use crate::{Error, ErrorKind};

/// The queue pair of one connection.
pub(crate) enum QueuePair {}

/// Opens a connection whose pages move by RDMA.
pub(crate) async fn attach(_attacher: &Attacher) -> Result<Box<Link>, Error> {
    Err(Error::new(ErrorKind::NotSupported, "rdma is not there in this release"))
}
