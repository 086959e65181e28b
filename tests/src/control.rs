//! The control port: HTTP on loopback for scripts and for tests in other processes.
//!
//! `PUT /fault`, `GET /fault`, `GET /stats`; for the scriptable cloud also `GET|DELETE /requests`, `GET|POST|DELETE /server-faults`,
//! `PUT|DELETE /objects`, `POST /compact`. Answers are JSON or one line of text.
use std::net::SocketAddr;

use anyhow::Context as _;
use http::Request;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::cloud::json::Json;
use crate::cloud::{self, Answer, json_answer, text_answer};
use crate::fault;
use crate::worker::Worker;

/// A request body's limit.
const BODY_LIMIT: usize = 16 << 20;

/// The parts that the port controls.
#[derive(Clone, Debug)]
pub struct Controls {
    pub fault: fault::Handle,
    /// The scriptable cloud, if that is what is behind it.
    pub cloud: Option<cloud::Handle>,
}

/// A running control port.
#[derive(Debug)]
pub struct Control {
    address: SocketAddr,
    worker: Worker,
}

impl Control {
    /// Listens on `listen`; port 0 takes a free one.
    pub fn start(listen: SocketAddr, controls: Controls) -> anyhow::Result<Control> {
        let worker = Worker::start("control", None)?;
        let bound = worker
            .spawner()
            .block_on(async move { TcpListener::bind(listen).await });
        let listener =
            bound.with_context(|| format!("the control port cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        let spawner = worker.spawner().clone();
        worker.spawner().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let controls = controls.clone();
                let service = service_fn(move |request| {
                    let controls = controls.clone();
                    async move {
                        Ok::<Answer, std::convert::Infallible>(respond(&controls, request).await)
                    }
                });
                spawner.spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    // A caller that hangs up is its own affair.
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Control { address, worker })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it now; panics with its panic, if there was one.
    pub fn join(self) {
        self.worker.join();
    }
}

/// A request to the control port.
struct Order<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    body: &'a str,
}

async fn respond(controls: &Controls, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(cause) => return text_answer(400, &format!("{cause}\n")),
    };
    let order = Order {
        method: head.method.as_str(),
        path: head.uri.path(),
        query: head.uri.query().unwrap_or_default(),
        body: &String::from_utf8_lossy(&body),
    };
    let done = match &controls.cloud {
        Some(cloud) => control_cloud(cloud, &order),
        None => Ok(None),
    };
    let done = match done {
        Ok(None) => control_fault(&controls.fault, &order).await,
        done => done,
    };
    match done {
        Ok(Some(answer)) => answer,
        Ok(None) => {
            let Order { method, path, .. } = order;
            text_answer(404, &format!("{method} {path}: no such control\n"))
        }
        Err(cause) => text_answer(400, &format!("{cause:#}\n")),
    }
}

async fn control_fault(fault: &fault::Handle, order: &Order<'_>) -> anyhow::Result<Option<Answer>> {
    Ok(Some(match (order.method, order.path) {
        ("GET", "/fault") => text_answer(200, &format!("{}\n", fault.fault())),
        ("PUT", "/fault") => {
            fault.set_async(order.body.parse()?).await?;
            text_answer(200, &format!("{}\n", fault.fault()))
        }
        ("GET", "/stats") => json_answer(200, serde_json::to_vec(&fault.stats())?),
        _ => return Ok(None),
    }))
}

fn control_cloud(cloud: &cloud::Handle, order: &Order<'_>) -> anyhow::Result<Option<Answer>> {
    Ok(Some(match (order.method, order.path) {
        ("GET", "/requests") => json_answer(200, serde_json::to_vec(&cloud.record().requests())?),
        ("DELETE", "/requests") => {
            cloud.record().clear();
            ok_answer()
        }
        ("GET", "/server-faults") => {
            json_answer(200, serde_json::to_vec(&cloud.server_faults().rules())?)
        }
        ("POST", "/server-faults") => {
            let example = r#"{"path":"/api/v1/pods","method":"list","count":1,"fault":{"status":{"code":503}}}"#;
            let rule = serde_json::from_str(order.body)
                .with_context(|| format!("a server fault looks like {example}"))?;
            cloud.server_faults().add_rule(rule);
            ok_answer()
        }
        ("DELETE", "/server-faults") => {
            cloud.server_faults().clear();
            ok_answer()
        }
        ("PUT", "/objects") => {
            let object: Json = serde_json::from_str(order.body)
                .context("the body shall be one object, as JSON")?;
            json_answer(200, serde_json::to_vec(&cloud.put(object)?)?)
        }
        ("DELETE", "/objects") => {
            let path = order
                .query
                .strip_prefix("path=")
                .context("say which: /objects?path=/api/v1/nodes/edge-1")?;
            cloud.delete(path)?;
            ok_answer()
        }
        ("POST", "/compact") => {
            cloud.compact();
            ok_answer()
        }
        _ => return Ok(None),
    }))
}

fn ok_answer() -> Answer {
    text_answer(200, "ok\n")
}
