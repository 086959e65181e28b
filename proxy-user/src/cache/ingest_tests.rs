//! A cluster's history, fetched by lists and watches that may lag, in any chunks: the store holds what a plain map of the
//! same events does, and a collection that counts as whole is as the cluster was.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use hublet_wire::list::{ListHead, push_protobuf_item};
use hublet_wire::media::Encoding;
use hublet_wire::meta::{ResourceVersion, Timestamp, TypeMeta};
use hublet_wire::protobuf::{encode_envelope, put_bytes};
use hublet_wire::watch::{Bookmark, BookmarkPlace, EventType, push_frame};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::cache::apply::apply;
use crate::cache::continuity::Continuity;
use crate::cache::keys::{CollectionKey, ObjectKey};
use crate::cache::paginate::ListAssembler;
use crate::cache::store::{Lookup, Store};
use crate::cache::testing::{MemoryDisk, Response};
use crate::cache::tests::PODS;
use crate::clock::Clock;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const POD: TypeMeta<'static> = TypeMeta {
    api_version: "v1",
    kind: "Pod",
};
/// Version of the cluster before its history, and of nothing in it.
const FIRST: u64 = 10;
/// Time of the first response, and from it to the next.
const START: Timestamp = Timestamp::from_millis(1_000_000);
const PACE: Duration = Duration::from_secs(1);

/// A write to an object of the cluster, which makes the next version.
#[derive(Debug, Clone, Copy)]
enum Write {
    Set(&'static str),
    /// Where there is no such object, only the version changes.
    Delete(&'static str),
}

#[derive(Debug, Clone, Copy)]
enum Fetch {
    /// As the cluster is now.
    List,
    /// By an API server that may lag.
    StaleList(Index),
    /// All events between two versions.
    Watch(Index, Index),
}

/// A fetch, and how its response arrives.
#[derive(Debug, Clone)]
struct Step {
    /// The part of its history that the cluster has seen by then.
    now: Index,
    fetch: Fetch,
    encoding: Encoding,
    page_len: usize,
    cuts: Vec<Index>,
}

fn writes() -> impl Strategy<Value = Write> {
    prop_oneof![
        2 => select(&NAMES[..]).prop_map(Write::Set),
        1 => select(&NAMES[..]).prop_map(Write::Delete),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let fetch = prop_oneof![
        1 => Just(Fetch::List),
        1 => any::<Index>().prop_map(Fetch::StaleList),
        2 => any::<(Index, Index)>().prop_map(|(from, to)| Fetch::Watch(from, to)),
    ];
    let encoding = select(&[Encoding::Json, Encoding::Protobuf][..]);
    let cuts = vec(any::<Index>(), 0..12);
    (any::<Index>(), fetch, encoding, 1_usize..5, cuts).prop_map(
        |(now, fetch, encoding, page_len, cuts)| Step {
            now,
            fetch,
            encoding,
            page_len,
            cuts,
        },
    )
}

/// Objects and their versions.
type Objects = BTreeMap<&'static str, u64>;

/// All that was ever written to the cluster.
struct History(Vec<Write>);

impl History {
    /// Version after so many writes.
    fn version(writes: usize) -> u64 {
        FIRST + writes as u64
    }

    fn objects_after(&self, writes: usize) -> Objects {
        let mut objects = Objects::new();
        for (n, write) in self.0[..writes].iter().enumerate() {
            match write {
                Write::Set(name) => objects.insert(name, Self::version(n + 1)),
                Write::Delete(name) => objects.remove(name),
            };
        }
        objects
    }
}

/// An object that exists, or was deleted, at this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Present(u64),
    Gone(u64),
}

/// The store as a map: per object the newest event counts.
#[derive(Debug, Default)]
struct Model {
    objects: BTreeMap<&'static str, Known>,
    /// Version of the collection, once a list was whole.
    collection: Option<u64>,
}

impl Model {
    fn set(&mut self, name: &'static str, version: u64) {
        // An event that is older than a list does not bring back an object that the list lacks.
        let is_old = match self.objects.get(name) {
            Some(Known::Present(known)) => version <= *known,
            Some(Known::Gone(since)) => version <= *since.max(&self.collection.unwrap_or(0)),
            None => self.collection.is_some_and(|listed| version <= listed),
        };
        if !is_old {
            self.objects.insert(name, Known::Present(version));
        }
    }

    fn delete(&mut self, name: &'static str, version: u64) {
        let known = self.objects.get(name).copied();
        if let Some(Known::Present(known) | Known::Gone(known)) = known
            && known > version
        {
            return;
        }
        self.objects.insert(name, Known::Gone(version));
    }

    fn list(&mut self, version: u64, listed: &Objects) {
        for (name, version) in listed {
            self.set(name, *version);
        }
        if self.collection.is_none_or(|known| known <= version) {
            self.collection = Some(version);
            self.objects.retain(|name, known| match known {
                Known::Present(known) => *known > version || listed.contains_key(name),
                Known::Gone(_) => true,
            });
        }
    }

    /// A watch that begins within what is known carries the collection on.
    fn advance(&mut self, from: u64, version: u64) {
        if let Some(known) = &mut self.collection
            && (from..=version).contains(known)
        {
            *known = version;
        }
    }
}

/// The stored version of each object, and of the collection.
fn stored(store: &Store) -> Model {
    let snapshot = store.snapshot().unwrap();
    let mut model = Model::default();
    for name in NAMES {
        let key = format!("/pods/d/{name}");
        match snapshot
            .object(ObjectKey::new(key.as_bytes()), |record| {
                record.version.get()
            })
            .unwrap()
        {
            Lookup::Found(version) => model.objects.insert(name, Known::Present(version)),
            Lookup::Absent(_) => model.objects.insert(name, Known::Gone(0)),
            Lookup::Unknown => None,
        };
    }
    let collection = snapshot
        .collection(CollectionKey::new(b"/pods/d/"))
        .unwrap();
    model.collection = collection.map(|collection| {
        assert!(collection.is_whole(), "{collection:?}");
        collection.version.get()
    });
    model
}

/// The object of this version, as a GET answers it.
fn encode_object(name: &str, version: u64, encoding: Encoding) -> Vec<u8> {
    match encoding {
        Encoding::Json => format!(
            r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"d","uid":"u","resourceVersion":"{version}"}}}}"#
        )
        .into_bytes(),
        Encoding::Protobuf => encode_envelope(POD, &encode_message(name, version)),
    }
}

fn encode_message(name: &str, version: u64) -> Vec<u8> {
    let (mut meta, mut object) = (Vec::new(), Vec::new());
    put_bytes(&mut meta, 1, name.as_bytes());
    put_bytes(&mut meta, 3, b"d");
    put_bytes(&mut meta, 5, b"u");
    put_bytes(&mut meta, 6, version.to_string().as_bytes());
    put_bytes(&mut object, 1, &meta);
    object
}

/// A page of a list: its request and its body.
struct Page {
    call: String,
    body: Vec<u8>,
}

fn encode_page(head: &ListHead, items: &[(&'static str, u64)], encoding: Encoding) -> Vec<u8> {
    let mut encoded = Vec::new();
    for (n, (name, version)) in items.iter().enumerate() {
        match encoding {
            Encoding::Json => {
                encoded.extend_from_slice(if n > 0 { b"," } else { b"" });
                encoded.extend_from_slice(&encode_object(name, *version, encoding));
            }
            Encoding::Protobuf => {
                push_protobuf_item(&mut encoded, &encode_message(name, *version));
            }
        }
    }
    let envelope = match encoding {
        Encoding::Json => head.encode_json(),
        Encoding::Protobuf => head.encode_protobuf(encoded.len()),
    };
    [envelope.head, encoded, envelope.tail].concat()
}

fn encode_list(query: &str, version: u64, objects: &Objects, step: &Step) -> Vec<Page> {
    let items: Vec<_> = objects
        .iter()
        .map(|(name, version)| (*name, *version))
        .collect();
    let mut pages: Vec<&[_]> = items.chunks(step.page_len).collect();
    if pages.is_empty() {
        pages.push(&[]);
    }
    let last = pages.len() - 1;
    let token = |page: usize| format!("{version}-{page}");
    let encode = |(page, items): (usize, &&[_])| {
        let head = ListHead {
            kind: "PodList".into(),
            api_version: "v1".into(),
            resource_version: version.to_string(),
            continue_token: if page < last {
                token(page + 1)
            } else {
                String::new()
            },
            unstructured: false,
        };
        let call = match page {
            0 => format!("{PODS}?limit={}{query}", step.page_len),
            _ => format!("{PODS}?limit={}&continue={}", step.page_len, token(page)),
        };
        Page {
            call,
            body: encode_page(&head, items, step.encoding),
        }
    };
    pages.iter().enumerate().map(encode).collect()
}

/// A store, and the model of it.
struct Comparison {
    history: History,
    store: Store,
    model: Model,
    continuity: Continuity,
    lists: ListAssembler,
    /// The same, for bodies that come in one chunk.
    unchunked: ListAssembler,
    now: Timestamp,
    /// Number of writes that the cluster has seen.
    writes: usize,
}

impl Comparison {
    fn new(dir: &Path, history: Vec<Write>) -> Self {
        Self {
            history: History(history),
            store: MemoryDisk::default().open_store(dir),
            model: Model::default(),
            continuity: Continuity::new(Clock::default()),
            lists: ListAssembler::default(),
            unchunked: ListAssembler::default(),
            now: START,
            writes: 0,
        }
    }

    fn fetch(&mut self, step: &Step) {
        self.writes = self.writes.max(step.now.index(self.history.0.len() + 1));
        self.now = self.now + PACE;
        match step.fetch {
            Fetch::List => self.list("", self.writes, step),
            Fetch::StaleList(at) => {
                self.list("&resourceVersion=0", at.index(self.writes + 1), step);
            }
            Fetch::Watch(one, other) => {
                let (one, other) = (one.index(self.writes + 1), other.index(self.writes + 1));
                self.watch(one.min(other), one.max(other), step);
            }
        }
    }

    fn list(&mut self, query: &str, writes: usize, step: &Step) {
        let objects = self.history.objects_after(writes);
        let version = History::version(writes);
        for page in encode_list(query, version, &objects, step) {
            self.ingest(&page.call, &page.body, step);
        }
        self.model.list(version, &objects);
    }

    fn watch(&mut self, from: usize, to: usize, step: &Step) {
        let mut body = Vec::new();
        let start = History::version(from);
        for n in from..to {
            let (present, version) = (self.history.objects_after(n), History::version(n + 1));
            let (event, name) = match self.history.0[n] {
                Write::Set(name) if present.contains_key(name) => (EventType::Modified, name),
                Write::Set(name) => (EventType::Added, name),
                Write::Delete(name) if present.contains_key(name) => (EventType::Deleted, name),
                Write::Delete(_) => {
                    let bookmark = Bookmark {
                        type_meta: POD,
                        resource_version: ResourceVersion::new(version),
                        place: BookmarkPlace::Later,
                    };
                    bookmark.push_frame(&mut body, step.encoding);
                    self.model.advance(start, version);
                    continue;
                }
            };
            let object = encode_object(name, version, step.encoding);
            push_frame(&mut body, event, step.encoding, &object);
            if event == EventType::Deleted {
                self.model.delete(name, version);
            } else {
                self.model.set(name, version);
            }
            self.model.advance(start, version);
        }
        self.ingest(
            &format!("{PODS}?watch=true&resourceVersion={start}"),
            &body,
            step,
        );
    }

    fn ingest(&mut self, call: &str, body: &[u8], step: &Step) {
        let response = Response {
            call,
            status: 200,
            encoding: step.encoding,
            body,
            at: self.now,
        };
        let mut cuts: Vec<_> = step
            .cuts
            .iter()
            .map(|cut| cut.index(body.len() + 1))
            .collect();
        cuts.sort_unstable();
        let changes = response.decode(&mut self.lists, &cuts);
        let whole = response.decode(&mut self.unchunked, &[]);
        assert_eq!(
            format!("{changes:?}"),
            format!("{whole:?}"),
            "cut at {cuts:?}"
        );
        apply(&self.store, &changes, &mut self.continuity).unwrap();
    }

    fn check(&self) {
        let stored = stored(&self.store);
        let known = |name: &&str| match self.model.objects.get(*name) {
            Some(Known::Gone(_)) => Some(Known::Gone(0)),
            known => known.copied(),
        };
        for name in &NAMES {
            assert_eq!(
                stored.objects.get(name).copied(),
                known(name),
                "{name}: {:?}",
                self.model
            );
        }
        assert_eq!(stored.collection, self.model.collection);
        self.check_whole(&stored);
    }

    /// A whole collection equals the cluster's at its version, but for objects that changed later.
    fn check_whole(&self, stored: &Model) {
        let Some(version) = stored.collection else {
            return;
        };
        let writes = usize::try_from(version - FIRST).unwrap();
        let objects = self.history.objects_after(writes);
        for name in NAMES {
            let (then, now) = (objects.get(name).copied(), stored.objects.get(name));
            let agrees = match (now, self.model.objects.get(name)) {
                (Some(Known::Present(now)), _) => Some(*now) == then || *now > version,
                (_, Some(Known::Gone(since))) => then.is_none_or(|then| then < *since),
                _ => then.is_none(),
            };
            assert!(
                agrees,
                "{name} was {then:?} at {version}, and is stored as {now:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn i2_chunks_change_nothing_and_a_whole_collection_is_as_the_cluster_was(
        history in vec(writes(), 0..16),
        steps in vec(steps(), 1..10),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut comparison = Comparison::new(dir.path(), history);
        for step in &steps {
            comparison.fetch(step);
            comparison.check();
        }
    }
}
