//! One file per page in the page cache: what a store needs no socket for.

use super::{Kind, Subject};
use crate::raw::elapsed_nanos;
use anyhow::{Context as _, ensure};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Instant;
use tempfile::TempDir;

/// A folder with one file per page.
pub(crate) struct Files {
    folder: TempDir,
}

/// What it is called.
pub(crate) const NAME: &str = "file";

impl Files {
    /// An empty folder, where temporary files go.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self { folder: tempfile::tempdir().context("make a folder for pages")? })
    }

    fn path(&self, key: &[u8]) -> PathBuf {
        self.folder.path().join(String::from_utf8_lossy(key).as_ref())
    }
}

impl Subject for Files {
    fn name(&self) -> &str {
        NAME
    }

    fn kind(&self) -> Kind {
        Kind::Baseline
    }

    fn note(&self) -> String {
        "one file per page, in the page cache; no socket".into()
    }

    fn servers(&self) -> &[u32] {
        &[]
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        for entry in fs::read_dir(self.folder.path()).context("list pages")? {
            fs::remove_file(entry?.path()).context("remove a page")?;
        }
        Ok(())
    }

    fn put_pass(&mut self, batch: usize, keys: &[Vec<u8>], pages: &[&[u8]]) -> anyhow::Result<Vec<u64>> {
        let mut nanos = Vec::with_capacity(keys.len() / batch);
        for (keys, pages) in keys.chunks(batch).zip(pages.chunks(batch)) {
            let start = Instant::now();
            for (key, page) in keys.iter().zip(pages) {
                fs::write(self.path(key), page).context("write a page")?;
            }
            nanos.push(elapsed_nanos(start));
        }
        Ok(nanos)
    }

    fn get_pass(
        &mut self,
        batch: usize,
        keys: &[Vec<u8>],
        pages: &mut [&mut [u8]],
    ) -> anyhow::Result<Vec<u64>> {
        let mut nanos = Vec::with_capacity(keys.len() / batch);
        for (keys, pages) in keys.chunks(batch).zip(pages.chunks_mut(batch)) {
            let start = Instant::now();
            for (key, page) in keys.iter().zip(pages) {
                File::open(self.path(key))
                    .and_then(|mut file| file.read_exact(page))
                    .context("read a page")?;
            }
            nanos.push(elapsed_nanos(start));
        }
        Ok(nanos)
    }

    fn exists(&mut self, keys: &[Vec<u8>], times: usize) -> anyhow::Result<Vec<u64>> {
        let mut nanos = Vec::with_capacity(times);
        for _ in 0..times {
            let start = Instant::now();
            ensure!(keys.iter().all(|key| self.path(key).exists()), "a page is gone");
            nanos.push(elapsed_nanos(start));
        }
        Ok(nanos)
    }
}
