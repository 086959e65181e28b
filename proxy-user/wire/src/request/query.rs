//! The query of a request, read as Go's `net/url.ParseQuery` and the API server's conversions
//! read it (`k8s.io/apimachinery/pkg/runtime/conversion.go`, `metav1.ListOptions` and its like).

use std::borrow::Cow;

use memchr::memchr2;
use percent_encoding::percent_decode_str;

use super::path::{Target, has_whole_escapes};
use super::text::{Part, Text};
use super::{Options, Values, Verb};
use crate::duration;
use crate::meta::ResourceVersion;
use crate::selector::canonical;

/// Most parameters that are read. Go drops a query of more than 10,000 pairs as a whole, empty ones
/// included.
const MAX_PAIRS: usize = 64;

/// The known parameters of `metav1.ListOptions`, `GetOptions`, `DeleteOptions` and their like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parameter {
    Timeout,
    Pretty,
    Hash,
    ResourceVersion,
    IncludeObject,
    LabelSelector,
    FieldSelector,
    Watch,
    AllowWatchBookmarks,
    ResourceVersionMatch,
    TimeoutSeconds,
    Limit,
    Continue,
    SendInitialEvents,
    DryRun,
    Force,
    FieldManager,
    FieldValidation,
    GracePeriodSeconds,
    OrphanDependents,
    PropagationPolicy,
    Uid,
    IgnoreStoreReadError,
}

impl Parameter {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "timeout" => Self::Timeout,
            "pretty" => Self::Pretty,
            "hash" => Self::Hash,
            "resourceVersion" => Self::ResourceVersion,
            "includeObject" => Self::IncludeObject,
            "labelSelector" => Self::LabelSelector,
            "fieldSelector" => Self::FieldSelector,
            "watch" => Self::Watch,
            "allowWatchBookmarks" => Self::AllowWatchBookmarks,
            "resourceVersionMatch" => Self::ResourceVersionMatch,
            "timeoutSeconds" => Self::TimeoutSeconds,
            "limit" => Self::Limit,
            "continue" => Self::Continue,
            "sendInitialEvents" => Self::SendInitialEvents,
            "dryRun" => Self::DryRun,
            "force" => Self::Force,
            "fieldManager" => Self::FieldManager,
            "fieldValidation" => Self::FieldValidation,
            "gracePeriodSeconds" => Self::GracePeriodSeconds,
            "orphanDependents" => Self::OrphanDependents,
            "propagationPolicy" => Self::PropagationPolicy,
            "uid" => Self::Uid,
            "ignoreStoreReadErrorWithClusterBreakingPotential" => Self::IgnoreStoreReadError,
            _ => return None,
        })
    }

    /// The API server reads the parameter for this verb.
    fn is_read_for(self, verb: Verb, target: &Target) -> bool {
        use Verb::{Create, Delete, DeleteCollection, Get, List, Patch, Update, Watch};
        match self {
            Self::Timeout | Self::Pretty => true,
            Self::Hash => target.reads_hash(),
            Self::ResourceVersion => matches!(verb, Get | List | Watch | Delete | DeleteCollection),
            Self::IncludeObject => matches!(verb, Get | List | Watch),
            Self::Watch => matches!(verb, List | Watch),
            Self::LabelSelector
            | Self::FieldSelector
            | Self::AllowWatchBookmarks
            | Self::ResourceVersionMatch
            | Self::TimeoutSeconds
            | Self::Limit
            | Self::Continue
            | Self::SendInitialEvents => matches!(verb, List | Watch | DeleteCollection),
            Self::DryRun => matches!(verb, Create | Update | Patch | Delete | DeleteCollection),
            Self::FieldManager | Self::FieldValidation => matches!(verb, Create | Update | Patch),
            Self::Force => verb == Patch,
            Self::GracePeriodSeconds
            | Self::OrphanDependents
            | Self::PropagationPolicy
            | Self::Uid
            | Self::IgnoreStoreReadError => matches!(verb, Delete | DeleteCollection),
        }
    }
}

/// The parameters that a query has had, as a set of bits.
#[derive(Debug, Default)]
struct Seen(u32);

impl Seen {
    fn has(&self, parameter: Parameter) -> bool {
        self.0 & (1 << parameter as u32) != 0
    }

    /// Notes a parameter; false where it was there before. Of several values the API server takes
    /// the first, its conversions the last.
    fn insert(&mut self, parameter: Parameter) -> bool {
        let new = !self.has(parameter);
        self.0 |= 1 << parameter as u32;
        new
    }
}

/// A query as far as it has been read.
struct Reader<'t, 'a> {
    text: &'t mut Text<'a>,
    verb: Verb,
    values: Values,
    options: Options,
    seen: Seen,
}

/// Reads a query, with which the raw text ends; `None` where it isn't wholly understood, or the
/// API server always refuses it.
pub(super) fn parse(
    raw: &str,
    verb: Verb,
    target: &Target,
    text: &mut Text<'_>,
) -> Option<(Values, Options)> {
    let mut reader = Reader {
        text,
        verb,
        values: Values::default(),
        options: Options::default(),
        seen: Seen::default(),
    };
    if target.has_own_parameters() {
        reader.options.dry_run = mentions_dry_run(raw);
    } else if !raw.is_empty() {
        reader.read_pairs(raw, target)?;
    }
    Some((reader.values, reader.options))
}

impl Reader<'_, '_> {
    fn read_pairs(&mut self, raw: &str, target: &Target) -> Option<()> {
        let mut start = self.text.raw().len() - raw.len();
        for (n, pair) in raw.split('&').enumerate() {
            // Empty ones count too, or the limit would depend on the pairs' order.
            if n >= MAX_PAIRS {
                return None;
            }
            let end = start + pair.len();
            if !pair.is_empty() {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let parameter = Parameter::from_name(&decode(name)?)?;
                let is_known = parameter.is_read_for(self.verb, target);
                if !is_known || !self.seen.insert(parameter) {
                    return None;
                }
                let value = Value {
                    text: decode(value)?,
                    start: end - value.len(),
                };
                self.read_parameter(parameter, &value)?;
            }
            start = end + 1;
        }
        self.is_accepted(target).then_some(())
    }

    // Longer than 40 lines because it is a table: an arm for each parameter.
    fn read_parameter(&mut self, parameter: Parameter, value: &Value<'_>) -> Option<()> {
        let (values, options) = (&mut self.values, &mut self.options);
        match parameter {
            Parameter::Timeout => is_timeout(&value.text).then_some(())?,
            Parameter::Pretty => options.pretty = true,
            Parameter::Hash => values.hash = value.part(self.text),
            Parameter::ResourceVersion => {
                // Of a DELETE it is a precondition, not a position.
                let is_known = matches!(&*value.text, "" | "0")
                    || ResourceVersion::parse(&value.text).is_some();
                (is_known || !self.verb.is_read()).then_some(())?;
                values.resource_version = value.part(self.text);
            }
            Parameter::IncludeObject => options.include_object = true,
            Parameter::LabelSelector => {
                values.label_selector = value.selector_part(self.text)?;
            }
            Parameter::FieldSelector => {
                values.field_selector = value.selector_part(self.text)?;
            }
            Parameter::AllowWatchBookmarks => options.bookmarks = is_true(&value.text),
            Parameter::SendInitialEvents => options.send_initial_events = is_true(&value.text),
            Parameter::ResourceVersionMatch => {
                options.exact = value.text == "Exact";
                matches!(&*value.text, "Exact" | "NotOlderThan").then_some(())?;
            }
            Parameter::TimeoutSeconds => options.timeout_seconds = Some(parse_number(&value.text)?),
            Parameter::Limit => options.limit = parse_number(&value.text)?,
            Parameter::Continue => values.continue_token = value.part(self.text),
            Parameter::DryRun => options.dry_run = true,
            // It is part of the verb.
            Parameter::Watch => {}
            // They change no successful response.
            Parameter::Force
            | Parameter::FieldManager
            | Parameter::FieldValidation
            | Parameter::GracePeriodSeconds
            | Parameter::OrphanDependents
            | Parameter::PropagationPolicy
            | Parameter::Uid
            | Parameter::IgnoreStoreReadError => {}
        }
        Some(())
    }

    /// The rules of `metainternalversion/validation.ValidateListOptions`, and the storage's of
    /// `continue`.
    fn is_accepted(&self, target: &Target) -> bool {
        let has_match = self.seen.has(Parameter::ResourceVersionMatch);
        let has_initial = self.seen.has(Parameter::SendInitialEvents);
        let is_continued = !self.values.continue_token.is_empty();
        let exact = self.options.exact;
        match self.verb {
            Verb::Watch if target.is_watch_path() => !(has_match || has_initial || is_continued),
            Verb::Watch => has_match == has_initial && !exact && !is_continued,
            Verb::List | Verb::DeleteCollection => {
                let version = self.text.get(self.values.resource_version);
                let match_is_misplaced =
                    has_match && (version.is_empty() || is_continued || exact && version == "0");
                let version_is_misplaced = is_continued && !matches!(version, "" | "0");
                !(has_initial || match_is_misplaced || version_is_misplaced)
            }
            _ => true,
        }
    }
}

/// A decoded value, and the place in the raw text where it stood.
struct Value<'v> {
    text: Cow<'v, str>,
    start: usize,
}

impl Value<'_> {
    fn part(&self, text: &mut Text<'_>) -> Part {
        match &self.text {
            Cow::Borrowed(value) => Text::raw_part(self.start, self.start + value.len()),
            Cow::Owned(value) => text.push_decoded(value),
        }
    }

    /// A selector in its canonical spelling; `None` where it can't stand in a key.
    fn selector_part(&self, text: &mut Text<'_>) -> Option<Part> {
        if self.text.contains(['&', '?', '#']) {
            return None;
        }
        Some(match canonical(&self.text) {
            Cow::Borrowed(_) => self.part(text),
            Cow::Owned(sorted) => text.push_decoded(&sorted),
        })
    }
}

/// `Convert_Slice_string_To_bool`: every value but "0" and "false" is true, an empty one too.
fn is_true(value: &str) -> bool {
    value != "0" && !value.eq_ignore_ascii_case("false")
}

/// The first `watch` of a query is true, whatever else stands in it: as `NewRequestInfo` falls
/// back to.
pub(super) fn asks_to_watch(raw: &str) -> bool {
    let mut pairs = raw
        .split('&')
        .filter(|pair| !pair.contains(';') && has_whole_escapes(pair));
    let value = pairs.find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decode_str(name).decode_utf8_lossy() == "watch").then_some(value)
    });
    value.is_some_and(|value| is_true(&percent_decode_str(value).decode_utf8_lossy()))
}

/// True if a parameter is called `dryRun`, or looks like it, once its name is decoded.
pub(super) fn mentions_dry_run(query: &str) -> bool {
    let decoded = percent_decode_str(query).decode_utf8_lossy();
    decoded.contains("dryRun")
}

/// Decodes a name or value; `None` where Go drops it (`;`, broken escapes), and where it is no
/// text.
fn decode(raw: &str) -> Option<Cow<'_, str>> {
    if !raw.bytes().all(|b| b.is_ascii_graphic() && b != b';') {
        return None;
    }
    if memchr2(b'%', b'+', raw.as_bytes()).is_none() {
        return Some(Cow::Borrowed(raw));
    }
    if !has_whole_escapes(raw) {
        return None;
    }
    let spaced = raw.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8().ok()?;
    (!decoded.contains(char::is_control)).then(|| Cow::Owned(decoded.into_owned()))
}

/// A number of at most 18 digits, so that it fits an `int64`.
fn parse_number(value: &str) -> Option<u64> {
    let is_short = (1..=18).contains(&value.len());
    (is_short && value.bytes().all(|b| b.is_ascii_digit()))
        .then(|| value.parse().ok())
        .flatten()
}

/// `timeout` bounds the API server's work and changes no response.
fn is_timeout(value: &str) -> bool {
    value.is_empty() || duration::parse(value).is_ok()
}
