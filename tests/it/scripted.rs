//! A server that answers each request with the bytes a test wants, proper or not: cut bodies, silence, no TLS.

use std::future::Future;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use url::Url;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `GET /path?query`.
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn is_token(&self) -> bool {
        self.line.ends_with("/oauth2/v2.0/token")
    }
}

/// What becomes of the connection.
pub enum Reply {
    /// These bytes, then it is closed.
    Bytes(Vec<u8>),
    /// These bytes, then silence.
    Stall(Vec<u8>),
    /// Silence for ever.
    Hang,
}

/// A proper answer.
pub fn answer(status: u16, body: impl AsRef<[u8]>) -> Reply {
    answer_with(status, "content-type: application/json\r\n", body)
}

/// A proper answer with more headers; each ends with a line break.
pub fn answer_with(status: u16, headers: &str, body: impl AsRef<[u8]>) -> Reply {
    let body = body.as_ref();
    let head =
        format!("HTTP/1.1 {status} Text\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    Reply::Bytes([head.as_bytes(), body].concat())
}

/// An answer that announces more than it holds.
pub fn cut_answer(status: u16, body: &str) -> Reply {
    Reply::Bytes(format!("HTTP/1.1 {status} Text\r\ncontent-length: {}\r\n\r\n{body}", body.len() + 100).into_bytes())
}

/// A file of the contract's examples.
pub fn example(name: &str) -> String {
    let path = format!("{}/tests/data/defender/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The server; it ends when it is dropped.
pub struct Scripted {
    pub url: Url,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Scripted {
    pub async fn start<F: Future<Output = Reply> + Send>(
        script: impl Fn(Seen) -> F + Send + Sync + 'static,
    ) -> Scripted {
        Scripted::serve(script, None).await
    }

    /// With a certificate that nobody trusts.
    pub async fn start_tls<F: Future<Output = Reply> + Send>(
        script: impl Fn(Seen) -> F + Send + Sync + 'static,
    ) -> Scripted {
        let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        Scripted::start_tls_as(script, &certified.cert, &certified.signing_key).await
    }

    /// With this certificate.
    pub async fn start_tls_as<F: Future<Output = Reply> + Send>(
        script: impl Fn(Seen) -> F + Send + Sync + 'static,
        certificate: &rcgen::Certificate,
        key: &rcgen::KeyPair,
    ) -> Scripted {
        let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Scripted::serve(script, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn serve<F: Future<Output = Reply> + Send>(
        script: impl Fn(Seen) -> F + Send + Sync + 'static,
        tls: Option<TlsAcceptor>,
    ) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap()).parse().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (script, log) = (Arc::new(script), Arc::clone(&seen));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (script, log, tls) = (Arc::clone(&script), Arc::clone(&log), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => converse(stream, &*script, &log).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                converse(stream, &*script, &log).await;
                            }
                        }
                    }
                });
            }
        });
        Scripted { url, seen, _tasks: tasks }
    }

    /// All requests so far, tokens included.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The requests for tokens, and the others.
    pub fn counts(&self) -> (usize, usize) {
        let seen = self.seen();
        let tokens = seen.iter().filter(|seen| seen.is_token()).count();
        (tokens, seen.len() - tokens)
    }
}

async fn converse<F: Future<Output = Reply> + Send>(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: &(impl Fn(Seen) -> F + Send + Sync),
    log: &Mutex<Vec<Seen>>,
) {
    let Some(request) = read_request(&mut stream).await else { return };
    log.lock().unwrap().push(request.clone());
    match script(request).await {
        Reply::Bytes(bytes) => {
            // The other side may have gone already; that is what some tests are about.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
        Reply::Stall(bytes) => {
            let _ = stream.write_all(&bytes).await;
            std::future::pending().await
        }
        Reply::Hang => std::future::pending().await,
    }
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Seen> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let mut lines = head.split("\r\n");
            let line = lines.next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
            let headers: Vec<_> = lines
                .map(|line| line.split_once(": ").unwrap())
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect();
            let length =
                headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, n)| n.parse().unwrap());
            let mut body = bytes.split_off(end + 4);
            let had = body.len();
            body.resize(length, 0);
            stream.read_exact(&mut body[had..]).await.ok()?;
            return Some(Seen { line, headers, body: String::from_utf8(body).unwrap() });
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}
