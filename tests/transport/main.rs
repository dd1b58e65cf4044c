//! The transport suite: whichever way pages take, get, put and exists mean the same, also when something fails.
//!
//! Every test runs once for each transport and is named after it, for example `tcp::round_trips::the_first_put_wins`.
//!
//! - `MEMKV_TEST_TRANSPORT`: the transports to test, separated by commas; one that does not work here fails. Without
//!   it all are tested, and one that this build or this machine does not have is ignored with its reason.
//! - `MEMKV_TEST_PORTS=1`: only the tests that take the ports of RDMA devices down, which nothing else may use meanwhile;
//! - `MEMKV_TEST_SMALL=1`: fewer and smaller pages and longer deadlines, for slow machines such as an emulated one.
//!
//! Deliberately absent: how bytes look on the way. That is different for each transport, and tested beside each.

#![deny(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is reported")]

mod bounds;
mod calls;
mod crowds;
mod damage;
mod deaths;
mod given_up;
#[path = "../ops.rs"]
mod ops;
mod outages;
#[allow(unsafe_code, reason = "memory known by address can only be handed over by unsafe calls")]
mod pieces;
mod ports;
mod presence;
mod rig;
mod round_trips;
mod servers;
mod ways;

use libtest_mimic::{Arguments, Completion, Trial};
use memkv_client::Transport;
use rig::{Rig, Test};
use std::process::ExitCode;

const MODULES: [(&str, &[Test]); 12] = [
    ("bounds", bounds::TESTS),
    ("calls", calls::TESTS),
    ("crowds", crowds::TESTS),
    ("damage", damage::TESTS),
    ("deaths", deaths::TESTS),
    ("given_up", given_up::TESTS),
    ("outages", outages::TESTS),
    ("pieces", pieces::TESTS),
    ("presence", presence::TESTS),
    ("round_trips", round_trips::TESTS),
    ("servers", servers::TESTS),
    ("ways", ways::TESTS),
];

/// What the suite runs over.
#[derive(Clone, Copy)]
enum Over {
    Plain(Transport),
    /// TCP, inside TLS.
    Tls,
}

const ALL: [Over; 5] = [
    Over::Plain(Transport::Tcp),
    Over::Tls,
    Over::Plain(Transport::Shm),
    Over::Plain(Transport::Rdma),
    Over::Plain(Transport::Grpc),
];

impl Over {
    fn name(self) -> String {
        match self {
            Self::Plain(transport) => transport.to_string(),
            Self::Tls => "tls".to_owned(),
        }
    }

    fn rig(self) -> Rig {
        match self {
            Self::Plain(transport) => Rig::new(transport),
            Self::Tls => Rig::secure(),
        }
    }

    fn lack(self) -> Option<String> {
        match self {
            Self::Plain(transport) => rig::lack(transport),
            Self::Tls => None,
        }
    }
}

/// The transports that `MEMKV_TEST_TRANSPORT` names.
fn named(list: &str) -> Result<Vec<Over>, String> {
    let names = list.split(',').map(str::trim);
    let known = |name: &str| ALL.into_iter().find(|over| over.name() == name);
    names
        .map(|name| known(name).ok_or_else(|| format!("MEMKV_TEST_TRANSPORT: no transport {name:?}")))
        .collect()
}

fn trials() -> Result<Vec<Trial>, String> {
    let list = std::env::var("MEMKV_TEST_TRANSPORT").unwrap_or_default();
    let mut trials = Vec::new();
    if std::env::var_os(ports::VARIABLE).is_some() {
        return Ok(trials_in(Over::Plain(Transport::Auto), &[("ports", ports::TESTS)]).collect());
    }
    if !list.is_empty() {
        named(&list)?.into_iter().for_each(|over| trials.extend(trials_of(over)));
        return Ok(trials);
    }
    for over in ALL {
        match over.lack() {
            None => trials.extend(trials_of(over)),
            Some(reason) => trials.push(Trial::ignorable_test(format!("{}::all", over.name()), move || {
                Ok(Completion::ignored_with(reason))
            })),
        }
    }
    Ok(trials)
}

fn trials_of(over: Over) -> impl Iterator<Item = Trial> {
    trials_in(over, &MODULES)
}

fn trials_in(over: Over, modules: &[(&'static str, &'static [Test])]) -> impl Iterator<Item = Trial> + use<> {
    let all = modules.iter().flat_map(|&(module, tests)| tests.iter().map(move |test| (module, *test)));
    let all: Vec<_> = all.collect();
    let all = all.into_iter();
    all.map(move |(module, (name, test))| {
        Trial::test(format!("{}::{module}::{name}", over.name()), move || {
            test(&over.rig());
            Ok(())
        })
    })
}

fn main() -> ExitCode {
    if deaths::is_victim() {
        return deaths::victim();
    }
    match trials() {
        Ok(trials) => libtest_mimic::run(&Arguments::from_args(), trials).exit_code(),
        Err(error) => {
            eprintln!("{error}; write tcp, tls, shm, rdma or grpc");
            ExitCode::FAILURE
        }
    }
}
