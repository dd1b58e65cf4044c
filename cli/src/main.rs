//! The command-line program; everything is in the library, so that tests can reach it.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    memkv_cli::run()
}
