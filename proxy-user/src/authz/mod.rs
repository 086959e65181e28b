//! Callers: who they are, and what the cloud has allowed them.

pub mod caller;
