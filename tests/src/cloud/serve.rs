//! Connections, and the phases of a request: record, fail, authenticate, authorize, answer with the real server's headers.
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, IF_NONE_MATCH,
    USER_AGENT,
};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use time::format_description::well_known::Rfc2822;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::Shared;
use super::answer::{self, Answer, set_header, stream_body, text_answer};
use super::faults::ServerFault;
use super::kinds::{self, Kind};
use super::rbac::User;
use super::read::{self, Collection};
use super::record::Request;
use super::request::{Resource, Target};
use super::status::Failure;
use super::write::{self, Write};
use super::{discovery, watch};
use crate::pki;
use crate::worker::Spawner;

/// Bytes of one upload that the cloud takes in before it reads them.
const UPLOAD_WINDOW: u32 = 256 << 10;

/// Connections at a time.
const CONNECTIONS: usize = 4_096;
/// A request body's limit, as the real server's.
const BODY_LIMIT: usize = 3 << 20;

impl<F> hyper::rt::Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.spawn(async move {
            future.await;
        });
    }
}

pub(super) async fn accept_connections(
    shared: Arc<Shared>,
    listener: TcpListener,
    tls: TlsAcceptor,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    for number in 0_u64.. {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let Ok((stream, _peer)) = listener.accept().await else {
            continue;
        };
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        shared.spawner.clone().spawn(async move {
            // A client that breaks off is no failure of the cloud's.
            let _ = serve_connection(shared, stream, tls, number).await;
            drop(slot);
        });
    }
}

async fn serve_connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    tls: TlsAcceptor,
    number: u64,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream = tls.accept(stream).await?;
    let session = stream.get_ref().1;
    let h2 = session.alpn_protocol() == Some(b"h2");
    let certificate = certificate_user(session);
    let (broken, leaving) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let caller = Arc::new(Caller {
        certificate,
        number,
        broken: Arc::clone(&broken),
        leaving: Arc::clone(&leaving),
    });
    let spawner = shared.spawner.clone();
    let max_streams = shared.options.max_streams;
    let service = service_fn(move |request| {
        let (shared, caller) = (Arc::clone(&shared), Arc::clone(&caller));
        async move {
            let (parts, body) = request.into_parts();
            let spawner = shared.spawner.clone();
            let answer = spawner
                .catch_panic(Box::pin(respond(&shared, &caller, parts, body)))
                .await;
            answer.unwrap_or_else(|| Ok(text_answer(500, "the scriptable cloud panicked")))
        }
    });
    let io = TokioIo::new(stream);
    let served = async {
        if h2 {
            let mut http = hyper::server::conn::http2::Builder::new(spawner);
            http.max_concurrent_streams(max_streams);
            // As the API server: a stuck upload stops no other one (k8s.io/apiserver/pkg/server/secure_serving.go).
            http.initial_stream_window_size(UPLOAD_WINDOW);
            http.initial_connection_window_size(UPLOAD_WINDOW * max_streams.clamp(1, 250));
            http.timer(TokioTimer::new());
            let mut connection = pin!(http.serve_connection(io, service));
            tokio::select! {
                served = &mut connection => served,
                () = leaving.notified() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        } else {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).title_case_headers(true);
            http.serve_connection(io, service).with_upgrades().await
        }
    };
    tokio::select! {
        served = served => served?,
        () = broken.notified() => {}
    }
    Ok(())
}

/// The user of the client's certificate.
fn certificate_user(session: &rustls::ServerConnection) -> Option<User> {
    let certificate = session.peer_certificates()?.first()?;
    let (user, groups) = pki::parse_names(certificate).ok()?;
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    Some(User::new(&user, &groups))
}

struct Caller {
    certificate: Option<User>,
    number: u64,
    /// The connection is to break.
    broken: Arc<Notify>,
    /// The connection is to be closed in good order, if it is an HTTP/2 one.
    leaving: Arc<Notify>,
}

fn header_values(headers: &HeaderMap, name: &HeaderName) -> String {
    let values: Vec<&str> = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    values.join(",")
}

async fn respond(
    shared: &Arc<Shared>,
    caller: &Caller,
    parts: http::request::Parts,
    body: Incoming,
) -> Result<Answer, h2::Error> {
    let target = Target::parse(&parts.method, &parts.uri);
    let credential = parts
        .headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let user = shared
        .rbac
        .authenticate(credential, caller.certificate.as_ref());
    let name = user.as_ref().map_or("", |user| user.name.as_str());
    shared.record.add(describe_request(&parts, name, caller));
    let fault = shared
        .server_faults
        .take_match(&target.path, parts.method.as_str(), target.verb);
    let instead = match &fault {
        Some(ServerFault::Refuse) => return Err(h2::Reason::REFUSED_STREAM.into()),
        Some(ServerFault::StallUnread) => {
            return Ok(text_answer(200, "").map(|_| pending_body(body)));
        }
        Some(fault) => fault.replacement_answer().await,
        None => None,
    };
    let mut answer = match (instead, user) {
        (Some(answer), _) => answer,
        (None, Err(failure)) => failure.into(),
        (None, Ok(user)) => {
            let regular =
                regular_answer(shared, &user, &target, &parts.headers, body, fault.as_ref()).await;
            regular.unwrap_or_else(Into::into)
        }
    };
    add_common_headers(shared, &mut answer);
    Ok(finish(answer, fault, caller).await)
}

fn describe_request(parts: &http::request::Parts, user: &str, caller: &Caller) -> Request {
    Request {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        user: user.to_owned(),
        user_agent: header_values(&parts.headers, &USER_AGENT),
        length: header_values(&parts.headers, &CONTENT_LENGTH),
        protocol: format!("{:?}", parts.version),
        accept: header_values(&parts.headers, &ACCEPT),
        connection: caller.number,
    }
}

/// Applies a fault to a complete answer, or to its connection.
async fn finish(mut answer: Answer, fault: Option<ServerFault>, caller: &Caller) -> Answer {
    match fault {
        Some(ServerFault::Break) => {
            caller.broken.notify_one();
            std::future::pending().await
        }
        Some(ServerFault::Close) => {
            caller.leaving.notify_one();
            set_header(&mut answer, "connection", "close");
            answer
        }
        Some(fault) => fault.apply(answer),
        None => answer,
    }
}

/// An answer that never goes on, and takes nothing of its request.
fn pending_body(request: Incoming) -> answer::Body {
    stream_body(stream::once(async move {
        let _unread = request;
        std::future::pending().await
    }))
}

/// The headers that every answer of the real server carries.
fn add_common_headers(shared: &Shared, answer: &mut Answer) {
    set_header(answer, "audit-id", &pki::random_uuid());
    if !answer.headers().contains_key("cache-control") {
        set_header(answer, "cache-control", "no-cache, private");
    }
    if answer.status() != http::StatusCode::UNAUTHORIZED {
        set_header(
            answer,
            "x-kubernetes-pf-flowschema-uid",
            &shared.flow_schema,
        );
        set_header(
            answer,
            "x-kubernetes-pf-prioritylevel-uid",
            &shared.priority_level,
        );
    }
    if let Ok(date) = shared.store.now().format(&Rfc2822) {
        set_header(answer, "date", &date.replace("+0000", "GMT"));
    }
}

async fn regular_answer(
    shared: &Arc<Shared>,
    user: &User,
    target: &Target,
    headers: &HeaderMap,
    body: Incoming,
    fault: Option<&ServerFault>,
) -> Result<Answer, Failure> {
    shared.rbac.authorize(user, target)?;
    let Some(resource) = &target.resource else {
        return Ok(answer_document(target, headers));
    };
    let Some(kind) = kinds::find(&resource.group, &resource.version, &resource.resource) else {
        return answer_unknown_kind(resource);
    };
    if !(resource.subresource.is_empty() || (kind.status && resource.subresource == "status")) {
        return Err(Failure::unknown_resource());
    }
    check_accept(kind, &header_values(headers, &ACCEPT))?;
    if matches!(target.verb, "get" | "list" | "watch" | "deletecollection") {
        let collection = Collection::parse(&shared.store, kind, resource, target)?;
        return answer_collection(shared, &collection, resource, fault).await;
    }
    let content_type = header_values(headers, &CONTENT_TYPE);
    let content_type = content_type.split(';').next().unwrap_or_default().trim();
    let write = Write {
        store: &shared.store,
        kind,
        resource,
        target,
        content_type,
        body: &read_body(body).await?,
    };
    match target.verb {
        "create" if resource.name.is_empty() => write.create(),
        "update" if !resource.name.is_empty() => write.update(),
        "patch" if !resource.name.is_empty() => write.patch(),
        "delete" => write.delete(),
        _ => Err(Failure::method_not_allowed()),
    }
}

/// Discovery, `/version` and other paths that are no resources.
fn answer_document(target: &Target, headers: &HeaderMap) -> Answer {
    let accept = header_values(headers, &ACCEPT);
    let etag = header_values(headers, &IF_NONE_MATCH);
    discovery::find_document(&target.path, &accept, &etag)
        .unwrap_or_else(|| text_answer(404, "404 page not found\n"))
}

/// A `Status` where the group version is served, else text, as the real server does.
fn answer_unknown_kind(resource: &Resource) -> Result<Answer, Failure> {
    let is_group_served = kinds::KINDS
        .iter()
        .any(|kind| kind.group == resource.group && kind.version == resource.version);
    if is_group_served {
        Err(Failure::unknown_resource())
    } else {
        Ok(text_answer(404, "404 page not found\n"))
    }
}

/// Reads, and the deletion of a collection.
async fn answer_collection(
    shared: &Arc<Shared>,
    collection: &Collection<'_>,
    resource: &Resource,
    fault: Option<&ServerFault>,
) -> Result<Answer, Failure> {
    let (store, kind) = (&shared.store, collection.kind);
    match collection.target.verb {
        "get" => {
            read::await_version(store, collection.version()?.unwrap_or(0)).await?;
            let key = write::object_key(kind, &resource.namespace, &resource.name);
            read::get_object(store, kind, &key, fault)
        }
        "list" => collection.list(fault).await,
        "watch" => watch::start_watch(shared, collection),
        _ => write::delete_collection(collection),
    }
}

async fn read_body(body: Incoming) -> Result<Bytes, Failure> {
    match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(_) => {
            let message = format!("Request entity too large: limit is {BODY_LIMIT}");
            Err(Failure::new(413, "RequestEntityTooLarge", message))
        }
    }
}

/// JSON is all there is here, also for the built-in kinds that the real server has in protobuf and YAML.
fn check_accept(kind: &Kind, accept: &str) -> Result<(), Failure> {
    if accept.split(',').any(is_plain_json) {
        return Ok(());
    }
    Err(Failure::not_acceptable(if kind.builtin {
        "application/json"
    } else {
        "application/json, application/yaml"
    }))
}

/// True if a clause of `Accept` takes JSON that isn't a Table or the like.
fn is_plain_json(clause: &str) -> bool {
    let mut parts = clause.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    matches!(media, "" | "*/*" | "application/*" | "application/json")
        && !parts.any(|part| part.starts_with("as="))
}

/// The address that clients dial.
pub(super) async fn bind_listener(
    address: SocketAddr,
) -> anyhow::Result<(TcpListener, SocketAddr)> {
    use anyhow::Context as _;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("the cloud cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}
