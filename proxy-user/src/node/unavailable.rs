//! Reasons why a component is unavailable, each with the way to make it available. The text becomes the detail of a
//! [`Component`](super::component::Component) that is off; none of them stops the daemon.

use std::io;
use std::path::PathBuf;

use hublet_ebpf::programs;
use nix::libc;

use crate::text::with_causes;

/// The reason why a component is off.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("switched off by {0}")]
    SwitchedOff(&'static str),
    /// Built without the BPF object.
    #[error("this binary was built without the BPF programs; build it with `cargo xtask build`")]
    Stub,
    /// EPERM or EACCES for lack of a capability.
    #[error(
        "{operation} needs privileges that this process lacks: run it as root, or give it {needs}"
    )]
    Privilege {
        operation: String,
        needs: &'static str,
    },
    /// EPERM despite sufficient capabilities.
    #[error(
        "{operation} is denied despite sufficient capabilities: the kernel is locked down \
         (see /sys/kernel/security/lockdown) or the container's seccomp profile forbids it"
    )]
    Refused { operation: String },
    #[error("this kernel ({release}) does not support {operation}: {needs}")]
    Kernel {
        operation: String,
        release: String,
        /// Version or build option that has it.
        needs: &'static str,
    },
    #[error(
        "no cgroup v2 hierarchy, and mounting one failed ({0}): mount it, or boot with cgroup v2 enabled"
    )]
    NoCgroup(#[source] io::Error),
    #[error("cgroup {path}: {source}; name a directory of the cgroup v2 hierarchy")]
    Cgroup { path: PathBuf, source: io::Error },
    /// The verifier rejected a program.
    #[error(
        "the kernel's verifier rejected {program} ({source}); please report this with the log:\n{log}"
    )]
    Verifier {
        program: &'static str,
        source: io::Error,
        /// The verifier's, with source lines.
        log: String,
    },
    #[error(
        "another hublet on this node is already steering (it holds {pins}): stop it, or give this one its own --bpffs"
    )]
    Busy { pins: PathBuf },
    #[error("{interface}: no such interface; `ip link` lists those that exist")]
    NoInterface { interface: String },
    #[error("{0} is missing from the embedded BPF object, which was built from another version")]
    NotInObject(String),
    #[error("{operation}: {}", with_causes(&**source))]
    Failed {
        operation: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A component that is off.
#[derive(Debug)]
pub(crate) struct UnavailableComponent {
    pub(crate) name: &'static str,
    pub(crate) reason: Unavailable,
}

/// Capabilities for loading and attaching programs.
pub(crate) const NEEDS_BPF: &str =
    "CAP_BPF, CAP_NET_ADMIN, and CAP_SYS_ADMIN for the mount of bpffs";
/// Raises the limit of locked memory.
const NEEDS_LIMIT: &str = "CAP_SYS_RESOURCE, or no limit of locked memory (LimitMEMLOCK=infinity), which Linux before 5.11 counts maps against";
/// Capabilities for the interface.
pub(crate) const NEEDS_NET: &str = "CAP_NET_ADMIN";
const NEEDS_LOOKUP: &str = "sk_lookup tells the interface since Linux 5.17; on older ones name the uplinks (--xdp-uplink), or filter with nft";
const NEEDS_KERNEL: &str = "Linux 5.8 or newer with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_BPF_STREAM_PARSER (sockmap) is needed";

/// Since this version maps count as the cgroup's memory, no longer as locked memory.
const OWN_MEMORY_ACCOUNT: KernelVersion = KernelVersion {
    major: 5,
    minor: 11,
};
/// The oldest kernel that has everything which the core needs.
const OLDEST: KernelVersion = KernelVersion { major: 5, minor: 8 };

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const CAP_BPF: u32 = 39;

/// The likely cause of an error of a bpf(), mount() or socket call.
pub(crate) fn from_kernel(operation: impl Into<String>, error: io::Error) -> Unavailable {
    let operation = operation.into();
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            from_denial(operation, effective_capabilities(), MapMemory::of_kernel())
        }
        Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOPROTOOPT | libc::ENODEV) => {
            kernel_too_old(operation)
        }
        Some(libc::EINVAL) if is_older_than(OLDEST) => kernel_too_old(operation),
        _ => Unavailable::Failed {
            operation,
            source: error.into(),
        },
    }
}

/// Names the missing capability. A kernel that counts maps as locked memory needs one more, to raise that limit.
fn from_denial(operation: String, held: Capabilities, maps: MapMemory) -> Unavailable {
    let may_load = held.has(CAP_BPF) && held.has(CAP_NET_ADMIN);
    if !may_load && !held.has(CAP_SYS_ADMIN) {
        Unavailable::Privilege {
            operation,
            needs: NEEDS_BPF,
        }
    } else if maps == MapMemory::Locked && !held.has(CAP_SYS_RESOURCE) {
        Unavailable::Privilege {
            operation,
            needs: NEEDS_LIMIT,
        }
    } else {
        Unavailable::Refused { operation }
    }
}

/// A rejection by the verifier, either because the kernel is too old or for an unknown reason.
pub(crate) fn from_verifier(program: &'static str, source: io::Error, log: String) -> Unavailable {
    // Before 5.9 there are no such programs (and so no log), before 5.17 their context has no interface.
    if program == programs::LOOKUP && (log.is_empty() || log.contains("invalid bpf_context access"))
    {
        return Unavailable::Kernel {
            operation: "the guard".into(),
            release: kernel_release(),
            needs: NEEDS_LOOKUP,
        };
    }
    Unavailable::Verifier {
        program,
        source,
        log,
    }
}

fn kernel_too_old(operation: String) -> Unavailable {
    Unavailable::Kernel {
        operation,
        release: kernel_release(),
        needs: NEEDS_KERNEL,
    }
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "?".into(),
        |name| name.release().to_string_lossy().into_owned(),
    )
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct KernelVersion {
    major: u32,
    minor: u32,
}

impl KernelVersion {
    /// Of a release such as `6.1.190-amd64`.
    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(['.', '-', '+']).map(str::parse);
        Some(Self {
            major: numbers.next()?.ok()?,
            minor: numbers.next()?.ok()?,
        })
    }
}

fn is_older_than(wanted: KernelVersion) -> bool {
    KernelVersion::parse(&kernel_release()).is_some_and(|found| found < wanted)
}

/// Effective capabilities as bits (proc_pid_status(5), `CapEff`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Capabilities(u64);

impl Capabilities {
    fn has(self, capability: u32) -> bool {
        self.0 & (1 << capability) != 0
    }
}

/// The account that a kernel charges maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MapMemory {
    Locked,
    Cgroup,
}

impl MapMemory {
    fn of_kernel() -> Self {
        if is_older_than(OWN_MEMORY_ACCOUNT) {
            Self::Locked
        } else {
            Self::Cgroup
        }
    }
}

/// None if they can't be read.
fn effective_capabilities() -> Capabilities {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_capabilities(&status)
}

fn parse_capabilities(status: &str) -> Capabilities {
    let bits = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    Capabilities(bits.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        for (release, major, minor) in [
            ("6.18.44-fc-v595", 6, 18),
            ("5.4.0-150-generic", 5, 4),
            ("6.1-rc3", 6, 1),
        ] {
            let version = KernelVersion { major, minor };
            assert_eq!(KernelVersion::parse(release), Some(version));
        }
        assert!(KernelVersion::parse("5.10.0").unwrap() < KernelVersion::parse("5.14").unwrap());
        assert_eq!(KernelVersion::parse("strange"), None);
    }

    #[test]
    fn capabilities_are_read_as_bits() {
        assert_eq!(
            parse_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"),
            Capabilities(0x1ff_ffff_ffff)
        );
        assert_eq!(
            parse_capabilities("CapEff:\t0000000000000000\n"),
            Capabilities(0)
        );
        assert_eq!(parse_capabilities(""), Capabilities(0));
    }

    #[test]
    fn a_denial_names_the_capability_that_is_missing() {
        let bpf = 1 << CAP_BPF | 1 << CAP_NET_ADMIN;
        let text = |held, maps| {
            from_denial("loading the maps".into(), Capabilities(held), maps).to_string()
        };
        assert!(text(0, MapMemory::Cgroup).contains("CAP_BPF"));
        assert!(text(0, MapMemory::Locked).contains("CAP_BPF"));
        assert!(text(bpf, MapMemory::Locked).contains("LimitMEMLOCK"));
        let with_resource = bpf | 1 << CAP_SYS_RESOURCE;
        assert!(text(with_resource, MapMemory::Locked).contains("locked down"));
        assert!(text(bpf, MapMemory::Cgroup).contains("locked down"));
    }

    #[test]
    fn a_verifier_error_on_an_old_kernel_is_not_reported_as_a_bug() {
        let refused = |program, log: &str| {
            from_verifier(
                program,
                io::Error::from_raw_os_error(libc::EACCES),
                log.into(),
            )
            .to_string()
        };
        let log = "12: (61) r1 = *(u32 *)(r6 +64)\ninvalid bpf_context access off=64 size=4";
        for log in [log, ""] {
            let text = refused(programs::LOOKUP, log);
            assert!(
                text.contains("5.17") && text.contains("--xdp-uplink"),
                "{text}"
            );
        }
        let text = refused(programs::LOOKUP, "R1 !read_ok");
        assert!(
            text.contains("please report") && text.ends_with("R1 !read_ok"),
            "{text}"
        );
        assert!(refused(programs::CONNECT4, log).contains("please report"));
    }

    #[test]
    fn every_reason_names_a_remedy() {
        let text = from_kernel(
            "loading the programs",
            io::Error::from_raw_os_error(libc::ENOSYS),
        )
        .to_string();
        assert!(
            text.contains("5.8") && text.contains("CONFIG_BPF_SYSCALL"),
            "{text}"
        );
        let text = Unavailable::Privilege {
            operation: "x".into(),
            needs: NEEDS_NET,
        }
        .to_string();
        assert!(
            text.contains("root") && text.contains("CAP_NET_ADMIN"),
            "{text}"
        );
        assert!(Unavailable::Stub.to_string().contains("cargo xtask build"));
    }
}
