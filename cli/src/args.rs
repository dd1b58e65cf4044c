//! The command line. Every subcommand has an example; `docs/cli.md` is made from these texts.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

const AFTER_HELP: &str = "\
A SPACE is a name (default, short for name=default), its fields (model=llama,tp_rank=0), its 32 hex digits, or a \
unique beginning of them (4 digits or more). When reading, fields may be a part of the description if only one space \
fits.

A KEY is text; write hex:00ff for other bytes.

Exit codes: 0 done · 1 no (not found, absent, refused by the store, or a check failed) · 2 usage · 3 a server \
cannot be reached or timed out · 4 authentication failed · 5 any other error.";

/// Inspects and operates a MemKV cluster.
#[derive(Debug, Parser)]
#[command(name = "memkv-cli", version, after_help = AFTER_HELP, max_term_width = 80, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command accepts.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Servers as `[id=]host:port[*weight]`, with commas between them; without it MEMKV_SERVERS counts
    #[arg(long, global = true, value_name = "LIST")]
    pub(crate) servers: Option<String>,
    /// Where the servers are found instead: etcd://HOST:PORT/PREFIX, dns://NAME:PORT or srv://NAME; without it
    /// MEMKV_DISCOVERY counts
    #[arg(long, global = true, value_name = "LOCATION", conflicts_with = "servers")]
    pub(crate) discovery: Option<String>,
    /// Client configuration file (YAML); without it MEMKV_CONFIG counts
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// File with the cluster's key, 64 hex digits; without it MEMKV_AUTH_KEY counts
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) auth_key_file: Option<PathBuf>,
    /// CA file (PEM) that servers' certificates must come from; turns TLS on. Without it MEMKV_TLS and MEMKV_TLS_CA count
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// This client's certificate (PEM); without it MEMKV_TLS_CERT counts
    #[arg(long, global = true, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key (PEM); without it MEMKV_TLS_KEY counts
    #[arg(long, global = true, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// How long to wait for the servers, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 3.0, value_parser = seconds)]
    pub(crate) timeout: f64,
    /// Print JSON on standard output; the shapes are in docs/cli.md
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what the cluster holds and how it fares
    ///
    /// Without a subject: every server's state, fill, hit ratio and sessions.
    #[command(after_help = "Example:\n  memkv-cli inspect\n  memkv-cli inspect space default")]
    Inspect {
        #[command(subcommand)]
        subject: Option<Subject>,
    },
    /// Read one page to standard output or a file
    ///
    /// The bytes are verified against their checksum. Exits with 1 if there is no such page.
    #[command(after_help = "Example:\n  memkv-cli get default greeting --output page.bin")]
    Get {
        /// The space
        space: String,
        /// The key
        key: String,
        /// Where to write the page; "-" is standard output
        #[arg(long, short, value_name = "FILE", default_value = "-")]
        output: PathBuf,
    },
    /// Store one page from standard input or a file
    ///
    /// A page never changes: storing under a key that is taken leaves the old page and says so.
    #[command(after_help = "Example:\n  echo hello | memkv-cli put default greeting")]
    Put {
        /// The space; fields describe it exactly and make it if it is new
        space: String,
        /// The key
        key: String,
        /// Where to read the page; "-" is standard input
        #[arg(default_value = "-")]
        input: PathBuf,
    },
    /// Say which keys are stored
    ///
    /// Exits with 1 if any of them is not.
    #[command(after_help = "Example:\n  memkv-cli exists default greeting farewell")]
    Exists {
        /// The space
        space: String,
        /// The keys
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// Remove pages by key
    ///
    /// Exits with 1 if any of them was not there.
    #[command(after_help = "Example:\n  memkv-cli rm default greeting")]
    Rm {
        /// The space
        space: String,
        /// The keys
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// List the keys of a space
    #[command(after_help = "Example:\n  memkv-cli ls default --prefix greet --limit 20")]
    Ls {
        /// The space
        space: String,
        /// Only keys that begin with this
        #[arg(long, value_name = "KEY")]
        prefix: Option<String>,
        /// At most this many keys of each server; 0 is all
        #[arg(long, value_name = "N", default_value_t = 1000)]
        limit: usize,
        /// Only the keys on this server
        #[arg(long, value_name = "ID")]
        server: Option<String>,
    },
    /// Remove all pages of exactly one space, on every server
    ///
    /// Asks first; in scripts say --yes. The pages of other spaces stay.
    #[command(after_help = "Example:\n  memkv-cli clear default --yes")]
    Clear {
        /// The space
        space: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Keep pages from eviction for a time
    ///
    /// For what must not go, such as a system prompt. Pinned pages may take a share of the memory, see
    /// eviction.pin_share of the server. Exits with 1 if any key is not pinned.
    #[command(after_help = "Example:\n  memkv-cli pin greeting --space default --ttl 2h")]
    Pin {
        /// The keys
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
        /// The space
        #[arg(long, value_name = "SPACE")]
        space: String,
        /// How long: a whole number and s, m, h or d
        #[arg(long, value_name = "TIME", value_parser = crate::units::parse_time)]
        ttl: Duration,
    },
    /// Let the policy decide again about pinned pages
    #[command(after_help = "Example:\n  memkv-cli unpin greeting --space default")]
    Unpin {
        /// The keys
        #[arg(required_unless_present = "all", value_name = "KEY")]
        keys: Vec<String>,
        /// All pinned pages of the space
        #[arg(long, conflicts_with = "keys")]
        all: bool,
        /// The space
        #[arg(long, value_name = "SPACE")]
        space: String,
    },
    /// List the pinned pages
    #[command(after_help = "Example:\n  memkv-cli pins")]
    Pins,
    /// Compare all stored pages with their checksums
    ///
    /// In memory and on drives. A page that does not match is quarantined: it is a miss from then on. Exits with 1 if
    /// there was one.
    #[command(after_help = "Example:\n  memkv-cli verify --space default --rate 200MiB")]
    Verify {
        /// Only this space
        #[arg(long, value_name = "SPACE")]
        space: Option<String>,
        /// At most this many bytes in a second on each server, as in 200MiB; without it, as fast as it goes
        #[arg(long, value_name = "SIZE", default_value = "0B", hide_default_value = true, value_parser = crate::units::parse_bytes)]
        rate: u64,
    },
    /// Empty a server into the others, so that it can be stopped
    ///
    /// From then on the server takes no new pages, and copies those it has to their next owners among the other
    /// servers; it answers reads all the while. The drain goes on if this command is ended; the same command shows it
    /// again. Exits with 0 when the server is drained, and with 1 if pages are left that no other server took.
    #[command(
        after_help = "Example:\n  memkv-cli drain kv-3 --rate 200MiB\n  memkv-cli drain kv-3 --status\n  memkv-cli drain kv-3 --cancel"
    )]
    Drain(Drain),
    /// Measure how fast each server answers
    ///
    /// Times a status call, which goes through authentication. Exits with 3 if a server does not answer.
    #[command(after_help = "Example:\n  memkv-cli ping --count 10")]
    Ping {
        /// Calls per server
        #[arg(long, short, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        count: u32,
    },
    /// Look for what is wrong, and say how to mend it
    ///
    /// Checks the configuration, certificates, whether every server answers, clocks, limits of this machine, and versions.
    /// Exits with 1 if anything must be mended.
    #[command(after_help = "Example:\n  memkv-cli doctor\n  memkv-cli doctor rdma")]
    Doctor {
        #[command(subcommand)]
        subject: Option<Patient>,
    },
    /// Say who may use the servers: tenants, their keys, rights and quotas
    ///
    /// add, rotate and rm change a credentials file (option credentials of the server) without asking any server; servers
    /// follow their file by themselves. list shows a file, or what the servers know and have counted.
    #[command(
        after_help = "Example:\n  memkv-cli tenant add search --file credentials.yaml --dram 4GiB\n  memkv-cli tenant rotate search --file credentials.yaml\n  memkv-cli tenant list"
    )]
    Tenant {
        #[command(subcommand)]
        action: TenantAction,
    },
    /// Print a generated document
    #[command(hide = true)]
    Reference {
        /// Which one
        document: Document,
    },
}

/// What to drain, and how.
#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// The server's id, or its host:port
    pub(crate) server: String,
    /// Send at most this many bytes in a second, as in 200MiB; without it, as fast as it goes
    #[arg(long, value_name = "SIZE", default_value = "0B", hide_default_value = true, value_parser = crate::units::parse_bytes)]
    pub(crate) rate: u64,
    /// Only show how far it is
    #[arg(long, conflicts_with_all = ["rate", "cancel"])]
    pub(crate) status: bool,
    /// End the drain: the server takes new pages again, and what was copied stays copied
    #[arg(long, conflicts_with = "rate")]
    pub(crate) cancel: bool,
}

/// What to do about tenants.
#[derive(Debug, Subcommand)]
pub(crate) enum TenantAction {
    /// Add a tenant, and print its key, which is shown nowhere else
    #[command(
        after_help = "Example:\n  memkv-cli tenant add search --file credentials.yaml --rights read,write --space 'llama-*'"
    )]
    Add(TenantAdd),
    /// Give a tenant another key, and print it
    ///
    /// The old key stays valid until `tenant rm NAME --key ID`.
    #[command(after_help = "Example:\n  memkv-cli tenant rotate search --file credentials.yaml")]
    Rotate {
        /// The tenant
        name: String,
        /// The credentials file
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Remove a tenant, or one of its keys
    ///
    /// Its sessions end when the servers have read the file. Its pages stay until they are evicted.
    #[command(
        after_help = "Example:\n  memkv-cli tenant rm search --key 4f1c2a9be0d35577 --file credentials.yaml"
    )]
    Rm {
        /// The tenant
        name: String,
        /// Only this key
        #[arg(long, value_name = "ID")]
        key: Option<String>,
        /// The credentials file
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// List tenants: of a file, or as every server counts them
    #[command(
        after_help = "Example:\n  memkv-cli tenant list\n  memkv-cli tenant list --file credentials.yaml"
    )]
    List {
        /// The credentials file; without it the servers are asked
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// A new tenant.
#[derive(Debug, Args)]
pub(crate) struct TenantAdd {
    /// Its name: 1 to 64 of a-z, 0-9, '_' and '-'
    pub(crate) name: String,
    /// The credentials file; made if there is none
    #[arg(long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// What it may do: read, write, admin, with commas between them
    #[arg(long, value_name = "LIST", default_value = "read,write", value_delimiter = ',')]
    pub(crate) rights: Vec<String>,
    /// Most bytes of pages in memory on each server, as in 4GiB
    #[arg(long, value_name = "SIZE", value_parser = crate::units::parse_bytes)]
    pub(crate) dram: Option<u64>,
    /// Most bytes of pages on the drives of each server
    #[arg(long, value_name = "SIZE", value_parser = crate::units::parse_bytes)]
    pub(crate) nvme: Option<u64>,
    /// Most requests in a second on each server
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) requests_per_second: Option<u64>,
    /// Most bytes of pages in a second on each server, both ways together
    #[arg(long, value_name = "SIZE", value_parser = crate::units::parse_bytes)]
    pub(crate) bytes_per_second: Option<u64>,
    /// Most connections to each server, of both planes; half of the server's places without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) connections: Option<u64>,
    /// A pattern of spaces that it may open, as in 'llama-*'; may be given again; all without it
    #[arg(long, value_name = "PATTERN")]
    pub(crate) space: Vec<String>,
    /// A name in client certificates that stands for it; may be given again
    #[arg(long, value_name = "NAME")]
    pub(crate) certificate: Vec<String>,
    /// It sees and may do everything, to everybody's spaces
    #[arg(long)]
    pub(crate) operator: bool,
}

/// What `doctor` looks at.
#[derive(Debug, Subcommand)]
pub(crate) enum Patient {
    /// Show and try the RDMA devices of this machine
    ///
    /// Lists devices, ports, GIDs, MTU, NUMA node and the limit on locked memory, says which ports would be used,
    /// and moves bytes through each of them and back. Needs no server. Exits with 1 if anything must be mended.
    #[command(
        after_help = "Example:\n  memkv-cli doctor rdma\n  MEMKV_RDMA_DEVICES=mlx5_1 memkv-cli doctor rdma"
    )]
    Rdma,
    /// Check certificates: this client's, and those that the servers show
    ///
    /// Does a handshake with each server as any client would, so chain, name and expiry are checked with MEMKV_TLS_CA and
    /// MEMKV_TLS_SERVER_NAME. Exits with 1 if anything must be mended.
    #[command(
        after_help = "Example:\n  memkv-cli doctor tls\n  memkv-cli doctor tls --cert /etc/memkv/server.pem"
    )]
    Tls {
        /// The file that the servers should be using: a server that shows another certificate has not read it
        #[arg(long, value_name = "FILE")]
        cert: Option<PathBuf>,
    },
    /// Check a credentials file, and whether the servers have read it
    ///
    /// Without configured servers only the file is looked at. Exits with 1 if anything must be mended.
    #[command(after_help = "Example:\n  memkv-cli doctor credentials --file credentials.yaml")]
    Credentials {
        /// The credentials file
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
}

/// A document that is made from code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Document {
    /// docs/cli.md
    Cli,
    /// docs/configuration-client.md
    ConfigurationClient,
}

/// What to inspect.
#[derive(Debug, Subcommand)]
pub(crate) enum Subject {
    /// One server: tiers, drives, size classes, counters, sessions
    #[command(after_help = "Example:\n  memkv-cli inspect server kv-1")]
    Server {
        /// The server's id, or its host:port
        id: String,
    },
    /// All spaces: model, rank, pool, pages, hit ratio
    #[command(after_help = "Example:\n  memkv-cli inspect spaces --json")]
    Spaces,
    /// One space: its description, and its pages on each server
    #[command(after_help = "Example:\n  memkv-cli inspect space 8dd34a66")]
    Space {
        /// The space
        space: String,
    },
    /// One key: where it is routed, and what is stored
    #[command(after_help = "Example:\n  memkv-cli inspect key default greeting --verify")]
    Key {
        /// The space
        space: String,
        /// The key
        key: String,
        /// Let the servers compute the checksum again over the stored bytes
        #[arg(long)]
        verify: bool,
    },
}

/// A time that is neither nothing nor for ever.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give a number of seconds from 0.01 to 3600".to_owned()),
    }
}
