//! Finding what is on a drive, when the log is opened.
//!
//! First every segment's seal and deletions are read, and segments without a footer are scanned; nothing is changed
//! yet, so that a file of a later version stops the start with all as it was. Then the page records are read, one
//! footer after the other, while the owner takes in the one before.

use crate::buffer::Buffer;
use crate::disk::{Disk, segment_file, segment_of_file};
use crate::extent::blocks_of;
use crate::format::{self, BLOCK, Footer, Identity, Lead, Record, Records};
use crate::members::Id;
use crate::scan::{Scanned, scan};
use crate::segment::Segment;
use crate::{LogError, Recovered, RecoveryReport, SegmentState};
use memkv_core::SpaceId;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

/// Footers that are read ahead of the owner.
const AHEAD: usize = 2;

/// What is on one drive.
#[derive(Default)]
pub(crate) struct Found {
    segments: Vec<FoundSegment>,
    /// Files that hold nothing and are to be removed.
    remove: Vec<String>,
    /// The latest deletion of each digest and of each space.
    deleted: HashMap<u64, u64>,
    cleared: HashMap<SpaceId, u64>,
    pub(crate) last_sequence: u64,
    pub(crate) last_segment: u64,
    pub(crate) report: RecoveryReport,
}

struct FoundSegment {
    segment: Arc<Segment>,
    content: Content,
}

enum Content {
    Footer(Footer),
    Scanned(Scanned),
}

/// What one file turned out to be.
enum File {
    Segment(Identity, Option<Footer>),
    /// Nothing was written to it yet.
    Blank,
    /// It was a segment, and nothing can be read of it.
    Lost,
    /// Not ours.
    Foreign,
}

/// Why a drive was not read.
pub(crate) enum Stop {
    /// The start ends here.
    Log(LogError),
    /// The drive cannot be used.
    Drive(io::Error),
}

impl From<io::Error> for Stop {
    fn from(reason: io::Error) -> Self {
        Self::Drive(reason)
    }
}

/// Reads seals, deletions, and whatever has no footer. Changes nothing. Segments that were written under another id are
/// not kept.
pub(crate) fn look(disk: &Disk, drive: u8, id: Option<Id>) -> Result<Found, Stop> {
    let mut found = Found::default();
    let mut sequences: Vec<u64> = disk.list()?.iter().filter_map(|name| segment_of_file(name)).collect();
    sequences.sort_unstable();
    for sequence in sequences {
        found.last_segment = found.last_segment.max(sequence);
        let name = segment_file(sequence);
        let file = disk.open_existing(&name)?;
        let bytes = file.len()?;
        let kind = classify(disk, &file, &name)?;
        let (identity, footer) = match kind {
            File::Segment(identity, _) if identity.sequence != sequence => {
                found.report.foreign_files += 1;
                continue;
            }
            File::Segment(identity, footer) if Some(identity.drive) == id => (identity, footer),
            File::Foreign => {
                found.report.foreign_files += 1;
                continue;
            }
            File::Segment(..) | File::Lost => {
                found.report.lost_segments += 1;
                found.remove.push(name);
                continue;
            }
            File::Blank => {
                found.remove.push(name);
                continue;
            }
        };
        let segment = Segment::new(drive, identity, file, bytes, SegmentState::Sealed);
        found.take(Arc::new(segment), footer)?;
    }
    Ok(found)
}

fn classify(disk: &Disk, file: &crate::disk::DiskFile, name: &str) -> Result<File, Stop> {
    let mut leads = Buffer::zeroed(2 * BLOCK);
    file.read(&mut leads, 0)?;
    let header = format::read_header(&leads[..BLOCK]);
    let seal = format::read_seal(&leads[BLOCK..]);
    let newer =
        |version| Stop::Log(LogError::Newer { path: disk.dir.join(name), version, known: format::VERSION });
    Ok(match (header, seal) {
        (Lead::Newer(version), _) | (_, Lead::Newer(version)) => return Err(newer(version)),
        (_, Lead::Good((identity, footer))) => File::Segment(identity, Some(footer)),
        (Lead::Good(identity), _) => File::Segment(identity, None),
        (Lead::Empty, Lead::Empty) => File::Blank,
        (Lead::Foreign, Lead::Foreign | Lead::Empty) => File::Foreign,
        _ => File::Lost,
    })
}

impl Found {
    fn take(&mut self, segment: Arc<Segment>, footer: Option<Footer>) -> Result<(), Stop> {
        if let Some(footer) = footer {
            match segment.mark_records(&footer) {
                Ok(marks) => {
                    self.note_marks(&marks, segment.identity.blocks);
                    self.last_sequence = self.last_sequence.max(footer.last_sequence);
                    self.segments.push(FoundSegment { segment, content: Content::Footer(footer) });
                    return Ok(());
                }
                Err(reason) if reason.kind() == io::ErrorKind::InvalidData => {}
                Err(reason) => return Err(reason.into()),
            }
        }
        let scanned = scan(&segment)?;
        self.note_marks(&scanned.book.marks, segment.identity.blocks);
        self.last_sequence = self.last_sequence.max(scanned.book.last_sequence);
        self.segments.push(FoundSegment { segment, content: Content::Scanned(scanned) });
        Ok(())
    }

    fn note_marks(&mut self, records: &[u8], blocks: u32) {
        for record in Records::new(records, blocks) {
            match record {
                Ok(Record::Delete { sequence, digest, .. }) => {
                    let last = self.deleted.entry(digest).or_default();
                    *last = sequence.max(*last);
                }
                Ok(Record::Clear { sequence, space }) => {
                    let last = self.cleared.entry(space).or_default();
                    *last = sequence.max(*last);
                }
                Ok(Record::Page { .. }) | Err(_) => {}
            }
        }
    }

    fn is_deleted(&self, sequence: u64, digest: u64, space: SpaceId) -> bool {
        let ends = |last: Option<&u64>| last.is_some_and(|last| sequence < *last);
        ends(self.deleted.get(&digest)) || ends(self.cleared.get(&space))
    }

    /// Decides that nothing of the drive is kept.
    pub(crate) fn drop_all(&mut self) {
        let names = self.segments.drain(..).map(|found| segment_file(found.segment.identity.sequence));
        self.remove.extend(names);
        self.deleted.clear();
        self.cleared.clear();
    }

    /// Removes what holds nothing, or is not kept.
    pub(crate) fn clean(&self, disk: &Disk) -> io::Result<()> {
        self.remove.iter().try_for_each(|name| disk.remove(name))
    }

    /// Starts reading page records, ahead of [`Found::visit`].
    pub(crate) fn read_ahead<'scope>(&self, scope: &'scope Scope<'scope, '_>) -> Receiver<io::Result<Pages>> {
        let (sender, receiver) = sync_channel(AHEAD);
        let sealed: Vec<_> = self
            .segments
            .iter()
            .filter_map(|found| match &found.content {
                Content::Footer(footer) => Some((Arc::clone(&found.segment), *footer)),
                Content::Scanned(_) => None,
            })
            .collect();
        scope.spawn(move || read_footers(&sealed, &sender));
        receiver
    }

    /// Tells the owner every page, and returns the segments that stay.
    pub(crate) fn visit(
        mut self,
        footers: &Receiver<io::Result<Pages>>,
        visit: &mut dyn FnMut(Recovered<'_>) -> bool,
    ) -> (Vec<Arc<Segment>>, RecoveryReport) {
        let segments = std::mem::take(&mut self.segments);
        let mut kept = Vec::with_capacity(segments.len());
        for FoundSegment { segment, content } in segments {
            let content = match content {
                Content::Scanned(scanned) => Pages::Scanned(scanned),
                Content::Footer(footer) => match footers.recv() {
                    Ok(Ok(Pages::Records(records))) => {
                        segment.footer.set(footer).expect("set here only");
                        Pages::Records(records)
                    }
                    Ok(Ok(scanned)) => scanned,
                    Ok(Err(_)) | Err(_) => {
                        // It stays for the deletions that it holds.
                        segment.footer.set(footer).expect("set here only");
                        self.report.lost_segments += 1;
                        kept.push(segment);
                        continue;
                    }
                },
            };
            match content {
                Pages::Records(records) => {
                    self.report.sealed_segments += 1;
                    self.tell(&segment, &records, visit);
                }
                Pages::Scanned(scanned) => {
                    let blank = scanned == Scanned { end_block: scanned.end_block, ..Scanned::default() };
                    self.report.scanned_segments += u64::from(!blank);
                    self.report.damaged_pages += scanned.damaged_pages;
                    self.report.damaged_headers += scanned.damaged_headers;
                    self.tell(&segment, &scanned.book.pages, visit);
                    *segment.book.lock() = scanned.book;
                    segment.end_block.store(scanned.end_block, std::sync::atomic::Ordering::Relaxed);
                }
            }
            kept.push(segment);
        }
        (kept, self.report)
    }

    fn tell(&mut self, segment: &Segment, records: &[u8], visit: &mut dyn FnMut(Recovered<'_>) -> bool) {
        for record in Records::new(records, segment.identity.blocks) {
            let Ok(Record::Page { sequence, head, block }) = record else {
                self.report.damaged_pages += u64::from(record.is_err());
                continue;
            };
            segment.pages.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if self.is_deleted(sequence, head.digest, head.space) {
                self.report.deleted += 1;
                continue;
            }
            self.report.pages += 1;
            let extent = segment.extent(block, blocks_of(head.meta.len));
            if visit(Recovered { head, extent, sequence }) {
                segment.hold(extent);
            }
        }
    }
}

/// Page records of a segment that has a seal.
pub(crate) enum Pages {
    Records(Vec<u8>),
    /// The footer was damaged.
    Scanned(Scanned),
}

fn read_footers(sealed: &[(Arc<Segment>, Footer)], sender: &SyncSender<io::Result<Pages>>) {
    for (segment, footer) in sealed {
        let content = match segment.footer_pages(footer) {
            Ok(records) => Ok(Pages::Records(records)),
            Err(reason) if reason.kind() == io::ErrorKind::InvalidData => scan(segment).map(Pages::Scanned),
            Err(reason) => Err(reason),
        };
        if sender.send(content).is_err() {
            return;
        }
    }
}

/// Seals what was scanned, so that the next start need not scan it again, and removes it if it holds nothing.
/// Segments that stay.
pub(crate) fn settle(disk: &Disk, segments: Vec<Arc<Segment>>) -> Vec<Arc<Segment>> {
    let mut kept = Vec::with_capacity(segments.len());
    for segment in segments {
        if segment.footer.get().is_none() {
            if segment.book.lock().is_empty() {
                // If it cannot be removed now, it is at the next start.
                disk.remove(&segment_file(segment.identity.sequence)).ok();
                continue;
            }
            let block = segment.end_block.load(std::sync::atomic::Ordering::Relaxed);
            if let Err(reason) = segment.seal(block) {
                let segment = segment.identity.sequence;
                tracing::warn!(segment, %reason, "could not seal a segment that was found open");
            }
        }
        kept.push(segment);
    }
    kept
}
