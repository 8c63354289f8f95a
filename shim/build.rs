//! Compiles the protocols without protoc: the shim's own, and for the tests the part of CRI that
//! they speak.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let own = ["ttrpc.proto", "task.proto", "events.proto", "metrics.proto"];
    let files = protox::compile(own, ["proto"])?;
    tonic_prost_build::configure().build_client(false).build_server(false).compile_fds(files)?;
    let files = protox::compile(["cri.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    Ok(())
}
