//! Compiles the `.proto` files without `protoc`.

use prost::Message as _;
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from("proto");
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile([root.join("memkv/v1/memkv.proto")], [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("memkv_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".memkv.v1.GetResponse.data")
        .bytes(".memkv.v1.PutRequest.data")
        .compile_fds(descriptors)?;
    Ok(())
}
