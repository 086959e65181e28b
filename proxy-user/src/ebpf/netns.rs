//! Which network namespace is ours. In: the kernel. Out: its cookie, by which the programs tell the host's sockets from
//! pods'.
//!
//! Linux 5.14 tells user space (`SO_NETNS_COOKIE`). Before, it tells programs only: `hub_netns`, attached for one
//! moment, notes the cookie on a socket of ours, which dials what nobody else does ([`NOWHERE`]).

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd};

use aya::Ebpf;
use aya::maps::{MapData, SkStorage};
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use hublet_ebpf::{Ident, programs};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::object::{self, missing};
use super::sys::{self, Plain};
use crate::node::unavailable::{self, Unavailable};

/// Linux takes it for this host's port 0, where nobody can listen. No packet of it leaves the host.
const NOWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
const WHAT: &str = "asking for the cookie of the network namespace";

/// The cookie of this thread's network namespace. `root` is the cgroup hierarchy's, `ident` the object's map.
pub(crate) fn cookie(
    object: &mut Ebpf,
    ident: &SkStorage<MapData, Plain<Ident>>,
    root: BorrowedFd<'_>,
) -> Result<u64, Unavailable> {
    match sys::netns_cookie() {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            by_program(object, ident, root)
        }
        told => told.map_err(|error| unavailable::from_kernel(WHAT, &error)),
    }
}

fn by_program(
    object: &mut Ebpf,
    ident: &SkStorage<MapData, Plain<Ident>>,
    root: BorrowedFd<'_>,
) -> Result<u64, Unavailable> {
    let program = object
        .program_mut(programs::NETNS)
        .ok_or_else(|| object::not_in_object(programs::NETNS))?;
    let program: &mut CgroupSockAddr = program.try_into().map_err(|error| missing(WHAT, &error))?;
    program
        .load()
        .map_err(|error| object::not_loaded(programs::NETNS, error))?;
    let link = program
        .attach(root, CgroupAttachMode::Single)
        .map_err(|error| missing(WHAT, &error))?;
    let noted = note().and_then(|socket| ident.get(&socket.as_fd(), 0).map_err(io::Error::other));
    program
        .detach(link)
        .map_err(|error| missing(WHAT, &error))?;
    match noted {
        Ok(Plain(ident)) => Ok(ident.netns),
        Err(error) => Err(Unavailable::Other {
            what: WHAT.into(),
            why: error.to_string(),
        }),
    }
}

/// A socket that has dialled; what became of it doesn't matter, and isn't waited for.
fn note() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    let _refused = socket.connect(&NOWHERE.into());
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::cgroup::Cgroups;

    #[test]
    fn the_call_goes_nowhere_and_is_not_waited_for() {
        let socket = note().unwrap();
        assert!(
            socket.peer_addr().is_err(),
            "connected to {:?}",
            socket.peer_addr()
        );
    }

    #[test]
    fn the_program_tells_what_newer_kernels_tell() {
        let Ok(told) = sys::netns_cookie() else {
            return eprintln!("SKIP: Linux 5.14 is needed");
        };
        if let Err(missing) = object::embedded() {
            return eprintln!("SKIP: {missing}");
        }
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("SKIP: it needs root");
        }
        let (root, _) = Cgroups::find().unwrap().open(None).unwrap();
        let mut object = object::load(None).unwrap();
        let ident = object::map(&mut object, hublet_ebpf::maps::IDENT).unwrap();
        assert_eq!(by_program(&mut object, &ident, root.as_fd()).unwrap(), told);
    }
}
