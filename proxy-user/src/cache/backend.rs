//! The file beneath redb. In: redb's reads and writes. Out: the same on a file; or on a file that must not be written,
//! with what redb writes kept in memory above it.
//!
//! redb refuses everything after one failed read or write. The store is then reopened over the same file, so that a
//! [`Backend`] can be cut off: two databases over one file must never both use it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use redb::StorageBackend;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Bytes of a block that is kept in memory.
const BLOCK: usize = 4096;
/// Most blocks kept in memory; redb's repair of a file that needs one writes fewer than ten.
const MAX_BLOCKS: usize = 2048;

/// The file operations that redb needs; tests have a file that fails.
pub(super) trait StorageFile: Debug + Send + Sync {
    fn len(&self) -> io::Result<u64>;
    /// Fills `out` from `offset`; `UnexpectedEof` beyond the end.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes it that long; new bytes are zero.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Returns when all that was written is on the disk.
    fn sync(&self) -> io::Result<()>;
    /// Takes the lock that other processes look at, as redb does (`flock`); false: another one has it.
    fn lock(&self) -> io::Result<bool>;
    /// Gives the lock back.
    fn unlock(&self);
    fn identity(&self) -> io::Result<(u64, u64)>;
}

impl StorageFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn lock(&self) -> io::Result<bool> {
        match self.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            // A file system without locks.
            Err(TryLockError::Error(error))
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::NOLCK | Errno::NOTSUP)
                ) =>
            {
                Ok(true)
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn unlock(&self) {
        // Closing the file gives it back in any case.
        let _ = Self::unlock(self);
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        let metadata = self.metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }
}

/// The access to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// To read and write; made where it isn't there.
    Write,
    Read,
}

/// Opens files; tests have one whose files fail.
pub(super) trait FileOpener: Debug + Send + Sync {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn StorageFile>>;
}

#[derive(Debug)]
pub(super) struct FileSystem;

impl FileOpener for FileSystem {
    /// The file is 0600 before anything is in it, belongs to this user or to root, and is no symbolic link. Otherwise, in a
    /// directory that others may write to, they could read it as its owner, or have another file overwritten through a link.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        let write = access == Access::Write;
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            .create(write)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .map_err(name_symbolic_link)?;
        let metadata = file.metadata()?;
        if metadata.uid() != 0 && metadata.uid() != rustix::process::geteuid().as_raw() {
            let owner = metadata.uid();
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("the file belongs to user {owner}, who could read what is stored"),
            ));
        }
        if write && metadata.permissions().mode() & 0o777 != 0o600 {
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        }
        Ok(Arc::new(file))
    }
}

fn name_symbolic_link(error: io::Error) -> io::Error {
    match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => {
            io::Error::other("the file is a symbolic link; only its directory may be one")
        }
        _ => error,
    }
}

/// Operations that a database may still do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    /// Another file has replaced this one, whose snapshots may still be read.
    Sealed,
    /// Another database uses the file.
    Cut,
}

/// One database's way to its file.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    file: Option<Arc<dyn StorageFile>>,
    overlay: Option<Arc<Mutex<Overlay>>>,
    gate: Arc<RwLock<Gate>>,
    /// True once an operation failed: redb refuses everything from there on.
    failed: Arc<AtomicBool>,
}

fn refused(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}

impl Backend {
    fn new(file: Option<Arc<dyn StorageFile>>, overlay: Option<Overlay>) -> Self {
        let overlay = overlay.map(|overlay| Arc::new(Mutex::new(overlay)));
        Self {
            file,
            overlay,
            gate: Arc::new(RwLock::new(Gate::Open)),
            failed: Arc::default(),
        }
    }

    /// Reads and writes `file`.
    pub(super) fn writing(file: Arc<dyn StorageFile>) -> Self {
        Self::new(Some(file), None)
    }

    /// Reads `file`, or nothing, and keeps what is written in memory.
    ///
    /// # Errors
    /// Its length can't be read.
    pub(super) fn reading(file: Option<Arc<dyn StorageFile>>) -> io::Result<Self> {
        let len = file.as_ref().map_or(Ok(0), |file| file.len())?;
        Ok(Self::new(
            file,
            Some(Overlay {
                len,
                file_len: len,
                blocks: BTreeMap::new(),
            }),
        ))
    }

    pub(super) fn seal(&self) {
        *self.gate.write() = Gate::Sealed;
    }

    /// Ends reads and writes; returns when the last one has ended.
    pub(super) fn cut(&self) {
        *self.gate.write() = Gate::Cut;
    }

    /// True if the database over it can't be used any more.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn open_file(&self) -> io::Result<&Arc<dyn StorageFile>> {
        self.file
            .as_ref()
            .ok_or_else(|| refused("there is no file"))
    }

    fn record_failure<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        result
    }

    /// Does `work` while writes are allowed.
    fn write_with(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let gate = self.gate.read();
        let allowed = *gate == Gate::Open;
        self.record_failure(if allowed {
            work()
        } else {
            Err(refused("the store was reopened"))
        })
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        match &self.overlay {
            Some(overlay) => Ok(overlay.lock().len),
            None => self.record_failure(self.open_file()?.len()),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let gate = self.gate.read();
        self.record_failure(match &self.overlay {
            _ if *gate == Gate::Cut => Err(refused("the store was reopened")),
            Some(overlay) => overlay.lock().read(self.file.as_deref(), offset, out),
            None => self.open_file()?.read(offset, out),
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write_with(|| match &self.overlay {
            Some(overlay) => {
                overlay.lock().set_len(len);
                Ok(())
            }
            None => self.open_file()?.set_len(len),
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.write_with(|| {
            if self.overlay.is_some() {
                Ok(())
            } else {
                self.open_file()?.sync()
            }
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_with(|| match &self.overlay {
            Some(overlay) => overlay.lock().write(self.file.as_deref(), offset, data),
            None => self.open_file()?.write(offset, data),
        })
    }
}

/// Blocks that were written, above a file that isn't.
#[derive(Debug)]
struct Overlay {
    len: u64,
    /// Bytes of the file that count; beyond them there are zeros.
    file_len: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

fn distance(from: u64, to: u64) -> usize {
    usize::try_from(to - from).unwrap_or(usize::MAX)
}

impl Overlay {
    fn read(&self, file: Option<&dyn StorageFile>, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        if end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let from_file = self.file_len.saturating_sub(offset).min(out.len() as u64);
        let (stored, zeros) = out.split_at_mut(usize::try_from(from_file).unwrap_or(usize::MAX));
        zeros.fill(0);
        if let (Some(file), false) = (file, stored.is_empty()) {
            file.read(offset, stored)?;
        }
        let first = offset / BLOCK as u64;
        for (index, block) in self.blocks.range(first..end.div_ceil(BLOCK as u64)) {
            let start = index * BLOCK as u64;
            let (from, to) = (start.max(offset), (start + BLOCK as u64).min(end));
            out[distance(offset, from)..distance(offset, to)]
                .copy_from_slice(&block[distance(start, from)..distance(start, to)]);
        }
        Ok(())
    }

    fn write(
        &mut self,
        file: Option<&dyn StorageFile>,
        offset: u64,
        data: &[u8],
    ) -> io::Result<()> {
        let (mut at, mut rest) = (offset, data);
        self.len = self.len.max(offset + data.len() as u64);
        while !rest.is_empty() {
            let within = usize::try_from(at % BLOCK as u64).unwrap_or(0);
            let (now, later) = rest.split_at(rest.len().min(BLOCK - within));
            self.block(file, at / BLOCK as u64)?[within..within + now.len()].copy_from_slice(now);
            (at, rest) = (at + now.len() as u64, later);
        }
        Ok(())
    }

    /// A block to write to, filled with its present contents.
    fn block(
        &mut self,
        file: Option<&dyn StorageFile>,
        index: u64,
    ) -> io::Result<&mut [u8; BLOCK]> {
        if !self.blocks.contains_key(&index) {
            if self.blocks.len() >= MAX_BLOCKS {
                return Err(refused(
                    "too much is written to a store that can't be written",
                ));
            }
            let mut block = Box::new([0; BLOCK]);
            let start = index * BLOCK as u64;
            let stored = self.file_len.saturating_sub(start).min(BLOCK as u64);
            if let (Some(file), true) = (file, stored > 0) {
                file.read(
                    start,
                    &mut block[..usize::try_from(stored).unwrap_or(BLOCK)],
                )?;
            }
            self.blocks.insert(index, block);
        }
        self.blocks
            .get_mut(&index)
            .map(|block| &mut **block)
            .ok_or_else(|| refused("no block"))
    }

    fn set_len(&mut self, len: u64) {
        self.len = len;
        self.file_len = self.file_len.min(len);
        let blocks = len.div_ceil(BLOCK as u64);
        self.blocks.split_off(&blocks);
        let rest = usize::try_from(len % BLOCK as u64).unwrap_or(0);
        if let (true, Some(last)) = (rest > 0, self.blocks.get_mut(&(len / BLOCK as u64))) {
            last[rest..].fill(0);
        }
    }
}
