//! This server as a member of its cluster: what it registers, and the list that it sees.
//!
//! Two tasks on the control runtime: one keeps the record in etcd, one watches everybody's. The record's state
//! follows the drain's duty, so that clients give a server that is being drained no new keys.
//!
//! A server that stops leaves its record: it runs out by itself, and until then clients wait for the server to come
//! back. Only a server that was drained removes it.
//!
//! Deliberately absent: any decision that depends on etcd. A server serves whoever comes, registered or not.

use crate::clock::unix_ms;
use crate::drain::Duty;
use crate::node::Node;
use memkv_discovery::etcd::{EtcdSource, Registered, Wish, register};
use memkv_discovery::{EtcdLocation, Health, Member, MemberList, MemberState, follow};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a drained server that stops waits until its record is gone.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the server knows of the cluster, and the cluster of it.
#[derive(Debug)]
pub(crate) struct Membership {
    wish: watch::Sender<Wish>,
    registered: Arc<Registered>,
    lists: watch::Receiver<MemberList>,
    health: Arc<Health>,
}

/// What operators are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) members: u64,
    pub(crate) epoch: u64,
    pub(crate) registered: u64,
    pub(crate) registrations: u64,
    pub(crate) failures: u64,
}

/// Makes the server a member, if it is configured to be one. Others find it at `address` from now on.
pub(crate) fn join(node: &Arc<Node>, runtime: &Handle, address: SocketAddr) {
    let Some(location) = node.config.discovery.location.clone() else { return };
    let (host, port) = node.config.discovery.advertised(address);
    let member = Member {
        incarnation: node.incarnation,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Member::new(node.id.as_str(), host, port, node.config.discovery.weight)
    };
    if node.membership.set(Membership::start(runtime, location, member)).is_ok() {
        runtime.spawn(follow_duty(Arc::clone(node)));
    }
}

/// The epoch of the member list; 0 without one.
pub(crate) fn epoch(node: &Node) -> u64 {
    #[cfg(feature = "sim")]
    if node.net.get().is_some() {
        return node.epoch.load(std::sync::atomic::Ordering::Relaxed);
    }
    node.membership.get().map_or(0, |membership| membership.lists.borrow().epoch)
}

/// What operators are shown.
pub(crate) fn shown(node: &Node) -> Shown {
    let Some(membership) = node.membership.get() else { return Shown::default() };
    let list = membership.lists.borrow();
    Shown {
        members: list.members.len() as u64,
        epoch: list.epoch,
        registered: membership.registered.now().into(),
        registrations: membership.registered.times(),
        failures: membership.registered.failures() + membership.health.failures(),
    }
}

/// The server stops. If it was drained, nobody shall wait for it to come back.
pub(crate) async fn leave(node: &Node) {
    let Some(membership) = node.membership.get() else { return };
    if node.drain.duty() != Duty::Drained {
        return;
    }
    let Wish::Present(member) = membership.wish.borrow().clone() else { return };
    let absent = Wish::Absent(member);
    membership.wish.send_replace(absent.clone());
    if timeout(FAREWELL, membership.registered.wait(&absent)).await.is_err() {
        tracing::info!("the record of this server could not be removed; it runs out by itself");
    }
}

/// Writes every change of the drain's duty into the record.
async fn follow_duty(node: Arc<Node>) {
    let mut duties = node.drain.duties();
    loop {
        let state = match *duties.borrow_and_update() {
            Duty::Serving => MemberState::Serving,
            Duty::Draining => MemberState::Draining,
            Duty::Drained => MemberState::Drained,
        };
        if let Some(membership) = node.membership.get() {
            membership.wish.send_if_modified(|wish| match wish {
                Wish::Present(member) if member.state != state => {
                    member.state = state;
                    true
                }
                Wish::Present(_) | Wish::Absent(_) => false,
            });
        }
        if duties.changed().await.is_err() {
            return;
        }
    }
}

impl Membership {
    fn start(runtime: &Handle, location: EtcdLocation, member: Member) -> Self {
        let (wish, wanted) = watch::channel(Wish::Present(member));
        let (tell, lists) = watch::channel(MemberList::default());
        let (registered, health) = (Arc::new(Registered::default()), Arc::new(Health::default()));
        let watched = Arc::clone(&health);
        let source = Box::new(EtcdSource::new(location.clone()));
        runtime.spawn(async move { follow(source, tell, &watched).await });
        let noted = Arc::clone(&registered);
        runtime.spawn(async move { register(location, wanted, &noted, unix_ms).await });
        Self { wish, registered, lists, health }
    }
}
