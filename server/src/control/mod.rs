//! The control plane: the services of `memkv.v1`, health and reflection, over gRPC.
//!
//! Pages that pass through here are copied into protobuf; the data plane exists so that they need not.

mod admin;
mod body;
mod drain;
mod gate;
mod kv;
mod pins;
mod session;
pub(crate) mod status;
mod tiers;
mod verify;

use crate::node::Node;
use axum::middleware::from_fn_with_state;
use gate::Gate;
use memkv_proto::v1;
use std::sync::Arc;
use std::time::Duration;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

/// Streams that one gRPC connection may have open.
const STREAMS_MAX: u32 = 256;
/// How often an idle gRPC connection is asked whether it is alive, and how long it has to answer.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Largest message: the most keys of a request, or a large piece of a page, and the framing around them.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Flow-control windows, bytes.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Largest frame that a client may send: pages come in few large ones, not in 16 KiB each.
const FRAME_BYTES: u32 = 1 << 20;
/// Largest list of headers, bytes.
const HEADERS_MAX: u32 = 16 << 10;

/// Names of the services whose health is reported, beside the server's as a whole.
const SERVICES: [&str; 4] = ["", "memkv.v1.Session", "memkv.v1.Kv", "memkv.v1.Admin"];

/// How the gRPC server treats its connections.
pub(crate) fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .http2_max_header_list_size(HEADERS_MAX)
}

/// All services, behind the check of per-call credentials.
pub(crate) async fn routes(node: &Arc<Node>) -> (Routes, HealthReporter) {
    let (reporter, health) = tonic_health::server::health_reporter();
    report(&reporter, tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(memkv_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors were compiled together with the services");
    let kv = v1::kv_server::KvServer::new(kv::KvService::new(Arc::clone(node)));
    let admin = v1::admin_server::AdminServer::new(admin::AdminService::new(Arc::clone(node)));
    let session = v1::session_server::SessionServer::new(session::SessionService::new(Arc::clone(node)));
    let services = Routes::new(session)
        .add_service(kv.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(admin.max_encoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(health)
        .add_service(reflection);
    let gate = Arc::new(Gate::new(Arc::clone(node)));
    let guarded = services.into_axum_router().layer(from_fn_with_state(gate, gate::check));
    (Routes::from(guarded), reporter)
}

/// Tells health watchers what the server is doing.
pub(crate) async fn report(reporter: &HealthReporter, status: tonic_health::ServingStatus) {
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

/// Whether a session may begin with this message.
#[cfg(feature = "fuzzing")]
pub(crate) fn is_acceptable(hello: &v1::Hello) -> bool {
    session::check_hello(hello).is_ok()
}
