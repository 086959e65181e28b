//! Keys of the store. A key identifies an object, collection or document; the caller is never part of it. In: a request or
//! an object's metadata. Out: bytes that sort as etcd's keys do, so that a range is a list in the API server's order.
//!
//! `group/resource/namespace/name`, or `group/resource/name` in cluster scope; no segment can hold a slash.

use hublet_wire::request::ApiRequest;

/// The key of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectKey<'a>(&'a [u8]);

/// An [`ObjectKey`] that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectKeyBuf(Box<[u8]>);

/// The key of a collection: the prefix of its objects' keys, then its selectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CollectionKey<'a>(&'a [u8]);

/// A [`CollectionKey`] that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CollectionKeyBuf(Box<[u8]>);

impl<'a> ObjectKey<'a> {
    /// A key as it is stored in a table.
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn to_buf(self) -> ObjectKeyBuf {
        ObjectKeyBuf(self.0.into())
    }

    /// `group/resource/`.
    pub(crate) fn resource(self) -> &'a [u8] {
        resource_of(self.0)
    }

    /// The collections without selectors that hold the object: of all namespaces, and of its own.
    pub(crate) fn collections(self) -> impl Iterator<Item = CollectionKey<'a>> {
        collections_around(self.0).map(CollectionKey)
    }
}

impl ObjectKeyBuf {
    /// The key of an object of `resource` (`group/resource/`); the namespace is empty in cluster scope.
    pub(crate) fn join(resource: &[u8], namespace: &str, name: &str) -> Self {
        let mut key = Vec::with_capacity(resource.len() + namespace.len() + 1 + name.len());
        key.extend_from_slice(resource);
        push_object(&mut key, namespace, name);
        Self(key.into())
    }

    pub(crate) fn as_key(&self) -> ObjectKey<'_> {
        ObjectKey(&self.0)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl<'a> CollectionKey<'a> {
    /// A key as it is stored in a table.
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn to_buf(self) -> CollectionKeyBuf {
        CollectionKeyBuf(self.0.into())
    }

    /// `group/resource/`.
    pub(crate) fn resource(self) -> &'a [u8] {
        resource_of(self.0)
    }

    pub(crate) fn has_selectors(self) -> bool {
        self.without_selectors() != self
    }

    /// The prefix of its objects' keys.
    pub(crate) fn without_selectors(self) -> Self {
        Self(without_selectors(self.0))
    }

    /// False if the object is of another collection, or another name is selected. Other selectors may match any object.
    pub(crate) fn may_hold(self, object: ObjectKey<'_>) -> bool {
        let prefix = self.without_selectors().as_bytes();
        let is_within = object.as_bytes().starts_with(prefix);
        let selected = self.0[prefix.len()..].strip_prefix(b"?l=&f=metadata.name=");
        let name = selected.filter(|name| !name.iter().any(|b| matches!(b, b'=' | b',')));
        is_within && name.is_none_or(|name| object.0.rsplit(|b| *b == b'/').next() == Some(name))
    }

    /// The prefix of the rows of its members, where it has selectors.
    pub(crate) fn member_prefix(self) -> Vec<u8> {
        [self.0, &[0]].concat()
    }

    /// The row of a member, where it has selectors.
    pub(crate) fn member_row(self, member: ObjectKey<'_>) -> Vec<u8> {
        [self.0, &[0], member.0].concat()
    }
}

impl CollectionKeyBuf {
    pub(crate) fn as_key(&self) -> CollectionKey<'_> {
        CollectionKey(&self.0)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// `group/resource/` of an object's or a collection's key.
pub(crate) fn resource_of(key: &[u8]) -> &[u8] {
    let mut slashes = memchr::memchr_iter(b'/', key);
    &key[..slashes.nth(1).map_or(key.len(), |at| at + 1)]
}

pub(crate) fn push_resource(out: &mut Vec<u8>, group: &str, resource: &str) {
    out.extend_from_slice(group.as_bytes());
    out.push(b'/');
    out.extend_from_slice(resource.as_bytes());
    out.push(b'/');
}

/// Appends an object's key behind its resource.
pub(crate) fn push_object(out: &mut Vec<u8>, namespace: &str, name: &str) {
    if !namespace.is_empty() {
        out.extend_from_slice(namespace.as_bytes());
        out.push(b'/');
    }
    out.extend_from_slice(name.as_bytes());
}

/// Appends the key of a request's target: an object, a collection (with its selectors), or a document's path.
pub(crate) fn push_scope(out: &mut Vec<u8>, request: &ApiRequest) {
    if !request.is_resource() {
        out.extend_from_slice(request.path().as_bytes());
        return;
    }
    push_resource(out, request.group(), request.resource());
    push_object(out, request.namespace(), request.name());
    if request.name().is_empty() {
        push_selectors(out, request);
    }
}

/// Appends `?l=…&f=…` where there are selectors.
fn push_selectors(out: &mut Vec<u8>, request: &ApiRequest) {
    if request.has_selectors() {
        out.extend_from_slice(b"?l=");
        out.extend_from_slice(request.label_selector().as_bytes());
        out.extend_from_slice(b"&f=");
        out.extend_from_slice(request.field_selector().as_bytes());
    }
}

/// The collection without its selectors: the prefix of its objects' keys.
pub(crate) fn without_selectors(collection: &[u8]) -> &[u8] {
    collection
        .iter()
        .position(|b| *b == b'?')
        .map_or(collection, |at| &collection[..at])
}

/// The collections that contain an object or a collection: that of all namespaces, that of its namespace, and (for a
/// collection with selectors) the collection itself.
pub(crate) fn collections_around(scope: &[u8]) -> impl Iterator<Item = &[u8]> {
    let path = without_selectors(scope);
    let slashes = path
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'/')
        .map(|(at, _)| &path[..=at]);
    let selection = (path.len() < scope.len()).then_some(scope);
    slashes.skip(1).take(2).chain(selection)
}

/// True if an object can be in both scopes, which are objects or collections without selectors.
pub(super) fn overlap(one: &[u8], other: &[u8]) -> bool {
    contains(one, other) || contains(other, one)
}

/// True if `outer` is the object or collection `inner`, or a collection around it; the empty key contains everything.
pub(super) fn contains(outer: &[u8], inner: &[u8]) -> bool {
    outer == inner || (inner.starts_with(outer) && matches!(outer, [] | [.., b'/']))
}

/// The first key behind every key that starts with `prefix`.
pub(crate) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < u8::MAX {
            *last += 1;
            break;
        }
        end.pop();
    }
    end
}

/// The first key behind those of a scope: of an object, of all in a collection, or of all objects where it is empty.
pub(crate) fn end_of_scope(scope: &[u8]) -> Vec<u8> {
    match scope {
        // Behind every key.
        [] => vec![u8::MAX],
        [.., b'/'] => end_of(scope),
        _ => [scope, &[0]].concat(),
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, Uri};
    use hublet_wire::request::RequestInfo;

    use super::*;

    fn scope(uri: &str) -> String {
        let uri: Uri = uri.parse().unwrap();
        let mut out = Vec::new();
        push_scope(
            &mut out,
            RequestInfo::parse(&Method::GET, &uri).understood().unwrap(),
        );
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn scopes() {
        assert_eq!(scope("/api/v1/namespaces/d/pods/a"), "/pods/d/a");
        assert_eq!(scope("/api/v1/namespaces/d/pods"), "/pods/d/");
        assert_eq!(scope("/api/v1/pods"), "/pods/");
        assert_eq!(scope("/apis/x.io/v1/ys/z"), "x.io/ys/z");
        assert_eq!(
            scope("/api/v1/pods?fieldSelector=spec.nodeName%3Dn"),
            "/pods/?l=&f=spec.nodeName=n"
        );
        assert_eq!(scope("/version"), "/version");
        assert_eq!(without_selectors(b"/pods/?l=a&f="), b"/pods/");
        let around = |scope: &'static [u8]| {
            collections_around(scope)
                .map(String::from_utf8_lossy)
                .collect::<Vec<_>>()
        };
        assert_eq!(around(b"/pods/d/a"), ["/pods/", "/pods/d/"]);
        assert_eq!(around(b"/nodes/n"), ["/nodes/"]);
        assert_eq!(
            around(b"/pods/d/?l=a/b&f="),
            ["/pods/", "/pods/d/", "/pods/d/?l=a/b&f="]
        );
        assert_eq!(end_of(b"/pods/"), b"/pods0");
        assert_eq!(end_of(&[1, 255]), [2]);
    }

    #[test]
    fn keys_name_their_resource_and_their_scopes() {
        let pod = ObjectKey::new(b"/pods/d/a");
        let node = ObjectKeyBuf::join(b"/nodes/", "", "n");
        assert_eq!(node.as_bytes(), b"/nodes/n");
        assert_eq!(ObjectKeyBuf::join(b"/pods/", "d", "a").as_key(), pod);
        assert_eq!(
            (pod.resource(), node.as_key().resource()),
            (b"/pods/".as_slice(), b"/nodes/".as_slice())
        );
        let scopes: Vec<_> = pod.collections().map(CollectionKey::as_bytes).collect();
        assert_eq!(scopes, [b"/pods/".as_slice(), b"/pods/d/"]);
        let selection = CollectionKey::new(b"apps/deployments/d/?l=a/b&f=");
        assert_eq!(selection.resource(), b"apps/deployments/");
        assert!(selection.has_selectors());
        let whole = selection.without_selectors();
        assert_eq!(whole.as_bytes(), b"apps/deployments/d/");
        assert!(!whole.has_selectors());
        assert_eq!(whole.to_buf().as_bytes(), whole.as_bytes());
        assert_eq!(resource_of(b"/version"), b"/version");
    }

    #[test]
    fn a_members_row_is_within_its_collections_prefix() {
        let selection = CollectionKey::new(b"/pods/d/?l=a&f=");
        let row = selection.member_row(ObjectKey::new(b"/pods/d/a"));
        assert_eq!(row, b"/pods/d/?l=a&f=\0/pods/d/a");
        assert!(row.starts_with(&selection.member_prefix()));
        let longer = CollectionKey::new(b"/pods/d/?l=a&f=x");
        let other = longer.member_row(ObjectKey::new(b"/pods/d/a"));
        assert!(!other.starts_with(&selection.member_prefix()));
    }

    #[test]
    fn a_scope_ends_behind_its_last_key() {
        for (scope, inside, outside) in [
            (
                b"/pods/d/".as_slice(),
                b"/pods/d/zz".as_slice(),
                b"/pods/e/a".as_slice(),
            ),
            (b"/pods/d/a", b"/pods/d/a", b"/pods/d/aa"),
            (b"", b"x.io/ys/z", b"\xff"),
        ] {
            let end = end_of_scope(scope);
            assert!(inside < end.as_slice() && outside >= end.as_slice());
            assert!(overlap(scope, inside) && overlap(inside, scope));
        }
        assert!(!overlap(b"/pods/d/a", b"/pods/d/aa"));
        assert!(!overlap(b"/pods/d/", b"/pods/e/"));
        assert!(overlap(b"/pods/", b"/pods/e/a"));
    }
}
