//! The daemon: configuration, start, wait for a signal, graceful stop.
//!
//! Exit codes: 0 stopped gracefully, 1 failed to start or was cut short, 2 wrong configuration or usage.

#![forbid(unsafe_code)]

use anyhow::anyhow;
use memkv_server::config::{Config, Loaded, command};
use memkv_server::{Server, Stopped, cores, logging};
use std::io::Write as _;
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

fn main() -> ExitCode {
    let args = command().get_matches();
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let Loaded { config, warnings } = match Config::load(&args, env) {
        Ok(loaded) => loaded,
        Err(error) => return fail(2, &error.to_string()),
    };
    if args.get_flag("print-config") {
        return print(&config.to_yaml());
    }
    if args.get_flag("check-config") {
        return if warnings.is_empty() {
            print("the configuration is valid\n")
        } else {
            fail(2, &warnings.join("\n"))
        };
    }
    logging::init(&config);
    cores::keep_out(config.core_dumps);
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    match run(config) {
        Ok(Stopped::Gracefully) => ExitCode::SUCCESS,
        Ok(Stopped::Aborted) => ExitCode::FAILURE,
        // Each error's text has its cause's already.
        Err(error) => fail(1, &error.to_string()),
    }
}

fn run(config: Config) -> anyhow::Result<Stopped> {
    let server = Server::start(config)?;
    let [mut terminate, mut interrupt, mut hangup] = server
        .block_on(async { signals() })
        .map_err(|error| anyhow!("cannot listen for signals: {error}"))?;
    if server.address().ip().is_loopback() {
        announce(&server);
    }
    server.block_on(async {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => server.reload(),
            }
        }
    });
    Ok(server.stop(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }))
}

/// Two that end the daemon, and one that makes it read certificates again.
fn signals() -> std::io::Result<[Signal; 3]> {
    Ok([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?])
}

/// Tells a newcomer what clients on this machine export. A configured key is not repeated.
fn announce(server: &Server) {
    let key = if server.key_required() { "" } else { "export MEMKV_AUTH_KEY=\n" };
    print(&format!("export MEMKV_SERVERS={}\n{key}", server.address()));
}

fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    // A closed standard output must not stop a server.
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn fail(code: u8, text: &str) -> ExitCode {
    eprintln!("memkv-server: {text}");
    ExitCode::from(code)
}
