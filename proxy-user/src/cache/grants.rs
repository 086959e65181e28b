//! What the cloud has allowed whom, kept in memory and in the store (I7). In: credentials and scopes that the cloud
//! accepted or refused. Out: may this caller read this while the cloud is away? One hash lookup a request.
//!
//! A grant is (identity, verb, scope). The identity of a bearer token that the cloud accepted is its issuer and
//! subject where it is a JWT, so that a rotated token keeps what its account was allowed; else the token itself.
//! Nothing a client says of itself (User-Agent, an unaccepted token's claims) counts.

use std::collections::HashMap;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::RwLock;
use serde::Deserialize;

use super::op::Op;
use super::store::{Snapshot, StoreError};
use crate::request::Verb;

/// Most grants kept; at the limit the one not used for longest goes.
pub const MAX_GRANTS: usize = 16_384;
/// Most credentials kept; at the limit the one not used for longest goes.
pub const MAX_CREDENTIALS: usize = 1_024;
/// A grant is written again when its time on disk is older than this, in milliseconds.
const REFRESH: u64 = 3_600_000;

/// Who, as far as grants go: 16 bytes of a SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity([u8; 16]);

/// What a request carries to say who it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nothing: `system:anonymous` to the cloud.
    Anonymous,
    /// A bearer token.
    Token {
        /// SHA-256 of the token.
        digest: [u8; 32],
        /// Who it stands for, once the cloud has accepted it.
        identity: Identity,
    },
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let joined = parts.concat();
    digest(&SHA256, &joined).as_ref().try_into().unwrap_or([0; 32])
}

fn identity(parts: &[&[u8]]) -> Identity {
    let mut short = [0; 16];
    short.copy_from_slice(&sha256(parts)[..16]);
    Identity(short)
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
}

/// Issuer and subject of a JWT, unverified: only used of tokens that the cloud has accepted.
fn claims(token: &[u8]) -> Option<Claims> {
    let mut parts = token.split(|b| *b == b'.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    (!claims.iss.is_empty() && !claims.sub.is_empty()).then_some(claims)
}

impl Credential {
    /// Of the value of an `Authorization` header; anything but a bearer token counts by its whole text.
    pub fn of(authorization: Option<&[u8]>) -> Self {
        let Some(value) = authorization else { return Self::Anonymous };
        let token = value.strip_prefix(b"Bearer ").unwrap_or(value).trim_ascii();
        let digest = sha256(&[token]);
        let identity = match claims(token) {
            Some(claims) => identity(&[b"jwt\0", claims.iss.as_bytes(), b"\0", claims.sub.as_bytes()]),
            None => identity(&[b"token\0", &digest]),
        };
        Self::Token { digest, identity }
    }

    /// The identity.
    pub fn identity(&self) -> Identity {
        match self {
            Self::Anonymous => Identity([0; 16]),
            Self::Token { identity, .. } => *identity,
        }
    }
}

impl Identity {
    /// Length of what [`Identity::start_key`] writes.
    pub const PREFIX: usize = 17;

    /// Begins a grant's key: identity and verb; the scope follows.
    pub fn start_key(self, out: &mut Vec<u8>, verb: Verb) {
        out.extend_from_slice(&self.0);
        out.push(verb as u8);
    }
}

#[derive(Debug, Default)]
struct Known {
    /// Token digest → when last accepted.
    credentials: HashMap<[u8; 32], u64>,
    /// Grant key → when last allowed.
    grants: HashMap<Vec<u8>, u64>,
}

/// The grants in memory.
#[derive(Debug, Default)]
pub struct Grants {
    known: RwLock<Known>,
}

impl Grants {
    /// Reads what the store holds.
    ///
    /// # Errors
    /// redb's.
    pub fn load(snapshot: &Snapshot) -> Result<Self, StoreError> {
        let mut known = Known::default();
        known.grants.extend(snapshot.grants()?);
        for (digest, value) in snapshot.credentials()? {
            if let (Ok(digest), Some(at)) = (digest.try_into(), value.first_chunk::<8>()) {
                known.credentials.insert(digest, u64::from_le_bytes(*at));
            }
        }
        Ok(Self { known: RwLock::new(known) })
    }

    /// The cloud has accepted this credential within `max_age` milliseconds (anonymous always is).
    pub fn knows(&self, credential: &Credential, now: u64, max_age: u64) -> bool {
        match credential {
            Credential::Anonymous => true,
            Credential::Token { digest, .. } => {
                let at = self.known.read().credentials.get(digest).copied();
                at.is_some_and(|at| now.saturating_sub(at) <= max_age)
            }
        }
    }

    /// The cloud has allowed this within `max_age` milliseconds.
    pub fn allows(&self, key: &[u8], now: u64, max_age: u64) -> bool {
        let at = self.known.read().grants.get(key).copied();
        at.is_some_and(|at| now.saturating_sub(at) <= max_age)
    }

    /// The cloud has just allowed this; what is to be written of it.
    pub fn allowed(&self, credential: &Credential, key: &[u8], now: u64) -> Vec<Op> {
        let mut ops = Vec::new();
        let fresh = |at: Option<&u64>| at.is_some_and(|at| now.saturating_sub(*at) < REFRESH);
        {
            let known = self.known.read();
            let token = match credential {
                Credential::Anonymous => true,
                Credential::Token { digest, .. } => fresh(known.credentials.get(digest)),
            };
            if token && fresh(known.grants.get(key)) {
                return ops;
            }
        }
        let mut known = self.known.write();
        if let Credential::Token { digest, .. } = credential {
            if known.credentials.len() >= MAX_CREDENTIALS
                && !known.credentials.contains_key(digest)
                && let Some(oldest) = oldest(&known.credentials)
            {
                known.credentials.remove(&oldest);
                ops.push(Op::Credential { digest: oldest, value: Vec::new() });
            }
            known.credentials.insert(*digest, now);
            ops.push(Op::Credential { digest: *digest, value: now.to_le_bytes().to_vec() });
        }
        if known.grants.len() >= MAX_GRANTS
            && !known.grants.contains_key(key)
            && let Some(oldest) = oldest(&known.grants)
        {
            known.grants.remove(&oldest);
            ops.push(Op::Revoke { key: oldest });
        }
        known.grants.insert(key.to_vec(), now);
        ops.push(Op::Grant { key: key.to_vec(), at: now });
        ops
    }

    /// The cloud has just answered 403.
    pub fn forbidden(&self, key: &[u8]) -> Vec<Op> {
        let had = self.known.write().grants.remove(key).is_some();
        if had { vec![Op::Revoke { key: key.to_vec() }] } else { Vec::new() }
    }

    /// The cloud has just answered 401.
    pub fn rejected(&self, credential: &Credential) -> Vec<Op> {
        let Credential::Token { digest, .. } = credential else { return Vec::new() };
        let had = self.known.write().credentials.remove(digest).is_some();
        if had { vec![Op::Credential { digest: *digest, value: Vec::new() }] } else { Vec::new() }
    }

    /// Forgets all: another cluster has taken this one's place.
    pub fn forget(&self) {
        *self.known.write() = Known::default();
    }

    /// Grants and credentials held.
    pub fn len(&self) -> (usize, usize) {
        let known = self.known.read();
        (known.grants.len(), known.credentials.len())
    }
}

fn oldest<K: Clone + Eq + std::hash::Hash>(map: &HashMap<K, u64>) -> Option<K> {
    map.iter().min_by_key(|(_, at)| **at).map(|(key, _)| key.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400_000;

    fn jwt(iss: &str, sub: &str, salt: &str) -> Vec<u8> {
        let payload = URL_SAFE_NO_PAD.encode(format!(r#"{{"iss":"{iss}","sub":"{sub}","jti":"{salt}"}}"#));
        format!("Bearer h.{payload}.{salt}").into_bytes()
    }

    fn key(credential: &Credential, scope: &str) -> Vec<u8> {
        let mut key = Vec::new();
        credential.identity().start_key(&mut key, Verb::Get);
        key.extend_from_slice(scope.as_bytes());
        key
    }

    #[test]
    fn i7_a_rotated_token_keeps_its_accounts_grants_once_the_cloud_accepted_it() {
        let grants = Grants::default();
        let (old, new) = (jwt("k", "cni", "1"), jwt("k", "cni", "2"));
        let (old, new) = (Credential::of(Some(&old)), Credential::of(Some(&new)));
        grants.allowed(&old, &key(&old, "a"), 0);
        assert!(grants.knows(&old, DAY, DAY) && grants.allows(&key(&new, "a"), DAY, DAY));
        assert!(!grants.knows(&new, 0, DAY), "its claims alone prove nothing");
        grants.allowed(&new, &key(&new, "b"), 0);
        assert!(grants.knows(&new, 0, DAY));
        let other = Credential::of(Some(&jwt("evil", "cni", "1")));
        assert_ne!(other.identity(), old.identity());
    }

    #[test]
    fn i7_grants_age_and_a_refusal_takes_them_back() {
        let grants = Grants::default();
        let me = Credential::of(Some(b"Bearer opaque"));
        assert_eq!(grants.allowed(&me, &key(&me, "a"), 0).len(), 2);
        assert!(grants.allowed(&me, &key(&me, "a"), 1).is_empty(), "not written again at once");
        assert!(!grants.allows(&key(&me, "a"), DAY + 2, DAY));
        assert!(!grants.forbidden(&key(&me, "a")).is_empty());
        assert!(!grants.allows(&key(&me, "a"), 2, DAY));
        grants.rejected(&me);
        assert!(!grants.knows(&me, 2, DAY));
        assert!(grants.knows(&Credential::Anonymous, 2, DAY));
    }

    #[test]
    fn i14_grants_are_bounded_and_the_oldest_goes() {
        let grants = Grants::default();
        let me = Credential::Anonymous;
        for n in 0..MAX_GRANTS as u64 + 1 {
            grants.allowed(&me, &key(&me, &n.to_string()), n);
        }
        assert_eq!(grants.len().0, MAX_GRANTS);
        assert!(!grants.allows(&key(&me, "0"), 1, DAY) && grants.allows(&key(&me, "1"), 1, DAY));
    }
}
