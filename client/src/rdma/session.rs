//! What one session's server has been told of our memory, and the questions that it has not answered yet.
//!
//! A region may be named in requests once the server has said that it knows it.

use super::table::{Entry, Table};
use super::{BOUNCE_REGION, Context};
use crate::{Error, ErrorKind};
use event_listener::Event;
use memkv_proto::v1;
use memkv_rdma::Address;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::sync::{mpsc, oneshot};
use v1::client_message::Message as Said;
use v1::server_message::Message as Heard;

/// What a server has said about a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    None,
    Known,
    Refused,
}

/// RDMA of one session.
pub(crate) struct RdmaSession {
    context: Arc<Context>,
    /// The context's count of renewals before anything was told.
    renewals: u64,
    offer: v1::RdmaOffer,
    say: mpsc::Sender<v1::ClientMessage>,
    told: Mutex<BTreeMap<u32, Answer>>,
    table: RwLock<Arc<Table>>,
    asked: Mutex<HashMap<u64, oneshot::Sender<v1::RdmaConnected>>>,
    next_tag: AtomicU64,
    answered: Event,
}

impl RdmaSession {
    /// A session whose server offers RDMA.
    pub(crate) fn new(
        context: &Arc<Context>,
        offer: v1::RdmaOffer,
        say: mpsc::Sender<v1::ClientMessage>,
    ) -> Arc<Self> {
        let session = Arc::new(Self {
            context: context.clone(),
            renewals: context.renewals(),
            offer,
            say,
            told: Mutex::default(),
            table: RwLock::default(),
            asked: Mutex::default(),
            next_tag: AtomicU64::new(1),
            answered: Event::new(),
        });
        context.sessions.lock().push(Arc::downgrade(&session));
        session
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Whether a NIC was opened again since the session began. The server knows keys of its earlier life, and a region is
    /// told once in a session, so another session has to begin.
    pub(crate) fn is_outdated(&self) -> bool {
        self.renewals != self.context.renewals()
    }

    pub(super) fn offer(&self) -> &v1::RdmaOffer {
        &self.offer
    }

    /// The regions that may be named now.
    pub(crate) fn table(&self) -> Arc<Table> {
        self.table.read().clone()
    }

    /// Tells the server of regions that came and went, for as long as the session lives.
    pub(crate) async fn announce(self: Arc<Self>) {
        let mut version = self.context.version.subscribe();
        loop {
            version.borrow_and_update();
            for message in self.news() {
                if self.say.send(v1::ClientMessage { message: Some(message) }).await.is_err() {
                    return;
                }
            }
            if version.changed().await.is_err() {
                return;
            }
        }
    }

    /// What the server has not been told yet; counts as told from here on.
    fn news(&self) -> Vec<Said> {
        let known = self.context.known.lock();
        let mut told = self.told.lock();
        let mut news = Vec::new();
        told.retain(|&region, _| {
            let stays = known.regions.contains_key(&region);
            if !stays {
                news.push(Said::ForgetRegion(v1::ForgetRegion { region }));
            }
            stays
        });
        for (&id, registered) in &known.regions {
            told.entry(id).or_insert_with(|| {
                news.push(Said::RegisterRegion(registered.message(id)));
                Answer::None
            });
        }
        news
    }

    /// Takes a message of the server; false if it is about something else.
    pub(crate) fn hear(&self, message: Heard) -> bool {
        match message {
            Heard::RdmaConnected(connected) => {
                let asked = self.asked.lock().remove(&connected.tag);
                // Whoever asked may have given up.
                let _late = asked.map(|asked| asked.send(connected));
            }
            Heard::RegionRegistered(v1::RegionRegistered { region, refused }) => {
                let answer = if refused.is_empty() { Answer::Known } else { Answer::Refused };
                if answer == Answer::Refused {
                    tracing::warn!(region, refused, "a server does not take a region; its pages are copied");
                }
                // Gone if it was dropped meanwhile.
                if let Some(told) = self.told.lock().get_mut(&region) {
                    *told = answer;
                }
                self.refresh();
                self.answered.notify(usize::MAX);
                self.context.answered.notify(usize::MAX);
            }
            Heard::RegionForgotten(_) => {}
            Heard::Challenge(_) | Heard::Accepted(_) | Heard::Pong(_) | Heard::Notice(_) => return false,
        }
        true
    }

    /// Makes the table anew from what is registered and known.
    pub(super) fn refresh(&self) {
        // Held from the first look on, so that of two that do this at once the later look is what stays.
        let mut table = self.table.write();
        let known = self.context.known.lock();
        let told = self.told.lock();
        let is_known = |id: &u32| *id != BOUNCE_REGION && told.get(id) == Some(&Answer::Known);
        let entries = known.regions.iter().filter(|(id, _)| is_known(id));
        let entry = |(&id, registered): (&u32, &Arc<super::Registered>)| {
            let (start, bytes) = registered.place();
            Entry { start, bytes, id }
        };
        *table = Arc::new(Table::new(entries.map(entry).collect()));
    }

    /// Whether the server has said something about a region, or never will.
    pub(super) fn is_answered(&self, id: u32) -> bool {
        let answer = self.told.lock().get(&id).copied();
        self.say.is_closed() || answer.is_some_and(|answer| answer != Answer::None)
    }

    /// Waits until the server has answered about every region that is registered now.
    pub(super) async fn settled(&self) -> Result<(), Error> {
        let ids: Vec<u32> = self.context.known.lock().regions.keys().copied().collect();
        for id in ids {
            loop {
                let listener = self.answered.listen();
                let is_registered = self.context.known.lock().regions.contains_key(&id);
                if self.is_answered(id) || !is_registered {
                    break;
                }
                listener.await;
            }
        }
        match self.told.lock().get(&BOUNCE_REGION) {
            Some(Answer::Known) => Ok(()),
            _ => Err(Error::new(ErrorKind::Unavailable, "rdma: the server does not take the bounce buffer")),
        }
    }

    /// Asks for a queue pair that is connected to one of ours. Returns its address, and the token that binds it.
    pub(super) async fn connect(
        &self,
        own_nic: usize,
        server_nic: u32,
        address: &Address,
    ) -> Result<(Address, [u8; 16]), Error> {
        let tag = self.next_tag.fetch_add(1, Relaxed);
        let (answer, answered) = oneshot::channel();
        let _asked = Asked { session: self, tag };
        self.asked.lock().insert(tag, answer);
        let asked = v1::RdmaConnect {
            tag,
            server_nic,
            client_nic: u32::try_from(own_nic).unwrap_or(u32::MAX),
            address: Some(to_wire(address)),
            trial_region: BOUNCE_REGION,
        };
        let gone = || Error::new(ErrorKind::Unavailable, "the session's stream ended");
        let message = v1::ClientMessage { message: Some(Said::RdmaConnect(asked)) };
        self.say.send(message).await.map_err(|_| gone())?;
        let connected = answered.await.map_err(|_| gone())?;
        if !connected.refused.is_empty() {
            let text = format!("the server has no queue pair for this client: {}", connected.refused);
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        let peer = connected.address.as_ref().and_then(from_wire);
        let token = <[u8; 16]>::try_from(connected.token).ok();
        peer.zip(token).ok_or_else(|| {
            Error::new(
                ErrorKind::Protocol,
                "the server's queue pair has no address; use releases that fit together",
            )
        })
    }
}

/// Takes a question back when nobody waits for its answer any more.
struct Asked<'a> {
    session: &'a RdmaSession,
    tag: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.session.asked.lock().remove(&self.tag);
    }
}

fn to_wire(address: &Address) -> v1::RdmaAddress {
    v1::RdmaAddress {
        gid: address.gid.to_vec(),
        lid: address.lid.into(),
        queue_pair: address.qpn,
        sequence: address.psn,
        mtu_bytes: address.mtu_bytes,
        reads: address.reads.into(),
    }
}

fn from_wire(wire: &v1::RdmaAddress) -> Option<Address> {
    Some(Address {
        gid: wire.gid.as_slice().try_into().ok()?,
        lid: wire.lid.try_into().ok()?,
        qpn: wire.queue_pair,
        psn: wire.sequence,
        mtu_bytes: wire.mtu_bytes,
        reads: u8::try_from(wire.reads).unwrap_or(u8::MAX),
    })
}
