//! What a policy is told of a page, and what it answers.

/// When pages are used, finer than milliseconds: those that are used together have one moment, others that are used in the
/// same millisecond another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// The time, in milliseconds.
    pub ms: u64,
    /// Tells apart what is used in the same millisecond; a smaller one counts as earlier.
    pub tag: u16,
}

impl Moment {
    /// The moment as one number; later ones have larger numbers.
    #[must_use]
    pub fn number(self) -> u64 {
        self.ms << u16::BITS | u64::from(self.tag)
    }

    /// The moment of a [number](Self::number).
    #[must_use]
    pub fn from_number(number: u64) -> Self {
        Self { ms: number >> u16::BITS, tag: number as u16 }
    }
}

impl From<u64> for Moment {
    fn from(ms: u64) -> Self {
        Self { ms, tag: 0 }
    }
}

/// What is known of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Digest of the page's space and key.
    pub digest: u64,
    /// The policy's own word.
    pub word: u64,
    /// When it came.
    pub created_ms: u64,
    /// When it was last asked for; when it came, if never.
    pub last_access_ms: u64,
    /// Number of pages before it in its chain.
    pub position: u32,
    /// How often it was read; wraps around.
    pub hits: u32,
    /// Bytes that become free when it goes.
    pub bytes: u32,
}

/// How much is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// This many pages.
    Pages(usize),
    /// As few pages as hold this many bytes.
    Bytes(u64),
}

impl Want {
    /// Whether the wanted amount is reached by `pages` pages that hold `bytes`.
    #[must_use]
    pub fn is_met(self, pages: usize, bytes: u64) -> bool {
        match self {
            Self::Pages(wanted) => pages >= wanted,
            Self::Bytes(wanted) => bytes >= wanted,
        }
    }
}

/// The answer to [`Policy::choose`](crate::Policy::choose). Reused, so that a round does not allocate.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Indices of the pages that go, the first to go first.
    pub evict: Vec<u32>,
    /// Indices of pages that stay and get a new word.
    pub words: Vec<(u32, u64)>,
    /// Room to sort in.
    order: Vec<(u64, u64, u32)>,
}

impl Choice {
    /// Forgets the last answer.
    pub fn clear(&mut self) {
        self.evict.clear();
        self.words.clear();
        self.order.clear();
    }

    /// Chooses the pages of smallest rank. Equal ranks go in the order of the pages.
    pub(crate) fn smallest(&mut self, pages: &[Page], want: Want, rank: impl Fn(&Page) -> (u64, u64)) {
        let ranked = (0_u32..).zip(pages).map(|(at, page)| {
            let (first, second) = rank(page);
            (first, second, at)
        });
        self.smallest_of(pages, want, ranked);
    }

    /// Chooses the smallest of pages that are ranked already: two ranks and the index.
    pub(crate) fn smallest_of(
        &mut self,
        pages: &[Page],
        want: Want,
        ranked: impl Iterator<Item = (u64, u64, u32)>,
    ) {
        self.clear();
        self.order.extend(ranked);
        if let Want::Pages(wanted) = want {
            if wanted > 0 && wanted < self.order.len() {
                self.order.select_nth_unstable(wanted - 1);
            }
            self.order.truncate(wanted);
        }
        self.order.sort_unstable();
        let mut bytes = 0;
        for &(_, _, at) in &self.order {
            if want.is_met(self.evict.len(), bytes) {
                break;
            }
            bytes += u64::from(pages[at as usize].bytes);
            self.evict.push(at);
        }
    }
}
