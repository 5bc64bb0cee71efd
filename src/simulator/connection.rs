//! Connections that a handler can break: a listener whose sockets carry a switch.
//!
//! A web framework answers every request in good order, which is exactly what a peer in trouble does not do. Each
//! accepted socket is therefore wrapped, and a handler that holds the connection's [`Link`] can close it without an
//! answer ([`Link::cut`]) or have the kernel send a reset ([`Link::reset`]).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

const WHOLE: u8 = 0;
const CUT: u8 = 1;
const RESET: u8 = 2;

/// The switch of one connection. Clones act on the same connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Link(Arc<AtomicU8>);

impl Link {
    /// Closes the connection at the next write, without sending another byte.
    pub(super) fn cut(&self) {
        self.0.store(CUT, Ordering::Release);
    }

    /// As [`Link::cut`], but the peer gets a reset instead of an orderly end.
    pub(super) fn reset(&self) {
        self.0.store(RESET, Ordering::Release);
    }

    fn state(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }
}

impl Connected<IncomingStream<'_, Breakable>> for Link {
    fn connect_info(stream: IncomingStream<'_, Breakable>) -> Self {
        stream.io().link.clone()
    }
}

/// A listener whose connections can be broken by their [`Link`].
#[derive(Debug)]
pub(super) struct Breakable(pub(super) TcpListener);

impl Listener for Breakable {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.0).await;
        // Answers are small and complete: waiting for more to send would only add latency to every measurement.
        let _ = stream.set_nodelay(true);
        (Wire { stream, link: Link::default() }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// One accepted socket with its switch.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    link: Link,
}

impl Wire {
    fn check(&self) -> io::Result<()> {
        match self.link.state() {
            WHOLE => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut on request")),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.link.state() == RESET {
            // Failing to set it leaves an orderly end, which is the other way to break a connection.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.link.state() == RESET {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
