//! Label and field selectors.

use std::borrow::Cow;

/// One spelling for equal selectors: the requirements sorted. A selector with a set (`in (a,b)`) or
/// an escaped comma stays as it is.
pub fn canonical(selector: &str) -> Cow<'_, str> {
    if !selector.contains(',') || selector.contains(['(', '\\']) {
        return Cow::Borrowed(selector);
    }
    let mut parts: Vec<&str> = selector.split(',').collect();
    if parts.is_sorted() {
        return Cow::Borrowed(selector);
    }
    parts.sort_unstable();
    Cow::Owned(parts.join(","))
}
