//! LIST from the store: a complete collection only (I2), streamed from a snapshot in the API server's order and form,
//! without building it in memory.

use bytes::Bytes;
use http::Response;

use super::authorize::Allowed;
use super::body::LocalBody;
use super::error::LocalError;
use super::{Local, LocalRequest};
use crate::cache::exchange::{EVENT_TTL, is_event};
use crate::cache::keys;
use crate::cache::record::{Collection, Record};
use crate::cache::selector::stays;
use crate::cache::store::{ListCursor, ListSource, Snapshot, StoreError, Walk};
use hublet_wire::list::{ListEnvelope, ListHead};
use hublet_wire::media::{Accepts, Encoding};
use hublet_wire::meta::parse_version;
use hublet_wire::request::ApiRequest;

/// Bytes of one chunk, but for the item that goes over it.
const CHUNK: usize = 16 << 10;

/// A complete collection, found for a question.
#[derive(Debug)]
pub(super) struct CompleteCollection {
    pub(super) snapshot: Snapshot,
    pub(super) collection: Collection,
    /// The key of that collection.
    key: Vec<u8>,
    /// The key under which members stand, where there are selectors.
    selective: Option<Vec<u8>>,
    prefix: Vec<u8>,
}

impl CompleteCollection {
    /// A walk over its objects, in this snapshot.
    pub(super) fn walk(&self) -> Result<Walk, StoreError> {
        match &self.selective {
            Some(key) => self.snapshot.members_cursor(key),
            None => self.snapshot.walk(&self.prefix),
        }
    }

    /// A member has been seen to change by another way than the collection's own watch: it may have left the selection.
    pub(super) fn may_have_lost(&self, request: &ApiRequest) -> Result<bool, StoreError> {
        if self.selective.is_none() {
            return Ok(false);
        }
        let mut walk = self.walk()?;
        let lost = |r: Record<'_>| r.version > self.collection.version && !stays(request, &r);
        while let Some(lost) = walk.next(lost)? {
            if lost {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// When an object was last found gone that neither the collection's resourceVersion covers nor the client has seen.
    pub(super) fn last_deletion_beyond(&self, seen: u64) -> Result<Option<u64>, StoreError> {
        let covered = (self.collection.version.max(seen), self.collection.at);
        match &self.selective {
            Some(key) => self.snapshot.last_member_deletion_beyond(key, covered),
            None => self.snapshot.last_deletion_beyond(&self.prefix, covered),
        }
    }

    /// A walk over its objects that may take as long as its client.
    pub(super) fn list_cursor(&self, request: &ApiRequest, encoding: Encoding) -> ListCursor {
        self.snapshot.list_cursor(ListSource {
            key: self.key.clone(),
            collection: self.collection.clone(),
            selection: self.selective.clone(),
            prefix: self.prefix.clone(),
            encoding,
            api_version: request.api_version().into_owned(),
        })
    }

    /// The encoding to answer in: one that the caller takes and that every object is stored in.
    pub(super) fn encoding(
        &self,
        request: &ApiRequest,
        accepts: &Accepts,
    ) -> Result<Encoding, LocalError> {
        let resource_end = self
            .prefix
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .nth(1)
            .map(|(i, _)| i + 1);
        let forms = self
            .snapshot
            .forms(&self.prefix[..resource_end.unwrap_or(self.prefix.len())])?;
        let forms = if forms.len() > 1 {
            self.forms_here()?
        } else {
            forms
        };
        let version = request.api_version();
        let refuse = |what: String| {
            LocalError::NotAcceptable(format!("the newest copies of these objects are {what}"))
        };
        // An empty list has the version in which it was asked for: of another nobody knows whether it is served.
        let stored = forms.iter().map(|(_, stored)| stored.as_str());
        let empty = forms
            .is_empty()
            .then_some(self.collection.api_version.as_str());
        if let Some(other) = stored.chain(empty).find(|stored| *stored != version) {
            return Err(refuse(format!("of apiVersion {other}")));
        }
        let stored = |e: Encoding| forms.iter().all(|(form, _)| *form == e as u8);
        accepts
            .preferred(stored)
            .ok_or_else(|| refuse("not all in an encoding that the request accepts".to_owned()))
    }

    /// The forms in this collection alone, where those of the whole resource differ: a walk over it.
    fn forms_here(&self) -> Result<Vec<(u8, String)>, StoreError> {
        let (mut forms, mut walk) = (Vec::new(), self.walk()?);
        while let Some(()) = walk.next(|r| {
            if !forms
                .iter()
                .any(|(e, v)| *e == r.encoding as u8 && v == r.api_version)
            {
                forms.push((r.encoding as u8, r.api_version.to_owned()));
            }
        })? {}
        Ok(forms)
    }
}

impl Local {
    /// The complete collection that answers; of a selection none where a member may have left it.
    fn collection(
        &self,
        snapshot: Snapshot,
        question: &LocalRequest<'_>,
    ) -> Result<CompleteCollection, LocalError> {
        let found = self.stored_collection(snapshot, question)?;
        if found.may_have_lost(question.request)? {
            Err(question.not_cached())
        } else {
            Ok(found)
        }
    }

    /// Finds the complete collection: its own, or that of all namespaces where there are no selectors.
    pub(super) fn stored_collection(
        &self,
        snapshot: Snapshot,
        question: &LocalRequest<'_>,
    ) -> Result<CompleteCollection, LocalError> {
        let (request, scope) = (question.request, question.scope());
        let prefix = keys::without_selectors(scope).to_vec();
        let complete = |key: &[u8]| {
            snapshot
                .collection(key)
                .map(|c| c.filter(Collection::is_whole))
        };
        let selective = request.has_selectors().then(|| scope.to_vec());
        let (mut collection, mut key) = (complete(scope)?, scope.to_vec());
        if selective
            .as_deref()
            .is_some_and(|key| !snapshot.has_all_members(key).unwrap_or(false))
        {
            collection = None;
        }
        if collection.is_none() && selective.is_none() && !request.namespace().is_empty() {
            let mut all = Vec::new();
            keys::push_resource(&mut all, request.group(), request.resource());
            (collection, key) = (complete(&all)?, all);
        }
        let collection = collection.filter(|c| !self.has_expired(scope, c.at));
        let collection = collection.ok_or_else(|| question.not_cached())?;
        Ok(CompleteCollection {
            snapshot,
            collection,
            key,
            selective,
            prefix,
        })
    }

    /// Events of this age the cloud has dropped: they are not known any more.
    pub(super) fn has_expired(&self, key: &[u8], at: u64) -> bool {
        is_event(key) && self.cache.now().saturating_sub(at) >= EVENT_TTL
    }

    pub(super) async fn list(
        &self,
        allowed: Allowed<'_>,
    ) -> Result<Response<LocalBody>, LocalError> {
        let question = *allowed;
        let request = question.request;
        let snapshot = self.cache.snapshot(&allowed).await?;
        if let Some(response) = self.stored_variant(&snapshot, &question)? {
            self.listed.remember(&question, self.cache.now());
            return Ok(response);
        }
        let found = self.collection(snapshot, &question)?;
        if !request.continue_token().is_empty() {
            let what = "hublet: the cloud is away; the rest of this list can't be continued, list again from the start";
            return Err(LocalError::Expired(what.to_owned()));
        }
        let wanted = parse_version(request.resource_version()).unwrap_or(0);
        let version = found.collection.version;
        if version < wanted || (request.options().exact && version != wanted) {
            return Err(question.not_cached());
        }
        let encoding = found.encoding(request, &question.accepts)?;
        let list = StoredList::new(&found, found.list_cursor(request, encoding), encoding)?;
        self.listed.remember(&question, self.cache.now());
        Ok(self.response(
            encoding.content_type(),
            found.collection.at,
            LocalBody::list(list),
        ))
    }
}

/// A list on its way to a client.
#[derive(Debug)]
pub(crate) struct StoredList {
    walk: Option<ListCursor>,
    encoding: Encoding,
    unstructured: bool,
    first: bool,
    /// Bytes of items that a protobuf list's head has announced and that are to come.
    announced: Option<usize>,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl StoredList {
    fn new(
        found: &CompleteCollection,
        walk: ListCursor,
        encoding: Encoding,
    ) -> Result<Self, StoreError> {
        let collection = &found.collection;
        let list = list_head(collection);
        let (ListEnvelope { head, tail }, announced) = match encoding {
            Encoding::Json => (list.encode_json(), None),
            Encoding::Protobuf => {
                let len = protobuf_items_len(found.walk()?)?;
                (list.encode_protobuf(len), Some(len))
            }
        };
        let unstructured = collection.unstructured;
        Ok(Self {
            walk: Some(walk),
            encoding,
            unstructured,
            first: true,
            announced,
            head,
            tail,
        })
    }

    /// The next bytes of the list; an error ends it, so that its client sees a cut stream and no shortened list.
    pub(crate) fn next_chunk(&mut self) -> Option<Result<Bytes, StoreError>> {
        let mut walk = self.walk.take()?;
        let mut out = std::mem::take(&mut self.head);
        out.reserve(CHUNK + (CHUNK >> 2));
        let mut ended = false;
        while out.len() < CHUNK && !ended {
            let before = out.len();
            let (first, encoding, unstructured) = (self.first, self.encoding, self.unstructured);
            let push = |record: Record<'_>| {
                if !first && encoding == Encoding::Json {
                    out.push(b',');
                }
                record.push_item(&mut out, unstructured);
            };
            let went_on = match walk.next(push) {
                Ok(went_on) => went_on.is_some(),
                Err(error) => return Some(Err(error)),
            };
            if !self.fits(out.len() - before, went_on) {
                return Some(Err(StoreError::Changed));
            }
            if went_on {
                self.first = false;
            } else {
                out.extend_from_slice(&self.tail);
                ended = true;
            }
        }
        self.walk = (!ended).then_some(walk);
        if out.capacity() - out.len() > CHUNK >> 1 {
            out.shrink_to_fit();
        }
        Some(Ok(out.into()))
    }

    /// An item of that many bytes, or the end, is what the head has announced.
    fn fits(&mut self, item: usize, went_on: bool) -> bool {
        let Some(announced) = self.announced else {
            return true;
        };
        match announced.checked_sub(item) {
            Some(rest) if went_on || rest == 0 => {
                self.announced = Some(rest);
                true
            }
            _ => false,
        }
    }
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

/// The length of all items of a protobuf list, which stands in its head.
fn protobuf_items_len(mut items: Walk) -> Result<usize, StoreError> {
    let mut sum = 0;
    while let Some(item) = items.next(|r| r.protobuf_item_len())? {
        sum += item;
    }
    Ok(sum)
}
