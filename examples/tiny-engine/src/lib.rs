//! A small but whole inference engine.

#![forbid(unsafe_code)]

mod attention;
pub mod config;
pub mod executor;
pub mod math;
pub mod pool;
pub mod request;
pub mod router;
pub mod weights;

pub use config::ModelConfig;
pub use executor::{ExecuteError, Executor, Run, TransformerExecutor};
pub use pool::{KvLayout, KvPool};
pub use request::{Answer, Event, Request, RequestId, SubmitError};
pub use router::{Batch, Router, RouterLimits};
pub use weights::{Layer, Model};
