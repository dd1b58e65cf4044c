//! The policies by name.

use crate::Policy;
use crate::lru::Lru;
use std::fmt;
use std::str::FromStr;

/// Which pages go first when room is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// The page that was not asked for the longest; of equally old ones the deepest of its chain.
    #[default]
    Lru,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Lru];

    /// The name in configurations and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
        }
    }

    /// Makes the policy, for a store of about `pages_max` pages.
    #[must_use]
    pub fn build(self, pages_max: usize) -> Box<dyn Policy> {
        let _ = pages_max;
        match self {
            Self::Lru => Box::new(Lru::default()),
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
        let found = Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}
