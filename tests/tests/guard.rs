//! Promise (I10): packets from outside the node, and from pods on ports that are not for them, don't reach hublet's
//! addresses, whatever source address they have. SYNs that no TCP stack would send are put on a pod's link; the same
//! SYNs without the guard show what it refuses.
//!
//! Linux accepts a packet for a local address, 169.254.2.1 included, on every interface: without a guard a neighbour on
//! the network reaches it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::AsFd;

use hublet::config::SetupConfig;
use hublet::steer::Setup;
use hublet_tests::frames::Reply::{self, Nothing, Reset, SynAck};
use hublet_tests::frames::{Link, Wire};
use node::pod::{self, Pod};
use node::{Node, OWN, SERVICE, component, counter, dial, ip, listen, steering};

/// hublet's plain port, and a loopback port of somebody else's.
const PLAIN: SocketAddrV4 = SocketAddrV4::new(*OWN.ip(), 10261);
const LOOPBACK: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 10261);
const OTHERS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9999);
const FOREIGN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const LINK_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 7);

/// The kind of link between pod and node.
#[derive(Debug, Clone, Copy)]
struct Place {
    name: &'static str,
    /// The default route leads there.
    uplink: bool,
    route_localnet: bool,
    rp_filter: bool,
}

const PLACES: [Place; 5] = [
    Place {
        name: "a pod's",
        uplink: false,
        route_localnet: false,
        rp_filter: false,
    },
    Place {
        name: "a pod's, route_localnet",
        uplink: false,
        route_localnet: true,
        rp_filter: false,
    },
    Place {
        name: "the uplink",
        uplink: true,
        route_localnet: false,
        rp_filter: false,
    },
    Place {
        name: "the uplink, rp_filter",
        uplink: true,
        route_localnet: false,
        rp_filter: true,
    },
    Place {
        name: "the uplink, route_localnet",
        uplink: true,
        route_localnet: true,
        rp_filter: false,
    },
];

/// A SYN, and what comes of it in each place.
struct Row {
    from: Ipv4Addr,
    to: SocketAddrV4,
    unguarded: [Reply; PLACES.len()],
    guarded: [Reply; PLACES.len()],
}

/// A reset stands where the guard refused, nothing where the packet doesn't come as far as to it.
#[rustfmt::skip]
const ROWS: [Row; 8] = [
    row(pod::IP, OWN, [SynAck; 5], [SynAck, SynAck, Reset, Reset, Reset]),
    row(pod::IP, PLAIN, [SynAck; 5], [Reset; 5]),
    row(FOREIGN, OWN, [Nothing, Nothing, SynAck, SynAck, SynAck], [Nothing, Nothing, Reset, Reset, Reset]),
    row(LINK_LOCAL, OWN, [Nothing, Nothing, SynAck, SynAck, SynAck], [Nothing, Nothing, Reset, Reset, Reset]),
    row(*OWN.ip(), OWN, [Nothing; 5], [Nothing; 5]),
    row(Ipv4Addr::LOCALHOST, OWN, [Nothing; 5], [Nothing; 5]),
    row(pod::IP, LOOPBACK, [Nothing, SynAck, Nothing, Nothing, SynAck], [Nothing, Reset, Nothing, Nothing, Reset]),
    // Other programs on 127/8 are not ours to keep from pods, but nobody on the uplink has business there.
    row(pod::IP, OTHERS, [Nothing, SynAck, Nothing, Nothing, SynAck], [Nothing, SynAck, Nothing, Nothing, Reset]),
];

const fn row(
    from: Ipv4Addr,
    to: SocketAddrV4,
    unguarded: [Reply; PLACES.len()],
    guarded: [Reply; PLACES.len()],
) -> Row {
    Row {
        from,
        to,
        unguarded,
        guarded,
    }
}

/// A node with a pod, hublet's addresses served, and the pod's link open for crafted packets.
struct Stage {
    node: Node,
    pod: Pod,
    setup: Setup,
    wire: Wire,
    _listeners: [TcpListener; 4],
}

impl Stage {
    fn new(change: impl FnOnce(&mut SetupConfig)) -> Option<Self> {
        let node = Node::new()?;
        let pod = Pod::new();
        let (setup, secure) = steering(&node, change)?;
        let [plain, loopback, others] = [PLAIN, LOOPBACK, OTHERS].map(listen);
        for listener in [&plain, &loopback] {
            setup.attest(listener.as_fd()).unwrap();
        }
        let [from, to] = pod::HARDWARE;
        // Answers leave at once: nobody has to be asked where the pod is.
        let pods = pod::hardware(from);
        ip(&format!(
            "neighbour replace {} lladdr {pods} dev {} nud permanent",
            pod::IP,
            pod::LINK
        ));
        let link = Link {
            from,
            to,
            ip: pod::IP,
            closed: SocketAddrV4::new(pod::NODE, 9),
        };
        let wire = Wire::open(&pod.netns, "eth0", link).unwrap();
        Some(Self {
            node,
            pod,
            setup,
            wire,
            _listeners: [secure, plain, loopback, others],
        })
    }

    fn syn(&mut self, from: Ipv4Addr, to: SocketAddrV4) -> Reply {
        self.wire.send_syn(from, to).unwrap()
    }

    /// Makes the pod's link what the place says, and has the guard notice.
    fn enter(&mut self, place: Place) {
        for (name, on) in [
            ("route_localnet", place.route_localnet),
            ("rp_filter", place.rp_filter),
        ] {
            let path = format!("/proc/sys/net/ipv4/conf/{}/{name}", pod::LINK);
            fs::write(path, if on { "1" } else { "0" }).unwrap();
        }
        if place.uplink && !ip("route show default").contains(pod::LINK) {
            ip(&format!(
                "route add default via {} dev {}",
                pod::IP,
                pod::LINK
            ));
            if component(&self.setup, "guard").on {
                let (pod, node) = (&self.pod, &self.node);
                node.until("the uplink is noticed", || pod.dial(OWN).is_err());
            }
        }
    }

    /// Sends every row in every place; returns the outcomes that differ from the expected ones.
    fn deviations(&mut self, expected: impl Fn(&Row, usize) -> Reply) -> Vec<String> {
        let mut deviations = Vec::new();
        for (index, place) in PLACES.iter().enumerate() {
            self.enter(*place);
            for row in &ROWS {
                let (seen, expected) = (self.syn(row.from, row.to), expected(row, index));
                if seen != expected {
                    deviations.push(format!(
                        "{} → {}, {}: {seen:?}, not {expected:?}",
                        row.from, row.to, place.name
                    ));
                }
            }
        }
        deviations.extend(self.wire.late_replies());
        deviations
    }

    fn undo(self) {
        self.node.undo(self.setup);
    }
}

#[test]
fn without_the_guard_crafted_syns_are_answered() {
    let Some(mut stage) = Stage::new(|config| config.guard.on = false) else {
        return;
    };
    assert!(
        component(&stage.setup, "guard")
            .detail
            .contains("--guard=false")
    );
    assert_eq!(
        stage.deviations(|row, place| row.unguarded[place]),
        Vec::<String>::new()
    );
    assert_eq!(
        counter(&stage.setup, "pod_refused") + counter(&stage.setup, "uplink_refused"),
        0
    );
    stage.undo();
}

#[test]
fn i10_the_guard_refuses_crafted_syns() {
    let Some(mut stage) = Stage::new(|_| {}) else {
        return;
    };
    if !guarded(&stage.setup) {
        return;
    }
    assert_eq!(
        stage.deviations(|row, place| row.guarded[place]),
        Vec::<String>::new()
    );
    let refused = |uplink| {
        let refusals = |row: &Row| {
            let refused =
                |place: usize| PLACES[place].uplink == uplink && row.guarded[place] == Reset;
            (0..PLACES.len()).filter(|place| refused(*place)).count() as u64
        };
        ROWS.iter().map(refusals).sum::<u64>()
    };
    assert_eq!(counter(&stage.setup, "pod_refused"), refused(false));
    // Besides, the dials that found out when the uplink was noticed.
    assert!(counter(&stage.setup, "uplink_refused") > refused(true));
    stage.undo();
}

#[test]
fn i10_xdp_drops_crafted_syns_without_an_answer() {
    let Some(mut stage) = Stage::new(|config| config.guard.xdp = vec![pod::LINK.into()]) else {
        return;
    };
    assert!(
        component(&stage.setup, "xdp").on,
        "{:?}",
        component(&stage.setup, "xdp")
    );
    assert_eq!(stage.deviations(|_, _| Nothing), Vec::<String>::new());
    let sent = (ROWS.len() * PLACES.len()) as u64;
    assert!(
        counter(&stage.setup, "xdp_dropped") >= sent,
        "each was dropped on the link itself"
    );
    stage.undo();
}

fn guarded(setup: &Setup) -> bool {
    let guard = component(setup, "guard");
    if !guard.on {
        let _: Option<()> = node::skip(&guard.detail);
    }
    guard.on
}

#[test]
fn i10_the_guard_admits_pods_to_the_secure_port_only() {
    let Some(node) = Node::new() else { return };
    let pod = Pod::new();
    let Some((setup, _secure)) = steering(&node, |_| {}) else {
        return;
    };
    if !guarded(&setup) {
        return;
    }
    let foreign = SocketAddrV4::new(*OWN.ip(), 9999);
    let listeners = [PLAIN, LOOPBACK, foreign].map(listen);
    listeners
        .iter()
        .take(2)
        .for_each(|listener| setup.attest(listener.as_fd()).unwrap());
    for address in [OWN, PLAIN, LOOPBACK, foreign] {
        drop(
            dial(address)
                .unwrap_or_else(|error| panic!("the host itself reaches {address}: {error}")),
        );
    }
    pod.dial(OWN).expect("a pod reaches the secure port");
    assert_eq!(counter(&setup, "pod_refused"), 0);
    pod.dial(PLAIN).expect_err("a pod and the plain port");
    pod.dial(foreign)
        .expect_err("a pod and another port of our address");
    assert!(counter(&setup, "pod_refused") >= 2);

    // The veth becomes the way out of the node: from now on what comes by it is from outside.
    let route = format!("default via {} dev {}", pod::IP, pod::LINK);
    ip(&format!("route add {route}"));
    node.until("the uplink is noticed", || pod.dial(OWN).is_err());
    assert!(counter(&setup, "uplink_refused") >= 1);
    drop(dial(OWN).expect("the host itself"));
    ip(&format!("route del {route}"));
    node.until("it is a pod's again", || pod.dial(OWN).is_ok());
    node.undo(setup);
}

#[test]
fn xdp_drops_on_the_named_uplinks() {
    let Some(node) = Node::new() else { return };
    let pod = Pod::new();
    let change = |config: &mut SetupConfig| config.guard.xdp = vec![pod::LINK.into()];
    let Some((setup, secure)) = steering(&node, change) else {
        return;
    };
    let guard = component(&setup, "guard");
    assert!(
        guard.on || guard.detail.contains("XDP drops"),
        "half a guard is reported as such: {guard:?}"
    );
    pod.dial(OWN).expect_err("dropped before anything answers");
    let elsewhere = listen(SocketAddrV4::new(pod::NODE, 8080));
    pod.dial(SocketAddrV4::new(pod::NODE, 8080))
        .expect("other addresses are not our business");
    drop(elsewhere);
    drop(dial(OWN).expect("the host itself"));
    node.undo(setup);
    drop(secure);

    let change = |config: &mut SetupConfig| config.guard.xdp = vec!["no-such-link".into()];
    let Some((setup, _secure)) = steering(&node, change) else {
        return;
    };
    let missing = component(&setup, "xdp");
    assert!(
        !missing.on && missing.detail.contains("no-such-link"),
        "{missing:?}"
    );
    drop(dial(SERVICE).expect("the rest works"));
    node.undo(setup);
}
