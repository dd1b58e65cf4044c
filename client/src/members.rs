//! The servers of the cluster as this client sees them now.
//!
//! A snapshot: an op takes the present one and works with it to its end, whatever is adopted meanwhile. Routing looks
//! at `nodes` only; `servers` is where the ops go. The two have the same order.
//!
//! A page has homes: the first `replicas` nodes of its order that take new pages. A snapshot also knows the member
//! lists before this one for a while, so that a page which has not moved yet is found where it was
//! ([`Members::candidates`]).
//!
//! Invariants:
//! - `reach` begins with `servers`; after them come servers that left and are still asked;
//! - with [`Members::is_simple`], every page has one candidate, and it is its owner.
//!
//! Deliberately absent: clocks. What is too old is taken out by whoever has one.

use crate::hot::HotPages;
use crate::server::Server;
use memkv_core::route::{Node, Ranks};
use std::sync::Arc;
use tokio::time::Instant;

/// The most servers that are asked for one page.
pub(crate) const CANDIDATES_MAX: usize = 16;
/// The most earlier lists that are remembered. Weights that rise in steps make many lists; the oldest and the newest
/// ones say where a page is.
const EARLIER_MAX: usize = 4;

/// One state of the member list.
#[derive(Clone, Default)]
pub(crate) struct Members {
    /// Counts the states that this client has seen.
    pub(crate) epoch: u64,
    /// Identity and weight of each server.
    pub(crate) nodes: Vec<Node>,
    /// The servers, in the order of `nodes`.
    pub(crate) servers: Vec<Arc<Server>>,
    /// All servers that ops may go to.
    pub(crate) reach: Vec<Arc<Server>>,
    /// Which of `reach` take no new pages.
    draining: Vec<bool>,
    /// The lists before this one, the oldest first.
    earlier: Vec<Earlier>,
    /// Homes of a page.
    replicas: usize,
    /// Pages that have more homes for now.
    hot: Arc<HotPages>,
    simple: bool,
}

/// A list before the present one.
#[derive(Clone)]
struct Earlier {
    nodes: Vec<Node>,
    servers: Vec<Arc<Server>>,
    /// Where in `reach` they are.
    places: Vec<u32>,
    until: Instant,
}

/// Where a page may be, in the order in which servers are asked: places in `reach`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Candidates {
    list: [u32; CANDIDATES_MAX],
    len: u8,
    /// How many at the beginning belong to the present order.
    present: u8,
    /// Bit `i`: candidate `i` is a home, so the page should be there.
    homes: u16,
    /// Many read it: any of the present candidates may be the first.
    hot: bool,
}

impl Candidates {
    pub(crate) fn as_slice(&self) -> &[u32] {
        &self.list[..usize::from(self.len)]
    }

    /// Whether the page should be at this candidate.
    pub(crate) fn is_home(&self, candidate: usize) -> bool {
        self.homes >> candidate & 1 == 1
    }

    /// Whether the candidate has a place in the present order; any other only had one before.
    pub(crate) fn is_present(&self, candidate: usize) -> bool {
        candidate < usize::from(self.present)
    }

    fn push(&mut self, place: u32, home: bool) {
        let at = usize::from(self.len);
        if at < CANDIDATES_MAX && !self.as_slice().contains(&place) {
            self.list[at] = place;
            self.homes |= u16::from(home) << at;
            self.len += 1;
        }
    }

    /// The candidates of the present order if many read the page, so that readers should spread over them.
    pub(crate) fn hot(&self) -> Option<&[u32]> {
        self.hot.then(|| &self.list[..usize::from(self.present)])
    }

    /// Begins with another of the present candidates.
    pub(crate) fn begin_with(&mut self, by: usize) {
        let present = usize::from(self.present);
        if by == 0 || by >= present {
            return;
        }
        self.list[..present].rotate_left(by);
        // Only present candidates are homes.
        let homes = u32::from(self.homes);
        let turned = (homes >> by) | (homes << (present - by));
        self.homes = (turned & ((1 << present) - 1)) as u16;
    }
}

impl Members {
    /// The state after this one: these servers, each with its weight, and this many homes for a page. Ops still look where
    /// pages were under the present list until `until`.
    pub(crate) fn next(
        &self,
        servers: Vec<(Arc<Server>, u32)>,
        replicas: usize,
        until: Option<Instant>,
    ) -> Self {
        let nodes = servers.iter().map(|(server, weight)| Node::new(server.address.id.as_str(), *weight));
        let nodes: Vec<Node> = nodes.collect();
        let mut earlier = self.earlier.clone();
        if let Some(until) = until
            && !self.nodes.is_empty()
            && !same_routes(&self.nodes, &nodes)
        {
            let (nodes, servers) = (self.nodes.clone(), self.servers.clone());
            earlier.push(Earlier { nodes, servers, places: Vec::new(), until });
            if earlier.len() > EARLIER_MAX {
                earlier.remove(1);
            }
        }
        let mut next = Self {
            epoch: self.epoch + 1,
            nodes,
            servers: servers.into_iter().map(|(server, _)| server).collect(),
            earlier,
            replicas: replicas.max(1),
            hot: self.hot.clone(),
            ..Self::default()
        };
        next.settle();
        next
    }

    /// Works out what follows from lists and servers.
    fn settle(&mut self) {
        self.reach = self.servers.clone();
        let reach = &mut self.reach;
        for earlier in &mut self.earlier {
            let place = |server: &Arc<Server>| {
                let known = reach.iter().position(|known| known.address.id == server.address.id);
                known.unwrap_or_else(|| {
                    reach.push(server.clone());
                    reach.len() - 1
                }) as u32
            };
            earlier.places = earlier.servers.iter().map(place).collect();
        }
        self.draining = self.reach.iter().map(|server| server.is_draining()).collect();
        self.simple = self.replicas == 1
            && self.earlier.is_empty()
            && self.hot.is_empty()
            && !self.draining.contains(&true);
    }

    /// The same list without earlier ones whose time is over, unless a server of theirs is being emptied. `None` if nothing
    /// changes.
    pub(crate) fn without_old(&self, now: Instant) -> Option<Self> {
        let is_old = |earlier: &Earlier| {
            earlier.until <= now && !earlier.servers.iter().any(|server| server.is_draining())
        };
        self.earlier.iter().any(is_old).then(|| {
            let mut next = self.clone();
            next.earlier.retain(|earlier| !is_old(earlier));
            next.settle();
            next
        })
    }

    /// Whether a list is still remembered that was to be forgotten by `until`.
    pub(crate) fn keeps_old(&self, until: Instant) -> bool {
        self.earlier.iter().any(|earlier| earlier.until <= until)
    }

    /// The same list with these hot pages, and the states that servers have now.
    pub(crate) fn with_hot(&self, hot: Arc<HotPages>) -> Self {
        let mut next = Self { hot, ..self.clone() };
        next.settle();
        next
    }

    pub(crate) fn hot(&self) -> &Arc<HotPages> {
        &self.hot
    }

    /// Whether each page has one server and no other place.
    pub(crate) fn is_simple(&self) -> bool {
        self.simple
    }

    /// The server with this id, if it still has this host and port. One that left is still there for a while.
    pub(crate) fn same(&self, address: &crate::ServerAddress) -> Option<&Arc<Server>> {
        self.reach.iter().find(|server| {
            let known = &server.address;
            (&known.id, &known.host, known.port) == (&address.id, &address.host, address.port)
        })
    }

    /// Where a page may be.
    pub(crate) fn candidates(&self, digest: u64, ranks: &mut Ranks) -> Candidates {
        let mut found = Candidates::default();
        let hot = self.hot.copies(digest);
        let homes = self.replicas.max(hot.map_or(0, usize::from));
        self.walk(&self.nodes, None, digest, homes, ranks, &mut found);
        found.present = found.len;
        found.hot = hot.is_some();
        // The newest list first: most pages were where it says.
        for earlier in self.earlier.iter().rev() {
            self.walk(&earlier.nodes, Some(&earlier.places), digest, self.replicas, ranks, &mut found);
        }
        found
    }

    /// Adds the first nodes of an order, until `homes` of them take new pages.
    fn walk(
        &self,
        nodes: &[Node],
        places: Option<&[u32]>,
        digest: u64,
        homes: usize,
        ranks: &mut Ranks,
        found: &mut Candidates,
    ) {
        ranks.begin(nodes, digest);
        let mut left = homes;
        while left > 0
            && let Some(index) = ranks.next(nodes)
        {
            let place = places.map_or(index as u32, |places| places[index]);
            let takes = !self.draining[place as usize];
            left -= usize::from(takes);
            found.push(place, takes && places.is_none());
        }
    }
}

/// Whether two lists send every page to the same servers.
fn same_routes(before: &[Node], after: &[Node]) -> bool {
    before.len() == after.len()
        && before.iter().all(|old| after.iter().any(|new| (&new.id, new.weight) == (&old.id, old.weight)))
}

#[cfg(test)]
pub(crate) mod tests;
