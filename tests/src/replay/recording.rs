//! Reading `tests/data/calico-cni`: its index and bodies.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::request::Builder;
use http::{Method, Request};
use serde::Deserialize;

/// One recorded request with its answer.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// Its number in the recording.
    pub id: u32,
    /// The sequence it belongs to.
    pub case: String,
    pub method: Method,
    /// The request's path and query.
    pub uri: String,
    /// The request's headers, but for `Authorization` and `Content-Length`.
    pub headers: BTreeMap<String, String>,
    pub body: Option<Bytes>,
    pub status: u16,
    /// The answer's headers by lower-case name; an empty value stands for one that differs each time.
    pub answer_headers: BTreeMap<String, String>,
    pub answer: Bytes,
}

impl Exchange {
    /// The plugin's processes each begin with discovery, on a connection of their own.
    pub fn starts_process(&self) -> bool {
        self.uri == "/api"
    }

    /// A read, as opposed to a write.
    pub fn is_read(&self) -> bool {
        self.method == Method::GET
    }

    /// The request with its recorded headers.
    pub fn to_request(&self) -> Builder {
        let request = Request::builder()
            .method(self.method.clone())
            .uri(&self.uri);
        self.headers.iter().fold(request, |request, (name, value)| {
            request.header(name, value)
        })
    }
}

impl std::fmt::Display for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} #{} {} {}", self.case, self.id, self.method, self.uri)
    }
}

/// The sequences of one client.
#[derive(Debug, Clone)]
pub struct Recording {
    exchanges: Vec<Exchange>,
}

/// A line of the index.
#[derive(Deserialize)]
struct Line {
    id: u32,
    case: String,
    method: String,
    uri: String,
    request_headers: BTreeMap<String, String>,
    request_body: Option<String>,
    status: u16,
    response_headers: BTreeMap<String, String>,
    response_body: String,
}

fn read_file(dir: &Path, name: &str) -> Result<Bytes> {
    let path = dir.join(name);
    std::fs::read(&path)
        .map(Bytes::from)
        .with_context(|| format!("reading {}", path.display()))
}

impl Recording {
    /// The Calico CNI plugin: `add-first-pod-of-the-node`, `add-second-pod`, `del`.
    ///
    /// # Errors
    /// The files are missing or damaged.
    pub fn load_calico() -> Result<Self> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/calico-cni");
        let index = read_file(&dir, "index.jsonl")?;
        let exchanges = index
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                let line: Line = serde_json::from_slice(line).context("a line of index.jsonl")?;
                Ok(Exchange {
                    id: line.id,
                    case: line.case,
                    method: line.method.parse()?,
                    uri: line.uri,
                    headers: line.request_headers,
                    body: line
                        .request_body
                        .map(|name| read_file(&dir, &name))
                        .transpose()?,
                    status: line.status,
                    answer_headers: line
                        .response_headers
                        .into_iter()
                        .map(|(name, value)| (name.to_lowercase(), value))
                        .collect(),
                    answer: read_file(&dir, &line.response_body)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { exchanges })
    }

    /// Every exchange, in order.
    pub fn all(&self) -> &[Exchange] {
        &self.exchanges
    }

    /// The exchanges of one sequence.
    ///
    /// # Errors
    /// There is no such sequence.
    pub fn find_sequence(&self, case: &str) -> Result<&[Exchange]> {
        self.exchanges
            .chunk_by(|one, next| one.case == next.case)
            .find(|sequence| sequence[0].case == case)
            .with_context(|| format!("no sequence {case:?} in the recording"))
    }
}
