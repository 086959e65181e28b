//! Joins the pages of a list, which is stored only once all of them have arrived (I2).

use std::collections::HashMap;

use hublet_wire::meta::Timestamp;

use super::change::{Change, Observation};
use super::keys::{CollectionKeyBuf, ObjectKeyBuf};
use super::record::Collection;
use super::variants::VariantAssembler;

/// Most members of a list.
pub(super) const MAX_MEMBERS: usize = 250_000;
/// Most lists that wait for their next page; the one that has waited longest is dropped for another.
const MAX_WAITING: usize = 64;

/// One page of a list, or the pages that have arrived so far.
#[derive(Debug)]
pub(crate) struct PartialList {
    /// The collection's key.
    pub collection: CollectionKeyBuf,
    pub record: Collection,
    /// The keys of its objects so far.
    pub members: Vec<ObjectKeyBuf>,
    /// Time of the last page.
    pub received_at: Timestamp,
    /// Of the first page.
    pub observed: Observation,
    /// The token that the page was requested with; empty for the first.
    pub continue_token: String,
    /// The token of the next page; empty behind the last.
    pub next: String,
}

/// Incomplete lists, by the token of their next page.
#[derive(Debug, Default)]
pub(crate) struct ListAssembler {
    lists: HashMap<String, PartialList>,
    pub variants: VariantAssembler,
}

impl ListAssembler {
    /// Adds a page; returns the list if it is complete now.
    pub(crate) fn add_page(&mut self, mut page: PartialList) -> Option<PartialList> {
        if !page.continue_token.is_empty() {
            let before = self.lists.remove(&page.continue_token)?;
            page = before.append_page(page)?;
        }
        if page.next.is_empty() {
            return Some(page);
        }
        self.keep_waiting(page);
        None
    }

    fn keep_waiting(&mut self, page: PartialList) {
        if self.lists.len() >= MAX_WAITING {
            let oldest = self.lists.iter().min_by_key(|(_, page)| page.received_at);
            if let Some(token) = oldest.map(|(token, _)| token.clone()) {
                self.lists.remove(&token);
            }
        }
        self.lists.insert(page.next.clone(), page);
    }
}

impl PartialList {
    /// Appends the next page; `None` where it is of another snapshot, or the list becomes too long.
    fn append_page(mut self, next: Self) -> Option<Self> {
        let same_snapshot =
            self.collection == next.collection && self.record.version == next.record.version;
        if !same_snapshot || self.members.len() + next.members.len() > MAX_MEMBERS {
            return None;
        }
        self.members.extend(next.members);
        // The list is as old as its first page.
        Some(Self {
            record: Collection {
                at: self.record.at,
                ..next.record
            },
            members: self.members,
            observed: self.observed,
            collection: self.collection,
            ..next
        })
    }

    pub(super) fn into_change(self) -> Change {
        Change::ReplaceCollection {
            collection: self.collection,
            record: self.record,
            members: self.members,
            observed: self.observed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::keys::CollectionKey;
    use hublet_wire::meta::ResourceVersion;

    fn page(continue_token: &str, next: &str, version: u64) -> PartialList {
        PartialList {
            collection: CollectionKey::new(b"c").to_buf(),
            record: Collection::new(
                ResourceVersion::new(version),
                Timestamp::EPOCH,
                "L".into(),
                "v1".into(),
            ),
            members: vec![ObjectKeyBuf::join(b"/pods/", "", continue_token)],
            received_at: Timestamp::EPOCH,
            observed: Observation::watch_event(Timestamp::EPOCH),
            continue_token: continue_token.into(),
            next: next.into(),
        }
    }

    #[test]
    fn i2_pages_count_once_all_have_come() {
        let mut lists = ListAssembler::default();
        assert!(lists.add_page(page("", "1", 7)).is_none());
        assert!(lists.add_page(page("1", "2", 7)).is_none());
        assert_eq!(lists.add_page(page("2", "", 7)).unwrap().members.len(), 3);
        assert!(
            lists.add_page(page("2", "", 7)).is_none(),
            "its first pages are not here"
        );
        assert!(lists.add_page(page("", "1", 7)).is_none());
        assert!(
            lists.add_page(page("1", "", 8)).is_none(),
            "another snapshot"
        );
        for n in 0..1000 {
            lists.add_page(page("", &n.to_string(), 7));
        }
        assert_eq!(lists.lists.len(), MAX_WAITING);
    }
}
