//! Dashboards and the runbook ask only for series that the server has, and what the runbook has an alarm for can be seen.

use crate::source::{files, root};

/// The names of our series in a text, without the endings that Prometheus adds to a histogram.
fn series(text: &str) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names = text.split(|c: char| !is_name(c)).filter(|word| word.starts_with("memkv_"));
    let base = |name: &str| {
        let endings = ["_bucket", "_sum", "_count"];
        endings.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name).to_owned()
    };
    names.map(base).collect()
}

/// The series that servers have.
fn registered() -> Vec<String> {
    let lists = ["server/src/metrics.rs", "server/src/metrics/storage.rs", "server/src/tenants/show.rs"];
    let read = |path| std::fs::read_to_string(root().join(path)).expect("a list of series");
    lists.into_iter().flat_map(|path| series(&read(path))).collect()
}

#[test]
fn every_alarm_is_about_a_series_that_exists_and_is_on_the_dashboard() {
    let registered = registered();
    let read = |path| std::fs::read_to_string(root().join(path)).expect("a file of the repository");
    let dashboard = series(&read("deploy/grafana/memkv.json"));
    let runbook = read("docs/runbook.md");
    let (_, alarms) = runbook.split_once("## Alarms").expect("the runbook has alarms");
    let alarms: Vec<_> = alarms.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(alarms.len() > 10, "the table of alarms is there");
    for alarm in alarms {
        for name in series(alarm) {
            assert!(registered.contains(&name), "the runbook has {name}, which no server has");
        }
        // The first column says what the alarm is about; the others say where to look.
        let about = alarm.split(" | ").next().unwrap_or_default();
        for name in series(about) {
            assert!(dashboard.contains(&name), "there is an alarm for {name}, and no panel");
        }
    }
}

#[test]
fn the_repository_has_no_dashboard_with_an_unknown_series() {
    let registered = registered();
    let mut seen = 0;
    for file in files(&["json"]).iter().filter(|file| file.path.starts_with("deploy/grafana/")) {
        serde_json::from_str::<serde_json::Value>(&file.text).expect("a dashboard is JSON");
        for name in series(&file.text) {
            assert!(registered.contains(&name), "{} asks for {name}, which no server has", file.path);
            seen += 1;
        }
    }
    assert!(seen > 0, "no dashboard asks for anything");
}

#[test]
fn histograms_are_known_by_their_base_name() {
    assert_eq!(series("rate(memkv_x_seconds_bucket{op=\"get\"}[1m])"), ["memkv_x_seconds"]);
}
