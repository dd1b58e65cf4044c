//! Tests of the log as a whole, on real files.

mod basic;
mod bed;
mod damage;
mod faults;
mod hands;
mod members;
mod model;
mod reclaim;
mod samples;
