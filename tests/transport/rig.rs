//! What each test gets: its transport, daemons and clients for it, and how large and how patient to be.
//!
//! All sizes, counts and times that depend on the machine are here.

use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, ConfigBuilder, ErrorKind, ServerState, SpaceDescription, Transport};
use memkv_tests::certs::{Authority, Folder};
use memkv_tests::daemon::{Daemon, KEY, Setup};
use memkv_tests::{is_small, wait_for};
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

/// A test's name, and the test.
pub(crate) type Test = (&'static str, fn(&Rig));

/// The tests of a module, each with its name.
macro_rules! tests {
    ($($test:ident),+ $(,)?) => {
        pub(crate) const TESTS: &[crate::rig::Test] = &[$((stringify!($test), $test)),+];
    };
}
pub(crate) use tests;

/// What a busy machine may add to a deadline before a test calls it broken.
const SLACK: Duration = Duration::from_secs(3);

/// One test's means.
pub(crate) struct Rig {
    pub(crate) transport: Transport,
    /// The certificates of the rig's daemons, if its clients speak TLS.
    tls: Option<Folder>,
    small: bool,
}

/// Why a transport cannot be tested here; `None` if it can.
pub(crate) fn lack(transport: Transport) -> Option<String> {
    let devices = || fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some());
    if transport == Transport::Rdma && !devices() {
        return Some("this machine has no RDMA device".to_owned());
    }
    // Nobody listens there: the transport itself is all that can be refused.
    let config = Config::builder().without_environment().servers("127.0.0.1:1").transport(transport);
    let client = config.connect_timeout(Duration::from_millis(10)).build().and_then(Client::connect);
    client.err().filter(|error| error.kind() == ErrorKind::NotSupported).map(|error| error.to_string())
}

impl Rig {
    pub(crate) fn new(transport: Transport) -> Self {
        Self { transport, tls: None, small: is_small() }
    }

    /// TCP inside TLS.
    pub(crate) fn secure() -> Self {
        let (authority, folder) = (Authority::new("the suite").unwrap(), Folder::new().unwrap());
        folder.write("ca.pem", &authority.pem()).unwrap();
        folder.write_pair("server", &authority.sign(&["127.0.0.1"]).unwrap()).unwrap();
        Self { tls: Some(folder), ..Self::new(Transport::Tcp) }
    }

    /// Whether its clients speak TLS.
    pub(crate) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Flags that every daemon of this rig has.
    pub(crate) fn flags(&self) -> Vec<String> {
        let Some(tls) = &self.tls else { return Vec::new() };
        let files = [("--tls-cert", "server.pem"), ("--tls-key", "server.key")];
        files.iter().flat_map(|(flag, file)| [(*flag).to_owned(), tls.text(file)]).collect()
    }

    /// One of two values: for an ordinary machine, and for a slow one.
    pub(crate) fn pick<T>(&self, usual: T, small: T) -> T {
        if self.small { small } else { usual }
    }

    /// The largest page of a daemon started by [`Rig::daemon`], bytes.
    pub(crate) fn page_bytes_max(&self) -> usize {
        self.pick(8 << 20, (4 << 20) + 4096)
    }

    /// Deadline of calls that shall succeed.
    pub(crate) fn op_timeout(&self) -> Duration {
        self.pick(Duration::from_secs(10), Duration::from_secs(60))
    }

    /// Deadline of calls in tests that wait for it to pass.
    pub(crate) fn short_timeout(&self) -> Duration {
        self.pick(Duration::from_secs(2), Duration::from_secs(10))
    }

    /// The most that a call of [`Rig::short_timeout`] may take on a busy machine.
    pub(crate) fn short_bound(&self) -> Duration {
        self.short_timeout() + self.pick(SLACK, 4 * SLACK)
    }

    /// Something to start that holds all pages of most tests.
    pub(crate) fn setup(&self) -> Setup {
        let page_max = self.page_bytes_max().to_string() + "B";
        Setup {
            dram: self.pick("256MiB", "160MiB").into(),
            args: [self.flags(), vec!["--page-max".into(), page_max]].concat(),
            ..Setup::default()
        }
    }

    pub(crate) fn daemon(&self) -> Daemon {
        Daemon::start_with(self.setup()).unwrap()
    }

    /// A daemon with these flags besides.
    pub(crate) fn daemon_with(&self, dram: &str, flags: &[&str]) -> Daemon {
        let mut setup = Setup { dram: dram.into(), ..self.setup() };
        setup.args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        Daemon::start_with(setup).unwrap()
    }

    /// Configuration of a client of these addresses.
    pub(crate) fn config(&self, addrs: &[SocketAddr]) -> ConfigBuilder {
        let servers: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
        let config = Config::builder().without_environment();
        let config = match &self.tls {
            Some(tls) => config.set("tls", "on").set("tls_ca", tls.text("ca.pem")),
            None => config,
        };
        config
            .servers(servers.join(","))
            .auth_key_hex(KEY)
            .transport(self.transport)
            .op_timeout(self.op_timeout())
            .connect_timeout(self.pick(Duration::from_secs(5), Duration::from_secs(60)))
    }

    /// A client of these daemons, whose pages really take the way that is tested.
    pub(crate) fn client(&self, daemons: &[&Daemon]) -> Client {
        self.client_with(daemons, |config| config)
    }

    /// A client whose calls have [`Rig::short_timeout`].
    pub(crate) fn hasty_client(&self, daemons: &[&Daemon]) -> Client {
        self.client_with(daemons, |config| config.op_timeout(self.short_timeout()))
    }

    fn client_with(&self, daemons: &[&Daemon], change: impl Fn(ConfigBuilder) -> ConfigBuilder) -> Client {
        let addrs: Vec<_> = daemons.iter().map(|daemon| daemon.addr()).collect();
        let client = Client::connect(change(self.config(&addrs)).build().unwrap()).unwrap();
        let ready = wait_for("all servers are ready", crate::ops::PATIENCE, || {
            client.servers().iter().all(|server| server.state == ServerState::Ready).then_some(())
        });
        assert!(ready.is_ok(), "{:?}", client.servers());
        // With auto, the test says what it waits for.
        for server in client.servers().iter().filter(|_| self.transport != Transport::Auto) {
            assert_eq!(server.transport, self.transport, "{server:?}");
        }
        client
    }

    /// A client of these daemons and its space `name`.
    pub(crate) fn space(&self, daemons: &[&Daemon], name: &str) -> (Client, Space) {
        let client = self.client(daemons);
        let space = open(&client, name);
        (client, space)
    }
}

/// The client's space `name`.
pub(crate) fn open(client: &Client, name: &str) -> Space {
    client.space(SpaceDescription::named(name).unwrap()).unwrap()
}
