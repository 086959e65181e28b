//! The administrator's hand in the cloud: JSON requests as `system:masters` past every proxy, with Kubernetes'
//! own error texts in the failures.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::{Request, request};
use serde_json::{Value, json};

use crate::client::{Answer, Client, Options};
use crate::eventually::eventually;

/// A client of the API server with one connection.
#[derive(Debug)]
pub struct Api {
    client: Client,
    options: Options,
}

impl Api {
    /// A client with the credential, namespace and address of `options`.
    ///
    /// # Errors
    /// The options don't fit together.
    pub fn new(mut options: Options) -> Result<Self> {
        options.keep = true;
        // The first requests of a fresh API server take long on a busy machine.
        options.timeout = Duration::from_secs(30);
        Ok(Self {
            client: Client::new(options.clone())?,
            options,
        })
    }

    /// The same once more, with a connection of its own.
    ///
    /// # Errors
    /// As [`Api::new`].
    pub fn open_another(&self) -> Result<Self> {
        Self::new(self.options.clone())
    }

    /// One request; any status is an answer.
    ///
    /// # Errors
    /// No connection, or no answer.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Answer> {
        let request = Request::builder().method(method).uri(path);
        self.send_as("application/json", request, body)
    }

    fn send_as(
        &self,
        accept: &str,
        request: request::Builder,
        body: Option<(&str, &Value)>,
    ) -> Result<Answer> {
        let request = request.header("accept", accept);
        self.client.send(match body {
            None => request.body(Vec::new())?,
            Some((media_type, value)) => request
                .header("content-type", media_type)
                .body(serde_json::to_vec(value)?)?,
        })
    }

    /// GET; a failure unless 200.
    ///
    /// # Errors
    /// Any other status, or no answer.
    pub fn get(&self, path: &str) -> Result<Value> {
        ensure_success("GET", path, &self.request("GET", path, None)?)
    }

    /// POST; a failure unless 2xx.
    ///
    /// # Errors
    /// Any other status, or no answer.
    pub fn create(&self, path: &str, object: &Value) -> Result<Value> {
        ensure_success(
            "POST",
            path,
            &self.request("POST", path, Some(("application/json", object)))?,
        )
    }

    /// PATCH as a JSON merge patch; a failure unless 2xx.
    ///
    /// # Errors
    /// Any other status, or no answer.
    pub fn merge_patch(&self, path: &str, patch: &Value) -> Result<Value> {
        let body = Some(("application/merge-patch+json", patch));
        ensure_success("PATCH", path, &self.request("PATCH", path, body)?)
    }

    /// DELETE; a failure unless 2xx.
    ///
    /// # Errors
    /// Any other status, or no answer.
    pub fn delete(&self, path: &str) -> Result<Value> {
        ensure_success("DELETE", path, &self.request("DELETE", path, None)?)
    }

    /// POST, again and again while the answer is 403 or 404: what it needs (a namespace, a resource definition, a
    /// service account) is still being made.
    ///
    /// # Errors
    /// Another refusal, or still refused after the deadline.
    pub fn create_when_possible(
        &self,
        path: &str,
        object: &Value,
        timeout: Duration,
    ) -> Result<Value> {
        let mut last = String::new();
        eventually(timeout, "what the object needs is there", || {
            let answer = self.request("POST", path, Some(("application/json", object)));
            match answer {
                Ok(answer) if matches!(answer.status, 403 | 404) => {
                    last = answer.text();
                    None
                }
                answer => Some(answer.and_then(|answer| ensure_success("POST", path, &answer))),
            }
        })
        .with_context(|| format!("POST {path}: {last}"))?
    }

    /// GET until the answer is 200 and `enough` says so; hands out that answer.
    ///
    /// # Errors
    /// Not so after the deadline; the last answer is in the message.
    pub fn wait_for(
        &self,
        path: &str,
        timeout: Duration,
        enough: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        self.wait_for_as("application/json", path, timeout, enough)
    }

    /// As [`Api::wait_for`], with an `Accept` of the caller's.
    ///
    /// # Errors
    /// As there.
    pub fn wait_for_as(
        &self,
        accept: &str,
        path: &str,
        timeout: Duration,
        enough: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = String::new();
        eventually(timeout, "the answer is as expected", || {
            let answer = self.send_as(accept, Request::get(path), None);
            if let Ok(answer) = &answer {
                let value = answer.json();
                if answer.status == 200 && enough(&value) {
                    return Some(value);
                }
            }
            last = answer.map_or_else(|cause| format!("{cause:#}"), |answer| answer.text());
            None
        })
        .with_context(|| {
            format!(
                "GET {path}: {}",
                last.chars().take(2000).collect::<String>()
            )
        })
    }

    /// A token of a service account, by TokenRequest.
    ///
    /// # Errors
    /// The account doesn't exist, or the server refuses.
    pub fn request_token(&self, namespace: &str, account: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": [], "expirationSeconds": 86_400},
        });
        let answer = self.create(&path, &request)?;
        let token = answer["status"]["token"]
            .as_str()
            .context("a TokenRequest without a token")?;
        Ok(token.to_owned())
    }
}

fn ensure_success(method: &str, path: &str, answer: &Answer) -> Result<Value> {
    if (200..300).contains(&answer.status) {
        return Ok(answer.json());
    }
    let message = answer.json()["message"]
        .as_str()
        .map_or_else(|| answer.text(), str::to_owned);
    bail!("{method} {path}: {}: {message}", answer.status)
}
