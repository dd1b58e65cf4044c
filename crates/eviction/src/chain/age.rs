//! Times in logarithmic buckets: half an octave each, so that no unit of time is special.

/// Buckets that double the time.
pub(crate) const PER_OCTAVE: usize = 2;
/// All buckets; the last has no end. 2^31 ms are 25 days.
pub(crate) const BUCKETS: usize = 64;

/// The bucket of a time. Bucket 0 is less than 1 ms.
pub(crate) fn bucket(ms: u64) -> usize {
    if ms == 0 {
        return 0;
    }
    let octave = 63 - ms.leading_zeros() as usize;
    // The upper half of an octave starts at its square root of two.
    let upper = (ms as f64) >= (1_u64 << octave) as f64 * std::f64::consts::SQRT_2;
    (1 + PER_OCTAVE * octave + usize::from(upper)).min(BUCKETS - 1)
}

/// Where a bucket starts.
pub(crate) fn start_ms(bucket: usize) -> f64 {
    let Some(steps) = bucket.checked_sub(1) else { return 0.0 };
    let half = if steps % PER_OCTAVE == 0 { 1.0 } else { std::f64::consts::SQRT_2 };
    (1_u64 << (steps / PER_OCTAVE)) as f64 * half
}

/// How long a bucket lasts.
pub(crate) fn width_ms(bucket: usize) -> f64 {
    start_ms(bucket + 1) - start_ms(bucket)
}
