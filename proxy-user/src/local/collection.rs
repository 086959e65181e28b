//! Complete collections in the store: those that may answer a list or a watch (I2).

use super::error::LocalError;
use super::{Local, LocalRequest};
use crate::cache::exchange::{EVENT_TTL, is_event};
use crate::cache::keys::{self, CollectionKey, CollectionKeyBuf};
use crate::cache::record::{Collection, Record};
use crate::cache::selector::stays;
use crate::cache::store::{Covered, ListCursor, ListSource, Snapshot, StoreError, Walk};
use hublet_wire::media::{Accepts, Encoding};
use hublet_wire::meta::{ResourceVersion, Timestamp};
use hublet_wire::request::ApiRequest;

/// A complete collection that covers a request.
#[derive(Debug)]
pub(super) struct CompleteCollection {
    pub(super) snapshot: Snapshot,
    pub(super) collection: Collection,
    /// The collection's key. It may cover all namespaces where the request names one.
    key: CollectionKeyBuf,
    /// The key of the members of a selection, if the request has selectors.
    selection: Option<CollectionKeyBuf>,
    /// The prefix of the keys of the requested objects.
    prefix: CollectionKeyBuf,
}

impl CompleteCollection {
    /// The time at which the cloud listed it, or a watch last carried it on.
    pub(super) fn listed_at(&self) -> Timestamp {
        self.collection.at
    }

    /// A cursor over the objects, in this snapshot.
    pub(super) fn cursor(&self) -> Result<Walk, StoreError> {
        match &self.selection {
            Some(key) => self.snapshot.members_cursor(key.as_key()),
            None => self.snapshot.walk(self.prefix.as_bytes()),
        }
    }

    /// A cursor over the objects that may be held as long as a client reads.
    pub(super) fn list_cursor(&self, request: &ApiRequest, encoding: Encoding) -> ListCursor {
        self.snapshot.list_cursor(ListSource {
            key: self.key.clone(),
            collection: self.collection.clone(),
            selection: self.selection.clone(),
            prefix: self.prefix.clone(),
            encoding,
            api_version: request.api_version().into_owned(),
        })
    }

    /// True if a member may have left the selection: it has changed, and not by a watch event of
    /// this collection.
    pub(super) fn may_have_lost_members(&self, request: &ApiRequest) -> Result<bool, StoreError> {
        if self.selection.is_none() {
            return Ok(false);
        }
        let mut cursor = self.cursor()?;
        while let Some(has_left) = cursor
            .next(|record| record.version > self.collection.version && !stays(request, &record))?
        {
            if has_left {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The time of the last deletion that is newer than the collection's resourceVersion and than
    /// the client's.
    pub(super) fn last_deletion_beyond(
        &self,
        client: ResourceVersion,
    ) -> Result<Option<Timestamp>, StoreError> {
        let covered = Covered {
            version: self.collection.version.max(client),
            until: self.collection.at,
        };
        let snapshot = &self.snapshot;
        match &self.selection {
            Some(key) => snapshot.last_member_deletion_beyond(key.as_key(), covered),
            None => snapshot.last_deletion_beyond(self.prefix.as_bytes(), covered),
        }
    }

    /// The encoding of the answer: one that the client accepts and that every object is stored in.
    pub(super) fn encoding(
        &self,
        request: &ApiRequest,
        accepts: &Accepts,
    ) -> Result<Encoding, LocalError> {
        let forms = self.forms()?;
        let requested = request.api_version();
        // An empty list is in the version that it was requested in: whether another version is
        // served is unknown.
        let other_version = if forms.is_empty() {
            Some(self.collection.api_version.as_str()).filter(|stored| *stored != requested)
        } else {
            forms
                .iter()
                .map(|(_, stored)| stored.as_str())
                .find(|stored| *stored != requested)
        };
        if let Some(other) = other_version {
            return Err(LocalError::NotAcceptable(format!(
                "the newest copies of these objects are of apiVersion {other}"
            )));
        }
        accepts
            .preferred(|encoding| forms.iter().all(|(stored, _)| *stored == encoding as u8))
            .ok_or_else(|| {
                LocalError::NotAcceptable(
                    "the newest copies of these objects are not all in an encoding that the request accepts"
                        .into(),
                )
            })
    }

    /// Encodings and apiVersions of the stored objects. The whole resource's are counted; only where
    /// these differ, the collection's own are looked up.
    fn forms(&self) -> Result<Vec<(u8, String)>, StoreError> {
        let forms = self.snapshot.forms(self.prefix.as_key().resource())?;
        if forms.len() <= 1 {
            return Ok(forms);
        }
        let mut forms = Vec::new();
        let mut cursor = self.cursor()?;
        while let Some(()) = cursor.next(|record| add_form(&mut forms, &record))? {}
        Ok(forms)
    }
}

fn add_form(forms: &mut Vec<(u8, String)>, record: &Record<'_>) {
    let encoding = record.encoding as u8;
    let is_known = forms
        .iter()
        .any(|(known, version)| *known == encoding && version == record.api_version);
    if !is_known {
        forms.push((encoding, record.api_version.to_owned()));
    }
}

impl Local {
    /// The complete collection that covers a request: its own, or that of all namespaces.
    pub(super) fn find_collection(
        &self,
        snapshot: Snapshot,
        request: &LocalRequest<'_>,
    ) -> Result<CompleteCollection, LocalError> {
        if !snapshot.is_up_to_date(request.scope()) {
            return Err(request.not_cached());
        }
        let key = CollectionKey::new(request.scope());
        let (collection, key, selection) = if request.request().has_selectors() {
            let collection = find_selection(&snapshot, key)?;
            (collection, key.to_buf(), Some(key.to_buf()))
        } else {
            let (collection, key) = find_covering(&snapshot, request)?;
            (collection, key, None)
        };
        let collection = collection
            .filter(|collection| !self.has_expired(request.scope(), collection.at))
            .ok_or_else(|| request.not_cached())?;
        Ok(CompleteCollection {
            snapshot,
            collection,
            key,
            selection,
            prefix: CollectionKey::new(request.scope())
                .without_selectors()
                .to_buf(),
        })
    }

    /// Events that the API server has deleted by now are no longer known.
    pub(super) fn has_expired(&self, key: &[u8], at: Timestamp) -> bool {
        is_event(key) && self.store.now() - at >= EVENT_TTL
    }
}

/// The collection with selectors, if each of its members is known.
fn find_selection(
    snapshot: &Snapshot,
    key: CollectionKey<'_>,
) -> Result<Option<Collection>, StoreError> {
    if snapshot.has_all_members(key)? {
        find_complete(snapshot, key)
    } else {
        Ok(None)
    }
}

fn find_complete(
    snapshot: &Snapshot,
    key: CollectionKey<'_>,
) -> Result<Option<Collection>, StoreError> {
    let collection = snapshot.collection(key)?;
    Ok(collection.filter(Collection::is_whole))
}

/// The namespace's collection, otherwise that of all namespaces; and its key.
fn find_covering(
    snapshot: &Snapshot,
    request: &LocalRequest<'_>,
) -> Result<(Option<Collection>, CollectionKeyBuf), StoreError> {
    let key = CollectionKey::new(request.scope());
    let own = find_complete(snapshot, key)?;
    let request = request.request();
    if own.is_some() || request.namespace().is_empty() {
        return Ok((own, key.to_buf()));
    }
    let mut key = Vec::new();
    keys::push_resource(&mut key, request.group(), request.resource());
    let key = CollectionKey::new(&key);
    Ok((find_complete(snapshot, key)?, key.to_buf()))
}
