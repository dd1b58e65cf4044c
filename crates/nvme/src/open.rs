//! Opening a log: directories, identities, recovery, threads.

use crate::batch::batch_blocks;
use crate::disk::Disk;
use crate::drive::{Drive, Shape};
use crate::extent::{BLOCK_BYTES, DRIVES_MAX, PAGE_BYTES_MAX, SEGMENT_BYTES_MAX};
use crate::faults::Faults;
use crate::format::{FIRST_BLOCK, record_bytes};
use crate::io::{Io, threads::Threads, uring};
use crate::log::Recovered;
use crate::members::{self, Card, Id, Members};
use crate::recover::{self, Found, Stop};
use crate::writer::Writer;
use crate::{DriveConfig, IoBackend, IoChoice, LogConfig, LogError, RecoveryReport, keeper, spaces};
use io_uring::IoUring;
use memkv_core::{MAX_KEY_BYTES, SpaceDescription};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// Segments that a quota must hold at least: the active one, two made ahead, one being sealed, and one to give back.
const SEGMENTS_MIN: u64 = 5;

/// The threads of one drive: the one that writes and the one that keeps.
pub(crate) type Pair = (JoinHandle<()>, JoinHandle<()>);

/// What opening made.
pub(crate) struct Opened {
    pub(crate) drives: Vec<Arc<Drive>>,
    pub(crate) threads: Vec<Pair>,
    pub(crate) locks: Vec<File>,
    pub(crate) spaces: Vec<SpaceDescription>,
    pub(crate) io: IoBackend,
    pub(crate) io_reason: String,
    pub(crate) report: RecoveryReport,
}

/// One configured drive on its way to be opened.
struct Place {
    shape: Shape,
    disk: Disk,
    /// `Err` says why it cannot be used.
    state: Result<Ready, String>,
}

struct Ready {
    lock: File,
    card: Option<Card>,
    found: Found,
    spaces: Vec<SpaceDescription>,
}

/// Rings for all drives, or none and why.
struct Rings {
    rings: Option<Vec<IoUring>>,
    reason: String,
}

pub(crate) fn open(
    config: &LogConfig,
    visit: &mut dyn FnMut(Recovered<'_>) -> bool,
) -> Result<Opened, LogError> {
    let started = Instant::now();
    let shapes = shapes(config)?;
    let mut rings = rings(config, &uring::ring)?;
    let mut places = Vec::new();
    for (shape, drive) in shapes.iter().zip(&config.drives) {
        places.push(prepare(config, *shape, drive)?);
    }
    refuse_doubles(&places)?;
    look_all(&mut places)?;
    let mut report = RecoveryReport::default();
    let (members, ids) = settle_members(&mut places, &mut report)?;
    let members = Arc::new(members);
    let next_sequence = Arc::new(AtomicU64::new(1));
    let (mut drives, mut locks, mut known, mut founds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (place, id) in places.into_iter().zip(ids) {
        let Place { shape, disk, state } = place;
        let system = |reason| LogError::System { what: "a descriptor to wake a thread", reason };
        let drive = match state {
            Ok(ready) => {
                let sequence = Arc::clone(&next_sequence);
                let drive = Drive::new(shape, disk, id, Arc::clone(&members), sequence).map_err(system)?;
                locks.push(ready.lock);
                known.extend(ready.spaces);
                founds.push((drives.len(), ready.found));
                drive
            }
            Err(reason) => {
                tracing::error!(drive = %disk.dir.display(), reason, "drive cannot be used");
                Drive::failed(shape, &disk.dir, Arc::clone(&members), reason).map_err(system)?
            }
        };
        drives.push(Arc::new(drive));
    }
    recover_all(&drives, founds, &next_sequence, &mut report, visit);
    let threads =
        start(config, &drives, &mut rings).inspect_err(|_| drives.iter().for_each(|drive| drive.stop()))?;
    report.seconds = started.elapsed().as_secs_f64();
    let io = if rings.rings.is_some() { IoBackend::Uring } else { IoBackend::Threads };
    Ok(Opened { drives, threads, locks, spaces: known, io, io_reason: rings.reason, report })
}

/// Sizes for each drive.
fn shapes(config: &LogConfig) -> Result<Vec<Shape>, LogError> {
    let refuse = |text: String| Err(LogError::Config(text));
    if config.drives.is_empty() || config.drives.len() > DRIVES_MAX {
        return refuse(format!("{} drives are configured; give 1 to {DRIVES_MAX}", config.drives.len()));
    }
    if config.page_bytes_max == 0 || config.page_bytes_max > PAGE_BYTES_MAX {
        return refuse(format!("pages of {} bytes; give 1 to {PAGE_BYTES_MAX}", config.page_bytes_max));
    }
    if !(2..=4096).contains(&config.queue_depth) {
        return refuse(format!("a queue depth of {}; give 2 to 4096", config.queue_depth));
    }
    let block = u64::from(BLOCK_BYTES);
    let page = (config.page_bytes_max as usize).next_multiple_of(BLOCK_BYTES as usize);
    let least = u64::from(FIRST_BLOCK + batch_blocks(record_bytes(MAX_KEY_BYTES), page) + 1);
    let mut shapes = Vec::new();
    for (number, drive) in (0_u8..).zip(&config.drives) {
        let wanted = config.segment_bytes.min(drive.quota_bytes / 8).min(SEGMENT_BYTES_MAX);
        let blocks = (wanted / block).max(least);
        if drive.quota_bytes < SEGMENTS_MIN * blocks * block {
            return refuse(format!(
                "a quota of {} bytes for {} is too small for pages of up to {} bytes; give at least {} bytes",
                drive.quota_bytes,
                drive.path.display(),
                config.page_bytes_max,
                SEGMENTS_MIN * least * block
            ));
        }
        if blocks * block > SEGMENT_BYTES_MAX {
            return refuse(format!("pages of up to {} bytes do not fit a segment", config.page_bytes_max));
        }
        shapes.push(Shape {
            number,
            quota_bytes: drive.quota_bytes,
            segment_blocks: u32::try_from(blocks).expect("a segment has at most 2^18 blocks"),
            backlog_bytes: config.backlog_bytes,
            sync: config.sync,
        });
    }
    Ok(shapes)
}

/// Rings, if they are wanted and the kernel gives them.
fn rings(config: &LogConfig, make: &dyn Fn(usize) -> io::Result<IoUring>) -> Result<Rings, LogError> {
    if config.io == IoChoice::Threads {
        return Ok(Rings { rings: None, reason: "threads were chosen".to_owned() });
    }
    let depth = config.queue_depth as usize;
    let made: io::Result<Vec<IoUring>> = config.drives.iter().map(|_| make(depth)).collect();
    match made {
        Ok(rings) => {
            let reason = format!("the kernel gave rings of depth {depth}");
            Ok(Rings { rings: Some(rings), reason })
        }
        Err(reason) if config.io == IoChoice::Uring => Err(LogError::NoUring(reason.to_string())),
        Err(reason) => Ok(Rings { rings: None, reason: format!("the kernel refused io_uring: {reason}") }),
    }
}

/// Makes and locks a drive's directory, and reads its card. Drives that cannot be used are kept with the reason.
fn prepare(config: &LogConfig, shape: Shape, drive: &DriveConfig) -> Result<Place, LogError> {
    #[cfg(any(test, feature = "testing"))]
    let faults = Faults::new(config.faults.clone(), shape.number);
    #[cfg(not(any(test, feature = "testing")))]
    let faults = Faults;
    let _ = config;
    let disk = Disk::new(&drive.path, faults);
    let state = match take_directory(&disk) {
        Ok(Some(lock)) => match members::read_card(&disk)? {
            Ok(card) => {
                let spaces = spaces::read(&disk)?;
                Ok(Ready { lock, card, found: Found::default(), spaces })
            }
            Err(reason) => Err(reason.to_string()),
        },
        Ok(None) => return Err(taken(&drive.path, config)),
        Err(reason) => Err(reason.to_string()),
    };
    Ok(Place { shape, disk, state })
}

fn take_directory(disk: &Disk) -> io::Result<Option<File>> {
    match fs::create_dir(&disk.dir) {
        Err(reason) if reason.kind() != io::ErrorKind::AlreadyExists => return Err(reason),
        _ => {}
    }
    disk.lock()
}

/// Who has a directory: this log under another name, or another process.
fn taken(path: &Path, config: &LogConfig) -> LogError {
    let own = fs::canonicalize(path).ok();
    let mut same = config.drives.iter().filter(|drive| fs::canonicalize(&drive.path).ok() == own);
    match (same.next(), same.next()) {
        (Some(first), Some(second)) => LogError::SameDrive(first.path.clone(), second.path.clone()),
        _ => LogError::InUse(path.to_owned()),
    }
}

fn refuse_doubles(places: &[Place]) -> Result<(), LogError> {
    let card =
        |place: &Place| place.state.as_ref().ok().and_then(|ready| ready.card.as_ref()).map(|card| card.id);
    for (at, place) in places.iter().enumerate() {
        let double = places[..at].iter().find(|other| card(other).is_some() && card(other) == card(place));
        if let Some(other) = double {
            return Err(LogError::SameDrive(other.disk.dir.clone(), place.disk.dir.clone()));
        }
    }
    Ok(())
}

/// Looks at all drives at once.
fn look_all(places: &mut [Place]) -> Result<(), LogError> {
    let looks: Vec<_> = thread::scope(|scope| {
        let look = |place: &Place| {
            let id = place.state.as_ref().ok().and_then(|ready| ready.card.as_ref()).map(|card| card.id);
            place.state.is_ok().then(|| recover::look(&place.disk, place.shape.number, id))
        };
        let handles: Vec<_> = places.iter().map(|place| scope.spawn(move || look(place))).collect();
        handles.into_iter().map(|handle| handle.join().expect("a look does not panic")).collect()
    });
    for (place, look) in places.iter_mut().zip(looks) {
        match look {
            None => {}
            Some(Ok(found)) => {
                if let Ok(ready) = &mut place.state {
                    ready.found = found;
                }
            }
            Some(Err(Stop::Drive(reason))) => place.state = Err(reason.to_string()),
            Some(Err(Stop::Log(reason))) => return Err(reason),
        }
    }
    Ok(())
}

/// Decides which drives keep their pages, removes what is not kept, and writes the cards. Ids by drive.
fn settle_members(places: &mut [Place], report: &mut RecoveryReport) -> Result<(Members, Vec<Id>), LogError> {
    let ready: Vec<_> = places.iter().filter_map(|place| place.state.as_ref().ok()).collect();
    if ready.is_empty() {
        let reasons =
            places.iter().filter_map(|place| place.state.as_ref().err().map(|reason| (place, reason)));
        let text: Vec<_> =
            reasons.map(|(place, reason)| format!("{}: {reason}", place.disk.dir.display())).collect();
        return Err(LogError::NoDrive(text.join("; ")));
    }
    let cards: Vec<_> = ready.iter().map(|ready| ready.card.clone()).collect();
    let mut fresh = Vec::new();
    for _ in &cards {
        let mut id = [0; 16];
        let system = |reason| LogError::System { what: "randomness", reason: io::Error::other(reason) };
        getrandom::fill(&mut id).map_err(system)?;
        fresh.push(id);
    }
    let mut fresh = fresh.into_iter();
    let (ids, retired) = members::decide(&cards, || fresh.next().unwrap_or_default());
    let mut ids = ids.into_iter();
    let mut by_drive = Vec::new();
    let mut drives = Vec::new();
    for place in places.iter_mut() {
        let Ok(ready) = &mut place.state else {
            by_drive.push([0; 16]);
            continue;
        };
        let id = ids.next().expect("one id for each card");
        by_drive.push(id);
        if ready.card.as_ref().is_some_and(|card| card.id != id) {
            report.retired_drives += 1;
            ready.found.drop_all();
        }
        drives.push((place.shape.number, id, place.disk.again()));
        if let Err(reason) = ready.found.clean(&place.disk) {
            place.state = Err(reason.to_string());
        }
    }
    let members = Members::new(drives, retired);
    for (number, reason) in members.write_all() {
        let place = &mut places[usize::from(number)];
        place.state = Err(format!("{} could not be written: {reason}", members::DRIVE_FILE));
    }
    Ok((members, by_drive))
}

/// Tells the owner all pages, drive by drive, while footers are read ahead on all drives.
fn recover_all(
    drives: &[Arc<Drive>],
    founds: Vec<(usize, Found)>,
    next_sequence: &AtomicU64,
    report: &mut RecoveryReport,
    visit: &mut dyn FnMut(Recovered<'_>) -> bool,
) {
    let last = founds.iter().map(|(_, found)| found.last_sequence).max().unwrap_or(0);
    next_sequence.store(last + 1, Ordering::Relaxed);
    thread::scope(|scope| {
        let ahead: Vec<_> = founds.iter().map(|(_, found)| found.read_ahead(scope)).collect();
        for ((number, found), footers) in founds.into_iter().zip(ahead) {
            let drive = &drives[number];
            drive.next_segment.store(found.last_segment + 1, Ordering::Relaxed);
            let (segments, part) = found.visit(&footers, visit);
            add(report, &part);
            let segments = recover::settle(&drive.disk, segments);
            let named = segments.into_iter().map(|segment| (segment.identity.sequence, segment));
            drive.segments.write().extend(named);
        }
    });
}

fn add(report: &mut RecoveryReport, part: &RecoveryReport) {
    report.pages += part.pages;
    report.deleted += part.deleted;
    report.damaged_pages += part.damaged_pages;
    report.damaged_headers += part.damaged_headers;
    report.sealed_segments += part.sealed_segments;
    report.scanned_segments += part.scanned_segments;
    report.lost_segments += part.lost_segments;
    report.foreign_files += part.foreign_files;
}

/// Starts both threads of each drive that works.
fn start(config: &LogConfig, drives: &[Arc<Drive>], rings: &mut Rings) -> Result<Vec<Pair>, LogError> {
    let depth = config.queue_depth as usize;
    let mut threads = Vec::new();
    for drive in drives.iter().filter(|drive| !drive.is_failed()) {
        #[cfg(any(test, feature = "sim"))]
        if config.by_hand {
            crate::hands::start(drive, depth);
            continue;
        }
        let number = drive.shape.number;
        let system = |reason| LogError::System { what: "a thread", reason };
        let ring = rings.rings.as_mut().and_then(Vec::pop);
        let bell = Arc::clone(&drive.bell);
        let pool = match &ring {
            Some(_) => None,
            None => Some(Threads::start(depth, Arc::clone(&bell), number).map_err(system)?),
        };
        let own = Arc::clone(drive);
        let write = move || {
            let io = match (ring, pool) {
                (Some(ring), _) => Io::Uring(Box::new(uring::Uring::new(ring, depth, bell))),
                (None, Some(pool)) => Io::Threads(pool),
                (None, None) => return,
            };
            Writer::new(own, io).run();
        };
        let own = Arc::clone(drive);
        let named = |name: &str| thread::Builder::new().name(format!("memkv-{name}-{number}"));
        let writer = named("nvme").spawn(write).map_err(system)?;
        let keeper = named("keep").spawn(move || keeper::run(&own)).map_err(system)?;
        threads.push((writer, keeper));
        (0..keeper::SPARES).for_each(|_| drive.want_spare());
    }
    Ok(threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_ring_means_threads_unless_rings_were_demanded() {
        let drive = DriveConfig { path: "unused".into(), quota_bytes: 0 };
        let mut config = LogConfig::new(vec![drive]);
        let refuse = |_| Err(io::Error::from_raw_os_error(1));
        let chosen = rings(&config, &refuse).ok().unwrap();
        assert!(chosen.rings.is_none());
        assert!(chosen.reason.contains("refused io_uring: Operation not permitted"), "{}", chosen.reason);
        config.io = IoChoice::Uring;
        assert!(matches!(rings(&config, &refuse), Err(LogError::NoUring(_))));
        config.io = IoChoice::Threads;
        assert!(rings(&config, &|_| panic!("nobody asked for a ring")).is_ok());
    }
}
