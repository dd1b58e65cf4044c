//! Certificates for tests: an authority of its own, and what it signs, as files.

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A certificate authority.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its private key, as PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    ///
    /// If rcgen cannot make it.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its own certificate, as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs a certificate for these host names and addresses.
    ///
    /// # Errors
    ///
    /// If rcgen cannot make it.
    pub fn sign(&self, names: &[&str]) -> anyhow::Result<Pair> {
        self.sign_with(names, |_| {})
    }

    /// Signs a certificate with other properties, too.
    ///
    /// # Errors
    ///
    /// If rcgen cannot make it.
    pub fn sign_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> anyhow::Result<Pair> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        change(&mut params);
        let key = KeyPair::generate()?;
        Ok(Pair { cert: params.signed_by(&key, &self.0)?.pem(), key: key.serialize_pem() })
    }

    /// Signs a certificate for an engine, by the name of a workload.
    ///
    /// # Errors
    ///
    /// If rcgen cannot make it.
    pub fn sign_client(&self, common_name: &str, uri: &str) -> anyhow::Result<Pair> {
        let uri = SanType::URI(uri.try_into()?);
        self.sign_with(&[], |params| {
            params.distinguished_name.push(DnType::CommonName, common_name);
            params.subject_alt_names.push(uri);
        })
    }
}

/// A folder with PEM files.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Folder {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// If there is no room.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(tempfile::tempdir().context("make a folder for certificates")?))
    }

    /// Where a file is, or will be.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The same as text, for an option.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file that only its owner may read, at once.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let new = self.path("new");
        write_private(&new, text)?;
        fs::rename(new, self.path(name)).context("put a file in its place")
    }

    /// Writes `NAME.pem` and `NAME.key`.
    ///
    /// # Errors
    ///
    /// If one cannot be written.
    pub fn write_pair(&self, name: &str, pair: &Pair) -> anyhow::Result<()> {
        self.write(&format!("{name}.pem"), &pair.cert)?;
        self.write(&format!("{name}.key"), &pair.key)
    }
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).context("write a file")?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).context("close a file to others")
}
