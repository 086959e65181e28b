//! The HTTP/2 connections that requests share, and who waits for one. In: requests for a place. Out: a [`Seat`]: a place,
//! or whether to dial or to wait for what others dial.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::client::conn::http2;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::connection::{Http2, UNKNOWN, Windows};
use super::permits::{Part, Streams, Taken};
use super::{Sender, Stream};
use crate::authz::caller::Client;
use crate::cloud::dial::DialError;
use crate::cloud::health::activity::Line;
use crate::cloud::upload::Upload;

/// Requests on a narrow connection: under the 100 streams that the API server allows unless told otherwise.
const NARROW: usize = 90;
/// Requests on the wide connection.
const WIDE: usize = 16;
/// Requests on a connection before the server has said how many streams it allows.
const FIRST: usize = 16;
/// HTTP/2 connections at once.
const CONNECTIONS: usize = 64;
/// Streams that are kept for root on the node.
const KEPT: usize = 16;
/// Open connections on which the server allows no streams at all, from which on no more are opened: it takes no requests.
const WITHOUT_STREAMS: usize = 8;
/// Retired connections that go on for the sake of their streams; beyond it the oldest is closed.
const RETIRED: usize = 8;
/// Flow-control windows, each connection's for all its streams: of the wide one, the first narrow one, and the others.
const WINDOWS: [Windows; 3] = [
    windows(WIDE, 1 << 20),
    windows(NARROW, 128 << 10),
    windows(NARROW, 16 << 10),
];

const fn windows(streams: usize, stream: u32) -> Windows {
    Windows {
        stream,
        connection: stream * streams as u32,
    }
}

#[derive(Debug)]
struct Kept {
    sender: http2::SendRequest<Upload>,
    wide: bool,
    /// The server's limit of streams.
    allowed: Arc<AtomicUsize>,
    streams: Arc<Streams>,
    line: Arc<Line>,
    driver: AbortHandle,
}

/// The shared connections, and who waits for one.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pool: Mutex<Pool>,
    /// There may be room now: a connection is open, or a dial has failed, or a stream has ended.
    pub room: Arc<Notify>,
    taken: Arc<Taken>,
}

#[derive(Debug, Default)]
struct Pool {
    kept: Vec<Kept>,
    /// Dials under way: of the wide connection, of narrow ones.
    wide: usize,
    narrow: usize,
    /// Requests that wait for what is being dialled: for whole answers, and watches.
    whole: usize,
    watches: usize,
}

/// The outcome of a request for a place.
pub(crate) enum Seat {
    Taken(Stream),
    /// Enough is being dialled.
    Wait(Waiting),
    /// Nothing: it is to dial.
    Dial(Dialling),
}

/// One that waits, counted.
pub(crate) struct Waiting {
    shared: Arc<Shared>,
    watch: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut pool = self.shared.pool.lock();
        *pool.waiting(self.watch) -= 1;
    }
}

/// A dial under way, until the server has said how many streams it allows.
pub(crate) struct Dialling {
    shared: Arc<Shared>,
    /// For the wide connection.
    pub wide: bool,
    /// The connection's flow-control windows.
    pub windows: Windows,
}

impl Drop for Dialling {
    fn drop(&mut self) {
        let mut pool = self.shared.pool.lock();
        if self.wide {
            pool.wide -= 1;
        } else {
            pool.narrow -= 1;
        }
        self.shared.room.notify_waiters();
    }
}

impl Kept {
    fn has_room(&self) -> bool {
        !self.line.is_left() && self.streams.active() < self.room(FIRST)
    }

    /// Requests at once; so many while the server has not said how many it allows.
    fn room(&self, unknown: usize) -> usize {
        let most = if self.wide { WIDE } else { NARROW };
        most.min(match self.allowed.load(Ordering::Relaxed) {
            UNKNOWN => unknown,
            // A stream that has ended here counts there for a moment longer.
            streams => streams - streams / 10,
        })
    }

    /// It takes no more requests, and none runs on it.
    fn is_over(&self) -> bool {
        self.sender.is_closed() || self.line.is_left() && self.streams.active() == 0
    }

    fn place(&self) -> Stream {
        Stream {
            sender: Sender::H2(self.sender.clone()),
            place: self.streams.take(&self.line),
        }
    }
}

impl Pool {
    fn waiting(&mut self, watch: bool) -> &mut usize {
        if watch {
            &mut self.watches
        } else {
            &mut self.whole
        }
    }

    fn is_usable(kept: &Kept) -> bool {
        !kept.line.is_left()
    }

    /// A place on an open connection: on the wide one first, where that is allowed.
    fn find(&mut self, watch: bool) -> Option<Stream> {
        self.kept.retain(|kept| !kept.is_over());
        let wide = self
            .kept
            .iter()
            .find(|kept| !watch && kept.wide && kept.has_room());
        if wide.is_none() && !watch && self.wants_wide() {
            return None;
        }
        wide.or_else(|| self.kept.iter().find(|kept| !kept.wide && kept.has_room()))
            .map(Kept::place)
    }

    /// Requests at once on all connections that there may be; at least one on each of those that are still to be opened.
    fn capacity(&self) -> usize {
        let open: usize = self.kept.iter().map(|kept| kept.room(NARROW)).sum();
        let narrow = self
            .kept
            .iter()
            .find(|kept| !kept.wide)
            .map_or(NARROW, |kept| kept.room(NARROW).max(1));
        open + CONNECTIONS.saturating_sub(self.kept.len()) * narrow
    }

    fn wants_wide(&self) -> bool {
        self.wide == 0
            && !self
                .kept
                .iter()
                .any(|kept| kept.wide && Self::is_usable(kept))
    }

    /// The connections being dialled have room for one more that waits.
    fn is_enough(&self, watch: bool) -> bool {
        if watch {
            self.watches < self.narrow * FIRST
        } else {
            !self.wants_wide() && self.whole + self.watches < (self.wide + self.narrow) * FIRST
        }
    }
}

impl Shared {
    /// One more request of this client.
    ///
    /// # Errors
    /// It has as many as are left to all others.
    pub(crate) fn count(&self, client: Client) -> Result<Part, DialError> {
        let all = self.pool.lock().capacity();
        self.taken.take(client, all, KEPT).ok_or(DialError::Busy)
    }

    /// A place for a watch or for an answer that ends.
    ///
    /// # Errors
    /// The limit is reached, or the server allows no streams.
    pub(crate) fn seat(self: &Arc<Self>, watch: bool) -> Result<Seat, DialError> {
        let mut pool = self.pool.lock();
        if let Some(stream) = pool.find(watch) {
            return Ok(Seat::Taken(stream));
        }
        let dialling = pool.wide + pool.narrow;
        let full = pool.kept.len() + dialling >= CONNECTIONS;
        if pool.is_enough(watch) || full && dialling > 0 {
            *pool.waiting(watch) += 1;
            return Ok(Seat::Wait(Waiting {
                shared: Arc::clone(self),
                watch,
            }));
        }
        if full {
            return Err(DialError::Busy);
        }
        if pool
            .kept
            .iter()
            .filter(|kept| kept.allowed.load(Ordering::Relaxed) == 0)
            .count()
            >= WITHOUT_STREAMS
        {
            return Err(DialError::NoStreams);
        }
        let wide = !watch && pool.wants_wide();
        let narrow = pool
            .kept
            .iter()
            .any(|kept| !kept.wide && Pool::is_usable(kept))
            || pool.narrow > 0;
        let windows = WINDOWS[if wide { 0 } else { 1 + usize::from(narrow) }];
        *(if wide {
            &mut pool.wide
        } else {
            &mut pool.narrow
        }) += 1;
        Ok(Seat::Dial(Dialling {
            shared: Arc::clone(self),
            wide,
            windows,
        }))
    }

    /// A connection that has been opened, and the first place on it.
    pub(crate) fn add(&self, http2: Http2, line: &Arc<Line>, wide: bool) -> Stream {
        let kept = Kept {
            sender: http2.sender,
            wide,
            streams: Streams::new(&self.room, &http2.streams, http2.task.clone()),
            allowed: http2.streams,
            line: Arc::clone(line),
            driver: http2.task,
        };
        let stream = kept.place();
        self.pool.lock().kept.push(kept);
        self.room.notify_waiters();
        stream
    }

    /// New requests take new connections; what runs goes on.
    pub(crate) fn retire(&self) {
        let kept = &mut self.pool.lock().kept;
        kept.retain(|k| !k.is_over());
        for one in kept.iter() {
            one.line.leave();
        }
        while kept.len() > RETIRED {
            kept.remove(0).driver.abort();
        }
    }

    /// Forgets all connections, which are being closed.
    pub(crate) fn close(&self) {
        self.pool.lock().kept.clear();
    }

    pub(crate) fn open(&self) -> usize {
        let kept = &mut self.pool.lock().kept;
        kept.retain(|k| !k.is_over());
        kept.len()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// Two thousand answers that one client did not read took all streams, and the writes of all others met 429.
    #[test]
    fn one_client_leaves_as_many_streams_as_it_has_and_root_finds_some_always() {
        let shared = Shared::default();
        let most = CONNECTIONS * NARROW;
        let take_all = |client| -> Vec<Part> {
            std::iter::from_fn(|| shared.count(client).ok())
                .take(most + 1)
                .collect()
        };
        let pod = take_all(Client::Pod(1));
        assert_eq!(pod.len(), (most - KEPT) / 2);
        let others: Vec<_> = (2..200).map(|pod| take_all(Client::Pod(pod))).collect();
        assert!(
            others.iter().take(10).all(|taken| !taken.is_empty()),
            "newcomers find some"
        );
        assert_eq!(
            take_all(Client::Root(1)).len()
                + others.iter().map(Vec::len).sum::<usize>()
                + pod.len(),
            most
        );
        let address = Client::Address(IpAddr::from([10, 0, 0, 1]));
        drop((pod, others));
        assert!(!take_all(address).is_empty(), "given back");
    }
}
