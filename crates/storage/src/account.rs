//! What each tenant uses of the memory and the drives, and how much it may.
//!
//! A space says whose it is; all spaces of one tenant have one account. Bytes count as what they take up: each page
//! rounded up to 4 KiB, from its reservation on, so that many small pages or many half-sent ones cost what they hold.
//!
//! A tenant that reaches its bound gives up pages of its own: a reservation beyond it evicts one of the tenant's pages or
//! is [`Refusal::Busy`](crate::Refusal), and takes no slot from anybody else; the background brings the tenant to a little
//! below its bound. A page that would go to a drive beyond the bound there is dropped, and the background removes the
//! tenant's oldest pages from the drives to make room for later ones. With write-through a page that leaves memory is on its
//! drive already, so the bound there may be exceeded by a few pages until the next round.
//!
//! A page that is in memory and on a drive counts as being in memory.

use crate::engine::Engine;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const UNIT: u64 = 4096;
const NO_BOUND: u64 = u64::MAX;

/// What a page of so many bytes takes up.
pub(crate) fn taken(bytes: u64) -> u64 {
    bytes.next_multiple_of(UNIT)
}

/// What a tenant uses, and may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Pages, wherever they are.
    pub pages: u64,
    /// Bytes in memory, also of pages on their way in.
    pub dram_bytes: u64,
    /// The most of them.
    pub dram_bytes_max: Option<u64>,
    /// Bytes on drives only.
    pub nvme_bytes: u64,
    /// The most of them.
    pub nvme_bytes_max: Option<u64>,
    /// Pages that went because the tenant was over a bound.
    pub evicted_pages: u64,
    /// Pages that were not taken because of that.
    pub refused: u64,
}

/// One tenant's account.
#[derive(Debug)]
pub(crate) struct Account {
    pages: AtomicU64,
    dram: AtomicU64,
    drive: AtomicU64,
    dram_max: AtomicU64,
    drive_max: AtomicU64,
    evicted: AtomicU64,
    refused: AtomicU64,
}

impl Default for Account {
    fn default() -> Self {
        let zero = AtomicU64::default;
        let (dram_max, drive_max) = (NO_BOUND.into(), NO_BOUND.into());
        Self {
            pages: zero(),
            dram: zero(),
            drive: zero(),
            dram_max,
            drive_max,
            evicted: zero(),
            refused: zero(),
        }
    }
}

fn get(number: &AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

impl Account {
    pub(crate) fn page_in(&self) {
        self.pages.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn page_out(&self, bytes: u64) {
        self.pages.fetch_sub(1, Ordering::Relaxed);
        self.dram.fetch_sub(taken(bytes), Ordering::Relaxed);
    }

    pub(crate) fn to_drive(&self, bytes: u64) {
        self.drive.fetch_add(taken(bytes), Ordering::Relaxed);
        self.dram.fetch_sub(taken(bytes), Ordering::Relaxed);
    }

    pub(crate) fn to_memory(&self, bytes: u64) {
        self.dram.fetch_add(taken(bytes), Ordering::Relaxed);
        self.drive.fetch_sub(taken(bytes), Ordering::Relaxed);
    }

    /// Adds what a recovery found.
    pub(crate) fn recovered(&self, pages: u64, dram: u64, drive: u64) {
        self.pages.fetch_add(pages, Ordering::Relaxed);
        self.dram.fetch_add(dram, Ordering::Relaxed);
        self.drive.fetch_add(drive, Ordering::Relaxed);
    }

    /// Whether more is in memory than may be.
    pub(crate) fn is_over(&self) -> bool {
        get(&self.dram) > get(&self.dram_max)
    }

    /// Whether so much is in memory that room should be made before more comes.
    pub(crate) fn is_high(&self) -> bool {
        let max = get(&self.dram_max);
        max != NO_BOUND && get(&self.dram) > max - max / 32
    }

    /// Bytes that have to leave memory to be a little below the bound.
    pub(crate) fn over_low(&self) -> u64 {
        let max = get(&self.dram_max);
        get(&self.dram).saturating_sub(max - max / 16)
    }

    /// Whether a page of so many bytes may go to a drive.
    pub(crate) fn has_drive_room(&self, bytes: u64) -> bool {
        get(&self.drive).saturating_add(taken(bytes)) <= get(&self.drive_max)
    }

    /// The share of what is on drives that has to go, in thousandths; 0 below the bound.
    pub(crate) fn drive_excess(&self) -> u64 {
        let (max, now) = (get(&self.drive_max), get(&self.drive));
        if max == NO_BOUND || now <= max - max / 32 {
            return 0;
        }
        let over = u128::from(now - (max - max / 16)) * 1000;
        u64::try_from(over.div_ceil(u128::from(now.max(1)))).unwrap_or(1000).min(1000)
    }

    pub(crate) fn count_evicted(&self, pages: u64) {
        self.evicted.fetch_add(pages, Ordering::Relaxed);
    }

    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn usage(&self) -> Usage {
        let bound = |number: &AtomicU64| Some(get(number)).filter(|max| *max != NO_BOUND);
        Usage {
            pages: get(&self.pages),
            dram_bytes: get(&self.dram),
            dram_bytes_max: bound(&self.dram_max),
            nvme_bytes: get(&self.drive),
            nvme_bytes_max: bound(&self.drive_max),
            evicted_pages: get(&self.evicted),
            refused: get(&self.refused),
        }
    }
}

/// A page's bytes in memory before the page is there; given back unless it comes.
#[derive(Debug)]
pub(crate) struct Charge {
    account: Arc<Account>,
    bytes: u64,
}

impl Charge {
    pub(crate) fn new(account: &Arc<Account>, bytes: u64) -> Self {
        let bytes = taken(bytes);
        account.dram.fetch_add(bytes, Ordering::Relaxed);
        Self { account: Arc::clone(account), bytes }
    }

    /// The page is there: from here on it is counted with it.
    pub(crate) fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.dram.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// All accounts, by the tenant's name; that of spaces without one is "".
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    known: RwLock<BTreeMap<String, Arc<Account>>>,
}

impl Accounts {
    /// The account of a tenant; a new one if it has none.
    pub(crate) fn of(&self, tenant: &str) -> Arc<Account> {
        if let Some(account) = self.known.read().get(tenant) {
            return Arc::clone(account);
        }
        Arc::clone(self.known.write().entry(tenant.to_owned()).or_default())
    }

    pub(crate) fn all(&self) -> Vec<Arc<Account>> {
        self.known.read().values().cloned().collect()
    }
}

impl Engine {
    /// Sets how many bytes a tenant may have in memory and on drives; no bound without a number. A tenant that has more
    /// loses pages in the next rounds of eviction.
    pub fn set_quota(&self, tenant: &str, dram_bytes: Option<u64>, nvme_bytes: Option<u64>) {
        let account = self.state.spaces.accounts.of(tenant);
        account.dram_max.store(dram_bytes.unwrap_or(NO_BOUND), Ordering::Relaxed);
        account.drive_max.store(nvme_bytes.unwrap_or(NO_BOUND), Ordering::Relaxed);
        self.state.pressure.ask();
    }

    /// What a tenant uses; "" for spaces without one.
    #[must_use]
    pub fn usage(&self, tenant: &str) -> Usage {
        let account = self.state.spaces.accounts.known.read().get(tenant).cloned();
        account.map_or_else(Usage::default, |account| account.usage())
    }
}
