//! The policies by name.

use crate::Policy;
use crate::chain::Chain;
use crate::lru::Lru;
use crate::s3fifo::S3Fifo;
use crate::sieve::Sieve;
use std::fmt;
use std::str::FromStr;

/// Which pages go first when room is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// The page that was not asked for the longest; of equally old ones the deepest of its chain.
    Lru,
    /// First in, first out, with a small queue for pages that are used once.
    S3Fifo,
    /// First in, first out, but for pages that were used since the last look.
    Sieve,
    /// The page that is least likely to be used soon, as learned from the traffic; never before a deeper one of its
    /// chain.
    #[default]
    Chain,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Lru, Self::S3Fifo, Self::Sieve, Self::Chain];

    /// The name in configurations and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::S3Fifo => "s3-fifo",
            Self::Sieve => "sieve",
            Self::Chain => "chain",
        }
    }

    /// Makes the policy, for a store of about `pages_max` pages.
    #[must_use]
    pub fn build(self, pages_max: usize) -> Box<dyn Policy> {
        match self {
            Self::Lru => Box::new(Lru),
            Self::S3Fifo => Box::new(S3Fifo::new(pages_max)),
            Self::Sieve => Box::new(Sieve::default()),
            Self::Chain => Box::new(Chain::new(pages_max)),
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no policy of this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPolicy(String);

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no policy {:?}; use one of", self.0)?;
        PolicyKind::ALL.iter().try_for_each(|kind| write!(f, " {kind}"))
    }
}

impl std::error::Error for UnknownPolicy {}

impl FromStr for PolicyKind {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        // `s3fifo` and `S3_FIFO` are as good.
        let plain = |name: &str| name.replace(['-', '_'], "").to_ascii_lowercase();
        let found = Self::ALL.into_iter().find(|kind| plain(kind.name()) == plain(name));
        found.ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}
