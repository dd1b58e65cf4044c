//! Giving the oldest segment of a drive back, with its hot pages written again.
//!
//! Segments go strictly in their order: a deletion is recorded behind the pages that it ends, so it is still there as
//! long as one of them is. A page that is written again gets a new sequence number, which would put it behind a
//! deletion that came meanwhile. Therefore the drive's thread remembers deletions while `reclaiming` is set and refuses
//! such pages: a deletion that it sees before the page is in its memory, and one that it sees after gets a higher
//! sequence number. One that came before `reclaiming` was set is known to the owner, which says [`Standing::Dead`].

use crate::batch::{PageJob, Source};
use crate::buffer::Buffer;
use crate::disk::segment_file;
use crate::drive::{Drive, Message};
use crate::extent::blocks_of;
use crate::format::{Record, Records};
use crate::segment::Segment;
use crate::ticket::Tally;
use crate::{Extent, OwnedHead, Owner, PageHead, Standing};
use memkv_core::PageHasher;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of hot pages that are read and written again at a time.
const ROUND_BYTES: u64 = 4 << 20;

/// A hot page, read back.
struct Hot {
    head: OwnedHead,
    old: Extent,
    bytes: Buffer,
}

/// Asks the owner about each page, writes the hot ones again up to `allowance` bytes, and removes the segment.
pub(crate) fn give_back(drive: &Drive, segment: &Arc<Segment>, allowance: &mut u64) -> io::Result<()> {
    let Some(owner) = drive.owner.get() else { return Ok(()) };
    drive.reclaiming.store(true, Ordering::SeqCst);
    let records = segment.page_records();
    let done = match &records {
        Ok(records) => pass_on(drive, segment, owner.as_ref(), records, allowance),
        // Nobody can say what was in it; the owner finds out page by page.
        Err(reason) if reason.kind() == io::ErrorKind::InvalidData => Ok(()),
        Err(reason) => Err(io::Error::from(reason.kind())),
    };
    drive.reclaiming.store(false, Ordering::SeqCst);
    // If nobody listens any more, nobody writes either.
    drive.post(Message::ReclaimOver).ok();
    done?;
    drive.segments.write().remove(&segment.identity.sequence);
    drive.disk.remove(&segment_file(segment.identity.sequence))?;
    drive.counts.reclaimed.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

fn pass_on(
    drive: &Drive,
    segment: &Arc<Segment>,
    owner: &dyn Owner,
    records: &[u8],
    allowance: &mut u64,
) -> io::Result<()> {
    let mut round = Vec::new();
    let mut round_bytes = 0;
    for record in Records::new(records, segment.identity.blocks) {
        let Ok(Record::Page { head, block, .. }) = record else { continue };
        let extent = segment.extent(block, blocks_of(head.meta.len));
        let stored = u64::from(extent.stored_bytes());
        match owner.standing(&head, extent) {
            Standing::Dead => {}
            Standing::Hot if stored <= *allowance => {
                *allowance -= stored;
                match read_back(segment, &head, extent)? {
                    Some(bytes) => {
                        round.push(Hot { head: head.to_owned(), old: extent, bytes });
                        round_bytes += stored;
                    }
                    None => owner.lost(&head, extent),
                }
            }
            Standing::Hot | Standing::Cold => owner.lost(&head, extent),
        }
        if round_bytes >= ROUND_BYTES {
            write_again(drive, owner, std::mem::take(&mut round));
            round_bytes = 0;
        }
    }
    write_again(drive, owner, round);
    Ok(())
}

/// The bytes of a page, if they still have its checksum: damage is not passed on.
fn read_back(segment: &Segment, head: &PageHead<'_>, extent: Extent) -> io::Result<Option<Buffer>> {
    let len = head.meta.len as usize;
    let mut bytes = Buffer::zeroed(len);
    if len > 0 && segment.file.read(&mut bytes, extent.offset())? < len {
        return Ok(None);
    }
    let intact = head.meta.checksum_of(PageHasher::oneshot(head.digest, &bytes[..len])) == head.meta.checksum;
    Ok(intact.then_some(bytes))
}

fn write_again(drive: &Drive, owner: &dyn Owner, round: Vec<Hot>) {
    if round.is_empty() {
        return;
    }
    let (tally, ticket) = Tally::new(round.len());
    let mut old = Vec::with_capacity(round.len());
    let mut messages = Vec::with_capacity(round.len());
    for (index, hot) in round.into_iter().enumerate() {
        let load = drive.force_load(hot.bytes.len() as u64);
        let source = Source::Copy(hot.bytes);
        old.push((hot.head.clone(), hot.old));
        let page = PageJob { head: hot.head, source, tally: Arc::clone(&tally), index, load };
        messages.push(Message::Hot(Box::new(page)));
    }
    // Pages that are not taken are dropped, and their results say so.
    drive.post_all(messages);
    drop(tally);
    for ((head, old), result) in old.into_iter().zip(drive.results(ticket)) {
        let head = head.as_head();
        match result {
            Ok(new) if owner.moved(&head, old, new) => {
                drive.counts.reinserted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(new) => {
                if let Some(segment) = drive.segment(new) {
                    segment.release(new);
                }
            }
            Err(_) => owner.lost(&head, old),
        }
    }
}
