//! Limits that clients share: how many streams or connections each may hold of all that there are.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::caller::Client;
use crate::cloud::dial::DialError;

/// Longest wait for a permit of [`ConnectionLimit`].
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Clients remembered before those without a permit are forgotten.
const MAX_CLIENTS: usize = 64;

/// Shares a number of permits fairly: no client holds more than are free, so one alone gets half of
/// them and leaves some to a newcomer. [Privileged](Client::is_privileged) clients are exempt.
#[derive(Debug, Default)]
pub(super) struct FairLimit {
    held: Mutex<HeldPermits>,
    permit_freed: Notify,
}

/// The permits that there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct PermitPool {
    pub(super) total: usize,
    /// Of `total`, for privileged clients only.
    pub(super) reserved: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct HeldPermits {
    total: usize,
    by_client: HashMap<Client, usize>,
}

/// One permit of [`FairLimit`], given back when dropped.
#[derive(Debug)]
pub(super) struct ClientPermit {
    client: Client,
    limit: Arc<FairLimit>,
}

impl HeldPermits {
    fn allows(&self, client: Client, pool: PermitPool) -> bool {
        let privileged = client.is_privileged();
        // Unlike a connection's slot (`listen/table/slots.rs`), a permit is never taken back for a newcomer. So a client
        // must leave it some that it may use, and those in reserve don't count as free.
        let reserved = if privileged { 0 } else { pool.reserved };
        let free = pool.total.saturating_sub(self.total + reserved);
        let held = self.by_client.get(&client).copied().unwrap_or_default();
        free > 0 && (privileged || held == 0 || held < free)
    }

    fn add(&mut self, client: Client) {
        self.total += 1;
        *self.by_client.entry(client).or_default() += 1;
    }

    fn remove(&mut self, client: Client) {
        self.total -= 1;
        if let Some(held) = self.by_client.get_mut(&client) {
            *held -= 1;
            if *held == 0 {
                self.by_client.remove(&client);
            }
        }
    }
}

impl FairLimit {
    /// Takes a permit; the pool may differ from call to call.
    pub(super) fn try_acquire(
        self: &Arc<Self>,
        client: Client,
        pool: PermitPool,
    ) -> Result<ClientPermit, DialError> {
        let mut held = self.held.lock();
        if !held.allows(client, pool) {
            return Err(DialError::Busy);
        }
        held.add(client);
        Ok(ClientPermit {
            client,
            limit: Arc::clone(self),
        })
    }
}

impl Drop for ClientPermit {
    fn drop(&mut self) {
        self.limit.held.lock().remove(self.client);
        self.limit.permit_freed.notify_waiters();
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct LimitConfig {
    pub(super) total: usize,
    pub(super) per_client: usize,
    /// Of `total`, for privileged clients only.
    pub(super) reserved: usize,
}

/// A limit of connections: in all, for each client, and within what [`FairLimit`] leaves to it.
#[derive(Debug)]
pub(super) struct ConnectionLimit {
    config: LimitConfig,
    per_client: Mutex<HashMap<Client, Arc<Semaphore>>>,
    fair: Arc<FairLimit>,
}

/// One permit of [`ConnectionLimit`], given back when dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    fair: ClientPermit,
    _per_client: OwnedSemaphorePermit,
}

impl ConnectionPermit {
    pub(super) fn client(&self) -> Client {
        self.fair.client
    }
}

impl ConnectionLimit {
    pub(super) fn new(config: LimitConfig) -> Self {
        Self {
            config,
            per_client: Mutex::default(),
            fair: Arc::default(),
        }
    }

    /// Waits for a permit, first behind the client's own requests.
    ///
    /// # Errors
    /// [`DialError::Busy`] after [`ACQUIRE_TIMEOUT`].
    pub(super) async fn acquire(&self, client: Client) -> Result<ConnectionPermit, DialError> {
        tokio::time::timeout(ACQUIRE_TIMEOUT, self.wait_for_permit(client))
            .await
            .unwrap_or(Err(DialError::Busy))
    }

    async fn wait_for_permit(&self, client: Client) -> Result<ConnectionPermit, DialError> {
        let semaphore = self.semaphore(client);
        let per_client = semaphore.acquire_owned().await;
        let _per_client = per_client.map_err(|_| DialError::Busy)?;
        loop {
            let mut freed = std::pin::pin!(self.fair.permit_freed.notified());
            // Registers before the attempt, so that a permit freed in between is not missed.
            freed.as_mut().enable();
            if let Ok(fair) = self.try_acquire_fair(client) {
                return Ok(ConnectionPermit { fair, _per_client });
            }
            freed.await;
        }
    }

    /// # Errors
    /// [`DialError::Busy`]: the client has all of its own, or none is left.
    pub(super) fn try_acquire(&self, client: Client) -> Result<ConnectionPermit, DialError> {
        let per_client = self.semaphore(client).try_acquire_owned();
        Ok(ConnectionPermit {
            _per_client: per_client.map_err(|_| DialError::Busy)?,
            fair: self.try_acquire_fair(client)?,
        })
    }

    fn try_acquire_fair(&self, client: Client) -> Result<ClientPermit, DialError> {
        let pool = PermitPool {
            total: self.config.total,
            reserved: self.config.reserved,
        };
        self.fair.try_acquire(client, pool)
    }

    fn semaphore(&self, client: Client) -> Arc<Semaphore> {
        let mut per_client = self.per_client.lock();
        if per_client.len() >= MAX_CLIENTS {
            // Permits, and requests that wait for one, hold the semaphore as well.
            per_client.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        }
        let semaphore = per_client
            .entry(client)
            .or_insert_with(|| Arc::new(Semaphore::new(self.config.per_client)));
        Arc::clone(semaphore)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn client(last: u8) -> Client {
        Client::Address(IpAddr::from([10, 0, 0, last]))
    }

    fn limit(total: usize, per_client: usize, reserved: usize) -> ConnectionLimit {
        ConnectionLimit::new(LimitConfig {
            total,
            per_client,
            reserved,
        })
    }

    fn take_all(limit: &ConnectionLimit, client: Client) -> Vec<ConnectionPermit> {
        std::iter::from_fn(|| limit.try_acquire(client).ok()).collect()
    }

    #[test]
    fn a_client_may_hold_as_many_permits_as_are_free() {
        let root = Client::Root(1);
        for (client, held, others, total, reserved, allowed) in [
            (client(1), 0, 0, 1, 0, true),
            (client(1), 0, 1, 1, 0, false),
            (client(1), 1, 0, 2, 0, false),
            (client(1), 1, 0, 3, 0, true),
            (client(1), 2, 0, 4, 0, false),
            (client(1), 0, 3, 4, 0, true),
            (client(1), 1, 2, 4, 0, false),
            (client(1), 0, 0, 1, 1, false),
            (client(1), 1, 0, 4, 1, true),
            (client(1), 1, 0, 4, 2, false),
            (client(1), 0, 9, 4, 2, false),
            (root, 3, 0, 4, 4, true),
            (root, 4, 0, 4, 0, false),
        ] {
            let mut permits = HeldPermits::default();
            (0..held).for_each(|_| permits.add(client));
            (0..others).for_each(|_| permits.add(self::client(99)));
            let case = format!("{client:?} {held} {others} {total} {reserved}");
            let pool = PermitPool { total, reserved };
            assert_eq!(permits.allows(client, pool), allowed, "{case}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_client_can_not_take_the_permits_of_another() {
        let limit = limit(4, 2, 0);
        let mine = [
            limit.acquire(client(1)).await.unwrap(),
            limit.acquire(client(1)).await.unwrap(),
        ];
        let began = tokio::time::Instant::now();
        let third = limit.acquire(client(1)).await;
        assert!(matches!(third, Err(DialError::Busy)));
        assert_eq!(began.elapsed(), ACQUIRE_TIMEOUT);
        let others = limit.try_acquire(client(2)).unwrap();
        drop(mine);
        assert!(limit.try_acquire(client(1)).is_ok());
        drop(others);
    }

    /// Four addresses with eight permits each left none to anybody else.
    #[tokio::test(start_paused = true)]
    async fn a_newcomer_gets_a_permit_beside_four_greedy_clients_and_root_several() {
        let limit = limit(32, 8, 8);
        let mut held: Vec<_> = (1..=4)
            .flat_map(|last| take_all(&limit, client(last)))
            .collect();
        assert!(held.len() > 16, "no fewer than needed: {}", held.len());
        held.push(limit.acquire(client(5)).await.expect("a permit"));
        held.extend(take_all(&limit, client(6)));
        let root = take_all(&limit, Client::Root(1));
        assert_eq!(root.len(), 8);
        assert!(held.len() <= 24, "{}", held.len());
        drop((held, root));
        assert_eq!(*limit.fair.held.lock(), HeldPermits::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_request_gets_the_permit_that_is_given_back() {
        let limit = limit(1, 1, 0);
        let held = limit.try_acquire(client(1)).unwrap();
        let began = tokio::time::Instant::now();
        let (waited, ()) = tokio::join!(limit.acquire(client(2)), async { drop(held) });
        assert_eq!(waited.expect("the permit").client(), client(2));
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_behind_its_own_client_first() {
        let limit = limit(4, 1, 0);
        let held = limit.try_acquire(client(1)).unwrap();
        assert!(limit.try_acquire(client(1)).is_err());
        let (waited, ()) = tokio::join!(limit.acquire(client(1)), async { drop(held) });
        assert!(waited.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_given_up_holds_nothing() {
        let limit = limit(1, 1, 0);
        let held = limit.try_acquire(client(1)).unwrap();
        let wait = tokio::time::timeout(Duration::from_secs(1), limit.acquire(client(2)));
        assert!(wait.await.is_err());
        drop(held);
        assert!(limit.try_acquire(client(2)).is_ok());
    }

    #[test]
    fn clients_without_a_permit_are_forgotten() {
        let limit = limit(4, 2, 0);
        let held = limit.try_acquire(client(0)).unwrap();
        for last in 1..=u8::MAX {
            drop(limit.try_acquire(client(last)).unwrap());
        }
        assert!(limit.per_client.lock().len() <= MAX_CLIENTS);
        assert!(limit.per_client.lock().contains_key(&client(0)));
        drop(held);
    }
}
