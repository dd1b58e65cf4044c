//! `cargo xtask …`: every command of this repository, and what CI calls.
//!
//! Each command installs what it needs, says what it does while it does it, and leaves the noise in
//! `target/xtask/*.log`. It has few dependencies, so that it is built in seconds on a new machine.
//!
//! Deliberately absent: logic that a test should cover elsewhere. This crate starts programs and reads what they
//! print.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command-line program")]

mod check;
mod cluster;
mod context;
mod demo;
mod engine;
mod etcd;
mod hardening;
mod hosts;
mod process;
mod python;
mod rdma;
mod report;
mod sanitize;
mod sim;
mod smaller;
mod test;
mod ui;
mod wheel;

use context::Context;
use std::process::ExitCode;

/// One command of `cargo xtask`.
struct Command {
    name: &'static str,
    usage: &'static str,
    about: &'static str,
    run: fn(&Context, &[String]) -> anyhow::Result<()>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "demo",
        usage: "demo [engine|--quick] [--dev] [--pages N]",
        about: "The product at work, with SGLang; --quick: without Python; engine: in Rust",
        run: demo::run,
    },
    Command {
        name: "test",
        usage: "test [--long] [--filter TEXT]",
        about: "Every test: Rust, Python with sglang, the quick demo; --long: more crashes",
        run: test::run,
    },
    Command {
        name: "check",
        usage: "check",
        about: "Format, lints, documentation and tidy rules",
        run: check::run,
    },
    Command {
        name: "rdma",
        usage: "rdma [--keep] [FILTER] | --figures | -- CMD",
        about: "The tests on real RDMA verbs, figures, or COMMAND, in a VM",
        run: rdma::run,
    },
    Command {
        name: "fuzz",
        usage: "fuzz TARGET [--minutes N] [--plain]",
        about: "Searches for bytes that break a reader; fuzz list names the targets",
        run: hardening::fuzz,
    },
    Command {
        name: "campaign",
        usage: "campaign [--minutes N] [--keep] [--no-plugin]",
        about: "Random faults under SGLang's load; --keep: into docs/campaigns",
        run: hardening::campaign,
    },
    Command {
        name: "sanitize",
        usage: "sanitize [load|corpus|address|thread|miri]",
        about: "AddressSanitizer, ThreadSanitizer, leaks and Miri, as far as there is a nightly",
        run: sanitize::run,
    },
    Command {
        name: "sim",
        usage: "sim [--from S] [--seeds N] | --seed S | --bugs",
        about: "Simulated clusters from seeds (--trace: every event)",
        run: sim::run,
    },
    Command {
        name: "wheel",
        usage: "wheel [--dev]",
        about: "Builds the wheel memkv-sglang into target/wheels",
        run: wheel::run,
    },
    Command {
        name: "bench",
        usage: "bench targets|peers|load|run|plugin [ARGS …]",
        about: "Measures, in release; --help after each says how",
        run: smaller::bench,
    },
    Command {
        name: "docs",
        usage: "docs",
        about: "Writes the generated documents again",
        run: smaller::docs,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = args.split_first() else {
        println!("{}", help());
        return ExitCode::SUCCESS;
    };
    if ["help", "--help", "-h"].contains(&name.as_str()) {
        println!("{}", help());
        return ExitCode::SUCCESS;
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("error: there is no command {name:?}\nhint: `cargo xtask` lists them all");
        return ExitCode::from(2);
    };
    let mut own = rest.iter().take_while(|arg| *arg != "--");
    if own.any(|arg| arg == "--help" || arg == "-h") && name != "bench" {
        println!("cargo xtask {}\n\n  {}", command.usage, command.about);
        return ExitCode::SUCCESS;
    }
    match Context::new().and_then(|context| (command.run)(&context, rest)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn help() -> String {
    let mut text = String::from("Every command of this repository:\n");
    for command in COMMANDS {
        text.push_str(&format!("\n  cargo xtask {:<46} {}", command.usage, command.about));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_names_every_command_within_its_column() {
        let text = help();
        for command in COMMANDS {
            assert!(command.usage.starts_with(command.name));
            assert!(command.usage.len() <= 46, "{} is too long for its column", command.usage);
            assert!(text.contains(command.about));
        }
    }
}
