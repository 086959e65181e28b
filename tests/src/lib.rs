//! What the suites stand on: which piece to use when.

pub mod kube;
pub mod replay;
