//! Pages that servers say are hot: read so often that they deserve more homes than others.
//!
//! Each server announces its own hot pages with every pong, and an announcement replaces the one before it. So a page
//! that is no longer announced, or whose server's session ended, is hot no more at the next turn.
//!
//! Deliberately absent: any look at this by an op while nothing is announced; see [`crate::members::Members::is_simple`].

use memkv_proto::v1;
use std::collections::{BTreeMap, HashMap};

/// The most pages taken from one announcement.
const PAGES_MAX: usize = 4096;

/// Hot pages by digest, each with how many homes it should have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct HotPages {
    pages: HashMap<u64, u8>,
}

impl HotPages {
    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// How many homes a hot page should have; `None` if it is not hot.
    pub(crate) fn copies(&self, digest: u64) -> Option<u8> {
        if self.pages.is_empty() {
            return None;
        }
        self.pages.get(&digest).copied()
    }
}

/// What each server announced last.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    by_server: BTreeMap<String, Vec<(u64, u8)>>,
}

impl Announced {
    /// Takes over a server's announcement, with at most `copies_max` homes for a page. `None` if nothing changes.
    pub(crate) fn hear(&mut self, server: &str, pong: &v1::Pong, copies_max: u8) -> Option<HotPages> {
        let copies = pong.hot_copies.iter().map(|&copies| copies.min(copies_max));
        let pages = pong.hot_digests.iter().copied().zip(copies).take(PAGES_MAX);
        let pages: Vec<_> = pages.filter(|(_, copies)| *copies > 1).collect();
        self.replace(server, pages)
    }

    /// A server announces nothing any more.
    pub(crate) fn forget(&mut self, server: &str) -> Option<HotPages> {
        self.replace(server, Vec::new())
    }

    fn replace(&mut self, server: &str, pages: Vec<(u64, u8)>) -> Option<HotPages> {
        let before = if pages.is_empty() {
            self.by_server.remove(server)
        } else if self.by_server.get(server) == Some(&pages) {
            return None;
        } else {
            self.by_server.insert(server.to_owned(), pages.clone())
        };
        if before.is_none() && pages.is_empty() {
            return None;
        }
        let mut all = HashMap::new();
        for &(digest, copies) in self.by_server.values().flatten() {
            let most = all.entry(digest).or_insert(copies);
            *most = copies.max(*most);
        }
        Some(HotPages { pages: all })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Arc;

    /// Pages that are announced with so many copies.
    pub(crate) fn pages(list: &[(u64, u8)]) -> Arc<HotPages> {
        Arc::new(HotPages { pages: list.iter().copied().collect() })
    }

    fn pong(pages: &[(u64, u8)]) -> v1::Pong {
        v1::Pong {
            hot_digests: pages.iter().map(|page| page.0).collect(),
            hot_copies: pages.iter().map(|page| page.1).collect(),
            ..v1::Pong::default()
        }
    }

    #[test]
    fn the_largest_announcement_of_a_page_counts_up_to_the_limit() {
        let mut announced = Announced::default();
        let hot = announced.hear("a", &pong(&[(1, 2), (2, 9)]), 3).unwrap();
        assert_eq!((hot.copies(1), hot.copies(2), hot.copies(3)), (Some(2), Some(3), None));
        let hot = announced.hear("b", &pong(&[(1, 3)]), 3).unwrap();
        assert_eq!((hot.copies(1), hot.len()), (Some(3), 2));
        assert_eq!(announced.hear("b", &pong(&[(1, 3)]), 3), None, "nothing new");
    }

    #[test]
    fn what_is_no_longer_announced_is_hot_no_more() {
        let mut announced = Announced::default();
        assert_eq!(announced.hear("a", &pong(&[]), 3), None);
        announced.hear("a", &pong(&[(1, 2)]), 3).unwrap();
        announced.hear("b", &pong(&[(2, 2)]), 3).unwrap();
        assert!(announced.hear("a", &pong(&[]), 3).unwrap().copies(1).is_none());
        assert!(announced.forget("b").unwrap().is_empty());
        assert_eq!(announced.forget("b"), None);
    }

    #[test]
    fn a_limit_of_one_copy_makes_nothing_hot() {
        assert_eq!(Announced::default().hear("a", &pong(&[(1, 4)]), 1), None);
    }
}
