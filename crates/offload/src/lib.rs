//! Tiers under a radix cache: device, host, MemKV.
