//! The node: the interface that carries hublet's address, the cgroup hierarchy, and the reasons why a component is
//! unavailable.

pub(crate) mod cgroup;
pub mod component;
pub mod dir_locks;
pub mod interface;
mod link;
pub mod unavailable;

pub(crate) use link::{info_kind, name_of};
