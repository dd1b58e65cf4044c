//! Numbers for people, and from people.

use std::time::Duration;

/// A size: `0 B`, `640 B`, `12.3 GiB`; 9 characters at most.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = float(count) / 1024.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value < 99.95);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A count with commas: `12,345`.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count and its noun: `1 page`, `1,024 pages`.
pub(crate) fn plural(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A count in at most 6 characters: `9,999`, `12.3k`, `1.2M`.
pub(crate) fn short_count(number: u64) -> String {
    const UNITS: [&str; 5] = ["k", "M", "G", "T", "P"];
    if number < 10_000 {
        return count(number);
    }
    let mut value = float(number) / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(value < 99.95);
    format!("{value:.digits$}{}", UNITS[unit])
}

/// A share of a whole, 0 to 1; `None` if the whole is nothing.
pub(crate) fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| float(part) / float(whole))
}

/// A share in percent: `93 %`, `-` if unknown. Only a full whole shows 100.
pub(crate) fn percent(share: Option<f64>) -> String {
    match share {
        None => "-".to_owned(),
        Some(share) if share < 1.0 => format!("{:.0} %", (share * 100.0).min(99.0)),
        Some(share) => format!("{:.0} %", share * 100.0),
    }
}

/// A span of time with its two largest units: `850 ms`, `12 s`, `3 h 5 min`, `2 d 4 h`.
pub(crate) fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    let pair = |big: u64, big_unit: &str, small: u64, small_unit: &str| {
        if small == 0 {
            format!("{big} {big_unit}")
        } else {
            format!("{big} {big_unit} {small} {small_unit}")
        }
    };
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds} s"),
        60..3_600 => pair(seconds / 60, "min", seconds % 60, "s"),
        3_600..86_400 => pair(seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        _ => pair(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// Reads a size: a whole number and `B`, `KiB`, `MiB`, `GiB` or `TiB`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 5] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
    parse(text, &UNITS)
        .ok_or_else(|| "write a whole number and B, KiB, MiB, GiB or TiB, as in 200MiB".to_owned())
}

/// Reads a time: a whole number and `s`, `m`, `h` or `d`; at least a second, at most a year.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];
    const YEAR: u64 = 365 * 86_400;
    let seconds = parse(text, &UNITS).filter(|seconds| (1..=YEAR).contains(seconds));
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| "write a whole number and s, m, h or d, as in 2h, up to 365d".to_owned())
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (digits, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))?;
    let digits = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[allow(clippy::cast_precision_loss, reason = "shown with three digits")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_stay_short_at_every_step() {
        let shown = [0, 1023, 1024, 1_047_000, 1_048_576, 64 << 30, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.0 MiB", "64.0 GiB", "16.0 EiB"]);
        for shift in 0..64 {
            assert!(bytes(u64::MAX >> shift).len() <= 9, "{}", bytes(u64::MAX >> shift));
        }
    }

    #[test]
    fn counts_are_readable() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([plural(1, "page"), plural(1024, "page")], ["1 page", "1,024 pages"]);
        assert_eq!([9_999, 10_000, 123_456, 999_999].map(short_count), ["9,999", "10.0k", "123k", "1.0M"]);
    }

    #[test]
    fn shares_never_round_up_to_everything() {
        assert_eq!(percent(ratio(999, 1000)), "99 %");
        assert_eq!(percent(ratio(1000, 1000)), "100 %");
        assert_eq!(percent(ratio(0, 10)), "0 %");
        assert_eq!(percent(ratio(0, 0)), "-");
    }

    #[test]
    fn sizes_and_times_are_read() {
        assert_eq!(parse_bytes("200MiB"), Ok(200 << 20));
        assert_eq!(parse_bytes("0B"), Ok(0));
        assert_eq!(parse_time("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(parse_time("365d"), Ok(Duration::from_secs(365 * 86_400)));
        for bad in ["", "200", "MiB", "+2MiB", "1.5MiB", "99999999999TiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        for bad in ["", "2", "h", "0s", "366d", "-1h", "2ms"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_two_units() {
        let shown = [850, 12_400, 185_000, 10_800_000, 187_200_000].map(duration);
        assert_eq!(shown, ["850 ms", "12 s", "3 min 5 s", "3 h", "2 d 4 h"]);
    }
}
