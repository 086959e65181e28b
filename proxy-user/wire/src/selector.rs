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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_sorted_where_they_can_be_told_apart() {
        for (selector, expected) in [
            ("", ""),
            ("b=1", "b=1"),
            ("b=1,a!=2", "a!=2,b=1"),
            ("a=1,b=2", "a=1,b=2"),
            ("c,!b,a", "!b,a,c"),
            ("z in (b,a),c", "z in (b,a),c"),
            ("metadata.name=b\\,a,x=y", "metadata.name=b\\,a,x=y"),
        ] {
            assert_eq!(canonical(selector), expected);
        }
    }

    #[test]
    fn a_sorted_selector_is_not_copied() {
        assert!(matches!(canonical("a=1,b=2"), Cow::Borrowed(_)));
        assert!(matches!(canonical("b=2,a=1"), Cow::Owned(_)));
    }
}
