//! The regions that clients told of: the only memory that the server ever names in work requests.
//!
//! A request names a region by number and a place inside it. Whatever does not lie inside what was registered is
//! refused before anything is posted, so that no number of a client's becomes an address unchecked.
//!
//! Deliberately absent: NICs.

use memkv_proto::v1;
use memkv_transport::records::Span;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most regions of one session.
pub(crate) const REGIONS_MAX: u32 = 4096;
/// Most keys of one region, over all NICs of the client.
pub(crate) const KEYS_MAX: u32 = 65_536;
/// Most NICs of one client.
const NICS_MAX: usize = 64;
/// A part is at least so long, unless it is the only one: the shorter parts are, the more work a page is.
const PART_BYTES_MIN: u64 = 1 << 20;

/// A region of one client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ClientRegion {
    bytes: u64,
    address: u64,
    part_bytes: u64,
    /// Keys of the parts, by the client's NIC.
    nics: Vec<Vec<u32>>,
}

/// A piece of a client's memory, as its NIC knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) address: u64,
    pub(crate) key: u32,
    pub(crate) len: u32,
}

impl ClientRegion {
    /// Reads a client's message.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for people.
    pub(crate) fn read(message: v1::RegisterRegion) -> Result<Self, &'static str> {
        let v1::RegisterRegion { region: _, bytes, address, part_bytes, nics } = message;
        if bytes == 0 || address.checked_add(bytes).is_none() {
            return Err("the region has no bytes, or its end is no address");
        }
        if part_bytes == 0 || (part_bytes < bytes && part_bytes < PART_BYTES_MIN) {
            return Err("the region's parts are too short");
        }
        let parts = bytes.div_ceil(part_bytes);
        let all = parts.checked_mul(nics.len() as u64);
        if nics.is_empty() || nics.len() > NICS_MAX || all.is_none_or(|all| all > KEYS_MAX.into()) {
            return Err("the region has too many keys or none");
        }
        let nics: Vec<_> = nics.into_iter().map(|nic| nic.keys).collect();
        if nics.iter().any(|keys| keys.len() as u64 != parts) {
            return Err("the region has not one key for each part and NIC");
        }
        Ok(Self { bytes, address, part_bytes, nics })
    }

    /// The pieces of `len` bytes at `offset`, one for each part they lie in. `None` if they are not all inside.
    fn pieces(&self, nic: usize, offset: u64, len: u32) -> Option<impl Iterator<Item = Remote> + '_> {
        let end = offset.checked_add(u64::from(len)).filter(|&end| end <= self.bytes && len > 0)?;
        let keys = self.nics.get(nic)?;
        let first = offset / self.part_bytes;
        let last = (end - 1) / self.part_bytes;
        let piece = move |part: u64| {
            let (from, to) = (part * self.part_bytes, (part + 1).saturating_mul(self.part_bytes));
            let (from, to) = (from.max(offset), to.min(end));
            let len = u32::try_from(to - from).expect("it is a part of a length of 32 bits");
            let key = keys[usize::try_from(part).expect("parts are counted by keys in memory")];
            Remote { address: self.address + from, key, len }
        };
        Some((first..=last).map(piece))
    }

    /// Whether these bytes are inside, for the fuzzer, after a look at the pieces that they lie in.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn is_sound(&self, offset: u64, len: u32) -> bool {
        let Some(pieces) = self.pieces(0, offset, len) else { return false };
        let mut at = self.address + offset;
        for piece in pieces {
            assert_eq!(piece.address, at, "pieces follow each other");
            at += u64::from(piece.len);
        }
        assert_eq!(at, self.address + offset + u64::from(len), "pieces are as long as what was asked for");
        true
    }
}

/// The regions of one session.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    known: RwLock<HashMap<u32, Arc<ClientRegion>>>,
}

impl Regions {
    /// Makes a region known; `gauge` counts those of all sessions.
    ///
    /// # Errors
    ///
    /// Why it is not, for people.
    pub(crate) fn add(&self, message: v1::RegisterRegion, gauge: &AtomicU64) -> Result<(), &'static str> {
        let id = message.region;
        let region = ClientRegion::read(message)?;
        let mut known = self.known.write();
        if known.len() >= REGIONS_MAX as usize {
            return Err("the session has too many regions");
        }
        if known.contains_key(&id) {
            return Err("the session has a region of this number");
        }
        known.insert(id, Arc::new(region));
        gauge.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Forgets a region. Whether it was known.
    pub(crate) fn remove(&self, id: u32, gauge: &AtomicU64) -> bool {
        let known = self.known.write().remove(&id).is_some();
        gauge.fetch_sub(known.into(), Ordering::Relaxed);
        known
    }

    /// Forgets all: the session has ended.
    pub(crate) fn clear(&self, gauge: &AtomicU64) {
        let known = std::mem::take(&mut *self.known.write());
        gauge.fetch_sub(known.len() as u64, Ordering::Relaxed);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.known.read().len()
    }

    /// Appends the pieces of memory behind the first `len` bytes of `spans`, as the client's NIC `nic` knows them.
    ///
    /// # Errors
    ///
    /// If a span is empty or does not lie inside a region; `out` is of no use then.
    pub(crate) fn resolve(
        &self,
        nic: usize,
        spans: impl Iterator<Item = Span>,
        len: u32,
        out: &mut Vec<Remote>,
    ) -> Result<(), OutOfBounds> {
        let mut left = len;
        let known = self.known.read();
        for span in spans {
            let region = known.get(&span.region).ok_or(OutOfBounds)?;
            // Checked whole, also where only a part of it is used.
            if region.pieces(nic, span.offset, span.len).is_none() {
                return Err(OutOfBounds);
            }
            let used = span.len.min(left);
            if used > 0 {
                out.extend(region.pieces(nic, span.offset, used).ok_or(OutOfBounds)?);
            }
            left -= used;
        }
        if left == 0 { Ok(()) } else { Err(OutOfBounds) }
    }
}

/// A span does not lie inside a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfBounds;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn message(id: u32, bytes: u64, parts: &[&[u32]]) -> v1::RegisterRegion {
        let nics = parts.iter().map(|keys| v1::RegionKeys { keys: keys.to_vec() }).collect();
        v1::RegisterRegion { region: id, bytes, address: 1 << 40, part_bytes: 2 * MIB, nics }
    }

    fn resolve(regions: &Regions, nic: usize, spans: &[(u32, u64, u32)], len: u32) -> Option<Vec<Remote>> {
        let spans = spans.iter().map(|&(region, offset, len)| Span { region, len, offset });
        let mut out = Vec::new();
        regions.resolve(nic, spans, len, &mut out).ok().map(|()| out)
    }

    #[test]
    fn pieces_follow_the_parts() {
        let regions = Regions::default();
        regions.add(message(7, 5 * MIB, &[&[10, 11, 12], &[20, 21, 22]]), &AtomicU64::default()).unwrap();
        let remote = |address, key, len| Remote { address: (1 << 40) + address, key, len };
        assert_eq!(resolve(&regions, 0, &[(7, 5, 100)], 100), Some(vec![remote(5, 10, 100)]));
        let across = resolve(&regions, 1, &[(7, 2 * MIB - 8, 16)], 16);
        assert_eq!(across, Some(vec![remote(2 * MIB - 8, 20, 8), remote(2 * MIB, 21, 8)]));
        let end = resolve(&regions, 0, &[(7, 5 * MIB - 1, 1), (7, 0, 4)], 3);
        assert_eq!(end, Some(vec![remote(5 * MIB - 1, 12, 1), remote(0, 10, 2)]), "a shorter page uses less");
    }

    #[test]
    fn what_is_not_inside_is_refused() {
        let (regions, gauge) = (Regions::default(), AtomicU64::default());
        regions.add(message(7, 5 * MIB, &[&[10, 11, 12]]), &gauge).unwrap();
        let outside = [
            (0, (7, 5 * MIB - 1, 2)),
            (0, (7, 5 * MIB, 1)),
            (0, (7, u64::MAX, 2)),
            (0, (7, u64::MAX - 1, 1)),
            (0, (7, 1 << 40, 1)),
            (0, (8, 0, 1)),
            (0, (u32::MAX, 1 << 40, 1)),
            (1, (7, 0, 1)),
            (0, (7, 0, 0)),
        ];
        for (nic, span) in outside {
            assert_eq!(resolve(&regions, nic, &[span], span.2), None, "{nic} {span:?}");
        }
        // Also where the page is so short that the span would not be used.
        assert_eq!(resolve(&regions, 0, &[(7, 0, 4), (7, 5 * MIB, 4)], 4), None);
        assert_eq!(resolve(&regions, 0, &[(7, 0, 4)], 5), None, "less room than bytes");
        assert_eq!(gauge.load(Ordering::Relaxed), 1);
        assert!(regions.remove(7, &gauge) && !regions.remove(7, &gauge));
        assert_eq!(gauge.load(Ordering::Relaxed), 0);
        assert_eq!(resolve(&regions, 0, &[(7, 0, 1)], 1), None, "it was taken back");
    }

    #[test]
    fn messages_that_make_no_sense_are_refused() {
        let good = || message(1, 5 * MIB, &[&[1, 2, 3]]);
        assert!(ClientRegion::read(good()).is_ok());
        let bad = [
            v1::RegisterRegion { bytes: 0, ..good() },
            v1::RegisterRegion { address: u64::MAX - 4, ..good() },
            v1::RegisterRegion { part_bytes: 0, ..good() },
            v1::RegisterRegion { part_bytes: 4096, ..good() },
            v1::RegisterRegion { part_bytes: 3 * MIB, ..good() },
            v1::RegisterRegion { nics: Vec::new(), ..good() },
            v1::RegisterRegion { bytes: u64::MAX >> 1, ..good() },
            message(1, 5 * MIB, &[&[1, 2, 3], &[1, 2]]),
        ];
        for message in bad {
            assert!(ClientRegion::read(message.clone()).is_err(), "{message:?}");
        }
        let (regions, gauge) = (Regions::default(), AtomicU64::default());
        regions.add(good(), &gauge).unwrap();
        assert!(regions.add(good(), &gauge).is_err(), "a number is used once");
        for id in 2..=REGIONS_MAX {
            regions.add(message(id, 5 * MIB, &[&[1, 2, 3]]), &gauge).unwrap();
        }
        assert!(regions.add(message(0, 5 * MIB, &[&[1, 2, 3]]), &gauge).is_err(), "there are enough");
        assert_eq!(gauge.load(Ordering::Relaxed), u64::from(REGIONS_MAX));
        regions.clear(&gauge);
        assert_eq!((gauge.load(Ordering::Relaxed), regions.count()), (0, 0));
    }
}
