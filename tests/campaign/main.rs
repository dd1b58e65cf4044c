//! A campaign of faults: three daemons under load, random faults, every byte that is read compared.
//!
//! - [`load`]: clients that put, get, ask and delete, and know what each page must hold;
//! - [`plugin`]: the same through the wheel, SGLang's host pools and SGLang's cache stack;
//! - [`servers`]: the servers and what they suffer; [`faults`] names it, [`flips`] and [`pressure`] are two kinds of it;
//! - [`report`]: a page with plots.
//!
//! `cargo xtask campaign --minutes N` runs it and keeps the report. In a long test run it takes half a minute; in any other it says that it
//! was passed over. It fails on one wrong byte, on a call that takes much longer than its deadline, and on anything that servers still
//! hold when nobody asks any more. Memory counts as held if a process has much more of it at the end than early in its life.

#![forbid(unsafe_code)]

#[cfg(test)]
mod faults;
#[cfg(test)]
mod flips;
#[cfg(test)]
mod load;
#[cfg(test)]
mod plugin;
#[cfg(test)]
mod pressure;
#[cfg(test)]
mod report;
#[cfg(test)]
mod servers;

#[cfg(test)]
mod tests {
    use crate::faults::Rng;
    use crate::load::{Counts, Load};
    use crate::plugin::Plugin;
    use crate::pressure::status_bytes;
    use crate::report::{self, Report};
    use crate::servers::{Cluster, Eye};
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
        let mut cluster = Cluster::start().unwrap();
        let plugin = Plugin::start(&cluster.addresses(), seed).unwrap();
        let load = Load::start(&cluster.addresses(), seed);
        // Pages first, so that the first fault has something to cost.
        std::thread::sleep(Duration::from_secs(2));
        let begun = Instant::now();
        let lasting = begun + time * 2 / 3;
        let eyes = cluster.eyes();
        let mut rows = Vec::new();
        std::thread::scope(|scope| {
            let over = begun + time;
            for (number, server) in cluster.servers.iter_mut().enumerate() {
                let mut random = Rng::new(seed ^ (number as u64 + 1) << 40);
                scope.spawn(move || server.suffer(&mut random, begun, lasting, over));
            }
            let mut before = (load.counts(), plugin.counts());
            while Instant::now() < over {
                std::thread::sleep(TICK);
                let now = (load.counts(), plugin.counts());
                let (clients, of_plugin) = (now.0.since(&before.0), now.1.since(&before.1));
                let memory = memory(&eyes, &plugin).into_iter().map(|(_, bytes)| bytes).collect();
                rows.push(report::Row { at: begun.elapsed(), clients, plugin: of_plugin, memory });
                before = now;
            }
        });
        let heals = cluster.heal().unwrap();
        std::thread::sleep(Duration::from_secs(2));
        let processes = memory(&eyes, &plugin).into_iter().map(|(name, _)| name).collect();
        let clients = load.stop();
        let mut left = Vec::new();
        let plugin = plugin.is_there().then(|| {
            let last = plugin.counts();
            plugin.stop().unwrap_or_else(|error| {
                left.push(format!("{error:#}"));
                last
            })
        });
        left.extend(cluster.left_behind());
        let mut report = Report {
            seed,
            time: begun.elapsed(),
            rows,
            clients,
            plugin,
            processes,
            lasting: lasting - begun,
            events: cluster.events(),
            heals,
            left,
        };
        let grown = report.growth().1;
        report.left.extend(grown);
        println!("{}", report.summary());
        if let Some(folder) = std::env::var_os("MEMKV_CAMPAIGN_OUT") {
            report.write(&PathBuf::from(folder)).unwrap();
        }
        judge(&report);
    }

    /// What `cargo xtask sanitize` runs for a minute with programs that look into their own memory: load, an end in good order, and the
    /// daemons' last words, which the harness reads.
    #[test]
    fn servers_under_load_end_well() {
        let time = number("MEMKV_LOAD_MINUTES")
            .map_or(Duration::from_secs(2), |minutes| Duration::from_secs_f64(minutes * 60.0));
        let mut cluster = Cluster::start().unwrap();
        let load = Load::start(&cluster.addresses(), 1);
        std::thread::sleep(time);
        let counts = load.stop();
        println!(
            "{} calls, {} hits, {} stored, {} wrong",
            counts.calls, counts.hits, counts.stored, counts.wrong
        );
        assert_eq!((counts.wrong, counts.refused), (0, 0));
        assert!(counts.hits > 10, "{counts:?}");
        for server in &mut cluster.servers {
            let status = server.stop().unwrap();
            assert!(status.success(), "a server ended with {status}");
        }
    }

    fn judge(report: &Report) {
        let counts = report.all();
        assert_eq!(counts.wrong, 0, "pages with wrong bytes were handed out: {}", report.summary());
        assert_eq!(counts.late, 0, "calls took much longer than their deadline: {}", report.summary());
        assert_eq!(counts.raised, 0, "the plugin raised: {}", report.summary());
        let found = |counts: &Counts| counts.hits > 100;
        assert!(found(&report.clients), "hardly a page was found: {}", report.summary());
        assert!(
            report.plugin.as_ref().is_none_or(found),
            "the plugin found hardly a page: {}",
            report.summary()
        );
        assert!(!report.events.is_empty(), "nothing was done to the servers");
        assert_eq!(report.left, Vec::<String>::new(), "something is held that nobody asked for");
    }

    /// Memory of every process, by its name: servers, the plugin, and this one with the clients.
    fn memory(eyes: &[Eye], plugin: &Plugin) -> Vec<(String, u64)> {
        let servers = eyes.iter().enumerate();
        let servers = servers.map(|(number, eye)| (format!("server {number}"), eye.own_bytes()));
        let clients = status_bytes(std::process::id(), "VmRSS").unwrap_or(0);
        servers.chain(plugin.resident()).chain([("clients".to_owned(), clients)]).collect()
    }
}
