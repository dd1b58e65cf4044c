//! From chosen texts to values.

use super::options::{self, OptionInfo};
use super::{Config, TlsConfig, TlsMode, Transport};
use crate::{Error, ErrorKind, Hedge, address};
use memkv_transport::auth::AuthKey;
use memkv_transport::tenant::is_tenant_name;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Yaml { path: String, key: &'static str },
    Env(&'static str),
    Explicit(&'static str),
}

impl Source {
    /// A higher rank wins.
    fn rank(&self) -> u8 {
        match self {
            Self::Yaml { .. } => 0,
            Self::Env(_) => 1,
            Self::Explicit(_) => 2,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yaml { path, key } => write!(f, "{path}: {key}"),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Explicit(name) => write!(f, "option {name}"),
        }
    }
}

/// A YAML value that may be a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum List {
    Text(String),
    Items(Vec<String>),
}

impl List {
    fn joined(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Items(items) => items.join(","),
        }
    }
}

/// The YAML file. Every scalar is read as the text it is written as: a key of decimal digits is no number.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    servers: Option<List>,
    discovery: Option<String>,
    member_grace: Option<String>,
    member_ramp: Option<String>,
    auth_key: Option<String>,
    auth_key_file: Option<String>,
    tenant: Option<String>,
    transport: Option<String>,
    tls: Option<String>,
    tls_ca: Option<String>,
    tls_cert: Option<String>,
    tls_key: Option<String>,
    tls_server_name: Option<String>,
    rdma_devices: Option<List>,
    rdma_gid_index: Option<String>,
    rdma_bounce: Option<String>,
    connect_timeout: Option<String>,
    op_timeout: Option<String>,
    replicas: Option<String>,
    hedge: Option<String>,
    hot_copies: Option<String>,
    move_grace: Option<String>,
    connections_per_server: Option<String>,
    store_backlog: Option<String>,
    client_name: Option<String>,
}

/// The texts chosen so far, by option name.
#[derive(Default)]
pub(super) struct Chosen {
    values: BTreeMap<&'static str, (String, Source)>,
}

impl Chosen {
    pub(super) fn add(&mut self, option: &OptionInfo, value: String, source: Source) {
        self.values.insert(option.name, (value, source));
    }

    /// Adds what a YAML file says.
    pub(super) fn add_yaml(&mut self, path: &str, text: &str) -> Result<(), Error> {
        let bad = |problem: String| Error::new(ErrorKind::Config, format!("{path}: {problem}"));
        let only_comments = text.lines().all(|line| matches!(line.trim().chars().next(), None | Some('#')));
        if only_comments {
            return Ok(());
        }
        let file: File = serde_saphyr::from_str(text).map_err(|error| {
            bad(format!("not a YAML map of known options ({}): {error}", options::names()))
        })?;
        let values = [
            ("servers", file.servers.map(List::joined)),
            ("discovery", file.discovery),
            ("member_grace", file.member_grace),
            ("member_ramp", file.member_ramp),
            ("auth_key", file.auth_key),
            ("auth_key_file", file.auth_key_file),
            ("tenant", file.tenant),
            ("transport", file.transport),
            ("tls", file.tls),
            ("tls_ca", file.tls_ca),
            ("tls_cert", file.tls_cert),
            ("tls_key", file.tls_key),
            ("tls_server_name", file.tls_server_name),
            ("rdma_devices", file.rdma_devices.map(List::joined)),
            ("rdma_gid_index", file.rdma_gid_index),
            ("rdma_bounce", file.rdma_bounce),
            ("connect_timeout", file.connect_timeout),
            ("op_timeout", file.op_timeout),
            ("replicas", file.replicas),
            ("hedge", file.hedge),
            ("hot_copies", file.hot_copies),
            ("move_grace", file.move_grace),
            ("connections_per_server", file.connections_per_server),
            ("store_backlog", file.store_backlog),
            ("client_name", file.client_name),
        ];
        for (name, value) in values {
            let option = options::named(name).expect("every field of the file is in the table of options");
            if let Some(value) = value {
                self.add(option, value, Source::Yaml { path: path.to_owned(), key: option.name });
            }
        }
        Ok(())
    }

    fn read<T>(
        &self,
        name: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, Error> {
        match self.values.get(name) {
            None => Ok(default),
            Some((text, source)) => {
                parse(text).map_err(|problem| Error::new(ErrorKind::Config, format!("{source}: {problem}")))
            }
        }
    }

    pub(super) fn into_config(
        mut self,
        read_file: &dyn Fn(&Path) -> std::io::Result<String>,
    ) -> Result<Config, Error> {
        self.choose_members()?;
        let default = Config::default();
        let (auth_key, tenant) = (self.auth_key(read_file)?, self.read("tenant", None, tenant)?);
        let certified = self.values.contains_key("tls_cert");
        if let Some(tenant) = tenant.as_ref().filter(|_| auth_key.is_none() && !certified) {
            let text = format!(
                "the tenant is {tenant}, but there is neither a key nor a certificate; set MEMKV_AUTH_KEY to the tenant's key"
            );
            return Err(Error::new(ErrorKind::Config, text));
        }
        Ok(Config {
            servers: self.read("servers", default.servers, address::parse_list)?,
            discovery: self.read("discovery", default.discovery, discovery)?,
            member_grace: self.read("member_grace", default.member_grace, pause)?,
            member_ramp: self.read("member_ramp", default.member_ramp, pause)?,
            auth_key,
            tenant,
            transport: self.read("transport", default.transport, str::parse::<Transport>)?,
            tls: self.tls()?,
            rdma_devices: self.read("rdma_devices", default.rdma_devices, |text| Ok(list(text)))?,
            rdma_gid_index: self.read("rdma_gid_index", default.rdma_gid_index, index)?,
            rdma_bounce_bytes: self.read("rdma_bounce", default.rdma_bounce_bytes, size)?,
            connect_timeout: self.read("connect_timeout", default.connect_timeout, duration)?,
            op_timeout: self.read("op_timeout", default.op_timeout, duration)?,
            replicas: self.read("replicas", default.replicas, copies)?,
            hedge: self.read("hedge", default.hedge, str::parse::<Hedge>)?,
            hot_copies: self.read("hot_copies", default.hot_copies, copies)?,
            move_grace: self.read("move_grace", default.move_grace, grace)?,
            connections_per_server: self.read(
                "connections_per_server",
                default.connections_per_server,
                connections,
            )?,
            store_backlog_bytes: self.read("store_backlog", default.store_backlog_bytes, |text| {
                size(text).map(|bytes| bytes as u64)
            })?,
            client_name: self.read("client_name", default.client_name, client_name)?,
        })
    }

    fn tls(&self) -> Result<TlsConfig, Error> {
        let path = |name| {
            self.read(name, None, |text| Ok(Some(text.trim()).filter(|t| !t.is_empty()).map(Into::into)))
        };
        let name = |text: &str| Ok(Some(text.trim().to_owned()).filter(|name| !name.is_empty()));
        let tls = TlsConfig {
            mode: self.read("tls", TlsMode::Off, str::parse)?,
            ca: path("tls_ca")?,
            cert: path("tls_cert")?,
            key: path("tls_key")?,
            server_name: self.read("tls_server_name", None, name)?,
        };
        tls.check().map_err(|problem| Error::new(ErrorKind::Config, problem))?;
        Ok(tls)
    }

    /// Of a list of servers and a place to find them, the one from the higher source counts.
    fn choose_members(&mut self) -> Result<(), Error> {
        let rank = |name| {
            let chosen = self.values.get(name).filter(|(text, _)| !text.trim().is_empty());
            chosen.map(|(_, source)| source.rank())
        };
        let (list, place) = (rank("servers"), rank("discovery"));
        if list.is_some() && list == place {
            let sources = ["servers", "discovery"].map(|name| &self.values[name].1);
            let text =
                format!("{}: servers are also given by {}; keep one of the two", sources[1], sources[0]);
            return Err(Error::new(ErrorKind::Config, text));
        }
        if list.is_some() && place.is_some() {
            self.values.remove(if list > place { "discovery" } else { "servers" });
        }
        Ok(())
    }

    /// The key itself or the file that holds it, whichever comes from the higher source.
    fn auth_key(
        &self,
        read_file: &dyn Fn(&Path) -> std::io::Result<String>,
    ) -> Result<Option<AuthKey>, Error> {
        let key = self.values.get("auth_key").filter(|(text, _)| !text.trim().is_empty());
        let file = self.values.get("auth_key_file").filter(|(text, _)| !text.trim().is_empty());
        let bad =
            |source: &Source, problem: String| Error::new(ErrorKind::Config, format!("{source}: {problem}"));
        let (text, source) = match (key, file) {
            (None, None) => return Ok(None),
            (Some((_, source)), Some((_, other))) if source.rank() == other.rank() => {
                return Err(bad(source, format!("the key is also given by {other}; keep one of the two")));
            }
            (Some((text, source)), other) if other.is_none_or(|(_, s)| s.rank() < source.rank()) => {
                (text.clone(), source)
            }
            (_, Some((path, source))) => {
                let text = read_file(Path::new(path.trim()))
                    .map_err(|error| bad(source, format!("cannot read the key file {path}: {error}")))?;
                (text, source)
            }
            (Some((text, source)), None) => (text.clone(), source),
        };
        AuthKey::from_hex(&text).map(Some).map_err(|error| bad(source, error.to_string()))
    }
}

/// Reads a tenant's name, or nothing.
fn tenant(text: &str) -> Result<Option<String>, String> {
    match text.trim() {
        "" => Ok(None),
        name if is_tenant_name(name) => Ok(Some(name.to_owned())),
        name => Err(format!("{name:?} is not a tenant's name; write 1 to 64 of a-z, 0-9, '_', '-'")),
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn connections(text: &str) -> Result<u32, String> {
    match text.trim().parse() {
        Ok(count @ 1..=64) => Ok(count),
        _ => Err(format!("{text:?} is not a whole number from 1 to 64")),
    }
}

fn copies(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(count @ 1..=8) => Ok(count),
        _ => Err(format!("{text:?} is not a whole number from 1 to 8")),
    }
}

/// Reads a duration or `off`.
fn grace(text: &str) -> Result<Option<Duration>, String> {
    if text.trim() == "off" {
        return Ok(None);
    }
    duration(text).map(Some).map_err(|problem| format!("{problem}; or write off"))
}

/// Reads where members are found, or nothing.
fn discovery(text: &str) -> Result<Option<memkv_discovery::Location>, String> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error: memkv_discovery::BadLocation| error.to_string())
}

/// Reads a duration, or `off` for none at all.
fn pause(text: &str) -> Result<Duration, String> {
    if text.trim() == "off" {
        return Ok(Duration::ZERO);
    }
    duration(text).map_err(|problem| format!("{problem}; or write off"))
}

/// Reads a whole number, or nothing.
fn index(text: &str) -> Result<Option<u32>, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| format!("{text:?} is not a whole number"))
}

/// Reads `64MiB`, `512KiB` or `1GiB`; at least a block of 64 KiB and at most 64 GiB.
fn size(text: &str) -> Result<usize, String> {
    let bad = || format!("{text:?} is not a size; write a number and a unit, for example \"64MiB\"");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let number: u64 = trimmed[..digits].parse().map_err(|_| bad())?;
    let unit: u64 = match trimmed[digits..].trim() {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(bad()),
    };
    let bytes = number.checked_mul(unit).filter(|bytes| (64 << 10..=64 << 30).contains(bytes));
    let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
    bytes.ok_or_else(|| format!("{text:?} is out of range; write at least \"64KiB\" and at most \"64GiB\""))
}

fn client_name(text: &str) -> Result<String, String> {
    if text.len() > 128 || text.chars().any(char::is_control) {
        return Err("the name has more than 128 bytes or control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads `5s`, `500ms`, `2m` or `250us`; more than nothing and at most an hour.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let bad =
        || format!("{text:?} is not a duration; write a number and a unit, for example \"5s\" or \"500ms\"");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let number: u64 = trimmed[..digits].parse().map_err(|_| bad())?;
    let micros = match trimmed[digits..].trim() {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        _ => return Err(bad()),
    };
    let length = Duration::from_micros(number.checked_mul(micros).ok_or_else(bad)?);
    if length.is_zero() || length > Duration::from_secs(3600) {
        return Err(format!("{text:?} is out of range; write more than 0 and at most \"60m\""));
    }
    Ok(length)
}
