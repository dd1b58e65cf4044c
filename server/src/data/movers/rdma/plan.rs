//! Work requests for the pages of one request.
//!
//! Deliberately absent: queue pairs. A plan is a list; [`super::queue`] carries it out.

use super::regions::Remote;
use memkv_rdma::{Work, WorkKind};

/// One part of the arena, as one NIC knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) key: u32,
}

/// The work of one request.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) work: Vec<Work>,
    /// For every page, how much of `work` has to be done before all its bytes have moved. Never falls.
    pub(crate) ends: Vec<usize>,
}

/// A page does not lie in the memory that the NIC knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotRegistered;

impl Plan {
    /// Makes room for the next request.
    pub(crate) fn clear(&mut self) {
        self.work.clear();
        self.ends.clear();
    }

    /// Adds a page: its bytes begin at `local`, and `remote` are as many bytes at the client.
    ///
    /// # Errors
    ///
    /// [`NotRegistered`] is a bug of ours; the plan is of no use then.
    pub(crate) fn add(
        &mut self,
        kind: WorkKind,
        mut local: u64,
        arena: &[Part],
        remote: &[Remote],
    ) -> Result<(), NotRegistered> {
        for piece in remote {
            let mut done = 0;
            while done < piece.len {
                let part = part_of(arena, local).ok_or(NotRegistered)?;
                let here = part.start + part.bytes - local;
                let len = u32::try_from(here).map_or(piece.len - done, |here| here.min(piece.len - done));
                self.work.push(Work {
                    id: self.work.len() as u64,
                    kind,
                    local,
                    local_key: part.key,
                    len,
                    remote: piece.address + u64::from(done),
                    remote_key: piece.key,
                    signaled: false,
                });
                done += len;
                local += u64::from(len);
            }
        }
        self.ends.push(self.work.len());
        Ok(())
    }
}

/// The part that has the byte at `address`.
fn part_of(arena: &[Part], address: u64) -> Option<Part> {
    let after = arena.partition_point(|part| part.start <= address);
    let part = arena[..after].last()?;
    (address - part.start < part.bytes).then_some(*part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_cut_where_either_side_is() {
        let arena = [Part { start: 1000, bytes: 100, key: 1 }, Part { start: 1100, bytes: 50, key: 2 }];
        let remote = |address, len| Remote { address, key: 9, len };
        let mut plan = Plan::default();
        plan.add(WorkKind::Write, 1090, &arena, &[remote(5, 4), remote(70, 16)]).unwrap();
        plan.add(WorkKind::Read, 1000, &arena, &[remote(500, 100)]).unwrap();
        let pieces: Vec<_> = plan.work.iter().map(|w| (w.local, w.local_key, w.len, w.remote)).collect();
        assert_eq!(pieces, [(1090, 1, 4, 5), (1094, 1, 6, 70), (1100, 2, 10, 76), (1000, 1, 100, 500)]);
        assert_eq!(plan.ends, [3, 4]);
        assert!(plan.work.iter().enumerate().all(|(place, work)| work.id == place as u64));
        for outside in [999, 1150, 1149] {
            assert_eq!(plan.add(WorkKind::Read, outside, &arena, &[remote(0, 2)]), Err(NotRegistered));
        }
    }
}
