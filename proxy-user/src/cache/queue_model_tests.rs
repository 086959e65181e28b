//! The queue to the writer under every interleaving of its threads, as loom runs them. No wait ends by its time here: a
//! message that wakes nobody is a deadlock, which loom reports.

#[path = "queue.rs"]
#[allow(
    clippy::duplicate_mod,
    dead_code,
    reason = "the same queue, built from loom's primitives"
)]
mod queue;

mod sync {
    pub(super) use loom::sync::atomic;
    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};
}

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use loom::future::block_on;
use loom::thread;
use tokio::sync::OwnedSemaphorePermit;

use queue::{Limits, Received, Receiver, Sender, Urgency, channel};

/// Threads are preempted at most so often in one run: nearly all defects need one or two, and three take minutes.
const PREEMPTIONS: usize = 2;
const LIMITS: Limits = Limits {
    messages: 1,
    room: 2,
    batch: 1,
};

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(run);
}

/// A writer that keeps what it has written.
#[derive(Debug, Default)]
struct Written {
    messages: Mutex<Vec<u32>>,
    is_closed: AtomicBool,
}

impl Written {
    fn has(&self, message: u32) -> bool {
        self.messages.lock().unwrap().contains(&message)
    }

    /// Writes in batches, as the store's writer does.
    fn run(&self, queue: &Receiver<u32>) {
        let far = Instant::now() + Duration::from_secs(3600);
        let (mut waiting, mut is_open) = (Vec::new(), true);
        while let Some(first) = is_open.then(|| queue.recv(None).ok()).flatten() {
            let (mut batch, mut taken, mut next) = (Vec::new(), 0, Some(first));
            while let Some(received) = next.take() {
                taken += 1;
                match received {
                    Received::Message(message) => batch.push(message),
                    Received::Flush(done) => waiting.push(done),
                    Received::Close(done) => {
                        waiting.push(done);
                        is_open = false;
                    }
                }
                if waiting.is_empty() {
                    next = queue.linger(far);
                }
            }
            self.messages.lock().unwrap().append(&mut batch);
            queue.finish(taken);
            self.is_closed.store(!is_open, Ordering::SeqCst);
            for done in waiting.drain(..) {
                let _ = done.send(());
            }
        }
    }
}

/// A queue, its writer, and the thread that this runs on.
fn start() -> (Sender<u32>, Arc<Written>, thread::JoinHandle<()>) {
    let (sender, receiver) = channel(LIMITS);
    let written = Arc::new(Written::default());
    let writer = Arc::clone(&written);
    let thread = thread::spawn(move || writer.run(&receiver));
    (sender, written, thread)
}

#[test]
fn everything_accepted_is_written_before_a_close_returns() {
    model(|| {
        let (sender, written, writer) = start();
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let (other, others) = (sender.clone(), Arc::clone(&accepted));
        let producer = thread::spawn(move || {
            for message in [1, 2] {
                let is_accepted = match message {
                    1 => other.send(message, Urgency::Lingers),
                    _ => other.send_always(message, Urgency::Lingers),
                };
                if is_accepted {
                    others.lock().unwrap().push(message);
                }
            }
        });
        block_on(sender.close());
        let before: Vec<u32> = accepted.lock().unwrap().clone();
        assert!(written.is_closed.load(Ordering::SeqCst));
        assert!(
            before.iter().all(|message| written.has(*message)),
            "{before:?}"
        );
        assert!(!sender.send_always(3, Urgency::Writes), "closed");
        producer.join().unwrap();
        writer.join().unwrap();
        assert_eq!(*accepted.lock().unwrap(), *written.messages.lock().unwrap());
        assert!(!sender.is_behind());
    });
}

#[test]
fn a_flush_returns_once_what_was_sent_before_it_is_written() {
    model(|| {
        let (sender, written, writer) = start();
        let other = sender.clone();
        let reader = thread::spawn(move || block_on(other.flush()));
        assert!(sender.send_always(1, Urgency::Writes));
        block_on(sender.flush());
        assert!(written.has(1));
        reader.join().unwrap();
        drop(sender);
        writer.join().unwrap();
    });
}

#[test]
fn flushes_and_closes_all_return_whoever_closes_first() {
    model(|| {
        let (sender, written, writer) = start();
        let (other, seen) = (sender.clone(), Arc::clone(&written));
        let closer = thread::spawn(move || {
            block_on(other.close());
            assert!(seen.is_closed.load(Ordering::SeqCst));
        });
        block_on(sender.flush());
        block_on(sender.close());
        assert!(written.is_closed.load(Ordering::SeqCst));
        closer.join().unwrap();
        writer.join().unwrap();
    });
}

#[test]
fn a_receiver_that_is_gone_leaves_nobody_waiting() {
    model(|| {
        let (sender, receiver) = channel::<u32>(LIMITS);
        let receives = thread::spawn(move || drop(receiver));
        block_on(sender.flush());
        sender.send(1, Urgency::Writes);
        block_on(sender.close());
        receives.join().unwrap();
        assert!(!sender.is_behind());
    });
}

/// A message that holds room, and how much all of them hold.
struct Held {
    permit: OwnedSemaphorePermit,
    in_all: Arc<AtomicUsize>,
}

impl Held {
    fn new(permit: OwnedSemaphorePermit, in_all: &Arc<AtomicUsize>) -> Self {
        let before = in_all.fetch_add(permit.num_permits(), Ordering::SeqCst);
        assert!(before + permit.num_permits() <= LIMITS.room);
        let in_all = Arc::clone(in_all);
        Self { permit, in_all }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let room = self.permit.num_permits();
        self.in_all.fetch_sub(room, Ordering::SeqCst);
    }
}

#[test]
fn i14_messages_and_their_bytes_stay_within_their_limits() {
    model(|| {
        let (sender, receiver) = channel::<Held>(LIMITS);
        let in_all = Arc::new(AtomicUsize::new(0));
        let writer = thread::spawn(move || {
            let far = Instant::now() + Duration::from_secs(3600);
            while let Ok(first) = receiver.recv(None) {
                let mut next = Some(first);
                while let Some(held) = next {
                    drop(held);
                    receiver.finish(1);
                    next = receiver.linger(far);
                }
            }
        });
        let produce = |sender: Sender<Held>, room: u32, in_all: Arc<AtomicUsize>, times: u32| {
            let mut free = sender.room();
            for _ in 0..times {
                let permit = block_on(poll_fn(|cx| sender.poll_reserve(&mut free, room, cx)));
                let held = Held::new(permit.unwrap(), &in_all);
                sender.send(held, sender.urgency());
            }
        };
        let (other, others) = (sender.clone(), Arc::clone(&in_all));
        let producer = thread::spawn(move || produce(other, 1, others, 2));
        produce(sender, 2, in_all, 1);
        producer.join().unwrap();
        writer.join().unwrap();
    });
}
