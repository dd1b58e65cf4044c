//! Dashboards ask only for series that the server has.

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

#[test]
fn the_repository_has_no_dashboard_with_an_unknown_series() {
    let lists = ["server/src/metrics.rs", "server/src/metrics/storage.rs"];
    let read = |path| std::fs::read_to_string(root().join(path)).expect("a list of series");
    let registered: Vec<String> = lists.into_iter().flat_map(|path| series(&read(path))).collect();
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
