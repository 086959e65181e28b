//! Promise: hublet's address is on the node, on a link of its own if the kernel supports one, and comes back within a
//! second if somebody removes it. hublet removes what it created and nothing else.
//!
//! Clients are configured with this address: if it is gone, they have no API server, and an interface that belongs to
//! somebody else must survive `hublet uninstall`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use hublet::config::SetupConfig;
use hublet::steer::{Setup, SetupError};
use node::{MARK, Node, component, dial, ip, listen};

/// Setup without eBPF (no such cgroup), so that these tests need no BPF object.
fn config(node: &Node) -> SetupConfig {
    let mut config = node.config();
    config.cgroup = Some("/nonexistent".into());
    config
}

fn prepare(node: &Node) -> Result<Setup, SetupError> {
    node.runtime.block_on(Setup::prepare(&config(node), MARK))
}

fn addresses() -> String {
    ip("-brief address")
}

#[test]
fn link_and_address_are_made_and_serve() {
    let Some(node) = Node::new() else { return };
    let before = (ip("-brief link"), addresses());
    let setup = prepare(&node).expect("setup");
    let interface = component(&setup, "interface");
    assert!(
        interface.on && interface.detail.starts_with("hub-dummy0 ("),
        "{interface:?}"
    );
    // `cargo xtask vm` says which kind is the first that its kernel has: another one is a fallback without need.
    if let Ok(kind) = std::env::var("HUBLET_TEST_LINK_KIND") {
        assert!(
            interface.detail.contains(&format!("({kind})")),
            "the kernel has {kind}: {interface:?}"
        );
    }
    let shown = ip("-details address show dev hub-dummy0");
    assert!(shown.contains("inet 169.254.2.1/32 scope link"), "{shown}");
    assert!(shown.contains("alias made by hublet"), "{shown}");
    assert!(
        !shown.contains("inet6"),
        "no IPv6 address of its own: {shown}"
    );
    let listener = listen(node::OWN);
    dial(listener.local_addr().unwrap()).expect("the address serves");
    node.undo(setup);
    assert_eq!((ip("-brief link"), addresses()), before);
}

#[test]
fn preparing_twice_changes_nothing() {
    let Some(node) = Node::new() else { return };
    let first = prepare(&node).expect("setup");
    let once = ip("address");
    let second = prepare(&node).expect("again");
    assert_eq!(ip("address"), once);
    assert!(component(&second, "interface").on);
    drop(second);
    node.undo(first);
    assert!(!addresses().contains("hub-dummy0"));
}

#[test]
fn what_a_killed_daemon_left_is_used_and_removed() {
    let Some(node) = Node::new() else { return };
    drop(prepare(&node).expect("setup")); // as kill -9 would: nothing is undone
    assert!(addresses().contains("169.254.2.1/32"));
    let setup = prepare(&node).expect("again");
    assert!(component(&setup, "interface").on);
    node.undo(setup);
    assert!(
        !addresses().contains("hub-dummy0"),
        "it was hublet's, so it goes"
    );
}

#[test]
fn a_link_that_the_user_created_is_kept() {
    let Some(node) = Node::new() else { return };
    ip("link add hub-dummy0 type bridge");
    let setup = prepare(&node).expect("setup");
    let interface = component(&setup, "interface");
    assert!(
        interface.on && interface.detail.contains("(bridge)"),
        "{interface:?}"
    );
    node.undo(setup);
    let left = addresses();
    assert!(
        left.contains("hub-dummy0") && !left.contains("169.254.2.1"),
        "{left}"
    );
}

#[test]
fn an_address_on_another_link_is_an_error_that_names_it() {
    let Some(node) = Node::new() else { return };
    ip("link add other0 type bridge");
    ip("address add 169.254.2.1/32 dev other0");
    let error = prepare(&node)
        .expect_err("it is someone else's")
        .to_string();
    assert!(
        error.contains("other0") && error.contains("ip address del 169.254.2.1 dev other0"),
        "{error}"
    );
}

#[test]
fn an_address_on_lo_is_used() {
    let Some(node) = Node::new() else { return };
    ip("address add 169.254.2.1/32 dev lo");
    let setup = prepare(&node).expect("setup");
    let interface = component(&setup, "interface");
    assert!(
        interface.on && interface.detail.starts_with("lo (loopback)"),
        "{interface:?}"
    );
    node.undo(setup);
    assert!(addresses().contains("169.254.2.1"), "it was there before");
}

#[test]
fn removed_link_or_address_is_back_within_a_second() {
    let Some(node) = Node::new() else { return };
    let setup = prepare(&node).expect("setup");
    for removal in [
        "link del hub-dummy0",
        "address del 169.254.2.1/32 dev hub-dummy0",
    ] {
        ip(removal);
        let begin = Instant::now();
        node.until(removal, || addresses().contains("169.254.2.1/32"));
        assert!(
            begin.elapsed() < Duration::from_secs(1),
            "{removal}: back after {:?}",
            begin.elapsed()
        );
    }
    node.until("the report", || {
        component(&setup, "interface")
            .detail
            .contains("restored 2 times")
    });
    node.undo(setup);
    assert!(!addresses().contains("hub-dummy0"));
}

#[test]
fn a_disabled_interface_is_reported() {
    let Some(node) = Node::new() else { return };
    let mut config = config(&node);
    config.dummy = None;
    let setup = node
        .runtime
        .block_on(Setup::prepare(&config, MARK))
        .expect("setup");
    let interface = component(&setup, "interface");
    assert!(
        !interface.on && interface.detail.contains("--enable-dummy-if=false"),
        "{interface:?}"
    );
    let steering = component(&setup, "steering");
    assert!(
        !steering.on && steering.detail.contains("/nonexistent"),
        "{steering:?}"
    );
    assert!(!addresses().contains(&IpAddr::V4(Ipv4Addr::new(169, 254, 2, 1)).to_string()));
    node.undo(setup);
}
