//! The NVMe tier: an append-only log of pages in segments on one or more drives.
