//! Places on connections to the cloud, and the limits on connections that one request has to itself. In: who asks. Out:
//! a [`Place`], given back when dropped.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::dial::DialError;
use super::heard::Line;
use crate::client::Client;
use crate::upload::Upload;

/// HTTP/1.1 connections that are kept for the next request, and for how long.
const IDLE: (usize, Duration) = (16, Duration::from_secs(15));
/// Longest wait for a place of one's own.
const WAIT: Duration = Duration::from_secs(5);
/// Clients remembered before those without a place are forgotten.
const CLIENTS: usize = 64;

type Http1 = http1::SendRequest<Upload>;

/// The streams in use on a shared connection.
#[derive(Debug)]
pub struct Streams {
    active: AtomicUsize,
    /// Somebody may wait for room.
    room: Arc<Notify>,
}

impl Streams {
    /// None in use; `room` is told of each that ends.
    pub fn new(room: &Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { active: AtomicUsize::new(0), room: Arc::clone(room) })
    }

    /// How many are in use.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// One more, on this connection.
    pub fn take(self: &Arc<Self>, line: &Arc<Line>) -> Place {
        self.active.fetch_add(1, Ordering::Relaxed);
        Place { line: Arc::clone(line), held: Held::Shared(Arc::clone(self)) }
    }
}

/// One request's place on a connection, given back when dropped.
#[derive(Debug)]
pub struct Place {
    /// The connection.
    pub line: Arc<Line>,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Shared(Arc<Streams>),
    Own { share: Share, keep: Option<(Http1, Arc<Idle>)> },
}

impl Place {
    /// A connection of one's own.
    pub fn own(line: &Arc<Line>, share: Share) -> Self {
        Self { line: Arc::clone(line), held: Held::Own { share, keep: None } }
    }

    /// The connection goes among the idle ones once the answer has been read.
    pub fn keep(&mut self, connection: Http1, idle: &Arc<Idle>) {
        if let Held::Own { keep, .. } = &mut self.held {
            *keep = Some((connection, Arc::clone(idle)));
        }
    }

    /// The credential has proven itself: it counts among `others` from now on, where there is room, so that its watch
    /// doesn't take a place from those that are still to prove themselves.
    pub fn proven(&mut self, others: &Arc<Semaphore>) {
        if let Held::Own { share, .. } = &mut self.held
            && matches!(share, Share::Of(_))
            && let Ok(other) = Share::of(others)
        {
            *share = other;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match &mut self.held {
            Held::Shared(streams) => {
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
pub struct Idle(Mutex<VecDeque<Unused>>);

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
        idle.push_back(Unused { connection, line, since: Instant::now() });
    }

    /// The one that was used last. One whose answer was not read to its end is closing.
    pub fn take(&self) -> Option<(Http1, Arc<Line>)> {
        let mut idle = self.0.lock();
        idle.retain(Unused::is_usable);
        let index = idle.iter().rposition(|unused| unused.connection.is_ready())?;
        idle.remove(index).map(|unused| (unused.connection, unused.line))
    }

    /// Closes them.
    pub fn clear(&self) {
        self.0.lock().clear();
    }
}

/// So many connections in all, of which some are kept for [privileged](Client::is_privileged) clients; so many for each
/// client, and for none of the others more than are free: one alone gets half of them at most, and leaves some to a
/// newcomer.
#[derive(Debug)]
pub struct Shares {
    each: usize,
    kept: usize,
    clients: Mutex<HashMap<Client, Arc<Semaphore>>>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Counts {
    places: Mutex<Places>,
    /// One has been given back.
    room: Notify,
}

/// The places that are free, and the number of each client's.
#[derive(Debug, PartialEq, Eq)]
struct Places {
    free: usize,
    taken: HashMap<Client, usize>,
}

/// One connection's share, given back when dropped.
#[derive(Debug)]
pub enum Share {
    /// Of a number that is not divided among clients.
    Undivided(OwnedSemaphorePermit),
    /// A client's.
    Of(Part),
}

/// A client's share.
#[derive(Debug)]
pub struct Part {
    client: Client,
    counts: Arc<Counts>,
    _own: OwnedSemaphorePermit,
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut places = self.counts.places.lock();
        places.free += 1;
        if let Some(count) = places.taken.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                places.taken.remove(&self.client);
            }
        }
        drop(places);
        self.counts.room.notify_waiters();
    }
}

impl Share {
    /// One of a number that is not divided among clients.
    pub fn of(all: &Arc<Semaphore>) -> Result<Self, DialError> {
        Arc::clone(all).try_acquire_owned().map(Self::Undivided).map_err(|_| DialError::Busy)
    }
}

impl Shares {
    /// `all` connections, `each` for one client, `kept` for those that are privileged.
    pub fn new(all: usize, each: usize, kept: usize) -> Self {
        let places = Mutex::new(Places { free: all, taken: HashMap::new() });
        let counts = Arc::new(Counts { places, room: Notify::new() });
        Self { each, kept, clients: Mutex::default(), counts }
    }

    /// A share; waits for one, behind those of the same client first.
    ///
    /// # Errors
    /// None became free within five seconds.
    pub async fn take(&self, client: Client) -> Result<Share, DialError> {
        let own = self.of(client);
        let part = async move {
            let mut own = own.acquire_owned().await.ok()?;
            loop {
                let mut room = std::pin::pin!(self.counts.room.notified());
                room.as_mut().enable();
                match self.count(client, own) {
                    Ok(part) => return Some(Share::Of(part)),
                    Err(permit) => own = permit,
                }
                room.await;
            }
        };
        tokio::time::timeout(WAIT, part).await.ok().flatten().ok_or(DialError::Busy)
    }

    /// A share, now or not at all.
    ///
    /// # Errors
    /// The client has all of its own, or there are none left.
    pub fn try_take(&self, client: Client) -> Result<Share, DialError> {
        let own = self.of(client).try_acquire_owned().map_err(|_| DialError::Busy)?;
        self.count(client, own).map(Share::Of).map_err(|_| DialError::Busy)
    }

    /// One more of this client, if there is room.
    fn count(&self, client: Client, own: OwnedSemaphorePermit) -> Result<Part, OwnedSemaphorePermit> {
        let mut places = self.counts.places.lock();
        let count = places.taken.get(&client).copied().unwrap_or_default();
        let kept = if client.is_privileged() { 0 } else { self.kept };
        let free = places.free.saturating_sub(kept);
        let greedy = !client.is_privileged() && count > 0 && count >= free;
        if free == 0 || greedy {
            return Err(own);
        }
        places.free -= 1;
        *places.taken.entry(client).or_default() += 1;
        Ok(Part { client, counts: Arc::clone(&self.counts), _own: own })
    }

    fn of(&self, client: Client) -> Arc<Semaphore> {
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENTS {
            // Permits and those who wait for one hold the semaphore as well.
            clients.retain(|_, own| Arc::strong_count(own) > 1);
        }
        Arc::clone(clients.entry(client).or_insert_with(|| Arc::new(Semaphore::new(self.each))))
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
        let mine = [shares.take(client(1)).await.unwrap(), shares.take(client(1)).await.unwrap()];
        assert!(matches!(shares.take(client(1)).await, Err(DialError::Busy)), "waits, and then gives up");
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
        assert!(held.len() > 16, "they are no fewer than they need be: {}", held.len());
        held.push(shares.take(client(5)).await.expect("a place"));
        held.extend(std::iter::from_fn(|| shares.try_take(client(6)).ok()));
        let root: Vec<_> = std::iter::from_fn(|| shares.try_take(Client::Root(1)).ok()).collect();
        assert_eq!(root.len(), 8);
        assert!(held.len() <= 24, "{}", held.len());
        drop((held, root));
        assert_eq!(*shares.counts.places.lock(), Places { free: 32, taken: HashMap::new() });
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
        let (shares, others) = (Shares::new(1, 1, 0), Arc::new(Semaphore::new(1)));
        let mut place = Place::own(&Arc::default(), shares.take(client(1)).await.unwrap());
        assert!(shares.try_take(client(2)).is_err());
        place.proven(&others);
        assert!(shares.try_take(client(2)).is_ok());
        assert_eq!(others.available_permits(), 0);
        drop(place);
        assert_eq!(others.available_permits(), 1);
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
