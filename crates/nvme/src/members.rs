//! Which drives belong together, so that paths may be swapped and a drive that was away does not bring deleted pages back.
//!
//! Each drive has an id, in the file `memkv-drive`, with the ids of the others. A drive that failed, or was missing at
//! a start, is noted as retired by the ones that go on. When it comes back, its pages are dropped: some of them may
//! have been deleted meanwhile, and nobody could tell it.
//!
//! | `memkv-drive` | bytes | |
//! |---|---|---|
//! | 0 | 8 | `memkvdrv` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | number of entries |
//! | 16 | 8 | XXH3-64, seed version, of all that follows |
//! | 24 | 16 | id of this drive |
//! | 40 | 20 each | entries: id (16), then 1 for a member or 2 for a retired one (4) |
//!
//! All integers are little-endian. A file that does not check out counts as missing: the drive gets a new id, and
//! segments with the old one are dropped.

use crate::LogError;
use crate::disk::Disk;
use crate::format::checksum;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io;

/// The file that names a drive.
pub(crate) const DRIVE_FILE: &str = "memkv-drive";

const MAGIC: &[u8; 8] = b"memkvdrv";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 40;
const ENTRY_BYTES: usize = 20;
/// Retired drives that are remembered.
const RETIRED_MAX: usize = 64;
const FILE_BYTES_MAX: u64 = 1 << 16;

/// A drive's id.
pub(crate) type Id = [u8; 16];

/// What a drive says of itself and of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) id: Id,
    pub(crate) members: Vec<Id>,
    pub(crate) retired: Vec<Id>,
}

/// What is in a drive's file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Card(Card),
    Newer(u32),
    /// Missing or damaged.
    None,
}

impl Card {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let entries = self.members.iter().map(|id| (id, 1_u32)).chain(self.retired.iter().map(|id| (id, 2)));
        let mut body = self.id.to_vec();
        let mut count = 0_u32;
        for (id, state) in entries {
            body.extend_from_slice(id);
            body.extend_from_slice(&state.to_le_bytes());
            count += 1;
        }
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&VERSION.to_le_bytes());
        file.extend_from_slice(&count.to_le_bytes());
        file.extend_from_slice(&checksum(u64::from(VERSION), &body).to_le_bytes());
        file.extend_from_slice(&body);
        file
    }

    /// Reads a drive's file.
    pub(crate) fn decode(file: &[u8]) -> Read {
        let head = file.split_first_chunk::<HEAD_BYTES>().filter(|(head, _)| head[..8] == *MAGIC);
        let Some((head, entries)) = head else { return Read::None };
        let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if head[16..24] != checksum(u64::from(version), &file[24..]).to_le_bytes() {
            return Read::None;
        }
        match version {
            VERSION => {}
            _ if version > VERSION => return Read::Newer(version),
            _ => return Read::None,
        }
        let mut card = Self { id: id_at(file, 24), members: Vec::new(), retired: Vec::new() };
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            let list = if entry[16] == 1 { &mut card.members } else { &mut card.retired };
            list.push(id_at(entry, 0));
        }
        Read::Card(card)
    }
}

fn id_at(bytes: &[u8], at: usize) -> Id {
    bytes[at..at + 16].try_into().expect("the range has 16 bytes")
}

/// Reads the card of a drive.
///
/// # Errors
///
/// [`LogError::Newer`], or the system's error.
pub(crate) fn read_card(disk: &Disk) -> Result<io::Result<Option<Card>>, LogError> {
    let file = match disk.load(DRIVE_FILE, FILE_BYTES_MAX) {
        Ok(file) => file,
        Err(reason) => return Ok(Err(reason)),
    };
    match file.as_deref().map_or(Read::None, Card::decode) {
        Read::Card(card) => Ok(Ok(Some(card))),
        Read::None => Ok(Ok(None)),
        Read::Newer(version) => {
            Err(LogError::Newer { path: disk.dir.join(DRIVE_FILE), version, known: VERSION })
        }
    }
}

/// The drives of an open log.
pub(crate) struct Members {
    state: Mutex<State>,
}

struct State {
    drives: Vec<Member>,
    retired: Vec<Id>,
}

struct Member {
    number: u8,
    id: Id,
    disk: Disk,
    out: bool,
}

/// Decides who takes part. `cards` are those of the drives that are there; a drive gets a new id, and so loses its
/// pages, if it has none or if one of the cards says that it was retired. Also returns who is retired from now on.
pub(crate) fn decide(cards: &[Option<Card>], mut new_id: impl FnMut() -> Id) -> (Vec<Id>, Vec<Id>) {
    let there: BTreeSet<Id> = cards.iter().flatten().map(|card| card.id).collect();
    let mut retired: Vec<Id> = Vec::new();
    for card in cards.iter().flatten() {
        let missing = card.members.iter().filter(|id| !there.contains(*id));
        for id in card.retired.iter().chain(missing) {
            if !retired.contains(id) {
                retired.push(*id);
            }
        }
    }
    let ids = cards.iter().map(|card| match card {
        Some(card) if !retired.contains(&card.id) => card.id,
        _ => new_id(),
    });
    let ids = ids.collect();
    let excess = retired.len().saturating_sub(RETIRED_MAX);
    retired.drain(..excess);
    (ids, retired)
}

impl Members {
    /// The drives that take part, and those that are retired.
    pub(crate) fn new(drives: Vec<(u8, Id, Disk)>, retired: Vec<Id>) -> Self {
        let member = |(number, id, disk)| Member { number, id, disk, out: false };
        Self { state: Mutex::new(State { drives: drives.into_iter().map(member).collect(), retired }) }
    }

    /// Writes every drive's card. Errors by number of the drive.
    pub(crate) fn write_all(&self) -> Vec<(u8, io::Error)> {
        let state = self.state.lock();
        let written = state.drives.iter().map(|drive| (drive.number, state.write(drive)));
        written.filter_map(|(number, written)| written.err().map(|reason| (number, reason))).collect()
    }

    /// Notes that a drive was taken out. Whether at least one drive could note it.
    pub(crate) fn retire(&self, id: Id, number: u8) -> bool {
        let mut state = self.state.lock();
        if !state.retired.contains(&id) {
            state.retired.push(id);
        }
        for drive in &mut state.drives {
            drive.out |= drive.number == number;
        }
        // The drive itself may still take the note.
        let mut recorded = false;
        for drive in state.drives.iter().filter(|drive| !drive.out || drive.number == number) {
            recorded |= state.write(drive).is_ok();
        }
        recorded
    }
}

impl State {
    fn write(&self, drive: &Member) -> io::Result<()> {
        let others = self.drives.iter().filter(|other| !other.out && other.id != drive.id);
        let card = Card {
            id: drive.id,
            members: others.map(|other| other.id).collect(),
            retired: self.retired.clone(),
        };
        drive.disk.replace(DRIVE_FILE, &card.encode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(id: u8, members: &[u8], retired: &[u8]) -> Option<Card> {
        let ids = |ids: &[u8]| ids.iter().map(|id| [*id; 16]).collect();
        Some(Card { id: [id; 16], members: ids(members), retired: ids(retired) })
    }

    #[test]
    fn a_card_comes_back_and_a_damaged_one_does_not() {
        let written = card(1, &[2, 3], &[9]).unwrap();
        let file = written.encode();
        assert_eq!(Card::decode(&file), Read::Card(written));
        for bit in 0..file.len() * 8 {
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                !matches!(Card::decode(&damaged), Read::Card(_)) || (96..128).contains(&bit),
                "bit {bit}"
            );
        }
        assert_eq!(Card::decode(&file[..30]), Read::None);
    }

    #[test]
    fn who_was_away_comes_back_empty() {
        let new = || [0; 16];
        let all = [card(1, &[2], &[]), card(2, &[1], &[])];
        assert_eq!(decide(&all, new), (vec![[1; 16], [2; 16]], vec![]));
        let alone = [card(1, &[2], &[])];
        assert_eq!(decide(&alone, new), (vec![[1; 16]], vec![[2; 16]]));
        let back = [card(1, &[], &[2]), card(2, &[1], &[])];
        assert_eq!(decide(&back, new), (vec![[1; 16], [0; 16]], vec![[2; 16]]));
        let by_itself = [card(1, &[], &[1])];
        assert_eq!(decide(&by_itself, new), (vec![[0; 16]], vec![[1; 16]]));
        assert_eq!(decide(&[None], new), (vec![[0; 16]], vec![]));
    }
}
