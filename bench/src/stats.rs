//! Medians, quartiles and percentiles.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// A quantity measured once a round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// The middle value.
    pub median: f64,
    /// Third quartile minus first.
    pub iqr: f64,
    /// How many values there were.
    pub rounds: usize,
}

impl Spread {
    /// Median and interquartile range; `None` of no values.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = quantile(&sorted, 0.5)?;
        let iqr = quantile(&sorted, 0.75)? - quantile(&sorted, 0.25)?;
        Some(Self { median, iqr, rounds: sorted.len() })
    }
}

/// Latency over all rounds, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub p50_us: f64,
    pub p99_us: f64,
    /// Operations measured.
    pub count: usize,
}

impl Latency {
    /// The latency of operations that took so many nanoseconds each; `None` of none.
    pub(crate) fn of(nanos: &[u64]) -> Option<Self> {
        #[allow(clippy::cast_precision_loss, reason = "a duration of days still fits")]
        let mut sorted: Vec<f64> = nanos.iter().map(|&ns| ns as f64 / 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self { p50_us: quantile(&sorted, 0.5)?, p99_us: quantile(&sorted, 0.99)?, count: sorted.len() })
    }
}

/// The latency of many batches, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tail {
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// Batches measured.
    pub count: u64,
}

impl Tail {
    /// Of a histogram of nanoseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "a duration of days still fits")]
        let us = |nanos: u64| nanos as f64 / 1e3;
        let at = |part| us(histogram.value_at_quantile(part));
        Self {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: us(histogram.max()),
            count: histogram.len(),
        }
    }
}

/// The quantile of sorted values, interpolated between neighbours.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    #[allow(clippy::cast_precision_loss, reason = "no run has 2^53 samples")]
    let place = last as f64 * part;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= place <= last")]
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    Some(sorted[below] + (sorted[above] - sorted[below]) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_interpolated() {
        let spread = Spread::of(&[4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(spread, Spread { median: 2.5, iqr: 1.5, rounds: 4 });
        assert_eq!(Spread::of(&[7.0]).unwrap(), Spread { median: 7.0, iqr: 0.0, rounds: 1 });
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn latency_is_in_microseconds() {
        let nanos: Vec<u64> = (0..=100).map(|i| i * 1000).collect();
        assert_eq!(Latency::of(&nanos).unwrap(), Latency { p50_us: 50.0, p99_us: 99.0, count: 101 });
    }
}
