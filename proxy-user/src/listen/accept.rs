//! The accept loop of a listener.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tracing::warn;

use super::acceptor::{Accepted, Acceptor};
use super::connection;
use crate::caller::Port;
use crate::drain::DrainWatcher;

/// Pause after accept has failed, doubled up to [`MAX_ACCEPT_BACKOFF`].
const MIN_ACCEPT_BACKOFF: Duration = Duration::from_millis(10);
const MAX_ACCEPT_BACKOFF: Duration = Duration::from_secs(1);

/// Accepts until the drain; the backlog at that time is still accepted.
pub(super) async fn accept_until_drain(
    acceptor: Arc<Acceptor>,
    listener: Arc<TcpListener>,
    port: Port,
    mut drain: DrainWatcher,
) {
    let mut backoff = MIN_ACCEPT_BACKOFF;
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = acceptor.accept(&listener, port) => accepted,
            () = drain.started() => return,
        };
        let error = match accepted {
            Ok(accepted) => {
                backoff = MIN_ACCEPT_BACKOFF;
                spawn_connection(&acceptor, accepted);
                continue;
            }
            Err(error) => error,
        };
        acceptor.counters.count_accept_error();
        if is_of_one_connection(&error) {
            continue;
        }
        if backoff == MIN_ACCEPT_BACKOFF {
            warn!(
                "accept failed: {error}; retrying, up to a second apart (raise the limit of open files?)"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(MAX_ACCEPT_BACKOFF),
            () = drain.started() => return,
        }
    }
}

fn spawn_connection(acceptor: &Arc<Acceptor>, accepted: Accepted) {
    let counters = &acceptor.counters;
    counters.count_accepted(accepted.remote, accepted.port);
    tokio::spawn(connection::serve(Arc::clone(acceptor), accepted));
}

/// The peer gave up before accept, as opposed to a shortage on this node.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shortages_of_the_node_pause_accept() {
        for (error, expected) in [
            (io::Error::from_raw_os_error(103), true), // ECONNABORTED
            (io::Error::from_raw_os_error(104), true), // ECONNRESET
            (io::Error::from_raw_os_error(4), true),   // EINTR
            (io::Error::from_raw_os_error(24), false), // EMFILE
            (io::Error::from_raw_os_error(23), false), // ENFILE
        ] {
            assert_eq!(is_of_one_connection(&error), expected, "{error}");
        }
    }
}
