//! The BPF object in the kernel: loaded, pinned, attached. In: the embedded object, a cgroup, the pins that an
//! earlier daemon may have left. Out: maps for [`programs`](super::programs); links that live by their pins.
//!
//! The only file with `unsafe`, which is why it is longer than others: four bpf() calls that aya has no words for, two reads of the kernel's clocks and
//! cookies, and the promise that the shared types are plain bytes.
#![allow(
    unsafe_code,
    reason = "bpf() calls that aya lacks; every block says why it is sound"
)]

use std::cell::Cell;
use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapError};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, Program, ProgramError, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader};
use hublet_ebpf::{Shared, maps, programs};
use nix::libc;

use super::bpffs::Pins;
use super::fallback::{self, Missing};
use crate::text::with_causes;

/// The object that build.rs embedded; empty in a build without the BPF toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hublet.bpf.o"));

/// The programs without which nothing is steered, in the order of their attachment: identity is handed over before
/// anything is steered. With the kernel's number of the attach type.
const CORE: [(&str, u32, &str); 3] = [
    (programs::SOCKOPS, 3, "sock_ops"),
    (programs::CONNECT4, 10, "connect4"),
    (programs::CONNECT6, 11, "connect6"),
];
const GETPEER: [(&str, u32, &str); 2] = [
    (programs::GETPEER4, 29, "getpeername4"),
    (programs::GETPEER6, 30, "getpeername6"),
];

/// A shared type as aya wants it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(transparent)]
pub(super) struct Plain<T>(pub(super) T);

// SAFETY: `Shared` is sealed in hublet-ebpf and given to `repr(C)` structs without padding only.
unsafe impl<T: Shared> aya::Pod for Plain<T> {}

#[derive(Debug)]
pub(super) struct Loaded {
    /// As bpftool shows it.
    pub(super) name: &'static str,
    pub(super) id: u32,
    /// Where: `connect4 /sys/fs/cgroup`, `sk_lookup`, `xdp eth0` …
    pub(super) hook: String,
    /// The pin of its link.
    pub(super) pin: Option<PathBuf>,
}

/// Where to attach, and with what.
pub(super) struct Attach<'a> {
    pub(super) root: BorrowedFd<'a>,
    pub(super) cgroup: BorrowedFd<'a>,
    pub(super) cgroup_id: u64,
    pub(super) cgroup_path: &'a Path,
    /// Where the pins go; `None` = the links end with the process.
    pub(super) pins: Option<&'a Pins>,
    pub(super) getpeername: bool,
    /// The guard, in this network namespace.
    pub(super) guard: bool,
    /// Names and indices of the interfaces for XDP.
    pub(super) xdp: &'a [(String, u32)],
}

#[derive(Default)]
pub(super) struct Attached {
    /// The programs, one entry a link.
    pub(super) loaded: Vec<Loaded>,
    /// The links, where there is no bpffs.
    pub(super) links: Vec<FdLink>,
    /// What could not be had of the parts that can be missing: `getpeername`, `guard`, `xdp`.
    pub(super) off: Vec<(&'static str, Missing)>,
}

/// A place for one link.
struct Place<'a> {
    program: &'static str,
    hook: String,
    /// Name of the link's pin.
    pin: String,
    target: Target<'a>,
}

#[derive(Clone, Copy)]
enum Target<'a> {
    Cgroup {
        dir: BorrowedFd<'a>,
        id: u64,
        kind: u32,
    },
    Netns {
        file: &'a fs::File,
        inode: u64,
    },
    Interface {
        index: u32,
    },
}

impl Target<'_> {
    /// Is that link here? The words are those of `struct bpf_link_info` behind the common ones.
    fn is(&self, info: &LinkInfo) -> bool {
        let words = info.words;
        match *self {
            Self::Cgroup { id, kind, .. } => {
                (u64::from(words[1]) << 32 | u64::from(words[0]), words[2]) == (id, kind)
            }
            Self::Netns { inode, .. } => u64::from(words[0]) == inode,
            Self::Interface { index } => words[0] == index,
        }
    }
}

/// Is there an object at all?
pub(super) fn embedded() -> Result<(), Missing> {
    if OBJECT.is_empty() {
        Err(Missing::Stub)
    } else {
        Ok(())
    }
}

/// Makes the maps, or takes over those that a dead daemon left pinned.
pub(super) fn load(pins: Option<&Pins>) -> Result<Ebpf, Missing> {
    match load_object(OBJECT, pins) {
        // Same layout, but other sizes than its name says: not ours to keep.
        Err(EbpfError::MapError(MapError::IncompatiblePinnedMap { .. })) => {
            pins.inspect(|pins| pins.clear());
            load_object(OBJECT, pins)
        }
        loaded => loaded,
    }
    .map_err(|error| missing("loading the maps", &error))
}

fn load_object(bytes: &[u8], pins: Option<&Pins>) -> Result<Ebpf, EbpfError> {
    let mut loader = EbpfLoader::new();
    if let Some(pins) = pins {
        for name in maps::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    loader.load(bytes)
}

/// A map of the object, typed.
pub(super) fn map<M: TryFrom<Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<M, Missing> {
    let map = object.take_map(name).ok_or_else(|| not_in_object(name))?;
    M::try_from(map).map_err(|error| missing(name, &error))
}

/// Loads and attaches the programs: of the core all or none; the others each for itself.
pub(super) fn attach(object: &mut Ebpf, to: &Attach<'_>) -> Result<Attached, Missing> {
    let mut attached = Attached::default();
    let core = in_cgroup(&CORE, to);
    let done = verify(object, &core).and_then(|()| place_all(object, to.pins, core, &mut attached));
    if let Err(missing) = done {
        to.pins.inspect(|pins| pins.clear());
        return Err(missing);
    }
    let netns = fs::File::open("/proc/thread-self/ns/net");
    let mut extras = vec![];
    if to.getpeername {
        extras.push(("getpeername", in_cgroup(&GETPEER, to)));
    }
    if let (true, Ok(file)) = (to.guard, &netns) {
        let inode = file.metadata().map(|meta| meta.ino()).unwrap_or_default();
        let target = Target::Netns { file, inode };
        let pin = programs::LOOKUP.into();
        extras.push((
            "guard",
            vec![Place {
                program: programs::LOOKUP,
                hook: "sk_lookup, this network namespace".into(),
                pin,
                target,
            }],
        ));
    }
    for (name, index) in to.xdp {
        let (hook, pin) = (format!("xdp {name}"), format!("{}-{index}", programs::XDP));
        let target = Target::Interface { index: *index };
        extras.push((
            "xdp",
            vec![Place {
                program: programs::XDP,
                hook,
                pin,
                target,
            }],
        ));
    }
    for (part, places) in extras {
        let done = verify(object, &places)
            .and_then(|()| place_all(object, to.pins, places, &mut attached));
        if let Err(missing) = done {
            attached.off.push((part, missing));
        }
    }
    if let Some(pins) = to.pins {
        let keep: Vec<_> = attached
            .loaded
            .iter()
            .filter_map(|loaded| loaded.pin.as_deref())
            .collect();
        pins.keep_links(&keep);
    }
    Ok(attached)
}

fn in_cgroup<'a>(programs: &[(&'static str, u32, &str)], to: &Attach<'a>) -> Vec<Place<'a>> {
    let place = |(program, kind, hook): &(&'static str, u32, &str)| Place {
        program,
        hook: format!("{hook} {}", to.cgroup_path.display()),
        pin: (*program).to_owned(),
        target: Target::Cgroup {
            dir: to.cgroup,
            id: to.cgroup_id,
            kind: *kind,
        },
    };
    programs.iter().map(place).collect()
}

/// Loads the programs; nothing is attached before the verifier has passed every one.
fn verify(object: &mut Ebpf, places: &[Place<'_>]) -> Result<(), Missing> {
    for name in places.iter().map(|place| place.program) {
        let result = match object
            .program_mut(name)
            .ok_or_else(|| not_in_object(name))?
        {
            Program::SockOps(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::SkLookup(program) => program.load(),
            Program::Xdp(program) => program.load(),
            _ => return Err(not_in_object(name)),
        };
        match result {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(error) => return Err(not_loaded(name, error)),
        }
    }
    Ok(())
}

/// Why a program can't be loaded.
pub(super) fn not_loaded(program: &'static str, error: ProgramError) -> Missing {
    match error {
        // EPERM is for want of privileges; the verifier says EACCES or EINVAL.
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } if io_error.raw_os_error() != Some(libc::EPERM) => {
            fallback::verifier(program, io_error, verifier_log.to_string())
        }
        error => missing(&format!("loading {program}"), &error),
    }
}

fn place_all(
    object: &mut Ebpf,
    pins: Option<&Pins>,
    places: Vec<Place<'_>>,
    attached: &mut Attached,
) -> Result<(), Missing> {
    for place in places {
        let name = place.program;
        let program = object
            .program_mut(name)
            .ok_or_else(|| not_in_object(name))?;
        let failed = |error: ProgramError| missing(&format!("attaching {name}"), &error);
        let id = program.info().map_err(failed)?.id();
        let mut pin = None;
        match pins {
            Some(pins) => {
                let link = pins.link(&place.pin);
                let fresh = pin_program(program, &pins.program(name))
                    .and_then(|()| replace(program, id, &link, place.target))
                    .map_err(|error| fallback::bpf(format!("pinning {name}"), &error))?;
                if fresh {
                    let made = attach_one(program, place.target).map_err(failed)?;
                    made.pin(&link)
                        .map_err(|error| missing(&format!("pinning {name}"), &error))?;
                }
                pin = Some(link);
            }
            None => attached
                .links
                .push(attach_one(program, place.target).map_err(failed)?),
        }
        attached.loaded.push(Loaded {
            name,
            id,
            hook: place.hook,
            pin,
        });
    }
    Ok(())
}

/// A new link. `Single`: aya's `AllowMultiple` is EINVAL for links, which are multi anyway (aya#1078).
fn attach_one(program: &mut Program, target: Target<'_>) -> Result<FdLink, ProgramError> {
    match (program, target) {
        (Program::SockOps(program), Target::Cgroup { dir, .. }) => {
            let id = program.attach(dir, CgroupAttachMode::Single)?;
            Ok(program.take_link(id)?.try_into()?)
        }
        (Program::CgroupSockAddr(program), Target::Cgroup { dir, .. }) => {
            let id = program.attach(dir, CgroupAttachMode::Single)?;
            Ok(program.take_link(id)?.try_into()?)
        }
        (Program::SkLookup(program), Target::Netns { file, .. }) => {
            let id = program.attach(file)?;
            Ok(program.take_link(id)?.into())
        }
        (Program::Xdp(program), Target::Interface { index }) => {
            let id = program.attach(index, XdpMode::default())?;
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
fn replace(program: &Program, id: u32, path: &Path, target: Target<'_>) -> io::Result<bool> {
    let link = match object_get(path) {
        Ok(link) => link,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(true),
        Err(error) => return Err(error),
    };
    let found = link_info(&link)?;
    if target.is(&found) {
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

/// Names of the programs that see a connect() of an IPv4 socket in this cgroup before ours: what they rewrite, ours
/// doesn't see. Those of cgroups below run earlier, too, and aren't looked for.
pub(super) fn before_ours(cgroup: BorrowedFd<'_>, ours: &[Loaded]) -> io::Result<Vec<String>> {
    const MAX: usize = 64;
    let (name, kind, _) = CORE[1];
    let Some(own) = ours.iter().find(|loaded| loaded.name == name) else {
        return Ok(Vec::new());
    };
    let mut ids = [0u32; MAX];
    let attr = ProgramQuery {
        target: cgroup.as_raw_fd().unsigned_abs(),
        kind,
        ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(MAX).unwrap_or_default(),
        ..ProgramQuery::default()
    };
    let attr = Cell::new(attr);
    bpf(BPF_PROG_QUERY, &attr)?;
    let count = usize::try_from(attr.get().count)
        .unwrap_or_default()
        .min(MAX);
    let earlier: Vec<u32> = ids[..count]
        .iter()
        .copied()
        .take_while(|id| *id != own.id)
        .collect();
    Ok(earlier.into_iter().map(program_name).collect())
}

/// What is attached at a pin: the kind of the place, and the program's name.
pub(super) fn link_at(pin: &Path) -> io::Result<(String, String)> {
    let info = link_info(&object_get(pin)?)?;
    let hook = match (info.kind, info.words) {
        (3, [low, high, ..]) => format!("cgroup {}", u64::from(high) << 32 | u64::from(low)),
        (5, [inode, ..]) => format!("network namespace {inode}"),
        (6, [index, ..]) => format!("xdp on interface {index}"),
        (kind, _) => format!("link of kind {kind}"),
    };
    Ok((hook, program_name(info.prog_id)))
}

fn program_name(id: u32) -> String {
    let found = aya::programs::loaded_programs()
        .flatten()
        .find(|program| program.id() == id);
    found
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_else(|| format!("program {id}"))
}

pub(super) fn not_in_object(name: &str) -> Missing {
    Missing::Other {
        what: name.into(),
        why: "not in the embedded BPF object, which is of another version".into(),
    }
}

/// aya's errors carry the kernel's somewhere below.
pub(super) fn missing(what: &str, error: &(dyn std::error::Error + 'static)) -> Missing {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(io) = error
            .downcast_ref::<io::Error>()
            .filter(|io| io.raw_os_error().is_some())
        {
            return fallback::bpf(what, io);
        }
        source = error.source();
    }
    Missing::Other {
        what: what.into(),
        why: with_causes(error),
    }
}

/// CLOCK_MONOTONIC, which `bpf_ktime_get_ns` reads too.
pub(super) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid pointer to a timespec; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// The cookie of this thread's network namespace.
pub(super) fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")
        .or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"))?;
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
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_UPDATE: libc::c_long = 29;

/// `struct bpf_link_info`: what all kinds of links have, and the words of ours.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    _pad: u32,
    /// cgroup: id (two words), attach type. Network namespace: inode, attach type. XDP: ifindex.
    words: [u32; 4],
}

/// Of `union bpf_attr`; the kernel writes the count.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProgramQuery {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
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
    let attr = Attr {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    let fd = bpf(BPF_OBJ_GET, &attr)?;
    // SAFETY: a new descriptor of ours.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}

fn link_info(link: &OwnedFd) -> io::Result<LinkInfo> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        length: u32,
        info: u64,
    }
    const _: () = assert!(offset_of!(LinkInfo, words) == 16 && size_of::<LinkInfo>() == 32);
    let mut info = LinkInfo::default();
    let attr = Attr {
        fd: link.as_raw_fd().unsigned_abs(),
        length: 32,
        info: &raw mut info as u64,
    };
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
    let (link, program) = (
        link.as_raw_fd().unsigned_abs(),
        program.as_raw_fd().unsigned_abs(),
    );
    bpf(
        BPF_LINK_UPDATE,
        &Attr {
            link,
            program,
            flags: 0,
            old: 0,
        },
    )
    .map(drop)
}

/// One bpf() call; `attr` must be what the command takes.
fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: called by the functions of this file only, each with the struct of its command; what the structs
    // point to outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_by_the_verifier_shows_the_line_of_our_source() {
        if OBJECT.is_empty() || !nix::unistd::geteuid().is_root() {
            return eprintln!("SKIP: it needs the BPF object and root");
        }
        // `r0 = 1` becomes `r0 = 5`, which no program of a connect() may end with.
        let (one, five) = ([0xb7_u8, 0, 0, 0, 1, 0, 0, 0], 5);
        let mut bytes = OBJECT.to_vec();
        let places: Vec<usize> = (0..bytes.len() - one.len())
            .filter(|at| bytes[*at..].starts_with(&one))
            .collect();
        places.into_iter().for_each(|at| bytes[at + 4] = five);
        let mut object = load_object(&bytes, None).unwrap();
        let program: &mut aya::programs::CgroupSockAddr = object
            .program_mut(programs::CONNECT4)
            .unwrap()
            .try_into()
            .unwrap();
        let told = not_loaded(programs::CONNECT4, program.load().unwrap_err()).to_string();
        assert!(
            told.contains("hub_connect4") && told.contains("please report"),
            "{told}"
        );
        assert!(told.contains("R0"), "the verifier's own words: {told}");
        assert!(told.contains(".rs:"), "the line: {told}");
    }
}
