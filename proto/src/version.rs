//! Which protocol version two sides speak.
//!
//! Each side speaks a range of versions. The server chooses the highest that both have, and the proofs of the handshake
//! cover both ranges and the choice, so nobody on the way can talk them into an older one.

use std::fmt;

/// A range of protocol versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The lowest.
    pub min: u32,
    /// The highest.
    pub max: u32,
}

/// The versions that this release speaks.
pub const VERSIONS: Versions = Versions { min: super::PROTOCOL_VERSION, max: super::PROTOCOL_VERSION };

/// Two ranges have nothing in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoCommonVersion {
    /// Whether the other side is the one to upgrade; otherwise this side.
    pub theirs_is_older: bool,
}

impl Versions {
    /// Whether the version is one of these.
    #[must_use]
    pub fn has(self, version: u32) -> bool {
        (self.min..=self.max).contains(&version)
    }

    /// The highest version of both sides.
    ///
    /// # Errors
    ///
    /// [`NoCommonVersion`] if there is none. A range that ends before it begins counts by its end.
    pub fn common(self, theirs: Self) -> Result<u32, NoCommonVersion> {
        let highest = self.max.min(theirs.max);
        if self.has(highest) && theirs.has(highest) {
            return Ok(highest);
        }
        Err(NoCommonVersion { theirs_is_older: theirs.max < self.min || theirs.max < theirs.min })
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(ours: (u32, u32), theirs: (u32, u32)) -> Result<u32, bool> {
        let versions = |(min, max)| Versions { min, max };
        versions(ours).common(versions(theirs)).map_err(|none| none.theirs_is_older)
    }

    #[test]
    fn the_highest_common_version_is_chosen_or_the_older_side_named() {
        assert_eq!(common((1, 1), (1, 1)), Ok(1));
        assert_eq!(common((1, 3), (2, 5)), Ok(3));
        assert_eq!(common((2, 5), (1, 3)), Ok(3));
        assert_eq!(common((1, 9), (4, 4)), Ok(4));
        assert_eq!(common((1, 1), (2, 3)), Err(false));
        assert_eq!(common((2, 3), (1, 1)), Err(true));
        assert_eq!(common((1, 1), (0, 0)), Err(true));
        assert_eq!(common((1, 5), (4, 3)), Err(true), "a range that makes no sense");
        assert_eq!(Versions { min: 1, max: 2 }.to_string(), "1 to 2");
    }
}
