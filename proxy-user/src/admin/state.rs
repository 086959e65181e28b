//! The readiness of the daemon, and the stages that the admin listener reports on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;

use crate::VERSION;
use crate::certs::Certificates;
use crate::drain::Shared;
use crate::listen::{ConnectionTable, Counters, ListenerState, ListenerStatus, Purpose};
use crate::proxy::Proxy;
use crate::steer::Setup;
use crate::telemetry::registry::{Instrumented, Registry, Unit, register_counter, register_gauge};

/// A self-probe older than this means that traffic isn't served: three of them are missing.
const PROBE_AGE: Duration = Duration::from_secs(3);

/// A condition for sending the node's clients here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Every listener is bound and accepting.
    Listeners,
    /// The store is open.
    Store,
}

pub(crate) struct Handles {
    pub proxy: Arc<Proxy>,
    pub setup: Shared<Setup>,
    pub certificates: Arc<Certificates>,
    pub table: Arc<ConnectionTable>,
    pub counters: Arc<Counters>,
    /// As they were before the start of accepting.
    pub listeners: Vec<ListenerStatus>,
    /// Warnings about the configuration.
    pub warnings: Vec<String>,
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handles")
            .field("listeners", &self.listeners)
            .finish_non_exhaustive()
    }
}

/// Shared by `app`, which fills it, and the admin thread, which reads it.
#[derive(Debug)]
pub(crate) struct State {
    started: Instant,
    node: String,
    listeners: AtomicBool,
    store: AtomicBool,
    draining: AtomicBool,
    /// Milliseconds after `started` of the last answered self-probe, plus one; 0 = none yet.
    probed: AtomicU64,
    /// Connections to the admin port that made room for others.
    closed_connections: AtomicU64,
    handles: Mutex<Option<Arc<Handles>>>,
}

impl State {
    /// Nothing is up yet.
    pub(crate) fn new(node: String) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            node,
            listeners: AtomicBool::new(false),
            store: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            probed: AtomicU64::new(0),
            closed_connections: AtomicU64::new(0),
            handles: Mutex::new(None),
        })
    }

    pub(crate) fn set_met(&self, condition: Condition) {
        match condition {
            Condition::Listeners => self.listeners.store(true, Relaxed),
            Condition::Store => self.store.store(true, Relaxed),
        }
    }

    /// The traffic runtime has answered the self-probe.
    pub(crate) fn record_probe(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.probed.store(millis + 1, Relaxed);
    }

    /// A connection to the admin port was closed, since another one needed its place.
    pub(super) fn count_closed_connection(&self) {
        self.closed_connections.fetch_add(1, Relaxed);
    }

    /// The daemon is not ready any more.
    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Relaxed);
    }

    /// The stages are up, and report from now on.
    pub(crate) fn attach_stages(&self, handles: Handles) {
        *self.handles.lock() = Some(Arc::new(handles));
    }

    /// Drops the references to the stages, so that they can end.
    pub(crate) fn detach_stages(&self) {
        *self.handles.lock() = None;
    }

    pub(super) fn handles(&self) -> Option<Arc<Handles>> {
        self.handles.lock().clone()
    }

    /// The state that a listener of this purpose is in now.
    pub(super) fn listener_state(&self, purpose: Purpose) -> ListenerState {
        if purpose == Purpose::Admin {
            ListenerState::Accepting
        } else if self.draining.load(Relaxed) {
            ListenerState::Draining
        } else if self.listeners.load(Relaxed) {
            ListenerState::Accepting
        } else {
            ListenerState::Bound
        }
    }

    pub(super) fn node(&self) -> &str {
        &self.node
    }

    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The reasons why no clients should be sent here; empty = ready.
    pub(crate) fn unready_reasons(&self) -> Vec<String> {
        self.unready_at(self.started.elapsed())
    }

    fn unready_at(&self, uptime: Duration) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.draining.load(Relaxed) {
            reasons.push("hublet is stopping".to_owned());
        }
        if !self.store.load(Relaxed) {
            reasons.push("the store isn't open yet".to_owned());
        }
        if !self.listeners.load(Relaxed) {
            reasons.push("the listeners aren't bound yet".to_owned());
        }
        if let Some(reason) = self
            .handles()
            .and_then(|handles| handles.proxy.stages().waiting_for())
        {
            reasons.push(reason.to_owned());
        }
        match self.probed.load(Relaxed) {
            0 => reasons.push("the traffic runtime hasn't answered its own probe yet".to_owned()),
            millis => {
                let age = uptime.saturating_sub(Duration::from_millis(millis - 1));
                if age > PROBE_AGE {
                    reasons.push(format!(
                        "the traffic runtime last answered its own probe {} s ago",
                        age.as_secs()
                    ));
                }
            }
        }
        reasons
    }
}

impl Instrumented for State {
    fn register_metrics(&self, registry: &mut Registry) {
        register_gauge(
            registry,
            "ready",
            "1 when /v1/readyz says OK",
            self.unready_reasons().is_empty().into(),
        );
        registry.register_with_unit(
            "uptime",
            "Since the process started",
            Unit::Seconds,
            ConstGauge::new(self.uptime().as_secs_f64()),
        );
        registry.register(
            "build",
            "Version of this process",
            Info::new([("version", VERSION)]),
        );
        register_counter(
            registry,
            "admin_connections_closed",
            "Connections to the admin port that made room for others",
            self.closed_connections.load(Relaxed),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_what_is_missing_and_notices_a_hung_runtime() {
        let state = State::new("edge-1".into());
        assert_eq!(
            state.unready_reasons().len(),
            3,
            "{:?}",
            state.unready_reasons()
        );
        state.set_met(Condition::Store);
        state.set_met(Condition::Listeners);
        assert!(state.unready_reasons()[0].contains("own probe yet"));
        state.record_probe();
        assert_eq!(state.unready_reasons(), Vec::<String>::new());
        let hung = state.unready_at(state.uptime() + Duration::from_secs(7));
        assert!(hung.len() == 1 && hung[0].contains("7 s ago"), "{hung:?}");
        state.start_draining();
        assert!(state.unready_reasons()[0].contains("stopping"));
    }

    #[test]
    fn the_admin_listener_accepts_before_and_after_those_of_clients() {
        let state = State::new("edge-1".into());
        for expected in [
            ListenerState::Bound,
            ListenerState::Accepting,
            ListenerState::Draining,
        ] {
            match expected {
                ListenerState::Bound => {}
                ListenerState::Accepting => state.set_met(Condition::Listeners),
                ListenerState::Draining => state.start_draining(),
            }
            assert_eq!(state.listener_state(Purpose::Plain), expected);
            assert_eq!(state.listener_state(Purpose::Secure), expected);
            assert_eq!(
                state.listener_state(Purpose::Admin),
                ListenerState::Accepting
            );
        }
    }
}
