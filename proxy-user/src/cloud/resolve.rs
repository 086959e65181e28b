//! The addresses of the API server. In: its name. Out: addresses, in the order in which they are to be tried.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use crate::config::Server;

/// How long a resolver is waited for where addresses are known from before.
const PATIENCE: Duration = Duration::from_millis(500);
/// Most addresses of one name that are tried.
const ADDRESSES: usize = 8;

type Found = Result<Vec<SocketAddr>, Arc<io::Error>>;
type Lookup = Shared<BoxFuture<'static, Found>>;

/// Resolves one server's name.
#[derive(Debug)]
pub(crate) struct Resolver {
    host: String,
    port: u16,
    /// At most one is under way: each takes a thread for as long as the system's resolver hangs.
    lookup: Mutex<Option<Lookup>>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    addresses: Vec<SocketAddr>,
    /// The one that was connected to last, and whether it served.
    last: Option<(SocketAddr, bool)>,
}

impl Resolver {
    /// Of a server; nothing is asked yet.
    pub(crate) fn new(server: &Server) -> Self {
        Self {
            host: server.host.clone(),
            port: server.port,
            lookup: Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// At most eight addresses, families in turn. The one that served last is the first, one that was connected to and
    /// did not serve is the last. A resolver that fails or hangs doesn't matter where addresses are known from before.
    ///
    /// # Errors
    /// The name does not resolve.
    pub(crate) async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let before = self.known.lock().addresses.clone();
        let found = match tokio::time::timeout(PATIENCE, self.look_up()).await {
            Ok(found) => found,
            Err(_) if before.is_empty() => self.look_up().await,
            Err(_) => Ok(before.clone()),
        };
        let addresses = match found {
            Err(_) if !before.is_empty() => before,
            found => found.map_err(|error| io::Error::new(error.kind(), error.to_string()))?,
        };
        let mut known = self.known.lock();
        known.addresses = addresses;
        Ok(ordered(&known))
    }

    /// Connected there; it is to be seen whether it serves.
    pub(crate) fn connected(&self, address: SocketAddr) {
        self.known.lock().last = Some((address, false));
    }

    pub(crate) fn serves(&self, address: SocketAddr) {
        self.known.lock().last = Some((address, true));
    }

    fn look_up(&self) -> Lookup {
        let mut under_way = self.lookup.lock();
        match under_way.as_ref().filter(|lookup| lookup.peek().is_none()) {
            Some(lookup) => lookup.clone(),
            None => {
                let (host, port) = (self.host.clone(), self.port);
                let lookup = async move {
                    let found = tokio::net::lookup_host((host.as_str(), port))
                        .await
                        .map_err(Arc::new)?;
                    Ok(found.collect())
                };
                under_way.insert(lookup.boxed().shared()).clone()
            }
        }
    }
}

/// RFC 8305 §4: families in turn, beginning with that of the resolver's first.
fn ordered(known: &Known) -> Vec<SocketAddr> {
    let first = known.addresses.first().map(SocketAddr::is_ipv4);
    let (mut these, mut those) = (
        Vec::with_capacity(ADDRESSES),
        known
            .addresses
            .iter()
            .filter(|a| Some(a.is_ipv4()) != first),
    );
    for address in known
        .addresses
        .iter()
        .filter(|a| Some(a.is_ipv4()) == first)
    {
        these.push(*address);
        these.extend(those.next());
    }
    these.extend(those);
    if let Some((address, serves)) = known.last
        && let Some(index) = these.iter().position(|a| *a == address)
    {
        these.remove(index);
        these.insert(if serves { 0 } else { these.len() }, address);
    }
    these.truncate(ADDRESSES);
    these
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(addresses: &[&str], last: Option<(&str, bool)>) -> Known {
        Known {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            last: last.map(|(address, serves)| (address.parse().unwrap(), serves)),
        }
    }

    #[test]
    fn families_take_turns_and_experience_goes_first() {
        let (a, b, c, d) = (
            "[2001:db8::1]:1",
            "[2001:db8::2]:1",
            "192.0.2.1:1",
            "192.0.2.2:1",
        );
        let table = [
            (None, [a, c, b, d]),
            (Some((d, true)), [d, a, c, b]),
            (Some((a, false)), [c, b, d, a]),
            (Some(("192.0.2.9:1", true)), [a, c, b, d]),
        ];
        for (last, expected) in table {
            let order: Vec<String> = ordered(&known(&[a, b, c, d], last))
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(order, expected, "{last:?}");
        }
    }

    #[test]
    fn of_very_many_addresses_some_are_tried() {
        let many: Vec<String> = (0..40).map(|n| format!("192.0.2.{n}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let order = ordered(&known(&many, Some(("192.0.2.39:1", true))));
        assert_eq!(
            (order.len(), order[0].to_string().as_str()),
            (ADDRESSES, "192.0.2.39:1")
        );
    }
}
