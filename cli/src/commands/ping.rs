//! `ping`: how fast each server answers a status call.

use crate::failure::{Code, Failure};
use crate::fleet::Fleet;
use crate::output::Output;
use crate::render;
use crate::view::{Pinged, Pings};
use std::time::{Duration, Instant};

/// Pings every server `count` times, one call at a time.
pub(crate) async fn run(fleet: &Fleet, output: &Output, count: u32) -> Result<(), Failure> {
    let servers = &fleet.config().servers;
    let bar = output.bar("ping", u64::from(count) * servers.len() as u64);
    let mut pings = Pings { servers: Vec::new() };
    for server in servers {
        // A client of its own: another server that is slow must not count here.
        let alone = Fleet::alone(fleet.config(), server).await?;
        let mut times = Vec::new();
        let mut error = None;
        for _ in 0..count {
            let started = Instant::now();
            match alone.only_status().await {
                Ok(_) => times.push(started.elapsed()),
                Err(failure) => error = Some(failure),
            }
            bar.inc(1);
        }
        alone.close().await;
        pings.servers.push(summary(server.id.clone(), count, times, error));
    }
    bar.finish_and_clear();
    output.show(&pings, render::pings)?;
    for server in &pings.servers {
        if let Some(error) = &server.error {
            output.say(&format!("warning: {}: {error}", server.server));
        }
    }
    if pings.servers.iter().all(|server| server.answered > 0) {
        return Ok(());
    }
    Err(Failure::new(Code::Unreachable, "not every server answers")
        .hint("`memkv-cli doctor` looks at each one"))
}

fn summary(server: String, count: u32, mut times: Vec<Duration>, error: Option<String>) -> Pinged {
    times.sort_unstable();
    let ms = |time: Option<&Duration>| time.map(|time| time.as_secs_f64() * 1000.0);
    let answered = u32::try_from(times.len()).unwrap_or(count);
    Pinged {
        server,
        answered,
        lost: count - answered,
        min_ms: ms(times.first()),
        median_ms: ms(times.get(times.len() / 2)),
        max_ms: ms(times.last()),
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_orders_the_times_and_counts_the_lost() {
        let times = [5, 1, 3].map(Duration::from_millis).to_vec();
        let pinged = summary("a".into(), 5, times, Some("late".into()));
        assert_eq!((pinged.answered, pinged.lost), (3, 2));
        assert_eq!((pinged.min_ms, pinged.median_ms, pinged.max_ms), (Some(1.0), Some(3.0), Some(5.0)));
        assert_eq!(summary("a".into(), 1, vec![], None).median_ms, None);
    }
}
