//! The fault proxy: plain TCP in front of any cloud, with the faults that a link has.
//!
//! A black hole delivers nothing in a direction and closes nothing, on connections old and new (a new one is accepted
//! and never answered). What its ends send meanwhile stays in flight, as unacknowledged TCP segments do: when the hole
//! closes again, it arrives, as after a retransmission. For a link whose connections do not survive, set `reset`.
mod pump;

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::netns::Netns;
use crate::worker::{Spawner, Worker};

/// Connections at a time.
const CONNECTIONS: usize = 4_096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the cloud.
    Up,
    /// From the cloud to the client.
    Down,
}

/// A fault of the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// The listener is closed: connects are refused; connections are reset.
    Refuse,
    /// Nothing gets through, in one direction or (`None`) in both.
    Blackhole(Option<Direction>),
    /// Every connection is reset, once; then nothing is wrong.
    Reset,
    /// The connection of this number, counted from 0 as they are accepted, delivers nothing any more and closes nothing: one
    /// server of several is gone, or an address translation has forgotten it. Nothing is wrong with the others.
    Forget(u64),
    /// Connections that are opened from now on deliver nothing; nothing is wrong with those that are open: a table of
    /// connections on the way is full.
    NoMore,
    /// Each connection ends (FIN) when so many more bytes have come down.
    CutAfter(u64),
    /// Every byte is so late, in each direction.
    Delay(Duration),
    /// So many bytes a second, in each direction of each connection.
    Rate(u64),
}

/// The words of the control port.
pub const WORDS: &str = "none | refuse | blackhole | blackhole=up | blackhole=down | reset | forget=CONNECTION | no-more | cut-after=BYTES | delay=MS | rate=BYTES_PER_SECOND";

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Fault> {
        let text = text.trim();
        let (word, value) = text
            .split_once('=')
            .map_or((text, None), |(word, value)| (word, Some(value)));
        Ok(match (word, value) {
            ("none", None) => Fault::None,
            ("refuse", None) => Fault::Refuse,
            ("reset", None) => Fault::Reset,
            ("blackhole", None) => Fault::Blackhole(None),
            ("blackhole", Some("up")) => Fault::Blackhole(Some(Direction::Up)),
            ("blackhole", Some("down")) => Fault::Blackhole(Some(Direction::Down)),
            ("no-more", None) => Fault::NoMore,
            ("forget", _) => Fault::Forget(parse_number(word, value)?),
            ("cut-after", _) => Fault::CutAfter(parse_number(word, value)?),
            ("delay", _) => Fault::Delay(Duration::from_millis(parse_number(word, value)?)),
            ("rate", _) => match parse_number(word, value)? {
                0 => bail!("rate=0 would be a black hole: say blackhole"),
                rate => Fault::Rate(rate),
            },
            _ => bail!("unknown fault {text:?}; known: {WORDS}"),
        })
    }
}

fn parse_number(word: &str, value: Option<&str>) -> anyhow::Result<u64> {
    let value = value.with_context(|| format!("{word} needs a number: {word}=N"))?;
    value
        .parse()
        .with_context(|| format!("{word}={value}: not a number"))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::None => f.write_str("none"),
            Fault::Refuse => f.write_str("refuse"),
            Fault::Reset => f.write_str("reset"),
            Fault::Blackhole(None) => f.write_str("blackhole"),
            Fault::Blackhole(Some(Direction::Up)) => f.write_str("blackhole=up"),
            Fault::Blackhole(Some(Direction::Down)) => f.write_str("blackhole=down"),
            Fault::NoMore => f.write_str("no-more"),
            Fault::Forget(connection) => write!(f, "forget={connection}"),
            Fault::CutAfter(bytes) => write!(f, "cut-after={bytes}"),
            Fault::Delay(delay) => write!(f, "delay={}", delay.as_millis()),
            Fault::Rate(rate) => write!(f, "rate={rate}"),
        }
    }
}

impl Fault {
    fn blocks(self, direction: Direction) -> bool {
        matches!(self, Fault::Blackhole(hole) if hole.is_none_or(|hole| hole == direction))
    }
}

#[derive(Debug, Default)]
struct Counters {
    up: AtomicU64,
    down: AtomicU64,
    accepted: AtomicU64,
    open: AtomicU64,
}

/// Counters of the proxy.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
pub struct Stats {
    /// Bytes to the cloud.
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Connections accepted since the start.
    pub connections: u64,
    pub open: u64,
}

/// The fault in force, and how often connections were told to reset.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    fault: Fault,
    /// Counts settings, so that `cut-after` starts anew each time.
    setting: u64,
    resets: u64,
    /// The connection that was forgotten last.
    forgotten: Option<u64>,
    /// Connections from this number on deliver nothing.
    no_more: Option<u64>,
}

impl State {
    fn blocks(&self, direction: Direction, connection: u64) -> bool {
        let late = self.no_more.is_some_and(|first| connection >= first);
        self.fault.blocks(direction) || self.forgotten == Some(connection) || late
    }
}

/// The fault in force, as one connection experiences it.
#[derive(Clone, Debug)]
struct LinkState {
    /// The connection's number.
    connection: u64,
    state: watch::Receiver<State>,
}

impl LinkState {
    /// Waits until bytes may pass in this direction.
    async fn until_open(&mut self, direction: Direction) -> Result<State, watch::error::RecvError> {
        let connection = self.connection;
        let state = self
            .state
            .wait_for(|state| !state.blocks(direction, connection))
            .await?;
        Ok(*state)
    }

    /// Waits until connections are reset once more than `resets` times.
    async fn until_reset(&mut self, resets: u64) {
        let _ = self.state.wait_for(|state| state.resets != resets).await;
    }
}

struct Command {
    fault: Fault,
    done: oneshot::Sender<anyhow::Result<()>>,
}

/// A handle on a running fault proxy.
#[derive(Clone, Debug)]
pub struct Handle {
    address: SocketAddr,
    orders: mpsc::Sender<Command>,
    state: watch::Receiver<State>,
    counters: Arc<Counters>,
    spawner: Spawner,
}

/// A running fault proxy. Dropping it closes every connection.
#[derive(Debug)]
pub struct FaultProxy {
    handle: Handle,
    worker: Worker,
}

impl FaultProxy {
    /// Listens on `listen` (port 0: a free one) in `netns`, in front of `upstream`, which it dials in there too.
    pub fn start(
        listen: SocketAddr,
        upstream: SocketAddr,
        netns: Option<&Netns>,
    ) -> anyhow::Result<FaultProxy> {
        let worker = Worker::start("fault", netns)?;
        let spawner = worker.spawner().clone();
        let bound = spawner.block_on(async move { TcpListener::bind(listen).await });
        let listener =
            bound.with_context(|| format!("the fault proxy cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        let (orders, received) = mpsc::channel(16);
        let (publish, state) = watch::channel(State::default());
        let counters = Arc::<Counters>::default();
        let gate = FaultListener {
            address,
            upstream,
            publish,
            counters: Arc::clone(&counters),
            spawner: spawner.clone(),
            slots: Arc::new(Semaphore::new(CONNECTIONS)),
        };
        spawner.spawn(gate.run(listener, received));
        Ok(FaultProxy {
            handle: Handle {
                address,
                orders,
                state,
                counters,
                spawner,
            },
            worker,
        })
    }

    /// A handle that outlives borrows.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends it now; panics with its panic, if there was one.
    pub fn join(self) {
        self.worker.join();
    }
}

impl std::ops::Deref for FaultProxy {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Handle {
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://ADDRESS`
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Sets the fault; when this returns, it holds. Blocks.
    pub fn set(&self, fault: Fault) -> anyhow::Result<()> {
        let this = self.clone();
        self.spawner
            .block_on(async move { this.set_async(fault).await })
    }

    /// The same for callers in async code.
    pub async fn set_async(&self, fault: Fault) -> anyhow::Result<()> {
        let (done, result) = oneshot::channel();
        self.orders
            .send(Command { fault, done })
            .await
            .context("the fault proxy has ended")?;
        result.await.context("the fault proxy has ended")?
    }

    /// The fault in force.
    #[must_use]
    pub fn fault(&self) -> Fault {
        self.state.borrow().fault
    }

    /// Counters of the proxy.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Counters {
            up,
            down,
            accepted,
            open,
        } = &*self.counters;
        Stats {
            bytes_up: up.load(Ordering::Relaxed),
            bytes_down: down.load(Ordering::Relaxed),
            connections: accepted.load(Ordering::Relaxed),
            open: open.load(Ordering::Relaxed),
        }
    }
}

/// The listener's side: accepts, and carries out orders.
struct FaultListener {
    address: SocketAddr,
    upstream: SocketAddr,
    publish: watch::Sender<State>,
    counters: Arc<Counters>,
    spawner: Spawner,
    slots: Arc<Semaphore>,
}

impl FaultListener {
    async fn run(self, listener: TcpListener, mut orders: mpsc::Receiver<Command>) {
        let mut listener = Some(listener);
        loop {
            let accepted = async {
                match &listener {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                order = orders.recv() => {
                    let Some(order) = order else { return };
                    let result = self.carry_out(order.fault, &mut listener).await;
                    let _ = order.done.send(result);
                }
                accepted = accepted => {
                    if let Ok((client, _)) = accepted {
                        self.admit_client(client);
                    }
                }
            }
        }
    }

    async fn carry_out(
        &self,
        fault: Fault,
        listener: &mut Option<TcpListener>,
    ) -> anyhow::Result<()> {
        if fault == Fault::Refuse {
            *listener = None;
        } else if listener.is_none() {
            let bound = TcpListener::bind(self.address).await;
            *listener = Some(
                bound.with_context(|| format!("{} was taken while it refused", self.address))?,
            );
        }
        self.publish.send_modify(|state| {
            let once = matches!(fault, Fault::Reset | Fault::Forget(_));
            state.fault = if once { Fault::None } else { fault };
            if let Fault::Forget(connection) = fault {
                state.forgotten = Some(connection);
            }
            let accepted = self.counters.accepted.load(Ordering::Relaxed);
            state.no_more = (fault == Fault::NoMore).then_some(accepted);
            state.setting += 1;
            state.resets += u64::from(matches!(fault, Fault::Refuse | Fault::Reset));
        });
        Ok(())
    }

    fn admit_client(&self, client: TcpStream) {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            return;
        };
        let (upstream, counters) = (self.upstream, Arc::clone(&self.counters));
        let link = LinkState {
            connection: counters.accepted.fetch_add(1, Ordering::Relaxed),
            state: self.publish.subscribe(),
        };
        counters.open.fetch_add(1, Ordering::Relaxed);
        self.spawner.spawn(async move {
            pump::run_connection(client, upstream, link, &counters).await;
            counters.open.fetch_sub(1, Ordering::Relaxed);
            drop(slot);
        });
    }
}
