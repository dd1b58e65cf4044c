//! Who has which page.

/// Free pages, and the page lists of requests.
#[derive(Debug)]
pub struct PageBook {
    page_tokens: usize,
    free: Vec<u32>,
    capacity: usize,
}

/// The page list of one request.
#[derive(Debug)]
pub(crate) struct Lease {
    pages: Vec<u32>,
}

impl Lease {
    pub(crate) fn pages(&self) -> Vec<u32> {
        self.pages.clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }
}

impl PageBook {
    /// A book of `pages` free pages.
    #[must_use]
    pub fn new(page_tokens: usize, pages: u32) -> Self {
        Self { page_tokens, free: (0..pages).rev().collect(), capacity: pages as usize }
    }

    /// All pages.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Pages that a request could get.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }

    pub(crate) fn open(&mut self, _tokens: &[u32]) -> Lease {
        Lease { pages: Vec::new() }
    }

    pub(crate) fn tokens_of(&self, lease: &Lease) -> usize {
        lease.pages.len() * self.page_tokens
    }

    pub(crate) fn grow(&mut self, lease: &mut Lease, tokens: usize) -> bool {
        let missing = self.pages_for(tokens).saturating_sub(lease.pages.len());
        if missing > self.free.len() {
            return false;
        }
        lease.pages.extend(self.free.drain(self.free.len() - missing..));
        true
    }

    pub(crate) fn checkpoint(&mut self, _lease: &mut Lease, _tokens: &[u32]) {}

    pub(crate) fn finish(&mut self, lease: Lease, _tokens: &[u32]) {
        self.release(lease);
    }

    pub(crate) fn release(&mut self, lease: Lease) {
        self.free.extend(lease.pages);
    }
}
