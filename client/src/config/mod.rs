//! Configuration: defaults, then the YAML file that `MEMKV_CONFIG` names, then `MEMKV_*`, then explicit values.
//!
//! Every option is a text until it has been chosen, so that all three sources share one reader and one kind of
//! error: which source, which option, what is wrong, what to write. [`resolve`] is a pure function of the
//! sources; [`Config::load`] and [`ConfigBuilder::build`] read the process environment and files for it.
//!
//! Unknown YAML keys and unknown names of explicit values are errors. Unknown `MEMKV_*` variables are not: the
//! server, the plugin and the tools have their own.

mod options;
mod parse;
mod tls;

pub(crate) use parse::duration as parse_duration;

pub use options::{CONFIG_ENV, OPTIONS, OptionInfo};
pub use tls::{TlsConfig, TlsMode};

use crate::{Error, ErrorKind, Hedge, ServerAddress};
use memkv_discovery::Location;
use memkv_transport::auth::AuthKey;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// How pages move between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Transport {
    /// The best that works with each server.
    #[default]
    Auto,
    /// Framed ops on TCP data connections.
    Tcp,
    /// The gRPC API, for networks that let nothing else through. Several times slower.
    Grpc,
    /// RDMA that the server issues; an error at connect without a device.
    Rdma,
    /// Memory shared with servers on this host; an error for others.
    Shm,
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.trim().to_ascii_lowercase().as_str() {
            "auto" => Self::Auto,
            "tcp" => Self::Tcp,
            "grpc" => Self::Grpc,
            "rdma" => Self::Rdma,
            "shm" => Self::Shm,
            _ => return Err(format!("{text:?} is not a transport; write auto, tcp, shm, rdma or grpc")),
        })
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tcp => "tcp",
            Self::Grpc => "grpc",
            Self::Rdma => "rdma",
            Self::Shm => "shm",
        })
    }
}

/// A client's whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The static list of servers; routing depends on ids and weights alone.
    pub servers: Vec<ServerAddress>,
    /// Where servers are found instead.
    pub discovery: Option<Location>,
    /// How long a lost member keeps its keys; zero for not at all.
    pub member_grace: Duration,
    /// Over which time a new member takes its weight; zero for at once.
    pub member_ramp: Duration,
    /// The cluster's key; `None` for servers without one.
    pub auth_key: Option<AuthKey>,
    /// The tenant whose key it is; `None` with the cluster's key.
    pub tenant: Option<String>,
    /// How pages move.
    pub transport: Transport,
    /// TLS to the servers.
    pub tls: TlsConfig,
    /// RDMA devices, in order of preference; empty for all.
    pub rdma_devices: Vec<String>,
    /// Entry of the devices' GID tables; the best one if absent.
    pub rdma_gid_index: Option<u32>,
    /// Bytes of the buffer for pages that lie in no registered region.
    pub rdma_bounce_bytes: usize,
    /// How long connect waits for first answers.
    pub connect_timeout: Duration,
    /// Deadline of one call.
    pub op_timeout: Duration,
    /// How many servers get each page, 1 to 8.
    pub replicas: usize,
    /// When reads of pages with several places go on to the next one.
    pub hedge: Hedge,
    /// How many servers get a hot page, at most, 1 to 8.
    pub hot_copies: usize,
    /// How long pages are looked for where they were before a change of members; `None` for not at all.
    pub move_grace: Option<Duration>,
    /// The most data connections kept to one server.
    pub connections_per_server: u32,
    /// The most bytes of pages that puts may have on their way to one server; more are refused at once.
    pub store_backlog_bytes: u64,
    /// What `inspect` shows for this client.
    pub client_name: String,
}

impl Default for Config {
    /// The defaults of [`OPTIONS`]: no servers, no key.
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            discovery: None,
            member_grace: Duration::from_secs(10),
            member_ramp: Duration::from_secs(30),
            auth_key: None,
            tenant: None,
            transport: Transport::Auto,
            tls: TlsConfig::default(),
            rdma_devices: Vec::new(),
            rdma_gid_index: None,
            rdma_bounce_bytes: 64 << 20,
            connect_timeout: Duration::from_secs(3),
            op_timeout: Duration::from_secs(3),
            replicas: 1,
            hedge: Hedge::Auto,
            hot_copies: 3,
            move_grace: Some(Duration::from_secs(300)),
            connections_per_server: 8,
            store_backlog_bytes: 1 << 30,
            client_name: "memkv-client".to_owned(),
        }
    }
}

impl Config {
    /// Reads the YAML file that `MEMKV_CONFIG` names, then `MEMKV_*`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], naming source, option and what to write instead.
    pub fn load() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// Explicit values on top of what [`Config::load`] reads.
    #[must_use]
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder { overrides: Vec::new(), environment: true }
    }
}

/// Collects explicit values; see [`Config::builder`].
#[derive(Clone)]
pub struct ConfigBuilder {
    overrides: Vec<(String, String)>,
    environment: bool,
}

impl fmt::Debug for ConfigBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may hold the key.
        let names: Vec<&str> = self.overrides.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("ConfigBuilder")
            .field("overrides", &names)
            .field("environment", &self.environment)
            .finish()
    }
}

impl ConfigBuilder {
    /// Sets an option of [`OPTIONS`] by its name, as it would be written in the environment.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.overrides.push((name.into(), text.into()));
        self
    }

    /// The servers, separated by commas: `[id=]host:port[*weight]`.
    #[must_use]
    pub fn servers(self, list: impl Into<String>) -> Self {
        self.set("servers", list)
    }

    /// Where servers are found instead of in a list: `etcd://…`, `dns://…` or `srv://…`.
    #[must_use]
    pub fn discovery(self, location: impl Into<String>) -> Self {
        self.set("discovery", location)
    }

    /// The cluster's key, 64 hex digits.
    #[must_use]
    pub fn auth_key_hex(self, hex: impl Into<String>) -> Self {
        self.set("auth_key", hex)
    }

    /// The tenant whose key it is.
    #[must_use]
    pub fn tenant(self, name: impl Into<String>) -> Self {
        self.set("tenant", name)
    }

    /// How pages move.
    #[must_use]
    pub fn transport(self, transport: Transport) -> Self {
        self.set("transport", transport.to_string())
    }

    /// How long connect waits for first answers.
    #[must_use]
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        self.set("connect_timeout", format!("{}us", timeout.as_micros()))
    }

    /// Deadline of one call.
    #[must_use]
    pub fn op_timeout(self, timeout: Duration) -> Self {
        self.set("op_timeout", format!("{}us", timeout.as_micros()))
    }

    /// How many servers get each page, 1 to 8.
    #[must_use]
    pub fn replicas(self, count: usize) -> Self {
        self.set("replicas", count.to_string())
    }

    /// The most data connections kept to one server.
    #[must_use]
    pub fn connections_per_server(self, count: u32) -> Self {
        self.set("connections_per_server", count.to_string())
    }

    /// The most bytes of pages that puts may have on their way to one server, rounded up to whole KiB.
    #[must_use]
    pub fn store_backlog(self, bytes: u64) -> Self {
        self.set("store_backlog", format!("{}KiB", bytes.div_ceil(1024)))
    }

    /// What `inspect` shows for this client.
    #[must_use]
    pub fn client_name(self, name: impl Into<String>) -> Self {
        self.set("client_name", name)
    }

    /// Leaves out `MEMKV_CONFIG` and `MEMKV_*`: only explicit values and defaults count.
    #[must_use]
    pub fn without_environment(mut self) -> Self {
        self.environment = false;
        self
    }

    /// Reads all sources.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], naming source, option and what to write instead.
    pub fn build(self) -> Result<Config, Error> {
        let env = if self.environment { environment()? } else { BTreeMap::new() };
        resolve(&env, &self.overrides, &|path| std::fs::read_to_string(path))
    }
}

/// The variables that matter, from the process environment.
fn environment() -> Result<BTreeMap<String, String>, Error> {
    let mut env = BTreeMap::new();
    for name in OPTIONS.iter().map(|option| option.env).chain([CONFIG_ENV]) {
        match std::env::var(name) {
            Ok(value) => {
                env.insert(name.to_owned(), value);
            }
            Err(std::env::VarError::NotPresent) => {}
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("environment variable {name}: not valid UTF-8"),
                ));
            }
        }
    }
    Ok(env)
}

/// The configuration that follows from the sources. `read_file` reads the YAML file and the key file.
///
/// # Errors
///
/// [`ErrorKind::Config`], naming source, option and what to write instead.
pub fn resolve(
    env: &BTreeMap<String, String>,
    overrides: &[(String, String)],
    read_file: &dyn Fn(&Path) -> std::io::Result<String>,
) -> Result<Config, Error> {
    let mut chosen = parse::Chosen::default();
    if let Some(path) = env.get(CONFIG_ENV).filter(|path| !path.is_empty()) {
        let text = read_file(Path::new(path)).map_err(|error| {
            let text = format!(
                "{CONFIG_ENV}={path}: cannot read the file: {error}; name a YAML file or unset {CONFIG_ENV}"
            );
            Error::new(ErrorKind::Config, text)
        })?;
        chosen.add_yaml(path, &text)?;
    }
    for option in OPTIONS {
        // An empty variable is how a shell or a container file leaves a variable unset.
        if let Some(value) = env.get(option.env).filter(|value| !value.is_empty()) {
            chosen.add(option, value.clone(), parse::Source::Env(option.env));
        }
    }
    for (name, value) in overrides {
        let option = options::named(name).ok_or_else(|| {
            let text = format!("there is no option {name:?}; the options are: {}", options::names());
            Error::new(ErrorKind::Config, text)
        })?;
        chosen.add(option, value.clone(), parse::Source::Explicit(option.name));
    }
    chosen.into_config(read_file)
}

#[cfg(test)]
mod tests;
