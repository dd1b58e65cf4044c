//! The 17 cases of page keys that SGLang agrees with.

use crate::{Digest, Namespace, PageChain, Shape, TokenBuf};
use serde_json::Value;

fn digest(text: &str) -> Digest {
    Digest(hex::decode(text).unwrap().try_into().unwrap())
}

#[test]
fn all_cases_of_page_keys() {
    let file: Value =
        serde_json::from_str(include_str!("../../tests/vectors/sglang_page_hash.json")).unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 17);
    for case in cases {
        let name = &case["name"];
        let tokens: Vec<u64> =
            case["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap()).collect();
        let page = case["page_size"].as_u64().unwrap() as usize;
        let bigram = case["bigram"].as_bool().unwrap();
        let shape = Shape::new(page, bigram).unwrap();
        let namespace = Namespace::new(case["extra_key"].as_str(), case["cache_salt"].as_str()).unwrap();
        let given = case["prior_hex"].as_str().map(digest);
        let prior = namespace.seed().or(given);
        assert_eq!(prior, given, "{name}");
        let tokens = TokenBuf::from_wide(&tokens);
        let tokens = tokens.as_tokens();
        let full = case["full_pages"].as_u64().unwrap() as usize;
        let hashes: Vec<Digest> = case["page_hashes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|hash| digest(hash.as_str().unwrap()))
            .collect();
        let mut chain = PageChain::new(shape, prior);
        let mut found = chain.whole_pages(tokens);
        assert_eq!(found.len(), full, "{name}");
        if full < hashes.len() {
            found.push(chain.next(tokens.slice(full * page..tokens.len())));
        }
        assert_eq!(found, hashes, "{name}");
        let ids: Vec<i64> = found.iter().map(Digest::event_id).collect();
        let expected: Vec<i64> =
            case["event_ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
        assert_eq!(ids, expected, "{name}");
    }
}

#[test]
fn salts_of_owners_cannot_be_taken_by_requests() {
    let plain = Namespace::new(None, None).unwrap();
    let owner = crate::UserId(7);
    assert!(Namespace::new(None, Some(&plain.owner_salt(owner))).is_err());
    assert!(Namespace::new(Some("memkv-owner-v1/"), None).is_ok());
    let tenant = Namespace::new(None, Some("-/0")).unwrap();
    assert_ne!(plain.owner_seed(owner), tenant.owner_seed(owner));
    assert_ne!(plain.owner_seed(owner), plain.owner_seed(crate::UserId(8)));
}
