//! Ops on pages, asynchronous form.

use crate::ops::{Call, Finished, same_length};
use crate::plan::KeyList;
use crate::raw::Pieces;
use crate::{BatchReport, ClearReport, Client, Error, PageOutcome, SpaceDescription, SpaceId};
use memkv_transport::frame::{FLAG_EXACT, FLAG_PREFIX, Op};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The largest room that a get of unknown length offers at first.
const GUESS_BYTES_MAX: usize = 4 << 20;
/// A page that keeps changing its length between two looks is given up after this many.
const LOOKS_MAX: usize = 4;

/// A client plus one space. Cheap to clone.
///
/// All batch ops report per key; they return an error only for arguments that make no sense
/// ([`crate::ErrorKind::BadInput`]) or after [`Client::close`] ([`crate::ErrorKind::Closed`]). A server that fails
/// costs its keys and nothing else. Futures may be dropped at any point: the connections they used are closed, and
/// nobody touches the caller's memory any more.
#[derive(Clone, Debug)]
pub struct Space {
    client: Client,
    description: Arc<SpaceDescription>,
    id: SpaceId,
    guess: Arc<AtomicUsize>,
    /// Position of the first key of each batch in its chain, from 1; 0 if unknown.
    position: u32,
}

/// What the next step of a get of unknown length is.
pub(crate) enum Look {
    Done(Option<Vec<u8>>),
    Again(usize),
}

/// Decides after one look at a page of unknown length.
pub(crate) fn look(mut room: Vec<u8>, outcome: PageOutcome, seen_len: u32) -> Result<Look, Error> {
    let seen = seen_len as usize;
    match outcome {
        PageOutcome::Hit => {
            room.truncate(seen);
            Ok(Look::Done(Some(room)))
        }
        PageOutcome::SizeMismatch if seen > room.len() => Ok(Look::Again(seen)),
        PageOutcome::Miss | PageOutcome::SizeMismatch | PageOutcome::Corrupt => Ok(Look::Done(None)),
        PageOutcome::TimedOut => Err(Error::new(crate::ErrorKind::Timeout, "the deadline of the get passed")),
        PageOutcome::Denied => {
            Err(Error::new(crate::ErrorKind::Unauthenticated, "this identity may not read the space"))
        }
        PageOutcome::Stored
        | PageOutcome::Exists
        | PageOutcome::TooLarge
        | PageOutcome::Busy
        | PageOutcome::Unavailable => {
            Err(Error::new(crate::ErrorKind::Unavailable, "the page's server is not available"))
        }
    }
}

impl Space {
    pub(crate) fn new(client: Client, description: SpaceDescription) -> Self {
        let id = description.id();
        Self {
            client,
            description: Arc::new(description),
            id,
            guess: Arc::new(AtomicUsize::new(4096)),
            position: 0,
        }
    }

    /// The space's identity.
    #[must_use]
    pub fn id(&self) -> SpaceId {
        self.id
    }

    /// What the space is.
    #[must_use]
    pub fn description(&self) -> &SpaceDescription {
        &self.description
    }

    /// The same space for batches whose first key is the page at `position` of its chain of prefixes, counted from
    /// 1; the keys after it are the pages after that one. A server that must make room gives up deep pages of a chain
    /// before shallow ones, so it should know. 0, as in a space from [`Client::space`], says that it is unknown: then the keys of a batch are
    /// taken to follow each other in some chain.
    ///
    /// Positions travel with puts and stay with the pages; reads need none.
    #[must_use]
    pub fn at_position(&self, position: u32) -> Self {
        Self { position, ..self.clone() }
    }

    /// The client it belongs to.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Room for a page of unknown length.
    pub(crate) fn guess(&self) -> usize {
        self.guess.load(Relaxed)
    }

    pub(crate) fn learn(&self, len: usize) {
        self.guess.store(len.min(GUESS_BYTES_MAX), Relaxed);
    }

    pub(crate) fn looks_max() -> usize {
        LOOKS_MAX
    }

    pub(crate) fn keys_call<'a>(
        &self,
        op: Op,
        flags: u16,
        keys: &'a dyn KeyList,
        outcomes: &'a mut [PageOutcome],
    ) -> Call<'a> {
        Call { op, flags, space: self.id, position: self.position, keys, pieces: Pieces::none(), outcomes }
    }

    pub(crate) fn pages_call<'a>(
        &self,
        op: Op,
        keys: &'a dyn KeyList,
        pieces: Pieces<'a>,
        outcomes: &'a mut [PageOutcome],
    ) -> Result<Call<'a>, Error> {
        same_length(keys.count(), "outcomes", outcomes.len())?;
        let flags = if op == Op::Get { FLAG_EXACT } else { 0 };
        Ok(Call { op, flags, space: self.id, position: self.position, keys, pieces, outcomes })
    }

    /// A get that takes pages shorter than their room.
    pub(crate) fn look_call<'a>(
        &self,
        keys: &'a dyn KeyList,
        pieces: Pieces<'a>,
        outcomes: &'a mut [PageOutcome],
    ) -> Call<'a> {
        Call { op: Op::Get, flags: 0, space: self.id, position: 0, keys, pieces, outcomes }
    }

    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Finished, Error> {
        self.client.inner.call(call).await
    }

    async fn bools(&self, op: Op, keys: &dyn KeyList, out: &mut [bool]) -> Result<BatchReport, Error> {
        same_length(keys.count(), "results", out.len())?;
        let scratch = &self.client.inner.scratch;
        let mut outcomes = scratch.take_outcomes(out.len());
        let finished = self.call(self.keys_call(op, 0, keys, &mut outcomes)).await;
        for (out, outcome) in out.iter_mut().zip(&outcomes) {
            *out = finished.is_ok() && outcome.is_success();
        }
        scratch.give_outcomes(outcomes);
        Ok(finished?.report)
    }

    /// Says which keys are present. A key whose server does not answer counts as absent.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub async fn exists<K: AsRef<[u8]> + Sync>(
        &self,
        keys: &[K],
        found: &mut [bool],
    ) -> Result<BatchReport, Error> {
        self.bools(Op::Exists, &keys, found).await
    }

    /// How many keys at the beginning of the list are present without a gap.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub async fn exists_prefix<K: AsRef<[u8]> + Sync>(&self, keys: &[K]) -> Result<usize, Error> {
        let scratch = &self.client.inner.scratch;
        let mut outcomes = scratch.take_outcomes(keys.len());
        let finished = self.call(self.keys_call(Op::Exists, FLAG_PREFIX, &keys, &mut outcomes)).await;
        let run = outcomes.iter().take_while(|outcome| outcome.is_success()).count();
        scratch.give_outcomes(outcomes);
        finished.map(|_| run)
    }

    /// Removes pages; `out` says which were there.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub async fn delete<K: AsRef<[u8]> + Sync>(
        &self,
        keys: &[K],
        out: &mut [bool],
    ) -> Result<BatchReport, Error> {
        self.bools(Op::Delete, &keys, out).await
    }

    /// Marks pages as just used; `out` says which are there.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub async fn touch<K: AsRef<[u8]> + Sync>(
        &self,
        keys: &[K],
        out: &mut [bool],
    ) -> Result<BatchReport, Error> {
        self.bools(Op::Touch, &keys, out).await
    }

    /// Reads pages into the caller's slices, whose lengths must be exact. Only a [`PageOutcome::Hit`] says that a
    /// destination holds the page; any other may have left bytes of it.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub async fn get_into<K: AsRef<[u8]> + Sync>(
        &self,
        keys: &[K],
        pages: &mut [&mut [u8]],
        out: &mut [PageOutcome],
    ) -> Result<BatchReport, Error> {
        same_length(keys.len(), "pages", pages.len())?;
        let call = self.pages_call(Op::Get, &keys, Pieces::targets(pages), out)?;
        Ok(self.call(call).await?.report)
    }

    /// Stores pages from the caller's slices. A page that is there already is not sent.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub async fn put_from<K: AsRef<[u8]> + Sync>(
        &self,
        keys: &[K],
        pages: &[&[u8]],
        out: &mut [PageOutcome],
    ) -> Result<BatchReport, Error> {
        same_length(keys.len(), "pages", pages.len())?;
        let call = self.pages_call(Op::Put, &keys, Pieces::sources(pages), out)?;
        Ok(self.call(call).await?.report)
    }

    /// Reads one page whose length is not known beforehand; `None` if it is absent.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Unavailable`] or [`crate::ErrorKind::Timeout`] if its server does not answer; see also
    /// [`Space`].
    pub async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let keys: &[&[u8]] = &[key];
        let mut len = self.guess();
        for _ in 0..LOOKS_MAX {
            let mut room = vec![0; len];
            let mut out = [PageOutcome::Unavailable];
            let finished = {
                let mut pages = [&mut room[..]];
                let pieces = Pieces::targets(&mut pages);
                self.call(self.look_call(&keys, pieces, &mut out)).await?
            };
            match look(room, out[0], finished.seen_len)? {
                Look::Done(page) => return Ok(page),
                Look::Again(seen) => len = seen,
            }
            self.learn(len);
        }
        Ok(None)
    }

    /// Stores one page.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub async fn put(&self, key: &[u8], page: &[u8]) -> Result<PageOutcome, Error> {
        let mut out = [PageOutcome::Unavailable];
        self.put_from(&[key], &[page], &mut out).await?;
        Ok(out[0])
    }

    /// Removes all pages of exactly this space, from every server. The report says which servers failed.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Closed`].
    pub async fn clear(&self) -> Result<ClearReport, Error> {
        self.client.clear(self.id).await
    }
}
