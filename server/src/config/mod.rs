//! Configuration: defaults, then the YAML file, then `MEMKV_SERVER_*`, then flags.
//!
//! Everything is a text until it reaches the one table of [`options`]; there it becomes a checked value. An
//! unknown key is a warning at start, so that an older release still boots with a newer file, and an error of
//! `--check-config`.

mod discovery;
mod file;
pub mod options;
pub mod rdma;
pub mod shm;
pub mod storage;
mod table;
pub mod tls;
pub(crate) mod units;
mod values;

use clap::{Arg, ArgAction, ArgMatches, Command};
pub use discovery::DiscoveryConfig;
use file::FileValues;
use memkv_core::Limits;
use memkv_credentials::Credentials;
use memkv_transport::auth::AuthKey;
use options::{OPTIONS, nearest};
use rdma::RdmaConfig;
use shm::ShmSocket;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use storage::StorageConfig;
use tls::TlsConfig;

/// The clients' variable; a server on the same machine takes its key from it if it has no other.
const CLIENT_KEY_ENV: &str = "MEMKV_AUTH_KEY";
/// Where the clients find servers; a server registers there if it is told nothing else.
const CLIENT_DISCOVERY_ENV: &str = "MEMKV_DISCOVERY";
/// Whose certificates clients believe, and the name that these must have; so does a drain, if it is told nothing else.
const CLIENT_CA_ENV: &str = "MEMKV_TLS_CA";
const CLIENT_SERVER_NAME_ENV: &str = "MEMKV_TLS_SERVER_NAME";
/// The largest page that any configuration allows, bytes.
const PAGE_BYTES_MAX: u32 = 64 << 20;
/// The most keys per request that any configuration allows.
const BATCH_KEYS_MAX: u32 = 65_536;

/// Everything the daemon needs to know before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address of gRPC and data connections.
    pub listen: SocketAddr,
    /// Address of the admin HTTP server; see [`Config::admin_address`].
    pub admin_listen: Option<SocketAddr>,
    /// Stable identity; the address of `listen` if absent.
    pub node_id: Option<String>,
    /// Where the server registers, and what.
    pub discovery: DiscoveryConfig,
    /// The cluster's key.
    pub auth_key: Option<AuthKey>,
    /// Where the key was read from.
    pub auth_key_file: Option<PathBuf>,
    /// File with tenants, their keys, rights and quotas; followed while the server runs.
    pub credentials: Option<PathBuf>,
    /// Whether the process may be dumped.
    pub core_dumps: CoreDumps,
    /// Memory for pages, bytes.
    pub dram_bytes: u64,
    /// Bounds that clients are told.
    pub limits: Limits,
    /// How much requests that are at work may hold.
    pub request_bytes: RequestBytes,
    /// Most bytes in send buffers of clients that do not read; `None`: a share of what the kernel allows.
    pub unread_bytes: Option<u64>,
    /// Whether to touch the memory for pages at start.
    pub prefault: bool,
    /// Whether to look for huge pages.
    pub huge_pages: HugePages,
    /// Fill at which eviction begins.
    pub high_watermark: f64,
    /// Fill at which eviction ends.
    pub low_watermark: f64,
    /// Threads of the data plane; 0 for one per core.
    pub data_threads: usize,
    /// How long a graceful stop may take.
    pub shutdown_timeout: Duration,
    /// How long a peer may make no progress inside a request.
    pub stall_timeout: Duration,
    /// How long a new connection may take to identify itself.
    pub handshake_timeout: Duration,
    /// How often clients ping.
    pub ping_interval: Duration,
    /// Reads in a second that make a page hot; 0 for never.
    pub hot_reads: u32,
    /// Where pages rest and which of them go first.
    pub storage: StorageConfig,
    /// Pages by RDMA.
    pub rdma: RdmaConfig,
    /// Where clients on the same host connect.
    pub shm_socket: ShmSocket,
    /// TLS on the main port and the admin port.
    pub tls: TlsConfig,
    /// Form of log lines.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_filter: String,
}

/// Bytes of keys, messages and answers that requests which are at work may hold; pages have slots instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestBytes {
    /// Those of one session, or of one gRPC connection.
    pub session: u64,
    /// Those of one tenant.
    pub tenant: u64,
    /// All of them.
    pub server: u64,
}

/// The least that clients which do not read may leave in send buffers: those of a few connections.
const UNREAD_BYTES_LEAST: u64 = 1 << 20;

impl RequestBytes {
    /// The least for one session: two of the largest messages.
    const LEAST: u64 = 32 << 20;

    fn check(self) -> Result<(), ConfigError> {
        let Self { session, tenant, server } = self;
        if session < Self::LEAST || tenant < session || server < tenant {
            return Err(ConfigError::Invalid(format!(
                "limits.session_request_bytes_max is {}, limits.tenant_request_bytes_max {} and limits.request_bytes_max {}; the first must be at least {}, and none smaller than the one before",
                units::show_size(session),
                units::show_size(tenant),
                units::show_size(server),
                units::show_size(Self::LEAST),
            )));
        }
        Ok(())
    }
}

impl Default for RequestBytes {
    fn default() -> Self {
        Self { session: 128 << 20, tenant: 384 << 20, server: 1 << 30 }
    }
}

/// Whether to look for huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Take them where there are any.
    Auto,
    /// Never.
    Off,
}

/// Whether the process may be dumped; keys and pages would be in the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreDumps {
    /// As the system is set up.
    On,
    /// No core files are written. A handler that collects crashes still gets them.
    Off,
    /// Nothing is handed to anybody, and nobody but root can trace the process.
    Never,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9900),
            admin_listen: None,
            node_id: None,
            discovery: DiscoveryConfig::default(),
            auth_key: None,
            auth_key_file: None,
            credentials: None,
            core_dumps: CoreDumps::Off,
            dram_bytes: 256 << 20,
            limits: Limits::default(),
            request_bytes: RequestBytes::default(),
            unread_bytes: None,
            prefault: false,
            huge_pages: HugePages::Auto,
            high_watermark: 0.997,
            low_watermark: 0.993,
            data_threads: 0,
            shutdown_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(5),
            hot_reads: 500,
            storage: StorageConfig::default(),
            rdma: RdmaConfig::default(),
            shm_socket: ShmSocket::default(),
            tls: TlsConfig::default(),
            log_format: LogFormat::Text,
            log_filter: "info".to_owned(),
        }
    }
}

/// Why there is no configuration; the text says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// The file is not YAML, or a section is not a mapping.
    #[error("{path} is not a valid configuration: {text}")]
    Yaml {
        /// The file.
        path: String,
        /// Where and why.
        text: String,
    },
    /// A value cannot be understood.
    #[error("{origin}: {text}")]
    Value {
        /// File and key, variable or flag.
        origin: String,
        /// What is wrong and what a value looks like.
        text: String,
    },
    /// Values that do not fit together.
    #[error("{0}")]
    Invalid(String),
}

/// A configuration and what to tell about its sources.
#[derive(Debug)]
pub struct Loaded {
    /// The checked configuration.
    pub config: Config,
    /// Unknown keys and variables.
    pub warnings: Vec<String>,
}

/// The command line: `--config`, `--check-config`, `--print-config` and one flag per option.
#[must_use]
pub fn command() -> Command {
    let mut command = Command::new("memkv-server")
        .version(env!("CARGO_PKG_VERSION"))
        .args_override_self(true)
        .about("Stores LLM prefix KV-cache pages for a cluster of engines")
        .after_help("Every option can also be set in the file or by its MEMKV_SERVER_* variable.")
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("PATH")
                .env("MEMKV_SERVER_CONFIG")
                .help("YAML file with options"),
        )
        .arg(
            Arg::new("check-config")
                .long("check-config")
                .action(ArgAction::SetTrue)
                .help("Check the configuration and exit; unknown keys are errors"),
        )
        .arg(
            Arg::new("print-config")
                .long("print-config")
                .action(ArgAction::SetTrue)
                .help("Print the effective configuration, without secrets, and exit"),
        );
    for option in OPTIONS {
        let Some(flag) = option.flag else { continue };
        let mut arg = Arg::new(option.key).long(flag).value_name(option.value).help(option.help);
        if option.value == "BOOL" {
            arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
        }
        command = command.arg(arg);
    }
    command
}

impl Config {
    /// Merges all sources and checks the result.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the source of the first value that is not acceptable.
    pub fn load(
        args: &ArgMatches,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let mut config = Self::default();
        let mut warnings = Vec::new();
        if let Some(path) = args.get_one::<String>("config").filter(|path| !path.is_empty()) {
            config.merge_file(path, &mut warnings)?;
        }
        let client_key = config.merge_env(env, &mut warnings)?;
        for option in OPTIONS.iter().filter(|option| option.flag.is_some()) {
            if let Some(text) = args.get_one::<String>(option.key) {
                let origin = || format!("--{}", option.flag.unwrap_or_default());
                (option.set)(&mut config, text)
                    .map_err(|text| ConfigError::Value { origin: origin(), text })?;
            }
        }
        config.resolve_key(client_key)?;
        if let Some(path) = &config.credentials {
            Credentials::load(path)
                .map_err(|error| ConfigError::Invalid(format!("{}: {error}", path.display())))?;
        }
        config.check()?;
        Ok(Loaded { config, warnings })
    }

    fn merge_file(&mut self, path: &str, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
        self.merge_text(path, &read(path)?, warnings)
    }

    /// Merges what the file at `path` says.
    pub(crate) fn merge_text(
        &mut self,
        path: &str,
        text: &str,
        warnings: &mut Vec<String>,
    ) -> Result<(), ConfigError> {
        let read = FileValues::parse(text)
            .map_err(|error| ConfigError::Yaml { path: path.to_owned(), text: error.to_string() })?;
        for (key, text) in read.values {
            for option in OPTIONS.iter().filter(|option| option.key == key) {
                (option.set)(self, &text)
                    .map_err(|text| ConfigError::Value { origin: format!("{key} in {path}"), text })?;
            }
        }
        warnings.extend(read.unknown.into_iter().map(|text| format!("{path}: {text}")));
        Ok(())
    }

    /// Returns the clients' key, if there is one. Empty variables count as absent.
    fn merge_env(
        &mut self,
        env: impl IntoIterator<Item = (String, String)>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<String>, ConfigError> {
        let (mut client_key, mut client_discovery) = (None, None);
        let (mut client_ca, mut server_name) = (None, None);
        for (name, text) in env.into_iter().filter(|(_, text)| !text.is_empty()) {
            if let Some(option) = OPTIONS.iter().find(|option| option.env == name) {
                (option.set)(self, &text).map_err(|text| ConfigError::Value { origin: name, text })?;
            } else if name == CLIENT_KEY_ENV {
                client_key = Some(text);
            } else if name == CLIENT_DISCOVERY_ENV {
                client_discovery = discovery::of_clients(&text);
            } else if name == CLIENT_CA_ENV {
                client_ca = Some(text);
            } else if name == CLIENT_SERVER_NAME_ENV {
                server_name = Some(text);
            } else if let Some(rest) = name.strip_prefix("MEMKV_SERVER_") {
                // A Kubernetes service called memkv-server puts its address into these.
                let foreign = rest == "CONFIG" || rest.starts_with("PORT") || rest.starts_with("SERVICE_");
                if !foreign {
                    let near = nearest(&name, OPTIONS.iter().map(|option| option.env));
                    warnings.push(format!("the variable {name} is not an option; did you mean {near}?"));
                }
            }
        }
        if self.discovery.location.is_none() {
            self.discovery.location = client_discovery;
        }
        self.tls.believe_as_clients(client_ca, server_name);
        Ok(client_key)
    }

    fn resolve_key(&mut self, client_key: Option<String>) -> Result<(), ConfigError> {
        let (text, origin) = match (&self.auth_key, &self.auth_key_file, client_key) {
            (Some(_), Some(_), _) => {
                return Err(ConfigError::Invalid(
                    "both auth_key and auth_key_file are set; keep one of them".to_owned(),
                ));
            }
            (Some(_), None, _) | (None, None, None) => return Ok(()),
            (None, Some(path), _) => {
                let path = path.display().to_string();
                (read(&path)?, format!("auth_key_file {path}"))
            }
            (None, None, Some(text)) => (text, CLIENT_KEY_ENV.to_owned()),
        };
        let key = AuthKey::from_hex(&text)
            .map_err(|error| ConfigError::Value { origin, text: error.to_string() })?;
        self.auth_key = Some(key);
        Ok(())
    }

    /// Whether the values fit together.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        if self.auth_key.is_none() && self.credentials.is_none() && !self.listen.ip().is_loopback() {
            return invalid(format!(
                "listen is {}, which other machines may reach, but there is no key; set auth_key, auth_key_file or MEMKV_SERVER_AUTH_KEY (make a key with: openssl rand -hex 32), or listen on 127.0.0.1",
                self.listen
            ));
        }
        let counts = [
            ("limits.sessions_max", self.limits.sessions_max, 1 << 20),
            ("limits.connections_max", self.limits.connections_max, 1 << 20),
            ("limits.session_connections_max", self.limits.session_connections_max, 1 << 16),
            ("limits.spaces_max", self.limits.spaces_max, 1 << 20),
            ("limits.batch_keys_max", self.limits.batch_keys_max, BATCH_KEYS_MAX),
            ("limits.request_time_max in ms", self.limits.request_ms_max, 3_600_000),
            ("page_max", self.limits.page_bytes_max, PAGE_BYTES_MAX),
        ];
        for (key, value, most) in counts {
            if value == 0 || value > most {
                return invalid(format!("{key} is {value}; it must be 1 to {most}"));
            }
        }
        self.request_bytes.check()?;
        if let Some(bytes) = self.unread_bytes.filter(|&bytes| bytes < UNREAD_BYTES_LEAST) {
            let (bytes, least) = (units::show_size(bytes), units::show_size(UNREAD_BYTES_LEAST));
            return invalid(format!(
                "limits.unread_bytes_max is {bytes}; it must be at least {least}, or empty"
            ));
        }
        let ordered = 0.0 < self.low_watermark
            && self.low_watermark <= self.high_watermark
            && self.high_watermark <= 1.0;
        if !ordered {
            return invalid(format!(
                "low_watermark ({}) and high_watermark ({}) must rise between 0 and 1",
                self.low_watermark, self.high_watermark
            ));
        }
        for (key, duration) in [
            ("limits.stall_time_max", self.stall_timeout),
            ("limits.handshake_time_max", self.handshake_timeout),
            ("limits.ping_interval", self.ping_interval),
        ] {
            if duration.is_zero() || duration > Duration::from_secs(3600) {
                return invalid(format!("{key} must be between 1ms and 1h"));
            }
        }
        if self.data_threads > 1024 {
            return invalid(format!("data_threads is {}; it must be 0 to 1024", self.data_threads));
        }
        self.discovery.check(self.listen, self.node_id.as_deref())?;
        if self.credentials.is_some() && self.storage.share == storage::Share::On {
            return invalid(
                "storage.share is on, but whoever maps the memory reads the pages of all tenants; set it to auto or off, or unset credentials"
                    .to_owned(),
            );
        }
        self.rdma.check()?;
        self.tls.check(self.rdma.mode == rdma::RdmaMode::Require)?;
        self.storage.check()
    }

    /// Where the admin HTTP server listens once the main port is `main`.
    #[must_use]
    pub fn admin_address(&self, main: SocketAddr) -> SocketAddr {
        self.admin_listen.unwrap_or_else(|| {
            // With port 0 the system chose the main port, and the next one may be anybody's.
            let port = if self.listen.port() == 0 { 0 } else { main.port().checked_add(1).unwrap_or(0) };
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
        })
    }

    /// The effective configuration on one line. Secrets are not shown.
    #[must_use]
    pub fn to_line(&self) -> String {
        let options = OPTIONS.iter().map(|option| format!("{}={}", option.key, (option.show)(self)));
        options.collect::<Vec<_>>().join(" ")
    }

    /// The effective configuration as YAML. Secrets are not shown.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut text = String::new();
        let mut open = "";
        for option in OPTIONS {
            let (section, name) = option.key.split_once('.').unwrap_or(("", option.key));
            if section != open {
                text.push_str(&format!("{section}:\n"));
                open = section;
            }
            let indent = if section.is_empty() { "" } else { "  " };
            text.push_str(&format!("{indent}{name}: {}\n", (option.show)(self)));
        }
        text
    }
}

#[cfg(test)]
mod tests;

fn read(path: &str) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })
}
