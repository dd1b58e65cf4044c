//! Physical pages of one medium: state, references and generation of each, allocated all or nothing.
//!
//! A page has one reference for its owner (a request or the tree) and one for each copy that runs from or into it.
//! The last reference frees it. Its generation changes then, so a number that somebody kept too long is noticed.
//!
//! Deliberately absent: the bytes.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use thiserror::Error;

/// The memory that the model computes in.
#[derive(Clone, Copy, Debug)]
pub enum Device {}

/// The memory of the machine.
#[derive(Clone, Copy, Debug)]
pub enum Host {}

/// A physical page of the medium `M`.
pub struct PageId<M> {
    index: u32,
    generation: u32,
    medium: PhantomData<fn() -> M>,
}

/// A page of device memory.
pub type DevicePage = PageId<Device>;
/// A page of host memory.
pub type HostPage = PageId<Host>;

impl<M> PageId<M> {
    /// The place of the page in its pool's memory, in pages.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// How often the place was freed before.
    pub fn generation(&self) -> u32 {
        self.generation
    }
}

impl<M> Clone for PageId<M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for PageId<M> {}

impl<M> PartialEq for PageId<M> {
    fn eq(&self, other: &Self) -> bool {
        (self.index, self.generation) == (other.index, other.generation)
    }
}

impl<M> Eq for PageId<M> {}

impl<M> PartialOrd for PageId<M> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<M> Ord for PageId<M> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.index, self.generation).cmp(&(other.index, other.generation))
    }
}

impl<M> Hash for PageId<M> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.index, self.generation).hash(state);
    }
}

impl<M> fmt::Debug for PageId<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// What a page is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Nobody has it.
    Free,
    /// A request has it and may write to it.
    Private,
    /// The tree has it; its bytes do not change.
    Shared,
    /// A copy into it is under way; nobody may read it.
    Loading,
    /// The tree has it, and a copy out of it is under way.
    Writing,
}

/// There are not enough free pages; none was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{wanted} pages wanted, {free} free: finish or retract a request, or wait for transfers to end")]
pub struct OutOfPages {
    /// How many were asked for.
    pub wanted: usize,
    /// How many there were.
    pub free: usize,
}

/// The page was freed since, or is not in the state that the call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("page {index} of generation {generation} is no longer what the caller takes it for")]
pub struct StalePage {
    /// The place.
    pub index: u32,
    /// The generation that the caller had.
    pub generation: u32,
}

impl<M> From<PageId<M>> for StalePage {
    fn from(page: PageId<M>) -> Self {
        Self { index: page.index, generation: page.generation }
    }
}

#[derive(Clone)]
struct Slot {
    generation: u32,
    references: u32,
    state: PageState,
}

/// All pages of one medium.
pub struct PagePool<M> {
    slots: Vec<Slot>,
    free: Vec<u32>,
    medium: PhantomData<fn() -> M>,
}

impl<M> PagePool<M> {
    /// A pool of `pages` free pages.
    pub fn new(pages: u32) -> Self {
        let slot = Slot { generation: 0, references: 0, state: PageState::Free };
        Self { slots: vec![slot; pages as usize], free: (0..pages).rev().collect(), medium: PhantomData }
    }

    /// How many pages there are.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// How many pages nobody has.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// The state of a page, or nothing if it was freed since.
    pub fn state(&self, page: PageId<M>) -> Option<PageState> {
        self.slot(page).ok().map(|slot| slot.state)
    }

    /// The references to a page; 0 if it was freed since.
    pub fn references(&self, page: PageId<M>) -> u32 {
        self.slot(page).map_or(0, |slot| slot.references)
    }

    /// How many pages are in `state`.
    pub fn count(&self, state: PageState) -> usize {
        self.slots.iter().filter(|slot| slot.state == state).count()
    }

    /// Takes `count` pages in `state`, each with one reference.
    ///
    /// # Errors
    ///
    /// If there are fewer; then none is taken.
    pub fn alloc(&mut self, count: usize, state: PageState) -> Result<Vec<PageId<M>>, OutOfPages> {
        if count > self.free.len() {
            return Err(OutOfPages { wanted: count, free: self.free.len() });
        }
        let first = self.free.len() - count;
        let taken = self.free.drain(first..).rev();
        let slots = &mut self.slots;
        let take = |index: u32| {
            let slot = &mut slots[index as usize];
            debug_assert_eq!((slot.state, slot.references), (PageState::Free, 0));
            slot.state = state;
            slot.references = 1;
            PageId { index, generation: slot.generation, medium: PhantomData }
        };
        Ok(taken.map(take).collect())
    }

    /// Adds a reference.
    ///
    /// # Errors
    ///
    /// If the page was freed since.
    pub fn retain(&mut self, page: PageId<M>) -> Result<(), StalePage> {
        self.slot_mut(page)?.references += 1;
        Ok(())
    }

    /// Gives a reference back and tells whether the page is free now.
    ///
    /// # Errors
    ///
    /// If the page was freed before; nothing is freed twice.
    pub fn release(&mut self, page: PageId<M>) -> Result<bool, StalePage> {
        let slot = self.slot_mut(page)?;
        slot.references -= 1;
        if slot.references > 0 {
            return Ok(false);
        }
        slot.state = PageState::Free;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(page.index);
        Ok(true)
    }

    /// Moves a page from one state to another.
    ///
    /// # Errors
    ///
    /// If it is not in the first of them.
    pub fn change(&mut self, page: PageId<M>, from: PageState, to: PageState) -> Result<(), StalePage> {
        let slot = self.slot_mut(page)?;
        if slot.state != from {
            return Err(page.into());
        }
        slot.state = to;
        Ok(())
    }

    /// Sets the state of a page that the caller owns.
    pub(crate) fn set(&mut self, pages: &[PageId<M>], state: PageState) {
        for page in pages {
            self.slot_mut(*page).expect("the tree's pages are live").state = state;
        }
    }

    /// Gives back one reference to each of `pages`, which the caller owns.
    pub(crate) fn release_all(&mut self, pages: &[PageId<M>]) {
        for page in pages {
            self.release(*page).expect("the caller has a reference");
        }
    }

    /// Adds one reference to each of `pages`, which the caller owns.
    pub(crate) fn retain_all(&mut self, pages: &[PageId<M>]) {
        for page in pages {
            self.retain(*page).expect("the caller has a reference");
        }
    }

    fn slot(&self, page: PageId<M>) -> Result<&Slot, StalePage> {
        let slot = self.slots.get(page.index as usize).ok_or(StalePage::from(page))?;
        if slot.generation != page.generation || slot.references == 0 {
            return Err(page.into());
        }
        Ok(slot)
    }

    fn slot_mut(&mut self, page: PageId<M>) -> Result<&mut Slot, StalePage> {
        self.slot(page)?;
        Ok(&mut self.slots[page.index as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocation_is_all_or_nothing() {
        let mut pool = PagePool::<Device>::new(3);
        let two = pool.alloc(2, PageState::Private).unwrap();
        assert_eq!(two.iter().map(PageId::index).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(pool.alloc(2, PageState::Private), Err(OutOfPages { wanted: 2, free: 1 }));
        assert_eq!(pool.free(), 1);
    }

    #[test]
    fn nothing_is_freed_twice_and_old_numbers_are_noticed() {
        let mut pool = PagePool::<Host>::new(1);
        let page = pool.alloc(1, PageState::Private).unwrap()[0];
        pool.retain(page).unwrap();
        assert_eq!(pool.release(page), Ok(false));
        assert_eq!(pool.release(page), Ok(true));
        assert_eq!(pool.release(page), Err(page.into()));
        assert_eq!(pool.free(), 1);
        let again = pool.alloc(1, PageState::Shared).unwrap()[0];
        assert_eq!(again.index(), page.index());
        assert_eq!(pool.state(page), None);
        assert_eq!(pool.retain(page), Err(page.into()));
        assert_eq!(pool.change(again, PageState::Private, PageState::Shared), Err(again.into()));
    }
}
