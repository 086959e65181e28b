//! The BPF object that is embedded in this binary, and its maps and programs in the kernel.

use std::io;

use aya::maps::{Map, MapError};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use hublet_ebpf::maps;
use nix::libc;

use super::bpffs::Pins;
use crate::node::unavailable::{self, Unavailable};

/// The object that build.rs embedded; empty in a build without the BPF toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hublet.bpf.o"));

/// # Errors
/// The binary was built without the BPF object.
pub(crate) fn check_embedded() -> Result<(), Unavailable> {
    if OBJECT.is_empty() {
        Err(Unavailable::Stub)
    } else {
        Ok(())
    }
}

/// Creates the maps, or takes over those that an earlier daemon has pinned.
///
/// # Errors
/// The kernel refuses a map.
pub(crate) fn load(pins: Option<&Pins>) -> Result<Ebpf, Unavailable> {
    match load_object(OBJECT, pins) {
        // Pins of other sizes under this layout's name are not hublet's.
        Err(EbpfError::MapError(MapError::IncompatiblePinnedMap { .. })) => {
            pins.inspect(|pins| pins.clear());
            load_object(OBJECT, pins)
        }
        loaded => loaded,
    }
    .map_err(|error| unavailable("loading the maps", error))
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
///
/// # Errors
/// The object has no such map, or one of another type.
pub(crate) fn take_map<M: TryFrom<Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<M, Unavailable> {
    let map = object
        .take_map(name)
        .ok_or_else(|| Unavailable::NotInObject(name.into()))?;
    M::try_from(map).map_err(|error| unavailable(name, error))
}

/// # Errors
/// The object has no such program.
pub(crate) fn program_mut<'a>(
    object: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut Program, Unavailable> {
    object
        .program_mut(name)
        .ok_or_else(|| Unavailable::NotInObject(name.into()))
}

/// Passes a program through the verifier, once.
///
/// # Errors
/// The verifier or the kernel rejects it.
pub(crate) fn load_program(object: &mut Ebpf, name: &'static str) -> Result<(), Unavailable> {
    let result = match program_mut(object, name)? {
        Program::SockOps(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => return Err(Unavailable::NotInObject(name.into())),
    };
    match result {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(()),
        Err(error) => Err(load_error(name, error)),
    }
}

fn load_error(program: &'static str, error: ProgramError) -> Unavailable {
    match error {
        // EPERM is a lack of privileges; the verifier answers EACCES or EINVAL.
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } if io_error.raw_os_error() != Some(libc::EPERM) => {
            unavailable::from_verifier(program, io_error, verifier_log.to_string())
        }
        error => unavailable(format!("loading {program}"), error),
    }
}

/// The reason for an error of aya, whose chain holds the kernel's error.
pub(crate) fn unavailable(
    operation: impl Into<String>,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Unavailable {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        let io = cause.downcast_ref::<io::Error>();
        if let Some(errno) = io.and_then(io::Error::raw_os_error) {
            return unavailable::from_kernel(operation, io::Error::from_raw_os_error(errno));
        }
        source = cause.source();
    }
    Unavailable::Failed {
        operation: operation.into(),
        source: Box::new(error),
    }
}

#[cfg(test)]
mod tests {
    use hublet_ebpf::programs;

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
        let told = load_error(programs::CONNECT4, program.load().unwrap_err()).to_string();
        assert!(
            told.contains("hub_connect4") && told.contains("please report"),
            "{told}"
        );
        assert!(told.contains("R0"), "the verifier's own words: {told}");
        assert!(told.contains(".rs:"), "the line: {told}");
    }
}
