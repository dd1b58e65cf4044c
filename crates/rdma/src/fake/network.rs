//! The state of the simulated network, and its rules: who may move what, and what becomes of it.
//!
//! Everything happens under one lock, so a queue pair that was removed moves nothing any more.

use super::memory::Memory;
use super::{Counts, Hold, Order};
use crate::error::{Errno, RdmaError};
use crate::info::NicInfo;
use crate::nic::{Access, Address, Completion, Work, WorkError, WorkKind};
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Bytes that one message may have.
pub(super) const MESSAGE_BYTES: u64 = 1 << 30;

#[derive(Debug)]
pub(super) struct State {
    pub(super) nics: Vec<NicState>,
    regions: HashMap<u32, Registered>,
    pairs: HashMap<u32, Pair>,
    next_name: u32,
    next_ticket: u64,
    hold: Hold,
    failures: Vec<(usize, WorkError)>,
    damage: Option<usize>,
    refusals: usize,
    counts: Counts,
}

#[derive(Debug)]
pub(super) struct NicState {
    pub(super) info: NicInfo,
    pub(super) present: bool,
    /// Counts removals: what was opened before one stays gone.
    pub(super) life: u64,
    /// How many openings exist, of all lives.
    pub(super) openings: usize,
}

#[derive(Debug)]
struct Registered {
    domain: u32,
    memory: Memory,
    access: Access,
}

#[derive(Debug)]
struct Pair {
    nic: usize,
    life: u64,
    domain: u32,
    access: Access,
    depth: usize,
    address: Address,
    stage: Stage,
    flight: VecDeque<Flight>,
    done: VecDeque<(u64, Completion)>,
    posted: u64,
    reaped: u64,
    armed: bool,
    event: Arc<OwnedFd>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Fresh,
    Ready(Address),
    Failed,
}

/// A piece of work that has not completed.
#[derive(Debug)]
struct Flight {
    /// Its place among all work of the network.
    ticket: u64,
    /// Its place among the work of its queue pair, from 1.
    number: u64,
    work: Work,
    /// Set when its bytes have moved and only the completion is held back.
    outcome: Option<Result<(), WorkError>>,
}

/// What a queue pair is made of.
pub(super) struct NewPair {
    pub(super) nic: usize,
    pub(super) life: u64,
    pub(super) domain: u32,
    pub(super) access: Access,
    pub(super) depth: u32,
    pub(super) gid: [u8; 16],
    pub(super) event: Arc<OwnedFd>,
}

impl State {
    pub(super) fn new(nics: Vec<NicInfo>) -> Self {
        let nics =
            nics.into_iter().map(|info| NicState { info, present: true, life: 0, openings: 0 }).collect();
        Self {
            nics,
            regions: HashMap::new(),
            pairs: HashMap::new(),
            next_name: 1,
            next_ticket: 0,
            hold: Hold::Nothing,
            failures: Vec::new(),
            damage: None,
            refusals: 0,
            counts: Counts::default(),
        }
    }

    /// A number that names nothing else here: a domain, a queue pair, or, twice it and one more, a region's keys.
    pub(super) fn new_name(&mut self) -> u32 {
        self.next_name += 1;
        self.next_name
    }

    pub(super) fn check_present(&self, nic: usize, life: u64) -> Result<(), RdmaError> {
        let nic = &self.nics[nic];
        if nic.present && nic.life == life {
            Ok(())
        } else {
            Err(RdmaError::Gone { nic: nic.info.name.clone() })
        }
    }

    /// Whether queue pairs of this NIC can reach others.
    pub(super) fn check_usable(&self, nic: usize, life: u64) -> Result<(), RdmaError> {
        self.check_present(nic, life)?;
        let info = &self.nics[nic].info;
        let port = &info.ports[0];
        if port.active {
            return Ok(());
        }
        Err(RdmaError::PortDown { nic: info.name.clone(), port: port.number })
    }

    pub(super) fn register(
        &mut self,
        (nic, life): (usize, u64),
        domain: u32,
        memory: Memory,
        bytes: u64,
        access: Access,
    ) -> Result<u32, RdmaError> {
        self.check_present(nic, life)?;
        let limits = self.nics[nic].info.limits;
        if bytes > limits.region_bytes {
            return Err(RdmaError::Limit {
                what: "bytes of a region",
                wanted: bytes,
                limit: limits.region_bytes,
            });
        }
        if self.refusals > 0 {
            self.refusals -= 1;
            return Err(RdmaError::Memlock { bytes, limit: 0 });
        }
        let name = self.new_name();
        self.regions.insert(name, Registered { domain, memory, access });
        Ok(name)
    }

    pub(super) fn deregister(&mut self, name: u32) {
        self.regions.remove(&name);
    }

    pub(super) fn add_pair(&mut self, new: NewPair) -> Result<Address, RdmaError> {
        self.check_usable(new.nic, new.life)?;
        let info = &self.nics[new.nic].info;
        let (limits, port) = (info.limits, &info.ports[0]);
        let wanted = u64::from(new.depth);
        if new.depth == 0 || new.depth > limits.work_requests {
            let limit = u64::from(limits.work_requests);
            return Err(RdmaError::Limit { what: "work requests", wanted, limit });
        }
        let used = self.pairs.values().filter(|pair| pair.nic == new.nic).count();
        if used >= limits.queue_pairs as usize {
            let (wanted, limit) = (used as u64 + 1, u64::from(limits.queue_pairs));
            return Err(RdmaError::Limit { what: "queue pairs", wanted, limit });
        }
        let (mtu_bytes, reads, lid) = (port.mtu_bytes, limits.reads, port.lid);
        let qpn = self.new_name();
        let address = Address { gid: new.gid, lid, qpn, psn: qpn, mtu_bytes, reads };
        let pair = Pair {
            nic: new.nic,
            life: new.life,
            domain: new.domain,
            access: new.access,
            depth: new.depth as usize,
            address,
            stage: Stage::Fresh,
            flight: VecDeque::new(),
            done: VecDeque::new(),
            posted: 0,
            reaped: 0,
            armed: false,
            event: new.event,
        };
        self.pairs.insert(qpn, pair);
        Ok(address)
    }

    pub(super) fn remove_pair(&mut self, qpn: u32) {
        self.pairs.remove(&qpn);
    }

    pub(super) fn connect(&mut self, qpn: u32, peer: &Address) -> Result<(), RdmaError> {
        let (nic, life) = (self.pair(qpn).nic, self.pair(qpn).life);
        self.check_present(nic, life)?;
        let known = |nic: &NicState| nic.info.ports[0].gids.iter().any(|gid| gid.gid == peer.gid);
        if !self.nics.iter().any(known) {
            return Err(RdmaError::System { call: "ibv_modify_qp", errno: Errno(101) });
        }
        let pair = self.pair_mut(qpn);
        if pair.stage != Stage::Fresh {
            return Err(RdmaError::NotConnected);
        }
        pair.stage = Stage::Ready(*peer);
        Ok(())
    }

    pub(super) fn post(&mut self, qpn: u32, work: &[Work]) -> Result<(), RdmaError> {
        let (nic, life) = (self.pair(qpn).nic, self.pair(qpn).life);
        self.check_present(nic, life)?;
        let pair = self.pair(qpn);
        if !matches!(pair.stage, Stage::Ready(_)) {
            return Err(RdmaError::NotConnected);
        }
        let outstanding = usize::try_from(pair.posted - pair.reaped).unwrap_or(usize::MAX);
        if outstanding.saturating_add(work.len()) > pair.depth {
            return Err(RdmaError::Full);
        }
        if let Some(long) = work.iter().find(|piece| u64::from(piece.len) > MESSAGE_BYTES) {
            let wanted = u64::from(long.len);
            return Err(RdmaError::Limit { what: "bytes of a message", wanted, limit: MESSAGE_BYTES });
        }
        self.counts.doorbells += 1;
        for piece in work {
            self.counts.posted += 1;
            self.next_ticket += 1;
            let ticket = self.next_ticket;
            let pair = self.pair_mut(qpn);
            pair.posted += 1;
            let number = pair.posted;
            pair.flight.push_back(Flight { ticket, number, work: *piece, outcome: None });
        }
        self.run(qpn);
        Ok(())
    }

    /// Carries out what is not held back.
    fn run(&mut self, qpn: u32) {
        match self.hold {
            Hold::Transfers => {}
            _ if self.is_cut_off(self.pair(qpn)) => {}
            Hold::Nothing => while self.finish_first(qpn) {},
            Hold::Completions => {
                for index in 0..self.pair(qpn).flight.len() {
                    self.move_bytes(qpn, index);
                }
            }
        }
    }

    /// Whether a port on the way of a queue pair is down.
    fn is_cut_off(&self, pair: &Pair) -> bool {
        let is_down = |pair: &Pair| !self.nics[pair.nic].info.ports[0].active;
        is_down(pair) || self.peer_of(pair).is_some_and(is_down)
    }

    /// Moves the bytes of one piece of work, if that has not happened, and if all before it succeeded.
    fn move_bytes(&mut self, qpn: u32, index: usize) {
        let pair = self.pair(qpn);
        let is_bad = |flight: &Flight| matches!(flight.outcome, Some(Err(_)));
        if pair.flight[index].outcome.is_some() || pair.flight.iter().take(index).any(is_bad) {
            return;
        }
        let work = pair.flight[index].work;
        let outcome = self.carry_out(qpn, &work);
        // The peer may be this very queue pair, and the access may have failed it: then the work is flushed already.
        if let Some(flight) = self.pair_mut(qpn).flight.get_mut(index) {
            flight.outcome = Some(outcome);
        }
    }

    /// Completes the oldest work of a queue pair. False if there is none.
    fn finish_first(&mut self, qpn: u32) -> bool {
        if self.pair(qpn).flight.is_empty() {
            return false;
        }
        self.move_bytes(qpn, 0);
        let pair = self.pair_mut(qpn);
        let Some(flight) = pair.flight.pop_front() else { return false };
        let result = flight.outcome.unwrap_or(Err(WorkError::Flushed));
        if flight.work.signaled || result.is_err() {
            pair.complete(flight.number, Completion { id: flight.work.id, result });
        }
        if result.is_err() {
            pair.fail();
        }
        true
    }

    fn carry_out(&mut self, qpn: u32, work: &Work) -> Result<(), WorkError> {
        let damaged = self.damage == Some(0);
        self.damage = self.damage.and_then(|after| after.checked_sub(1));
        if let Some(error) = self.scripted_failure() {
            return Err(error);
        }
        let pair = self.pair(qpn);
        let local = self.regions.get(&(work.local_key / 2)).filter(|region| region.domain == pair.domain);
        let local = local.filter(|_| work.local_key.is_multiple_of(2)).ok_or(WorkError::Local)?;
        let local_at = local.memory.offset_of(work.local, work.len).ok_or(WorkError::Local)?;
        let peer = self.peer_of(pair).ok_or(WorkError::RetryExceeded)?;
        let peer_qpn = peer.address.qpn;
        let Some((remote, remote_at)) = self.remote(peer, work) else {
            self.pair_mut(peer_qpn).fail();
            return Err(WorkError::RemoteAccess);
        };
        let (from, to) = match work.kind {
            WorkKind::Write => ((&local.memory, local_at), (&remote.memory, remote_at)),
            WorkKind::Read => ((&remote.memory, remote_at), (&local.memory, local_at)),
        };
        from.0.copy_to(from.1, to.0, to.1, work.len as usize);
        if damaged && work.len > 0 {
            to.0.damage(to.1);
        }
        self.counts.moved_bytes += u64::from(work.len);
        Ok(())
    }

    /// The other end, if it is connected to this one. That of a device that is gone has failed.
    fn peer_of(&self, pair: &Pair) -> Option<&Pair> {
        let Stage::Ready(address) = pair.stage else { return None };
        let peer = self.pairs.get(&address.qpn)?;
        let back = matches!(peer.stage, Stage::Ready(back) if back.qpn == pair.address.qpn);
        (back && peer.address.gid == address.gid).then_some(peer)
    }

    /// The peer's region that work names, and where in it, if the peer allows that.
    fn remote(&self, peer: &Pair, work: &Work) -> Option<(&Registered, usize)> {
        let allows = |access: Access| match work.kind {
            WorkKind::Read => access.peer_reads(),
            WorkKind::Write => access.peer_writes(),
        };
        let region =
            self.regions.get(&(work.remote_key / 2)).filter(|_| !work.remote_key.is_multiple_of(2))?;
        let allowed = allows(peer.access) && allows(region.access) && region.domain == peer.domain;
        allowed.then_some((region, region.memory.offset_of(work.remote, work.len)?))
    }

    fn scripted_failure(&mut self) -> Option<WorkError> {
        let due = self.failures.iter().position(|(after, _)| *after == 0);
        for (after, _) in &mut self.failures {
            *after = after.saturating_sub(1);
        }
        due.map(|index| self.failures.remove(index).1)
    }

    pub(super) fn poll(&mut self, qpn: u32, out: &mut Vec<Completion>) {
        let pair = self.pair_mut(qpn);
        while let Some((number, completion)) = pair.done.pop_front() {
            pair.reaped = number;
            out.push(completion);
        }
    }

    pub(super) fn arm(&mut self, qpn: u32) {
        let pair = self.pair_mut(qpn);
        // Empty when there was no event: that is what EAGAIN says, and nothing else can go wrong.
        let mut count = [0; 8];
        rustix::io::read(&pair.event, &mut count).unwrap_or(0);
        pair.armed = true;
    }

    pub(super) fn fail_pair(&mut self, qpn: u32) {
        self.pair_mut(qpn).fail();
    }

    pub(super) fn set_hold(&mut self, hold: Hold) {
        self.hold = hold;
        if hold == Hold::Nothing {
            self.deliver(usize::MAX, Order::Oldest);
        }
    }

    pub(super) fn deliver(&mut self, most: usize, order: Order) -> usize {
        for delivered in 0..most {
            let free = self.pairs.values().filter(|pair| !self.is_cut_off(pair));
            let firsts = free.filter_map(|pair| Some((pair.flight.front()?.ticket, pair)));
            let next = match order {
                Order::Oldest => firsts.min_by_key(|(ticket, _)| *ticket),
                Order::Newest => firsts.max_by_key(|(ticket, _)| *ticket),
            };
            let Some(qpn) = next.map(|(_, pair)| pair.address.qpn) else { return delivered };
            self.finish_first(qpn);
        }
        most
    }

    pub(super) fn script_failure(&mut self, after: usize, error: WorkError) {
        self.failures.push((after, error));
    }

    pub(super) fn script_damage(&mut self, after: usize) {
        self.damage = Some(after);
    }

    pub(super) fn script_refusals(&mut self, times: usize) {
        self.refusals = times;
    }

    pub(super) fn set_present(&mut self, name: &str, present: bool) {
        for index in 0..self.nics.len() {
            if self.nics[index].info.name != name {
                continue;
            }
            self.nics[index].present = present;
            self.nics[index].life += u64::from(!present);
            for pair in self.pairs.values_mut().filter(|pair| pair.nic == index && !present) {
                pair.fail();
            }
        }
    }

    pub(super) fn set_port(&mut self, name: &str, up: bool) {
        for nic in self.nics.iter_mut().filter(|nic| nic.info.name == name) {
            nic.info.ports[0].active = up;
        }
        let waiting: Vec<u32> = self.pairs.keys().copied().collect();
        waiting.into_iter().for_each(|qpn| self.run(qpn));
    }

    pub(super) fn queue_pairs_of(&self, name: &str) -> usize {
        self.pairs.values().filter(|pair| self.nics[pair.nic].info.name == name).count()
    }

    pub(super) fn openings_of(&self, name: &str) -> usize {
        self.nics.iter().filter(|nic| nic.info.name == name).map(|nic| nic.openings).sum()
    }

    pub(super) fn counts(&self) -> Counts {
        let held = self.pairs.values().map(|pair| pair.flight.len()).sum();
        Counts { regions: self.regions.len(), queue_pairs: self.pairs.len(), held, ..self.counts }
    }

    fn pair(&self, qpn: u32) -> &Pair {
        self.pairs.get(&qpn).expect("a queue pair is in the table until it is dropped")
    }

    fn pair_mut(&mut self, qpn: u32) -> &mut Pair {
        self.pairs.get_mut(&qpn).expect("a queue pair is in the table until it is dropped")
    }
}

impl Pair {
    fn complete(&mut self, number: u64, completion: Completion) {
        self.done.push_back((number, completion));
        if self.armed {
            self.armed = false;
            // Cannot fail: the counter is far from its end, because `arm` empties it.
            rustix::io::write(&self.event, &1u64.to_ne_bytes()).unwrap_or(0);
        }
    }

    /// To the error state; everything posted completes as flushed.
    fn fail(&mut self) {
        self.stage = Stage::Failed;
        while let Some(flight) = self.flight.pop_front() {
            let result = Err(flight.outcome.and_then(Result::err).unwrap_or(WorkError::Flushed));
            self.complete(flight.number, Completion { id: flight.work.id, result });
        }
    }
}
