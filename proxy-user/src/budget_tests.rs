//! Shares, waits and refusals of one budget.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::FutureExt as _;

use super::*;

fn client(last: u8) -> Client {
    Client::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)))
}

/// Charges chunks of a KiB until there is no capacity, and returns their number.
fn fill(flow: &Arc<Flow>, held: &mut Vec<Bytes>) -> usize {
    let before = held.len();
    while flow.has_capacity() {
        held.push(flow.charge_chunk(Bytes::from(vec![0; 1024 - CHUNK_OVERHEAD])));
    }
    held.len() - before
}

#[test]
fn one_client_gets_half_and_a_newcomer_finds_room() {
    let budget = Budget::new(900 << 10);
    let (first, second) = (budget.open_flow(client(1)), budget.open_flow(client(2)));
    let mut held = Vec::new();
    // Two connections take 32 KiB: x + (x + 32) = 900 with the first one's own 16.
    assert_eq!(fill(&first, &mut held), 426);
    assert_eq!(fill(&second, &mut held), 213, "half of what is left");
    assert!(
        !budget.open_flow(client(1)).has_capacity(),
        "another connection of the first has no share of its own"
    );
    assert!(budget.open_flow(client(3)).has_capacity());
    assert_eq!(first.write_progress().pending, 426 << 10);
    held.clear();
    let (bytes, limit) = (2 * CONNECTION_BYTES, 900 << 10);
    assert_eq!(budget.usage(), Usage { bytes, limit });
    let (pending, written) = (0, 426);
    assert_eq!(first.write_progress(), WriteProgress { pending, written });
    drop((first, second));
    assert_eq!(budget.usage().bytes, 0);
}

#[test]
fn a_client_that_has_read_everything_proceeds_however_full_it_is() {
    let budget = Budget::new(1 << 10);
    let flows: Vec<_> = (0..50).map(|n| budget.open_flow(client(n))).collect();
    let held: Vec<_> = flows
        .iter()
        .map(|flow| flow.charge_chunk(Bytes::from(vec![0; 1 << 20])))
        .collect();
    assert!(
        flows
            .iter()
            .all(|flow| !flow.has_capacity() && flow.charge_request(0).is_none())
    );
    let newcomer = budget.open_flow(client(51));
    assert!(newcomer.has_capacity() && newcomer.charge_request(0).is_some());
    drop(held);
    assert!(flows[0].has_capacity());
}

#[test]
fn large_buffers_are_counted_and_for_few_connections_with_room() {
    let budget = Budget::new(64 << 20);
    let flows: Vec<_> = (0..MANY_CONNECTIONS)
        .map(|_| budget.open_flow(client(1)))
        .collect();
    let large = flows[0].charge_large_buffers();
    assert!(large.is_some());
    assert_eq!(
        budget.usage().bytes,
        MANY_CONNECTIONS * CONNECTION_BYTES + LARGE_BUFFER_BYTES
    );
    let one_more = budget.open_flow(client(1));
    assert!(one_more.charge_large_buffers().is_none() && flows[1].charge_large_buffers().is_none());
    drop((large, one_more));
    assert_eq!(budget.usage().bytes, MANY_CONNECTIONS * CONNECTION_BYTES);
    let _held = flows[0].charge_chunk(Bytes::from(vec![0; 40 << 20]));
    assert!(flows[0].charge_large_buffers().is_none(), "no room");
    assert!(budget.open_flow(client(2)).charge_large_buffers().is_some());
}

#[tokio::test]
async fn a_waiting_client_is_woken_when_there_is_room_again() {
    let budget = Budget::new(100 << 10);
    let flow = budget.open_flow(client(1));
    let mut held = Vec::new();
    fill(&flow, &mut held);
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            let flow = Arc::clone(&flow);
            tokio::spawn(async move { flow.wait_for_capacity().await })
        })
        .collect();
    tokio::task::yield_now().await;
    waiting[0].abort();
    tokio::task::yield_now().await;
    assert!(!waiting[1].is_finished());
    held.clear();
    for waiting in waiting.into_iter().skip(1) {
        waiting.await.expect("woken");
    }
    assert_eq!(flow.share.wakers.lock().len(), 0);
    assert_eq!(budget.waiting_clients.load(SeqCst), 0);
}

/// All requests of a client without room waited, and held all places among the requests meanwhile: others met 429.
#[tokio::test]
async fn few_requests_of_a_client_wait_for_room() {
    let budget = Budget::new(100 << 10);
    let flow = budget.open_flow(client(1));
    let mut held = Vec::new();
    fill(&flow, &mut held);
    let mut waiting: Vec<_> = (0..MAX_WAITING)
        .map(|_| Box::pin(flow.wait_for_admission()))
        .collect();
    assert!(
        waiting
            .iter_mut()
            .all(|waits| waits.now_or_never().is_none())
    );
    assert_eq!(flow.wait_for_admission().now_or_never(), Some(false));
    waiting.pop();
    assert_eq!(flow.wait_for_admission().now_or_never(), None);
    held.clear();
    assert_eq!(waiting.remove(0).now_or_never(), Some(true));
}

/// The bodies of fifty thousand refusals, on streams whose flow-control window was closed, used 250 MiB.
#[tokio::test]
async fn few_unread_refusals_of_a_client_have_a_body() {
    let flow = Budget::new(100 << 10).open_flow(client(1));
    let refusals: Vec<_> = (0..100)
        .map(|_| flow.limit_refusal(Bytes::from_static(b"no")))
        .collect();
    assert_eq!(
        refusals.iter().filter(|body| !body.is_empty()).count(),
        MAX_WAITING
    );
    drop(refusals);
    assert!(!flow.limit_refusal(Bytes::from_static(b"no")).is_empty());
}

/// Each cancelled wait leaked its client's share.
#[tokio::test]
async fn a_wait_that_is_given_up_leaves_nothing() {
    let budget = Budget::new(100 << 10);
    let flow = budget.open_flow(client(1));
    let mut held = Vec::new();
    fill(&flow, &mut held);
    let polled = |waiter: &mut Option<Waiter>| {
        flow.poll_capacity(&Context::from_waker(Waker::noop()), waiter)
            .is_pending()
    };
    let mut lasting = None;
    for _ in 0..1000 {
        let mut waiter = None;
        assert!(polled(&mut waiter) && polled(&mut waiter));
    }
    assert_eq!(
        (
            budget.waiting.lock().len(),
            budget.waiting_clients.load(SeqCst)
        ),
        (0, 0)
    );
    assert!(polled(&mut lasting));
    let mut waiter = None;
    assert!(polled(&mut waiter));
    drop(waiter);
    assert_eq!(
        (
            budget.waiting.lock().len(),
            budget.waiting_clients.load(SeqCst)
        ),
        (1, 1),
        "one still waits"
    );
    held.clear();
    assert_eq!(
        (
            budget.waiting.lock().len(),
            budget.waiting_clients.load(SeqCst)
        ),
        (0, 0)
    );
    assert!(!polled(&mut lasting) && lasting.is_none());
}
