//! One function for each command.

mod drain;
mod inspect;
mod keys;
mod pages;
mod ping;
mod pins;
mod tenant;
mod verify;

use crate::args::{Cli, Command};
use crate::failure::Failure;
use crate::fleet::Fleet;
use crate::output::Output;
use crate::{doctor, reference};

/// Does what the command line says.
pub(crate) async fn execute(cli: Cli) -> Result<(), Failure> {
    let output = Output::new(cli.global.json);
    match cli.command {
        // These two look at the configuration themselves, or need none.
        Command::Doctor { subject } => return doctor::run(subject, &cli.global, &output).await,
        Command::Tenant { ref action } if !tenant::asks_servers(action) => {
            return tenant::change(action, &output);
        }
        Command::Reference { document } => return output.write(reference::document(document).as_bytes()),
        _ => {}
    }
    let fleet = Fleet::connect(&cli.global).await?;
    let outcome = on_fleet(cli.command, &fleet, &output).await;
    fleet.close().await;
    outcome
}

async fn on_fleet(command: Command, fleet: &Fleet, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Inspect { subject } => inspect::run(subject, fleet, output).await,
        Command::Get { space, key, output: file } => pages::get(fleet, output, &space, &key, &file).await,
        Command::Put { space, key, input } => pages::put(fleet, output, &space, &key, &input).await,
        Command::Exists { space, keys } => keys::exists(fleet, output, &space, &keys).await,
        Command::Rm { space, keys } => keys::remove(fleet, output, &space, &keys).await,
        Command::Ls { space, prefix, limit, server } => {
            keys::list(fleet, output, &space, prefix.as_deref(), limit, server.as_deref()).await
        }
        Command::Clear { space, yes } => keys::clear(fleet, output, &space, yes).await,
        Command::Pin { keys, space, ttl } => pins::pin(fleet, output, &space, &keys, ttl).await,
        Command::Unpin { keys, all: _, space } => pins::unpin(fleet, output, &space, &keys).await,
        Command::Pins => pins::list(fleet, output).await,
        Command::Verify { space, rate } => verify::run(fleet, output, space.as_deref(), rate).await,
        Command::Drain(wanted) => drain::run(fleet, output, wanted).await,
        Command::Tenant { .. } => tenant::list(fleet, output).await,
        Command::Ping { count } => ping::run(fleet, output, count).await,
        Command::Doctor { .. } | Command::Reference { .. } => Ok(()),
    }
}
