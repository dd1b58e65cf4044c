//! Sizes such as "64GiB" and durations such as "5s", in both directions.

use std::time::Duration;

/// Bytes of each size unit, the largest first.
const SIZES: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
/// Milliseconds of each time unit, the largest first; "ms" is looked for before "m" and "s".
const TIMES: [(&str, u64); 4] = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];

/// Reads a whole number of `B`, `KiB`, `MiB`, `GiB` or `TiB`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    parse(text, &SIZES).ok_or_else(|| {
        format!("{text:?} is not a size; write a whole number and B, KiB, MiB, GiB or TiB, as in \"64GiB\"")
    })
}

/// Reads a whole number of `ms`, `s`, `m` or `h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let millis = parse(text, &TIMES).ok_or_else(|| {
        format!("{text:?} is not a duration; write a whole number and ms, s, m or h, as in \"5s\"")
    })?;
    Ok(Duration::from_millis(millis))
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (digits, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.trim().strip_suffix(unit)?, *factor)))?;
    // `u64::from_str` takes a leading plus; a size has none.
    if !digits.trim_end().bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.trim_end().parse::<u64>().ok()?.checked_mul(factor)
}

/// Writes a size with the largest unit that divides it.
pub(crate) fn show_size(bytes: u64) -> String {
    let fits = |factor: u64| bytes != 0 && bytes.is_multiple_of(factor);
    let (unit, factor) = SIZES.into_iter().find(|(_, factor)| fits(*factor)).unwrap_or(("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// Writes a duration with the largest unit that divides it.
pub(crate) fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fits = |factor: u64| millis != 0 && millis.is_multiple_of(factor);
    let (unit, factor) =
        [TIMES[1], TIMES[2], TIMES[3]].into_iter().find(|(_, factor)| fits(*factor)).unwrap_or(TIMES[0]);
    format!("{}{unit}", millis / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [("0B", 0), ("7B", 7), ("4KiB", 4096), ("64GiB", 64 << 30), ("3TiB", 3 << 40)] {
            assert_eq!(parse_size(text), Ok(bytes));
            assert_eq!(show_size(bytes), text);
        }
        assert_eq!(parse_size(" 256 MiB "), Ok(256 << 20));
        for bad in ["", "64", "GiB", "64GB", "64gib", "-1MiB", "+1MiB", "1.5GiB", "99999999999TiB"] {
            assert!(parse_size(bad).is_err_and(|text| text.contains("\"64GiB\"")), "{bad}");
        }
    }

    #[test]
    fn durations_are_read_and_written() {
        for (text, millis) in [("0ms", 0), ("15ms", 15), ("5s", 5_000), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)));
            assert_eq!(show_duration(Duration::from_millis(millis)), text);
        }
        for bad in ["", "5", "s", "5sec", "1.5s", "-1s"] {
            assert!(parse_duration(bad).is_err_and(|text| text.contains("\"5s\"")), "{bad}");
        }
    }
}
