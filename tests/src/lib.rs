//! The parts that the suites are built from.
//!
//! | a test needs | it takes |
//! |---|---|
//! | an API server without Go, or one that fails on command | [`cloud`] |
//! | the real API server, with Calico's resources | [`kube`] |
//! | a real node: kubelet, containerd, pods | [`kube::node`] |
//! | recorded traffic of a real client, compared with live answers | [`replay`] |
//! | a link that can be cut, slowed, black-holed | [`fault`] |
//! | the daemon itself, to start, kill and restart | [`daemon`] |
//! | a client: TLS or plain, HTTP/1.1 or 2, in a namespace | [`client`] |
//! | certificates, kubeconfigs, tokens | [`pki`] |
//! | a node with the daemon, the small cloud and the link between | [`site`] |
//! | such a node with a disk that is full or read-only | [`disk`] |
//! | a node or a pod of its own | [`netns`] |
//! | packets that no TCP stack would send | [`frames`] |
//! | a thread with a runtime in a namespace | [`worker`] |
//! | a cgroup of its own | [`cgroup`] |
//! | a cloud for use by hand, by scripts, by other processes | [`dev`] and the binary `hublet-cloud`; [`control`] steers it |
//! | to assert on metrics | [`metrics`] |
//! | to wait for something | [`eventually`] |
//! | root, BPF or Go | [`require`] |
#![forbid(unsafe_code)]

pub mod cgroup;
pub mod client;
pub mod cloud;
pub mod control;
pub mod daemon;
pub mod dev;
pub mod disk;
pub mod eventually;
pub mod fault;
pub mod frames;
mod keep;
pub mod kube;
pub mod metrics;
pub mod netns;
pub mod pki;
pub mod replay;
pub mod require;
pub mod site;
pub mod worker;
