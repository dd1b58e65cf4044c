//! The spaces of this crate are those of SGLang's plugin, field by field.

use memkv_offload::{Attention, Dtype, EngineSpace, Layout, PageFormat, Rank};
use serde_json::Value;
use std::collections::BTreeMap;

fn number(engine: &Value, name: &str) -> Option<u64> {
    engine[name].as_u64()
}

fn size(engine: &Value, name: &str) -> usize {
    usize::try_from(number(engine, name).unwrap_or_else(|| panic!("{name} of {engine}"))).expect("a size")
}

fn rank(engine: &Value, kind: &str) -> Rank {
    let of = |what: &str, default: u64| number(engine, &format!("{kind}_{what}")).unwrap_or(default);
    let of = |what: &str, default: u64| u32::try_from(of(what, default)).expect("a small number");
    Rank { rank: of("rank", 0), size: of("size", 1) }
}

fn format(engine: &Value) -> PageFormat {
    let attention = match engine["kind"].as_str() {
        Some("mha") => {
            Attention::MultiHead { kv_heads: size(engine, "kv_heads"), head_dim: size(engine, "head_dim") }
        }
        _ => Attention::Latent {
            kv_lora_rank: size(engine, "kv_lora_rank"),
            qk_rope_head_dim: size(engine, "qk_rope_head_dim"),
        },
    };
    let dtype = match engine["dtype"].as_str() {
        Some("bfloat16") => Dtype::Bfloat16,
        Some("float16") => Dtype::Float16,
        Some("float32") => Dtype::Float32,
        Some("fp8_e4m3") => Dtype::Fp8E4m3,
        Some("fp8_e5m2") => Dtype::Fp8E5m2,
        other => panic!("{other:?}"),
    };
    let layouts = [Layout::LayerFirst, Layout::PageFirst, Layout::PageFirstDirect, Layout::PageHead];
    let layout = layouts.into_iter().find(|layout| Some(layout.name()) == engine["layout"].as_str());
    let layout = layout.expect("a layout of ours");
    let (layers, page_tokens) = (size(engine, "layers"), size(engine, "page_tokens"));
    PageFormat { layers, page_tokens, attention, dtype, layout }
}

#[test]
fn every_description_of_the_plugin_is_ours() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("vectors/spaces.json")).unwrap();
    assert_eq!(cases.len(), 43);
    for case in &cases {
        let engine = &case["engine"];
        let text = |name: &str| engine[name].as_str().unwrap_or_default().to_owned();
        let mut space = EngineSpace::new(&text("model"), format(engine));
        space.revision = text("revision");
        space.tag = text("tag");
        space.tp = rank(engine, "tp");
        space.pp = rank(engine, "pp");
        space.cp = rank(engine, "attn_cp");
        space.dcp = rank(engine, "dcp");
        let ours = space.describe().unwrap();
        let ours: BTreeMap<&str, &str> = ours.fields().collect();
        let theirs = case["fields"].as_object().unwrap();
        let theirs: BTreeMap<&str, &str> =
            theirs.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect();
        assert_eq!(ours, theirs, "{engine}");
    }
}

#[test]
fn ranks_that_do_not_exist_and_texts_that_are_too_long_are_refused() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("vectors/spaces.json")).unwrap();
    let mut space = EngineSpace::new("m", format(&cases[0]["engine"]));
    space.tp = Rank { rank: 2, size: 2 };
    assert!(space.describe().unwrap_err().to_string().contains("rank 2 of 2 tensor-parallel"));
    space.tp = Rank::default();
    space.tag = "x".repeat(5000);
    assert!(space.describe().is_err());
}
