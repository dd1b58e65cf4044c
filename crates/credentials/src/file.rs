//! Reading, checking and replacing the file.

use crate::{Credentials, KEYS_MAX, Key, Pattern, Public, Quotas, Rights, TENANTS_MAX, Tenant, size};
use memkv_transport::tenant::{Verifier, is_key_id, is_tenant_name};
use serde::Deserialize;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Largest file, bytes.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
/// Longest pattern or certificate's name, bytes, and the most of one list.
const TEXT_BYTES_MAX: usize = 512;
const LIST_MAX: usize = 256;

/// Why there are no credentials; the text says where and what to do. It never repeats a verifier.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read or written.
    #[error("cannot {action} the credentials file: {error}")]
    File {
        /// "read" or "replace".
        action: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// It is not YAML of this form.
    #[error("the credentials file is not valid: {0}")]
    Yaml(String),
    /// It is, and makes no sense.
    #[error("the credentials file is not valid: {0}")]
    Invalid(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    tenants: Option<Vec<RawTenant>>,
    #[serde(default)]
    public: Option<Vec<RawPublic>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTenant {
    name: String,
    #[serde(default)]
    rights: Option<Vec<String>>,
    #[serde(default)]
    keys: Option<Vec<RawKey>>,
    #[serde(default)]
    certificates: Option<Vec<String>>,
    #[serde(default)]
    spaces: Option<Vec<String>>,
    #[serde(default)]
    operator: bool,
    #[serde(default)]
    quotas: Option<RawQuotas>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    id: String,
    verifier: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawQuotas {
    #[serde(default)]
    dram: Option<String>,
    #[serde(default)]
    nvme: Option<String>,
    #[serde(default)]
    requests_per_second: Option<u64>,
    #[serde(default)]
    bytes_per_second: Option<String>,
    #[serde(default)]
    spaces: Option<u64>,
    #[serde(default)]
    connections: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPublic {
    owner: String,
    spaces: Vec<String>,
    #[serde(default)]
    readers: Option<Vec<String>>,
}

impl Credentials {
    /// Reads and checks a file's text.
    ///
    /// # Errors
    ///
    /// [`CredentialsError`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, CredentialsError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        // An error never shows the file's lines: verifiers are in them.
        let options = serde_saphyr::options! { with_snippet: false };
        let raw: RawFile = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| CredentialsError::Yaml(error.to_string()))?;
        let tenants = raw.tenants.unwrap_or_default().into_iter().map(tenant);
        let tenants: Vec<Tenant> = tenants.collect::<Result<_, _>>().map_err(CredentialsError::Invalid)?;
        let public = raw.public.unwrap_or_default().into_iter().map(public);
        let public: Vec<Public> = public.collect::<Result<_, _>>().map_err(CredentialsError::Invalid)?;
        let credentials = Self { tenants, public };
        credentials.check().map_err(CredentialsError::Invalid)?;
        Ok(credentials)
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`CredentialsError`] says what is wrong.
    pub fn load(path: &Path) -> Result<Self, CredentialsError> {
        let failed = |error| CredentialsError::File { action: "read", error };
        let mut text = String::new();
        let mut file = File::open(path).map_err(failed)?.take(FILE_BYTES_MAX + 1);
        file.read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(CredentialsError::Invalid(format!("it has more than {FILE_BYTES_MAX} bytes")));
        }
        Self::parse(&text)
    }

    /// Replaces a file as a whole; only its owner can read it.
    ///
    /// # Errors
    ///
    /// [`CredentialsError`] if it makes no sense or cannot be written; then the old file is as it was.
    pub fn save(&self, path: &Path) -> Result<(), CredentialsError> {
        self.check().map_err(CredentialsError::Invalid)?;
        let failed = |error| CredentialsError::File { action: "replace", error };
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("credentials");
        let new = directory.join(format!(".{name}.new-{}", std::process::id()));
        // A file of an earlier attempt may be in the way, with whatever mode it has.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(self.to_yaml().as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            File::open(directory)?.sync_all()
        };
        write().map_err(failed)
    }

    fn check(&self) -> Result<(), String> {
        if self.tenants.len() > TENANTS_MAX {
            return Err(format!("it has more than {TENANTS_MAX} tenants"));
        }
        let (mut names, mut certificates) = (HashSet::new(), HashSet::new());
        for tenant in &self.tenants {
            if !names.insert(tenant.name.as_str()) {
                return Err(format!("the tenant {} is there twice", tenant.name));
            }
            if let Some(name) = tenant.certificates.iter().find(|name| !certificates.insert(name.as_str())) {
                return Err(format!("the certificate {name} stands for two tenants; each stands for one"));
            }
        }
        for public in &self.public {
            let readers = public.readers.iter().flatten();
            if let Some(name) = readers.chain([&public.owner]).find(|name| !names.contains(name.as_str())) {
                return Err(format!("public names the tenant {name}, which is not in the file"));
            }
        }
        Ok(())
    }

    /// The file's text.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut out = "# Who may use this server. Written by memkv-cli tenant; comments do not survive it.\n"
            .to_owned();
        out.push_str("tenants:\n");
        self.tenants.iter().for_each(|tenant| write_tenant(&mut out, tenant));
        if !self.public.is_empty() {
            out.push_str("public:\n");
        }
        for public in &self.public {
            out.push_str(&format!(
                "  - owner: {}\n    spaces: {}\n",
                quote(&public.owner),
                texts(&public.spaces)
            ));
            if let Some(readers) = &public.readers {
                out.push_str(&format!("    readers: {}\n", texts(readers)));
            }
        }
        out
    }
}

fn write_tenant(out: &mut String, tenant: &Tenant) {
    let rights: Vec<_> = tenant.rights.names().collect();
    out.push_str(&format!("  - name: {}\n    rights: [{}]\n", quote(&tenant.name), rights.join(", ")));
    if tenant.operator {
        out.push_str("    operator: true\n");
    }
    if !tenant.keys.is_empty() {
        out.push_str("    keys:\n");
    }
    for key in &tenant.keys {
        let verifier = quote(&key.verifier.to_hex());
        out.push_str(&format!("      - id: {}\n        verifier: {verifier}\n", quote(&key.id)));
    }
    if !tenant.certificates.is_empty() {
        out.push_str(&format!("    certificates: {}\n", texts(&tenant.certificates)));
    }
    if !tenant.spaces.is_empty() {
        out.push_str(&format!("    spaces: {}\n", texts(&tenant.spaces)));
    }
    let quotas = &tenant.quotas;
    let numbers = [
        ("dram", quotas.dram_bytes.map(size::show)),
        ("nvme", quotas.nvme_bytes.map(size::show)),
        ("requests_per_second", quotas.requests_per_s.map(|number| number.to_string())),
        ("bytes_per_second", quotas.bytes_per_s.map(size::show)),
        ("spaces", quotas.spaces.map(|number| number.to_string())),
        ("connections", quotas.connections.map(|number| number.to_string())),
    ];
    let numbers: Vec<_> =
        numbers.into_iter().filter_map(|(name, value)| Some(format!("{name}: {}", value?))).collect();
    if !numbers.is_empty() {
        out.push_str(&format!("    quotas: {{{}}}\n", numbers.join(", ")));
    }
}

fn texts<T: ToString>(list: &[T]) -> String {
    let list: Vec<_> = list.iter().map(|text| quote(&text.to_string())).collect();
    format!("[{}]", list.join(", "))
}

/// A YAML scalar in double quotes.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn tenant(raw: RawTenant) -> Result<Tenant, String> {
    let name = raw.name;
    if !is_tenant_name(&name) {
        return Err(format!("{name:?} is not a tenant's name; use 1 to 64 of a-z, 0-9, '_', '-'"));
    }
    let rights = match raw.rights {
        None => Rights::READ.with(Rights::WRITE),
        Some(rights) => rights.iter().try_fold(Rights::default(), |rights, text| {
            let right = Rights::named(text);
            right
                .map(|right| rights.with(right))
                .ok_or_else(|| format!("tenant {name}: {text:?} is not a right; write read, write or admin"))
        })?,
    };
    let keys = keys(&name, raw.keys.unwrap_or_default())?;
    let certificates = checked(&name, "certificates", raw.certificates.unwrap_or_default())?;
    let spaces = checked(&name, "spaces", raw.spaces.unwrap_or_default())?;
    let spaces = spaces.iter().map(|text| Pattern::new(text)).collect();
    let quotas = quotas(&name, raw.quotas.unwrap_or_default())?;
    Ok(Tenant { name, rights, keys, certificates, spaces, operator: raw.operator, quotas })
}

fn keys(name: &str, raw: Vec<RawKey>) -> Result<Vec<Key>, String> {
    if raw.len() > KEYS_MAX {
        return Err(format!(
            "tenant {name}: it has {} keys; {KEYS_MAX} may be valid at once, remove the oldest",
            raw.len()
        ));
    }
    let mut keys: Vec<Key> = Vec::with_capacity(raw.len());
    for key in raw {
        if !is_key_id(&key.id) || keys.iter().any(|known| known.id == key.id) {
            return Err(format!(
                "tenant {name}: the id of a key is wrong or there twice; it has 16 hex digits"
            ));
        }
        let verifier = Verifier::from_hex(&key.verifier).ok_or_else(|| {
            format!("tenant {name}, key {}: the verifier does not have 128 hex digits", key.id)
        })?;
        keys.push(Key { id: key.id, verifier });
    }
    Ok(keys)
}

fn checked(name: &str, what: &str, list: Vec<String>) -> Result<Vec<String>, String> {
    let sound =
        |text: &String| (1..=TEXT_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    if list.len() <= LIST_MAX && list.iter().all(sound) {
        return Ok(list);
    }
    Err(format!(
        "tenant {name}: {what} has up to {LIST_MAX} texts of 1 to {TEXT_BYTES_MAX} bytes without control characters"
    ))
}

fn quotas(name: &str, raw: RawQuotas) -> Result<Quotas, String> {
    let size = |what: &str, text: Option<String>| match text {
        None => Ok(None),
        Some(text) => size::parse(&text)
            .map(Some)
            .ok_or_else(|| format!("tenant {name}: {what} is {text:?}; write a size such as 4GiB")),
    };
    let quotas = Quotas {
        dram_bytes: size("quotas.dram", raw.dram)?,
        nvme_bytes: size("quotas.nvme", raw.nvme)?,
        requests_per_s: raw.requests_per_second,
        bytes_per_s: size("quotas.bytes_per_second", raw.bytes_per_second)?,
        spaces: raw.spaces,
        connections: raw.connections,
    };
    if [quotas.requests_per_s, quotas.bytes_per_s, quotas.connections].contains(&Some(0)) {
        return Err(format!(
            "tenant {name}: a rate or number of connections of 0 lets nothing through; take its rights or keys away instead"
        ));
    }
    Ok(quotas)
}

fn public(raw: RawPublic) -> Result<Public, String> {
    let spaces = checked(&raw.owner, "public spaces", raw.spaces)?;
    if spaces.is_empty() {
        return Err(format!("public spaces of {}: name at least one, \"*\" for all", raw.owner));
    }
    let spaces = spaces.iter().map(|text| Pattern::new(text)).collect();
    Ok(Public { owner: raw.owner, spaces, readers: raw.readers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_transport::auth::AuthKey;
    use memkv_transport::tenant::TenantKey;
    use std::os::unix::fs::PermissionsExt as _;

    fn key(byte: u8) -> Key {
        let key = TenantKey::new(&AuthKey::from_bytes([byte; 32]), "a");
        Key { id: key.key_id().to_owned(), verifier: key.verifier().clone() }
    }

    fn full() -> Credentials {
        let tenant = Tenant {
            name: "a".into(),
            rights: Rights::READ.with(Rights::ADMIN),
            keys: vec![key(1), key(2)],
            certificates: vec!["a \"quoted\" \\ name".into()],
            spaces: vec![Pattern::new("llama-*"), Pattern::new("model=x/*")],
            operator: true,
            quotas: Quotas {
                dram_bytes: Some(4 << 30),
                nvme_bytes: Some(5000),
                requests_per_s: Some(10),
                bytes_per_s: Some(1 << 20),
                spaces: Some(3),
                connections: Some(40),
            },
        };
        let plain = Tenant {
            name: "1234".into(),
            rights: Rights::default(),
            keys: Vec::new(),
            certificates: Vec::new(),
            spaces: Vec::new(),
            operator: false,
            quotas: Quotas::default(),
        };
        let public = |readers| Public { owner: "a".into(), spaces: vec![Pattern::new("*")], readers };
        Credentials {
            tenants: vec![tenant, plain],
            public: vec![public(None), public(Some(vec!["1234".into()]))],
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_only_by_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials.yaml");
        Credentials::default().save(&path).unwrap();
        assert_eq!(Credentials::load(&path).unwrap(), Credentials::default());
        full().save(&path).unwrap();
        assert_eq!(Credentials::load(&path).unwrap(), full());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(folder.path().read_dir().unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn the_file_has_no_key_and_errors_show_no_verifier() {
        let text = full().to_yaml();
        assert!(!text.contains(&"01".repeat(32)));
        let verifier = key(1).verifier.to_hex();
        for bad in [
            text.replace("keys:", "kays:"),
            text.replace(&verifier, &verifier[1..]),
            text.replace("id:", "- ["),
        ] {
            let error = Credentials::parse(&bad).unwrap_err().to_string();
            assert!(!error.contains(&verifier[1..20]), "{error}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (text, part) in [
            ("tenants: [{name: a, right: [read]}]", "right"),
            ("tenants: [{name: A}]", "not a tenant's name"),
            ("tenants: [{name: a, rights: [reed]}]", "not a right"),
            ("tenants: [{name: a}, {name: a}]", "twice"),
            ("tenants: [{name: a, keys: [{id: x, verifier: y}]}]", "16 hex digits"),
            ("tenants: [{name: a, quotas: {dram: lots}}]", "4GiB"),
            ("tenants: [{name: a, quotas: {requests_per_second: 0}}]", "of 0 lets nothing through"),
            ("tenants: [{name: a, certificates: [x]}, {name: b, certificates: [x]}]", "two tenants"),
            ("public: [{owner: a, spaces: ['*']}]", "not in the file"),
            ("tenants: [{name: a}]\npublic: [{owner: a, spaces: []}]", "at least one"),
            ("- a", "not valid"),
        ] {
            let error = Credentials::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(Credentials::parse("# nobody\n").unwrap(), Credentials::default());
    }

    #[test]
    fn rights_are_read_and_write_unless_said_otherwise() {
        let read = Credentials::parse("tenants: [{name: a}, {name: b, rights: []}]").unwrap();
        assert_eq!(read.tenants[0].rights, Rights::READ.with(Rights::WRITE));
        assert_eq!(read.tenants[1].rights, Rights::default());
    }
}
