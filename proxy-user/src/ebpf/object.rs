//! The BPF object that is embedded in this binary: its maps and programs, loaded into the kernel.

use std::io;

use aya::maps::{Map, MapError};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use hublet_ebpf::maps;
use nix::libc;

use super::bpffs::Pins;
use crate::node::unavailable::{self, Unavailable};
use crate::text::with_causes;

/// The object that build.rs embedded; empty in a build without the BPF toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hublet.bpf.o"));

/// Is there an object at all?
pub(crate) fn embedded() -> Result<(), Unavailable> {
    if OBJECT.is_empty() {
        Err(Unavailable::Stub)
    } else {
        Ok(())
    }
}

/// Makes the maps, or takes over those that a dead daemon left pinned.
pub(crate) fn load(pins: Option<&Pins>) -> Result<Ebpf, Unavailable> {
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
pub(crate) fn map<M: TryFrom<Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<M, Unavailable> {
    let map = object.take_map(name).ok_or_else(|| not_in_object(name))?;
    M::try_from(map).map_err(|error| missing(name, &error))
}

/// Loads one program: the verifier sees it.
pub(crate) fn verify(object: &mut Ebpf, name: &'static str) -> Result<(), Unavailable> {
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
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(()),
        Err(error) => Err(not_loaded(name, error)),
    }
}

/// Why a program can't be loaded.
pub(crate) fn not_loaded(program: &'static str, error: ProgramError) -> Unavailable {
    match error {
        // EPERM is for want of privileges; the verifier says EACCES or EINVAL.
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } if io_error.raw_os_error() != Some(libc::EPERM) => {
            unavailable::from_verifier(program, io_error, verifier_log.to_string())
        }
        error => missing(&format!("loading {program}"), &error),
    }
}

pub(crate) fn not_in_object(name: &str) -> Unavailable {
    Unavailable::Other {
        what: name.into(),
        why: "not in the embedded BPF object, which is of another version".into(),
    }
}

/// aya's errors carry the kernel's somewhere below.
pub(crate) fn missing(what: &str, error: &(dyn std::error::Error + 'static)) -> Unavailable {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(io) = error
            .downcast_ref::<io::Error>()
            .filter(|io| io.raw_os_error().is_some())
        {
            return unavailable::from_kernel(what, io);
        }
        source = error.source();
    }
    Unavailable::Other {
        what: what.into(),
        why: with_causes(error),
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
        let told = not_loaded(programs::CONNECT4, program.load().unwrap_err()).to_string();
        assert!(
            told.contains("hub_connect4") && told.contains("please report"),
            "{told}"
        );
        assert!(told.contains("R0"), "the verifier's own words: {told}");
        assert!(told.contains(".rs:"), "the line: {told}");
    }
}
