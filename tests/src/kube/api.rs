//! The administrator's hand in the cloud: JSON requests as `system:masters` past every proxy, with Kubernetes'
//! own error texts in the failures.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::connection::{Connection, Endpoint};

/// Between two looks at something that is still becoming.
const POLL: Duration = Duration::from_millis(50);

/// A client of the API server that reconnects by itself.
#[derive(Debug)]
pub struct Api {
    endpoint: Endpoint,
    token: Option<String>,
    connection: Mutex<Option<Connection>>,
}

impl Api {
    /// A client by the endpoint's client certificate, or by a bearer token.
    pub fn new(endpoint: Endpoint, token: Option<String>) -> Self {
        Self { endpoint, token, connection: Mutex::new(None) }
    }

    /// Where it dials.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// One request; any status is an answer. A body that isn't JSON comes as a string.
    ///
    /// # Errors
    /// No connection, or no answer.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<(StatusCode, Value)> {
        let mut request = Request::builder().method(method).uri(path).header("accept", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let bytes = match body {
            None => Bytes::new(),
            Some((media_type, value)) => {
                request = request.header("content-type", media_type);
                Bytes::from(serde_json::to_vec(value)?)
            }
        };
        let answer = self.connection().await?.send(request.body(Full::new(bytes))?).await?;
        let value = serde_json::from_slice(answer.body())
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(answer.body()).into_owned()));
        Ok((answer.status(), value))
    }

    async fn connection(&self) -> Result<Connection> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        Ok(slot.insert(self.endpoint.connect().await?).clone())
    }

    /// GET; a failure unless 200.
    ///
    /// # Errors
    /// Any other status, or no answer.
    pub async fn get(&self, path: &str) -> Result<Value> {
        success("GET", path, self.request(Method::GET, path, None).await?)
    }

    /// POST; a failure unless 2xx.
    ///
    /// # Errors
    /// Any other status, or no answer.
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value> {
        let answer = self.request(Method::POST, path, Some(("application/json", object))).await?;
        success("POST", path, answer)
    }

    /// PATCH as a JSON merge patch; a failure unless 2xx.
    ///
    /// # Errors
    /// Any other status, or no answer.
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<Value> {
        let body = Some(("application/merge-patch+json", patch));
        success("PATCH", path, self.request(Method::PATCH, path, body).await?)
    }

    /// DELETE; a failure unless 2xx.
    ///
    /// # Errors
    /// Any other status, or no answer.
    pub async fn delete(&self, path: &str) -> Result<Value> {
        success("DELETE", path, self.request(Method::DELETE, path, None).await?)
    }

    /// POST, again and again while the answer is 403 or 404: what it needs (a namespace, a resource definition, a
    /// service account) is still being made.
    ///
    /// # Errors
    /// Another refusal, or still refused after the deadline.
    pub async fn create_when_possible(
        &self,
        path: &str,
        object: &Value,
        patience: Duration,
    ) -> Result<Value> {
        let deadline = Instant::now() + patience;
        loop {
            let answer = self.request(Method::POST, path, Some(("application/json", object))).await?;
            let waiting = matches!(answer.0, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND);
            if !waiting || Instant::now() > deadline {
                return success("POST", path, answer);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// GET until the answer is 200 and `enough` says so; hands out that answer.
    ///
    /// # Errors
    /// Not so after the deadline; the last answer is in the message.
    pub async fn wait(
        &self,
        path: &str,
        patience: Duration,
        enough: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + patience;
        loop {
            let (status, value) = self.request(Method::GET, path, None).await?;
            if status == StatusCode::OK && enough(&value) {
                return Ok(value);
            }
            if Instant::now() > deadline {
                let text: String = value.to_string().chars().take(2000).collect();
                bail!("GET {path}: not as expected after {patience:?}; the last answer was {status}: {text}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A token of a service account, by TokenRequest.
    ///
    /// # Errors
    /// The account doesn't exist, or the server refuses.
    pub async fn token(&self, namespace: &str, account: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": [], "expirationSeconds": 86_400},
        });
        let answer = self.create(&path, &request).await?;
        let token = answer["status"]["token"].as_str().context("a TokenRequest without a token")?;
        Ok(token.to_owned())
    }
}

fn success(method: &str, path: &str, (status, value): (StatusCode, Value)) -> Result<Value> {
    if status.is_success() {
        return Ok(value);
    }
    let message = value["message"].as_str().map_or_else(|| value.to_string(), str::to_owned);
    bail!("{method} {path}: {status}: {message}")
}
