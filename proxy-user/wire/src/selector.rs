//! Label and field selectors.

use std::borrow::Cow;

/// One spelling for equal selectors: requirements sorted, where none holds a set (`in (a,b)`) or an escaped comma.
pub(crate) fn canonical(selector: Cow<'_, str>) -> Cow<'_, str> {
    if !selector.contains(',') || selector.contains(['(', '\\']) {
        return selector;
    }
    let mut parts: Vec<&str> = selector.split(',').collect();
    if parts.is_sorted() {
        return selector;
    }
    parts.sort_unstable();
    Cow::Owned(parts.join(","))
}
