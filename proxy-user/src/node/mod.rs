//! The node as hublet finds and changes it: the interface that carries its address, the cgroup hierarchy, and why a
//! component is unavailable.

pub(crate) mod cgroup;
pub mod component;
pub mod dir_locks;
pub mod error;
pub(crate) mod interface;
pub(crate) mod link;
pub(crate) mod unavailable;
