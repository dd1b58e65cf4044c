//! Long work of one server, which tells how far it is: drains and checks of all pages.

use crate::Error;
use crate::client::Inner;
use crate::client::Shared;
use crate::control::error_of;
use crate::server::Server;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Response, Status, Streaming};

/// Steps that wait for the caller.
const QUEUE: usize = 4;
/// Longest time that one call listens; the work itself may take longer.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Hears the steps of the call that `begin` makes, one after the other, until there are no more; the last one is
/// returned. Dropping the future ends the listening.
///
/// # Errors
///
/// [`crate::ErrorKind::BadInput`] if no server has that id; else what the server says, or that it does not answer.
pub(crate) async fn hear<T, F>(
    inner: &Inner,
    server_id: &str,
    begin: impl FnOnce(Arc<Shared>, Arc<Server>) -> F,
    mut progress: impl FnMut(&T),
) -> Result<T, Error>
where
    T: Default + Send + 'static,
    F: Future<Output = Result<Result<Response<Streaming<T>>, Status>, Error>> + Send + 'static,
{
    inner.check()?;
    let call = begin(inner.shared.clone(), inner.server(server_id)?);
    let (tell, mut told) = mpsc::channel(QUEUE);
    let task = inner.handle.spawn(async move {
        let mut steps = call.await?.map_err(|status| error_of(&status))?.into_inner();
        while let Some(step) = steps.message().await.map_err(|status| error_of(&status))? {
            if tell.send(step).await.is_err() {
                break; // The caller has gone.
            }
        }
        Ok(())
    });
    let mut last = T::default();
    while let Some(step) = told.recv().await {
        progress(&step);
        last = step;
    }
    task.await.unwrap_or_else(|_| Err(crate::client::closed()))?;
    Ok(last)
}
