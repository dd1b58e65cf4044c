//! The Unix socket for clients on the same host.

/// Where clients on the same host connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ShmSocket {
    /// An abstract socket with a name that is new at every start.
    #[default]
    Auto,
    /// Nowhere: they use TCP like all others.
    Off,
    /// This one: `@NAME` for an abstract socket, else a path.
    Named(String),
}

impl ShmSocket {
    /// As the configuration says it.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::Named(name) => name,
        }
    }
}

/// Reads the name of a socket.
pub(super) fn socket(text: &str) -> Result<ShmSocket, String> {
    let name = text.trim();
    match name {
        "auto" => return Ok(ShmSocket::Auto),
        "off" => return Ok(ShmSocket::Off),
        _ => {}
    }
    let is_name = name.len() > 1 && (name.starts_with('/') || name.starts_with('@'));
    if !is_name || memkv_shm::socket::address(name).is_err() {
        return Err(format!(
            "{text:?} is not auto, off, an absolute path or @NAME of at most about 100 bytes"
        ));
    }
    Ok(ShmSocket::Named(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_auto_off_a_path_or_a_name() {
        for good in ["auto", "off", "@memkv", "/run/memkv/data.sock"] {
            assert_eq!(socket(good).unwrap().text(), good);
        }
        for bad in ["", "@", "/", "on", "memkv.sock", &format!("/{}", "x".repeat(120))] {
            assert!(socket(bad).is_err(), "{bad}");
        }
    }
}
