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
            && share.client.is_some()
            && let Ok(permit) = Arc::clone(others).try_acquire_owned()
        {
            *share = Share { client: None, _all: permit };
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

/// So many connections in all, so many for each client.
#[derive(Debug)]
pub struct Shares {
    all: Arc<Semaphore>,
    each: usize,
    clients: Mutex<HashMap<Client, Arc<Semaphore>>>,
}

/// One connection's share, given back when dropped.
#[derive(Debug)]
pub struct Share {
    client: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl Share {
    /// One of a number that is not divided among clients.
    pub fn of(all: &Arc<Semaphore>) -> Result<Self, DialError> {
        let permit = Arc::clone(all).try_acquire_owned().map_err(|_| DialError::Busy)?;
        Ok(Self { client: None, _all: permit })
    }
}

impl Shares {
    /// `all` connections, `each` for one client.
    pub fn new(all: usize, each: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), each, clients: Mutex::default() }
    }

    /// A share; waits for one, behind those of the same client first.
    ///
    /// # Errors
    /// None became free within five seconds.
    pub async fn take(&self, client: Client) -> Result<Share, DialError> {
        let own = self.of(client);
        let all = Arc::clone(&self.all);
        let both = async move {
            let client = own.acquire_owned().await.ok()?;
            Some(Share { client: Some(client), _all: all.acquire_owned().await.ok()? })
        };
        tokio::time::timeout(WAIT, both).await.ok().flatten().ok_or(DialError::Busy)
    }

    /// A share, now or not at all.
    ///
    /// # Errors
    /// The client has all of its own, or there are none left.
    pub fn try_take(&self, client: Client) -> Result<Share, DialError> {
        let client = self.of(client).try_acquire_owned().map_err(|_| DialError::Busy)?;
        let all = Arc::clone(&self.all).try_acquire_owned().map_err(|_| DialError::Busy)?;
        Ok(Share { client: Some(client), _all: all })
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
        let shares = Shares::new(4, 2);
        let mine = [shares.take(client(1)).await.unwrap(), shares.take(client(1)).await.unwrap()];
        assert!(matches!(shares.take(client(1)).await, Err(DialError::Busy)), "waits, and then gives up");
        let others = shares.try_take(client(2)).unwrap();
        drop(mine);
        assert!(shares.try_take(client(1)).is_ok());
        drop(others);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_proven_itself_counts_among_the_others() {
        let (shares, others) = (Shares::new(1, 1), Arc::new(Semaphore::new(1)));
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
        let shares = Shares::new(4, 2);
        for last in 0..=u8::MAX {
            drop(shares.try_take(client(last)).unwrap());
        }
        assert!(shares.clients.lock().len() <= CLIENTS);
    }
}
