//! HTTP for one connection of a guest. The guest is hostile: heads, headers and time have bounds.

use super::streams::{Held, Streams};
use crate::routes::guest::{of, Guest};
use hyper::server::conn::http1;
use hyper::service::{service_fn, Service};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Bytes of a head, and of what is read at once.
const HEAD_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// How long a head may take, and a connection be idle between two requests.
const HEAD: Duration = Duration::from_secs(30);
/// How long a connection may be there: a checkpoint with much memory fits.
const CONNECTION: Duration = Duration::from_secs(600);
/// How long a guest may take to take the last of an answer.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves a connection to its end.
pub async fn serve(streams: Arc<Streams>, id: u32, guest: Arc<Guest>) {
    let held = Held::new(streams, id);
    let (over, answered) = watch::channel(());
    let router = TowerToHyperService::new(of(&guest));
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(answered.clone());
        router.call(request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        // A client may end its direction and still wait for the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(held.stream()), service);
    // How it ended is the guest's business.
    let _ = tokio::time::timeout(CONNECTION, serving).await;
    let _ = tokio::time::timeout(DRAIN, held.drain()).await;
    drop(over);
}
