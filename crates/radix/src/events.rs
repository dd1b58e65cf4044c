//! What happened to the content, for routers that send a request where its prefix is.
//!
//! Invariant: whoever adds every stored block and takes away every removed one has the present content of each
//! medium. If nobody collects events, the log does not grow without bound: it forgets them and lists the whole
//! content at the next call, after [`Event::AllBlocksCleared`].

use crate::hash::Digest;
use crate::tokens::{Shape, TokenBuf, Tokens};

/// Where a copy of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Medium {
    /// Device memory.
    Gpu,
    /// Host memory.
    Cpu,
}

/// A change of content.
#[derive(Clone, Debug)]
pub enum Event {
    /// Blocks are there now.
    BlockStored(Stored),
    /// Blocks are gone.
    BlockRemoved {
        /// Their ids.
        hashes: Vec<i64>,
        /// Where they were.
        medium: Medium,
    },
    /// Nothing is there any more.
    AllBlocksCleared,
}

/// A run of blocks that follow each other.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The ids of the blocks.
    pub hashes: Vec<i64>,
    /// The id of the block before the first.
    pub parent: Option<i64>,
    /// The tokens of all blocks; for pairs one more than there are units.
    pub tokens: TokenBuf,
    /// Units per block.
    pub block_size: usize,
    /// Where they are.
    pub medium: Medium,
    /// The extra key of the namespace, with the adapter's name.
    pub extra_key: Option<Box<str>>,
    /// The salt; for private pages that of their owner.
    pub cache_salt: Option<Box<str>>,
}

/// One stored run, before it is an event.
pub(crate) struct Run<'a> {
    pub(crate) digests: &'a [Digest],
    pub(crate) parent: Option<Digest>,
    pub(crate) tokens: Tokens<'a>,
    pub(crate) extra_key: Option<&'a str>,
    pub(crate) cache_salt: Option<&'a str>,
}

/// Events that nobody has taken yet.
pub(crate) struct EventLog {
    shape: Shape,
    max: usize,
    events: Vec<Event>,
    /// Events were forgotten; the next reader gets a listing.
    pub(crate) overflowed: bool,
}

impl EventLog {
    pub(crate) fn new(shape: Shape, max: usize) -> Self {
        Self { shape, max, events: Vec::new(), overflowed: false }
    }

    /// Whether anything is recorded at all.
    pub(crate) fn is_on(&self) -> bool {
        self.max > 0
    }

    fn push(&mut self, event: Event) {
        if self.overflowed {
            return;
        }
        if self.events.len() >= self.max {
            self.events = Vec::new();
            self.overflowed = true;
            return;
        }
        self.events.push(event);
    }

    pub(crate) fn stored(&mut self, run: &Run<'_>, medium: Medium) {
        if self.is_on() && !self.overflowed {
            let max = self.max;
            append(&mut self.events, self.shape, run, medium);
            if self.events.len() > max {
                self.events = Vec::new();
                self.overflowed = true;
            }
        }
    }

    pub(crate) fn removed(&mut self, digests: &[Digest], medium: Medium) {
        if !self.is_on() {
            return;
        }
        let ids = digests.iter().map(Digest::event_id);
        match self.events.last_mut() {
            Some(Event::BlockRemoved { hashes, medium: last }) if *last == medium => hashes.extend(ids),
            _ => self.push(Event::BlockRemoved { hashes: ids.collect(), medium }),
        }
    }

    pub(crate) fn cleared(&mut self) {
        if self.is_on() {
            self.events.clear();
            self.overflowed = false;
            self.push(Event::AllBlocksCleared);
        }
    }

    pub(crate) fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }
}

/// Adds a stored run, to the last event if it continues that.
pub(crate) fn append(events: &mut Vec<Event>, shape: Shape, run: &Run<'_>, medium: Medium) {
    let parent = run.parent.map(|digest| digest.event_id());
    let hashes = run.digests.iter().map(Digest::event_id);
    if let Some(Event::BlockStored(last)) = events.last_mut()
        && last.medium == medium
        && parent.is_some()
        && last.hashes.last().copied() == parent
        && last.extra_key.as_deref() == run.extra_key
        && last.cache_salt.as_deref() == run.cache_salt
    {
        last.hashes.extend(hashes);
        last.tokens.extend(run.tokens.slice(shape.overlap()..run.tokens.len()));
        return;
    }
    events.push(Event::BlockStored(Stored {
        hashes: hashes.collect(),
        parent,
        tokens: run.tokens.into(),
        block_size: shape.page_tokens(),
        medium,
        extra_key: run.extra_key.map(Into::into),
        cache_salt: run.cache_salt.map(Into::into),
    }));
}
