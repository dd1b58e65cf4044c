//! Every kept input runs through its target, in an ordinary build.

#![forbid(unsafe_code)]

use memkv_fuzz::{TARGETS, corpus};

#[test]
fn every_kept_input_passes() {
    for target in TARGETS {
        let kept = corpus::read(target).expect("every target has a corpus");
        assert!(!kept.is_empty(), "the corpus of {} is empty", target.name);
        for (name, input) in kept {
            println!("{}/{name}", target.name);
            assert!(input.len() <= target.most, "{}/{name} is longer than the target's inputs", target.name);
            (target.run)(&input);
        }
    }
}

#[test]
fn the_inputs_made_from_real_messages_are_kept() {
    for target in TARGETS {
        let kept = corpus::read(target).expect("every target has a corpus");
        for (name, _) in corpus::seeds(target) {
            let missing = !kept.iter().any(|(has, _)| *has == name);
            assert!(
                !missing,
                "{}/{name} is missing; run: cargo run -p memkv-fuzz --bin memkv-fuzz seeds",
                target.name
            );
        }
    }
}

#[test]
fn every_corpus_has_a_target() {
    for entry in std::fs::read_dir(corpus::root()).expect("the corpora are there").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_known = memkv_fuzz::target(&name).is_some();
        assert!(is_known || cfg!(not(feature = "engine")), "nobody reads corpus/{name}");
    }
}
