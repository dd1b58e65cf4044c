//! What several modules need: clients of daemons, and ops with fewer arguments.

#[path = "../ops.rs"]
mod ops;

use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, Error, SpaceDescription, Transport};
use memkv_tests::daemon::{Daemon, KEY};
pub(crate) use ops::{PATIENCE, assert_all, assert_hits, exists, get, put, wait_until_empty};
use std::net::SocketAddr;
use std::time::Duration;

/// The deadline of every client op in these tests.
pub(crate) const OP_TIMEOUT: Duration = Duration::from_secs(2);
/// What a busy machine may add to a deadline before a test calls it broken.
pub(crate) const SLACK: Duration = Duration::from_secs(2);

/// A client of these addresses.
pub(crate) fn client_of(addrs: &[SocketAddr], transport: Transport) -> Client {
    Client::connect(config_of(addrs, transport).unwrap()).unwrap()
}

/// The configuration of [`client_of`].
pub(crate) fn config_of(addrs: &[SocketAddr], transport: Transport) -> Result<Config, Error> {
    let servers: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
    Config::builder()
        .without_environment()
        .servers(servers.join(","))
        .auth_key_hex(KEY)
        .transport(transport)
        .op_timeout(OP_TIMEOUT)
        .build()
}

/// A TCP client of these daemons and its space `name`.
pub(crate) fn tcp_space(daemons: &[&Daemon], name: &str) -> (Client, Space) {
    let addrs: Vec<_> = daemons.iter().map(|daemon| daemon.addr()).collect();
    let client = client_of(&addrs, Transport::Tcp);
    let space = client.space(SpaceDescription::named(name).unwrap()).unwrap();
    (client, space)
}
