//! Certificates and TLS for both planes.

#![forbid(unsafe_code)]
