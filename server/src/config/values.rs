//! Reads single values: texts in, checked values out. An error says what a value looks like.

use super::units::{parse_duration, parse_size};
use std::fmt::Display;
use std::str::FromStr;

/// Stores a value that was read.
pub(super) fn put<T>(slot: &mut T, value: Result<T, String>) -> Result<(), String> {
    *slot = value?;
    Ok(())
}

/// Reads a value that may be empty.
pub(super) fn optional<T>(text: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if text.trim().is_empty() { Ok(None) } else { read(text.trim()).map(Some) }
}

/// Reads a value of a type of the standard library; `what` says what it is.
pub(super) fn from_str<T: FromStr>(text: &str, what: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is not {what}"))
}

/// Reads an IP address with a port.
pub(super) fn address(text: &str) -> Result<std::net::SocketAddr, String> {
    from_str(text, "an address; write IP:PORT, as in \"127.0.0.1:9900\"")
}

/// Reads a whole number.
pub(super) fn count(text: &str) -> Result<u32, String> {
    from_str(text, "a whole number")
}

/// Reads a size below 4 GiB.
pub(super) fn size32(text: &str) -> Result<u32, String> {
    u32::try_from(parse_size(text)?).map_err(|_| format!("{text:?} is too large"))
}

/// Reads a duration as milliseconds.
pub(super) fn millis32(text: &str) -> Result<u32, String> {
    u32::try_from(parse_duration(text)?.as_millis()).map_err(|_| format!("{text:?} is too long"))
}

/// Reads the name of a server.
pub(super) fn node_id(text: &str) -> Result<String, String> {
    if text.len() > 256 || text.chars().any(char::is_control) {
        return Err("a node id has 1 to 256 bytes and no control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads what is logged.
pub(super) fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{text:?} is not a log filter: {error}")),
    }
}

/// Reads one of a few names.
pub(super) fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let found = choices.iter().find(|(name, _)| *name == text.trim()).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        format!("{text:?} is not one of: {}", names.join(", "))
    })
}

/// A YAML text in double quotes.
pub(super) fn quoted(value: impl Display) -> String {
    format!("\"{}\"", value.to_string().replace('\\', "\\\\").replace('"', "\\\""))
}
