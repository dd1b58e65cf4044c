//! The etcd that the tests of membership start: the distribution's.

use crate::context::Context;
use crate::process::probe;
use crate::python::apt_install;
use anyhow::Result;

/// Sees that there is an etcd, if that can be had.
pub(crate) fn install(context: &Context) -> Result<()> {
    let mut command = context.command("etcd");
    command.arg("--version");
    if probe(command).is_some() {
        return Ok(());
    }
    apt_install(context, &["etcd-server"])
}
