//! Snapshots on loan to slow readers, so that the writer can end those that are old: a snapshot keeps every page that it
//! can see.

use std::fmt::Debug;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

/// A reader's snapshot, which it can do without.
pub(super) trait Lease: Debug + Send + Sync {
    /// Ends the snapshot where the reader has had it for longer than `age`.
    fn end_older_than(&self, age: Duration);
}

/// All that are on loan; as many as there are requests at the most.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<Vec<Weak<dyn Lease>>>);

impl Leases {
    pub(super) fn add(&self, lease: &Arc<impl Lease + 'static>) {
        let lease: Weak<dyn Lease> = Arc::downgrade(lease) as _;
        self.0.lock().push(lease);
    }

    pub(super) fn end_older_than(&self, age: Duration) {
        self.0.lock().retain(|lease| {
            let lease = lease.upgrade();
            lease.inspect(|lease| lease.end_older_than(age)).is_some()
        });
    }
}
