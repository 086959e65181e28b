//! hublet: a node-local Kubernetes API proxy.
//!
//! ```text
//! node, ebpf, steer → listen → proxy ─┬→ cloud ─┬→ cache
//!                      authz ←─┘      └→ local ─┘
//! ```
//!
//! A request passes the modules in this order; a module calls only those to its right, and
//! `telemetry`. `cargo xtask arrows` checks it.
//!
//! | module | job |
//! |---|---|
//! | [`app`] | composition root: builds the stages, hands over to a successor, shuts down |
//! | [`config`] | flags and environment, checked: one struct for each stage |
//! | `certs` | the certificate that clients are shown, the CAs that the cloud is verified by |
//! | [`node`] | the dummy interface, cgroups, network namespaces, and components that are unavailable |
//! | [`ebpf`] | loading, attaching and pinning the programs; their maps |
//! | [`steer`] | the policy: which connections are steered, who is attested, what the guard refuses |
//! | `listen` | sockets, accept, TLS, the table of connections |
//! | `proxy` | the phases of a request; where its answer comes from; errors as a Kubernetes `Status` |
//! | `authz` | identities, and what the cloud has allowed them |
//! | `cloud` | the API servers: health, connection pool, forwarding, upgrades |
//! | `local` | answers from the store while the cloud is away |
//! | `cache` | the store: one copy of each object, captured from the cloud's answers |
//! | `telemetry`, `budget` | metrics, a record for each request; memory for requests in flight |
//! | `admin`, [`cli`] | health, readiness, metrics and status; the commands |
//! | [`caller`] | the process, client and port that a connection counts for |
//! | `clock`, `drain`, [`text`] | wall-clock time for tests to set, the end of tasks, printable text |
//!
//! The API's bytes (requests, media types, lists, watches, `Status`) are the crate `hublet_wire`.
#![forbid(unsafe_op_in_unsafe_fn)]

pub(crate) mod admin;
pub mod app;
pub(crate) mod authz;
pub(crate) mod budget;
pub(crate) mod cache;
pub mod caller;
pub(crate) mod certs;
pub mod cli;
pub(crate) mod clock;
pub(crate) mod cloud;
pub mod config;
pub(crate) mod drain;
pub mod ebpf;
pub(crate) mod listen;
pub(crate) mod local;
pub mod node;
pub(crate) mod proxy;
pub mod steer;
pub(crate) mod telemetry;
pub mod text;

/// The version in `hublet version` and `/v1/status`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
