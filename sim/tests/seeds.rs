//! Seeds, as `cargo xtask test` runs them: 200, or 2,000 in a long run.

use std::process::{Command, Output};

fn simulate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_memkv-sim")).args(args).output().expect("the program is built")
}

fn text(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn every_seed_keeps_what_is_promised() {
    let seeds = if std::env::var_os("MEMKV_TEST_LONG").is_some() { "2000" } else { "200" };
    let output = simulate(&["--seeds", seeds]);
    assert!(output.status.success(), "{}", text(&output));
    // A run in which nothing happens would keep its promises too.
    for what in ["ops", "hits", "evicted", "recovered"] {
        let text = text(&output);
        assert!(!text.contains(&format!(" {what} 0")), "no {what} at all: {text}");
    }
}

#[test]
fn a_seed_has_the_same_events_every_time() {
    for seed in ["3", "17", "42"] {
        let (first, second) = (simulate(&["--seed", seed]), simulate(&["--seed", seed]));
        assert_eq!(text(&first), text(&second));
        assert!(text(&first).contains("digest="), "{}", text(&first));
    }
    assert_ne!(text(&simulate(&["--seed", "3"])), text(&simulate(&["--seed", "4"])));
}
