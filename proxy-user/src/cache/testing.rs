//! Responses that are decoded without a writer, and a disk in memory that loses power.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Uri};
use hublet_wire::media::Encoding;
use hublet_wire::meta::Timestamp;
use hublet_wire::request::{RequestInfo, Verb};
use parking_lot::Mutex;
use redb::{Key, ReadTransaction, TableDefinition, Value};

use crate::cache::backend::{Access, FileOpener, StorageFile};
use crate::cache::change::Change;
use crate::cache::decode::ResponseDecoder;
use crate::cache::exchange::Exchange;
use crate::cache::open::StoreLocation;
use crate::cache::paginate::ListAssembler;
use crate::cache::store::Store;
use crate::cache::tables::{
    ABSENT, COLLECTIONS, CREDENTIALS, DOCUMENTS, ENCODINGS, GRANTS, MEMBERS, META, OBJECTS,
};

/// A response of the API server.
#[derive(Debug, Clone)]
pub(super) struct Response<'a> {
    /// `METHOD uri`.
    pub call: &'a str,
    pub status: u16,
    pub encoding: Encoding,
    pub body: &'a [u8],
    /// Time of the request, and of everything in the response.
    pub at: Timestamp,
}

impl Response<'_> {
    /// The changes that it makes when its body comes in pieces that end at `cuts`.
    pub(super) fn decode(&self, lists: &mut ListAssembler, cuts: &[usize]) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut decoder = ResponseDecoder::new(self.exchange());
        let mut start = 0;
        for end in cuts.iter().copied().chain([self.body.len()]) {
            decoder
                .push(&self.body[start..end], self.at, &mut changes)
                .unwrap();
            start = end;
        }
        decoder.finish(self.at, lists, &mut changes).unwrap();
        changes
    }

    pub(super) fn exchange(&self) -> Exchange {
        let (method, uri) = self.call.split_once(' ').unwrap();
        let (method, uri): (Method, Uri) = (method.parse().unwrap(), uri.parse().unwrap());
        let info = RequestInfo::parse(&method, &uri);
        let request = info.understood().unwrap();
        let content_type = match request.verb() {
            Verb::Watch => self.encoding.watch_content_type(),
            _ => self.encoding.content_type(),
        };
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static(content_type));
        Exchange::of(request, self.status, &headers, self.at).unwrap()
    }
}

/// The rows of each table, as they stand in the file.
pub(super) type Dump = Vec<(&'static str, Vec<(Vec<u8>, Vec<u8>)>)>;

pub(super) fn dump(store: &Store) -> Dump {
    let txn = &store.snapshot().unwrap().txn;
    vec![
        ("objects", rows(txn, OBJECTS)),
        ("absent", rows(txn, ABSENT)),
        ("collections", rows(txn, COLLECTIONS)),
        ("members", rows(txn, MEMBERS)),
        ("encodings", rows(txn, ENCODINGS)),
        ("documents", rows(txn, DOCUMENTS)),
        ("grants", rows(txn, GRANTS)),
        ("credentials", rows(txn, CREDENTIALS)),
        ("meta", rows(txn, META)),
    ]
}

fn rows<K: Key + 'static, V: Value + 'static>(
    txn: &ReadTransaction,
    table: TableDefinition<'_, K, V>,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let rows = txn.open_table(table).unwrap();
    let rows = redb::ReadableTable::iter(&rows).unwrap();
    rows.map(|row| {
        let (key, value) = row.unwrap();
        let key = K::as_bytes(&key.value()).as_ref().to_vec();
        (key, V::as_bytes(&value.value()).as_ref().to_vec())
    })
    .collect()
}

/// A disk in memory. At a chosen sync it loses power, and with it of what was written since the sync before.
#[derive(Debug, Clone, Default)]
pub(super) struct MemoryDisk(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    /// The content that reads see.
    cached: Vec<u8>,
    /// The content that outlasts a power loss.
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
    syncs: usize,
    /// Before which sync the power is lost, counted from 0.
    power_loss: Option<(usize, Survivors)>,
    is_off: bool,
}

/// The part of the unsynced writes that reaches the medium.
#[derive(Debug, Clone, Copy)]
pub(super) enum Survivors {
    Nothing,
    Everything,
    /// Any sector of any write, whatever its order, drawn from this seed.
    Sectors(u64),
}

#[derive(Debug)]
enum Unsynced {
    Write { offset: usize, data: Vec<u8> },
    SetLen(usize),
}

/// Bytes that a disk writes wholly or not at all.
const SECTOR: usize = 512;

impl MemoryDisk {
    pub(super) fn losing_power(before_sync: usize, survivors: Survivors) -> Self {
        let disk = Self::default();
        disk.0.lock().power_loss = Some((before_sync, survivors));
        disk
    }

    /// A disk on which this was found after a power loss.
    pub(super) fn holding(content: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.0.lock().cached.clone_from(&content);
        disk.0.lock().durable = content;
        disk
    }

    pub(super) fn open_store(&self, dir: &Path) -> Store {
        let location = StoreLocation::new(dir, 1 << 20, Arc::new(self.clone()));
        Store::open_at(location).unwrap()
    }

    pub(super) fn syncs(&self) -> usize {
        self.0.lock().syncs
    }

    pub(super) fn durable(&self) -> Vec<u8> {
        self.0.lock().durable.clone()
    }

    /// Does `work` while there is power.
    fn with_power<T>(&self, work: impl FnOnce(&mut Disk) -> T) -> io::Result<T> {
        let mut disk = self.0.lock();
        if disk.is_off {
            return Err(io::Error::other("the power is lost"));
        }
        Ok(work(&mut disk))
    }
}

impl Disk {
    fn write_unsynced(&mut self, write: Unsynced) {
        write.apply_to(&mut self.cached);
        self.unsynced.push(write);
    }

    fn lose_power(&mut self, survivors: Survivors) {
        self.is_off = true;
        let mut random = Random(0);
        for write in self.unsynced.drain(..) {
            match survivors {
                Survivors::Nothing => {}
                Survivors::Everything => write.apply_to(&mut self.durable),
                Survivors::Sectors(seed) => {
                    random.0 ^= seed;
                    write.apply_some_to(&mut self.durable, &mut random);
                }
            }
        }
    }
}

impl Unsynced {
    fn apply_to(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => write_at(content, *offset, data),
            Self::SetLen(len) => content.resize(*len, 0),
        }
    }

    fn apply_some_to(&self, content: &mut Vec<u8>, random: &mut Random) {
        match self {
            Self::Write { offset, data } => {
                // Whole writes go missing as often as parts of them.
                let odds = random.next() % 5;
                for (sector, part) in data.chunks(SECTOR).enumerate() {
                    if random.next() % 4 < odds {
                        write_at(content, offset + sector * SECTOR, part);
                    }
                }
            }
            Self::SetLen(_) if random.next().is_multiple_of(2) => self.apply_to(content),
            Self::SetLen(_) => {}
        }
    }
}

fn write_at(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(data);
}

/// SplitMix64.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl FileOpener for MemoryDisk {
    /// The name of the file is the file system's, so that a damaged store can be set aside.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        match path.extension().and_then(|name| name.to_str()) {
            Some("pending") if access == Access::Read => {
                return Err(io::ErrorKind::NotFound.into());
            }
            Some("pending-new") => {
                File::create(path)?;
                return Ok(Arc::new(Self::default()));
            }
            _ => {}
        }
        if File::create_new(path).is_ok() {
            self.with_power(|disk| disk.write_unsynced(Unsynced::SetLen(0)))?;
        }
        Ok(Arc::new(self.clone()))
    }
}

impl StorageFile for MemoryDisk {
    fn len(&self) -> io::Result<u64> {
        self.with_power(|disk| disk.cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        self.with_power(|disk| {
            let stored = disk.cached.get(offset..offset + out.len());
            stored.map(|stored| out.copy_from_slice(stored))
        })?
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let write = Unsynced::Write {
            offset: usize::try_from(offset).unwrap(),
            data: data.to_vec(),
        };
        self.with_power(|disk| disk.write_unsynced(write))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap();
        self.with_power(|disk| disk.write_unsynced(Unsynced::SetLen(len)))
    }

    fn sync(&self) -> io::Result<()> {
        self.with_power(|disk| {
            if let Some((at, survivors)) = disk.power_loss
                && at == disk.syncs
            {
                disk.lose_power(survivors);
                return Err(io::Error::other("the power is lost"));
            }
            disk.syncs += 1;
            let Disk {
                unsynced, durable, ..
            } = disk;
            unsynced.drain(..).for_each(|write| write.apply_to(durable));
            Ok(())
        })?
    }

    fn lock(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn unlock(&self) {}

    fn identity(&self) -> io::Result<(u64, u64)> {
        Ok((0, 0))
    }
}
