//! What several modules need: clients of daemons that have names, and the command line.

#[path = "../ops.rs"]
mod ops;

use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, SpaceDescription, Transport};
pub(crate) use memkv_tests::StopAtEnd;
use memkv_tests::daemon::{Daemon, KEY, clean_command};
use memkv_tests::program;
pub(crate) use ops::{PATIENCE, assert_all, assert_hits, exists, get, put};
use std::process::Command;
use std::time::Duration;

/// The daemons as a client's list: `kv-0`, `kv-1` and so on, without those at `except`.
pub(crate) fn named_servers(daemons: &[Daemon], except: &[usize]) -> String {
    let named = daemons.iter().enumerate().filter(|(at, _)| !except.contains(at));
    let named: Vec<_> = named.map(|(at, daemon)| format!("kv-{at}={}", daemon.addr())).collect();
    named.join(",")
}

/// A client of these servers.
pub(crate) fn client_of(servers: &str) -> Client {
    client_with(&[("servers", servers)])
}

/// A client with these options.
pub(crate) fn client_with(options: &[(&str, &str)]) -> Client {
    let mut config = Config::builder()
        .without_environment()
        .auth_key_hex(KEY)
        .transport(Transport::Tcp)
        .op_timeout(Duration::from_secs(5));
    for (name, value) in options {
        config = config.set(*name, *value);
    }
    Client::connect(config.build().unwrap()).unwrap()
}

/// The client's space with this name.
pub(crate) fn space_of(client: &Client, name: &str) -> Space {
    client.space(SpaceDescription::named(name).unwrap()).unwrap()
}

/// `memkv-cli` for these servers.
pub(crate) fn cli(servers: &str) -> Command {
    let mut command = clean_command(&program::cli().unwrap());
    command.env("MEMKV_SERVERS", servers).env("MEMKV_AUTH_KEY", KEY);
    command
}
