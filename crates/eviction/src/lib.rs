//! Eviction policies: which page goes first.
