//! The well-behaved client beside an attack: reads and writes as a kubelet does, on a kept connection and now and then on
//! a fresh one, and watches. In: a node. Out: what failed, and how long calls and events took.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hublet_tests::client::Answer;
use hublet_tests::cloud::Handle;
use hublet_tests::eventually::slowness_factor;
use hublet_tests::site::Site;
use parking_lot::Mutex;
use serde_json::json;

const NODE: &str = "/api/v1/nodes/edge-1";
const PODS: &str = "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1";
const MAPS: &str = "/api/v1/namespaces/beside/configmaps";
/// Between two calls, between two calls on a fresh connection, between two events.
const EVERY: Duration = Duration::from_millis(10);
const FRESH: Duration = Duration::from_millis(500);
const EVENT: Duration = Duration::from_millis(250);

/// Calls and events since the last look.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub(crate) failed: Vec<String>,
    calls: Vec<Duration>,
    pub(crate) events: Vec<Duration>,
}

impl Seen {
    /// Of the calls, what 99 in 100 took at the most.
    pub(crate) fn p99(&self) -> Duration {
        let mut calls = self.calls.clone();
        calls.sort_unstable();
        calls
            .get(calls.len() * 99 / 100)
            .or(calls.last())
            .copied()
            .unwrap_or_default()
    }

    /// Adds what was seen in a further time; of the calls those of the quicker time count.
    pub(crate) fn again(&mut self, further: Seen) {
        if further.p99() < self.p99() {
            self.calls = further.calls;
        }
        self.failed.extend(further.failed);
        self.events.extend(further.events);
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.len()
    }
}

/// The client, at work until it is dropped.
pub(crate) struct Beside {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Beside {
    /// Begins; only with `online` it writes and watches.
    pub(crate) fn start(site: &Site, online: bool) -> Result<Self> {
        let (seen, stop) = (Arc::default(), Arc::<AtomicBool>::default());
        let mut beside = Self {
            seen,
            stop,
            threads: Vec::new(),
        };
        let kept = site.admin_client()?;
        beside.run(EVERY, move |number| match number % 4 {
            0 => kept.get(PODS),
            1 if online => kept.send_json("PUT", &format!("{MAPS}/mine"), &map("mine", number)),
            _ => kept.get(NODE),
        });
        let fresh = site.daemon.client(Some(&site.cloud.admin_token))?;
        beside.run(FRESH, move |_| fresh.get(NODE));
        if online {
            beside.watch(site)?;
        }
        Ok(beside)
    }

    /// Takes the calls and events since the last look.
    pub(crate) fn take(&self) -> Seen {
        std::mem::take(&mut self.seen.lock())
    }

    fn run(&mut self, every: Duration, call: impl Fn(usize) -> Result<Answer> + Send + 'static) {
        let (seen, stop) = (Arc::clone(&self.seen), Arc::clone(&self.stop));
        self.threads.push(std::thread::spawn(move || {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let begin = Instant::now();
                let answer = call(number);
                let mut seen = seen.lock();
                match answer {
                    Ok(answer) if answer.status < 300 => seen.calls.push(begin.elapsed()),
                    Ok(answer) => seen
                        .failed
                        .push(format!("{}: {}", answer.status, answer.text())),
                    Err(cause) => seen.failed.push(format!("{cause:#}")),
                }
                drop(seen);
                number += 1;
                std::thread::park_timeout(every);
            }
        }));
    }

    fn watch(&mut self, site: &Site) -> Result<()> {
        let client = site.daemon.client(Some(&site.cloud.admin_token))?;
        let list = client.get(MAPS)?.json();
        let from = list["metadata"]["resourceVersion"]
            .as_str()
            .context("a list")?
            .to_owned();
        let mut events = client.watch(&format!("{MAPS}?watch=true&resourceVersion={from}"))?;
        let sent: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
        let (cloud, waiting, stop) = (
            site.cloud.handle(),
            Arc::clone(&sent),
            Arc::clone(&self.stop),
        );
        self.threads
            .push(std::thread::spawn(move || put(&cloud, &waiting, &stop)));
        let (seen, stop) = (Arc::clone(&self.seen), Arc::clone(&self.stop));
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let event = match events.next_event(Duration::from_secs(5) * slowness_factor()) {
                    Ok(Some(event)) => event,
                    Ok(None) => return seen.lock().failed.push("the watch ended".into()),
                    Err(cause) => return seen.lock().failed.push(format!("the watch: {cause:#}")),
                };
                let name = event["object"]["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default();
                if let Some(sent) = sent.lock().remove(name) {
                    seen.lock().events.push(sent.elapsed());
                }
            }
        }));
        Ok(())
    }
}

/// Every event changes something, also in what an earlier client had put.
static NUMBER: AtomicUsize = AtomicUsize::new(0);

/// Changes something in the cloud, again and again.
fn put(cloud: &Handle, sent: &Mutex<HashMap<String, Instant>>, stop: &AtomicBool) {
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let name = format!("event-{}", number % 50);
        sent.lock().insert(name.clone(), Instant::now());
        cloud.put(map(&name, number)).expect("a ConfigMap");
        std::thread::park_timeout(EVENT);
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

pub(crate) fn map(name: &str, number: usize) -> serde_json::Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": "beside", "name": name},
        "data": {"number": number.to_string()},
    })
}
