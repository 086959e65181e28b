//! Embeds the BPF object that xtask built, or an empty stub.
fn main() {}
