//! Keeps a failed test's daemons, clouds and namespaces alive for inspection: `HUBLET_TEST_KEEP=1`, which
//! `cargo xtask test --keep` sets. A test that panics, or whose [`eventually`](crate::eventually::eventually) runs out of
//! time, then waits where it stands.

use std::io::Write as _;
use std::sync::Once;
use std::thread::{self, ThreadId};

use parking_lot::Mutex;

/// Lines to print when a test of this thread fails: how to enter its namespaces, where its logs are.
static HINTS: Mutex<Vec<(ThreadId, String)>> = Mutex::new(Vec::new());
static HOOK: Once = Once::new();

fn is_on() -> bool {
    std::env::var_os("HUBLET_TEST_KEEP").is_some_and(|value| !value.is_empty() && value != "0")
}

/// Remembers a line for the calling test, and from the first one on holds tests that panic.
pub(crate) fn add_hint(line: String) {
    if !is_on() {
        return;
    }
    HINTS.lock().push((thread::current().id(), line));
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            previous(info);
            hold_failed_test();
        }));
    });
}

/// Waits for ever if the calling thread runs a test that is to be kept. A panic's hook runs before anything is dropped.
pub(crate) fn hold_failed_test() {
    if !is_on() {
        return;
    }
    let this = thread::current();
    let hints: Vec<String> = HINTS
        .lock()
        .iter()
        .filter(|(owner, _)| *owner == this.id())
        .map(|(_, line)| format!("  {line}\n"))
        .collect();
    // A worker's panic reaches its test when the worker is dropped.
    if hints.is_empty() {
        return;
    }
    let name = this.name().unwrap_or("the test");
    let _ = write!(
        std::io::stderr(),
        "KEPT {name}: it has failed and waits; Ctrl-C ends it\n{}",
        hints.concat()
    );
    loop {
        thread::park();
    }
}
