//! Files with keys in them: written whole or not at all, readable by their owner only, never deleted.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::CertsError;

/// Far more than a certificate, a key or a kubeconfig has.
const MAX_BYTES: u64 = 1 << 20;

/// Makes the directory, 0700 if it is new.
pub(super) fn private_directory(path: &Path) -> Result<(), CertsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(CertsError::write(path))
}

/// Reads a file of at most 1 MiB.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let mut file = File::open(path)?.take(MAX_BYTES + 1);
    file.read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "more than 1 MiB",
        ));
    }
    Ok(text)
}

/// Writes a file that only its owner can read, durably, in place of what was there.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), CertsError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = directory.join(name);
    let written = (|| {
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(directory)?.sync_all()
    })();
    written.map_err(CertsError::write(path))
}

/// Takes group's and others' rights away from a key file that has any.
pub(super) fn restrict_to_owner(path: &Path) {
    let open = fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o077 != 0);
    if open && fs::set_permissions(path, Permissions::from_mode(0o600)).is_ok() {
        tracing::warn!("{} could be read by others: now 0600", path.display());
    }
}

/// Renames a file that is of no use, so that it can still be looked at.
pub(super) fn set_aside(path: &Path, now: OffsetDateTime) -> Result<PathBuf, CertsError> {
    let (date, time) = (now.date(), now.time());
    let stamp = format!(
        "{}T{:02}{:02}{:02}Z",
        date.to_string().replace('-', ""),
        time.hour(),
        time.minute(),
        time.second()
    );
    let aside = |n: u32| {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".unusable-{stamp}"));
        if n > 0 {
            name.push(format!("-{n}"));
        }
        path.with_file_name(name)
    };
    let free = (0..)
        .map(aside)
        .find(|name| !name.exists())
        .expect("a directory holds fewer than 2^32 files");
    fs::rename(path, &free).map_err(CertsError::write(&free))?;
    Ok(free)
}
