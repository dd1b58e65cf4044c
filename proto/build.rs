//! Compiles the `.proto` files without `protoc`.

use prost::Message as _;
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from("proto");
    println!("cargo:rerun-if-changed=proto");
    let files = ["memkv/v1/memkv.proto", "memkv/v1/admin.proto"].map(|file| root.join(file));
    let descriptors = protox::compile(files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("memkv_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".memkv.v1.GetResponse.data")
        .bytes(".memkv.v1.PutRequest.data")
        .compile_fds(descriptors)?;
    Ok(())
}
