use super::*;
use memkv_core::route;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Servers that nobody connects to.
pub(crate) struct Cluster {
    servers: Vec<Arc<Server>>,
    // Channels live in it.
    _runtime: Runtime,
}

impl Cluster {
    pub(crate) fn new(count: usize) -> Self {
        let runtime = Runtime::new().unwrap();
        let context = runtime.enter();
        let server = |i: usize| {
            let channel = tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
            Arc::new(Server::new(format!("n{i}=127.0.0.1:{}", 1000 + i).parse().unwrap(), channel))
        };
        let servers = (0..count).map(server).collect();
        drop(context);
        Self { servers, _runtime: runtime }
    }

    pub(crate) fn members(&self, replicas: usize) -> Members {
        self.with_weights(&vec![100; self.servers.len()], replicas)
    }

    pub(crate) fn with_weights(&self, weights: &[u32], replicas: usize) -> Members {
        Members::default().next(self.list(weights), replicas, None)
    }

    /// The first servers, each with its weight.
    fn list(&self, weights: &[u32]) -> Vec<(Arc<Server>, u32)> {
        self.servers.iter().cloned().zip(weights.iter().copied()).collect()
    }
}

pub(crate) fn digests(count: u64) -> impl Iterator<Item = u64> {
    (1..=count).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn list(members: &Members, digest: u64) -> Vec<usize> {
    let candidates = members.candidates(digest, &mut Ranks::default());
    candidates.as_slice().iter().map(|&place| place as usize).collect()
}

#[test]
fn the_homes_are_the_first_of_the_order() {
    let members = Cluster::new(6).members(3);
    assert!(!members.is_simple());
    for digest in digests(200) {
        assert_eq!(list(&members, digest), route::order(&members.nodes, digest)[..3]);
    }
    let few = Cluster::new(2).members(3);
    assert!(digests(20).all(|digest| list(&few, digest).len() == 2));
}

#[test]
fn a_draining_server_is_read_from_and_the_next_one_is_home() {
    let cluster = Cluster::new(4);
    assert!(cluster.servers[2].set_draining(true) && !cluster.servers[2].set_draining(true));
    let members = cluster.members(1);
    assert!(!members.is_simple());
    let mut drained = 0;
    for digest in digests(300) {
        let order = route::order(&members.nodes, digest);
        let candidates = members.candidates(digest, &mut Ranks::default());
        if order[0] == 2 {
            drained += 1;
            assert_eq!(list(&members, digest), order[..2]);
            assert!(!candidates.is_home(0) && candidates.is_home(1));
        } else {
            assert_eq!(list(&members, digest), order[..1]);
            assert!(candidates.is_home(0));
        }
    }
    assert!(drained > 30);
}

#[test]
fn after_a_join_the_old_owner_is_asked_second_for_a_while() {
    let cluster = Cluster::new(5);
    let before = Members::default().next(cluster.list(&[100; 4]), 1, None);
    let now = Instant::now();
    let until = now + Duration::from_secs(60);
    let after = before.next(cluster.list(&[100; 5]), 1, Some(until));
    assert!(before.is_simple() && !after.is_simple());
    let mut moved = 0;
    for digest in digests(500) {
        let (old, new) = (route::owner(&before.nodes, digest), route::owner(&after.nodes, digest));
        let candidates = after.candidates(digest, &mut Ranks::default());
        if old == new {
            assert_eq!(list(&after, digest), [new.unwrap()]);
        } else {
            moved += 1;
            assert_eq!(list(&after, digest), [new.unwrap(), old.unwrap()]);
            assert!(candidates.is_present(0) && !candidates.is_present(1) && !candidates.is_home(1));
        }
    }
    assert!((60..140).contains(&moved), "a fifth of the keys: {moved}");
    assert!(after.without_old(now).is_none());
    assert!(after.without_old(until).unwrap().is_simple());
    assert!(after.keeps_old(until) && !after.without_old(until).unwrap().keeps_old(until));
}

#[test]
fn a_server_that_left_is_asked_for_a_while_and_longer_while_it_is_emptied() {
    let cluster = Cluster::new(3);
    let until = Instant::now();
    let after = cluster.members(1).next(cluster.list(&[100; 2]), 1, Some(until));
    assert_eq!((after.servers.len(), after.reach.len()), (2, 3));
    let before = cluster.members(1);
    for digest in digests(100) {
        let old = route::owner(&before.nodes, digest).unwrap();
        assert!(list(&after, digest).contains(&old));
    }
    cluster.servers[2].set_draining(true);
    assert!(after.without_old(until).is_none());
    cluster.servers[2].set_draining(false);
    assert_eq!(after.without_old(until).unwrap().reach.len(), 2);
}

#[test]
fn a_weight_that_rises_in_steps_leaves_the_first_and_the_last_lists() {
    let cluster = Cluster::new(3);
    let first = Members::default().next(cluster.list(&[100; 2]), 1, None);
    let until = Instant::now() + Duration::from_secs(60);
    let mut members = first.clone();
    for weight in (5..=100).step_by(5) {
        members = members.next(cluster.list(&[100, 100, weight]), 1, Some(until));
    }
    assert_eq!(members.earlier.len(), EARLIER_MAX);
    for digest in digests(300) {
        let old = route::owner(&first.nodes, digest).unwrap();
        assert!(list(&members, digest).contains(&old));
    }
    let same = members.next(cluster.list(&[100; 3]), 1, Some(until));
    assert_eq!(same.earlier.len(), EARLIER_MAX, "a list that routes alike is no other list");
}
