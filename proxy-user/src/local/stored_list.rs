//! The body of a list from the store, encoded while it is sent.

use bytes::Bytes;

use super::collection::CompleteCollection;
use crate::cache::record::Collection;
use crate::cache::store::{ListCursor, StoreError, Walk};
use hublet_wire::list::{ListEnvelope, ListHead};
use hublet_wire::media::Encoding;

/// Maximum length of a chunk, but for the last item in it.
const CHUNK: usize = 16 << 10;

/// A list that is being sent.
#[derive(Debug)]
pub(crate) struct StoredList {
    /// `None` at the end.
    cursor: Option<ListCursor>,
    encoding: Encoding,
    is_unstructured: bool,
    is_first_item: bool,
    /// Bytes of items that the head of a protobuf list has announced and that are still to come.
    announced: Option<usize>,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl StoredList {
    pub(super) fn new(
        found: &CompleteCollection,
        cursor: ListCursor,
        encoding: Encoding,
    ) -> Result<Self, StoreError> {
        let collection = &found.collection;
        let list = list_head(collection);
        let (ListEnvelope { head, tail }, announced) = match encoding {
            Encoding::Json => (list.encode_json(), None),
            Encoding::Protobuf => {
                let len = protobuf_items_len(found.cursor()?)?;
                (list.encode_protobuf(len), Some(len))
            }
        };
        Ok(Self {
            cursor: Some(cursor),
            encoding,
            is_unstructured: collection.unstructured,
            is_first_item: true,
            announced,
            head,
            tail,
        })
    }

    /// The next chunk. An error cuts the stream short, so that the client does not take a shortened
    /// list for the whole one.
    pub(crate) fn next_chunk(&mut self) -> Option<Result<Bytes, StoreError>> {
        let cursor = self.cursor.take()?;
        Some(self.read_chunk(cursor).map(Bytes::from))
    }

    fn read_chunk(&mut self, mut cursor: ListCursor) -> Result<Vec<u8>, StoreError> {
        let mut chunk = std::mem::take(&mut self.head);
        chunk.reserve(CHUNK + CHUNK / 4);
        while chunk.len() < CHUNK {
            if !self.push_item(&mut cursor, &mut chunk)? {
                chunk.extend_from_slice(&self.tail);
                return Ok(shrink(chunk));
            }
        }
        self.cursor = Some(cursor);
        Ok(shrink(chunk))
    }

    /// Appends the next item; false at the end.
    fn push_item(
        &mut self,
        cursor: &mut ListCursor,
        chunk: &mut Vec<u8>,
    ) -> Result<bool, StoreError> {
        let before = chunk.len();
        let needs_comma = self.encoding == Encoding::Json && !self.is_first_item;
        let is_unstructured = self.is_unstructured;
        let item = cursor.next(|record| {
            if needs_comma {
                chunk.push(b',');
            }
            record.push_item(chunk, is_unstructured);
        })?;
        self.count_announced(chunk.len() - before, item.is_some())?;
        self.is_first_item &= item.is_none();
        Ok(item.is_some())
    }

    /// Checks an item's length, or the end, against the announced length. They differ if the
    /// collection has changed since.
    fn count_announced(&mut self, item: usize, has_item: bool) -> Result<(), StoreError> {
        let Some(announced) = self.announced else {
            return Ok(());
        };
        match announced.checked_sub(item) {
            Some(rest) if has_item || rest == 0 => {
                self.announced = Some(rest);
                Ok(())
            }
            _ => Err(StoreError::Changed),
        }
    }
}

/// Returns a chunk's unused memory, where that is much.
fn shrink(mut chunk: Vec<u8>) -> Vec<u8> {
    if chunk.capacity() - chunk.len() > CHUNK / 2 {
        chunk.shrink_to_fit();
    }
    chunk
}

fn list_head(collection: &Collection) -> ListHead {
    ListHead {
        kind: collection.kind.clone(),
        api_version: collection.api_version.clone(),
        resource_version: collection.version.to_string(),
        continue_token: String::new(),
        unstructured: collection.unstructured,
    }
}

/// The length of all items of a protobuf list, which its head states.
fn protobuf_items_len(mut items: Walk) -> Result<usize, StoreError> {
    let mut sum = 0;
    while let Some(item) = items.next(|record| record.protobuf_item_len())? {
        sum += item;
    }
    Ok(sum)
}
