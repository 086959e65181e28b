//! The eBPF object in the kernel: loaded, attached, pinned, and typed access to its maps. The decisions that it carries
//! out are made in [`crate::steer`].

pub(crate) mod attach;
pub(crate) mod bpffs;
pub mod dump;
pub mod flows;
#[cfg(feature = "bpf-log")]
mod log;
pub(crate) mod maps;
mod netns;
pub(crate) mod object;
pub mod pins;
pub(crate) mod programs;
pub mod status;
mod sys;
