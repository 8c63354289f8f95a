//! Objects read without their `metadata.managedFields`: often half of an object, and no cache has a reader for
//! them. They are skipped where they stand in the text, not decoded and dropped.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{DeserializeSeed, Error, IgnoredAny, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};

/// An object whose managed fields were not read. An update without them keeps the server's.
#[derive(Clone, Debug)]
pub struct Unmanaged<K>(pub K);

const SKIPPED: &[&str] = &["metadata", "managedFields"];

impl<'de, K: Deserialize<'de>> Deserialize<'de> for Unmanaged<K> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        K::deserialize(Without { inner: from, path: SKIPPED }).map(Self)
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Unmanaged<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

/// A deserializer, visitor, map or seed that hides what is at `path`; its last part is the key of what is
/// hidden, those before lead there.
struct Without<T> {
    inner: T,
    path: &'static [&'static str],
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Without<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Without { inner: visitor, path: self.path })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_option(Without { inner: visitor, path: self.path })
    }

    // Only objects are on the way to what is hidden.
    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Without<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(Members { map, path: self.path, leads: false })
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Without { inner: from, path: self.path })
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Without<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Without { inner: from, path: self.path })
    }
}

/// The members of a map on the way to what is hidden.
struct Members<A> {
    map: A,
    path: &'static [&'static str],
    /// Whether the value that comes next is on the way.
    leads: bool,
}

/// A key, copied only where the text escapes some of it.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Members<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        while let Some(Key(key)) = self.map.next_key::<Key<'de>>()? {
            self.leads = self.path.first().is_some_and(|first| *first == key);
            if !self.leads || self.path.len() > 1 {
                return seed.deserialize(key.into_deserializer()).map(Some);
            }
            self.map.next_value::<IgnoredAny>()?;
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        match self.path {
            [_, rest @ ..] if self.leads => self.map.next_value_seed(Without { inner: seed, path: rest }),
            _ => self.map.next_value_seed(seed),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use serde_json::{Value, json};

    use super::*;

    fn pod() -> Value {
        json!({
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": {
                "name": "a\u{1F600}\"b",
                "managedFields": [{ "manager": "m", "fieldsV1": { "f:spec": { "f:managedFields": {} } } }],
                "labels": { "managedFields": "a label", "metadata": "another" },
                "ownerReferences": [{ "apiVersion": "v1", "kind": "K", "name": "n", "uid": "u" }],
            },
            "spec": { "containers": [{ "name": "c", "env": [{ "name": "metadata", "value": "managedFields" }] }] },
            "status": { "phase": "Pending" },
        })
    }

    #[test]
    fn all_but_the_managed_fields_is_read() {
        let text = pod().to_string();
        let mut whole: Pod = serde_json::from_str(&text).unwrap();
        assert!(whole.metadata.managed_fields.take().is_some());
        for Unmanaged(read) in [
            serde_json::from_str::<Unmanaged<Pod>>(&text).unwrap(),
            serde_json::from_reader(text.as_bytes()).unwrap(),
            serde_json::from_value(pod()).unwrap(),
        ] {
            assert_eq!(read, whole);
        }
    }

    #[test]
    fn what_is_no_object_is_told_as_without_it() {
        for text in ["7", "[]", "{", "null", "{\"metadata\":7}", "{\"metadata\":{\"name\":7}}", "{\"kind\":\"Pod\"}"] {
            let plain = serde_json::from_str::<ConfigMap>(text).unwrap_err().to_string();
            assert_eq!(serde_json::from_str::<Unmanaged<ConfigMap>>(text).unwrap_err().to_string(), plain, "{text}");
        }
        for text in ["{}", "{\"metadata\":null}", "{\"metadata\":{}}", "{\"metadata\":{\"managedFields\":null}}"] {
            let plain = serde_json::from_str::<ConfigMap>(text).unwrap();
            assert_eq!(serde_json::from_str::<Unmanaged<ConfigMap>>(text).unwrap().0, plain, "{text}");
        }
    }
}
