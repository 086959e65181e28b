//! The programs, attached: each link pinned where there is a bpffs, and an earlier daemon's link taken over.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, Program, ProgramError, XdpMode};
use hublet_ebpf::programs;
use nix::libc;

use super::bpffs::Pins;
use super::object::{self, missing, not_in_object};
use super::sys::{LinkInfo, link_info, link_update, object_get, programs_of};
use crate::node::unavailable::{self, Unavailable};

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

#[derive(Debug)]
pub(crate) struct Loaded {
    /// As bpftool shows it.
    pub(crate) name: &'static str,
    pub(crate) id: u32,
    /// Where: `connect4 /sys/fs/cgroup`, `sk_lookup`, `xdp eth0` …
    pub(crate) hook: String,
    /// The pin of its link.
    pub(crate) pin: Option<PathBuf>,
}

/// Where to attach, and with what.
pub(crate) struct Attach<'a> {
    pub(crate) root: BorrowedFd<'a>,
    pub(crate) cgroup: BorrowedFd<'a>,
    pub(crate) cgroup_id: u64,
    pub(crate) cgroup_path: &'a Path,
    /// Where the pins go; `None` = the links end with the process.
    pub(crate) pins: Option<&'a Pins>,
    pub(crate) getpeername: bool,
    /// The guard, in this network namespace.
    pub(crate) guard: bool,
    /// Names and indices of the interfaces for XDP.
    pub(crate) xdp: &'a [(String, u32)],
}

#[derive(Default)]
pub(crate) struct Attached {
    /// The programs, one entry a link.
    pub(crate) loaded: Vec<Loaded>,
    /// The links, where there is no bpffs.
    pub(crate) links: Vec<FdLink>,
    /// What could not be had of the components that can be missing: `getpeername`, `guard`, `xdp`.
    pub(crate) off: Vec<(&'static str, Unavailable)>,
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

/// Loads and attaches the programs: of the core all or none; the others each for itself.
pub(crate) fn attach(object: &mut Ebpf, to: &Attach<'_>) -> Result<Attached, Unavailable> {
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
fn verify(object: &mut Ebpf, places: &[Place<'_>]) -> Result<(), Unavailable> {
    places
        .iter()
        .try_for_each(|place| object::verify(object, place.program))
}

fn place_all(
    object: &mut Ebpf,
    pins: Option<&Pins>,
    places: Vec<Place<'_>>,
    attached: &mut Attached,
) -> Result<(), Unavailable> {
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
                    .map_err(|error| unavailable::from_kernel(format!("pinning {name}"), &error))?;
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
pub(crate) fn before_ours(cgroup: BorrowedFd<'_>, ours: &[Loaded]) -> io::Result<Vec<String>> {
    let (name, kind, _) = CORE[1];
    let Some(own) = ours.iter().find(|loaded| loaded.name == name) else {
        return Ok(Vec::new());
    };
    let earlier = programs_of(cgroup, kind)?
        .into_iter()
        .take_while(|id| *id != own.id);
    Ok(earlier.map(program_name).collect())
}

/// What is attached at a pin: the kind of the place, and the program's name.
pub(crate) fn link_at(pin: &Path) -> io::Result<(String, String)> {
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
