//! The verbs of `cargo xtask`.
fn main() {}
