//! What the tests between hosts take besides the kernel: the tools for namespaces and for filtering packets.

use crate::context::Context;
use crate::process::probe;
use crate::python::apt_install;
use anyhow::Result;

/// The tools, and the packages of Debian that have them.
const TOOLS: [(&str, &str, &str); 2] = [("ip", "-V", "iproute2"), ("nft", "--version", "nftables")];

/// Sees that the tools are there, if they can be had.
pub(crate) fn install(context: &Context) -> Result<()> {
    for (tool, question, package) in TOOLS {
        let mut command = context.command(tool);
        command.arg(question);
        if probe(command).is_none() {
            apt_install(context, &[package])?;
        }
    }
    Ok(())
}
