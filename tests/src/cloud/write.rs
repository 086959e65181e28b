//! POST, PUT, PATCH and DELETE, with the real server's conflicts.
//!
//! Limits: no admission, defaulting, validation or managedFields; a strategic merge patch is a merge patch that also merges
//! `conditions` by type; server-side apply gets 415.
use super::answer::{Answer, json_answer};
use super::json::Json;
use super::kinds::{self, Kind};
use super::patch::PatchKind;
use super::read::{Collection, Page, encode_list, object_answer};
use super::request::{Resource, Target};
use super::status::{Failure, deleted_status};
use super::store::{Key, Store};
use crate::pki;

pub(super) struct Write<'a> {
    pub(super) store: &'a Store,
    pub(super) kind: &'static Kind,
    pub(super) resource: &'a Resource,
    pub(super) target: &'a Target,
    pub(super) content_type: &'a str,
    pub(super) body: &'a [u8],
}

const OBJECT_TYPES: [&str; 2] = ["application/json", ""];

impl Write<'_> {
    fn own_key(&self) -> Key {
        object_key(self.kind, &self.resource.namespace, &self.resource.name)
    }

    fn is_dry_run(&self) -> bool {
        self.target.parameter("dryRun") == "All"
    }

    /// The body as an object of the kind.
    fn parse_object(&self) -> Result<Json, Failure> {
        if !OBJECT_TYPES.contains(&self.content_type) {
            return Err(Failure::unsupported_media("application/json"));
        }
        let kind = self.kind;
        let text = String::from_utf8_lossy(self.body);
        let object: Json = serde_json::from_slice(self.body).map_err(|cause| {
            let why = format!("couldn't get version/kind; json parse error: {cause} ({text})");
            let message = format!(
                "the object provided is unrecognized (must be of type {}): {why}",
                kind.kind
            );
            Failure::bad_request(message)
        })?;
        let (said, version) = (object.text_at(&["kind"]), object.text_at(&["apiVersion"]));
        if (!said.is_empty() && said != kind.kind)
            || (!version.is_empty() && version != kind.api_version())
        {
            let message = format!(
                "{version}, Kind={said} in body does not match {}, Kind={}",
                kind.api_version(),
                kind.kind
            );
            return Err(Failure::bad_request(message));
        }
        let namespace = object.text_at(&["metadata", "namespace"]);
        if kind.namespaced && !namespace.is_empty() && namespace != self.resource.namespace {
            let message = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Failure::bad_request(message));
        }
        Ok(object)
    }

    pub(super) fn create(&self) -> Result<Answer, Failure> {
        let mut object = self.parse_object()?;
        let kind = self.kind;
        let mut name = object.text_at(&["metadata", "name"]).to_owned();
        let prefix = object.text_at(&["metadata", "generateName"]);
        if name.is_empty() && !prefix.is_empty() {
            let letters = b"bcdfghjklmnpqrstvwxz2456789";
            let letter = |byte: u8| char::from(letters[usize::from(byte) % letters.len()]);
            name = prefix
                .chars()
                .chain(pki::random_bytes::<5>().map(letter))
                .collect();
        }
        if name.is_empty() {
            let why = "Required value: name or generateName is required";
            return Err(Failure::invalid(kind, "", "metadata.name", why));
        }
        if !matches!(object.text_at(&["metadata", "resourceVersion"]), "" | "0") {
            return Err(Failure::new(
                500,
                "",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let key = object_key(kind, &self.resource.namespace, &name);
        if let Some(namespaces) = kinds::find("", "v1", "namespaces").filter(|_| kind.namespaced)
            && self
                .store
                .get(namespaces, &(String::new(), key.0.clone()))
                .is_none()
        {
            return Err(Failure::not_found(namespaces, &key.0));
        }
        self.store.stamp_new(kind, &mut object, &key);
        if self.is_dry_run() {
            return Ok(object_answer(201, &object.into_server_order(kind.builtin)));
        }
        let created = self
            .store
            .change_object(kind, &key, |present| match present {
                Some(_) => Err(Failure::already_exists(kind, &name)),
                None => Ok(Some(object)),
            })?;
        Ok(object_answer(201, &created))
    }

    pub(super) fn update(&self) -> Result<Answer, Failure> {
        let object = self.parse_object()?;
        let version = object.text_at(&["metadata", "resourceVersion"]);
        if !self.kind.builtin && matches!(version, "" | "0") {
            let why = "Invalid value: 0: must be specified for an update";
            return Err(Failure::invalid(
                self.kind,
                &self.resource.name,
                "metadata.resourceVersion",
                why,
            ));
        }
        self.replace_object(|_| Ok(object))
    }

    pub(super) fn patch(&self) -> Result<Answer, Failure> {
        let patch = PatchKind::from_content_type(self.content_type, self.kind)?;
        self.replace_object(|present| patch.apply(present, self.body))
    }

    /// Puts another object in the place of the present one, if versions and UIDs agree.
    fn replace_object(
        &self,
        make: impl FnOnce(&Json) -> Result<Json, Failure>,
    ) -> Result<Answer, Failure> {
        let (kind, key) = (self.kind, self.own_key());
        let mut unwritten = None;
        let result = self.store.change_object(kind, &key, |present| {
            let present = present.ok_or_else(|| Failure::not_found(kind, &key.1))?;
            let object = make(present)?;
            check_identity(kind, &key.1, &object, present)?;
            let object = self.keep_server_fields(present, object);
            if self.is_dry_run() {
                unwritten = Some(object);
                return Ok(Some(present.clone()));
            }
            // Removing the last finalizer deletes the object; the answer is the object as it would have become.
            let dying = !object
                .text_at(&["metadata", "deletionTimestamp"])
                .is_empty();
            if dying && count_finalizers(&object) == 0 && count_finalizers(present) > 0 {
                unwritten = Some(object);
                return Ok(None);
            }
            Ok(Some(object))
        })?;
        Ok(object_answer(
            200,
            &unwritten.map_or(result.as_ref().clone(), |object| {
                object.into_server_order(kind.builtin)
            }),
        ))
    }

    /// Keeps what clients can't change: identity, and status or spec, depending on the subresource.
    fn keep_server_fields(&self, present: &Json, mut object: Json) -> Json {
        let kind = self.kind;
        object.set(&["kind"], kind.kind);
        object.set(&["apiVersion"], kind.api_version());
        let own = [
            "name",
            "namespace",
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "deletionTimestamp",
        ];
        for field in own {
            let path = ["metadata", field];
            match present.get_path(&path) {
                Some(value) => object.set(&path, value.clone()),
                None => drop(object.remove(&path)),
            }
        }
        let kept = |name: &str| match self.resource.subresource.as_str() {
            "status" => name != "status" && name != "metadata",
            _ => kind.status && name == "status",
        };
        if let Json::Object(entries) = &mut object {
            entries
                .retain(|(name, _)| matches!(name.as_str(), "kind" | "apiVersion") || !kept(name));
        }
        for (name, value) in present.entries().iter().filter(|(name, _)| kept(name)) {
            object.set(&[name], value.clone());
        }
        if let Some(Json::Number(number)) = present.get_path(&["metadata", "generation"])
            && ordered_spec(kind, present) != ordered_spec(kind, &object)
        {
            object.set(
                &["metadata", "generation"],
                number.as_u64().unwrap_or(0) + 1,
            );
        }
        object
    }

    pub(super) fn delete(&self) -> Result<Answer, Failure> {
        let (kind, key) = (self.kind, self.own_key());
        let options: Json =
            serde_json::from_slice(self.body).unwrap_or_else(|_| Json::empty_object());
        let grace = match options.get_path(&["gracePeriodSeconds"]) {
            Some(Json::Number(number)) => number.as_u64(),
            _ => self.target.parameter("gracePeriodSeconds").parse().ok(),
        };
        let mut graceful = false;
        let result = self.store.change_object(kind, &key, |present| {
            let present = present.ok_or_else(|| Failure::not_found(kind, &key.1))?;
            check_preconditions(kind, &key.1, &options, present)?;
            let scheduled =
                kind.resource == "pods" && !present.text_at(&["spec", "nodeName"]).is_empty();
            graceful = (scheduled && grace != Some(0)) || count_finalizers(present) > 0;
            if self.is_dry_run()
                || (graceful
                    && !present
                        .text_at(&["metadata", "deletionTimestamp"])
                        .is_empty())
            {
                return Ok(Some(present.clone()));
            }
            let mut dying = present.clone();
            dying.set(&["metadata", "deletionTimestamp"], self.store.timestamp());
            dying.set(
                &["metadata", "deletionGracePeriodSeconds"],
                grace.unwrap_or(if scheduled { 30 } else { 0 }),
            );
            Ok(graceful.then_some(dying))
        })?;
        if graceful || kind.resource == "pods" {
            return Ok(object_answer(200, &result));
        }
        Ok(json_answer(
            200,
            deleted_status(kind, &key.1, result.text_at(&["metadata", "uid"])),
        ))
    }
}

/// Fails if an update names another object, or another version, than the present one.
fn check_identity(kind: &Kind, name: &str, object: &Json, present: &Json) -> Result<(), Failure> {
    let differing = |field: &str| {
        let wanted = object.text_at(&["metadata", field]);
        let found = present.text_at(&["metadata", field]);
        (!matches!(wanted, "" | "0") && wanted != found).then_some((wanted, found))
    };
    if let Some((wanted, found)) = differing("uid") {
        return Err(Failure::uid_of_update(kind, name, wanted, found));
    }
    if differing("resourceVersion").is_some() {
        return Err(Failure::conflict(kind, name));
    }
    if let Some((wanted, found)) = differing("name") {
        let why = format!(
            "the name of the object ({wanted}) does not match the name on the URL ({found})"
        );
        return Err(Failure::bad_request(why));
    }
    Ok(())
}

/// Fails if the options of a DELETE require another UID or version than the present one.
fn check_preconditions(
    kind: &Kind,
    name: &str,
    options: &Json,
    present: &Json,
) -> Result<(), Failure> {
    for (field, what) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
        let wanted = options.text_at(&["preconditions", field]);
        let found = present.text_at(&["metadata", field]);
        if !wanted.is_empty() && wanted != found {
            return Err(Failure::delete_precondition(
                kind,
                name,
                what,
                [wanted, found],
            ));
        }
    }
    Ok(())
}

fn ordered_spec(kind: &Kind, object: &Json) -> Option<Json> {
    let ordered = object.clone().into_server_order(kind.builtin);
    ordered.get_path(&["spec"]).cloned()
}

/// Deletes all that a collection selects, and answers with it.
pub(super) fn delete_collection(collection: &Collection<'_>) -> Result<Answer, Failure> {
    let (store, kind) = (collection.store, collection.kind);
    let Ok((_, objects)) = store.list_at(kind, None) else {
        unreachable!("the present is never compacted")
    };
    let mut gone = Vec::new();
    for (key, _) in collection.select_objects(objects) {
        gone.push(store.change_object(kind, &key, |_| Ok(None))?);
    }
    Ok(json_answer(
        200,
        encode_list(kind, &Page::all_at(store.version()), &gone),
    ))
}

pub(super) fn object_key(kind: &Kind, namespace: &str, name: &str) -> Key {
    (
        if kind.namespaced {
            namespace.to_owned()
        } else {
            String::new()
        },
        name.to_owned(),
    )
}

fn count_finalizers(object: &Json) -> usize {
    match object.get_path(&["metadata", "finalizers"]) {
        Some(Json::Array(items)) => items.len(),
        _ => 0,
    }
}
