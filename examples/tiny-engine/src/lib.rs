//! A small but whole inference engine.

#![forbid(unsafe_code)]

mod attention;
pub mod config;
pub mod engine;
pub mod executor;
pub mod lower;
pub mod math;
pub mod pool;
pub mod request;
pub mod router;
pub mod weights;

pub use config::ModelConfig;
pub use engine::{Engine, EngineError, EngineSizes};
pub use executor::{ExecuteError, Executor, Run, TransformerExecutor};
pub use lower::{DeviceOnly, Lower};
pub use pool::{KvLayout, KvPool};
pub use request::{Answer, Event, Request, RequestId, SubmitError};
pub use router::{Batch, Router, RouterLimits};
pub use weights::{Layer, Model};
