//! Compacts the file. In: a store whose file is mostly free: redb reuses free pages, but never returns them to the file
//! system. Out: the same store in a new file, which replaces the old one by a rename. Reads go on meanwhile; runs on the
//! writer thread while nothing waits for it.

use redb::{Key, ReadTransaction, ReadableTable, TableDefinition, Value, WriteTransaction};

use crate::cache::open::{StoreLocation, sync_directory};
use crate::cache::store::{Store, StoreError};
use crate::cache::tables::{
    ABSENT, COLLECTIONS, CREDENTIALS, DOCUMENTS, ENCODINGS, GRANTS, MEMBERS, META, OBJECTS,
};

/// Copies the store into a new file; false if `busy` ended it. A kill leaves either the old file or the new one.
///
/// # Errors
/// The disk's; the old file stays in use then.
pub(super) fn compact(store: &Store, busy: &dyn Fn() -> bool) -> Result<bool, StoreError> {
    let place = StoreLocation {
        path: store.place().beside("new"),
        ..store.place().clone()
    };
    let _ = std::fs::remove_file(&place.path);
    let copied = copy(store, &place, busy);
    if !matches!(copied, Ok(true)) {
        let _ = std::fs::remove_file(&place.path);
    }
    copied
}

fn copy(store: &Store, place: &StoreLocation, busy: &dyn Fn() -> bool) -> Result<bool, StoreError> {
    let new = place.writable(None)?;
    let mut txn = new.begin_write()?;
    txn.set_quick_repair(true);
    if !copy_tables(&store.snapshot()?.txn, &txn, busy)? {
        txn.abort()?;
        return Ok(false);
    }
    txn.commit()?;
    // Closing takes the free pages off its end.
    new.close()?;
    // Open before it takes the old one's place: behind the rename nothing may fail that would leave the writer in a
    // file that no name leads to.
    let reopened = place.writable(new.file.as_ref())?;
    std::fs::rename(&place.path, &store.place().path)
        .map_err(|error| place.directory_error(error))?;
    store.superseded_by(reopened);
    sync_directory(&place.path).map_err(|error| place.directory_error(error))?;
    Ok(true)
}

/// Copies every table; false if `busy` ended it.
fn copy_tables(
    from: &ReadTransaction,
    to: &WriteTransaction,
    busy: &dyn Fn() -> bool,
) -> Result<bool, StoreError> {
    for table in [OBJECTS, COLLECTIONS, DOCUMENTS, CREDENTIALS] {
        if !copy_table(from, to, table, busy)? {
            return Ok(false);
        }
    }
    // A new store's rows must not stand in for rows that the old one lacks.
    to.delete_table(META)?;
    Ok(copy_table(from, to, ABSENT, busy)?
        && copy_table(from, to, MEMBERS, busy)?
        && copy_table(from, to, ENCODINGS, busy)?
        && copy_table(from, to, GRANTS, busy)?
        && copy_table(from, to, META, busy)?)
}

fn copy_table<K: Key + 'static, V: Value + 'static>(
    from: &ReadTransaction,
    to: &WriteTransaction,
    table: TableDefinition<'_, K, V>,
    busy: &dyn Fn() -> bool,
) -> Result<bool, StoreError> {
    let mut copy = to.open_table(table)?;
    for (n, row) in from.open_table(table)?.iter()?.enumerate() {
        if n % 16 == 15 && busy() {
            return Ok(false);
        }
        let (key, value) = row?;
        copy.insert(key.value(), value.value())?;
    }
    Ok(true)
}
