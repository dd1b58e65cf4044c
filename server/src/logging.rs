//! Log lines on standard error.

use crate::config::{Config, LogFormat};
use std::io::{self, IsTerminal as _};
use tracing_subscriber::EnvFilter;

/// Sends the process's log lines to standard error. A second call changes nothing.
pub fn init(config: &Config) {
    let filter = EnvFilter::new(&config.log_filter);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let outcome = match config.log_format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    // Only a second call fails, and the first one's subscriber goes on.
    drop(outcome);
}
