//! A pod of the node: a network namespace on a veth, with a default route to the node. In: the node's namespace, as the
//! calling thread's. Out: the pod's, and calls out of it.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

use hublet_tests::eventually::slowness_factor;
use hublet_tests::netns::Netns;

use super::{Node, OWN, accept, ip, steering};

/// The node's end of the pod's link.
pub const LINK: &str = "pod0";
pub const IP: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
/// The node's address on the pod's link.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The hardware addresses of the pod and of the node's end.
pub const HARDWARE: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]];

/// A hardware address as `ip` takes it.
pub fn hardware(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

pub struct Pod {
    pub netns: Netns,
}

impl Pod {
    pub fn new() -> Self {
        let netns = Netns::new("pod").expect("a network namespace");
        let [pod, node] = HARDWARE.map(hardware);
        ip(&format!(
            "link add {LINK} address {node} type veth peer name eth0 address {pod} netns {}",
            netns.path().display()
        ));
        ip(&format!("address add {NODE}/24 dev {LINK}"));
        ip(&format!("link set {LINK} up"));
        for words in [
            format!("address add {IP}/24 dev eth0"),
            "link set eth0 up".into(),
            format!("route add default via {NODE}"),
            // What isn't steered fails at once, as on the node.
            "route add unreachable 10.96.0.1/32".into(),
        ] {
            netns.run_ip(&words).unwrap();
        }
        Self { netns }
    }

    pub fn dial(&self, to: SocketAddrV4) -> io::Result<TcpStream> {
        let timeout = Duration::from_millis(800) * slowness_factor();
        self.netns
            .run(|| TcpStream::connect_timeout(&to.into(), timeout))
    }

    /// Its network namespace's cookie, as the kernel attests it.
    pub fn cookie(&self, node: &Node) -> Option<u64> {
        let (setup, listener) = steering(node, |_| {})?;
        let _client = self.dial(OWN).expect("direct");
        let cookie = accept(&setup, &listener).1.expect("attested").netns;
        assert_ne!(Some(cookie), setup.netns());
        node.undo(setup);
        Some(cookie)
    }
}
