//! The servers of the cluster as this client sees them now.
//!
//! A snapshot: an op takes the present one and works with it to its end, whatever is adopted meanwhile. Routing looks
//! at `nodes` only; `servers` is where the ops go. The two have the same order.

use crate::server::Server;
use memkv_core::route::Node;
use std::sync::Arc;

/// One state of the member list.
#[derive(Default)]
pub(crate) struct Members {
    /// Counts the states that this client has seen.
    pub(crate) epoch: u64,
    /// Identity and weight of each server.
    pub(crate) nodes: Vec<Node>,
    /// The servers, in the order of `nodes`.
    pub(crate) servers: Vec<Arc<Server>>,
}

impl Members {
    /// The state after this one: these servers, each with its weight.
    pub(crate) fn next(&self, servers: Vec<(Arc<Server>, u32)>) -> Self {
        let nodes = servers.iter().map(|(server, weight)| Node::new(server.address.id.as_str(), *weight));
        Self {
            epoch: self.epoch + 1,
            nodes: nodes.collect(),
            servers: servers.into_iter().map(|(server, _)| server).collect(),
        }
    }

    /// The server with this id, if it still has this host and port.
    pub(crate) fn same(&self, address: &crate::ServerAddress) -> Option<&Arc<Server>> {
        self.servers.iter().find(|server| {
            let known = &server.address;
            (&known.id, &known.host, known.port) == (&address.id, &address.host, address.port)
        })
    }
}
