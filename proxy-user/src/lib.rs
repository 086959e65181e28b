//! hublet: a node-local Kubernetes API proxy.
//!
//! ```text
//! setup → listen → client → request → route ─┬→ cloud (forward) ─┬→ cache
//!                                            └→ local (serve)  ──┘
//! ```
//!
//! The modules are the stages that a request meets, in that order. A stage calls only stages to its right,
//! the [`cache`], `telemetry`.
#![forbid(unsafe_op_in_unsafe_fn)]

pub(crate) mod admin;
pub mod app;
pub mod authz;
pub(crate) mod budget;
pub(crate) mod cache;
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
