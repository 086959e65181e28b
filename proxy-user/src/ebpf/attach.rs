//! Attaches the programs. Where bpffs is mounted each link is pinned, so that it outlasts a crash, and the link of an
//! earlier daemon is taken over.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, Program, ProgramError, XdpMode};
use hublet_ebpf::programs;
use nix::libc;

use super::bpffs::Pins;
use super::object::{self, unavailable};
use super::sys::{LinkInfo, link_info, link_update, object_get, programs_of};
use crate::node::cgroup::CgroupDirectory;
use crate::node::unavailable::{self, Unavailable, UnavailableComponent};

/// A hook of a cgroup.
struct CgroupHook {
    program: &'static str,
    /// `enum bpf_attach_type`.
    attach_type: u32,
    name: &'static str,
}

const CONNECT4: CgroupHook = CgroupHook {
    program: programs::CONNECT4,
    attach_type: 10,
    name: "connect4",
};
/// All or none of these are attached, in this order: identity is handed over before anything is steered.
const CORE: [CgroupHook; 3] = [
    CgroupHook {
        program: programs::SOCKOPS,
        attach_type: 3,
        name: "sock_ops",
    },
    CONNECT4,
    CgroupHook {
        program: programs::CONNECT6,
        attach_type: 11,
        name: "connect6",
    },
];
const GETPEERNAME: [CgroupHook; 2] = [
    CgroupHook {
        program: programs::GETPEER4,
        attach_type: 29,
        name: "getpeername4",
    },
    CgroupHook {
        program: programs::GETPEER6,
        attach_type: 30,
        name: "getpeername6",
    },
];

impl CgroupHook {
    fn attachment<'a>(&self, directory: &'a CgroupDirectory) -> Attachment<'a> {
        Attachment {
            program: self.program,
            hook: format!("{} {}", self.name, directory.path.display()),
            pin: self.program.to_owned(),
            target: Target::Cgroup {
                directory,
                attach_type: self.attach_type,
            },
        }
    }
}

/// A network interface for XDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct XdpInterface {
    pub(crate) name: String,
    pub(crate) index: u32,
}

/// The programs to attach, and where.
pub(crate) struct AttachPlan<'a> {
    /// The root of the cgroup hierarchy.
    pub(crate) root: &'a CgroupDirectory,
    pub(crate) cgroup: &'a CgroupDirectory,
    /// Without pins the links end with the process.
    pub(crate) pins: Option<&'a Pins>,
    pub(crate) getpeername: bool,
    /// Attach the guard to this network namespace.
    pub(crate) guard: bool,
    pub(crate) xdp: &'a [XdpInterface],
}

#[derive(Debug)]
pub(crate) struct AttachedProgram {
    /// The name that bpftool shows.
    pub(crate) name: &'static str,
    pub(crate) id: u32,
    /// `connect4 /sys/fs/cgroup`, `sk_lookup`, `xdp eth0` …
    pub(crate) hook: String,
    /// The pin of its link.
    pub(crate) pin: Option<PathBuf>,
}

#[derive(Default)]
pub(crate) struct Attached {
    /// One entry per link.
    pub(crate) programs: Vec<AttachedProgram>,
    /// Links without pins.
    pub(crate) links: Vec<FdLink>,
    /// Of the optional components: `getpeername`, `guard`, `xdp`.
    pub(crate) unavailable: Vec<UnavailableComponent>,
}

impl Attached {
    fn pins(&self) -> Vec<&Path> {
        let pins = self.programs.iter();
        pins.filter_map(|program| program.pin.as_deref()).collect()
    }
}

/// One link to make.
struct Attachment<'a> {
    program: &'static str,
    hook: String,
    /// Name of the link's pin.
    pin: String,
    target: Target<'a>,
}

#[derive(Clone, Copy)]
enum Target<'a> {
    Cgroup {
        directory: &'a CgroupDirectory,
        attach_type: u32,
    },
    Netns {
        file: &'a File,
        inode: u64,
    },
    Interface {
        index: u32,
    },
}

impl Target<'_> {
    fn matches(&self, info: &LinkInfo) -> bool {
        match *self {
            Self::Cgroup {
                directory,
                attach_type,
            } => info.cgroup_id() == directory.id && info.words[2] == attach_type,
            Self::Netns { inode, .. } => u64::from(info.words[0]) == inode,
            Self::Interface { index } => info.words[0] == index,
        }
    }
}

impl Attachment<'_> {
    fn attach(&self, program: &mut Program) -> Result<FdLink, Unavailable> {
        attach_one(program, self.target).map_err(|error| self.failed("attaching", error))
    }

    /// The kernel's id of the loaded program.
    fn program_id(&self, program: &Program) -> Result<u32, Unavailable> {
        let info = program.info();
        info.map(|info| info.id())
            .map_err(|error| self.failed("attaching", error))
    }

    fn failed(
        &self,
        verb: &str,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> Unavailable {
        unavailable(format!("{verb} {}", self.program), error)
    }
}

/// A link that is to be made or that was taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PinnedLink {
    Missing,
    Replaced,
}

/// Loads and attaches the programs: the core as a whole, the optional components one by one.
///
/// # Errors
/// The core can't be attached; nothing stays attached then.
pub(crate) fn attach(object: &mut Ebpf, plan: &AttachPlan<'_>) -> Result<Attached, Unavailable> {
    let mut attached = Attached::default();
    let core = cgroup_attachments(&CORE, plan.cgroup);
    if let Err(reason) = attach_all(object, plan.pins, core, &mut attached) {
        plan.pins.inspect(|pins| pins.clear());
        return Err(reason);
    }
    attach_optional(object, plan, &mut attached);
    if let Some(pins) = plan.pins {
        pins.keep_links(&attached.pins());
    }
    Ok(attached)
}

fn attach_optional(object: &mut Ebpf, plan: &AttachPlan<'_>, attached: &mut Attached) {
    let netns = File::open("/proc/thread-self/ns/net");
    for (name, attachments) in optional_attachments(plan, netns.as_ref().ok()) {
        if let Err(reason) = attach_all(object, plan.pins, attachments, attached) {
            let missing = UnavailableComponent { name, reason };
            attached.unavailable.push(missing);
        }
    }
}

fn cgroup_attachments<'a>(
    hooks: &[CgroupHook],
    directory: &'a CgroupDirectory,
) -> Vec<Attachment<'a>> {
    let attachments = hooks.iter().map(|hook| hook.attachment(directory));
    attachments.collect()
}

/// The optional components by name.
fn optional_attachments<'a>(
    plan: &AttachPlan<'a>,
    netns: Option<&'a File>,
) -> Vec<(&'static str, Vec<Attachment<'a>>)> {
    let mut optional = Vec::new();
    if plan.getpeername {
        let attachments = cgroup_attachments(&GETPEERNAME, plan.cgroup);
        optional.push(("getpeername", attachments));
    }
    if let (true, Some(file)) = (plan.guard, netns) {
        optional.push(("guard", vec![guard_attachment(file)]));
    }
    for interface in plan.xdp {
        optional.push(("xdp", vec![xdp_attachment(interface)]));
    }
    optional
}

fn guard_attachment(netns: &File) -> Attachment<'_> {
    Attachment {
        program: programs::LOOKUP,
        hook: "sk_lookup, this network namespace".into(),
        pin: programs::LOOKUP.into(),
        target: Target::Netns {
            file: netns,
            inode: netns.metadata().map(|meta| meta.ino()).unwrap_or_default(),
        },
    }
}

fn xdp_attachment(interface: &XdpInterface) -> Attachment<'static> {
    Attachment {
        program: programs::XDP,
        hook: format!("xdp {}", interface.name),
        pin: format!("{}-{}", programs::XDP, interface.index),
        target: Target::Interface {
            index: interface.index,
        },
    }
}

/// Attaches nothing before the verifier has passed every program.
fn attach_all(
    object: &mut Ebpf,
    pins: Option<&Pins>,
    attachments: Vec<Attachment<'_>>,
    attached: &mut Attached,
) -> Result<(), Unavailable> {
    for attachment in &attachments {
        object::load_program(object, attachment.program)?;
    }
    for attachment in attachments {
        let program = attach_program(object, pins, attachment, &mut attached.links)?;
        attached.programs.push(program);
    }
    Ok(())
}

fn attach_program(
    object: &mut Ebpf,
    pins: Option<&Pins>,
    attachment: Attachment<'_>,
    links: &mut Vec<FdLink>,
) -> Result<AttachedProgram, Unavailable> {
    let program = object::program_mut(object, attachment.program)?;
    let id = attachment.program_id(program)?;
    let pin = match pins {
        Some(pins) => Some(attach_pinned(program, id, &attachment, pins)?),
        None => {
            links.push(attachment.attach(program)?);
            None
        }
    };
    Ok(AttachedProgram {
        name: attachment.program,
        id,
        hook: attachment.hook,
        pin,
    })
}

/// Takes over the pinned link, or makes and pins a new one. Returns the pin.
fn attach_pinned(
    program: &mut Program,
    id: u32,
    attachment: &Attachment<'_>,
    pins: &Pins,
) -> Result<PathBuf, Unavailable> {
    let path = pins.link(&attachment.pin);
    let link = pin_program(program, &pins.program(attachment.program))
        .and_then(|()| replace_program(program, id, &path, attachment.target))
        .map_err(|error| {
            unavailable::from_kernel(format!("pinning {}", attachment.program), error)
        })?;
    if link == PinnedLink::Missing {
        let link = attachment.attach(program)?;
        link.pin(&path)
            .map_err(|error| attachment.failed("pinning", error))?;
    }
    Ok(path)
}

fn attach_one(program: &mut Program, target: Target<'_>) -> Result<FdLink, ProgramError> {
    // aya's `AllowMultiple` is EINVAL for links, which allow several programs anyway (aya#1078).
    const MODE: CgroupAttachMode = CgroupAttachMode::Single;
    match (program, target) {
        (Program::SockOps(program), Target::Cgroup { directory, .. }) => {
            let id = program.attach(&directory.file, MODE)?;
            Ok(program.take_link(id)?.try_into()?)
        }
        (Program::CgroupSockAddr(program), Target::Cgroup { directory, .. }) => {
            let id = program.attach(&directory.file, MODE)?;
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

/// Puts the program into the link that is pinned at `path`, atomically, so that no connect in between is missed. A link
/// of another hook or cgroup is removed.
fn replace_program(
    program: &Program,
    id: u32,
    path: &Path,
    target: Target<'_>,
) -> io::Result<PinnedLink> {
    let Some(link) = open_pin(path)? else {
        return Ok(PinnedLink::Missing);
    };
    if target.matches(&link_info(&link)?) {
        let program = program.fd().map_err(io::Error::other)?;
        link_update(&link, program.as_fd())?;
        // The kernel silently accepts a connect6 program for a connect4 link.
        if link_info(&link)?.prog_id == id {
            return Ok(PinnedLink::Replaced);
        }
    }
    fs::remove_file(path)?;
    Ok(PinnedLink::Missing)
}

fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    match object_get(path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Names of the programs on this cgroup that see the connect() of an IPv4 socket before hublet's, which doesn't see the
/// addresses that they rewrite. Programs of cgroups below also run earlier, but are not listed.
///
/// # Errors
/// The kernel refuses the query.
pub(crate) fn earlier_programs(
    cgroup: BorrowedFd<'_>,
    attached: &[AttachedProgram],
) -> io::Result<Vec<String>> {
    let mut attached = attached.iter();
    let Some(own) = attached.find(|program| program.name == CONNECT4.program) else {
        return Ok(Vec::new());
    };
    let earlier = programs_of(cgroup, CONNECT4.attach_type)?
        .into_iter()
        .take_while(|id| *id != own.id);
    Ok(earlier.map(program_name).collect())
}

/// A pinned link, for people.
pub(crate) struct LinkDescription {
    pub(crate) hook: String,
    pub(crate) program: String,
}

/// # Errors
/// The pin can't be opened.
pub(crate) fn describe_link(pin: &Path) -> io::Result<LinkDescription> {
    let info = link_info(&object_get(pin)?)?;
    Ok(LinkDescription {
        hook: describe_hook(&info),
        program: program_name(info.prog_id),
    })
}

fn describe_hook(info: &LinkInfo) -> String {
    // `enum bpf_link_type`
    match (info.kind, info.words) {
        (3, _) => format!("cgroup {}", info.cgroup_id()),
        (5, [inode, ..]) => format!("network namespace {inode}"),
        (6, [index, ..]) => format!("xdp on interface {index}"),
        (kind, _) => format!("link of kind {kind}"),
    }
}

fn program_name(id: u32) -> String {
    let found = aya::programs::loaded_programs()
        .flatten()
        .find(|program| program.id() == id);
    found
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_else(|| format!("program {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> CgroupDirectory {
        CgroupDirectory {
            file: File::open("/").unwrap(),
            path: "/sys/fs/cgroup".into(),
            id: 1 << 32 | 7,
        }
    }

    fn link(kind: u32, words: [u32; 4]) -> LinkInfo {
        let mut info = LinkInfo::default();
        (info.kind, info.words) = (kind, words);
        info
    }

    #[test]
    fn a_pinned_link_is_taken_over_only_at_the_same_hook() {
        let directory = directory();
        let attachment = CONNECT4.attachment(&directory);
        let connect4 = CONNECT4.attach_type;
        assert!(attachment.target.matches(&link(3, [7, 1, connect4, 0])));
        assert!(!attachment.target.matches(&link(3, [8, 1, connect4, 0])));
        assert!(!attachment.target.matches(&link(3, [7, 1, connect4 + 1, 0])));
        let interface = Target::Interface { index: 3 };
        assert!(interface.matches(&link(6, [3, 0, 0, 0])));
        assert!(!interface.matches(&link(6, [4, 0, 0, 0])));
    }

    #[test]
    fn identity_is_attached_before_anything_is_steered() {
        let directory = directory();
        let attachments = cgroup_attachments(&CORE, &directory);
        let programs: Vec<_> = attachments.iter().map(|one| one.program).collect();
        assert_eq!(
            programs,
            [programs::SOCKOPS, programs::CONNECT4, programs::CONNECT6]
        );
        assert_eq!(attachments[1].hook, "connect4 /sys/fs/cgroup");
    }

    #[test]
    fn optional_components_are_those_of_the_plan() {
        let directory = directory();
        let eth0 = XdpInterface {
            name: "eth0".into(),
            index: 2,
        };
        let mut plan = AttachPlan {
            root: &directory,
            cgroup: &directory,
            pins: None,
            getpeername: false,
            guard: false,
            xdp: &[],
        };
        assert!(optional_attachments(&plan, Some(&directory.file)).is_empty());
        (plan.getpeername, plan.guard, plan.xdp) = (true, true, std::slice::from_ref(&eth0));
        let optional = optional_attachments(&plan, Some(&directory.file));
        let names: Vec<_> = optional.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["getpeername", "guard", "xdp"]);
        assert_eq!(optional[2].1[0].pin, "hub_xdp-2");
        let without_netns = optional_attachments(&plan, None);
        assert_eq!(without_netns.len(), 2, "no guard without a namespace");
    }

    #[test]
    fn links_are_described_by_their_kind() {
        assert_eq!(describe_hook(&link(3, [7, 0, 10, 0])), "cgroup 7");
        assert_eq!(
            describe_hook(&link(5, [4026, 0, 0, 0])),
            "network namespace 4026"
        );
        assert_eq!(describe_hook(&link(6, [2, 0, 0, 0])), "xdp on interface 2");
        assert_eq!(describe_hook(&link(9, [0; 4])), "link of kind 9");
    }
}
