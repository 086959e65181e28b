//! WATCH: a stream of events with bookmarks, initial events, a deadline, and the real server's 410 (a 200 whose one event is
//! the `Status`).
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use super::Shared;
use super::answer::{Answer, BodyError, JSON, build_answer, stream_body};
use super::json::Json;
use super::kinds::Kind;
use super::read::Collection;
use super::selector::Selector;
use super::status::Failure;
use super::store::{Compacted, Event};

/// Used when the client names no `timeoutSeconds`; the real server draws between 30 and 60 minutes.
const DEFAULT_TIMEOUT: u64 = 45 * 60;

struct Watch {
    shared: Arc<Shared>,
    kind: &'static Kind,
    namespace: String,
    selector: Selector,
    bookmarks: bool,
    /// All events up to here are in `ready` or sent.
    version: u64,
    ready: VecDeque<Bytes>,
    changes: Receiver<u64>,
    deadline: Instant,
    bookmark_at: Instant,
    over: bool,
}

pub(super) fn start_watch(
    shared: &Arc<Shared>,
    collection: &Collection<'_>,
) -> Result<Answer, Failure> {
    let target = collection.target;
    let initial = target.parameter("sendInitialEvents");
    if !initial.is_empty() && target.parameter("resourceVersionMatch") != "NotOlderThan" {
        let why =
            "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        return Err(Failure::list_options("resourceVersionMatch", why));
    }
    let version = collection.version()?.unwrap_or(0);
    let seconds = target
        .parameter("timeoutSeconds")
        .parse()
        .unwrap_or(DEFAULT_TIMEOUT);
    let mut watch = Watch {
        shared: Arc::clone(shared),
        kind: collection.kind,
        namespace: collection.namespace.to_owned(),
        selector: collection.selector.clone(),
        bookmarks: target.is_set("allowWatchBookmarks"),
        version,
        ready: VecDeque::new(),
        changes: shared.store.subscribe(),
        deadline: Instant::now() + Duration::from_secs(seconds),
        bookmark_at: Instant::now() + shared.options.bookmark_every,
        over: false,
    };
    if initial == "true" || (initial.is_empty() && version == 0) {
        watch.push_initial_events(collection);
        if initial == "true" && watch.bookmarks {
            watch.push_bookmark(true);
        }
    } else if version == 0 {
        watch.version = shared.store.version();
    }
    let events = stream::unfold(watch, |mut watch| async move {
        let event = watch.next_event().await?;
        Some((Ok::<_, BodyError>(event), watch))
    });
    Ok(build_answer(200, JSON, stream_body(events)))
}

impl Watch {
    fn push_initial_events(&mut self, collection: &Collection<'_>) {
        let Ok((version, objects)) = collection.store.list_at(self.kind, None) else {
            unreachable!("the present is never compacted")
        };
        self.version = version;
        for (_, object) in collection.select_objects(objects) {
            self.push_event("ADDED", &object);
        }
    }

    fn push_event(&mut self, kind: &str, object: &Json) {
        let mut bytes = format!("{{\"type\":\"{kind}\",\"object\":").into_bytes();
        bytes.extend(object.to_bytes());
        bytes.extend_from_slice(b"}\n");
        self.ready.push_back(bytes.into());
    }

    fn push_bookmark(&mut self, initial_end: bool) {
        let mut object = Json::empty_object();
        object.set(&["kind"], self.kind.kind);
        object.set(&["apiVersion"], self.kind.api_version());
        object.set(&["metadata", "resourceVersion"], self.version.to_string());
        if initial_end {
            object.set(
                &["metadata", "annotations", "k8s.io/initial-events-end"],
                "true",
            );
        }
        let object = object.into_server_order(self.kind.builtin);
        self.push_event("BOOKMARK", &object);
        self.bookmark_at = Instant::now() + self.shared.options.bookmark_every;
    }

    /// The next event, or the end.
    async fn next_event(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            self.changes.mark_unchanged();
            self.collect_events();
            if !self.ready.is_empty() {
                continue;
            }
            tokio::select! {
                changed = self.changes.changed() => self.over = changed.is_err(),
                () = tokio::time::sleep_until(self.deadline) => {
                    self.over = true;
                    if self.bookmarks {
                        self.push_bookmark(false);
                    }
                }
                () = tokio::time::sleep_until(self.bookmark_at), if self.bookmarks => self.push_bookmark(false),
            }
        }
    }

    fn collect_events(&mut self) {
        match self.shared.store.events_after(self.kind, self.version) {
            Ok((version, events)) => {
                self.version = self.version.max(version);
                for event in events {
                    self.push_if_selected(&event);
                }
            }
            Err(Compacted(oldest)) => {
                let text = format!("too old resource version: {} ({oldest})", self.version);
                let status =
                    serde_json::from_slice::<Json>(&Failure::new(410, "Expired", text).to_body());
                self.push_event("ERROR", &status.unwrap_or(Json::Null));
                self.over = true;
            }
        }
    }

    fn selects(&self, object: &Json) -> bool {
        let namespace = object.text_at(&["metadata", "namespace"]);
        (self.namespace.is_empty() || namespace == self.namespace) && self.selector.matches(object)
    }

    /// An event as this watch sees it: an object that leaves the selection is deleted, one that enters it is added.
    fn push_if_selected(&mut self, event: &Event) {
        let before = event.before.clone().filter(|object| self.selects(object));
        let after = event.after.clone().filter(|object| self.selects(object));
        match (before, after) {
            (None, Some(after)) => self.push_event("ADDED", &after),
            (Some(_), Some(after)) => self.push_event("MODIFIED", &after),
            (Some(before), None) => {
                // The last state that was selected, with the version at which it went.
                let mut last = (*before).clone();
                last.set(&["metadata", "resourceVersion"], event.version.to_string());
                self.push_event("DELETED", &last);
            }
            (None, None) => {}
        }
    }
}
