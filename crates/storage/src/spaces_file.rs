//! The descriptions of spaces beside the arena's file, for pages in memory that outlive the process.
//!
//! The file is `memkv.spaces` in the backing directory, in the form of the drives' files (see
//! [`memkv_nvme::encode_spaces`]); it is replaced as a whole.

use memkv_core::SpaceDescription;
use memkv_nvme::{decode_spaces, encode_spaces};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Where the descriptions are kept.
#[derive(Debug)]
pub(crate) struct SpacesFile {
    directory: PathBuf,
}

impl SpacesFile {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("memkv.spaces")
    }

    /// The descriptions; none if the file is missing or damaged. Pages of spaces that are not known are dropped.
    pub(crate) fn read(&self) -> Vec<SpaceDescription> {
        let path = self.path();
        match fs::read(&path).map(|bytes| decode_spaces(&bytes)) {
            Ok(Ok(Some(spaces))) => spaces,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Ok(unknown) => {
                tracing::warn!(path = %path.display(), ?unknown, "the descriptions of spaces cannot be read");
                Vec::new()
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the descriptions of spaces cannot be read");
                Vec::new()
            }
        }
    }

    /// Replaces the file.
    pub(crate) fn write(&self, spaces: &[SpaceDescription]) -> io::Result<()> {
        let new = self.directory.join("memkv.spaces.new");
        let mut file = File::create(&new)?;
        file.write_all(&encode_spaces(spaces))?;
        file.sync_all()?;
        fs::rename(&new, self.path())?;
        File::open(&self.directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_replaced_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let file = SpacesFile::new(directory.path());
        assert_eq!(file.read(), []);
        let spaces = ["a", "b"].map(|name| SpaceDescription::named(name).unwrap());
        file.write(&spaces[..1]).unwrap();
        file.write(&spaces).unwrap();
        assert_eq!(file.read(), spaces);
        fs::write(file.path(), b"damaged").unwrap();
        assert_eq!(file.read(), []);
    }
}
