//! System calls that aya and nix lack, and the proof that the types shared with the programs are plain bytes. The only
//! file of this crate with `unsafe`.
#![allow(
    unsafe_code,
    reason = "bpf() calls that aya lacks; every block says why it is sound"
)]

use std::cell::Cell;
use std::ffi::CString;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use hublet_ebpf::Shared;
use nix::libc;

/// A type shared with the programs, in the form that aya's maps take.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(transparent)]
pub(crate) struct Plain<T>(pub(super) T);

// SAFETY: `Shared` is sealed in hublet-ebpf and given to `repr(C)` structs without padding only.
unsafe impl<T: Shared> aya::Pod for Plain<T> {}

/// CLOCK_MONOTONIC, the clock of `bpf_ktime_get_ns`.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid pointer to a timespec; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// The cookie of this thread's network namespace.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")
        .or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"))?;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).expect("8 fits");
    // SAFETY: `length` is the size of `cookie`.
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

/// The head of `struct bpf_link_info`, and the first words of its union.
#[repr(C)]
#[derive(Default)]
pub(super) struct LinkInfo {
    pub(crate) kind: u32,
    id: u32,
    pub(crate) prog_id: u32,
    _pad: u32,
    /// cgroup: id (two words), attach type. Network namespace: inode, attach type. XDP: ifindex.
    pub(crate) words: [u32; 4],
}

impl LinkInfo {
    /// For a link of a cgroup.
    pub(super) fn cgroup_id(&self) -> u64 {
        u64::from(self.words[1]) << 32 | u64::from(self.words[0])
    }
}

/// The `query` member of `union bpf_attr`; the kernel writes the count.
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

pub(crate) fn object_get(path: &Path) -> io::Result<OwnedFd> {
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
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}

pub(crate) fn link_info(link: &OwnedFd) -> io::Result<LinkInfo> {
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

pub(crate) fn link_update(link: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
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

/// Ids of the programs attached to a cgroup with one attach type, in the order in which they run.
pub(crate) fn programs_of(cgroup: BorrowedFd<'_>, kind: u32) -> io::Result<Vec<u32>> {
    const MAX: usize = 64;
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
    Ok(ids[..count].to_vec())
}

/// `attr` must be the struct that the command takes.
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
