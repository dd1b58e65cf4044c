//! The guided search: libFuzzer over the target that `MEMKV_FUZZ_TARGET` names. `cargo xtask fuzz` builds and starts it.

#![no_main]

use memkv_fuzz::Target;
use std::sync::OnceLock;

fn chosen() -> &'static Target {
    static CHOSEN: OnceLock<&'static Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("MEMKV_FUZZ_TARGET").expect("cargo xtask fuzz names the target");
        memkv_fuzz::target(&name).expect("cargo xtask fuzz names a target that exists")
    })
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| (chosen().run)(input));
