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

pub mod account;
pub mod admin;
pub mod app;
pub mod body;
pub mod cache;
pub mod certs;
pub mod cli;
pub mod client;
pub mod clock;
pub mod cloud;
pub mod config;
pub mod handle;
pub mod listen;
pub mod local;
pub mod request;
pub mod route;
pub mod setup;
pub mod status;
pub mod text;
pub mod upload;
