//! A small HTTP client for the suites: TLS with one CA or plain, HTTP/1.1 or HTTP/2, in a network namespace.
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue};
use http::{Request, Response, Uri, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::eventually::slowness_factor;
use crate::netns::Netns;
use crate::pki::{self, Identity};
use crate::worker::{Spawner, Worker};

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct Options {
    /// `https://HOST:PORT` or `http://HOST:PORT`.
    pub url: String,
    /// The authority to trust, PEM.
    pub ca_pem: String,
    pub token: Option<String>,
    pub identity: Option<Identity>,
    /// ALPN protocols: `h2`, `http/1.1`; both by default.
    pub alpn: Vec<&'static str>,
    /// The network namespace it dials from.
    pub netns: Option<Netns>,
    /// Limit for a response's head, and again for its whole body.
    pub timeout: Duration,
    /// One connection for all requests, or (`false`) a fresh one each.
    pub keep: bool,
}

impl Options {
    /// For this server, trusting this authority (`""` for plain HTTP), with a token or without.
    #[must_use]
    pub fn new(url: &str, ca_pem: &str, token: Option<&str>) -> Options {
        Options {
            url: url.trim_end_matches('/').to_owned(),
            ca_pem: ca_pem.to_owned(),
            token: token.map(str::to_owned),
            identity: None,
            alpn: vec!["h2", "http/1.1"],
            netns: None,
            timeout: Duration::from_secs(10) * slowness_factor(),
            keep: false,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: Version,
    /// The server certificate's subject as OpenSSL writes it, `""` without TLS.
    pub subject: String,
    /// From the request to the end of the body.
    pub took: Duration,
}

impl Answer {
    /// A header's value, `""` when it is absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, `null` when it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

type Ask = Request<Full<Bytes>>;

enum Sender {
    H1(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    H2(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

struct Inner {
    options: Options,
    authority: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    spawner: Spawner,
    kept: tokio::sync::Mutex<Option<(Sender, String)>>,
}

/// A client. It has a thread of its own, in its namespace.
pub struct Client {
    inner: Arc<Inner>,
    worker: Arc<Worker>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("url", &self.inner.options.url)
            .field("worker", &self.worker)
            .finish()
    }
}

impl Client {
    /// Makes a client; nothing is dialled yet.
    pub fn new(options: Options) -> anyhow::Result<Client> {
        let uri: Uri = options
            .url
            .parse()
            .with_context(|| format!("{} is no URL", options.url))?;
        let authority = uri.authority().context("a URL without a host")?.to_string();
        let tls = match uri.scheme_str() {
            Some("https") => {
                let host = uri
                    .host()
                    .unwrap_or_default()
                    .trim_matches(['[', ']'])
                    .to_owned();
                Some((
                    TlsConnector::from(Arc::new(tls_config(&options)?)),
                    ServerName::try_from(host)?,
                ))
            }
            _ => None,
        };
        let worker = Worker::start("client", options.netns.as_ref())?;
        let spawner = worker.spawner().clone();
        let inner = Inner {
            options,
            authority,
            tls,
            spawner,
            kept: tokio::sync::Mutex::default(),
        };
        Ok(Client {
            inner: Arc::new(inner),
            worker: Arc::new(worker),
        })
    }

    /// GETs a path; blocks.
    pub fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.send(Request::get(path).body(Vec::new())?)
    }

    pub fn send_json(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Answer> {
        let content_type = if method == "PATCH" {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type);
        self.send(request.body(serde_json::to_vec(body)?)?)
    }

    /// Sends a request whose URI is a path; blocks until the whole answer is there.
    pub fn send(&self, request: Request<Vec<u8>>) -> anyhow::Result<Answer> {
        let inner = Arc::clone(&self.inner);
        self.worker
            .spawner()
            .block_on(async move { inner.send_and_collect(request).await })
    }

    /// The same, for callers in async code.
    pub async fn send_async(&self, request: Request<Vec<u8>>) -> anyhow::Result<Answer> {
        let inner = Arc::clone(&self.inner);
        self.worker
            .spawner()
            .run_async(async move { inner.send_and_collect(request).await })
            .await
    }

    /// Sends a request and gives its body piece by piece; blocks until the head is there.
    pub fn open_stream(&self, request: Request<Vec<u8>>) -> anyhow::Result<Stream> {
        let inner = Arc::clone(&self.inner);
        let (response, _) = self
            .worker
            .spawner()
            .block_on(async move { inner.await_head(request).await })?;
        let (head, body) = response.into_parts();
        Ok(Stream {
            status: head.status.as_u16(),
            headers: head.headers,
            body: Some(body),
            buffer: BytesMut::new(),
            worker: Arc::clone(&self.worker),
        })
    }

    /// Watches a path (its query is the caller's affair).
    pub fn watch(&self, path: &str) -> anyhow::Result<Stream> {
        self.open_stream(Request::get(path).body(Vec::new())?)
    }
}

impl Inner {
    async fn send_and_collect(&self, request: Request<Vec<u8>>) -> anyhow::Result<Answer> {
        let (start, line) = (
            Instant::now(),
            format!("{} {}", request.method(), request.uri()),
        );
        let (response, subject) = self.await_head(request).await?;
        let (head, body) = response.into_parts();
        let timeout = self.options.timeout;
        let body = tokio::time::timeout(timeout, body.collect())
            .await
            .with_context(|| format!("{line}: the body did not end within {timeout:?}"))?
            .with_context(|| format!("{line}: the body broke off"))?
            .to_bytes();
        let (status, protocol) = (head.status.as_u16(), head.version);
        Ok(Answer {
            status,
            headers: head.headers,
            body,
            protocol,
            subject,
            took: start.elapsed(),
        })
    }

    async fn await_head(
        &self,
        request: Request<Vec<u8>>,
    ) -> anyhow::Result<(Response<Incoming>, String)> {
        let line = format!("{} {}{}", request.method(), self.options.url, request.uri());
        let timeout = self.options.timeout;
        tokio::time::timeout(timeout, self.send_on_connection(request))
            .await
            .with_context(|| format!("{line}: no answer within {timeout:?}"))?
            .with_context(|| line)
    }

    async fn send_on_connection(
        &self,
        request: Request<Vec<u8>>,
    ) -> anyhow::Result<(Response<Incoming>, String)> {
        let (mut sender, subject) = match self.take_kept_connection().await {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        let ask = self.prepare_request(request, &sender)?;
        let answer = match &mut sender {
            Sender::H1(sender) => {
                sender.ready().await?;
                sender.send_request(ask).await?
            }
            Sender::H2(sender) => {
                sender.ready().await?;
                sender.send_request(ask).await?
            }
        };
        if self.options.keep {
            *self.kept.lock().await = Some((sender, subject.clone()));
        }
        Ok((answer, subject))
    }

    /// The kept connection: an HTTP/2 one is shared, an HTTP/1.1 one is taken until its answer has begun.
    async fn take_kept_connection(&self) -> Option<(Sender, String)> {
        let mut kept = self.kept.lock().await;
        match kept.take()? {
            (Sender::H2(sender), subject) if !sender.is_closed() => {
                *kept = Some((Sender::H2(sender.clone()), subject.clone()));
                Some((Sender::H2(sender), subject))
            }
            (Sender::H1(sender), subject) if !sender.is_closed() => {
                Some((Sender::H1(sender), subject))
            }
            _ => None,
        }
    }

    fn prepare_request(&self, request: Request<Vec<u8>>, sender: &Sender) -> anyhow::Result<Ask> {
        let (mut head, body) = request.into_parts();
        if let Some(token) = &self.options.token {
            head.headers.insert(
                AUTHORIZATION,
                HeaderValue::from_str(&format!("Bearer {token}"))?,
            );
        }
        match sender {
            Sender::H1(_) => drop(
                head.headers
                    .insert(HOST, HeaderValue::from_str(&self.authority)?),
            ),
            Sender::H2(_) => head.uri = format!("{}{}", self.options.url, head.uri).parse()?,
        }
        Ok(Request::from_parts(head, Full::new(body.into())))
    }

    async fn connect(&self) -> anyhow::Result<(Sender, String)> {
        let stream = TcpStream::connect(&self.authority)
            .await
            .with_context(|| format!("dial {}", self.authority))?;
        stream.set_nodelay(true)?;
        let Some((connector, name)) = &self.tls else {
            return Ok((self.shake_hands(stream, false).await?, String::new()));
        };
        let stream = connector
            .connect(name.clone(), stream)
            .await
            .context("TLS handshake")?;
        let session = stream.get_ref().1;
        let h2 = session.alpn_protocol() == Some(b"h2");
        let peer = session.peer_certificates().and_then(|certs| certs.first());
        let subject = pki::format_subject(peer.context("a server without a certificate")?)?;
        Ok((self.shake_hands(stream, h2).await?, subject))
    }

    async fn shake_hands<S>(&self, stream: S, h2: bool) -> anyhow::Result<Sender>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let io = TokioIo::new(stream);
        if h2 {
            let http = hyper::client::conn::http2::Builder::new(self.spawner.clone())
                .timer(TokioTimer::new())
                .clone();
            let (sender, connection) = http.handshake(io).await?;
            self.spawner.spawn(async { drop(connection.await) });
            return Ok(Sender::H2(sender));
        }
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        self.spawner.spawn(async { drop(connection.await) });
        Ok(Sender::H1(sender))
    }
}

fn tls_config(options: &Options) -> anyhow::Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(options.ca_pem.as_bytes()) {
        roots.add(cert.context("the CA is no PEM")?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match &options.identity {
        Some(identity) => {
            let (chain, key) = identity.chain_and_key();
            config.with_client_auth_cert(chain, key)?
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = options
        .alpn
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    Ok(config)
}

/// A body as it comes, e.g. a watch's. It outlives its client.
#[derive(Debug)]
pub struct Stream {
    pub status: u16,
    pub headers: HeaderMap,
    body: Option<Incoming>,
    buffer: BytesMut,
    worker: Arc<Worker>,
}

impl Stream {
    /// The next piece; `None` at a clean end, an error when nothing comes within `timeout` or the body breaks off.
    pub fn next_piece(&mut self, timeout: Duration) -> anyhow::Result<Option<Bytes>> {
        if !self.buffer.is_empty() {
            return Ok(Some(self.buffer.split().freeze()));
        }
        self.read_frame(timeout)
    }

    fn read_frame(&mut self, timeout: Duration) -> anyhow::Result<Option<Bytes>> {
        let Some(mut body) = self.body.take() else {
            return Ok(None);
        };
        let (body, frame) = self.worker.spawner().block_on(async move {
            let frame = tokio::time::timeout(timeout, body.frame()).await;
            (body, frame)
        });
        let frame = match frame {
            Ok(frame) => frame,
            Err(_) => {
                self.body = Some(body);
                bail!("the stream was silent for {timeout:?}");
            }
        };
        let Some(frame) = frame.transpose().context("the stream broke off")? else {
            return Ok(None);
        };
        self.body = Some(body);
        Ok(Some(frame.into_data().unwrap_or_default()))
    }

    /// The next line, parsed as JSON: a watch's event. `None` at a clean end.
    pub fn next_event(&mut self, timeout: Duration) -> anyhow::Result<Option<Value>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|cause| anyhow!("no JSON: {cause}"));
            }
            match self.read_frame(timeout)? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None if self.buffer.is_empty() => return Ok(None),
                None => bail!("the stream ended within a line: {:?}", self.buffer),
            }
        }
    }
}
