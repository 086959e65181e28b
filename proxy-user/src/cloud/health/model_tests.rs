//! The state's channel under every order in which its tasks can run: no transition is lost, no waiter is left waiting.
//!
//! Tasks interleave at their await points only, so a search over all orders of polls covers all that one thread can do. What
//! happens within a poll, on two threads at once, is the channel's own part: tokio checks that with loom.
//!
//! The search was tried with faults made by hand, each of which fails here:
//!
//! - [`Health::set_state`] stores a state without waking (`send_if_modified` that returns false): waiters are left.
//! - A waiter subscribes after its check and an await in between, or awaits `changed` without a check: it is left.
//! - [`Health::settled`] takes the first change for the last word: a write settles on a state that awaits a probe.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::mpsc;

use super::*;

type Task = Pin<Box<dyn Future<Output = ()>>>;

struct ReadyFlag(AtomicBool);

impl Wake for ReadyFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct ModelTask {
    future: Option<Task>,
    ready: Arc<ReadyFlag>,
}

impl ModelTask {
    fn is_runnable(&self) -> bool {
        self.future.is_some() && self.ready.0.load(Ordering::SeqCst)
    }

    fn poll(&mut self) {
        self.ready.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&self.ready));
        let mut future = self.future.take().expect("runnable");
        if future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
        {
            self.future = Some(future);
        }
    }
}

/// Runs the tasks of `make` in every order; returns how many orders there are.
fn explore(make: impl Fn() -> Vec<Task>) -> usize {
    let mut orders = 0;
    let mut schedule: Vec<(usize, usize)> = Vec::new();
    loop {
        run(make(), &mut schedule);
        orders += 1;
        // The next schedule, depth first: the last choice that has an alternative takes it.
        while let Some((choice, of)) = schedule.pop() {
            if choice + 1 < of {
                schedule.push((choice + 1, of));
                break;
            }
        }
        if schedule.is_empty() {
            return orders;
        }
    }
}

/// Follows `schedule` (choice, of how many) and extends it with first choices.
fn run(tasks: Vec<Task>, schedule: &mut Vec<(usize, usize)>) {
    let ready = || Arc::new(ReadyFlag(AtomicBool::new(true)));
    let mut tasks: Vec<_> = tasks
        .into_iter()
        .map(|future| ModelTask {
            future: Some(future),
            ready: ready(),
        })
        .collect();
    for step in 0.. {
        let runnable: Vec<usize> = (0..tasks.len())
            .filter(|index| tasks[*index].is_runnable())
            .collect();
        if runnable.is_empty() {
            break;
        }
        if step == schedule.len() {
            schedule.push((0, runnable.len()));
        }
        tasks[runnable[schedule[step].0]].poll();
    }
    let left = tasks.iter().filter(|task| task.future.is_some()).count();
    assert_eq!(left, 0, "waiters left by schedule {schedule:?}");
}

async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn health() -> Arc<Health> {
    let (signals, _) = mpsc::channel(1);
    Arc::new(Health::new(signals, Arc::default()))
}

async fn go_through(health: Arc<Health>, states: &'static [CloudState]) {
    for state in states {
        yield_now().await;
        health.set_state(*state);
    }
}

#[test]
fn no_waiter_is_left_whatever_the_order() {
    use CloudState::{Disconnected, Silent};
    let orders = explore(|| {
        let health = health();
        let monitor = go_through(Arc::clone(&health), &[Silent, Disconnected]);
        let write = {
            let health = Arc::clone(&health);
            async move { assert_eq!(health.settled().await, Disconnected) }
        };
        let read = {
            let health = Arc::clone(&health);
            async move { health.until_disconnected().await }
        };
        let early = async move {
            yield_now().await;
            health.until_disconnected().await;
        };
        vec![
            Box::pin(monitor),
            Box::pin(write),
            Box::pin(read),
            Box::pin(early),
        ]
    });
    assert!(orders > 100, "{orders}");
}

#[test]
fn a_write_never_settles_on_a_state_that_awaits_a_probe() {
    use CloudState::{Connected, Silent, Suspect};
    explore(|| {
        let health = health();
        let states = &[Silent, Connected, Suspect, Connected];
        let monitor = go_through(Arc::clone(&health), states);
        let writes = (0..2).map(|_| {
            let health = Arc::clone(&health);
            let write = async move {
                yield_now().await;
                assert_eq!(health.settled().await, Connected);
            };
            Box::pin(write) as Task
        });
        std::iter::once(Box::pin(monitor) as Task)
            .chain(writes)
            .collect()
    });
}

#[test]
fn a_subscriber_always_sees_the_last_state() {
    use CloudState::{Connected, Disconnected, Recovering};
    explore(|| {
        let health = health();
        let states = &[Connected, Disconnected, Recovering, Connected];
        let seen = Rc::new(RefCell::new(Vec::new()));
        let mut subscriber = health.subscribe();
        let watch = {
            let seen = Rc::clone(&seen);
            async move {
                while subscriber.changed().await.is_ok() {
                    seen.borrow_mut().push(*subscriber.borrow_and_update());
                }
                let seen = seen.borrow();
                assert_eq!(seen.last(), Some(&Connected));
                assert!(seen.len() <= 4);
            }
        };
        // The channel closes with the last handle, behind the last state.
        vec![Box::pin(go_through(health, states)), Box::pin(watch)]
    });
}
