//! Places on connections to the cloud, and the limits on connections that one request has to itself. In: who asks. Out:
//! a [`Place`], given back when dropped.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use crate::authz::caller::Client;
use crate::cloud::dial::DialError;
use crate::cloud::health::activity::Line;
use crate::cloud::upload::Upload;

/// HTTP/1.1 connections that are kept for the next request, and for how long.
const IDLE: (usize, Duration) = (16, Duration::from_secs(15));
/// Longest wait for a place of one's own.
const WAIT: Duration = Duration::from_secs(5);
/// Clients remembered before those without a place are forgotten.
const CLIENTS: usize = 64;

type Http1 = http1::SendRequest<Upload>;

/// The streams in use on a shared connection.
#[derive(Debug)]
pub(crate) struct Streams {
    active: AtomicUsize,
    allowed: Arc<AtomicUsize>,
    connection: AbortHandle,
    /// Somebody may wait for room.
    room: Arc<Notify>,
}

impl Streams {
    /// None in use; `room` is told of each that ends.
    pub(crate) fn new(
        room: &Arc<Notify>,
        allowed: &Arc<AtomicUsize>,
        connection: AbortHandle,
    ) -> Arc<Self> {
        let (room, allowed) = (Arc::clone(room), Arc::clone(allowed));
        Arc::new(Self {
            active: AtomicUsize::new(0),
            allowed,
            connection,
            room,
        })
    }

    /// Ends the connection where the server allows no streams: a request that came too late for that waits for ever.
    pub(crate) fn end_if_none_is_allowed(&self) {
        if self.allowed.load(Ordering::Relaxed) == 0 {
            self.connection.abort();
        }
    }

    /// How many are in use.
    pub(crate) fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// One more, on this connection.
    pub(crate) fn take(self: &Arc<Self>, line: &Arc<Line>) -> Place {
        self.active.fetch_add(1, Ordering::Relaxed);
        Place {
            line: Arc::clone(line),
            held: Held::Shared {
                streams: Arc::clone(self),
                _part: None,
            },
        }
    }
}

/// One request's place on a connection, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    /// The connection.
    pub line: Arc<Line>,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Shared {
        streams: Arc<Streams>,
        _part: Option<Part>,
    },
    Own {
        share: Share,
        keep: Option<(Http1, Arc<Idle>)>,
    },
}

impl Place {
    /// A connection of one's own.
    pub(crate) fn own(line: &Arc<Line>, share: Share) -> Self {
        Self {
            line: Arc::clone(line),
            held: Held::Own { share, keep: None },
        }
    }

    /// Nothing has come on it for long, while others were heard: no request takes it any more.
    pub(crate) fn leave(&self) {
        self.line.leave();
        if let Held::Shared { streams, .. } = &self.held {
            streams.end_if_none_is_allowed();
        }
    }

    /// Counts it as its client's, where the connection is shared.
    pub(crate) fn count(&mut self, part: Part) {
        if let Held::Shared { _part, .. } = &mut self.held {
            *_part = Some(part);
        }
    }

    /// The connection goes among the idle ones once the answer has been read.
    pub(crate) fn keep(&mut self, connection: Http1, idle: &Arc<Idle>) {
        if let Held::Own { keep, .. } = &mut self.held {
            *keep = Some((connection, Arc::clone(idle)));
        }
    }

    /// The credential has proven itself: it counts among `others` from now on, where there is room, so that its watch
    /// doesn't take a place from those that are still to prove themselves.
    pub(crate) fn proven(&mut self, others: &Shares) {
        if let Held::Own { share, .. } = &mut self.held
            && let Ok(other) = others.try_take(share.part.client)
        {
            *share = other;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match &mut self.held {
            Held::Shared { streams, .. } => {
                streams.active.fetch_sub(1, Ordering::Relaxed);
                streams.room.notify_waiters();
            }
            Held::Own { keep, .. } => {
                if let Some((connection, idle)) = keep.take() {
                    idle.put(connection, Arc::clone(&self.line));
                }
            }
        }
    }
}

/// HTTP/1.1 connections that nobody uses at the moment.
#[derive(Debug, Default)]
pub(crate) struct Idle(Mutex<VecDeque<Unused>>);

#[derive(Debug)]
struct Unused {
    connection: Http1,
    line: Arc<Line>,
    since: Instant,
}

impl Unused {
    fn is_usable(&self) -> bool {
        !self.connection.is_closed() && !self.line.is_left() && self.since.elapsed() < IDLE.1
    }
}

impl Idle {
    fn put(&self, connection: Http1, line: Arc<Line>) {
        let mut idle = self.0.lock();
        idle.retain(Unused::is_usable);
        if idle.len() >= IDLE.0 {
            idle.pop_front();
        }
        idle.push_back(Unused {
            connection,
            line,
            since: Instant::now(),
        });
    }

    /// The one that was used last. One whose answer was not read to its end is closing.
    pub(crate) fn take(&self) -> Option<(Http1, Arc<Line>)> {
        let mut idle = self.0.lock();
        idle.retain(Unused::is_usable);
        let index = idle
            .iter()
            .rposition(|unused| unused.connection.is_ready())?;
        idle.remove(index)
            .map(|unused| (unused.connection, unused.line))
    }

    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }
}

/// So many connections in all, of which some are kept for [privileged](Client::is_privileged) clients; so many for each
/// client, within what [`Taken`] leaves it.
#[derive(Debug)]
pub(crate) struct Shares {
    all: usize,
    each: usize,
    kept: usize,
    clients: Mutex<HashMap<Client, Arc<Semaphore>>>,
    taken: Arc<Taken>,
}

/// The places that clients have taken of all that there are. No client gets more than are free, but for privileged ones:
/// one alone gets half of them at most, and leaves some to a newcomer.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    places: Mutex<Places>,
    /// One has been given back.
    room: Notify,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Places {
    sum: usize,
    by: HashMap<Client, usize>,
}

/// One place that counts as its client's until this is dropped.
#[derive(Debug)]
pub(crate) struct Part {
    client: Client,
    taken: Arc<Taken>,
}

/// One connection's share, given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    part: Part,
    _own: OwnedSemaphorePermit,
}

impl Taken {
    /// One more of this client, if there is room among `all`, of which so many are kept for privileged ones.
    pub(crate) fn take(self: &Arc<Self>, client: Client, all: usize, kept: usize) -> Option<Part> {
        let mut places = self.places.lock();
        let count = places.by.get(&client).copied().unwrap_or_default();
        let kept = if client.is_privileged() { 0 } else { kept };
        let free = all.saturating_sub(places.sum + kept);
        let greedy = !client.is_privileged() && count > 0 && count >= free;
        if free == 0 || greedy {
            return None;
        }
        places.sum += 1;
        *places.by.entry(client).or_default() += 1;
        Some(Part {
            client,
            taken: Arc::clone(self),
        })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut places = self.taken.places.lock();
        places.sum -= 1;
        if let Some(count) = places.by.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                places.by.remove(&self.client);
            }
        }
        drop(places);
        self.taken.room.notify_waiters();
    }
}

impl Shares {
    /// `all` connections, `each` for one client, `kept` for those that are privileged.
    pub(crate) fn new(all: usize, each: usize, kept: usize) -> Self {
        Self {
            all,
            each,
            kept,
            clients: Mutex::default(),
            taken: Arc::default(),
        }
    }

    /// A share; waits for one, behind those of the same client first.
    ///
    /// # Errors
    /// None became free within five seconds.
    pub(crate) async fn take(&self, client: Client) -> Result<Share, DialError> {
        let own = self.of(client);
        let share = async move {
            let own = own.acquire_owned().await.ok()?;
            loop {
                let mut room = std::pin::pin!(self.taken.room.notified());
                room.as_mut().enable();
                if let Some(part) = self.taken.take(client, self.all, self.kept) {
                    return Some(Share { part, _own: own });
                }
                room.await;
            }
        };
        tokio::time::timeout(WAIT, share)
            .await
            .ok()
            .flatten()
            .ok_or(DialError::Busy)
    }

    /// A share, now or not at all.
    ///
    /// # Errors
    /// The client has all of its own, or there are none left.
    pub(crate) fn try_take(&self, client: Client) -> Result<Share, DialError> {
        let own = self
            .of(client)
            .try_acquire_owned()
            .map_err(|_| DialError::Busy)?;
        let part = self
            .taken
            .take(client, self.all, self.kept)
            .ok_or(DialError::Busy)?;
        Ok(Share { part, _own: own })
    }

    fn of(&self, client: Client) -> Arc<Semaphore> {
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENTS {
            // Permits and those who wait for one hold the semaphore as well.
            clients.retain(|_, own| Arc::strong_count(own) > 1);
        }
        Arc::clone(
            clients
                .entry(client)
                .or_insert_with(|| Arc::new(Semaphore::new(self.each))),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8) -> Client {
        Client::Address(std::net::IpAddr::from([10, 0, 0, last]))
    }

    #[tokio::test(start_paused = true)]
    async fn one_client_can_not_take_the_places_of_another() {
        let shares = Shares::new(4, 2, 0);
        let mine = [
            shares.take(client(1)).await.unwrap(),
            shares.take(client(1)).await.unwrap(),
        ];
        assert!(
            matches!(shares.take(client(1)).await, Err(DialError::Busy)),
            "waits, and then gives up"
        );
        let others = shares.try_take(client(2)).unwrap();
        drop(mine);
        assert!(shares.try_take(client(1)).is_ok());
        drop(others);
    }

    /// Four addresses with eight places each left none to anybody else.
    #[tokio::test(start_paused = true)]
    async fn a_newcomer_finds_a_place_beside_four_greedy_ones_and_root_several() {
        let shares = Shares::new(32, 8, 8);
        let mut held = Vec::new();
        for last in 1..=4 {
            held.extend(std::iter::from_fn(|| shares.try_take(client(last)).ok()));
        }
        assert!(
            held.len() > 16,
            "they are no fewer than they need be: {}",
            held.len()
        );
        held.push(shares.take(client(5)).await.expect("a place"));
        held.extend(std::iter::from_fn(|| shares.try_take(client(6)).ok()));
        let root: Vec<_> = std::iter::from_fn(|| shares.try_take(Client::Root(1)).ok()).collect();
        assert_eq!(root.len(), 8);
        assert!(held.len() <= 24, "{}", held.len());
        drop((held, root));
        assert_eq!(*shares.taken.places.lock(), Places::default());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_place_that_is_given_back() {
        let shares = Shares::new(1, 1, 0);
        let held = shares.try_take(client(1)).unwrap();
        let (waited, ()) = tokio::join!(shares.take(client(2)), async { drop(held) });
        assert!(waited.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_proven_itself_counts_among_the_others() {
        let (shares, others) = (Shares::new(1, 1, 0), Shares::new(1, 1, 0));
        let mut place = Place::own(&Arc::default(), shares.take(client(1)).await.unwrap());
        assert!(shares.try_take(client(2)).is_err());
        place.proven(&others);
        assert!(shares.try_take(client(2)).is_ok());
        assert!(others.try_take(client(2)).is_err());
        drop(place);
        assert!(others.try_take(client(2)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn clients_without_a_place_are_forgotten() {
        let shares = Shares::new(4, 2, 0);
        for last in 0..=u8::MAX {
            drop(shares.try_take(client(last)).unwrap());
        }
        assert!(shares.clients.lock().len() <= CLIENTS);
    }
}
