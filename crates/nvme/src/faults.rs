//! Faults on demand, for tests.

/// Faults to have.
#[derive(Debug, Default)]
pub struct FaultPlan {}
