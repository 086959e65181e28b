//! The eBPF object in the kernel: loaded, attached, pinned, and typed access to its maps. It carries out what
//! [`crate::steer`] decides.

pub(crate) mod attach;
pub(crate) mod bpffs;
pub(crate) mod flows;
#[cfg(feature = "bpf-log")]
pub(crate) mod log;
pub(crate) mod maps;
pub(crate) mod netns;
pub(crate) mod object;
pub mod pins;
pub mod status;
pub(crate) mod sys;
