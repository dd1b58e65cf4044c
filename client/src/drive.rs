//! The two ways to wait for a batch op's sockets: `poll(2)` on the caller's thread, or readiness in a task.
//!
//! A blocking batch with much to move divides its exchanges over a few threads, scoped to the op: one thread cannot
//! keep two connections busy. They end by the op's deadline, as it does.

use crate::PageOutcome;
use crate::exchange::{Batch, Exchange, Step};
use crate::pool::{Lease, Taken};
use crate::server::Server;
use crate::spin::Spin;
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

/// Opens the exchanges for which connections are idle now. Returns the servers whose connections are all lent.
pub(crate) fn open(
    servers: &[Arc<Server>],
    ends: &[usize],
    batch: &Batch<'_>,
    exchanges: &mut Vec<Exchange>,
) -> Vec<usize> {
    let mut busy = Vec::new();
    for (index, server) in servers.iter().enumerate() {
        let (from, to) = group(ends, index);
        if from == to {
            continue;
        }
        match server.take() {
            Taken::Link(link) => {
                let lease = Lease::new(server.clone(), link);
                exchanges_of(lease, from, to, batch, exchanges);
            }
            Taken::Busy => busy.push(index),
            Taken::NotReady => {}
        }
    }
    busy
}

/// Where a server's pages are in the batch's order.
pub(crate) fn group(ends: &[usize], server: usize) -> (usize, usize) {
    (if server == 0 { 0 } else { ends[server - 1] }, ends[server])
}

/// One exchange, or two if there is much to move and another connection is idle.
fn exchanges_of(lease: Lease, from: usize, to: usize, batch: &Batch<'_>, exchanges: &mut Vec<Exchange>) {
    let server = lease.server().clone();
    let middle = from + (to - from) / 2;
    if middle > from
        && is_large(batch, from, to)
        && let Taken::Link(link) = server.take()
    {
        let second = Lease::new(server, link);
        exchanges.push(Exchange::new(batch, lease, from, middle));
        exchanges.push(Exchange::new(batch, second, middle, to));
        return;
    }
    exchanges.push(Exchange::new(batch, lease, from, to));
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
pub(crate) fn end(batch: &mut Batch<'_>, exchanges: &mut Vec<Exchange>) {
    let mut blamed: Option<Arc<Server>> = None;
    for exchange in exchanges.drain(..) {
        match exchange.end(batch) {
            (server, None) => server.succeeded(),
            (server, Some(failure)) => {
                // The two are neighbours in the list.
                if !blamed.as_ref().is_some_and(|blamed| Arc::ptr_eq(blamed, &server)) {
                    server.failed(failure);
                }
                blamed = Some(server);
            }
        }
    }
}

/// The pages of a server whose connections stayed lent until the deadline.
fn none_idle(ends: &[usize], server: usize, batch: &mut Batch<'_>) {
    let (from, to) = group(ends, server);
    for &page in &batch.order[from..to] {
        batch.outcomes[page as usize] = PageOutcome::TimedOut;
    }
}

/// Runs a whole batch on the caller's thread.
pub(crate) fn run_blocking(
    servers: &[Arc<Server>],
    ends: &[usize],
    batch: &mut Batch<'_>,
    exchanges: &mut Vec<Exchange>,
) {
    let busy = open(servers, ends, batch, exchanges);
    run(batch, exchanges);
    end(batch, exchanges);
    for index in busy {
        let (from, to) = group(ends, index);
        loop {
            let listener = servers[index].pool.returned().listen();
            match servers[index].take() {
                Taken::Link(link) => {
                    let lease = Lease::new(servers[index].clone(), link);
                    exchanges_of(lease, from, to, batch, exchanges);
                    run(batch, exchanges);
                    end(batch, exchanges);
                    break;
                }
                Taken::NotReady => break,
                Taken::Busy if listener.wait_deadline(batch.deadline.into_std()).is_none() => {
                    none_idle(ends, index, batch);
                    break;
                }
                Taken::Busy => {}
            }
        }
    }
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
    let mut waiting = 0;
    for exchange in exchanges.iter_mut() {
        waiting += usize::from(exchange.advance(batch) != Step::Done);
    }
    while waiting > 0 {
        let left = batch.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let ready = match wait(exchanges, waiting, left, batch.spin) {
            Ok(ready) => ready,
            Err(error) => {
                exchanges.iter_mut().filter(|e| e.step() != Step::Done).for_each(|e| e.fail(&error));
                return;
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
    }
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
    let busy = open(servers, ends, batch, exchanges);
    ready_until_done(handle, batch, exchanges).await;
    end(batch, exchanges);
    for index in busy {
        let (from, to) = group(ends, index);
        loop {
            let listener = servers[index].pool.returned().listen();
            match servers[index].take() {
                Taken::Link(link) => {
                    let lease = Lease::new(servers[index].clone(), link);
                    exchanges_of(lease, from, to, batch, exchanges);
                    ready_until_done(handle, batch, exchanges).await;
                    end(batch, exchanges);
                    break;
                }
                Taken::NotReady => break,
                Taken::Busy if !before(handle, batch.deadline, listener).await => {
                    none_idle(ends, index, batch);
                    break;
                }
                Taken::Busy => {}
            }
        }
    }
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
    // Sockets are registered for the length of the op only: an idle or blocking one must not wake the runtime.
    let mut sockets: Vec<Option<AsyncFd<Arc<Wire>>>> = exchanges.iter().map(|_| None).collect();
    let sleep = {
        let _context = handle.enter();
        tokio::time::sleep_until(batch.deadline)
    };
    let mut sleep = pin!(sleep);
    std::future::poll_fn(|cx| {
        let mut waiting = false;
        for (exchange, socket) in exchanges.iter_mut().zip(&mut sockets) {
            waiting |= poll_exchange(cx, handle, batch, exchange, socket).is_pending();
        }
        if waiting { sleep.as_mut().poll(cx) } else { Poll::Ready(()) }
    })
    .await;
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
