//! TLS on the one port and on the admin port.
