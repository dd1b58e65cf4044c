//! The start: what an earlier process left in the backing file and on the drives.
//!
//! 1. The arena tells its pages; each goes into the index under the number of its space.
//! 2. The log tells its records. A record of a page that is in memory becomes that page's place on a drive; another one
//!    is a page that is only on a drive. Of two records that say the same, the first stays. Records that contradict
//!    what is known (same key, other bytes) cannot be told apart any more: memory is right where it has the key, and
//!    otherwise both go, because a cache may forget and must not lie.
//! 3. The spaces get their descriptions, from the file beside the arena and from the drives. Pages of a space without
//!    a description go: nobody could open it.
//!
//! Spaces are numbered before their descriptions are known, so that nothing is buffered: a start with ten million
//! pages keeps nothing but the index.

use crate::account::taken;
use crate::config::{EngineConfig, EngineError, NvmeConfig};
use crate::drives::Drives;
use crate::drives::owner::LogOwner;
use crate::index::{HashedKey, Index, Place, SHARDS};
use crate::keep::Kept;
use crate::keys::{DriveMeta, seconds};
use crate::policy;
use crate::space::{Counts, Spaces};
use crate::spaces_file::SpacesFile;
use crate::state::State;
use crate::status::RecoveryReport;
use memkv_core::{Key, SpaceDescription, SpaceId};
use memkv_memory::{Arena, ArenaBacking, ArenaConfig, RecoveredPage};
use memkv_nvme::{Extent, Gone, Log, LogConfig, Recovered};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// A state that is ready to be used, and what it came from.
pub(crate) struct Started {
    pub(crate) state: Arc<State>,
    pub(crate) report: RecoveryReport,
    pub(crate) spaces_file: Option<SpacesFile>,
    /// The thread that ends writes; only with drives.
    pub(crate) finisher: Option<JoinHandle<()>>,
}

/// Changes how the log is opened; for tests.
pub(crate) type Tune<'a> = &'a dyn Fn(&mut LogConfig);

/// The index while it is built.
struct Builder<'a> {
    arena: &'a Arc<Arena>,
    index: Index,
    numbers: HashMap<SpaceId, u32>,
    /// Identity and counts of each space, by number.
    spaces: Vec<(SpaceId, Counts)>,
    spaces_max: usize,
    report: RecoveryReport,
    /// Keys whose records contradict each other.
    contradicted: HashSet<(SpaceId, u64)>,
    /// Places that were taken back.
    left: Vec<Extent>,
}

impl Builder<'_> {
    /// The number of a space, unless there are too many.
    fn number(&mut self, id: SpaceId) -> Option<u32> {
        if let Some(number) = self.numbers.get(&id) {
            return Some(*number);
        }
        if self.spaces.len() >= self.spaces_max {
            return None;
        }
        let number = u32::try_from(self.spaces.len()).ok()?;
        self.spaces.push((id, Counts::default()));
        self.numbers.insert(id, number);
        Some(number)
    }

    fn counts(&mut self, number: u32) -> &mut Counts {
        &mut self.spaces[number as usize].1
    }

    /// Takes a page that is in memory.
    fn memory(&mut self, page: &RecoveredPage) {
        // Where it was on a drive is another question for another log.
        self.arena.set_extent(page.slot, 0);
        let (number, key) = (self.number(SpaceId(page.space())), Key::new(page.key()));
        let (Some(number), Ok(key)) = (number, key) else {
            self.arena.doom(page.slot);
            self.report.dropped_pages += 1;
            return;
        };
        let key = HashedKey { key, digest: page.record.digest };
        let mut shard = self.index.shard_for(key.digest);
        let added = shard.insert_with(number, key, None, || Place::Dram(page.slot));
        drop(shard);
        if !added {
            self.arena.doom(page.slot);
            self.report.dropped_pages += 1;
            return;
        }
        self.report.dram_pages += 1;
        self.report.dram_unclean += u64::from(!page.clean);
        let counts = self.counts(number);
        counts.pages += 1;
        counts.bytes += u64::from(page.record.meta.len);
        counts.dram_taken += taken(page.record.meta.len.into());
    }

    /// Takes a record of a drive. Whether the index points at it now.
    fn record(&mut self, record: &Recovered<'_>) -> bool {
        let head = record.head;
        let points = self.points(record);
        match points {
            true => self.report.nvme_pages += 1,
            false => self.report.dropped_pages += 1,
        }
        points && !self.contradicted.contains(&(head.space, head.digest))
    }

    fn points(&mut self, record: &Recovered<'_>) -> bool {
        let (head, extent) = (record.head, record.extent);
        let (number, key) = (self.number(head.space), Key::new(head.key));
        let (Some(number), Ok(key)) = (number, key) else { return false };
        if self.contradicted.contains(&(head.space, head.digest)) {
            return false;
        }
        let key = HashedKey { key, digest: head.digest };
        let meta = DriveMeta {
            meta: head.meta,
            position: head.position,
            created_s: seconds(head.created_ms),
            access_s: seconds(head.created_ms),
            hits: head.hits,
            wanted: false,
        };
        let mut shard = self.index.shard_for(key.digest);
        let known = shard.look_number(number, key).map(|found| (found.place, found.meta));
        match known {
            None => {
                shard.insert_with(number, key, Some(&meta), || Place::Drive(extent));
                drop(shard);
                let (counts, bytes) = (self.counts(number), u64::from(head.meta.len));
                counts.pages += 1;
                counts.bytes += bytes;
                counts.drive_pages += 1;
                counts.drive_bytes += bytes;
                counts.drive_taken += taken(bytes);
                true
            }
            Some((Place::Dram(slot), _)) => {
                let page = self.arena.page(slot);
                let same = page.is_some_and(|page| page.meta == head.meta && page.extent == 0);
                if same {
                    self.arena.set_extent(slot, extent.to_bits());
                }
                same
            }
            Some((Place::Drive(_), Some(other))) if other.meta == head.meta => false,
            Some((Place::Drive(at), other)) => {
                shard.remove_all(|found| found.space == number && found.key == key.key.as_bytes());
                drop(shard);
                self.contradicted.insert((head.space, head.digest));
                self.left.push(at);
                let bytes = other.map_or(0, |other| u64::from(other.meta.len));
                let counts = self.counts(number);
                counts.pages -= 1;
                counts.bytes -= bytes;
                counts.drive_pages -= 1;
                counts.drive_bytes -= bytes;
                counts.drive_taken -= taken(bytes);
                self.report.nvme_pages -= 1;
                self.report.dropped_pages += 1;
                false
            }
        }
    }

    /// Removes the pages of spaces that nobody can open.
    fn drop_unknown(&mut self, known: &HashMap<SpaceId, SpaceDescription>) {
        let unknown: Vec<bool> = self.spaces.iter().map(|(id, _)| !known.contains_key(id)).collect();
        if !unknown.contains(&true) {
            return;
        }
        for number in 0..SHARDS {
            let gone = self.index.shard(number).remove_all(|found| unknown[found.space as usize]);
            self.report.dropped_pages += gone.len() as u64;
            for removed in gone {
                match removed.place {
                    Place::Dram(slot) => {
                        self.left.extend(Extent::from_bits(self.arena.extent_of(slot)));
                        self.arena.doom(slot);
                        self.report.dram_pages -= 1;
                    }
                    Place::Drive(extent) => {
                        self.left.push(extent);
                        self.report.nvme_pages -= 1;
                    }
                }
            }
        }
        for ((_, counts), _) in self.spaces.iter_mut().zip(unknown).filter(|(_, unknown)| *unknown) {
            *counts = Counts::default();
        }
    }
}

fn log_config(config: &NvmeConfig, page_bytes_max: u32) -> LogConfig {
    LogConfig {
        segment_bytes: config.segment_bytes,
        page_bytes_max,
        io: config.io,
        queue_depth: config.queue_depth,
        sync: config.sync,
        ..LogConfig::new(config.drives.clone())
    }
}

/// Builds a state from what is there.
pub(crate) fn start(
    config: &EngineConfig,
    progress: Option<&dyn Fn(u64, u64)>,
    tune: Tune<'_>,
) -> Result<Started, EngineError> {
    let begun = Instant::now();
    let marks = config.marks()?;
    let (arena, recovered) = Arena::open(ArenaConfig {
        prefault: config.prefault,
        huge_pages: config.huge_pages,
        share: config.share,
        mlock: config.mlock,
        numa: config.numa,
        backing: config.backing.clone().map_or(ArenaBacking::Anonymous, ArenaBacking::File),
        progress,
        ..ArenaConfig::anonymous(config.dram_bytes, config.page_bytes_max)
    })?;
    let mut builder = Builder {
        arena: &arena,
        index: Index::new(),
        numbers: HashMap::new(),
        spaces: Vec::new(),
        spaces_max: config.spaces_max as usize,
        report: RecoveryReport::default(),
        contradicted: HashSet::new(),
        left: Vec::new(),
    };
    for page in recovered.into_iter().flatten() {
        builder.memory(&page);
    }
    let spaces_file = config.backing.as_deref().map(SpacesFile::new);
    let mut known: HashMap<_, _> = HashMap::new();
    for description in spaces_file.iter().flat_map(SpacesFile::read) {
        known.insert(description.id(), description);
    }
    let log = match &config.nvme {
        None => None,
        Some(nvme) => {
            let mut log_config = log_config(nvme, arena.page_bytes_max());
            tune(&mut log_config);
            let by_hand = log_config.is_by_hand();
            let (log, found) = Log::open(log_config, &mut |record| builder.record(&record))?;
            builder.report.nvme_segments = found.sealed_segments + found.scanned_segments;
            known.extend(log.spaces().into_iter().map(|description| (description.id(), description)));
            Some((log, nvme, by_hand))
        }
    };
    builder.drop_unknown(&known);
    let Builder { index, spaces, mut report, contradicted, left, .. } = builder;
    if let Some((log, ..)) = &log {
        left.into_iter().for_each(|extent| log.release(extent));
        let gone: Vec<_> = contradicted.iter().map(|&(space, digest)| Gone { space, digest }).collect();
        // If that cannot be recorded, the next start finds the contradiction again.
        drop((!gone.is_empty()).then(|| log.delete(&gone)));
    }
    report.spaces = known.len() as u64;
    let spaces = Spaces::recovered(config.spaces_max, spaces, known);
    let kept = Kept::new(config.kept_bytes_max(arena.capacity_bytes()));
    let sizes = (arena.capacity_bytes(), arena.page_bytes_max());
    let drives = log.map(|(log, nvme, by_hand)| Drives::new(log, nvme, sizes, by_hand));
    let policy = policy::build(config.policy, arena.capacity_bytes());
    let state = Arc::new(State::new(arena, index, (marks, spaces, kept), drives, policy));
    let finisher = start_drives(&state)?;
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(Started { state, report, spaces_file, finisher })
}

/// Starts what works in the background for the drives.
fn start_drives(state: &Arc<State>) -> Result<Option<JoinHandle<()>>, EngineError> {
    let Some(drives) = &state.drives else { return Ok(None) };
    drives.log.start(Arc::new(LogOwner::new(state)));
    if drives.writes.is_by_hand() {
        return Ok(None);
    }
    let (writes, weak) = (Arc::clone(&drives.writes), Arc::downgrade(state));
    let thread = std::thread::Builder::new().name("memkv-demoter".to_owned());
    Ok(Some(thread.spawn(move || writes.run_finisher(&weak)).map_err(EngineError::Thread)?))
}
