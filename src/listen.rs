//! Serves a router on a listener: bounded connections, a limit on slow headers, and a stop that loses no answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::shutdown::Shutdown;

/// Connections served at a time; more wait in the operating system's backlog. Each may hold a body of 1 MiB, so this
/// also bounds the memory of requests being read.
const MAX_CONNECTIONS: usize = 1024;

/// A client that has not sent its whole header by then is cut off; so is one that keeps an idle connection.
const HEADER_LIMIT: Duration = Duration::from_secs(30);

/// Pause after a failed `accept`, which means that the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the soft stop, then finishes the requests in flight until the hard stop.
///
/// # Errors
/// When the listener is unusable; a connection that fails is its own affair.
pub async fn serve(listener: TcpListener, router: Router, shutdown: Shutdown) -> io::Result<()> {
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let start = |stream: TcpStream, slot: Option<OwnedSemaphorePermit>| {
        // Answers are small and written at once: waiting to fill a packet only delays them.
        let _ = stream.set_nodelay(true);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_LIMIT)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
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
    // be reset with the listener. Their number is bounded by the system's backlog.
    let listener = listener.into_std()?;
    while let Ok((stream, _)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            start(stream, None);
        }
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = shutdown.hard() => tracing::warn!("requests in flight were cut off at the end of the grace period"),
    }
    Ok(())
}
