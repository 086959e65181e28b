//! The primitives that the writer's queue is built from; loom's take their place in its model.

pub(super) use std::sync::atomic;
pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
