//! How much of the host's memory for sockets may lie with peers that do not read.
//!
//! What was written to a peer that does not read stays in the kernel, up to a send buffer for each connection. The kernel
//! bounds the sum for the whole host (`net.ipv4.tcp_mem`); near that bound it takes nothing from anybody and drops what
//! comes, so that everybody's calls wait for retransmissions. So the connections whose socket is full may hold a small part
//! of it together. Beyond that, those that took nothing for the longest time go first, long before the stall time is over.

use super::wire::Wire;
use crate::sessions::{Session, Unread};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A peer that reads again within this time is not dropped, whatever others hold.
const GRACE: Duration = Duration::from_millis(100);
/// The part of the memory below which the kernel does not look at sockets at all.
const PART: u64 = 8;
/// Where the kernel does not say how much that is.
const UNKNOWN_BYTES: u64 = 64 << 20;

/// The connections whose sockets are full.
#[derive(Debug)]
pub(crate) struct Slow {
    most: u64,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    /// What the kernel may hold of all in `waiting`.
    bytes: u64,
    next: u64,
    /// In the order in which their sockets became full.
    waiting: BTreeMap<u64, Full>,
}

#[derive(Debug)]
struct Full {
    since: Instant,
    bytes: u64,
    given_up: Arc<Notify>,
}

/// A connection whose socket is full, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    slow: &'a Slow,
    number: u64,
    given_up: Arc<Notify>,
    unread: Option<Unread<'a>>,
}

impl Held<'_> {
    /// Completes when the memory is wanted for others.
    pub(crate) async fn given_up(&self) {
        self.given_up.notified().await;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut book = self.slow.book.lock();
        if let Some(full) = book.waiting.remove(&self.number) {
            book.bytes -= full.bytes;
        }
    }
}

impl Slow {
    /// So many bytes for all, or the share of this host's memory.
    pub(crate) fn new(most: Option<u64>) -> Self {
        let most = most.or_else(|| {
            let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").ok()?;
            share(&text, rustix::param::page_size() as u64)
        });
        Self { most: most.unwrap_or(UNKNOWN_BYTES), book: Mutex::default() }
    }

    /// Notes that a socket is full, and gives up others if all of them hold too much.
    pub(crate) fn hold<'a>(&'a self, stream: &Wire, session: &'a Session) -> Held<'a> {
        let mut held = self.hold_at(stream.send_buffer_bytes(), Instant::now());
        held.unread = Some(session.leaves_unread());
        held
    }

    /// Whether the connections whose socket is full hold more than half of what they may.
    pub(crate) fn is_short(&self) -> bool {
        self.book.lock().bytes > self.most / 2
    }

    fn hold_at(&self, bytes: u64, now: Instant) -> Held<'_> {
        let given_up = Arc::new(Notify::new());
        let mut book = self.book.lock();
        let number = book.next;
        book.next += 1;
        book.bytes += bytes;
        let full = Full { since: now, bytes, given_up: Arc::clone(&given_up) };
        book.waiting.insert(number, full);
        drop(book);
        self.give_up_at(now);
        Held { slow: self, number, given_up, unread: None }
    }

    /// Gives up those that took nothing for the longest time, as far as all of them hold too much.
    pub(crate) fn give_up(&self) {
        self.give_up_at(Instant::now());
    }

    fn give_up_at(&self, now: Instant) {
        let mut book = self.book.lock();
        while book.bytes > self.most
            && let Some(first) = book.waiting.first_entry()
            && now.saturating_duration_since(first.get().since) >= GRACE
        {
            let full = first.remove();
            book.bytes -= full.bytes;
            full.given_up.notify_one();
        }
    }
}

/// The share of slow peers, from the kernel's three bounds in pages.
fn share(bounds: &str, page_bytes: u64) -> Option<u64> {
    let low: u64 = bounds.split_whitespace().next()?.parse().ok()?;
    Some(low.checked_mul(page_bytes)? / PART).filter(|&bytes| bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Poll;

    #[test]
    fn the_share_is_read_from_the_kernels_bounds() {
        assert_eq!(share("287901\t383868\t575802\n", 4096), Some(287_901 * 512));
        assert_eq!(share("", 4096), None);
        assert_eq!(share("0 0 0", 4096), None);
        assert_eq!(share("18446744073709551615 0 0", 4096), None);
    }

    async fn is_given_up(held: &Held<'_>) -> bool {
        let mut given_up = std::pin::pin!(held.given_up());
        std::future::poll_fn(|cx| Poll::Ready(given_up.as_mut().poll(cx).is_ready())).await
    }

    #[tokio::test]
    async fn who_takes_nothing_for_longest_goes_when_all_hold_too_much() {
        const ONE: u64 = 512 << 10;
        let (slow, begin) = (Slow::new(Some(2 * ONE)), Instant::now());
        let first = slow.hold_at(ONE, begin);
        let second = slow.hold_at(ONE, begin + GRACE);
        assert!(!is_given_up(&first).await, "there is room for two");
        let third = slow.hold_at(ONE, begin + GRACE);
        assert!(is_given_up(&first).await && !is_given_up(&second).await);
        let fourth = slow.hold_at(ONE, begin + 2 * GRACE - Duration::from_millis(1));
        assert!(!is_given_up(&second).await, "it may be slow for a moment");
        slow.give_up_at(begin + 2 * GRACE);
        assert!(is_given_up(&second).await && !is_given_up(&third).await);
        assert!(slow.is_short());
        drop((first, second, third, fourth));
        assert!(!slow.is_short());
        let book = slow.book.lock();
        assert_eq!((book.bytes, book.waiting.len()), (0, 0));
    }
}
