//! What a certificate says: until when it holds, and whose it is.
//!
//! Reads as much of X.509 (RFC 5280) as these questions need:
//!
//! ```text
//! Certificate    SEQUENCE
//!   tbs          SEQUENCE
//!     version    [0] (optional)
//!     serial     INTEGER
//!     algorithm  SEQUENCE
//!     issuer     SEQUENCE
//!     validity   SEQUENCE of two times
//!     subject    SEQUENCE of SETs of SEQUENCEs: kind (OID), text
//!     key        SEQUENCE
//!     …          [3] SEQUENCE of extensions: kind (OID), critical (BOOLEAN, optional), OCTET STRING
//! ```
//!
//! Deliberately absent: deciding whether a certificate is to be trusted. rustls does that, before anything here is
//! believed; but nothing here panics on bytes of a stranger either.

use rustls::pki_types::CertificateDer;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most names that are taken from one certificate.
const NAMES_MAX: usize = 64;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const SAN_DNS: u8 = 0x82;
const SAN_URI: u8 = 0x86;
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// Whom a verified certificate was made for. Which of the names is a tenant is for the server's credentials to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The common name of the subject.
    pub common_name: Option<String>,
    /// Alternative names that are URIs, such as `spiffe://cluster/engine`.
    pub uris: Vec<String>,
    /// Alternative names that are host names.
    pub dns: Vec<String>,
}

impl Identity {
    /// All names, the most specific first: URIs, then host names, then the common name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.uris.iter().chain(&self.dns).chain(&self.common_name).map(String::as_str)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.names().next().unwrap_or("a certificate without a name"))
    }
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// It holds from then on.
    pub not_before: SystemTime,
    /// It holds until then.
    pub not_after: SystemTime,
    /// Whose it is.
    pub identity: Identity,
}

impl Certificate {
    /// Reads a certificate; `None` if it is none.
    #[must_use]
    pub fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let mut tbs = Der(Der(Der(der).only(SEQUENCE)?).next(SEQUENCE)?);
        tbs.skip_if(VERSION)?;
        tbs.any()?; // The serial number.
        tbs.next(SEQUENCE)?; // The algorithm.
        tbs.next(SEQUENCE)?; // The issuer.
        let mut validity = Der(tbs.next(SEQUENCE)?);
        let (not_before, not_after) = (time(validity.any()?)?, time(validity.any()?)?);
        let common_name = common_name(tbs.next(SEQUENCE)?);
        tbs.next(SEQUENCE)?; // The key.
        let mut identity = Identity { common_name, ..Identity::default() };
        while let Some((tag, content)) = tbs.any() {
            if tag == EXTENSIONS {
                alternative_names(Der(content).only(SEQUENCE)?, &mut identity);
            }
        }
        Some(Self { not_before, not_after, identity })
    }

    /// How long it still holds; `None` if it does not any more.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Option<Duration> {
        self.not_after.duration_since(now).ok()
    }

    /// Whether it should have been renewed by now: two weeks before its end, or with a fifth of its life left if that
    /// is less.
    #[must_use]
    pub fn is_due(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        let early = (life / 5).min(Duration::from_secs(14 * 24 * 3600));
        self.left(now).is_none_or(|left| left < early)
    }

    /// The end, in seconds since 1970.
    #[must_use]
    pub fn expires_unix(&self) -> u64 {
        self.not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
    }
}

/// Elements of DER, one after the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag and its content.
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk::<2>()?;
        // Tags of more than one byte do not occur.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (len, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x83 => {
                let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next element, which has this tag.
    fn next(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.any().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }

    /// The content of the first element, which has this tag.
    fn only(mut self, tag: u8) -> Option<&'a [u8]> {
        self.next(tag)
    }

    fn skip_if(&mut self, tag: u8) -> Option<()> {
        if self.0.first() == Some(&tag) {
            self.any()?;
        }
        Some(())
    }
}

/// The last common name of a subject, which is the most specific one.
fn common_name(subject: &[u8]) -> Option<String> {
    let (mut sets, mut found) = (Der(subject), None);
    while let Some((tag, set)) = sets.any() {
        let mut pairs = Der(if tag == SET { set } else { &[] });
        while let Some(pair) = pairs.next(SEQUENCE) {
            let mut pair = Der(pair);
            if pair.next(OID) == Some(COMMON_NAME) {
                found = pair
                    .any()
                    .filter(|(tag, _)| matches!(*tag, UTF8 | PRINTABLE))
                    .and_then(|(_, text)| name(text));
            }
        }
    }
    found
}

fn alternative_names(extensions: &[u8], identity: &mut Identity) {
    let mut extensions = Der(extensions);
    while let Some(extension) = extensions.next(SEQUENCE) {
        let mut parts = Der(extension);
        if parts.next(OID) != Some(SUBJECT_ALT_NAME) {
            continue;
        }
        while let Some((tag, content)) = parts.any() {
            if tag != OCTETS {
                continue;
            }
            let mut names = Der(Der(content).only(SEQUENCE).unwrap_or_default());
            for (tag, text) in std::iter::from_fn(|| names.any()).take(NAMES_MAX) {
                match tag {
                    SAN_DNS => identity.dns.extend(name(text)),
                    SAN_URI => identity.uris.extend(name(text)),
                    _ => {}
                }
            }
        }
    }
}

/// A name that can be shown and compared: not empty, no control characters.
fn name(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let plain = !text.is_empty() && text.len() <= 1024 && !text.chars().any(char::is_control);
    plain.then(|| text.to_owned())
}

/// `YYMMDDhhmmssZ`, or the same with four digits of the year.
fn time((tag, text): (u8, &[u8])) -> Option<SystemTime> {
    let digits = text.strip_suffix(b"Z").filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let (year_digits, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => digits.split_at(2),
        (GENERALIZED_TIME, 14) => digits.split_at(4),
        _ => return None,
    };
    let number = |digits: &[u8]| digits.iter().fold(0_u64, |n, digit| n * 10 + u64::from(digit - b'0'));
    let year = match (tag, number(year_digits)) {
        (UTC_TIME, year @ 0..50) => 2000 + year,
        (UTC_TIME, year) => 1900 + year,
        (_, year) => year,
    };
    let [month, day, hour, minute, second] = [0, 2, 4, 6, 8].map(|at| number(&rest[at..at + 2]));
    let fits =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
    // A time before 1970 is over all the same.
    let days = if fits { days_since_1970(year, month, day) } else { return None };
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar; 0 for earlier ones.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    // Years begin in March, so that the leap day is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.saturating_sub(1), month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    days.saturating_sub(719_469)
}

#[cfg(test)]
mod tests;
