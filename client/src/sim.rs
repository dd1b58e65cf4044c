//! Clients on a simulated network, for `memkv-sim`.
//!
//! Such a client has no thread of its own: its background tasks run on the runtime it was made in, and sockets are those
//! of [`memkv_transport::sim`]. Everything else is the code of every client. Blocking use is not possible.

use crate::attach::{Attacher, broken};
use crate::client::{Inner, Shared, settle};
use crate::config::Transport;
use crate::exchange::{Batch, Exchange, Step};
use crate::link::Link;
use crate::mover::Bound;
use crate::wire::Wire;
use crate::{Client, Config, Error, ErrorKind, ServerAddress, discovery};
use hyper_util::rt::TokioIo;
use memkv_discovery::Source;
use memkv_transport::sim::{Net, Socket};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Uri};

impl Client {
    /// Like [`Client::connect`], on a simulated network and on the present runtime.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`]; [`ErrorKind::Config`] for transports without sockets.
    pub async fn connect_simulated(config: Config, net: Arc<dyn Net>) -> Result<Self, Error> {
        if !matches!(config.transport, Transport::Tcp | Transport::Grpc) {
            let text = "a simulated network has sockets only; set transport to tcp or grpc";
            return Err(Error::new(ErrorKind::Config, text));
        }
        let shared = Shared::new(settle(config)?, None);
        shared.net.get_or_init(|| net);
        let inner = Inner::run_on(shared, Handle::current(), None)?;
        Self::answered(inner).await
    }

    /// Follows a source of members from now on, whose epochs servers see too.
    pub async fn follow_members(&self, source: Box<dyn Source>) {
        let deadline = Instant::now() + self.inner.shared.config.connect_timeout;
        // Until a list comes, the members of the configuration stay.
        let _came = discovery::begin(&self.inner, source, true, deadline).await;
    }
}

/// A channel that connects over the simulated network.
pub(crate) fn channel(endpoint: &Endpoint, net: &Arc<dyn Net>, address: &ServerAddress) -> Channel {
    let (net, host, port) = (net.clone(), address.host.clone(), address.port);
    let connect = move |_: Uri| {
        let dialled = net.dial(&host, port);
        async move { dialled.await.map(TokioIo::new) }
    };
    endpoint.connect_with_connector_lazy(tower::service_fn(connect))
}

/// Opens a data connection; with `ping`, sees whether the server answers a request on it.
pub(crate) async fn attach(attacher: &Attacher, ping: bool) -> Result<Box<Link>, Error> {
    let net = attacher.server.net.get().expect("whoever calls this has looked");
    let mut stream = net.dial(&attacher.host, attacher.port).await.map_err(broken)?;
    attacher.join(&mut stream).await?;
    if ping {
        attacher.ping(&mut stream).await?;
    }
    Ok(attacher.link(Wire::Sim(Socket::new(stream)), Bound::None))
}

/// Advances an exchange whose socket is simulated, until it is done or waits.
pub(crate) fn poll_exchange(
    cx: &mut Context<'_>,
    batch: &mut Batch<'_>,
    exchange: &mut Exchange,
) -> Poll<()> {
    loop {
        if exchange.advance(batch) == Step::Done {
            return Poll::Ready(());
        }
        let Step::Wait { write } = exchange.step() else { return Poll::Ready(()) };
        let current = exchange.lease().shared_link().stream().clone();
        let Wire::Sim(socket) = &*current else {
            // The connection was replaced by a real one, which the caller knows to wait for.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        };
        let readable = socket.poll_readable(cx).is_ready();
        let writable = write && socket.poll_writable(cx).is_ready();
        if !readable && !writable {
            return Poll::Pending;
        }
    }
}
