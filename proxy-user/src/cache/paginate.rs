//! Puts the pages of one list together: they count only once all have come (I2). In: each page with the token that it
//! was asked by and the token that it ends with. Out: the whole list.

use std::collections::HashMap;

use crate::cache::change::Said;
use crate::cache::decode::MAX_MEMBERS;
use crate::cache::record::Collection;
use crate::cache::variants::FormPages;

/// Most lists that wait for their next page; at the limit the one that has waited longest is given up.
const MAX_WAITING: usize = 64;

/// Some pages of a list.
#[derive(Debug)]
pub(crate) struct Page {
    /// The collection's key.
    pub collection: Vec<u8>,
    /// What the list says of itself.
    pub record: Collection,
    /// The keys of its objects so far.
    pub members: Vec<Vec<u8>>,
    /// When the last page came.
    pub since: u64,
    /// When the first page was asked for, and answered.
    pub said: Said,
}

/// The lists that wait, by the token of their next page.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    lists: HashMap<String, Page>,
    /// Tables and their like.
    pub forms: FormPages,
}

impl Pages {
    /// Takes a page; the whole list where it was the last one and all before it are here.
    pub(crate) fn join(&mut self, asked_by: &str, next: &str, mut page: Page) -> Option<Page> {
        if !asked_by.is_empty() {
            let before = self.lists.remove(asked_by)?;
            let same = before.collection == page.collection
                && before.record.version == page.record.version;
            if !same || before.members.len() + page.members.len() > MAX_MEMBERS {
                return None;
            }
            let mut members = before.members;
            members.append(&mut page.members);
            // Asked, as a whole, when the first page was.
            (page.record.at, page.said) = (before.record.at, before.said);
            page.members = members;
        }
        if next.is_empty() {
            return Some(page);
        }
        if self.lists.len() >= MAX_WAITING {
            let oldest = self
                .lists
                .iter()
                .min_by_key(|(_, page)| page.since)
                .map(|(token, _)| token.clone());
            oldest.and_then(|token| self.lists.remove(&token));
        }
        self.lists.insert(next.to_owned(), page);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(version: u64, member: &str) -> Page {
        let record = Collection::new(version, 0, "L".into(), "v1".into());
        let said = Said::event(0);
        Page {
            collection: b"c".to_vec(),
            record,
            members: vec![member.into()],
            since: 0,
            said,
        }
    }

    #[test]
    fn i2_pages_count_once_all_have_come() {
        let mut pages = Pages::default();
        assert!(pages.join("", "1", page(7, "a")).is_none());
        assert!(pages.join("1", "2", page(7, "b")).is_none());
        assert_eq!(pages.join("2", "", page(7, "c")).unwrap().members.len(), 3);
        assert!(
            pages.join("2", "", page(7, "c")).is_none(),
            "its first pages are not here"
        );
        assert!(pages.join("", "1", page(7, "a")).is_none());
        assert!(
            pages.join("1", "", page(8, "b")).is_none(),
            "another snapshot"
        );
        for n in 0..1000 {
            pages.join("", &n.to_string(), page(7, "a"));
        }
        assert_eq!(pages.lists.len(), MAX_WAITING);
    }
}
