//! The same client for code without a runtime.
//!
//! Ops on pages run on the caller's own thread, which waits in `poll(2)`; a batch of 4 MiB and more also on threads that
//! it starts and joins, so that no thread touches a page when the call has returned. Calls
//! about servers and spaces, and the gRPC transport, run in the background while the caller's thread sleeps.
//! Everything here may be called from any thread, also from inside an asynchronous runtime if blocking that thread
//! is acceptable.

use crate::control::ServerResult;
use crate::ops::{Call, Finished, same_length};
use crate::plan::KeyList;
use crate::raw::Pieces;
use crate::space::{Look, look};
use crate::{
    BatchReport, ClearReport, ClientStats, Config, Error, PageOutcome, RouteEntry, ServerView,
    SpaceDescription, SpaceId, v1,
};
use memkv_transport::frame::{FLAG_PREFIX, Op};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls a future on this thread until it is done. Our futures rely on no runtime of the thread that polls them.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// [`crate::Client`] with blocking calls.
#[derive(Clone, Debug)]
pub struct Client {
    inner: crate::Client,
}

impl Client {
    /// See [`crate::Client::connect`].
    ///
    /// # Errors
    ///
    /// See [`crate::Client::connect`].
    pub fn connect(config: Config) -> Result<Self, Error> {
        block_on(crate::Client::connect(config)).map(|inner| Self { inner })
    }

    /// See [`crate::Client::connect_with`].
    ///
    /// # Errors
    ///
    /// See [`crate::Client::connect_with`].
    pub fn connect_with(config: Config, verbs: Option<Arc<dyn memkv_rdma::Verbs>>) -> Result<Self, Error> {
        block_on(crate::Client::connect_with(config, verbs)).map(|inner| Self { inner })
    }

    /// The asynchronous form of the same client.
    #[must_use]
    pub fn asynchronous(&self) -> &crate::Client {
        &self.inner
    }

    /// See [`crate::Client::space`].
    ///
    /// # Errors
    ///
    /// See [`crate::Client::space`].
    pub fn space(&self, description: SpaceDescription) -> Result<Space, Error> {
        block_on(self.inner.space(description)).map(|inner| Space { inner })
    }

    /// See [`crate::Client::stats`].
    #[must_use]
    pub fn stats(&self) -> ClientStats {
        self.inner.stats()
    }

    /// See [`crate::Client::servers`].
    #[must_use]
    pub fn servers(&self) -> Vec<ServerView> {
        self.inner.servers()
    }

    /// See [`crate::Client::membership`].
    #[must_use]
    pub fn membership(&self) -> crate::Membership {
        self.inner.membership()
    }

    /// See [`crate::Client::config`].
    #[must_use]
    pub fn config(&self) -> &Config {
        self.inner.config()
    }

    /// See [`crate::Client::route`].
    #[must_use]
    pub fn route(&self, space: SpaceId, key: &[u8]) -> Vec<RouteEntry> {
        self.inner.route(space, key)
    }

    /// See [`crate::Client::statuses`].
    #[must_use]
    pub fn statuses(&self) -> Vec<ServerResult<v1::GetStatusResponse>> {
        block_on(self.inner.statuses())
    }

    /// See [`crate::Client::drain`].
    ///
    /// # Errors
    ///
    /// See [`crate::Client::drain`].
    pub fn drain(
        &self,
        server_id: &str,
        drain: v1::DrainRequest,
        progress: impl FnMut(&v1::DrainProgress),
    ) -> Result<v1::DrainProgress, Error> {
        block_on(self.inner.drain(server_id, drain, progress))
    }

    /// See [`crate::Client::list_spaces`].
    #[must_use]
    pub fn list_spaces(&self) -> Vec<ServerResult<v1::ListSpacesResponse>> {
        block_on(self.inner.list_spaces())
    }

    /// See [`crate::Client::list_keys`].
    ///
    /// # Errors
    ///
    /// See [`crate::Client::list_keys`].
    pub fn list_keys(
        &self,
        server_id: &str,
        list: v1::ListKeysRequest,
    ) -> Result<v1::ListKeysResponse, Error> {
        block_on(self.inner.list_keys(server_id, list))
    }

    /// See [`crate::Client::inspect_key`].
    #[must_use]
    pub fn inspect_key(
        &self,
        space: SpaceId,
        key: &[u8],
        verify: bool,
    ) -> Vec<ServerResult<v1::InspectKeyResponse>> {
        block_on(self.inner.inspect_key(space, key, verify))
    }

    /// See [`crate::Client::pin`].
    #[must_use]
    pub fn pin(&self, space: SpaceId, keys: &[Vec<u8>], ttl: Duration) -> Vec<ServerResult<v1::PinResponse>> {
        block_on(self.inner.pin(space, keys, ttl))
    }

    /// See [`crate::Client::unpin`].
    #[must_use]
    pub fn unpin(&self, space: SpaceId, keys: &[Vec<u8>]) -> Vec<ServerResult<v1::UnpinResponse>> {
        block_on(self.inner.unpin(space, keys))
    }

    /// See [`crate::Client::pins`].
    #[must_use]
    pub fn pins(&self) -> Vec<ServerResult<v1::ListPinsResponse>> {
        block_on(self.inner.pins())
    }

    /// See [`crate::Client::verify`].
    ///
    /// # Errors
    ///
    /// See [`crate::Client::verify`].
    pub fn verify(
        &self,
        server_id: &str,
        verify: v1::VerifyRequest,
        progress: impl FnMut(&v1::VerifyResponse),
    ) -> Result<v1::VerifyResponse, Error> {
        block_on(self.inner.verify(server_id, verify, progress))
    }

    /// See [`crate::Client::quarantined`].
    #[must_use]
    pub fn quarantined(&self) -> Vec<ServerResult<v1::ListQuarantinedResponse>> {
        block_on(self.inner.quarantined())
    }

    /// See [`crate::Client::segments`].
    #[must_use]
    pub fn segments(&self) -> Vec<ServerResult<v1::ListSegmentsResponse>> {
        block_on(self.inner.segments())
    }

    /// See [`crate::Client::clear_space`].
    #[must_use]
    pub fn clear_space(&self, space: SpaceId) -> Vec<ServerResult<v1::ClearSpaceResponse>> {
        block_on(self.inner.clear_space(space))
    }

    /// See [`crate::Client::close`].
    pub fn close(self) {
        self.inner.close_now();
    }
}

/// [`crate::Space`] with blocking calls; the same rules hold.
#[derive(Clone, Debug)]
pub struct Space {
    inner: crate::Space,
}

impl Space {
    pub(crate) fn inner(&self) -> &crate::Space {
        &self.inner
    }

    /// The asynchronous form of the same space.
    #[must_use]
    pub fn asynchronous(&self) -> &crate::Space {
        &self.inner
    }

    /// See [`crate::Space::id`].
    #[must_use]
    pub fn id(&self) -> SpaceId {
        self.inner.id()
    }

    /// See [`crate::Space::description`].
    #[must_use]
    pub fn description(&self) -> &SpaceDescription {
        self.inner.description()
    }

    /// See [`crate::Space::at_position`].
    #[must_use]
    pub fn at_position(&self, position: u32) -> Self {
        Self { inner: self.inner.at_position(position) }
    }

    pub(crate) fn call(&self, call: Call<'_>) -> Result<Finished, Error> {
        self.inner.client().inner.call_blocking(call)
    }

    fn bools(&self, op: Op, keys: &dyn KeyList, out: &mut [bool]) -> Result<BatchReport, Error> {
        same_length(keys.count(), "results", out.len())?;
        let scratch = &self.inner.client().inner.scratch;
        let mut outcomes = scratch.take_outcomes(out.len());
        let finished = self.call(self.inner.keys_call(op, 0, keys, &mut outcomes));
        for (out, outcome) in out.iter_mut().zip(&outcomes) {
            *out = finished.is_ok() && outcome.is_success();
        }
        scratch.give_outcomes(outcomes);
        Ok(finished?.report)
    }

    /// See [`crate::Space::exists`].
    ///
    /// # Errors
    ///
    /// See [`crate::Space`].
    pub fn exists<K: AsRef<[u8]> + Sync>(
        &self,
        keys: &[K],
        found: &mut [bool],
    ) -> Result<BatchReport, Error> {
        self.bools(Op::Exists, &keys, found)
    }

    /// See [`crate::Space::exists_prefix`].
    ///
    /// # Errors
    ///
    /// See [`crate::Space`].
    pub fn exists_prefix<K: AsRef<[u8]> + Sync>(&self, keys: &[K]) -> Result<usize, Error> {
        let scratch = &self.inner.client().inner.scratch;
        let mut outcomes = scratch.take_outcomes(keys.len());
        let finished = self.call(self.inner.keys_call(Op::Exists, FLAG_PREFIX, &keys, &mut outcomes));
        let run = outcomes.iter().take_while(|outcome| outcome.is_success()).count();
        scratch.give_outcomes(outcomes);
        finished.map(|_| run)
    }

    /// See [`crate::Space::delete`].
    ///
    /// # Errors
    ///
    /// See [`crate::Space`].
    pub fn delete<K: AsRef<[u8]> + Sync>(&self, keys: &[K], out: &mut [bool]) -> Result<BatchReport, Error> {
        self.bools(Op::Delete, &keys, out)
    }

    /// See [`crate::Space::touch`].
    ///
    /// # Errors
    ///
    /// See [`crate::Space`].
    pub fn touch<K: AsRef<[u8]> + Sync>(&self, keys: &[K], out: &mut [bool]) -> Result<BatchReport, Error> {
        self.bools(Op::Touch, &keys, out)
    }

    /// See [`crate::Space::get_into`].
    ///
    /// # Errors
    ///
    /// See [`crate::Space`].
    pub fn get_into<K: AsRef<[u8]> + Sync>(
        &self,
        keys: &[K],
        pages: &mut [&mut [u8]],
        out: &mut [PageOutcome],
    ) -> Result<BatchReport, Error> {
        same_length(keys.len(), "pages", pages.len())?;
        let call = self.inner.pages_call(Op::Get, &keys, Pieces::targets(pages), out)?;
        Ok(self.call(call)?.report)
    }

    /// See [`crate::Space::put_from`].
    ///
    /// # Errors
    ///
    /// See [`crate::Space`].
    pub fn put_from<K: AsRef<[u8]> + Sync>(
        &self,
        keys: &[K],
        pages: &[&[u8]],
        out: &mut [PageOutcome],
    ) -> Result<BatchReport, Error> {
        same_length(keys.len(), "pages", pages.len())?;
        let call = self.inner.pages_call(Op::Put, &keys, Pieces::sources(pages), out)?;
        Ok(self.call(call)?.report)
    }

    /// See [`crate::Space::get`].
    ///
    /// # Errors
    ///
    /// See [`crate::Space::get`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let keys: &[&[u8]] = &[key];
        let mut len = self.inner.guess();
        for _ in 0..crate::Space::looks_max() {
            let mut room = vec![0; len];
            let mut out = [PageOutcome::Unavailable];
            let finished = {
                let mut pages = [&mut room[..]];
                let pieces = Pieces::targets(&mut pages);
                self.call(self.inner.look_call(&keys, pieces, &mut out))?
            };
            match look(room, out[0], finished.seen_len)? {
                Look::Done(page) => return Ok(page),
                Look::Again(seen) => len = seen,
            }
            self.inner.learn(len);
        }
        Ok(None)
    }

    /// See [`crate::Space::put`].
    ///
    /// # Errors
    ///
    /// See [`crate::Space`].
    pub fn put(&self, key: &[u8], page: &[u8]) -> Result<PageOutcome, Error> {
        let mut out = [PageOutcome::Unavailable];
        self.put_from(&[key], &[page], &mut out)?;
        Ok(out[0])
    }

    /// See [`crate::Space::clear`].
    ///
    /// # Errors
    ///
    /// See [`crate::Space::clear`].
    pub fn clear(&self) -> Result<ClearReport, Error> {
        block_on(self.inner.clear())
    }
}
