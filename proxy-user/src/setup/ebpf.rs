//! The BPF object in the kernel: loaded, pinned, attached. In: the embedded object, a cgroup, the pins that an
//! earlier daemon may have left. Out: maps for [`programs`](super::programs); links that live by their pins.
//!
//! The only file with `unsafe`: three bpf() calls that aya has no words for, two reads of the kernel's clocks and
//! cookies, and the promise that the shared types are plain bytes.
#![allow(unsafe_code, reason = "bpf() calls that aya lacks; every block says why it is sound")]

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapError};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use hublet_ebpf::{Shared, maps, programs};
use nix::libc;

use super::bpffs::Pins;
use super::fallback::{self, Missing};

/// The object that build.rs embedded; empty in a build without the BPF toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hublet.bpf.o"));

/// The programs in the order of their attachment: identity is handed over before anything is steered. With the
/// kernel's number of the attach type.
const ORDER: [(&str, u32, &str); 3] = [
    (programs::SOCKOPS, 3, "sock_ops"),
    (programs::CONNECT4, 10, "connect4"),
    (programs::CONNECT6, 11, "connect6"),
];

/// A shared type as aya wants it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Plain<T>(pub(super) T);

// SAFETY: `Shared` is sealed in hublet-ebpf and given to `repr(C)` structs without padding only.
unsafe impl<T: Shared> aya::Pod for Plain<T> {}

/// One program in the kernel.
#[derive(Debug)]
pub(super) struct Loaded {
    /// As bpftool shows it.
    pub(super) name: &'static str,
    /// The kernel's id.
    pub(super) id: u32,
    /// `connect4` …
    pub(super) hook: &'static str,
    /// The pin of its link.
    pub(super) pin: Option<PathBuf>,
}

/// Where to attach, and with what.
pub(super) struct Attach<'a> {
    /// The cgroup's directory.
    pub(super) cgroup: BorrowedFd<'a>,
    /// Its id.
    pub(super) cgroup_id: u64,
    /// Where the pins go; `None` = the links end with the process.
    pub(super) pins: Option<&'a Pins>,
    /// SO_MARK that is never steered.
    pub(super) mark: u32,
    /// Drain the programs' debug lines.
    pub(super) log: bool,
}

/// Is there an object at all?
pub(super) fn embedded() -> Result<(), Missing> {
    if OBJECT.is_empty() { Err(Missing::Stub) } else { Ok(()) }
}

/// Makes the maps, or takes over those that a dead daemon left pinned.
pub(super) fn load(pins: Option<&Pins>) -> Result<Ebpf, Missing> {
    match load_object(pins) {
        // Same layout, but other sizes than its name says: not ours to keep.
        Err(EbpfError::MapError(MapError::IncompatiblePinnedMap { .. })) => {
            pins.inspect(|pins| pins.clear());
            load_object(pins)
        }
        loaded => loaded,
    }
    .map_err(|error| missing("loading the maps", &error))
}

fn load_object(pins: Option<&Pins>) -> Result<Ebpf, EbpfError> {
    let mut loader = EbpfLoader::new();
    if let Some(pins) = pins {
        for name in maps::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    loader.load(OBJECT)
}

/// A map of the object, typed.
pub(super) fn map<M: TryFrom<Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<M, Missing> {
    let map = object.take_map(name).ok_or_else(|| not_in_object(name))?;
    M::try_from(map).map_err(|error| missing(name, &error))
}

/// Loads and attaches the programs: all, or none.
pub(super) fn attach(object: &mut Ebpf, to: &Attach<'_>) -> Result<(Vec<Loaded>, Vec<FdLink>), Missing> {
    verify(object)?;
    let attached = attach_all(object, to);
    if attached.is_err() {
        to.pins.inspect(|pins| pins.clear());
    }
    attached
}

/// Loads all programs; nothing is attached before the verifier has passed every one.
fn verify(object: &mut Ebpf) -> Result<(), Missing> {
    for (name, ..) in ORDER {
        let result = match object.program_mut(name).ok_or_else(|| not_in_object(name))? {
            Program::SockOps(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => return Err(not_in_object(name)),
        };
        result.map_err(|error| match error {
            // EPERM is for want of privileges; the verifier says EACCES or EINVAL.
            ProgramError::LoadError { io_error, verifier_log }
                if io_error.raw_os_error() != Some(libc::EPERM) =>
            {
                Missing::Verifier { program: name, source: io_error, log: verifier_log.to_string() }
            }
            error => missing(&format!("loading {name}"), &error),
        })?;
    }
    Ok(())
}

fn attach_all(object: &mut Ebpf, to: &Attach<'_>) -> Result<(Vec<Loaded>, Vec<FdLink>), Missing> {
    let (mut loaded, mut links) = (Vec::new(), Vec::new());
    for (name, kind, hook) in ORDER {
        let program = object.program_mut(name).ok_or_else(|| not_in_object(name))?;
        let failed = |error: ProgramError| missing(&format!("attaching {name}"), &error);
        let id = program.info().map_err(failed)?.id();
        match to.pins {
            Some(pins) => {
                let link = pins.link(name);
                let fresh = pin_program(program, &pins.program(name))
                    .and_then(|()| replace(program, id, &link, (kind, to.cgroup_id)))
                    .map_err(|error| fallback::bpf(format!("pinning {name}"), &error))?;
                if fresh {
                    let attached = attach_one(program, to.cgroup).map_err(failed)?;
                    attached.pin(&link).map_err(|error| missing(&format!("pinning {name}"), &error))?;
                }
                loaded.push(Loaded { name, id, hook, pin: Some(link) });
            }
            None => {
                links.push(attach_one(program, to.cgroup).map_err(failed)?);
                loaded.push(Loaded { name, id, hook, pin: None });
            }
        }
    }
    Ok((loaded, links))
}

/// A new link. `Single`: aya's `AllowMultiple` is EINVAL for links, which are multi anyway (aya#1078).
fn attach_one(program: &mut Program, cgroup: BorrowedFd<'_>) -> Result<FdLink, ProgramError> {
    match program {
        Program::SockOps(program) => {
            let id = program.attach(cgroup, CgroupAttachMode::Single)?;
            Ok(program.take_link(id)?.try_into()?)
        }
        Program::CgroupSockAddr(program) => {
            let id = program.attach(cgroup, CgroupAttachMode::Single)?;
            Ok(program.take_link(id)?.try_into()?)
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn pin_program(program: &mut Program, path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    program.pin(path).map_err(io::Error::other)
}

/// Puts our program into the link that is pinned at `path`, atomically: no connect in between is missed. True
/// when there is none that fits (same hook, same cgroup), so that a new one is due; one that doesn't fit goes.
fn replace(program: &Program, id: u32, path: &Path, fits: (u32, u64)) -> io::Result<bool> {
    let link = match object_get(path) {
        Ok(link) => link,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(true),
        Err(error) => return Err(error),
    };
    let found = link_info(&link)?;
    if (found.attach_type, found.cgroup_id) == fits {
        let program = program.fd().map_err(io::Error::other)?;
        link_update(&link, program.as_fd())?;
        // The kernel takes a connect6 program for a connect4 link without a word: look again.
        if link_info(&link)?.prog_id == id {
            return Ok(false);
        }
    }
    fs::remove_file(path)?;
    Ok(true)
}

fn not_in_object(name: &str) -> Missing {
    Missing::Other {
        what: name.into(),
        why: "not in the embedded BPF object, which is of another version".into(),
    }
}

/// aya's errors carry the kernel's somewhere below.
pub(super) fn missing(what: &str, error: &(dyn std::error::Error + 'static)) -> Missing {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>().filter(|io| io.raw_os_error().is_some()) {
            return fallback::bpf(what, io);
        }
        source = error.source();
    }
    Missing::Other { what: what.into(), why: error.to_string() }
}

/// CLOCK_MONOTONIC, which `bpf_ktime_get_ns` reads too.
pub(super) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer to a timespec; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// The cookie of this thread's network namespace.
pub(super) fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket =
        std::net::UdpSocket::bind("127.0.0.1:0").or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"))?;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).expect("8 fits");
    // SAFETY: the buffer is as long as said.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;

/// `struct bpf_link_info` of a cgroup link.
#[repr(C)]
#[derive(Default)]
struct CgroupLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    _pad: u32,
    cgroup_id: u64,
    attach_type: u32,
    _end: u32,
}

fn object_get(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Attr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &attr)?;
    // SAFETY: a new descriptor of ours.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}

fn link_info(link: &OwnedFd) -> io::Result<CgroupLinkInfo> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        length: u32,
        info: u64,
    }
    const _: () = assert!(offset_of!(CgroupLinkInfo, cgroup_id) == 16 && size_of::<CgroupLinkInfo>() == 32);
    let mut info = CgroupLinkInfo::default();
    let attr = Attr { fd: link.as_raw_fd().unsigned_abs(), length: 32, info: &raw mut info as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    Ok(info)
}

fn link_update(link: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link: u32,
        program: u32,
        flags: u32,
        old: u32,
    }
    let (link, program) = (link.as_raw_fd().unsigned_abs(), program.as_raw_fd().unsigned_abs());
    bpf(BPF_LINK_UPDATE, &Attr { link, program, flags: 0, old: 0 }).map(drop)
}

/// One bpf() call; `attr` must be what the command takes.
fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: called by the three functions above only, each with the struct of its command; what the structs
    // point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
