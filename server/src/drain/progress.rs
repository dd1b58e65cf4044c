//! How far a drain is, as an operator sees it.

use memkv_proto::v1;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// The speed is that of this many samples, taken at least so far apart.
const SAMPLES: usize = 20;
const SAMPLE_GAP: Duration = Duration::from_millis(500);
/// Reasons that are told.
const LOSSES: usize = 16;

/// Why a server did not take a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refused {
    /// It has no room, or is being drained itself.
    Full,
    /// It does not answer.
    Away,
    /// Its largest page is smaller.
    TooLarge,
    /// The bytes did not match their checksum when they arrived.
    Corrupt,
    /// It answers, and refuses the call.
    Denied,
    /// It was restarted, and has to be told of the space again.
    Forgot,
    /// This server has no memory to read the page into.
    NoMemory,
}

impl Refused {
    /// For people; the same for every page.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Full => "the other servers are full or being drained",
            Self::Away => "the other servers do not answer",
            Self::TooLarge => "the page is larger than the other servers take",
            Self::Corrupt => "the bytes do not match their checksum; the page is quarantined here",
            Self::Denied => "the other servers refuse this server's calls; do they have the same key?",
            Self::Forgot => "the other servers are being restarted",
            Self::NoMemory => "this server has no free memory to read pages from its drives into",
        }
    }
}

/// What one batch came to at one server.
#[derive(Debug, Default)]
pub(crate) struct Delivery {
    pub(crate) moved_pages: u64,
    pub(crate) moved_bytes: u64,
    pub(crate) existing_pages: u64,
    pub(crate) refused_pages: u64,
    pub(crate) error: Option<String>,
}

/// What became of one page.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    /// It is with others now; it was sent to at least one of them, or all had it.
    Placed {
        /// It was sent to at least one.
        moved: bool,
        /// The first of its order did not take it.
        elsewhere: bool,
        /// Fewer copies than wanted could be made.
        short: bool,
    },
    /// It was removed here meanwhile.
    Gone,
    /// Nobody took it.
    Lost(Refused),
}

/// The numbers of one drain.
pub(crate) struct Progress {
    begun: Instant,
    numbers: Mutex<Numbers>,
}

#[derive(Default)]
struct Numbers {
    view: v1::DrainProgress,
    lost: BTreeMap<Refused, u64>,
    samples: VecDeque<(Instant, u64)>,
    took: Option<Duration>,
}

impl Progress {
    /// A drain of this many pages and bytes, to these members.
    pub(crate) fn new((total_pages, total_bytes): (u64, u64), members: Vec<String>) -> Self {
        let targets = members.into_iter().map(|id| v1::DrainTarget { id, ..Default::default() }).collect();
        let view = v1::DrainProgress { total_pages, total_bytes, targets, ..Default::default() };
        Self { begun: Instant::now(), numbers: Mutex::new(Numbers { view, ..Numbers::default() }) }
    }

    /// Pages and bytes to go through.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let numbers = self.numbers.lock();
        (numbers.view.total_pages, numbers.view.total_bytes)
    }

    /// Adds what a member took.
    pub(crate) fn delivered(&self, target: usize, delivery: Delivery) {
        let mut numbers = self.numbers.lock();
        let Some(target) = numbers.view.targets.get_mut(target) else { return };
        target.moved_pages += delivery.moved_pages;
        target.moved_bytes += delivery.moved_bytes;
        target.existing_pages += delivery.existing_pages;
        target.refused_pages += delivery.refused_pages;
        if let Some(error) = delivery.error {
            target.last_error = error;
        }
    }

    /// Adds pins that were, and were not, set at the next owner.
    pub(crate) fn pinned(&self, pinned: u64, not: u64) {
        let mut numbers = self.numbers.lock();
        numbers.view.pinned_pages += pinned;
        numbers.view.unpinned_pages += not;
    }

    /// Adds pages of these lengths. A page that may have been looked at before counts only for what is new.
    pub(crate) fn add(&self, fates: &[(u32, Fate)], again: bool) {
        let mut numbers = self.numbers.lock();
        for &(len, fate) in fates {
            let view = &mut numbers.view;
            if !again {
                view.pages += 1;
                view.bytes += u64::from(len);
            }
            match fate {
                Fate::Placed { moved, elsewhere, short } => {
                    if moved {
                        view.moved_pages += 1;
                        view.moved_bytes += u64::from(len);
                    } else if !again {
                        view.existing_pages += 1;
                    }
                    if moved || !again {
                        view.elsewhere_pages += u64::from(elsewhere);
                        view.short_pages += u64::from(short);
                    }
                }
                Fate::Gone => view.gone_pages += u64::from(!again),
                Fate::Lost(why) => *numbers.lost.entry(why).or_default() += 1,
            }
        }
        let (now, bytes) = (Instant::now(), numbers.view.bytes);
        let due = numbers.samples.back().is_none_or(|(at, _)| now.duration_since(*at) >= SAMPLE_GAP);
        if due {
            numbers.samples.push_back((now, bytes));
            if numbers.samples.len() > SAMPLES {
                numbers.samples.pop_front();
            }
        }
    }

    /// Pages that nobody took, in this pass.
    pub(crate) fn lost(&self) -> u64 {
        self.numbers.lock().lost.values().sum()
    }

    /// Before all pages are gone through again.
    pub(crate) fn forget_lost(&self) {
        self.numbers.lock().lost.clear();
    }

    /// The drain is over; `error` says why if not all pages were copied.
    pub(crate) fn ended(&self, error: Option<String>) {
        let mut numbers = self.numbers.lock();
        numbers.view.error = error.unwrap_or_default();
        numbers.took = Some(self.begun.elapsed());
    }

    /// All numbers.
    pub(crate) fn view(&self) -> v1::DrainProgress {
        let numbers = self.numbers.lock();
        let mut view = numbers.view.clone();
        let mut losses: Vec<_> = numbers.lost.iter().collect();
        losses.sort_by_key(|(_, pages)| std::cmp::Reverse(**pages));
        view.lost_pages = numbers.lost.values().sum();
        let loss =
            |(why, pages): (&Refused, &u64)| v1::DrainLoss { reason: why.reason().into(), pages: *pages };
        view.losses = losses.into_iter().take(LOSSES).map(loss).collect();
        view.elapsed_ms = millis(numbers.took.unwrap_or_else(|| self.begun.elapsed()));
        let now = Instant::now();
        if let Some((at, bytes)) = numbers.samples.front().filter(|_| numbers.took.is_none()) {
            let span = millis(now.duration_since(*at)).max(1);
            view.bytes_per_second = (view.bytes - bytes).saturating_mul(1000) / span;
        }
        let left = view.total_bytes.saturating_sub(view.bytes);
        view.left_ms = left.saturating_mul(1000).checked_div(view.bytes_per_second).unwrap_or(0);
        view
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_seen_again_counts_only_if_it_was_moved() {
        let progress = Progress::new((2, 30), vec!["a".into()]);
        let placed = |moved| Fate::Placed { moved, elsewhere: false, short: false };
        progress.add(&[(10, placed(true)), (20, Fate::Lost(Refused::Full))], false);
        assert_eq!(progress.lost(), 1);
        assert_eq!(progress.view().losses.len(), 1);
        progress.forget_lost();
        progress.add(&[(10, placed(false)), (20, placed(true))], true);
        let view = progress.view();
        assert_eq!((view.pages, view.bytes), (2, 30));
        assert_eq!((view.moved_pages, view.moved_bytes, view.existing_pages), (2, 30, 0));
        assert_eq!((view.lost_pages, view.losses.len()), (0, 0));
    }
}
