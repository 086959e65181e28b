//! A bounded table in which each account has its share: an account that fills it evicts its own rows.

use std::collections::HashMap;
use std::hash::Hash;

use super::identity::Identity;
use crate::cache::grant_rows::Verdict;
use hublet_wire::meta::Timestamp;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Most rows of all accounts together.
    pub all: usize,
    /// Most rows of one account.
    pub account: usize,
}

#[derive(Debug)]
pub(crate) struct Shares<K> {
    limits: Limits,
    accounts: HashMap<Identity, HashMap<K, Verdict>>,
    len: usize,
}

impl<K: Copy + Eq + Hash> Shares<K> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            accounts: HashMap::new(),
            len: 0,
        }
    }

    pub(crate) fn row_count(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, account: Identity, key: &K) -> Option<Verdict> {
        self.accounts.get(&account)?.get(key).copied()
    }

    /// Puts a row in, and returns the row that was evicted for it.
    pub(crate) fn insert(
        &mut self,
        account: Identity,
        key: K,
        verdict: Verdict,
    ) -> Option<(Identity, K, Verdict)> {
        let rows = self.accounts.get(&account);
        let evicted = match rows.map_or((false, 0), |rows| (rows.contains_key(&key), rows.len())) {
            (true, _) => None,
            (false, own) if own >= self.limits.account => Some(account),
            (false, own) if self.len >= self.limits.all => Some(self.largest_account(account, own)),
            _ => None,
        };
        let evicted = evicted.and_then(|from| {
            let key = self.oldest_key(from)?;
            Some((from, key, self.remove(from, &key)?))
        });
        let before = self
            .accounts
            .entry(account)
            .or_default()
            .insert(key, verdict);
        self.len += usize::from(before.is_none());
        evicted
    }

    pub(crate) fn remove(&mut self, account: Identity, key: &K) -> Option<Verdict> {
        let rows = self.accounts.get_mut(&account)?;
        let removed = rows.remove(key)?;
        if rows.is_empty() {
            self.accounts.remove(&account);
        }
        self.len -= 1;
        Some(removed)
    }

    /// Sets the time of rows from the future to `now`, and returns them.
    pub(crate) fn redate_future(&mut self, now: Timestamp) -> Vec<(Identity, K, Verdict)> {
        let mut moved = Vec::new();
        for (account, rows) in &mut self.accounts {
            for (key, verdict) in rows.iter_mut().filter(|(_, verdict)| verdict.time() > now) {
                *verdict = verdict.with_time(now);
                moved.push((*account, *key, *verdict));
            }
        }
        moved
    }

    /// The account with most rows; of several, the one with the oldest row. `account`, which adds a row, has `own`.
    fn largest_account(&self, account: Identity, own: usize) -> Identity {
        let most = self
            .accounts
            .values()
            .map(HashMap::len)
            .max()
            .unwrap_or_default();
        if own >= most {
            return account;
        }
        let candidates = self.accounts.iter().filter(|(_, rows)| rows.len() == most);
        candidates
            .min_by_key(|(_, rows)| rows.values().map(|verdict| verdict.time()).min())
            .map_or(account, |(identity, _)| *identity)
    }

    fn oldest_key(&self, account: Identity) -> Option<K> {
        let rows = self.accounts.get(&account)?;
        rows.iter()
            .min_by_key(|(_, verdict)| verdict.time())
            .map(|(key, _)| *key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        all: 10,
        account: 6,
    };

    fn allowed(millis: u64) -> Verdict {
        Verdict::allowed_at(Timestamp::from_millis(millis))
    }

    fn denied(millis: u64) -> Verdict {
        Verdict::denied_at(Timestamp::from_millis(millis))
    }

    fn who(n: u8) -> Identity {
        Identity([n; 16])
    }

    #[test]
    fn i14_an_account_that_fills_the_table_evicts_its_own_oldest() {
        let mut shares = Shares::new(LIMITS);
        shares.insert(who(1), 0, allowed(0));
        for n in 0..100u64 {
            shares.insert(who(2), n, allowed(n));
        }
        assert_eq!(
            (shares.row_count(), shares.get(who(1), &0)),
            (7, Some(allowed(0)))
        );
        assert!(shares.get(who(2), &93).is_none() && shares.get(who(2), &94).is_some());
    }

    #[test]
    fn i14_a_full_table_evicts_from_the_account_with_most() {
        let mut shares = Shares::new(LIMITS);
        for n in 0..6u64 {
            shares.insert(who(1), n, allowed(100 + n));
        }
        for n in 0..4u64 {
            shares.insert(who(2), n, allowed(n));
        }
        assert_eq!(
            shares.insert(who(3), 0, allowed(200)),
            Some((who(1), 0, allowed(100)))
        );
        assert_eq!(
            shares.insert(who(3), 0, allowed(300)),
            None,
            "it is there already"
        );
        assert_eq!(shares.row_count(), LIMITS.all);
    }

    #[test]
    fn a_row_from_the_future_counts_as_of_now() {
        let mut shares = Shares::new(LIMITS);
        shares.insert(who(1), 0, denied(900));
        shares.insert(who(1), 1, allowed(100));
        assert_eq!(
            shares.redate_future(Timestamp::from_millis(500)),
            [(who(1), 0, denied(500))]
        );
        assert!(shares.redate_future(Timestamp::from_millis(500)).is_empty());
    }
}
