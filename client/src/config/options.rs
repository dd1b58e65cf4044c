//! Every option of the client, in one table: for the parser, the documentation and the CLI.

/// One option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionInfo {
    /// The YAML key, and the name for [`crate::config::ConfigBuilder::set`].
    pub name: &'static str,
    /// The environment variable.
    pub env: &'static str,
    /// The default, as it would be written.
    pub default: &'static str,
    /// What it does, with its unit.
    pub doc: &'static str,
}

/// The environment variable that names the YAML file.
pub const CONFIG_ENV: &str = "MEMKV_CONFIG";

/// All options.
pub const OPTIONS: &[OptionInfo] = &[
    OptionInfo {
        name: "servers",
        env: "MEMKV_SERVERS",
        default: "",
        doc: "The servers, separated by commas (in YAML also a list): [id=]host:port[*weight]. All clients need the same ids and weights. The port defaults to 9900, the weight to 100.",
    },
    OptionInfo {
        name: "discovery",
        env: "MEMKV_DISCOVERY",
        default: "",
        doc: "Where the list of servers comes from, instead of servers: etcd://HOST:PORT[,HOST:PORT]/PREFIX (where servers with the same location register), etcds://HOST:PORT/PREFIX?ca=PATH (the same inside TLS; &cert=PATH&key=PATH is a certificate of our own), dns://NAME:PORT (A and AAAA records) or srv://_memkv._tcp.NAME (SRV records). ?user=NAME&password_file=PATH is a user of etcd; ?server=IP:PORT after a name asks that name server.",
    },
    OptionInfo {
        name: "member_grace",
        env: "MEMKV_MEMBER_GRACE",
        default: "10s",
        doc: "With discovery, how long a server that is not in the list any more keeps its keys, which are misses meanwhile, in case it comes back. off: not at all.",
    },
    OptionInfo {
        name: "member_ramp",
        env: "MEMKV_MEMBER_RAMP",
        default: "30s",
        doc: "With discovery, over which time a new server takes its weight, in ten steps. All clients should have the same. off: at once.",
    },
    OptionInfo {
        name: "auth_key",
        env: "MEMKV_AUTH_KEY",
        default: "",
        doc: "The cluster's key, 64 hex digits. Empty for servers without a key, which listen on loopback only.",
    },
    OptionInfo {
        name: "auth_key_file",
        env: "MEMKV_AUTH_KEY_FILE",
        default: "",
        doc: "A file that holds the key, instead of auth_key.",
    },
    OptionInfo {
        name: "tenant",
        env: "MEMKV_TENANT",
        default: "",
        doc: "The tenant whose key auth_key is: 1 to 64 of a-z, 0-9, '_', '-'. Its spaces are its own. Empty with the cluster's key.",
    },
    OptionInfo {
        name: "transport",
        env: "MEMKV_TRANSPORT",
        default: "auto",
        doc: "How pages move: auto (the best that works with each server: rdma, then shm, then tcp), rdma (an error without a device), shm (servers on this host only), tcp, or grpc.",
    },
    OptionInfo {
        name: "tls",
        env: "MEMKV_TLS",
        default: "off",
        doc: "Whether to speak TLS: off, on (pages may still move by RDMA, which does not encrypt) or payload (no RDMA). A handshake that fails is never repeated in plain text.",
    },
    OptionInfo {
        name: "tls_ca",
        env: "MEMKV_TLS_CA",
        default: "",
        doc: "PEM file with the CAs that servers' certificates must come from. Needed with tls. It is read again when it changes.",
    },
    OptionInfo {
        name: "tls_cert",
        env: "MEMKV_TLS_CERT",
        default: "",
        doc: "PEM file with this client's own certificate, for servers that ask for one.",
    },
    OptionInfo {
        name: "tls_key",
        env: "MEMKV_TLS_KEY",
        default: "",
        doc: "PEM file with the private key of tls_cert.",
    },
    OptionInfo {
        name: "tls_server_name",
        env: "MEMKV_TLS_SERVER_NAME",
        default: "",
        doc: "The name that servers' certificates must have. Empty: each server's host.",
    },
    OptionInfo {
        name: "rdma_devices",
        env: "MEMKV_RDMA_DEVICES",
        default: "",
        doc: "RDMA devices to use, in order of preference, separated by commas, each as mlx5_0 or, for one port of it, mlx5_0:2. Empty: all.",
    },
    OptionInfo {
        name: "rdma_gid_index",
        env: "MEMKV_RDMA_GID_INDEX",
        default: "",
        doc: "Entry of the RDMA devices' GID tables. Empty: the best one, RoCE v2 before others.",
    },
    OptionInfo {
        name: "rdma_bounce",
        env: "MEMKV_RDMA_BOUNCE",
        default: "64MiB",
        doc: "Memory for pages that move by RDMA and lie in no registered region: they are copied through it. Allocated only where there is a device.",
    },
    OptionInfo {
        name: "connect_timeout",
        env: "MEMKV_CONNECT_TIMEOUT",
        default: "3s",
        doc: "How long connect waits for the servers' first answers, and one attempt to connect may take.",
    },
    OptionInfo {
        name: "op_timeout",
        env: "MEMKV_OP_TIMEOUT",
        default: "3s",
        doc: "Deadline of one call, however many keys it has and servers it asks.",
    },
    OptionInfo {
        name: "replicas",
        env: "MEMKV_REPLICAS",
        default: "1",
        doc: "How many servers get each page, 1 to 8: the first ones of its order. Reads take the first that is healthy and has it. All clients should have the same number.",
    },
    OptionInfo {
        name: "hedge",
        env: "MEMKV_HEDGE",
        default: "auto",
        doc: "When a read stops waiting for a server and asks the next one that may have the page: auto (after the time that 99 of 100 reads of that size took lately), a duration, or off (when half of the time is gone). Matters only to pages with several places, and one read in ten at most changes early.",
    },
    OptionInfo {
        name: "hot_copies",
        env: "MEMKV_HOT_COPIES",
        default: "3",
        doc: "How many servers get a page that servers announce as hot, at most, 1 to 8. 1: announcements are not listened to.",
    },
    OptionInfo {
        name: "move_grace",
        env: "MEMKV_MOVE_GRACE",
        default: "5m",
        doc: "How long after a change of members a page that its new owner does not have is looked for at the old one, and moved. off: not at all.",
    },
    OptionInfo {
        name: "connections_per_server",
        env: "MEMKV_CONNECTIONS_PER_SERVER",
        default: "8",
        doc: "The most data connections kept to one server, 1 to 64. Two are opened at start, more when all are busy.",
    },
    OptionInfo {
        name: "store_backlog",
        env: "MEMKV_STORE_BACKLOG",
        default: "1GiB",
        doc: "The most bytes of pages that puts may have on their way to one server, or waiting for a connection to it. More are refused at once as busy and counted; gets never are. A put that is alone is always sent.",
    },
    OptionInfo {
        name: "client_name",
        env: "MEMKV_CLIENT_NAME",
        default: "memkv-client",
        doc: "What `inspect` shows for this client; the process id is added.",
    },
];

/// The option of that name, with '-' taken for '_'.
pub(crate) fn named(name: &str) -> Option<&'static OptionInfo> {
    let name = name.replace('-', "_");
    OPTIONS.iter().find(|option| option.name == name)
}

/// All names, for error texts.
pub(crate) fn names() -> String {
    OPTIONS.iter().map(|option| option.name).collect::<Vec<_>>().join(", ")
}
