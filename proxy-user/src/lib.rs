//! hublet: a node-local Kubernetes API proxy.
//!
//! ```text
//! setup → listen → client → request → route ─┬→ cloud (forward) ─┬→ cache
//!                                            └→ local (serve)  ──┘
//! ```
//!
//! The modules are the stages that a request meets, in that order. A stage calls only stages to its right,
//! the [`cache`], [`account`] and [`status`].
#![forbid(unsafe_op_in_unsafe_fn)]

pub(crate) mod account;
pub(crate) mod admin;
pub mod app;
pub(crate) mod body;
pub(crate) mod cache;
pub(crate) mod certs;
pub mod cli;
pub mod client;
pub(crate) mod clock;
pub(crate) mod cloud;
pub mod config;
pub(crate) mod handle;
pub(crate) mod listen;
pub(crate) mod local;
pub(crate) mod request;
pub(crate) mod route;
pub mod setup;
pub(crate) mod status;
pub mod text;
pub(crate) mod upload;
