//! Configuration: whatever a file says, it is understood or refused with a text.

use crate::bytes::Bytes;
use memkv_client::config::resolve;
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};

pub(super) fn server(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let _usable = memkv_server::fuzzing::read_config(text);
}

pub(super) fn server_seeds() -> Vec<Vec<u8>> {
    let small = "listen: 127.0.0.1:0\ndram: 64MiB\nlimits:\n  sessions_max: 4\n  stall_time_max: 2s\n";
    let odd = "? a\n: b\nlimits: {sessions_max: 1, none: ~}\nnvme:\n  paths: [/a=1GiB, /b]\n";
    let wrong = "dram: -1\nlimits: 7\nlisten: nowhere\nauth_key: \"00\"\n";
    let default = memkv_server::Config::default().to_yaml();
    vec![small.into(), odd.into(), wrong.into(), default.into_bytes()]
}

/// The first byte chooses between the file, the list of servers, and one option.
pub(super) fn client(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let which = bytes.byte();
    let Ok(text) = std::str::from_utf8(bytes.rest()) else { return };
    let nothing = |_: &std::path::Path| Err(Error::from(ErrorKind::NotFound));
    let outcome = match which % 3 {
        0 => {
            let env = BTreeMap::from([("MEMKV_CONFIG".to_owned(), "fuzz".to_owned())]);
            resolve(&env, &[], &|_| Ok(text.to_owned()))
        }
        1 => resolve(&BTreeMap::new(), &[("servers".to_owned(), text.to_owned())], &nothing),
        _ => {
            let options = memkv_client::config::OPTIONS;
            let name = options[usize::from(which) / 3 % options.len()].name;
            resolve(&BTreeMap::new(), &[(name.to_owned(), text.to_owned())], &nothing)
        }
    };
    match outcome {
        Ok(config) => config.servers.iter().for_each(|server| {
            assert!(!server.host_port().is_empty(), "a server has an address");
        }),
        Err(error) => assert!(!error.to_string().is_empty(), "a refusal has a text"),
    }
}

pub(super) fn client_seeds() -> Vec<Vec<u8>> {
    let with = |which: u8, text: &str| [&[which], text.as_bytes()].concat();
    vec![
        with(0, "servers: [a:1, \"b=[::1]:2*3\"]\nop_timeout: 250ms\ntransport: tcp\n"),
        with(0, "# nothing\n"),
        with(1, "one=10.0.0.1:9900*2,two=host:1,[::1]:3"),
        with(2, "a:1"),
        with(11, "64MiB"),
        with(14, "3s"),
    ]
}
