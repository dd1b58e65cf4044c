//! Hosts: real daemons and a real client, each in a network namespace of its own, and what a network does to them.
//! Partitions, packets lost in one direction, a slow link.
//!
//! A story runs in a process of its own on the client's host; the process that made the network waits for it and cleans
//! up. Where there can be no namespaces, no packet filter or no traffic control, the tests that need them are ignored
//! with the reason.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is reported")]

mod network;
mod stories;

use libtest_mimic::{Arguments, Completion, Trial};
use memkv_tests::program;
use network::Network;
use std::process::ExitCode;
use stories::{Need, STORIES};

/// Names the story that this process tells, and the network that it is in.
const STORY: &str = "MEMKV_HOSTS_STORY";
const NETWORK: &str = "MEMKV_HOSTS_NETWORK";

fn trial(at: usize) -> Trial {
    let (name, need, _) = STORIES[at];
    Trial::ignorable_test(name, move || {
        let lack = network::lack().or_else(|| match need {
            Need::Links => None,
            Need::Filter => network::lack_of_nft(),
            Need::Shaping => network::lack_of_tc(),
        });
        if let Some(reason) = lack {
            return Ok(Completion::ignored_with(reason));
        }
        let network = Network::new(at)?;
        let mut command = network.command("client", &std::env::current_exe()?);
        command.envs(std::env::var_os("MEMKV_TEST_SMALL").map(|value| ("MEMKV_TEST_SMALL", value)));
        // Found, or built, here and not by the story.
        command.env("MEMKV_SERVER_BIN", program::server()?);
        let output = command.env(STORY, name).env(NETWORK, network.name()).output()?;
        if output.status.success() {
            return Ok(Completion::Completed);
        }
        let told = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        Err(told.concat().into())
    })
}

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(STORY) {
        let network = Network::of(std::env::var(NETWORK).unwrap());
        let (_, _, story) = STORIES.iter().find(|(story, _, _)| *story == name).unwrap();
        story(&network);
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // One network at a time: they are all called alike.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, (0..STORIES.len()).map(trial).collect()).exit_code()
}
