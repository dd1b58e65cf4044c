//! The trace of private and public pages.

use super::{config, insert};
use crate::{Access, Alert, EvidenceConfig, Namespace, PageChain, RadixCache, Sharing, Tokens, UserId};
use serde_json::{Value, json};
use std::collections::BTreeMap;

struct Player {
    cache: RadixCache,
    namespace: Namespace,
    labels: BTreeMap<String, u32>,
    users: BTreeMap<String, u64>,
    /// Paths of labels by the public name of their last page.
    paths: BTreeMap<crate::Digest, Vec<String>>,
}

impl Player {
    fn key(&mut self, op: &Value) -> (Vec<String>, Vec<u32>, UserId) {
        let labels: Vec<String> =
            op["pages"].as_array().unwrap().iter().map(|label| label.as_str().unwrap().to_owned()).collect();
        let mut tokens = Vec::new();
        for label in &labels {
            let next = self.labels.len() as u32;
            tokens.push(*self.labels.entry(label.clone()).or_insert(next));
        }
        let names = PageChain::new(self.cache.shape(), None).whole_pages(Tokens::from(&tokens));
        for (at, name) in names.into_iter().enumerate() {
            self.paths.insert(name, labels[..=at].to_vec());
        }
        let next = self.users.len() as u64;
        let user = *self.users.entry(op["user"].as_str().unwrap().to_owned()).or_insert(next);
        (labels, tokens, UserId(user))
    }

    fn submit(&mut self, op: &Value) -> Value {
        let (labels, tokens, user) = self.key(op);
        let namespace = self.namespace.clone();
        let access = Access::by(&namespace, user);
        let found = self.cache.match_prefix(access, Tokens::from(&tokens));
        let new = insert(&mut self.cache, access, &tokens);
        let alerts = self.cache.note_submission(access, Tokens::from(&tokens), &found);
        let event = |alert: &Alert| match alert {
            Alert::Surge { depth } => json!({ "alert": labels[..*depth] }),
            Alert::Demoted { depth, pages } => json!({ "demote": labels[..*depth], "freed_pages": pages }),
        };
        json!({
            "hit_pages": found.pages.len(),
            "public_pages": found.public_pages,
            "new_private": new,
            "events": alerts.iter().map(event).collect::<Vec<_>>(),
        })
    }

    fn tick(&mut self, op: &Value) -> Value {
        let (mut promoted, mut merged, mut window) = (Vec::new(), 0, 0);
        for _ in 0..op["windows"].as_u64().unwrap() {
            let closed = self.cache.close_window();
            promoted.extend(closed.promoted.iter().map(|alias| self.paths[&alias.public].clone()));
            merged += closed.merged_pages;
            window = closed.window;
        }
        json!({ "promoted": promoted, "merged_freed_pages": merged, "epoch": window })
    }

    fn play(&mut self, op: &Value) -> Value {
        match op["op"].as_str().unwrap() {
            "submit" => self.submit(op),
            "tick" => self.tick(op),
            "classify" => {
                let (_, tokens, user) = self.key(op);
                let namespace = self.namespace.clone();
                let closed = self.cache.classify(Access::by(&namespace, user), Tokens::from(&tokens));
                json!({ "published": closed.promoted.len() })
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn the_privacy_trace_has_no_difference() {
    let file: Value = serde_json::from_str(include_str!("../../tests/vectors/privacy_trace.json")).unwrap();
    let mut config = config(1, 1024);
    config.sharing = Sharing::Evidence(EvidenceConfig {
        users: file["K"].as_u64().unwrap() as usize,
        surge: file["T"].as_u64().unwrap(),
        veto_windows: file["veto_windows"].as_u64().unwrap(),
        ..EvidenceConfig::default()
    });
    let cache = RadixCache::new(config).unwrap();
    let mut player = Player {
        cache,
        namespace: Namespace::default(),
        labels: BTreeMap::new(),
        users: BTreeMap::new(),
        paths: BTreeMap::new(),
    };
    for (step, op) in file["ops"].as_array().unwrap().iter().enumerate() {
        assert_eq!(player.play(op), op["expect"], "step {step}: {op}");
        player.cache.check().unwrap();
    }
    let end = file["public_at_end"].as_array().unwrap();
    assert!(!end.is_empty());
    for page in end {
        let path: Vec<u32> =
            page[0].as_array().unwrap().iter().map(|label| player.labels[label.as_str().unwrap()]).collect();
        let anyone = Access::of(&player.namespace);
        assert_eq!(player.cache.match_prefix(anyone, Tokens::from(&path)).public_pages, path.len());
    }
}
