//! Traces of requests.

#[path = "../../../bench/src/simulate/trace.rs"]
#[allow(dead_code, unreachable_pub, reason = "the benchmarks' own reader, of which a part is tried here")]
mod reader;

use reader::Trace;

pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match Trace::parse(text) {
        Ok(trace) => {
            assert!(!trace.requests.is_empty(), "a trace has requests");
            let blocks = trace.requests.iter().flat_map(|request| &request.blocks);
            assert!(blocks.clone().all(|block| (*block as usize) < trace.ids.len()), "a block has an id");
            let ordered = trace.requests.is_sorted_by_key(|request| request.now);
            assert!(ordered, "time does not run backwards");
        }
        Err(error) => assert!(!error.to_string().is_empty(), "a refusal has a text"),
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let two = concat!(
        r#"{"timestamp": 27482, "input_length": 1200, "output_length": 10, "hash_ids": [46, 47, 48]}"#,
        "\n",
        r#"{"timestamp": 30000.5, "input_length": 600, "hash_ids": [46, 2353]}"#,
        "\n"
    );
    vec![
        two.into(),
        br#"{"timestamp": 1e300, "input_length": 18446744073709551615, "hash_ids": []}"#.to_vec(),
        b"\n\n".to_vec(),
        br#"{"timestamp": -1, "input_length": 1, "hash_ids": [1, 1]}"#.to_vec(),
    ]
}
