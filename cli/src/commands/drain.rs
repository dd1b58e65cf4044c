//! `drain`: empties a server into the others.

use crate::failure::{Code, Failure};
use crate::fleet::Fleet;
use crate::output::Output;
use crate::units::{bytes, count, duration, percent, ratio};
use crate::view::drain::Drain;
use crate::{args, render};
use memkv_client::v1;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// How often progress is said where no bar can be drawn.
const SAY_EVERY: Duration = Duration::from_secs(2);

pub(crate) async fn run(fleet: &Fleet, output: &Output, wanted: args::Drain) -> Result<(), Failure> {
    let id = fleet.find_server(&wanted.server)?;
    let request = if wanted.cancel {
        v1::DrainRequest { action: v1::DrainAction::Cancel.into(), ..Default::default() }
    } else if wanted.status {
        v1::DrainRequest { action: v1::DrainAction::Show.into(), ..Default::default() }
    } else {
        start(fleet, output, &id, wanted.rate).await?
    };
    let bar = output.bytes_bar("drain");
    let bare = !std::io::stderr().is_terminal();
    let mut said = Instant::now();
    let told = |step: &v1::DrainProgress| {
        bar.set_length(step.total_bytes.max(step.bytes));
        bar.set_position(step.bytes);
        if bare && !step.done && said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            output.say(&line(step));
        }
    };
    let answer = if wanted.status {
        fleet.drain_now(&id, request).await
    } else {
        fleet.drain(&id, request, told).await
    };
    bar.finish_and_clear();
    let drain = Drain::new(&id, answer?);
    output.show(&drain, render::drain::drain)?;
    if wanted.cancel || wanted.status || drain.state == "drained" {
        return Ok(());
    }
    let why = drain.error.clone().unwrap_or_else(|| format!("the server is {}", drain.state));
    Err(Failure::new(Code::Negative, format!("{id} is not drained: {why}")).hint(format!(
        "`memkv-cli drain {id}` tries again, `memkv-cli drain {id} --cancel` lets it take pages again"
    )))
}

/// The request that names the servers which stay.
async fn start(fleet: &Fleet, output: &Output, id: &str, rate: u64) -> Result<v1::DrainRequest, Failure> {
    let mut members = Vec::new();
    for (address, state) in fleet.states().await {
        if address.id == id {
            continue;
        }
        match state {
            Ok(v1::ServerState::Draining | v1::ServerState::Drained) => {
                output.say(&format!("{} is being drained too, and gets no pages", address.id));
                continue;
            }
            // It may be back soon; until then its pages go to the next in their order.
            Err(error) => output.say(&format!("warning: {} does not answer: {error}", address.id)),
            Ok(_) => {}
        }
        members.push(v1::DrainMember {
            id: address.id,
            host: address.host,
            port: address.port.into(),
            weight: address.weight,
        });
    }
    if members.is_empty() {
        return Err(Failure::new(Code::Usage, format!("there is no other server to take the pages of {id}"))
            .hint("name all servers of the cluster with --servers, MEMKV_SERVERS or MEMKV_DISCOVERY"));
    }
    Ok(v1::DrainRequest {
        action: v1::DrainAction::Start.into(),
        members,
        bytes_per_second: rate,
        copies: u32::try_from(fleet.config().replicas).unwrap_or(u32::MAX),
    })
}

/// How far it is, in a line.
fn line(step: &v1::DrainProgress) -> String {
    let left = if step.left_ms > 0 { format!(", {} left", duration(step.left_ms)) } else { String::new() };
    format!(
        "{} of {} pages ({}), {} of {}, {}/s{left}",
        count(step.pages),
        count(step.total_pages),
        percent(ratio(step.bytes, step.total_bytes)),
        bytes(step.bytes),
        bytes(step.total_bytes),
        bytes(step.bytes_per_second)
    )
}
