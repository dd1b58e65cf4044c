//! Bounds that a server announces when a session opens and both sides then keep.

/// Every bound of one server, known before it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest page, in bytes.
    pub page_bytes_max: u32,
    /// The most keys in one request.
    pub batch_keys_max: u32,
    /// The most bytes between a frame's header and its body.
    pub frame_meta_bytes_max: u32,
    /// The most data connections attached to one session.
    pub session_connections_max: u32,
    /// The most sessions open at once.
    pub sessions_max: u32,
    /// The most connections of any kind open at once.
    pub connections_max: u32,
    /// The most spaces a server knows.
    pub spaces_max: u32,
    /// The longest time one request may take, in milliseconds; a longer deadline is cut to it.
    pub request_ms_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            page_bytes_max: 64 << 20,
            batch_keys_max: 16_384,
            frame_meta_bytes_max: 9 << 20,
            session_connections_max: 64,
            sessions_max: 4_096,
            connections_max: 16_384,
            spaces_max: 4_096,
            request_ms_max: 30_000,
        }
    }
}
