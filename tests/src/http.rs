//! The admin port: plain HTTP requests and the metrics they return.

use anyhow::{Context as _, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Fetches `path`; returns status code and body.
///
/// # Errors
///
/// If the server cannot be reached or does not answer with HTTP within five seconds.
pub fn get(addr: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let patience = Duration::from_secs(30);
    let mut stream = TcpStream::connect_timeout(&addr, patience).context("connect to the admin port")?;
    stream.set_read_timeout(Some(patience)).context("set the read timeout")?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("send the request")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("no HTTP answer: {answer:?}") };
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        unchunk(body)
    } else {
        body.to_owned()
    };
    Ok((code.context("no status code")?, body))
}

fn unchunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || rest.len() < size {
            break;
        }
        out.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    out
}

/// A scrape of `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    series: BTreeMap<String, f64>,
}

impl Metrics {
    /// Scrapes the admin port at `addr`.
    ///
    /// # Errors
    ///
    /// If the scrape fails or a line is not in the text format.
    pub fn scrape(addr: SocketAddr) -> anyhow::Result<Self> {
        let (code, body) = get(addr, "/metrics")?;
        anyhow::ensure!(code == 200, "/metrics answered {code}");
        Self::parse(&body)
    }

    /// Reads the text format.
    ///
    /// # Errors
    ///
    /// If a line has no name and number.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut series = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("not a sample: {line:?}"))?;
            let value = value.parse().with_context(|| format!("not a number: {line:?}"))?;
            series.insert(name.to_owned(), value);
        }
        Ok(Self { series })
    }

    /// The sum of all series of this name whose labels contain every given `label="value"` text.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let matching = self.series.iter().filter(|(series, _)| {
            let (own, rest) = series.split_once('{').unwrap_or((series, ""));
            own == name && labels.iter().all(|label| rest.contains(label))
        });
        matching.map(|(_, value)| value).sum()
    }

    /// The names of all series, without labels.
    #[must_use]
    pub fn names(&self) -> BTreeSet<&str> {
        self.series.keys().map(|series| series.split('{').next().unwrap_or(series)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let text = "# TYPE a counter\na{op=\"get\",outcome=\"hit\"} 2\na{op=\"put\"} 3\nab 7\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("a", &[]), 5.0);
        assert_eq!(metrics.sum("a", &["op=\"get\""]), 2.0);
        assert_eq!(metrics.names().into_iter().collect::<Vec<_>>(), ["a", "ab"]);
        assert!(Metrics::parse("a b\n").is_err());
    }

    #[test]
    fn chunks_are_joined() {
        assert_eq!(unchunk("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), "abcde");
    }
}
