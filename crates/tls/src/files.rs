//! PEM files: read, checked, and watched for changes.

use crate::TlsError;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The longest file that is read, bytes. The CAs of a whole operating system take 300 KiB.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Anybody may read, or write.
const BY_OTHERS: u32 = 0o006;

/// What became of looking at the files again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// They are as they were, or not yet settled.
    Same,
    /// They were read, and new connections use them.
    Loaded,
    /// They cannot be used, and the ones before them stay in use. Said once for each state of the files.
    Refused(String),
}

/// A change of any of these means that a file is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

/// The state of a few files on disk. Looking costs one `stat` each.
#[derive(Debug)]
pub(crate) struct Watch {
    paths: Vec<PathBuf>,
    /// As they were when they were last read, whatever came of it.
    taken: Vec<Option<Stamp>>,
    /// As they were at the last look.
    seen: Vec<Option<Stamp>>,
}

impl Watch {
    /// Call before the files are read, so that a change meanwhile is not missed.
    pub(crate) fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let paths: Vec<_> = paths.into_iter().collect();
        let taken = stamps(&paths);
        Self { paths, seen: taken.clone(), taken }
    }

    /// Whether the files are others than those taken and have been the same for two looks: certificate and key are
    /// written one after the other.
    pub(crate) fn has_settled(&mut self) -> bool {
        let now = stamps(&self.paths);
        let settled = now == self.seen && now != self.taken;
        self.seen = now;
        settled
    }

    /// Notes that the files are read now.
    pub(crate) fn take(&mut self) {
        self.seen = stamps(&self.paths);
        self.taken.clone_from(&self.seen);
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |path: &PathBuf| {
        let about = fs::metadata(path).ok()?;
        let changed = (about.ctime(), about.ctime_nsec());
        Some(Stamp { device: about.dev(), inode: about.ino(), bytes: about.len(), changed })
    };
    paths.iter().map(stamp).collect()
}

/// The certificates in a file, in its order; at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = |problem: &str| TlsError::Content { path: path.to_owned(), problem: problem.to_owned() };
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|_| content("is not a valid PEM file; it should hold certificates"))?;
    if found.is_empty() {
        return Err(content("holds no certificate; it should have a section BEGIN CERTIFICATE"));
    }
    Ok(found)
}

/// The CAs in a file.
pub(crate) fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::Content {
            path: path.to_owned(),
            problem: format!("holds a certificate that cannot be used as a CA: {error}"),
        })?;
    }
    Ok(roots)
}

/// The private key in a file, and a warning if others may read it.
pub(crate) fn private_key(path: &Path) -> Result<(PrivateKeyDer<'static>, Option<String>), TlsError> {
    let about = fs::metadata(path).map_err(|error| TlsError::Read { path: path.to_owned(), error })?;
    let pem = read(path)?;
    // The parser's own error may quote the file.
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::Content {
        path: path.to_owned(),
        problem: "holds no private key; it should have one section BEGIN PRIVATE KEY (without a passphrase)"
            .to_owned(),
    })?;
    let open = about.mode() & BY_OTHERS != 0;
    let warning = open.then(|| {
        format!(
            "the private key {path} can be read or written by anybody on this machine; chmod 600 it",
            path = path.display()
        )
    });
    Ok((key, warning))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|error| TlsError::Read { path: path.to_owned(), error })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
