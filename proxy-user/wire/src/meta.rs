//! Object and list metadata, resource versions, and wall-clock times.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Annotation of the bookmark that ends the initial events of a WatchList (KEP-3157).
pub const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// `metav1.TypeMeta`: the type of an object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TypeMeta<'a> {
    /// `apiVersion`: group and version.
    pub api_version: &'a str,
    /// `kind`, in CamelCase and singular.
    pub kind: &'a str,
}

/// The fields of `metav1.ListMeta` that a store needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListMeta<'a> {
    /// `metadata.resourceVersion` of the whole list.
    pub resource_version: &'a str,
    /// `metadata.continue`, empty on the last page.
    pub continue_token: &'a str,
    /// `metadata.remainingItemCount` is there and not zero.
    pub has_remaining_items: bool,
}

/// The fields of `metav1.ObjectMeta` and `metav1.ListMeta` that a store needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta<'a> {
    /// `metadata.name`.
    pub name: Cow<'a, str>,
    /// `metadata.namespace`.
    pub namespace: Cow<'a, str>,
    /// `metadata.uid`.
    pub uid: Cow<'a, str>,
    /// `metadata.resourceVersion`.
    pub resource_version: Cow<'a, str>,
    /// `metadata.continue` of a list that has further pages.
    pub continue_token: Cow<'a, str>,
    /// `metadata.remainingItemCount` of a list is there and not zero.
    pub has_remaining_items: bool,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// `metadata.deletionGracePeriodSeconds`, 0 when absent.
    pub grace_seconds: u64,
    /// `metadata.finalizers` is not empty.
    pub finalizers: bool,
    /// The annotation [`INITIAL_EVENTS_END`] is `true`.
    pub initial_events_end: bool,
}

impl ListMeta<'_> {
    /// The list has further pages, and no token for them: it is neither whole nor a page.
    pub fn lacks_token(&self) -> bool {
        self.has_remaining_items && self.continue_token.is_empty()
    }
}

impl Meta<'_> {
    /// As [`ListMeta::lacks_token`].
    pub fn lacks_token(&self) -> bool {
        self.has_remaining_items && self.continue_token.is_empty()
    }

    /// Finalizers or a grace period keep the object once it is marked for deletion.
    pub fn is_deletion_delayed(&self) -> bool {
        self.finalizers || self.grace_seconds > 0
    }

    /// The resourceVersion as a number; `None` where it is no ordered number (KEP-5504).
    pub fn version(&self) -> Option<ResourceVersion> {
        ResourceVersion::parse(&self.resource_version)
    }
}

/// A resourceVersion, which is an ordered number within one resource of one cluster (KEP-5504).
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ResourceVersion(u64);

impl ResourceVersion {
    /// No version, and lower than every real one: a request's `0` or a missing parameter, a 404.
    pub const UNSET: Self = Self(0);
    /// Higher than every real version.
    pub const MAX: Self = Self(u64::MAX);

    /// Makes a version of its number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Reads a decimal number without a leading zero; `None` of `0`, which means "any version".
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        text.parse().ok().map(Self)
    }

    /// The version as a plain number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A wall-clock time in milliseconds since the epoch.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The epoch, earlier than every real time.
    pub const EPOCH: Self = Self(0);
    /// Later than every real time.
    pub const MAX: Self = Self(u64::MAX);

    /// Makes a time of milliseconds since the epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The age of `self` at the time `now`; zero where `self` is later.
    pub fn age_at(self, now: Self) -> Age {
        Age(now - self)
    }
}

impl Sub for Timestamp {
    type Output = Duration;

    /// The time from `earlier` to `self`; zero where `earlier` is the later one (a clock that was set back).
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(to_millis(by)))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(to_millis(by)))
    }
}

fn to_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The time since the API server said something, as the header `Age` states it (RFC 9111, 5.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age(Duration);

impl Age {
    /// Whole seconds, rounded down: the value of the header.
    pub const fn as_secs(self) -> u64 {
        self.0.as_secs()
    }

    /// The age as a duration.
    pub const fn as_duration(self) -> Duration {
        self.0
    }
}

impl From<Duration> for Age {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_secs().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_versions_are_decimal_numbers() {
        for (text, expected) in [
            ("7", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("07", None),
            ("0", None),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("a", None),
        ] {
            assert_eq!(
                ResourceVersion::parse(text),
                expected.map(ResourceVersion),
                "{text}"
            );
        }
        assert_eq!(ResourceVersion(7).to_string(), "7");
    }

    #[test]
    fn times_never_differ_by_less_than_nothing() {
        let (early, late) = (Timestamp::from_millis(1_000), Timestamp::from_millis(3_500));
        assert_eq!(late - early, Duration::from_millis(2_500));
        assert_eq!(early - late, Duration::ZERO);
        assert_eq!(early.age_at(late).to_string(), "2");
        assert_eq!(late.age_at(early), Age::default());
        assert_eq!(early + Duration::from_millis(2_500), late);
        assert_eq!(late - Duration::from_millis(2_500), early);
        assert_eq!(early - Duration::from_secs(9), Timestamp::EPOCH);
        assert_eq!(Timestamp::MAX + Duration::MAX, Timestamp::MAX);
    }

    #[test]
    fn metadata_gives_its_version_as_a_number() {
        let meta = |text: &str| Meta {
            resource_version: text.to_owned().into(),
            ..Meta::default()
        };
        assert_eq!(meta("42").version(), Some(ResourceVersion(42)));
        assert_eq!(meta("0").version(), None);
        assert_eq!(Timestamp::from_millis(7).as_millis(), 7);
        let age = Age::from(Duration::from_millis(2_900));
        assert_eq!(
            (age.as_secs(), age.as_duration()),
            (2, Duration::from_millis(2_900))
        );
    }
}
