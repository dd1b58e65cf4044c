//! The inputs that are kept: `corpus/TARGET/`, one file each. `seed-NN` are made by the targets from real messages; others were found.

use crate::targets::Target;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// Where the corpora are.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// A target's kept inputs with their names, in order.
///
/// # Errors
///
/// If they cannot be read.
pub fn read(target: &Target) -> Result<Vec<(String, Vec<u8>)>> {
    let directory = root().join(target.name);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.push((name, std::fs::read(&path).with_context(|| format!("read {}", path.display()))?));
    }
    found.sort();
    Ok(found)
}

/// Writes the inputs that a target makes from real messages.
///
/// # Errors
///
/// If they cannot be written.
pub fn write_seeds(target: &Target) -> Result<()> {
    let directory = root().join(target.name);
    std::fs::create_dir_all(&directory)?;
    for (name, seed) in seeds(target) {
        std::fs::write(directory.join(name), seed)?;
    }
    Ok(())
}

/// The inputs that a target makes from real messages, with their names.
#[must_use]
pub fn seeds(target: &Target) -> Vec<(String, Vec<u8>)> {
    let named = |(number, seed)| (format!("seed-{number:02}"), seed);
    (target.seeds)().into_iter().enumerate().map(named).collect()
}
