//! The addresses of one API server, in the order in which to try them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::config::Server;

/// Longest wait for the system's resolver if addresses are known from before.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(500);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

type LookupResult = Result<Vec<SocketAddr>, Arc<io::Error>>;
type Lookup = Shared<BoxFuture<'static, LookupResult>>;

#[derive(Debug)]
pub(crate) struct Resolver {
    host: String,
    port: u16,
    /// One at a time: each takes a thread for as long as the system's resolver hangs.
    lookup: Mutex<Option<Lookup>>,
    known: Mutex<KnownAddresses>,
}

#[derive(Debug, Default)]
struct KnownAddresses {
    addresses: Vec<SocketAddr>,
    last_connect: Option<LastConnect>,
}

/// The address that was connected to last.
#[derive(Debug, Clone, Copy)]
struct LastConnect {
    address: SocketAddr,
    /// Its TLS handshake succeeded.
    served: bool,
}

impl Resolver {
    pub(crate) fn new(server: &Server) -> Self {
        Self {
            host: server.host.clone(),
            port: server.port,
            lookup: Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// At most [`MAX_ADDRESSES`], address families in turn. The one that served last comes first; one that
    /// was connected to and did not serve comes last. Known addresses stand in for a resolver that
    /// fails or hangs.
    ///
    /// # Errors
    /// The name does not resolve, and has not before.
    pub(crate) async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let known = self.known.lock().addresses.clone();
        let addresses = if known.is_empty() {
            let found = self.look_up().await;
            found.map_err(|error| io::Error::new(error.kind(), error.to_string()))?
        } else {
            match timeout(LOOKUP_TIMEOUT, self.look_up()).await {
                Ok(Ok(found)) => found,
                _ => known,
            }
        };
        let mut known = self.known.lock();
        known.addresses = addresses;
        Ok(known.in_order())
    }

    /// Records a TCP connection, before the TLS handshake.
    pub(crate) fn record_connected(&self, address: SocketAddr) {
        self.record(LastConnect {
            address,
            served: false,
        });
    }

    /// Records a TLS connection.
    pub(crate) fn record_served(&self, address: SocketAddr) {
        self.record(LastConnect {
            address,
            served: true,
        });
    }

    fn record(&self, connect: LastConnect) {
        self.known.lock().last_connect = Some(connect);
    }

    /// Joins the lookup under way, or begins one.
    fn look_up(&self) -> Lookup {
        let mut lookup = self.lookup.lock();
        match lookup.as_ref().filter(|lookup| lookup.peek().is_none()) {
            Some(under_way) => under_way.clone(),
            None => {
                let begun = resolve(self.host.clone(), self.port).boxed().shared();
                lookup.insert(begun).clone()
            }
        }
    }
}

async fn resolve(host: String, port: u16) -> LookupResult {
    let found = tokio::net::lookup_host((host.as_str(), port)).await;
    Ok(found.map_err(Arc::new)?.collect())
}

impl KnownAddresses {
    fn in_order(&self) -> Vec<SocketAddr> {
        let mut addresses = interleave_families(&self.addresses);
        if let Some(LastConnect { address, served }) = self.last_connect
            && let Some(index) = addresses.iter().position(|a| *a == address)
        {
            addresses.remove(index);
            let index = if served { 0 } else { addresses.len() };
            addresses.insert(index, address);
        }
        addresses.truncate(MAX_ADDRESSES);
        addresses
    }
}

/// RFC 8305 §4: families in turn, beginning with that of the resolver's first address.
fn interleave_families(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_ipv4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (first_family, other_family): (Vec<_>, Vec<_>) =
        addresses.iter().partition(|a| a.is_ipv4() == first_is_ipv4);
    let mut others = other_family.into_iter();
    let mut interleaved = Vec::with_capacity(addresses.len());
    for address in first_family {
        interleaved.push(address);
        interleaved.extend(others.next());
    }
    interleaved.extend(others);
    interleaved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(addresses: &[&str], last: Option<(&str, bool)>) -> KnownAddresses {
        KnownAddresses {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            last_connect: last.map(|(address, served)| LastConnect {
                address: address.parse().unwrap(),
                served,
            }),
        }
    }

    fn in_order(known: &KnownAddresses) -> Vec<String> {
        known.in_order().iter().map(ToString::to_string).collect()
    }

    fn resolver(host: &str) -> Resolver {
        Resolver::new(&Server {
            host: host.into(),
            port: 443,
        })
    }

    #[test]
    fn address_families_alternate_after_the_one_that_served_last() {
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
            assert_eq!(in_order(&known(&[a, b, c, d], last)), expected, "{last:?}");
        }
    }

    #[test]
    fn addresses_of_one_family_keep_their_order() {
        let addresses = ["192.0.2.3:1", "192.0.2.1:1", "192.0.2.2:1"];
        assert_eq!(in_order(&known(&addresses, None)), addresses);
        assert!(in_order(&known(&[], None)).is_empty());
    }

    #[test]
    fn the_rest_of_the_longer_family_comes_last() {
        let (six, four) = ("[2001:db8::1]:1", ["192.0.2.1:1", "192.0.2.2:1"]);
        let order = in_order(&known(&[four[0], four[1], six], None));
        assert_eq!(order, [four[0], six, four[1]]);
        let order = in_order(&known(&[six, four[0], four[1]], None));
        assert_eq!(order, [six, four[0], four[1]]);
    }

    #[test]
    fn only_some_of_very_many_addresses_are_tried() {
        let many: Vec<String> = (0..40).map(|n| format!("192.0.2.{n}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let order = in_order(&known(&many, Some(("192.0.2.39:1", true))));
        assert_eq!(order.len(), MAX_ADDRESSES);
        assert_eq!(order[0], "192.0.2.39:1");
    }

    #[tokio::test]
    async fn an_address_resolves_to_itself_and_what_served_is_remembered() {
        let resolver = resolver("192.0.2.7");
        let address = resolver.addresses().await.unwrap();
        assert_eq!(address, ["192.0.2.7:443".parse().unwrap()]);
        resolver.record_connected(address[0]);
        assert!(!resolver.known.lock().last_connect.unwrap().served);
        resolver.record_served(address[0]);
        assert!(resolver.known.lock().last_connect.unwrap().served);
    }

    #[tokio::test(start_paused = true)]
    async fn known_addresses_stand_in_for_a_resolver_that_hangs() {
        let resolver = resolver("192.0.2.7");
        *resolver.lookup.lock() = Some(std::future::pending().boxed().shared());
        resolver.known.lock().addresses = vec!["192.0.2.8:443".parse().unwrap()];
        let began = tokio::time::Instant::now();
        let addresses = resolver.addresses().await.unwrap();
        assert_eq!(addresses, ["192.0.2.8:443".parse().unwrap()]);
        assert_eq!(began.elapsed(), LOOKUP_TIMEOUT);
    }

    #[tokio::test]
    async fn known_addresses_stand_in_for_a_resolver_that_fails() {
        let failure = || async { Err(Arc::new(io::Error::other("no such host"))) };
        let fails = |resolver: &Resolver| {
            // Not polled before, so that it counts as under way.
            *resolver.lookup.lock() = Some(failure().boxed().shared());
        };
        let unknown = resolver("192.0.2.7");
        fails(&unknown);
        let error = unknown.addresses().await.unwrap_err();
        assert_eq!(error.to_string(), "no such host");
        let known = resolver("192.0.2.7");
        fails(&known);
        known.known.lock().addresses = vec!["192.0.2.8:443".parse().unwrap()];
        let addresses = known.addresses().await.unwrap();
        assert_eq!(addresses, ["192.0.2.8:443".parse().unwrap()]);
    }

    #[tokio::test]
    async fn one_lookup_is_under_way_at_a_time() {
        let resolver = resolver("192.0.2.7");
        let (first, second) = (resolver.look_up(), resolver.look_up());
        assert!(first.ptr_eq(&second));
        first.await.unwrap();
        assert!(
            !resolver.look_up().ptr_eq(&second),
            "a new one behind its end"
        );
    }
}
