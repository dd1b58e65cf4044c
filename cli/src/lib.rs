//! `memkv-cli`: looks inside a MemKV cluster and operates it.
//!
//! A command asks the servers (`fleet`), puts the answers into a view (`view`, which is also what `--json`
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
        Err(error) => return usage(&error),
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

/// Prints what clap has to say. Help and version are answers; the rest are errors with a hint, like ours.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        drop(error.print());
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let (text, _) = text.split_once("\nFor more information").unwrap_or((&text, ""));
    eprintln!("{}\nhint: `memkv-cli --help` and `memkv-cli COMMAND --help` show examples", text.trim_end());
    ExitCode::from(Code::Usage as u8)
}

fn execute(cli: args::Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(commands::execute(cli))
}
