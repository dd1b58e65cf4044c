//! A campaign of faults: three daemons under load, random faults, every byte that is read compared.
//!
//! - [`load`]: clients that put, get, ask and delete, and know what each page must hold;
//! - [`faults`]: what is done to the servers and to the ways to them;
//! - [`report`]: a page with plots.
//!
//! `cargo xtask campaign --minutes N` runs it and keeps the report. In a long test run it takes half a minute; in any other it says that it
//! was passed over. It fails on one wrong byte, on a call that takes much longer than its deadline, and on anything that servers still
//! hold when nobody asks any more.

#![forbid(unsafe_code)]

#[cfg(test)]
mod faults;
#[cfg(test)]
mod load;
#[cfg(test)]
mod report;

#[cfg(test)]
mod tests {
    use crate::faults::{Cluster, Rng};
    use crate::load::Load;
    use crate::report::{self, Report};
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    /// A campaign in a long test run.
    const SMOKE: Duration = Duration::from_secs(25);
    /// Between two rows of the report.
    const TICK: Duration = Duration::from_secs(1);

    fn number(name: &str) -> Option<f64> {
        std::env::var(name).ok()?.parse().ok()
    }

    #[test]
    fn faults_cost_pages_and_never_bytes() {
        let minutes = number("MEMKV_CAMPAIGN_MINUTES");
        if minutes.is_none() && std::env::var_os("MEMKV_TEST_LONG").is_none() {
            println!("skipped: a campaign belongs to cargo xtask test --long and cargo xtask campaign");
            return;
        }
        let time = minutes.map_or(SMOKE, |minutes| Duration::from_secs_f64(minutes * 60.0));
        let seed = number("MEMKV_CAMPAIGN_SEED").map_or_else(
            || u64::from_le_bytes(memkv_tests::random()) >> 32,
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a seed is a small number"
            )]
            |seed| seed as u64,
        );
        println!("seed {seed}");
        let begun = Instant::now();
        let mut cluster = Cluster::start(begun).unwrap();
        let load = Load::start(&cluster.addresses(), seed);
        let mut rows = Vec::new();
        // Pages first, so that the first fault has something to cost.
        std::thread::sleep(Duration::from_secs(2));
        std::thread::scope(|scope| {
            let over = begun + time;
            for (number, server) in cluster.servers.iter_mut().enumerate() {
                let mut random = Rng::new(seed ^ (number as u64 + 1) << 40);
                scope.spawn(move || server.suffer(&mut random, over));
            }
            let mut before = load.counts();
            while Instant::now() < over {
                std::thread::sleep(TICK);
                let now = load.counts();
                rows.push(report::Row { at: begun.elapsed(), counts: now.since(&before) });
                before = now;
            }
        });
        let heals = cluster.heal().unwrap();
        std::thread::sleep(Duration::from_secs(2));
        let counts = load.stop();
        let left = cluster.left_behind();
        let report =
            Report { seed, time: begun.elapsed(), rows, counts, events: cluster.events(), heals, left };
        println!("{}", report.summary());
        if let Some(folder) = std::env::var_os("MEMKV_CAMPAIGN_OUT") {
            report.write(&PathBuf::from(folder)).unwrap();
        }
        assert_eq!(report.counts.wrong, 0, "pages with wrong bytes were handed out: {report:?}");
        assert_eq!(report.counts.late, 0, "calls took much longer than their deadline");
        assert!(report.counts.hits > 100, "hardly a page was found: {}", report.summary());
        assert!(!report.events.is_empty(), "nothing was done to the servers");
        assert_eq!(report.left, Vec::<String>::new(), "servers hold what nobody asked for");
    }
}
