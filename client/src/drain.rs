//! Emptying a server: asks it to copy its pages to the others, and hears how far it is.

use crate::client::Shared;
use crate::control::{admin_client, request};
use crate::progress::{TIME_MAX, hear};
use crate::server::Server;
use crate::{Client, Error, ErrorKind};
use memkv_proto::v1;
use std::sync::Arc;

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
        progress: impl FnMut(&v1::DrainProgress),
    ) -> Result<v1::DrainProgress, Error> {
        let begin = |shared: Arc<Shared>, server: Arc<Server>| async move {
            let request = request(&shared, "/memkv.v1.Admin/Drain", drain, TIME_MAX)?;
            Ok(admin_client(&server).drain(request).await)
        };
        let last = hear(&self.inner, server_id, begin, progress).await?;
        if last.done {
            return Ok(last);
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the server ended before the drain did; start it again, and drain it again",
        ))
    }
}
