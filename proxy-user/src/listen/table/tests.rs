//! Eviction, shares, and the drain of the table.

use super::*;
use crate::budget::Budget;

const READER_TIMEOUT: Duration = Duration::from_secs(30);
const POD: Client = Client::Pod(1);
const KUBELET: Client = Client::Root(1);

struct Rig {
    table: Arc<ConnectionTable>,
    budget: Arc<Budget>,
    counters: Counters,
}

impl Rig {
    fn new(limit: usize) -> Self {
        Self {
            table: ConnectionTable::new(limit, READER_TIMEOUT),
            budget: Budget::new(1 << 20),
            counters: Counters::default(),
        }
    }

    fn acquire(&self, client: Client) -> Option<Arc<Activity>> {
        self.table
            .acquire(client, &self.budget.open_flow(client), &self.counters)
    }

    fn acquire_all(&self, client: Client, count: usize) -> Vec<Arc<Activity>> {
        (0..count)
            .map(|_| self.acquire(client).expect("a slot"))
            .collect()
    }
}

fn count_closed(connections: &[Arc<Activity>]) -> usize {
    connections
        .iter()
        .filter(|connection| connection.directive() == Directive::Close)
        .count()
}

#[test]
fn the_largest_client_is_evicted_from_and_slots_are_reserved_for_the_node() {
    let rig = Rig::new(32);
    let pod = rig.acquire_all(POD, 28);
    assert_eq!(
        count_closed(&pod),
        12,
        "one client alone gets half, and evicts its own"
    );
    let others: Vec<_> = (2..14)
        .flat_map(|uid| rig.acquire_all(Client::Pod(uid), 1))
        .collect();
    assert_eq!((count_closed(&pod), count_closed(&others)), (12, 0));
    let kubelet = rig.acquire_all(KUBELET, 4);
    assert_eq!(count_closed(&pod), 12, "four are reserved for it");
    let more = rig.acquire_all(KUBELET, 4);
    let other = rig.acquire_all(Client::Pod(99), 1);
    assert_eq!(count_closed(&pod), 17);
    assert_eq!(
        count_closed(&others) + count_closed(&kubelet) + count_closed(&more) + count_closed(&other),
        0
    );
    let own = rig.acquire_all(Client::Own, 1);
    assert_eq!((count_closed(&pod), count_closed(&own)), (18, 0));
}

/// Connections without requests took the memory that other clients' requests need, which got 429.
#[test]
fn one_clients_connections_take_no_more_than_its_share_of_memory() {
    let rig = Rig::new(4096);
    let pods: Vec<_> = (1..4)
        .flat_map(|uid| rig.acquire_all(Client::Pod(uid), 64))
        .collect();
    assert!(count_closed(&pods) > 0);
    drop(pods);
    let pods: Vec<_> = (1..4)
        .flat_map(|uid| rig.acquire_all(Client::Pod(uid), 15))
        .collect();
    assert_eq!(count_closed(&pods), 0, "a few are always allowed");
    let kubelet = rig.acquire_all(KUBELET, 64);
    assert_eq!(count_closed(&kubelet), 0);
}

#[test]
fn an_idle_connection_goes_before_one_in_use() {
    let rig = Rig::new(16);
    let pod = rig.acquire_all(POD, 8);
    let _in_use: Vec<_> = pod
        .iter()
        .enumerate()
        .filter(|(at, _)| *at != 5)
        .map(|(_, a)| InFlight::new(a))
        .collect();
    let _more = rig.acquire(POD).expect("a slot");
    assert_eq!(count_closed(&pod), 1);
    assert_eq!(pod[5].directive(), Directive::Close);
}

#[test]
fn privileged_connections_are_evicted_for_the_probe_and_not_for_a_pod() {
    let rig = Rig::new(16);
    let root = rig.acquire_all(KUBELET, 16);
    assert!(
        rig.acquire(POD).is_none(),
        "nothing of root's is evicted for a pod"
    );
    let _probe = rig.acquire(Client::Own).expect("a slot");
    assert_eq!(count_closed(&root), 1);
}

#[test]
fn slots_are_released() {
    let rig = Rig::new(2);
    let first = rig.acquire(KUBELET).expect("slot");
    let second = rig.acquire(KUBELET).expect("slot");
    let _third = rig
        .acquire(KUBELET)
        .expect("slot of the first or the second");
    assert_eq!(rig.table.open(), 3, "the evicted one has not closed yet");
    let (loser, _other) = if first.directive() == Directive::Close {
        (first, second)
    } else {
        (second, first)
    };
    drop(loser);
    assert_eq!(rig.table.open(), 2);
    let _fourth = rig.acquire(KUBELET).expect("slot");
    assert_eq!(rig.table.slots.lock().capacity(), 3, "slots are reused");
}

#[test]
fn a_client_that_reads_nothing_is_closed_and_a_slow_one_is_not() {
    let rig = Rig::new(4);
    let flow = rig.budget.open_flow(POD);
    let connection = rig.table.acquire(POD, &flow, &rig.counters).expect("slot");
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(flow.charge_chunk(bytes::Bytes::from_static(b"slow")));
        for _ in 0..PROGRESS_CHECKS {
            rig.table.close_stalled(&rig.counters);
        }
        assert_eq!(connection.directive(), Directive::Run);
        held.remove(0);
        held.push(flow.charge_chunk(bytes::Bytes::from_static(b"more")));
    }
    for _ in 0..PROGRESS_CHECKS + 2 {
        rig.table.close_stalled(&rig.counters);
    }
    assert_eq!(connection.directive(), Directive::Close);
}

/// Evicted connections that were upgraded stayed open, and 128 of them above the limit shut out
/// all other clients.
#[tokio::test]
async fn an_upgraded_connection_is_told_to_close() {
    let rig = Rig::new(2);
    let flow = rig.budget.open_flow(POD);
    let connection = rig.table.acquire(POD, &flow, &rig.counters).expect("slot");
    let told = tokio::spawn({
        let flow = Arc::clone(&flow);
        async move { flow.until_cut_off().await }
    });
    tokio::task::yield_now().await;
    connection.set_directive(Directive::Drain);
    tokio::task::yield_now().await;
    assert!(!told.is_finished());
    connection.set_directive(Directive::Close);
    told.await.expect("told");
    flow.until_cut_off().await;
}

#[tokio::test]
async fn a_drain_ends_with_the_last_connection() {
    let rig = Rig::new(2);
    let (open, table) = (rig.acquire(POD).expect("slot"), Arc::clone(&rig.table));
    table.drain();
    assert_eq!(open.directive(), Directive::Drain);
    assert_eq!(
        rig.acquire(POD).expect("late").directive(),
        Directive::Drain,
        "new connections drain, too"
    );
    let waiting = tokio::spawn({
        let table = Arc::clone(&table);
        async move { table.drained().await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(open);
    waiting.await.expect("emptied");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_makes_no_request_drains_then_closes() {
    let rig = Rig::new(4);
    let connection = rig.acquire(POD).expect("slot");
    let sweeps = tokio::spawn(Arc::clone(&rig.table).run_sweeps(Arc::default()));
    for (seconds, expected) in [
        (29, Directive::Run),
        (2, Directive::Drain),
        (13, Directive::Drain),
        (2, Directive::Close),
    ] {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        assert_eq!(connection.directive(), expected, "{seconds} s later");
    }
    sweeps.abort();
}

#[tokio::test(start_paused = true)]
async fn a_client_is_closed_a_check_after_the_reader_timeout() {
    let rig = Rig::new(4);
    let flow = rig.budget.open_flow(POD);
    let connection = rig.table.acquire(POD, &flow, &rig.counters).expect("slot");
    let _unread = flow.charge_chunk(bytes::Bytes::from_static(b"unread"));
    let checks = tokio::spawn(Arc::clone(&rig.table).run_stall_checks(Arc::default()));
    tokio::time::sleep(READER_TIMEOUT - Duration::from_secs(1)).await;
    assert_eq!(connection.directive(), Directive::Run);
    tokio::time::sleep(READER_TIMEOUT / PROGRESS_CHECKS + Duration::from_secs(2)).await;
    assert_eq!(connection.directive(), Directive::Close);
    checks.abort();
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_a_connection_that_is_not_in_the_table_yet() {
    let rig = Rig::new(2);
    let arriving = rig.table.drain_watcher();
    rig.table.drain();
    let minute = Duration::from_secs(60);
    assert!(
        tokio::time::timeout(minute, rig.table.drained())
            .await
            .is_err()
    );
    let connection = rig.acquire(POD).expect("slot");
    drop(arriving);
    assert!(
        tokio::time::timeout(minute, rig.table.drained())
            .await
            .is_err()
    );
    drop(connection);
    rig.table.drained().await;
}
