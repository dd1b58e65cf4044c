//! Sizes as people write them.

const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

/// Reads a whole number, with a unit or in bytes.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = UNITS
        .iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|digits| (digits.trim_end(), *shift)))
        .unwrap_or((text, 0));
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift)
}

/// Writes it with the largest unit that leaves a whole number.
pub(crate) fn show(bytes: u64) -> String {
    let fits = |shift: u32| bytes != 0 && bytes.is_multiple_of(1 << shift);
    let (unit, shift) = UNITS.iter().find(|(_, shift)| fits(*shift)).unwrap_or(&("B", 0));
    format!("{}{unit}", bytes >> shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, bytes) in [("0B", 0), ("5B", 5), ("4KiB", 4096), ("3GiB", 3 << 30), ("1TiB", 1 << 40)] {
            assert_eq!((parse(text), show(bytes)), (Some(bytes), text.to_owned()));
        }
        assert_eq!(parse(" 2 MiB"), Some(2 << 20));
        for bad in ["", "x", "-1", "1.5GiB", "99999999TiB", "1GB"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
