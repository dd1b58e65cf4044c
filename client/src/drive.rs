//! The two ways to wait for a batch op's sockets: `poll(2)` on the caller's thread, or readiness in a task.
//!
//! A blocking batch with much to move divides its exchanges over a few threads, scoped to the op: one thread cannot
//! keep two connections busy. They end by the op's deadline, as it does.

use crate::PageOutcome;
use crate::breaker::Kind;
use crate::exchange::{Batch, Ended, Exchange, Step};
use crate::pool::{Lease, Taken};
use crate::server::{Reserved, Server};
use crate::spin::Spin;
use crate::stats::Shed;
use crate::wire::Wire;
use event_listener::Listener as _;
use memkv_transport::frame::Op;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::future::Future as _;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::thread::Builder;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// A server's pages of a batch are split over two connections from this many bytes on.
const SPLIT_BYTES: usize = 2 << 20;
/// A batch is moved by several threads from this many bytes on: starting one takes about 20 µs.
const THREAD_BYTES: usize = 4 << 20;
/// Sockets that are waited for without allocating.
const FEW: usize = 32;

/// How often a thread that waits for sockets also looks for connections that others gave back.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Sockets that were called ready so often in a row, without a byte on any of them, are left alone for [`REST`].
const IN_VAIN_MAX: u32 = 16;
const REST: Duration = Duration::from_millis(1);

/// A server whose connections are all lent.
pub(crate) struct Waiting {
    index: usize,
    reserved: Option<Reserved>,
}

/// Opens the exchanges for which connections are idle now. Returns the servers whose connections are all lent.
fn open(
    servers: &[Arc<Server>],
    ends: &[usize],
    batch: &mut Batch<'_>,
    exchanges: &mut Vec<Exchange>,
) -> Vec<Waiting> {
    let mut waiting = Vec::new();
    for (index, server) in servers.iter().enumerate() {
        let (from, to) = group(ends, index);
        if from == to {
            continue;
        }
        let mut reserved = None;
        if batch.op == Op::Put {
            reserved = server.reserve(batch.bytes(from, to), batch.care.store_backlog);
            if reserved.is_none() {
                shed(server, (from, to), Shed::Backlog, batch);
                continue;
            }
        }
        let place = Waiting { index, reserved };
        if let Some(place) = begin(servers, ends, place, batch, exchanges) {
            waiting.push(place);
        }
    }
    waiting
}

/// Begins the exchanges with one server, unless its connections are all lent: then the place is given back.
fn begin(
    servers: &[Arc<Server>],
    ends: &[usize],
    place: Waiting,
    batch: &mut Batch<'_>,
    exchanges: &mut Vec<Exchange>,
) -> Option<Waiting> {
    let (server, range) = (&servers[place.index], group(ends, place.index));
    match server.take(Kind::of(batch.op)) {
        Taken::Link(link) => {
            exchanges_of(Lease::new(server.clone(), link), range, place.reserved, batch, exchanges);
        }
        Taken::Busy => return Some(place),
        Taken::NotReady => shed(server, range, Shed::Refused, batch),
        Taken::SlowStores => shed(server, range, Shed::Slow, batch),
    }
    None
}

/// Begins the exchanges for which connections came back meanwhile.
fn begin_waiting(
    servers: &[Arc<Server>],
    ends: &[usize],
    waiting: &mut Vec<Waiting>,
    batch: &mut Batch<'_>,
    exchanges: &mut Vec<Exchange>,
) {
    for place in std::mem::take(waiting) {
        waiting.extend(begin(servers, ends, place, batch, exchanges));
    }
}

/// Counts the pages of places that are not even tried.
pub(crate) fn shed(server: &Server, (from, to): (usize, usize), why: Shed, batch: &mut Batch<'_>) {
    let count = (to - from) as u64;
    server.count_shed(why, count);
    batch.care.sheds.add(why, count);
    if why != Shed::Refused {
        for &page in &batch.order[from..to] {
            batch.outcomes[page as usize] = PageOutcome::Busy;
        }
    }
}

/// Where a server's pages are in the batch's order.
pub(crate) fn group(ends: &[usize], server: usize) -> (usize, usize) {
    (if server == 0 { 0 } else { ends[server - 1] }, ends[server])
}

/// One exchange, or two if there is much to move and another connection is idle.
fn exchanges_of(
    lease: Lease,
    (from, to): (usize, usize),
    reserved: Option<Reserved>,
    batch: &Batch<'_>,
    exchanges: &mut Vec<Exchange>,
) {
    let server = lease.server().clone();
    let middle = from + (to - from) / 2;
    if middle > from
        && is_large(batch, from, to)
        && let Taken::Link(link) = server.take(Kind::of(batch.op))
    {
        let second = Lease::new(server, link);
        exchanges.push(Exchange::new(batch, lease, (from, middle), reserved));
        exchanges.push(Exchange::new(batch, second, (middle, to), None));
        return;
    }
    exchanges.push(Exchange::new(batch, lease, (from, to), reserved));
}

fn is_large(batch: &Batch<'_>, from: usize, to: usize) -> bool {
    if !matches!(batch.op, Op::Get | Op::Put) {
        return false;
    }
    let mut bytes = 0;
    batch.order[from..to].iter().any(|&page| {
        bytes += batch.pieces.page_len(page as usize);
        bytes >= SPLIT_BYTES
    })
}

/// Ends all exchanges; what is unfinished has timed out. Two exchanges of one op that fail with one server count as
/// one failure of it.
fn end(batch: &mut Batch<'_>, exchanges: &mut Vec<Exchange>) {
    let kind = Kind::of(batch.op);
    let mut blamed: Option<Arc<Server>> = None;
    for exchange in exchanges.drain(..) {
        let Ended { server, permits, failure, corrupt, took } = exchange.end(batch);
        match took {
            Some(_) if failure.is_some() => server.read_cost.missed(),
            Some((bytes, time)) => server.read_cost.note(bytes, time),
            None => {}
        }
        if let Some(corrupt) = corrupt {
            server.answered(corrupt);
        }
        let Some(failure) = failure else {
            server.succeeded(kind, permits);
            continue;
        };
        // The two are neighbours in the list.
        if !blamed.as_ref().is_some_and(|blamed| Arc::ptr_eq(blamed, &server)) {
            server.failed(kind, failure);
        }
        blamed = Some(server);
    }
}

/// The pages of servers whose connections stayed lent until the deadline.
fn none_idle(ends: &[usize], waiting: Vec<Waiting>, batch: &mut Batch<'_>) {
    for Waiting { index, .. } in waiting {
        let (from, to) = group(ends, index);
        for &page in &batch.order[from..to] {
            batch.outcomes[page as usize] = PageOutcome::TimedOut;
        }
    }
}

/// Runs a whole batch on the caller's thread.
pub(crate) fn run_blocking(
    servers: &[Arc<Server>],
    ends: &[usize],
    batch: &mut Batch<'_>,
    exchanges: &mut Vec<Exchange>,
) {
    let mut waiting = open(servers, ends, batch, exchanges);
    while !waiting.is_empty() {
        // Listening comes before looking, so that nothing that comes back in between is missed.
        let listener = servers[waiting[0].index].pool.returned(Kind::of(batch.op)).listen();
        begin_waiting(servers, ends, &mut waiting, batch, exchanges);
        if Instant::now() >= batch.deadline {
            break;
        }
        if !exchanges.is_empty() {
            // One server that keeps this op waiting must not keep it from the connections of another.
            if !waiting.is_empty() && !poll_for(batch, exchanges, LOOK_AGAIN) {
                continue;
            }
            run(batch, exchanges);
            end(batch, exchanges);
        } else if let [_, others @ ..] = &waiting[..] {
            let soon = Instant::now() + LOOK_AGAIN;
            let until = if others.is_empty() { batch.deadline } else { soon.min(batch.deadline) };
            listener.wait_deadline(until.into_std());
        }
    }
    none_idle(ends, waiting, batch);
    run(batch, exchanges);
    end(batch, exchanges);
}

/// Runs the exchanges to their end or the deadline: on this thread, or on several if there is much to move.
fn run(batch: &mut Batch<'_>, exchanges: &mut [Exchange]) {
    let threads = threads(batch, exchanges);
    if threads < 2 {
        return poll_until_done(batch, exchanges);
    }
    let mut outcomes = vec![batch.outcomes.to_vec(); threads];
    let size = exchanges.len().div_ceil(threads);
    let lanes = crate::raw::lanes(batch, &mut outcomes);
    let shares: Vec<_> =
        lanes.into_iter().zip(exchanges.chunks_mut(size)).map(Some).map(Mutex::new).collect();
    let seen = AtomicU32::new(0);
    let work = |share: &Mutex<Option<(Batch<'_>, &mut [Exchange])>>| {
        let taken = share.lock().take();
        if let Some((mut lane, part)) = taken {
            poll_until_done(&mut lane, part);
            seen.fetch_max(lane.seen_len, Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for share in &shares[1..] {
            // Without a thread, the share is left for this one.
            Builder::new().name("memkv-mover".to_owned()).spawn_scoped(scope, || work(share)).ok();
        }
        shares.iter().for_each(&work);
    });
    drop(shares);
    batch.seen_len = batch.seen_len.max(seen.into_inner());
    for (outcomes, part) in outcomes.iter().zip(exchanges.chunks(size)) {
        for exchange in part {
            exchange.take_outcomes(batch, outcomes);
        }
    }
}

/// How many threads are worth their start.
fn threads(batch: &Batch<'_>, exchanges: &[Exchange]) -> usize {
    if batch.threads_max < 2 || exchanges.len() < 2 || !matches!(batch.op, Op::Get | Op::Put) {
        return 1;
    }
    let mut bytes = 0;
    let large = batch.order.iter().any(|&page| {
        bytes += batch.pieces.page_len(page as usize);
        bytes >= THREAD_BYTES
    });
    if !large {
        return 1;
    }
    batch.threads_max.min(exchanges.len())
}

/// Advances the exchanges until all are done or the deadline has passed.
fn poll_until_done(batch: &mut Batch<'_>, exchanges: &mut [Exchange]) {
    poll_until(batch, exchanges, batch.deadline);
}

/// Advances the exchanges for a while; whether all are done.
fn poll_for(batch: &mut Batch<'_>, exchanges: &mut [Exchange], time: Duration) -> bool {
    let until = (Instant::now() + time).min(batch.deadline);
    poll_until(batch, exchanges, until)
}

/// When one of the exchanges is to be given up, at the latest at `until`.
fn next_expiry(exchanges: &[Exchange], until: Instant) -> Instant {
    exchanges.iter().filter_map(Exchange::until).fold(until, Instant::min)
}

/// Advances the exchanges until all are done or it is `until`; whether all are done.
fn poll_until(batch: &mut Batch<'_>, exchanges: &mut [Exchange], until: Instant) -> bool {
    let mut waiting = 0;
    for exchange in exchanges.iter_mut() {
        waiting += usize::from(exchange.advance(batch) != Step::Done);
    }
    let (mut before, mut in_vain) = ((waiting, moved(exchanges)), 0);
    while waiting > 0 {
        let now = Instant::now();
        if now >= until {
            return false;
        }
        exchanges.iter_mut().for_each(|exchange| exchange.expire(now));
        let left = next_expiry(exchanges, until).saturating_duration_since(now);
        waiting = exchanges.iter().filter(|exchange| exchange.step() != Step::Done).count();
        if waiting == 0 {
            return true;
        }
        let ready = match wait(exchanges, waiting, left, batch.spin) {
            Ok(ready) => ready,
            Err(error) => {
                exchanges.iter_mut().filter(|e| e.step() != Step::Done).for_each(|e| e.fail(&error));
                return true;
            }
        };
        waiting = 0;
        let unfinished = exchanges.iter_mut().filter(|exchange| exchange.step() != Step::Done);
        for (place, exchange) in unfinished.enumerate() {
            // Beyond the mask's width there is no telling; an attempt costs one system call.
            let is_ready = place >= FEW || ready >> place & 1 == 1;
            if is_ready {
                exchange.advance(batch);
            }
            waiting += usize::from(exchange.step() != Step::Done);
        }
        // A host that is short of memory for sockets calls one ready and takes nothing.
        let after = (waiting, moved(exchanges));
        in_vain = if after == before { in_vain + 1 } else { 0 };
        before = after;
        if in_vain >= IN_VAIN_MAX {
            std::thread::sleep(REST);
        }
    }
    true
}

/// Bytes that went either way on the unfinished exchanges.
fn moved(exchanges: &[Exchange]) -> u64 {
    let unfinished = exchanges.iter().filter(|exchange| exchange.step() != Step::Done);
    unfinished.map(|exchange| exchange.lease().shared_link().moved()).fold(0, u64::wrapping_add)
}

/// Waits for any of the unfinished exchanges; returns which of the first [`FEW`] are ready, as a mask.
fn wait(exchanges: &[Exchange], waiting: usize, left: Duration, spin: Option<&Spin>) -> io::Result<u32> {
    let interest = |exchange: &Exchange| match exchange.step() {
        Step::Wait { write: true } => PollFlags::IN | PollFlags::OUT,
        Step::Wait { write: false } | Step::Done => PollFlags::IN,
    };
    let mut unfinished = exchanges.iter().filter(|exchange| exchange.step() != Step::Done);
    // Nanoseconds rounded up, so that the last wait does not end just before the deadline.
    let left = Timespec::try_from(left + Duration::from_micros(1)).map_err(io::Error::other)?;
    let mut many = Vec::new();
    let mut few: [PollFd<'_>; FEW];
    let fds: &mut [PollFd<'_>] = if waiting <= FEW {
        let any = &exchanges[0];
        few = std::array::from_fn(|_| {
            let exchange = unfinished.next().unwrap_or(any);
            PollFd::from_borrowed_fd(exchange.lease().shared_link().fd(), interest(exchange))
        });
        &mut few[..waiting]
    } else {
        many.extend(unfinished.map(|e| PollFd::from_borrowed_fd(e.lease().shared_link().fd(), interest(e))));
        &mut many
    };
    if !spin.is_some_and(|spin| look(fds, spin)) {
        match rustix::event::poll(fds, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mask = fds.iter().take(FEW).enumerate();
    Ok(mask.fold(0, |mask, (place, fd)| mask | u32::from(!fd.revents().is_empty()) << place))
}

/// Looks for readiness for a moment, without sleeping; whether there is any.
fn look(fds: &mut [PollFd<'_>], spin: &Spin) -> bool {
    let limit = spin.limit();
    if limit.is_zero() {
        return false;
    }
    let started = Instant::now();
    loop {
        // What goes wrong here shows again when the caller sleeps.
        if rustix::event::poll(fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0) {
            spin.caught();
            return true;
        }
        if started.elapsed() >= limit {
            spin.missed();
            return false;
        }
        // The server may be waiting for this very processor.
        std::thread::yield_now();
    }
}

/// Runs a whole batch in the caller's task. Sockets and timers are registered with the client's own runtime, so any
/// executor may poll this.
pub(crate) async fn run_async(
    handle: &Handle,
    servers: &[Arc<Server>],
    ends: &[usize],
    batch: &mut Batch<'_>,
    exchanges: &mut Vec<Exchange>,
) {
    let mut waiting = open(servers, ends, batch, exchanges);
    while !waiting.is_empty() {
        let listener = servers[waiting[0].index].pool.returned(Kind::of(batch.op)).listen();
        begin_waiting(servers, ends, &mut waiting, batch, exchanges);
        if Instant::now() >= batch.deadline {
            break;
        }
        if !exchanges.is_empty() {
            let soon = (Instant::now() + LOOK_AGAIN).min(batch.deadline);
            if !waiting.is_empty() && !ready_until(handle, batch, exchanges, soon).await {
                continue;
            }
            ready_until_done(handle, batch, exchanges).await;
            end(batch, exchanges);
        } else if let [_, others @ ..] = &waiting[..] {
            let soon = Instant::now() + LOOK_AGAIN;
            let until = if others.is_empty() { batch.deadline } else { soon.min(batch.deadline) };
            before(handle, until, listener).await;
        }
    }
    none_idle(ends, waiting, batch);
    ready_until_done(handle, batch, exchanges).await;
    end(batch, exchanges);
}

/// Whether a future resolves before the deadline.
pub(crate) async fn before(handle: &Handle, deadline: Instant, future: impl Future) -> bool {
    let timeout = {
        let _context = handle.enter();
        tokio::time::timeout_at(deadline, future)
    };
    timeout.await.is_ok()
}

/// Advances the exchanges until all are done or the deadline has passed.
async fn ready_until_done(handle: &Handle, batch: &mut Batch<'_>, exchanges: &mut [Exchange]) {
    let deadline = batch.deadline;
    ready_until(handle, batch, exchanges, deadline).await;
}

/// Advances the exchanges until all are done or it is `until`; whether all are done.
async fn ready_until(
    handle: &Handle,
    batch: &mut Batch<'_>,
    exchanges: &mut [Exchange],
    until: Instant,
) -> bool {
    // Sockets are registered for the length of the op only: an idle or blocking one must not wake the runtime.
    let mut sockets: Vec<Option<AsyncFd<Arc<Wire>>>> = exchanges.iter().map(|_| None).collect();
    let sleep = {
        let _context = handle.enter();
        tokio::time::sleep_until(next_expiry(exchanges, until))
    };
    let mut sleep = pin!(sleep);
    std::future::poll_fn(|cx| {
        loop {
            let mut waiting = false;
            for (exchange, socket) in exchanges.iter_mut().zip(&mut sockets) {
                waiting |= poll_exchange(cx, handle, batch, exchange, socket).is_pending();
            }
            if !waiting {
                return Poll::Ready(true);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if now >= until {
                return Poll::Ready(false);
            }
            exchanges.iter_mut().for_each(|exchange| exchange.expire(now));
            sleep.as_mut().reset(next_expiry(exchanges, until));
        }
    })
    .await
}

fn poll_exchange(
    cx: &mut Context<'_>,
    handle: &Handle,
    batch: &mut Batch<'_>,
    exchange: &mut Exchange,
    socket: &mut Option<AsyncFd<Arc<Wire>>>,
) -> Poll<()> {
    if exchange.step() == Step::Done {
        return Poll::Ready(());
    }
    loop {
        // The first attempt comes before the registration: small ops often need no wait after the request.
        let current = exchange.lease().shared_link().stream().clone();
        #[cfg(feature = "sim")]
        if matches!(*current, Wire::Sim(_)) {
            return crate::sim::poll_exchange(cx, batch, exchange);
        }
        if socket.as_ref().is_none_or(|socket| !Arc::ptr_eq(socket.get_ref(), &current)) {
            if exchange.advance(batch) == Step::Done {
                return Poll::Ready(());
            }
            let current = exchange.lease().shared_link().stream().clone();
            let _context = handle.enter();
            match crate::raw::register(current) {
                Ok(registered) => *socket = Some(registered),
                Err(error) => {
                    exchange.fail(&error);
                    return Poll::Ready(());
                }
            }
        }
        let Some(registered) = socket.as_ref() else { return Poll::Pending };
        let Step::Wait { write } = exchange.step() else { return Poll::Ready(()) };
        let readable = registered.poll_read_ready(cx);
        let writable = if write { registered.poll_write_ready(cx) } else { Poll::Pending };
        let error = match (&readable, &writable) {
            (Poll::Pending, Poll::Pending) => return Poll::Pending,
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => {
                Some(io::Error::from(error.kind()))
            }
            _ => None,
        };
        if let Some(error) = error {
            exchange.fail(&error);
            return Poll::Ready(());
        }
        let step = exchange.advance(batch);
        if step == Step::Done {
            return Poll::Ready(());
        }
        // Both directions were tried until the kernel had no more, unless the connection was replaced meanwhile.
        if let Poll::Ready(Ok(mut guard)) = readable {
            guard.clear_ready();
        }
        if let (Poll::Ready(Ok(mut guard)), Step::Wait { write: true }) = (writable, step) {
            guard.clear_ready();
        }
    }
}
