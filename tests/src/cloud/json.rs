//! JSON that keeps the order of keys, as the API server's answers do: built-in kinds are written in struct order, custom
//! resources in sorted order.
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Number, Value};

/// Metadata's fields in the order in which built-in kinds are written.
const METADATA: [&str; 15] = [
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// A JSON value with ordered keys; integers are exact in 64 bits.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    Number(Number),
    String(String),
    Array(Vec<Json>),
    /// An object, its keys in order.
    Object(Vec<(String, Json)>),
}

impl Json {
    #[must_use]
    pub fn empty_object() -> Json {
        Json::Object(Vec::new())
    }

    /// The value at a path of keys.
    #[must_use]
    pub fn get_path(&self, path: &[&str]) -> Option<&Json> {
        path.iter().try_fold(self, |value, key| match value {
            Json::Object(entries) => entries
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value),
            _ => None,
        })
    }

    /// The string at a path of keys, `""` when there is none.
    #[must_use]
    pub fn text_at(&self, path: &[&str]) -> &str {
        match self.get_path(path) {
            Some(Json::String(text)) => text,
            _ => "",
        }
    }

    /// The object at a path, made on the way.
    pub fn make_path(&mut self, path: &[&str]) -> &mut Json {
        path.iter().fold(self, |value, key| {
            if !matches!(value, Json::Object(_)) {
                *value = Json::empty_object();
            }
            let Json::Object(entries) = value else {
                unreachable!("made an object just above")
            };
            let index = entries
                .iter()
                .position(|(name, _)| name == key)
                .unwrap_or_else(|| {
                    entries.push(((*key).to_owned(), Json::empty_object()));
                    entries.len() - 1
                });
            &mut entries[index].1
        })
    }

    /// Sets the value at a path.
    pub fn set(&mut self, path: &[&str], value: impl Into<Json>) {
        *self.make_path(path) = value.into();
    }

    /// Takes a key out of the object at a path.
    pub fn remove(&mut self, path: &[&str]) -> Option<Json> {
        let (last, parents) = path.split_last()?;
        self.get_path(parents)?;
        let Json::Object(entries) = self.make_path(parents) else {
            return None;
        };
        let index = entries.iter().position(|(name, _)| name == last)?;
        Some(entries.remove(index).1)
    }

    /// Its keys and values, none when it is no object.
    #[must_use]
    pub fn entries(&self) -> &[(String, Json)] {
        match self {
            Json::Object(entries) => entries,
            _ => &[],
        }
    }

    fn sort_keys(&mut self, deep: bool) {
        match self {
            Json::Object(entries) => {
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                entries
                    .iter_mut()
                    .filter(|_| deep)
                    .for_each(|(_, value)| value.sort_keys(deep));
            }
            Json::Array(items) if deep => items.iter_mut().for_each(|item| item.sort_keys(deep)),
            _ => {}
        }
    }

    /// Puts the keys in the order of `model`; those that it lacks come last.
    pub fn order_like(&mut self, model: &Json) {
        match (self, model) {
            (Json::Object(entries), Json::Object(known)) => {
                let place = |name: &str| known.iter().position(|(key, _)| key == name);
                entries.sort_by_key(|(name, _)| place(name).unwrap_or(known.len()));
                for (name, value) in entries {
                    if let Some(at) = place(name) {
                        value.order_like(&known[at].1);
                    }
                }
            }
            (Json::Array(items), Json::Array(known)) => {
                for (item, model) in items.iter_mut().zip(known) {
                    item.order_like(model);
                }
            }
            _ => {}
        }
    }

    /// The order in which the API server writes this object.
    #[must_use]
    pub fn into_server_order(mut self, builtin: bool) -> Json {
        if !builtin {
            self.sort_keys(true);
            return self;
        }
        let rank = |order: &[&str], name: &str| {
            order
                .iter()
                .position(|known| *known == name)
                .unwrap_or(order.len())
        };
        let top = ["kind", "apiVersion", "metadata"];
        if let Json::Object(entries) = &mut self {
            entries.sort_by_key(|(name, _)| (rank(&top, name), name == "status"));
        }
        if self.get_path(&["metadata"]).is_some()
            && let Json::Object(entries) = self.make_path(&["metadata"])
        {
            entries.sort_by_key(|(name, _)| rank(&METADATA, name));
        }
        for map in [
            &["metadata", "labels"][..],
            &["metadata", "annotations"],
            &["data"],
            &["binaryData"],
        ] {
            if self.get_path(map).is_some() {
                self.make_path(map).sort_keys(false);
            }
        }
        self
    }

    /// Its bytes, with `<`, `>` and `&` escaped as Go does.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let plain = serde_json::to_vec(self).expect("ordered JSON has string keys only");
        let mut bytes = Vec::with_capacity(plain.len());
        for byte in plain {
            match byte {
                b'<' | b'>' | b'&' => bytes.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                _ => bytes.push(byte),
            }
        }
        bytes
    }

    /// The same as serde_json's value, for tests that compare.
    #[must_use]
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("ordered JSON has string keys only")
    }
}

impl From<Value> for Json {
    fn from(value: Value) -> Json {
        Json::deserialize(value).expect("every JSON value is an ordered one")
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Json {
        Json::String(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Json {
        Json::String(text)
    }
}

impl From<u64> for Json {
    fn from(number: u64) -> Json {
        Json::Number(number.into())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Json::Null => serializer.serialize_unit(),
            Json::Bool(value) => serializer.serialize_bool(*value),
            Json::Number(number) => number.serialize(serializer),
            Json::String(text) => serializer.serialize_str(text),
            Json::Array(items) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                items
                    .iter()
                    .try_for_each(|item| seq.serialize_element(item))?;
                seq.end()
            }
            Json::Object(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                entries
                    .iter()
                    .try_for_each(|(name, value)| map.serialize_entry(name, value))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(AnyJson)
    }
}

struct AnyJson;

impl<'de> Visitor<'de> for AnyJson {
    type Value = Json;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Number::from_f64(value).map_or(Json::Null, Json::Number))
    }
    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries: Vec<(String, Json)> = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, Json>()? {
            entries.retain(|(known, _)| *known != name);
            entries.push((name, value));
        }
        Ok(Json::Object(entries))
    }
}
