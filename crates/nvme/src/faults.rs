//! Faults on demand, for tests. Without the feature `testing` there are none and nothing here costs anything.

use std::io;

/// What an operation does to a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(any(test, feature = "testing")), expect(unreachable_pub, reason = "public with the feature"))]
pub enum Kind {
    /// Reads bytes of a segment.
    Read,
    /// Writes bytes of a segment, or a small file.
    Write,
    /// Waits until bytes are on the drive.
    Sync,
    /// Makes a segment's file.
    Create,
    /// Removes a segment's file.
    Remove,
}

/// What is to happen to an operation.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It goes on.
    Go,
    /// It fails.
    #[cfg_attr(not(any(test, feature = "testing")), expect(dead_code, reason = "only a plan says so"))]
    Fail(io::Error),
    /// It moves only so many bytes.
    #[cfg_attr(not(any(test, feature = "testing")), expect(dead_code, reason = "only a plan says so"))]
    Part(usize),
    /// It moves only so many bytes, and from now on nothing reaches the drive.
    #[cfg_attr(not(any(test, feature = "testing")), expect(dead_code, reason = "only a plan says so"))]
    Crash(usize),
}

#[cfg(not(any(test, feature = "testing")))]
mod none {
    use super::{Kind, Verdict};
    use std::fs::File;
    use std::io;

    /// No faults.
    #[derive(Clone)]
    pub(crate) struct Faults;

    #[expect(clippy::unused_self, reason = "the same calls as with a plan")]
    impl Faults {
        pub(crate) fn none() -> Self {
            Self
        }

        pub(crate) fn meet(&self, _: Kind, _: u64) -> Verdict {
            Verdict::Go
        }

        pub(crate) fn check(&self, _: Kind, _: u64) -> io::Result<()> {
            Ok(())
        }

        pub(crate) fn writes(&self, _: &File, _: u64, _: usize) -> io::Result<()> {
            Ok(())
        }

        pub(crate) fn synced(&self, _: &File) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(not(any(test, feature = "testing")))]
pub(crate) use none::Faults;

#[cfg(any(test, feature = "testing"))]
mod plan {
    use super::{Kind, Verdict};
    use crate::buffer::Buffer;
    use parking_lot::{Condvar, Mutex};
    use rustix::io::Errno;
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    use std::sync::Arc;

    /// What a drive writes at once.
    const SECTOR: usize = 512;

    /// What goes wrong.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Fault {
        /// The operation fails with this error of the operating system.
        Errno(i32),
        /// The operation moves only so many bytes.
        Short(usize),
        /// The operation moves only so many bytes, and then the machine stands still: nothing reaches any drive again.
        Torn(usize),
    }

    /// A fault and when it happens.
    #[derive(Clone, Copy, Debug)]
    pub struct FaultRule {
        /// The drive; any if `None`.
        pub drive: Option<u8>,
        /// The kind of operation; any if `None`.
        pub kind: Option<Kind>,
        /// Operations that match and go well before.
        pub skip: u64,
        /// Operations that fail then.
        pub times: u64,
        /// What goes wrong.
        pub fault: Fault,
    }

    #[derive(Debug, Default)]
    struct State {
        rules: Vec<FaultRule>,
        crashed: bool,
        /// Writes wait while this is set.
        held: bool,
        met: u64,
        /// What was written and not synced, in order; `None`: nobody keeps it.
        unsynced: Option<Vec<Written>>,
    }

    /// A part of a file as it was before it was written to.
    struct Written {
        file: File,
        offset: u64,
        before: Buffer,
    }

    impl std::fmt::Debug for Written {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{} bytes at {}", self.before.len(), self.offset)
        }
    }

    impl Written {
        fn new(file: &File, offset: u64, len: usize) -> io::Result<Self> {
            let mut before = Buffer::zeroed(len);
            let _short = file.read_at(&mut before, offset)?;
            Ok(Self { file: file.try_clone()?, offset, before })
        }

        /// Takes some of the sectors back.
        fn lose(&self, choose: &mut dyn FnMut() -> u64) -> io::Result<()> {
            let mut now = Buffer::zeroed(self.before.len());
            let there = self.file.read_at(&mut now, self.offset)?;
            // A file that was cut meanwhile stays so.
            let (sectors, way) = (there / SECTOR, choose() % 4);
            let kept = choose() as usize % (sectors + 1);
            for sector in 0..sectors {
                let lost = match way {
                    0 => false,
                    1 => true,
                    2 => sector >= kept,
                    _ => choose().is_multiple_of(2),
                };
                let bytes = sector * SECTOR..(sector + 1) * SECTOR;
                if lost {
                    now[bytes.clone()].copy_from_slice(&self.before[bytes]);
                }
            }
            self.file.write_all_at(&now[..there], self.offset)
        }
    }

    /// Faults to have. Shared by a log and the test that injects them.
    #[derive(Debug, Default)]
    pub struct FaultPlan {
        state: Mutex<State>,
        released: Condvar,
    }

    impl FaultPlan {
        /// No faults yet.
        #[must_use]
        pub fn new() -> Arc<Self> {
            Arc::default()
        }

        /// Adds a fault.
        pub fn add(&self, rule: FaultRule) {
            self.state.lock().rules.push(rule);
        }

        /// Every operation of this kind on this drive fails with this error from now on.
        pub fn fail(&self, drive: Option<u8>, kind: Kind, errno: i32) {
            let fault = Fault::Errno(errno);
            self.add(FaultRule { drive, kind: Some(kind), skip: 0, times: u64::MAX, fault });
        }

        /// No more faults. What has crashed stays so.
        pub fn heal(&self) {
            self.state.lock().rules.clear();
        }

        /// Nothing reaches any drive from now on, as if the machine had lost its power.
        pub fn crash(&self) {
            self.state.lock().crashed = true;
            self.released.notify_all();
        }

        /// From now on it is known what was written and not synced, as far as threads or hands wrote it, and not a ring.
        pub fn keep_unsynced(&self) {
            self.state.lock().unsynced.get_or_insert_default();
        }

        /// The power goes: of what was written and not synced, some sectors are on the drives and others are as before, as
        /// `choose` says. For when no log has the drives. Returns how many writes there were.
        ///
        /// # Errors
        ///
        /// The system's.
        pub fn lose_power(&self, choose: &mut dyn FnMut() -> u64) -> io::Result<usize> {
            let lost = self.state.lock().unsynced.replace(Vec::new()).unwrap_or_default();
            // The last one first, so that what was written twice goes back step by step.
            lost.iter().rev().try_for_each(|written| written.lose(choose))?;
            Ok(lost.len())
        }

        /// Whether a torn write has happened, or [`FaultPlan::crash`] was called.
        #[must_use]
        pub fn has_crashed(&self) -> bool {
            self.state.lock().crashed
        }

        /// Faults that have happened.
        #[must_use]
        pub fn met(&self) -> u64 {
            self.state.lock().met
        }

        /// Writes wait from now on until [`FaultPlan::release`].
        pub fn hold_writes(&self) {
            self.state.lock().held = true;
        }

        /// Lets the writes go that wait.
        pub fn release(&self) {
            self.state.lock().held = false;
            self.released.notify_all();
        }

        fn meet(&self, drive: u8, kind: Kind) -> Verdict {
            let mut state = self.state.lock();
            while state.held && !state.crashed && kind == Kind::Write {
                self.released.wait(&mut state);
            }
            if state.crashed {
                return Verdict::Fail(io::Error::from(Errno::IO));
            }
            let fits = |rule: &&mut FaultRule| {
                rule.drive.is_none_or(|of| of == drive)
                    && rule.kind.is_none_or(|of| of == kind)
                    && rule.times > 0
            };
            let Some(rule) = state.rules.iter_mut().find(fits) else { return Verdict::Go };
            if rule.skip > 0 {
                rule.skip -= 1;
                return Verdict::Go;
            }
            rule.times -= 1;
            let fault = rule.fault;
            state.met += 1;
            match fault {
                Fault::Errno(errno) => Verdict::Fail(io::Error::from_raw_os_error(errno)),
                Fault::Short(bytes) => Verdict::Part(bytes),
                Fault::Torn(bytes) => {
                    state.crashed = true;
                    Verdict::Crash(bytes)
                }
            }
        }
    }

    /// The plan as one drive sees it.
    #[derive(Clone, Default)]
    pub(crate) struct Faults {
        plan: Option<Arc<FaultPlan>>,
        drive: u8,
    }

    impl Faults {
        pub(crate) fn none() -> Self {
            Self::default()
        }

        pub(crate) fn new(plan: Option<Arc<FaultPlan>>, drive: u8) -> Self {
            Self { plan, drive }
        }

        /// What is to happen to an operation on this drive.
        pub(crate) fn meet(&self, kind: Kind, _bytes: u64) -> Verdict {
            self.plan.as_ref().map_or(Verdict::Go, |plan| plan.meet(self.drive, kind))
        }

        /// As [`Faults::meet`], for operations that happen whole or not at all.
        pub(crate) fn check(&self, kind: Kind, bytes: u64) -> io::Result<()> {
            match self.meet(kind, bytes) {
                Verdict::Go | Verdict::Part(_) => Ok(()),
                Verdict::Fail(reason) => Err(reason),
                Verdict::Crash(_) => Err(io::Error::from(Errno::IO)),
            }
        }

        /// So many bytes of a file are about to be written.
        pub(crate) fn writes(&self, file: &File, offset: u64, len: usize) -> io::Result<()> {
            let Some(plan) = &self.plan else { return Ok(()) };
            if let Some(unsynced) = &mut plan.state.lock().unsynced {
                unsynced.push(Written::new(file, offset, len)?);
            }
            Ok(())
        }

        /// All of a file is on the drive.
        pub(crate) fn synced(&self, file: &File) -> io::Result<()> {
            let Some(plan) = &self.plan else { return Ok(()) };
            let mut state = plan.state.lock();
            let Some(unsynced) = state.unsynced.as_mut().filter(|unsynced| !unsynced.is_empty()) else {
                return Ok(());
            };
            let own = file.metadata()?.ino();
            let mut kept = Vec::with_capacity(unsynced.len());
            for written in unsynced.drain(..) {
                if written.file.metadata()?.ino() != own {
                    kept.push(written);
                }
            }
            *unsynced = kept;
            Ok(())
        }
    }
}

#[cfg(any(test, feature = "testing"))]
pub(crate) use plan::Faults;
#[cfg(any(test, feature = "testing"))]
pub use plan::{Fault, FaultPlan, FaultRule};
