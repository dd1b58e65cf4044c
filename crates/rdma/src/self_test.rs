//! Whether a NIC works here: two queue pairs on one port move bytes through it and back.

#![allow(unsafe_code, reason = "registers and posts memory of its own")]

use crate::error::RdmaError;
use crate::info::Place;
use crate::nic::{Access, Nic, QueuePair, Timing, Verbs, Work, WorkError, WorkKind};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// What is moved each way.
const PAGES: usize = 16;
const PAGE_BYTES: usize = 64 << 10;
/// Longer than this only takes what does not work.
const LIMIT: Duration = Duration::from_secs(20);

/// How the test went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelfTest {
    /// Bytes that were moved each way, all of which were compared.
    pub bytes: u64,
    /// How long the writes took.
    pub write: Duration,
    /// How long the reads took.
    pub read: Duration,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelfTestError {
    /// A step failed.
    #[error(transparent)]
    Step(#[from] RdmaError),
    /// Work failed.
    #[error("{0:?} failed: {1}")]
    Work(WorkKind, WorkError),
    /// Work did not end.
    #[error("{0:?} did not end within {1:?}")]
    Late(WorkKind, Duration),
    /// The bytes that arrived are not those that were sent.
    #[error("{0:?} delivered other bytes than were sent")]
    Bytes(WorkKind),
}

/// Opens the place, connects two queue pairs there, writes from one to the other, reads back, and compares all bytes.
///
/// # Errors
///
/// The first thing that went wrong.
pub fn self_test(verbs: &dyn Verbs, place: &Place) -> Result<SelfTest, SelfTestError> {
    let nic = verbs.open(place)?;
    let mut near = vec![0u8; PAGES * PAGE_BYTES];
    let mut far = near.clone();
    near.iter_mut().enumerate().for_each(|(index, byte)| *byte = (index / 251) as u8 ^ index as u8);
    let sent = near.clone();
    let write = transfer(nic.as_ref(), WorkKind::Write, &mut near, &mut far)?;
    if far != sent {
        return Err(SelfTestError::Bytes(WorkKind::Write));
    }
    near.fill(0);
    let read = transfer(nic.as_ref(), WorkKind::Read, &mut near, &mut far)?;
    if near != sent {
        return Err(SelfTestError::Bytes(WorkKind::Read));
    }
    Ok(SelfTest { bytes: sent.len() as u64, write, read })
}

/// Moves all pages between the two, with everything made for it and gone after it.
fn transfer(
    nic: &dyn Nic,
    kind: WorkKind,
    near: &mut [u8],
    far: &mut [u8],
) -> Result<Duration, SelfTestError> {
    let start_of = |bytes: &mut [u8]| NonNull::from(bytes).cast::<u8>();
    let (near_start, far_start) = (start_of(near), start_of(far));
    // SAFETY: the caller lends the bytes for this call, at whose end the region is dropped.
    let near_region = unsafe { nic.register(near_start, near.len(), Access::Local) }?;
    // SAFETY: as above.
    let far_region = unsafe { nic.register(far_start, far.len(), Access::REMOTE) }?;
    // Dropped before the regions, also when a step fails.
    let mut ours = nic.queue_pair(PAGES as u32, Access::Local)?;
    let mut theirs = nic.queue_pair(1, Access::REMOTE)?;
    theirs.connect(&ours.address(), Timing::default())?;
    ours.connect(&theirs.address(), Timing::default())?;
    let at =
        |start: NonNull<u8>, page: usize| (start.as_ptr().expose_provenance() + page * PAGE_BYTES) as u64;
    let work: Vec<Work> = (0..PAGES)
        .map(|page| Work {
            id: page as u64,
            kind,
            local: at(near_start, page),
            local_key: near_region.local_key(),
            len: PAGE_BYTES as u32,
            remote: at(far_start, page),
            remote_key: far_region.remote_key(),
            signaled: page + 1 == PAGES,
        })
        .collect();
    let started = Instant::now();
    // SAFETY: the caller's bytes are lent to this call, and the queue pair is dropped before it returns.
    unsafe { ours.post(&work) }?;
    await_last(ours.as_mut(), kind, started)?;
    Ok(started.elapsed())
}

fn await_last(pair: &mut dyn QueuePair, kind: WorkKind, started: Instant) -> Result<(), SelfTestError> {
    let mut done = Vec::new();
    while done.is_empty() {
        if started.elapsed() > LIMIT {
            return Err(SelfTestError::Late(kind, LIMIT));
        }
        pair.poll(&mut done)?;
        std::thread::yield_now();
    }
    done[0].result.map_err(|error| SelfTestError::Work(kind, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choose;
    use crate::fake::Fabric;

    fn place(fabric: &Fabric) -> Place {
        choose(&fabric.nics().unwrap(), &[], None).unwrap().remove(0)
    }

    #[test]
    fn a_nic_that_works_moves_everything_twice_and_keeps_nothing() {
        let fabric = Fabric::new(1);
        let result = self_test(&fabric, &place(&fabric)).unwrap();
        assert_eq!(result.bytes, (PAGES * PAGE_BYTES) as u64);
        let counts = fabric.counts();
        assert_eq!((counts.moved_bytes, counts.regions, counts.queue_pairs), (2 * result.bytes, 0, 0));
    }

    #[test]
    fn what_fails_is_told() {
        let fabric = Fabric::new(1);
        let place = place(&fabric);
        fabric.fail_work(3, WorkError::RetryExceeded);
        let error = self_test(&fabric, &place).unwrap_err();
        assert_eq!(error, SelfTestError::Work(WorkKind::Write, WorkError::RetryExceeded));
        fabric.fail_work(PAGES + 3, WorkError::RnrRetry);
        let error = self_test(&fabric, &place).unwrap_err();
        assert_eq!(error, SelfTestError::Work(WorkKind::Read, WorkError::RnrRetry));
        for (after, kind) in [(5, WorkKind::Write), (PAGES + 5, WorkKind::Read)] {
            fabric.damage_work(after);
            assert_eq!(self_test(&fabric, &place), Err(SelfTestError::Bytes(kind)));
        }
        fabric.refuse_registrations(1);
        let error = self_test(&fabric, &place).unwrap_err();
        assert!(matches!(error, SelfTestError::Step(RdmaError::Memlock { .. })), "{error}");
        fabric.remove("fake0");
        assert!(matches!(
            self_test(&fabric, &place),
            Err(SelfTestError::Step(RdmaError::NoSuchDevice { .. }))
        ));
        assert_eq!(fabric.counts().regions, 0);
    }
}
