//! A file beside the store that names the rows which no longer count, for as long as the store itself can't be written. Its
//! blocks are allocated in advance and overwritten in place, so that a full disk can't refuse them. In: changes that take
//! something away. Out: the same at the next start.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use hublet_wire::meta::Timestamp;
use parking_lot::Mutex;

use crate::cache::backend::{Access, FileOpener, StorageFile};
use crate::cache::change::Change;
use crate::cache::change::Extent;
use crate::cache::grant_rows::{CredentialKey, GrantKey, Verdict};
use crate::cache::open::{Condition, StoreLocation, is_in_place, sync_directory};

/// Bytes of the file. Changes that don't fit are replaced by fewer ones that make more rows unknown.
const CAPACITY: usize = 64 << 10;
/// Bytes that are allocated at once.
const BLOCK: usize = 4 << 10;
/// Stands at the beginning of a file that holds changes.
const MAGIC: [u8; 8] = *b"hubpend1";
const CHECKSUM: usize = 8;
/// The magic, the length of the changes, and their checksum.
const HEADER: usize = MAGIC.len() + size_of::<u32>() + CHECKSUM;
/// The header of a file that holds no changes.
const EMPTY: [u8; HEADER] = [0; HEADER];

#[derive(Debug)]
pub(super) struct PendingFile {
    path: PathBuf,
    opener: Arc<dyn FileOpener>,
    /// `None` until the disk has room for it.
    reserved: Mutex<Option<Arc<dyn StorageFile>>>,
    is_unread: AtomicBool,
    /// Counts the contents that did not fit.
    overflows: AtomicU64,
}

impl PendingFile {
    /// The file beside the store.
    pub(super) fn new(place: &StoreLocation) -> Self {
        Self {
            path: place.beside("pending"),
            opener: Arc::clone(&place.opener),
            reserved: Mutex::default(),
            is_unread: AtomicBool::new(true),
            overflows: AtomicU64::new(0),
        }
    }

    /// Creates the file if it is missing and the disk has room. The store must be locked.
    pub(super) fn reserve(&self) {
        let mut reserved = self.reserved.lock();
        if reserved.is_none() {
            *reserved = reserve(&*self.opener, &self.path)
                .inspect_err(|error| tracing::debug!(%error, "no place is reserved for changes"))
                .ok();
        }
    }

    /// The changes that an earlier process has left. If they are damaged, or can't be read although the store can,
    /// everything that they might change is unknown. `None` if neither can be read: they are read again with the store.
    pub(super) fn read_beside(&self, store: &Condition) -> Option<Vec<Change>> {
        match self.read() {
            Ok(changes) => Some(changes),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Some(supersede_everything(&error))
            }
            Err(_) if matches!(store, Condition::Unreadable(_)) => None,
            Err(error) => Some(supersede_everything(&error)),
        }
    }

    fn read(&self) -> io::Result<Vec<Change>> {
        match self.opener.open(&self.path, Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            opened => read(&*opened?),
        }
    }

    /// True until readers of the store take its contents into account; it must not be replaced before.
    pub(super) fn is_unread(&self) -> bool {
        self.is_unread.load(Ordering::Acquire)
    }

    pub(super) fn set_read(&self) {
        self.is_unread.store(false, Ordering::Release);
    }

    /// Replaces the contents; returns once that is on disk.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn replace(&self, changes: &[&Change]) -> io::Result<()> {
        let mut encoded = encode(changes.iter().copied());
        if encoded.len() > CAPACITY {
            self.overflows.fetch_add(1, Ordering::Relaxed);
            encoded = encode_wider(changes);
        }
        self.overwrite(&encoded)
    }

    /// Times since the start that the changes did not fit, so that more rows had to become unknown.
    pub(super) fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }

    /// Empties it; returns once that is on disk.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.overwrite(&EMPTY)
    }

    fn overwrite(&self, contents: &[u8]) -> io::Result<()> {
        let mut reserved = self.reserved.lock();
        let file = match &*reserved {
            Some(file) if is_in_place(&**file, &self.path) => file,
            _ => reserved.insert(reserve(&*self.opener, &self.path)?),
        };
        file.write(0, contents)?;
        file.sync()
    }
}

/// The changes that make everything stored unknown, for a file that can't be read.
fn supersede_everything(error: &io::Error) -> Vec<Change> {
    tracing::warn!(%error, "the changes that the disk did not take before the restart are unknown: nothing stored is served until the cloud has sent it again");
    vec![Change::DeleteAllRights, supersede(&[], Extent::Copies)]
}

/// Opens the file to be written, and allocates what is missing of it.
fn reserve(opener: &dyn FileOpener, path: &Path) -> io::Result<Arc<dyn StorageFile>> {
    match opener.open(path, Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(opener, path),
        Err(error) => Err(error),
        Ok(_) => {
            let file = opener.open(path, Access::Write)?;
            if length(&*file)? < CAPACITY {
                allocate(&*file)?;
            }
            Ok(file)
        }
    }
}

/// Creates the file under another name, and renames it once it has its full length. So a shorter file is damaged, and not
/// one whose creation a power loss cut off.
fn create(opener: &dyn FileOpener, path: &Path) -> io::Result<Arc<dyn StorageFile>> {
    let unfinished = path.with_extension("pending-new");
    let file = opener.open(&unfinished, Access::Write)?;
    allocate(&*file)?;
    std::fs::rename(&unfinished, path)?;
    sync_directory(path)?;
    Ok(file)
}

/// Appends zeros up to the capacity; returns once the file is on disk.
fn allocate(file: &dyn StorageFile) -> io::Result<()> {
    for start in (length(file)?..CAPACITY).step_by(BLOCK) {
        let block = [0; BLOCK];
        file.write(start as u64, &block[..BLOCK.min(CAPACITY - start)])?;
    }
    file.sync()
}

fn length(file: &dyn StorageFile) -> io::Result<usize> {
    Ok(usize::try_from(file.len()?).unwrap_or(usize::MAX))
}

fn read(file: &dyn StorageFile) -> io::Result<Vec<Change>> {
    let mut header = [0; HEADER];
    if length(file)? < CAPACITY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    file.read(0, &mut header)?;
    if header == EMPTY {
        return Ok(Vec::new());
    }
    let mut contents = vec![0; CAPACITY];
    file.read(0, &mut contents)?;
    decode(&contents).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn supersede(key: &[u8], extent: Extent) -> Change {
    Change::Supersede {
        key: key.to_vec(),
        extent,
    }
}

/// One change for all objects, of the widest extent among `changes`.
fn supersede_all(changes: &[&Change]) -> Change {
    let extents = changes.iter().filter_map(|change| change.superseded());
    let most = extents.map(|(_, extent)| extent).max();
    supersede(&[], most.unwrap_or(Extent::Absences))
}

/// Encodes changes that make more rows unknown than these do, and fit.
fn encode_wider(changes: &[&Change]) -> Vec<u8> {
    let (revocations, others): (Vec<_>, Vec<_>) =
        changes.iter().copied().partition(|c| c.is_revocation());
    let every_object = supersede_all(&others);
    let encoded = encode(revocations.into_iter().chain([&every_object]));
    if encoded.len() <= CAPACITY {
        encoded
    } else {
        encode([&Change::DeleteAllRights, &every_object].into_iter())
    }
}

fn encode<'a>(changes: impl Iterator<Item = &'a Change>) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    changes.for_each(|change| push_change(&mut out, change));
    let len = u32::try_from(out.len() - HEADER).unwrap_or(u32::MAX);
    let sum = checksum(&out[HEADER..]);
    let header = [&MAGIC[..], &len.to_le_bytes(), &sum].concat();
    out[..HEADER].copy_from_slice(&header);
    out
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let digest = digest(&SHA256, bytes);
    digest.as_ref().first_chunk().copied().unwrap_or_default()
}

/// The kinds of changes in the file.
#[derive(Debug, Clone, Copy)]
enum Tag {
    EndAbsences = 1,
    DenyGrant = 2,
    DeleteGrant = 3,
    DeleteCredential = 4,
    DeleteAllRights = 5,
    EndLists = 6,
    EndCopies = 7,
}

impl Tag {
    fn of(extent: Extent) -> Self {
        match extent {
            Extent::Absences => Self::EndAbsences,
            Extent::Lists => Self::EndLists,
            Extent::Copies => Self::EndCopies,
        }
    }
}

/// Appends a change: its tag, the length of its contents, and these.
fn push_change(out: &mut Vec<u8>, change: &Change) {
    let (tag, contents) = match change {
        Change::Supersede { key, extent } => (Tag::of(*extent), key.clone()),
        Change::PutGrant { key, verdict } if !verdict.is_allowed() => {
            let time = verdict.time().as_millis().to_le_bytes();
            (Tag::DenyGrant, [&key.0[..], &time].concat())
        }
        Change::DeleteGrant { key } => (Tag::DeleteGrant, key.0.to_vec()),
        Change::DeleteCredential { key } => (Tag::DeleteCredential, key.0.to_vec()),
        Change::DeleteAllRights => (Tag::DeleteAllRights, Vec::new()),
        // It makes nothing unknown.
        _ => return,
    };
    out.push(tag as u8);
    let len = u16::try_from(contents.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&contents[..usize::from(len)]);
}

/// The changes of a file that isn't empty; `None` if they are damaged.
fn decode(contents: &[u8]) -> Option<Vec<Change>> {
    let (len, rest) = contents.strip_prefix(&MAGIC)?.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk::<CHECKSUM>()?;
    let mut rest = rest.get(..usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
    if checksum(rest) != *sum {
        return None;
    }
    let mut changes = Vec::new();
    while let Some((&[tag, low, high], behind)) = rest.split_first_chunk() {
        let (contents, next) = behind.split_at_checked(u16::from_le_bytes([low, high]).into())?;
        changes.push(decode_change(tag, contents)?);
        rest = next;
    }
    Some(changes)
}

fn decode_change(tag: u8, contents: &[u8]) -> Option<Change> {
    Some(match tag {
        1 => supersede(contents, Extent::Absences),
        2 => {
            let (key, time) = contents.split_first_chunk()?;
            let time = Timestamp::from_millis(u64::from_le_bytes(time.try_into().ok()?));
            Change::PutGrant {
                key: GrantKey(*key),
                verdict: Verdict::denied_at(time),
            }
        }
        3 => Change::DeleteGrant {
            key: GrantKey(contents.try_into().ok()?),
        },
        4 => Change::DeleteCredential {
            key: CredentialKey(contents.try_into().ok()?),
        },
        5 => Change::DeleteAllRights,
        6 => supersede(contents, Extent::Lists),
        7 => supersede(contents, Extent::Copies),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::backend::FileSystem;

    fn deletions(count: usize) -> Vec<Change> {
        let key = |n: usize| GrantKey([u8::try_from(n % 251).unwrap(); 48]);
        let delete = |n| Change::DeleteGrant { key: key(n) };
        (0..count).map(delete).collect()
    }

    fn absences(count: usize) -> Vec<Change> {
        let key = |n| format!("/pods/d/{n}").into_bytes();
        let extents = [Extent::Absences, Extent::Lists, Extent::Copies];
        let end = |n: usize| supersede(&key(n), extents[n % 3]);
        (0..count).map(end).collect()
    }

    /// The changes that a start finds after these were written, and how often they did not fit.
    fn read_back(changes: &[Change]) -> (Vec<Change>, u64) {
        let bench = Bench::new();
        let file = bench.file();
        file.replace(&changes.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(std::fs::metadata(&file.path).unwrap().len(), 65_536);
        let found = file.read_beside(&Condition::Writable);
        (found.unwrap(), file.overflows())
    }

    #[test]
    fn changes_are_decoded_as_they_were_encoded() {
        let denied = Change::PutGrant {
            key: GrantKey([1; 48]),
            verdict: Verdict::denied_at(Timestamp::from_millis(7)),
        };
        let credential = Change::DeleteCredential {
            key: CredentialKey([2; 32]),
        };
        let mut changes = vec![denied, credential, Change::DeleteAllRights];
        changes.extend(deletions(1).into_iter().chain(absences(3)));
        let (found, overflows) = read_back(&changes);
        assert_eq!(format!("{found:?}"), format!("{changes:?}"));
        assert_eq!(overflows, 0);
        assert!(read_back(&[]).0.is_empty());
    }

    #[test]
    fn i14_beyond_the_capacity_more_is_taken_away() {
        let (found, overflows) = read_back(
            &[deletions(2), absences(10_000)]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>(),
        );
        assert_eq!(found.len(), 3, "the revocations, and every absence");
        assert_eq!(overflows, 1);
        assert!(matches!(&found[2], Change::Supersede { key, .. } if key.is_empty()));
        let (found, _) = read_back(&deletions(10_000));
        assert!(matches!(
            &found[..],
            [Change::DeleteAllRights, Change::Supersede { key, .. }] if key.is_empty()
        ));
    }

    struct Bench {
        dir: tempfile::TempDir,
        place: StoreLocation,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let place = StoreLocation::new(dir.path(), 1 << 20, Arc::new(FileSystem));
            Self { dir, place }
        }

        fn file(&self) -> PendingFile {
            PendingFile::new(&self.place)
        }

        /// The changes that a start finds in a file with these contents.
        fn read(&self, contents: &[u8]) -> Vec<Change> {
            std::fs::write(self.place.beside("pending"), contents).unwrap();
            self.file().read_beside(&Condition::Writable).unwrap()
        }
    }

    fn is_everything_taken_away(found: &[Change]) -> bool {
        matches!(found, [Change::DeleteAllRights, Change::Supersede { key, .. }] if key.is_empty())
    }

    fn written(changes: &[Change]) -> Vec<u8> {
        let bench = Bench::new();
        let file = bench.file();
        file.replace(&changes.iter().collect::<Vec<_>>()).unwrap();
        std::fs::read(&file.path).unwrap()
    }

    #[test]
    fn i13_a_damaged_file_takes_everything_away() {
        let (bench, whole) = (Bench::new(), written(&absences(3)));
        assert_eq!(bench.read(&whole).len(), 3);
        let end = encode(absences(3).iter()).len();
        for at in 0..end {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert!(is_everything_taken_away(&bench.read(&damaged)), "{at}");
        }
    }

    /// A file that was cut off, or whose beginning was lost, counted as an empty one: what it took away counted again.
    #[test]
    fn i13_a_file_that_was_cut_or_zeroed_takes_everything_away() {
        let (bench, whole) = (Bench::new(), written(&absences(3)));
        for len in [0, 1, 7, 8, HEADER, HEADER + 9, CAPACITY - 1] {
            let cut = &whole[..len];
            assert!(is_everything_taken_away(&bench.read(cut)), "{len}");
        }
        let zeroed = [&[0; 8], &whole[8..]].concat();
        assert!(is_everything_taken_away(&bench.read(&zeroed)));
        let file = bench.file();
        file.clear().unwrap();
        let found = file.read_beside(&Condition::Writable);
        assert!(found.unwrap().is_empty(), "it is whole again");
    }

    /// A power loss may leave any part of a file that was being created.
    #[test]
    fn i15_a_file_whose_creation_was_cut_off_is_an_empty_one() {
        for len in [0, 1, BLOCK, CAPACITY] {
            let (bench, unfinished) = (Bench::new(), vec![0; len]);
            std::fs::write(bench.place.beside("pending-new"), unfinished).unwrap();
            for _ in 0..2 {
                let file = bench.file();
                let found = file.read_beside(&Condition::Writable);
                assert!(found.unwrap().is_empty(), "{len}");
                file.reserve();
            }
            let names = std::fs::read_dir(bench.dir.path()).unwrap();
            assert_eq!(names.count(), 1, "it has its name");
            assert_eq!(std::fs::metadata(bench.file().path).unwrap().len(), 65_536);
        }
    }

    /// It was written to without its name, and was missing at the next start.
    #[test]
    fn i15_a_file_that_is_removed_while_it_is_open_is_created_anew() {
        let (bench, change) = (Bench::new(), &absences(1)[0]);
        let file = bench.file();
        file.replace(&[change]).unwrap();
        std::fs::remove_file(&file.path).unwrap();
        file.replace(&[change]).unwrap();
        let found = bench.file().read_beside(&Condition::Writable);
        assert_eq!(found.unwrap().len(), 1);
    }

    /// It was followed, and what it led to was overwritten.
    #[test]
    fn i8_a_symbolic_link_is_not_followed() {
        let bench = Bench::new();
        let target = bench.dir.path().join("target");
        std::fs::write(&target, "theirs").unwrap();
        for name in ["pending", "pending-new", "room"] {
            let link = bench.place.beside(name);
            std::os::unix::fs::symlink(&target, &link).unwrap();
            let file = bench.file();
            let changes = absences(1);
            match name {
                "room" => assert!(bench.place.has_room().is_err()),
                _ => assert!(file.replace(&[&changes[0]]).is_err()),
            }
            let found = file.read_beside(&Condition::Writable).unwrap();
            assert_eq!(is_everything_taken_away(&found), name == "pending");
            assert_eq!(std::fs::read(&target).unwrap(), b"theirs", "{name}");
            let _ = std::fs::remove_file(link);
        }
    }
}
