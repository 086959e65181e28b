//! Files with keys: written atomically, readable by their owner only, never deleted.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::CertsError;

/// Far more than a certificate, a key or a kubeconfig has.
const MAX_BYTES: u64 = 1 << 20;

pub(super) fn create_private_directory(path: &Path) -> Result<(), CertsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(CertsError::write(path))
}

/// Reads a UTF-8 file of at most 1 MiB.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let mut file = File::open(path)?.take(MAX_BYTES + 1);
    file.read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(too_large());
    }
    Ok(text)
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "more than 1 MiB")
}

/// Replaces a file atomically and durably; mode 0600.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), CertsError> {
    replace_file(path, text).map_err(CertsError::write(path))
}

fn replace_file(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let new = with_suffix(path, ".new");
    let mut file = create_private_file(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}

fn create_private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600);
    let file = options.open(path)?;
    // A leftover of an earlier attempt keeps the mode that it has.
    file.set_permissions(owner_only())?;
    Ok(file)
}

/// Removes the permissions of group and others, if a key file has any.
pub(super) fn restrict_to_owner(path: &Path) {
    if is_open_to_others(path) && fs::set_permissions(path, owner_only()).is_ok() {
        tracing::warn!(
            "{} was readable by other users: changed to mode 0600",
            path.display()
        );
    }
}

fn is_open_to_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0)
}

fn owner_only() -> Permissions {
    Permissions::from_mode(0o600)
}

/// Renames an unusable file, so that it can still be examined.
pub(super) fn set_aside(path: &Path, now: OffsetDateTime) -> Result<PathBuf, CertsError> {
    let aside = unused_name(path, &format!(".unusable-{}", compact_timestamp(now)));
    fs::rename(path, &aside).map_err(CertsError::write(&aside))?;
    Ok(aside)
}

/// The file's name with this suffix, numbered if there is such a file.
fn unused_name(path: &Path, suffix: &str) -> PathBuf {
    let numbered = (1_u32..).map(|n| with_suffix(path, &format!("{suffix}-{n}")));
    std::iter::once(with_suffix(path, suffix))
        .chain(numbered)
        .find(|name| !name.exists())
        .expect("a directory holds fewer than 2^32 files")
}

/// ISO 8601's basic format, without fractions: `20260921T120000Z`.
fn compact_timestamp(now: OffsetDateTime) -> String {
    let date = now.date().to_string().replace('-', "");
    let (hour, minute, second) = now.time().as_hms();
    format!("{date}T{hour:02}{minute:02}{second:02}Z")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_private_whatever_was_there() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("key.pem");
        fs::write(&file, "old").expect("written");
        fs::write(with_suffix(&file, ".new"), "an attempt that was cut off").expect("written");
        write_private(&file, "new").expect("replaced");
        assert_eq!(read_text(&file).expect("read"), "new");
        let mode = fs::metadata(&file).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_file_too_large_for_a_certificate_is_not_read() {
        let file = tempfile::NamedTempFile::new().expect("file");
        file.as_file().set_len(MAX_BYTES + 1).expect("sparse");
        let error = read_text(file.path()).expect_err("too large");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn files_set_aside_within_one_second_get_different_names() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("dev-ca.crt");
        let now = OffsetDateTime::from_unix_timestamp(1_790_000_000).expect("2026");
        let mut names = ["first", "second", "third"].map(|content| {
            fs::write(&file, content).expect("written");
            set_aside(&file, now).expect("renamed")
        });
        let name = "dev-ca.crt.unusable-20260921T141320Z";
        assert_eq!(names[0], directory.path().join(name));
        names.sort();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        assert!(!file.exists());
    }

    #[test]
    fn a_readable_key_is_restricted() {
        let file = tempfile::NamedTempFile::new().expect("file");
        fs::set_permissions(file.path(), Permissions::from_mode(0o644)).expect("chmod");
        restrict_to_owner(file.path());
        let mode = fs::metadata(file.path())
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
