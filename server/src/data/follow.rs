//! A transfer's thread stays with its peer, on the processor that runs it, where processors are fewer than those who want one.
//!
//! A transfer within a host has two ends, and both copy the same bytes. On one processor they take turns, and the second copy
//! finds in its cache what the first one left there; on two, every byte crosses between their caches, and each end
//! sleeps until a processor is woken for it. So two processors carry two such transfers half as fast again when each
//! has one of them as when each has half of both, and the scheduler arranges that only by chance: it moves a thread that
//! is woken to any processor that is idle just then. When there are processors to spare, a transfer alone is faster on two.
//!
//! The kernel says which processor brought the last packet of a connection (`SO_INCOMING_CPU`), which is the peer's if the peer is on this
//! host. Only threads of ours are moved, for as long as a transfer lasts, and only to processors that they may use.

use super::wire::Wire;
use rustix::net::sockopt::socket_incoming_cpu;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Steps of a transfer between two looks at where its peer is.
const STEPS: u32 = 4;

/// How many transfers within this host are under way, and for how many processors.
#[derive(Debug)]
pub(super) struct Near {
    transfers: AtomicUsize,
    processors: usize,
    /// How many of them stay on each processor, by its number.
    staying: Box<[AtomicUsize]>,
    /// Both ends of all of them could not run at once, the last time that mattered. It stays when one of a batch's transfers
    /// ends before the others or begins after them, and goes when one was alone from its first step to its last.
    is_crowded: AtomicBool,
}

impl Near {
    /// With so many processors.
    pub(super) fn new(processors: usize) -> Self {
        let staying = std::iter::repeat_with(AtomicUsize::default).take(CpuSet::MAX_CPU).collect();
        Self { transfers: AtomicUsize::new(0), processors, staying, is_crowded: AtomicBool::new(false) }
    }

    /// A place on a processor, unless more stay there than its share.
    fn place(&self, processor: usize) -> Option<Place<'_>> {
        let staying = self.staying.get(processor)?;
        let share = self.transfers.load(Ordering::Relaxed).div_ceil(self.processors);
        let place = Place(staying, processor);
        // Taken first, and given back by the drop.
        (staying.fetch_add(1, Ordering::Relaxed) < share).then_some(place)
    }

    /// For one transfer over a connection, on the thread that does it.
    pub(super) fn follow(&self, wire: &Wire) -> Follower<'_> {
        let near = wire.is_near().is_ok_and(|near| near).then_some(self);
        if let Some(near) = near {
            near.transfers.fetch_add(1, Ordering::Relaxed);
        }
        Follower { near, steps: 0, met_others: false, pinned: None }
    }
}

/// Keeps the thread that made it where its peer is. When dropped, which must be on that thread, it may run anywhere again.
#[derive(Default)]
pub(super) struct Follower<'a> {
    /// Nothing where the peer is not on this host, or following it is not permitted.
    near: Option<&'a Near>,
    steps: u32,
    /// Whether there was a crowd at any of its steps.
    met_others: bool,
    pinned: Option<Pinned<'a>>,
}

/// The thread may run on one processor only.
struct Pinned<'a> {
    place: Place<'a>,
    /// Where it might run before.
    before: CpuSet,
}

/// A place on a processor, and its number.
struct Place<'a>(&'a AtomicUsize, usize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        // Processors of before may be gone by now; then the kernel chooses.
        sched_setaffinity(None, &self.before).ok();
    }
}

impl<'a> Follower<'a> {
    /// Before a step of the transfer.
    pub(super) fn step(&mut self, socket: BorrowedFd<'_>) {
        let Some(near) = self.near else { return };
        self.steps += 1;
        if self.steps % STEPS != 1 {
            return;
        }
        if 2 * near.transfers.load(Ordering::Relaxed) > near.processors {
            self.met_others = true;
            near.is_crowded.store(true, Ordering::Relaxed);
        }
        if !near.is_crowded.load(Ordering::Relaxed) {
            self.pinned = None;
        } else if let Ok(processor) = socket_incoming_cpu(socket) {
            self.go_to(near, processor as usize);
        }
    }

    fn go_to(&mut self, near: &'a Near, processor: usize) {
        let before = match &self.pinned {
            Some(pinned) if pinned.place.1 == processor => return,
            Some(pinned) => pinned.before,
            None => match sched_getaffinity(None) {
                Ok(before) => before,
                Err(_) => return self.give_up(),
            },
        };
        let mut only = CpuSet::new();
        let place = near.place(processor).filter(|_| before.is_set(processor));
        let Some(place) = place else {
            // The peer may be confined to processors that are not ours. Or its processor is taken: two that stay on one
            // never find that the other is idle.
            self.pinned = None;
            return;
        };
        only.set(processor);
        match sched_setaffinity(None, &only) {
            Ok(()) => match &mut self.pinned {
                Some(pinned) => pinned.place = place,
                none => *none = Some(Pinned { place, before }),
            },
            Err(_) => self.give_up(),
        }
    }

    /// A sandbox may forbid it.
    fn give_up(&mut self) {
        self.pinned = None;
        if let Some(near) = self.near.take() {
            near.transfers.fetch_sub(1, Ordering::Relaxed);
            if !self.met_others {
                near.is_crowded.store(false, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::sched_getcpu;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    fn may_run_on() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|&processor| set.is_set(processor)).collect()
    }

    /// Both ends of a connection; the second has heard from the first, which ran on this processor.
    fn pair(processor: usize) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut other = listener.accept().unwrap().0;
        let sender = std::thread::spawn(move || {
            let mut only = CpuSet::new();
            only.set(processor);
            sched_setaffinity(None, &only).unwrap();
            one.write_all(&[1]).unwrap();
            one
        });
        let one = sender.join().unwrap();
        other.read_exact(&mut [0]).unwrap();
        (one, other)
    }

    async fn wire(stream: &TcpStream) -> Wire {
        let stream = stream.try_clone().unwrap();
        stream.set_nonblocking(true).unwrap();
        Wire::Tcp(tokio::net::TcpStream::from_std(stream).unwrap())
    }

    /// Where the thread may run after the first step of a transfer, and after its end.
    fn transfer(near: &Near, wire: &Wire, socket: &TcpStream) -> [Vec<usize>; 2] {
        let mut follower = near.follow(wire);
        follower.step(socket.as_fd());
        let during = may_run_on();
        drop(follower);
        [during, may_run_on()]
    }

    #[tokio::test]
    async fn a_transfer_runs_where_its_peer_does_while_processors_are_few() {
        let before = may_run_on();
        for &processor in &before {
            let (_one, other) = pair(processor);
            let (near, wire) = (Near::new(3), wire(&other).await);
            let mut first = near.follow(&wire);
            first.step(other.as_fd());
            assert_eq!(may_run_on(), before, "one transfer of two ends has three processors");
            let second = near.follow(&wire);
            for _ in 0..STEPS {
                first.step(other.as_fd());
            }
            assert_eq!((may_run_on(), sched_getcpu()), (vec![processor], processor));
            drop((first, second));
            assert_eq!(may_run_on(), before);
        }
    }

    #[tokio::test]
    async fn who_is_alone_for_a_moment_follows_and_who_stays_alone_does_not() {
        let before = may_run_on();
        let (_one, other) = pair(before[0]);
        let (near, wire) = (Near::new(2), wire(&other).await);
        // Another one, while the first goes on.
        near.transfers.fetch_add(1, Ordering::Relaxed);
        assert_eq!(transfer(&near, &wire, &other), [before[..1].to_vec(), before.clone()]);
        near.transfers.fetch_sub(1, Ordering::Relaxed);
        assert_eq!(transfer(&near, &wire, &other)[0], before[..1], "the others may come back");
        assert_eq!(transfer(&near, &wire, &other)[0], before, "they did not");
        assert_eq!(near.transfers.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn no_processor_has_more_than_its_share() {
        let near = Near::new(2);
        near.transfers.store(2, Ordering::Relaxed);
        let first = near.place(1).unwrap();
        assert!(near.place(1).is_none() && near.place(0).is_some());
        near.transfers.store(3, Ordering::Relaxed);
        let second = near.place(1).unwrap();
        assert!(near.place(1).is_none());
        drop((first, second));
        assert!(near.place(1).is_some());
        assert!(near.place(CpuSet::MAX_CPU).is_none() && near.place(usize::MAX).is_none());
    }

    #[tokio::test]
    async fn a_peer_where_the_server_may_not_run_is_not_followed() {
        let all = may_run_on();
        let [.., last] = all[..] else { unreachable!("a thread runs somewhere") };
        let (_one, other) = pair(last);
        let (near, wire) = (Near::new(1), wire(&other).await);
        let allowed = std::thread::spawn(move || {
            let mut rest = CpuSet::new();
            all[..all.len() - 1].iter().for_each(|&processor| rest.set(processor));
            // With one processor there is no rest to be confined to.
            sched_setaffinity(None, &rest).ok();
            (may_run_on(), transfer(&near, &wire, &other))
        });
        let (before, [during, after]) = allowed.join().unwrap();
        assert_eq!((&during, &after), (&before, &before));
    }
}
