//! The engine against plain definitions: what a transformer computes, and what a cache may change (nothing).

mod cache;
mod executor;
mod harness;
mod reference;
mod router;
mod warm;

use memkv_tiny_engine::{Model, ModelConfig};
use std::sync::{Arc, LazyLock};

/// The model of all tests.
static MODEL: LazyLock<Arc<Model>> =
    LazyLock::new(|| Arc::new(Model::from_seed(ModelConfig::small(), 11).expect("a valid shape")));
