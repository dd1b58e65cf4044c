//! Descriptions of spaces, kept on every drive beside the segments.
//!
//! | `memkv-spaces` | bytes | |
//! |---|---|---|
//! | 0 | 8 | `memkvspc` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | number of spaces |
//! | 16 | 8 | XXH3-64, seed version, of all that follows |
//! | 24 | … | spaces: number of fields (4), then for each field its name and its value, each as length (4) and UTF-8 |
//!
//! All integers are little-endian. The file is replaced as a whole, so it is never half written. One that does not
//! check out counts as empty; the other drives have the same.

use crate::LogError;
use crate::disk::Disk;
use crate::format::checksum;
use memkv_core::SpaceDescription;

/// The file with the descriptions.
pub(crate) const SPACES_FILE: &str = "memkv-spaces";

const MAGIC: &[u8; 8] = b"memkvspc";
const VERSION: u32 = 1;
const FILE_BYTES_MAX: u64 = 1 << 30;

/// The content of the file.
#[must_use]
pub fn encode(spaces: &[SpaceDescription]) -> Vec<u8> {
    let mut body = Vec::new();
    for space in spaces {
        put_len(&mut body, space.fields().count());
        for (name, value) in space.fields() {
            for text in [name, value] {
                put_len(&mut body, text.len());
                body.extend_from_slice(text.as_bytes());
            }
        }
    }
    let mut file = MAGIC.to_vec();
    file.extend_from_slice(&VERSION.to_le_bytes());
    put_len(&mut file, spaces.len());
    file.extend_from_slice(&checksum(u64::from(VERSION), &body).to_le_bytes());
    file.extend_from_slice(&body);
    file
}

fn put_len(bytes: &mut Vec<u8>, len: usize) {
    bytes.extend_from_slice(&u32::try_from(len).expect("descriptions are far below 4 GiB").to_le_bytes());
}

/// Takes the next length off the front.
fn take_len(bytes: &mut &[u8]) -> Option<usize> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    usize::try_from(u32::from_le_bytes(*len)).ok()
}

/// Takes the next text off the front.
fn take_text(bytes: &mut &[u8]) -> Option<String> {
    let len = take_len(bytes)?;
    let (text, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).ok()
}

/// The descriptions in a file's content; none if it is damaged.
///
/// # Errors
///
/// The version, if it is later than what is known here.
pub fn decode(file: &[u8]) -> Result<Option<Vec<SpaceDescription>>, u32> {
    let Some((head, mut body)) = file.split_at_checked(24).filter(|(head, _)| head[..8] == *MAGIC) else {
        return Ok(None);
    };
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let version = word(8);
    if head[16..24] != checksum(u64::from(version), body).to_le_bytes() {
        return Ok(None);
    }
    match version {
        VERSION => {}
        _ if version > VERSION => return Err(version),
        _ => return Ok(None),
    }
    let parsed: Option<Vec<_>> = (0..word(12)).map(|_| take_space(&mut body)).collect();
    Ok(parsed)
}

fn take_space(body: &mut &[u8]) -> Option<SpaceDescription> {
    let count = take_len(body)?;
    let fields: Option<Vec<_>> = (0..count).map(|_| Some((take_text(body)?, take_text(body)?))).collect();
    SpaceDescription::new(fields?).ok()
}

/// The descriptions on a drive; none if the file is not there, cannot be read, or is damaged.
///
/// # Errors
///
/// [`LogError::Newer`].
pub(crate) fn read(disk: &Disk) -> Result<Vec<SpaceDescription>, LogError> {
    let Ok(Some(file)) = disk.load(SPACES_FILE, FILE_BYTES_MAX) else { return Ok(Vec::new()) };
    let newer = |version| LogError::Newer { path: disk.dir.join(SPACES_FILE), version, known: VERSION };
    Ok(decode(&file).map_err(newer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Vec<SpaceDescription> {
        let fields = [("model".to_owned(), "llama".to_owned()), ("dtype".to_owned(), "bf16".to_owned())];
        vec![SpaceDescription::named("default").unwrap(), SpaceDescription::new(fields).unwrap()]
    }

    #[test]
    fn descriptions_come_back() {
        assert_eq!(decode(&encode(&some())), Ok(Some(some())));
        assert_eq!(decode(&encode(&[])), Ok(Some(vec![])));
    }

    #[test]
    fn damage_gives_nothing_and_a_later_version_is_told() {
        let file = encode(&some());
        for cut in 0..file.len() {
            assert_eq!(decode(&file[..cut]), Ok(None), "cut at {cut}");
        }
        for at in 24..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 4;
            assert_eq!(decode(&damaged), Ok(None), "byte {at}");
        }
        let mut later = file;
        later[8] = 2;
        assert_eq!(decode(&later), Ok(None), "a flipped bit is no later version");
        let sum = checksum(2, &later[24..]);
        later[16..24].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(decode(&later), Err(2));
    }
}
