//! Emptying a server: asks it to copy its pages to the others, and hears how far it is.

use crate::control::{admin_client, error_of, request};
use crate::{Client, Error, ErrorKind};
use memkv_proto::v1;
use std::time::Duration;
use tokio::sync::mpsc;

/// Progress that waits for the caller.
const QUEUE: usize = 4;
/// Longest time that one call listens; the drain itself may take longer.
const TIME_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

impl Client {
    /// Begins a drain of one server, shows it, or cancels it. `progress` is called about twice a second; the last
    /// answer is returned. Dropping the future ends the listening only: the drain goes on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BadInput`] if no server has that id; else what the server says, or that it does not answer.
    pub async fn drain(
        &self,
        server_id: &str,
        drain: v1::DrainRequest,
        mut progress: impl FnMut(&v1::DrainProgress),
    ) -> Result<v1::DrainProgress, Error> {
        self.inner.check()?;
        let server = self.inner.server(server_id)?;
        let shared = self.inner.shared.clone();
        let (tell, mut hear) = mpsc::channel(QUEUE);
        let task = self.inner.handle.spawn(async move {
            let request = request(&shared, "/memkv.v1.Admin/Drain", drain, TIME_MAX)?;
            let answer = admin_client(&server).drain(request).await.map_err(|status| error_of(&status))?;
            let mut steps = answer.into_inner();
            while let Some(step) = steps.message().await.map_err(|status| error_of(&status))? {
                if tell.send(step).await.is_err() {
                    break; // The caller has gone.
                }
            }
            Ok(())
        });
        let mut last = v1::DrainProgress::default();
        while let Some(step) = hear.recv().await {
            progress(&step);
            last = step;
        }
        task.await.unwrap_or_else(|_| Err(crate::client::closed()))?;
        if last.done {
            return Ok(last);
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the server ended before the drain did; start it again, and drain it again",
        ))
    }
}
