//! The cookie of the daemon's network namespace, by which the programs distinguish the host's sockets from pods'.
//!
//! User space can read it since Linux 5.14 (`SO_NETNS_COOKIE`). On older kernels `hub_netns` is attached for a moment and
//! records it on a socket that dials [`PROBE_ADDRESS`], as no other program does.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;

use aya::Ebpf;
use aya::maps::{MapData, SkStorage};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program, ProgramError};
use hublet_ebpf::{Ident, programs};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::object::{self, unavailable};
use super::sys::{self, Plain};
use crate::node::cgroup::CgroupDirectory;
use crate::node::unavailable::{self, Unavailable};

/// Linux takes it for port 0 of this host, where no listener can be. No packet leaves the host.
const PROBE_ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
const OPERATION: &str = "reading the cookie of the network namespace";

/// The cookie of this thread's network namespace. `root` is the root of the cgroup hierarchy.
///
/// # Errors
/// The kernel refuses the socket or the program.
pub(crate) fn cookie(
    object: &mut Ebpf,
    ident: &SkStorage<MapData, Plain<Ident>>,
    root: &CgroupDirectory,
) -> Result<u64, Unavailable> {
    match sys::netns_cookie() {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            cookie_by_program(object, ident, root)
        }
        cookie => cookie.map_err(|error| unavailable::from_kernel(OPERATION, error)),
    }
}

fn cookie_by_program(
    object: &mut Ebpf,
    ident: &SkStorage<MapData, Plain<Ident>>,
    root: &CgroupDirectory,
) -> Result<u64, Unavailable> {
    object::load_program(object, programs::NETNS)?;
    let program = object::program_mut(object, programs::NETNS)?;
    let recorded = record_cookie(program, ident, root);
    recorded.map_err(|error| unavailable(OPERATION, error))
}

/// Attaches the program while a socket connects.
fn record_cookie(
    program: &mut Program,
    ident: &SkStorage<MapData, Plain<Ident>>,
    root: &CgroupDirectory,
) -> Result<u64, ProgramError> {
    let program: &mut CgroupSockAddr = program.try_into()?;
    let link = program.attach(&root.file, CgroupAttachMode::Single)?;
    let socket = connect_probe();
    program.detach(link)?;
    let Plain(ident) = ident.get(&socket?.as_fd(), 0)?;
    Ok(ident.netns)
}

/// A socket that has tried to connect. The outcome doesn't matter and is not awaited.
fn connect_probe() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    let _refused = socket.connect(&PROBE_ADDRESS.into());
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::cgroup::Cgroups;

    #[test]
    fn the_probe_connects_to_nothing_and_is_not_awaited() {
        let socket = connect_probe().unwrap();
        assert!(
            socket.peer_addr().is_err(),
            "connected to {:?}",
            socket.peer_addr()
        );
    }

    #[test]
    fn the_program_records_the_cookie_that_newer_kernels_tell() {
        let Ok(expected) = sys::netns_cookie() else {
            return eprintln!("SKIP: Linux 5.14 is needed");
        };
        if let Err(reason) = object::check_embedded() {
            return eprintln!("SKIP: {reason}");
        }
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("SKIP: it needs root");
        }
        let root = Cgroups::find().unwrap().open(None).unwrap();
        let mut object = object::load(None).unwrap();
        let ident = object::take_map(&mut object, hublet_ebpf::maps::IDENT).unwrap();
        let cookie = cookie_by_program(&mut object, &ident, &root).unwrap();
        assert_eq!(cookie, expected);
    }
}
