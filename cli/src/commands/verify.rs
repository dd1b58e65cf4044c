//! `verify`: lets every server compare its pages with their checksums.

use crate::failure::{Code, Failure};
use crate::fleet::Fleet;
use crate::output::Output;
use crate::render;
use crate::selector::Selector;
use crate::view::storage::Verified;
use memkv_client::v1;

pub(crate) async fn run(
    fleet: &Fleet,
    output: &Output,
    space: Option<&str>,
    bytes_per_second: u64,
) -> Result<(), Failure> {
    let space_id = match space {
        Some(space) => fleet.find_space_id(&Selector::parse(space)?).await?.0.to_vec(),
        None => Vec::new(),
    };
    let bar = output.bytes_bar("verify");
    let servers = fleet.verify(&v1::VerifyRequest { space_id, bytes_per_second }, &bar).await;
    bar.finish_and_clear();
    let quarantined = servers.iter().map(|server| server.quarantined).sum();
    let verified = Verified { servers, quarantined };
    output.show(&verified, render::storage::verified)?;
    let failed: Vec<_> = verified.servers.iter().filter(|server| server.error.is_some()).collect();
    for server in &failed {
        let error = server.error.as_deref().unwrap_or_default();
        output.say(&format!("warning: {}: {error}", server.server));
    }
    if quarantined > 0 {
        let pages = crate::units::plural(quarantined, "page");
        return Err(Failure::new(Code::Negative, format!("{pages} did not match and were quarantined"))
            .hint("`memkv-cli inspect server ID` shows which; look at that machine's memory and drives"));
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Code::Unreachable, "not all servers were checked")
        .hint("`memkv-cli doctor` looks at each one"))
}
