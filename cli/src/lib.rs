//! `memkv-cli`: looks inside a MemKV cluster and operates it.
//!
//! A command asks the servers ([`fleet`]), puts the answers into a view (`view`, which is also what `--json`
//! prints), and draws it (`render`). Data goes to standard output, talk to standard error, and every error has a
//! hint and an exit code that scripts may rely on.
//!
//! Deliberately absent: state between two runs, and anything that a library user of `memkv-client` could not do.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod doctor;
mod failure;
mod fleet;
mod output;
mod reference;
mod render;
mod selector;
mod table;
mod units;
mod view;

use clap::Parser as _;
use failure::{Code, Failure};
use std::process::ExitCode;

/// Reads the command line, does what it says, and returns the exit code.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors; clap knows which stream each goes to.
            let code = if error.use_stderr() { ExitCode::from(Code::Usage as u8) } else { ExitCode::SUCCESS };
            drop(error.print());
            return code;
        }
    };
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("error: {}", table::printable(&failure.message));
            }
            if let Some(hint) = &failure.hint {
                eprintln!("hint: {}", table::printable(hint));
            }
            ExitCode::from(failure.code as u8)
        }
    }
}

fn execute(cli: args::Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(commands::execute(cli))
}
