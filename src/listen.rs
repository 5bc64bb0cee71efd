//! Serves a router on a listener: bounded connections, a limit on slow headers, and a stop that loses no answer.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::shutdown::Shutdown;

/// Connections served at a time; more wait in the operating system's backlog. Each may hold a body of 1 MiB, so this
/// also bounds the memory of requests being read.
const MAX_CONNECTIONS: usize = 1024;

/// The most connections that the system holds back until they are accepted: what the runtime asks for.
const BACKLOG: usize = 1024;

/// A client that has not sent its whole header by then is cut off; so is one that keeps an idle connection.
const HEADER_LIMIT: Duration = Duration::from_secs(30);

/// How long connections are kept after the soft stop although no request has come on them yet: for their clients they are
/// made, and the first request may be on its way.
const LATE_REQUEST: Duration = Duration::from_millis(500);

/// Pause after a failed `accept`, which means that the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the soft stop, then finishes the requests in flight until the hard stop.
///
/// # Errors
/// When the listener is unusable; a connection that fails is its own affair.
pub async fn serve(listener: TcpListener, router: Router, shutdown: Shutdown) -> io::Result<()> {
    let connections = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let start = |stream: TcpStream, slot: Option<OwnedSemaphorePermit>| {
        // Answers are small and written at once: waiting to fill a packet only delays them.
        let _ = stream.set_nodelay(true);
        let (router, shutdown) = (router.clone(), shutdown.clone());
        connections.spawn(async move {
            if let Err(error) = serve_one(stream, router, shutdown).await {
                tracing::debug!(error = %error, "a connection ended early");
            }
            drop(slot);
        });
    };
    loop {
        let accepted = tokio::select! {
            () = shutdown.begun() => break,
            accepted = async {
                let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
                listener.accept().await.map(|(stream, _)| (stream, slot))
            } => accepted,
        };
        match accepted {
            Ok((stream, slot)) => start(stream, Some(slot)),
            Err(error) => {
                tracing::warn!(error = %error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // For their clients the connections that wait to be accepted are made, with requests in them perhaps. They would
    // be reset with the listener. More than the system holds back are new ones, which may be refused.
    let listener = listener.into_std()?;
    for _ in 0..BACKLOG {
        let Ok((stream, _)) = listener.accept() else { break };
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            start(stream, None);
        }
    }
    drop(listener);
    connections.close();
    tokio::select! {
        () = connections.wait() => {}
        () = shutdown.hard() => tracing::warn!("requests in flight were cut off at the end of the grace period"),
    }
    Ok(())
}

/// Serves one connection, whose requests know the peer's address: after the soft stop the request in flight and, for a moment, one that is on its way.
///
/// The library's own graceful end closes a connection on which it has not read anything, even when a request waits to
/// be read.
async fn serve_one(stream: TcpStream, router: Router, shutdown: Shutdown) -> hyper::Result<()> {
    let peer = stream.peer_addr().ok().map(ConnectInfo);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let late = async {
        shutdown.begun().await;
        tokio::time::sleep(LATE_REQUEST).await;
    };
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = late => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
