//! The engine against plain definitions: what a transformer computes, and what a cache may change (nothing).

mod executor;
mod reference;
