//! Arguments, logging, runtimes, exit codes; nothing else.
fn main() {}
