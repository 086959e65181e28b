//! What can be missing, and the way out. In: an error of the kernel. Out: [`Unavailable`], whose text becomes the
//! detail of a [`Component`](super::component::Component) that is off. Nothing here stops the daemon.

use std::io;
use std::path::PathBuf;

use hublet_ebpf::programs;
use nix::libc;

/// Why a part of the setup is off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unavailable {
    /// Switched off by the user.
    #[error("switched off by {0}")]
    NotWanted(&'static str),
    /// Built without the BPF object.
    #[error("this binary was built without the BPF programs; build it with `cargo xtask build`")]
    Stub,
    /// EPERM or EACCES for want of a capability.
    #[error("{what} needs privileges that this process lacks: run it as root, or give it {needs}")]
    Privilege {
        what: String,
        /// The capabilities to give.
        needs: &'static str,
    },
    /// EPERM although the capabilities are there.
    #[error(
        "{what} is refused although the capabilities are there: the kernel is locked down \
         (see /sys/kernel/security/lockdown) or the container's seccomp profile forbids it"
    )]
    Refused { what: String },
    /// The kernel has no such thing.
    #[error("this kernel ({release}) can't do {what}: {needs}")]
    Kernel {
        what: String,
        release: String,
        /// Version or build option that brings it.
        needs: &'static str,
    },
    #[error(
        "no cgroup v2 hierarchy, and mounting one failed ({0}): mount it, or boot with cgroup v2 enabled"
    )]
    NoCgroup(io::Error),
    /// `--cgroup` can't be opened.
    #[error("cgroup {path}: {source}; name a directory of the cgroup v2 hierarchy")]
    Cgroup { path: PathBuf, source: io::Error },
    /// The verifier said no.
    #[error(
        "the kernel's verifier refuses {program} ({source}); please report this with the log:\n{log}"
    )]
    Verifier {
        program: &'static str,
        source: io::Error,
        /// Its log, with the source lines.
        log: String,
    },
    /// Another daemon is alive.
    #[error(
        "another hublet runs on this node and steers (it holds {pins}): stop it, or give this one its own --bpffs"
    )]
    Busy {
        /// What it has locked.
        pins: PathBuf,
    },
    /// Anything else, in the words of who failed.
    #[error("{what}: {why}")]
    Other { what: String, why: String },
}

/// Capabilities for loading and attaching.
pub(crate) const NEEDS_BPF: &str =
    "CAP_BPF, CAP_NET_ADMIN, and CAP_SYS_ADMIN for the mount of bpffs";
/// What raises the limit of locked memory.
const NEEDS_LIMIT: &str = "CAP_SYS_RESOURCE, or no limit of locked memory (LimitMEMLOCK=infinity), which Linux before 5.11 counts maps against";
/// Capabilities for the interface.
pub(crate) const NEEDS_NET: &str = "CAP_NET_ADMIN";
/// What the guard needs of a kernel.
const NEEDS_LOOKUP: &str = "sk_lookup tells the interface since Linux 5.17; on older ones name the uplinks (--xdp-uplink), or filter with nft";
/// What the whole eBPF part needs of a kernel.
const NEEDS_KERNEL: &str = "Linux 5.8 or newer with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_BPF_STREAM_PARSER (sockmap) is needed";

/// Since then maps are counted as the cgroup's memory.
const OWN_MEMORY_ACCOUNT: (u32, u32) = (5, 11);

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const CAP_BPF: u32 = 39;

/// Gives an error of a from_kernel(), mount() or socket call its cause.
pub(crate) fn from_kernel(what: impl Into<String>, error: &io::Error) -> Unavailable {
    let what = what.into();
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => from_denial(
            what,
            effective_capabilities(),
            is_older_than(OWN_MEMORY_ACCOUNT),
        ),
        Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOPROTOOPT | libc::ENODEV) => {
            kernel_too_old(what)
        }
        Some(libc::EINVAL) if is_older_than((5, 8)) => kernel_too_old(what),
        _ => Unavailable::Other {
            what,
            why: error.to_string(),
        },
    }
}

/// For want of which capability? A kernel that counts maps as locked memory wants one more, for raising that limit.
fn from_denial(what: String, held: u64, counts_locked: bool) -> Unavailable {
    let may = |cap: u32| held & (1 << cap) != 0;
    if !(may(CAP_BPF) && may(CAP_NET_ADMIN)) && !may(CAP_SYS_ADMIN) {
        Unavailable::Privilege {
            what,
            needs: NEEDS_BPF,
        }
    } else if counts_locked && !may(CAP_SYS_RESOURCE) {
        Unavailable::Privilege {
            what,
            needs: NEEDS_LIMIT,
        }
    } else {
        Unavailable::Refused { what }
    }
}

/// The verifier refused a program: because the kernel is too old for it, or for a reason that nobody knows yet.
pub(crate) fn from_verifier(program: &'static str, source: io::Error, log: String) -> Unavailable {
    // Before 5.9 there are no such programs (and so no log), before 5.17 their context has no interface.
    if program == programs::LOOKUP && (log.is_empty() || log.contains("invalid bpf_context access"))
    {
        let what = "the guard".into();
        return Unavailable::Kernel {
            what,
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

fn kernel_too_old(what: String) -> Unavailable {
    Unavailable::Kernel {
        what,
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

/// Is the running kernel older than this?
fn is_older_than(wanted: (u32, u32)) -> bool {
    parse_version(&kernel_release()).is_some_and(|found| found < wanted)
}

/// `6.1.190-amd64` → (6, 1).
fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The capabilities in force, as bits; none when they can't be read.
fn effective_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_capabilities(&status)
}

fn parse_capabilities(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(parse_version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(parse_version("5.4.0-150-generic"), Some((5, 4)));
        assert_eq!(parse_version("6.1-rc3"), Some((6, 1)));
        assert!(parse_version("5.10.0").unwrap() < parse_version("5.14").unwrap());
        assert_eq!(parse_version("strange"), None);
    }

    #[test]
    fn capabilities_are_read_as_bits() {
        assert_eq!(
            parse_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n") & (1 << CAP_BPF),
            1 << CAP_BPF
        );
        assert_eq!(parse_capabilities("CapEff:\t0000000000000000\n"), 0);
        assert_eq!(parse_capabilities(""), 0);
    }

    #[test]
    fn a_denial_names_the_capability_that_is_missing() {
        let bpf = 1 << CAP_BPF | 1 << CAP_NET_ADMIN;
        let said = |held, counts_locked| {
            from_denial("loading the maps".into(), held, counts_locked).to_string()
        };
        assert!(said(0, false).contains("CAP_BPF"));
        assert!(said(0, true).contains("CAP_BPF"));
        assert!(said(bpf, true).contains("LimitMEMLOCK"));
        assert!(said(bpf | 1 << CAP_SYS_RESOURCE, true).contains("locked down"));
        assert!(said(bpf, false).contains("locked down"));
    }

    #[test]
    fn an_old_kernel_is_no_defect_of_ours() {
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
    fn every_reason_names_a_way_out() {
        let text = from_kernel(
            "loading the programs",
            &io::Error::from_raw_os_error(libc::ENOSYS),
        )
        .to_string();
        assert!(
            text.contains("5.8") && text.contains("CONFIG_BPF_SYSCALL"),
            "{text}"
        );
        let text = Unavailable::Privilege {
            what: "x".into(),
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
