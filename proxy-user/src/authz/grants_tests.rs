//! The tables alone: shares, ages, the clock, and the way through the store.

use http::{HeaderMap, HeaderValue};

use super::tables::{ANONYMOUS_GRANTS, CREDENTIALS, DENIALS, GRANTS, MAX_REJECTED};
use super::*;

impl Grants {
    fn empty() -> Self {
        Self {
            tables: RwLock::new(GrantTables::new(0)),
            cluster: ClusterGeneration::default(),
            latest: AtomicU64::default(),
        }
    }
}

const DAY: u64 = 86_400_000;
const ONE_DAY: Duration = Duration::from_millis(DAY);

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn bearer(token: &str) -> Credential {
    let mut headers = HeaderMap::new();
    headers.insert(
        "authorization",
        HeaderValue::from_str(&format!("Bearer {token}")).unwrap(),
    );
    Credential::from_headers(&headers)
}

fn token(credential: &Credential) -> &Token {
    let Credential::Token { token, .. } = credential else {
        panic!("{credential:?} is no token")
    };
    token
}

fn service_account(name: &str, salt: &str) -> Credential {
    use base64::Engine as _;
    let claims = format!(r#"{{"iss":"k","sub":"system:serviceaccount:d:{name}","jti":"{salt}"}}"#);
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims);
    bearer(&format!("h.{payload}.{salt}"))
}

fn get(credential: &Credential, scope: &str) -> Right {
    Right::of(credential, Action::Read(Verb::Get), scope.as_bytes())
}

fn allows(grants: &Grants, credential: &Credential, scope: &str, now: u64) -> Option<bool> {
    grants.verdict(credential, &get(credential, scope), at(now), ONE_DAY)
}

fn allow(grants: &Grants, credential: &Credential, scope: &str, now: u64) -> usize {
    let mut changes = grants.accept(token(credential), at(now), at(now));
    changes.append(&mut grants.allow(credential, get(credential, scope), at(now), at(now)));
    changes.len()
}

#[test]
fn i7_a_rotated_token_keeps_its_accounts_grants_once_the_cloud_accepted_it() {
    let grants = Grants::empty();
    let (old, new) = (service_account("cni", "1"), service_account("cni", "2"));
    allow(&grants, &old, "a", 0);
    assert!(grants.has_accepted(&old, at(DAY), ONE_DAY));
    assert_eq!(
        grants.credential_status(&new, at(0), ONE_DAY),
        CredentialStatus::Unknown,
        "its claims alone prove nothing"
    );
    grants.accept(token(&new), at(0), at(0));
    assert!(grants.has_accepted(&new, at(0), ONE_DAY));
    assert_eq!(allows(&grants, &new, "a", DAY), Some(true));
}

#[test]
fn i7_grants_expire_and_a_refusal_revokes_them() {
    let grants = Grants::empty();
    let me = bearer("opaque");
    assert_eq!(allow(&grants, &me, "a", 0), 2);
    assert_eq!(allow(&grants, &me, "a", 1), 0, "not written again at once");
    assert_eq!(allows(&grants, &me, "a", DAY + 2), None);
    assert_eq!(
        grants
            .deny(&me, &[get(&me, "a"), get(&me, "never")], at(2))
            .len(),
        1
    );
    assert_eq!(
        (
            allows(&grants, &me, "a", 3),
            allows(&grants, &me, "never", 3)
        ),
        (Some(false), None)
    );
    assert_eq!(grants.reject(&me, at(3)).len(), 1);
    assert_eq!(
        grants.credential_status(&me, at(3), ONE_DAY),
        CredentialStatus::Rejected
    );
    allow(&grants, &me, "a", 4);
    assert_eq!(
        (
            grants.credential_status(&me, at(5), ONE_DAY),
            allows(&grants, &me, "a", 5)
        ),
        (CredentialStatus::Accepted, Some(true))
    );
    for nobody in [
        Credential::Anonymous,
        Credential::Ignored,
        Credential::Unclear,
    ] {
        assert!(
            !grants.has_accepted(&nobody, at(2), ONE_DAY),
            "{nobody:?} has proven nothing"
        );
    }
}

#[test]
fn i14_a_flood_evicts_its_own_and_refused_tokens_are_few() {
    let grants = Grants::empty();
    let (cni, flood) = (service_account("cni", "1"), service_account("flood", "1"));
    allow(&grants, &cni, "mine", 0);
    for n in 0..GRANTS.all as u64 + 100 {
        allow(&grants, &flood, &n.to_string(), n + 1);
    }
    for n in 0..CREDENTIALS.all + 100 {
        grants.accept(
            token(&service_account("flood", &n.to_string())),
            at(1),
            at(1),
        );
        grants.reject(&bearer(&n.to_string()), at(1));
    }
    let counts = grants.row_counts();
    assert_eq!(counts.grants, GRANTS.account + 1);
    assert_eq!(counts.credentials, CREDENTIALS.account + 1);
    assert!(
        grants.has_accepted(&cni, at(DAY), ONE_DAY)
            && allows(&grants, &cni, "mine", DAY) == Some(true)
    );
    assert_eq!(grants.read().rejected.len(), MAX_REJECTED);
    for n in 0..2 * ANONYMOUS_GRANTS {
        let right = get(&Credential::Anonymous, &n.to_string());
        grants.allow(&Credential::Anonymous, right, at(1), at(1));
    }
    assert_eq!(
        grants.row_counts().grants,
        GRANTS.account + 1 + ANONYMOUS_GRANTS
    );
}

/// Calico gets a 404 for a handle, creates it, and reads it again offline.
#[test]
fn i7_a_404_and_a_later_write_allow_reading_the_object() {
    let grants = Grants::empty();
    let (me, other) = (bearer("me"), bearer("other"));
    for one in [&me, &other] {
        grants.accept(token(one), at(0), at(0));
    }
    assert!(
        grants
            .allow_author(&me, ObjectKey::new(b"a"), at(0))
            .is_empty(),
        "a right to write is none to read"
    );
    let absence = Right::of(&me, Action::AbsenceOnly, b"a");
    grants.allow(&me, absence, at(0), at(0));
    assert_eq!(
        grants.allow_author(&me, ObjectKey::new(b"a"), at(1)).len(),
        1
    );
    assert_eq!(
        (
            allows(&grants, &me, "a", 1),
            allows(&grants, &other, "a", 1)
        ),
        (Some(true), None)
    );
    assert!(
        grants
            .allow_author(&me, ObjectKey::new(b"b"), at(1))
            .is_empty()
    );
    let absence = Right::of(&other, Action::AbsenceOnly, b"c");
    grants.allow(&other, absence, at(0), at(0));
    assert!(
        grants
            .allow_author(&other, ObjectKey::new(b"c"), at(DAY))
            .is_empty(),
        "rights may have changed since yesterday"
    );
}

#[test]
fn i7_an_ignored_credential_uses_anonymous_grants_and_adds_none() {
    let grants = Grants::empty();
    let right = get(&Credential::Anonymous, "a");
    assert!(
        grants
            .allow(&Credential::Ignored, right, at(0), at(0))
            .is_empty()
    );
    grants.allow(&Credential::Anonymous, right, at(0), at(0));
    assert!(
        grants
            .deny(&Credential::Ignored, &[right], at(0))
            .is_empty()
    );
    assert_eq!(allows(&grants, &Credential::Ignored, "a", 0), Some(true));
    assert_eq!(allows(&grants, &Credential::Unclear, "a", 0), None);
}

/// A clock that was set back made grants of "the future" that never aged, and were never written again.
#[test]
fn i7_a_grant_from_the_future_ages_from_now_on() {
    let grants = Grants::empty();
    let me = bearer("opaque");
    allow(&grants, &me, "a", 1_000 * DAY);
    assert!(grants.follow_clock(at(1_000 * DAY)).is_empty());
    let now = 10 * DAY;
    assert_eq!(
        grants.follow_clock(at(now)).len(),
        2,
        "its credential and the grant are written anew"
    );
    assert!(grants.follow_clock(at(now + 1)).is_empty());
    assert!(
        grants.has_accepted(&me, at(now + DAY), ONE_DAY)
            && !grants.has_accepted(&me, at(now + DAY + 1), ONE_DAY)
    );
    assert_eq!(allows(&grants, &me, "a", now + DAY), Some(true));
    assert_eq!(allows(&grants, &me, "a", now + DAY + 1), None);
    assert_eq!(allow(&grants, &me, "a", now + DAY + 2), 2);
}

/// The revocation of a right while the disk accepted no writes was dropped, so that the right held again after the next
/// start.
/// And each further 403 cost a write.
#[test]
fn i7_a_refusal_is_written_once_and_never_dropped() {
    let grants = Grants::empty();
    let me = bearer("opaque");
    allow(&grants, &me, "a", 0);
    let no = grants.deny(&me, &[get(&me, "a")], at(1));
    assert!(
        no.len() == 1 && no.iter().all(Change::is_revocation),
        "{no:?}"
    );
    assert!(
        grants.deny(&me, &[get(&me, "a")], at(2)).is_empty(),
        "said before"
    );
    assert!(
        grants.read().denied_since(&me, &get(&me, "a"), at(1)),
        "the last time counts all the same"
    );
    assert!(
        !grants
            .allow(&me, get(&me, "a"), at(3), at(3))
            .iter()
            .any(Change::is_revocation)
    );
    assert_eq!(grants.deny(&me, &[get(&me, "a")], at(4)).len(), 1);
}

/// An account with more denials than are kept counts as denied every right since then; other accounts don't.
#[test]
fn i14_a_flood_of_denials_grants_nothing_and_evicts_its_own() {
    let grants = Grants::empty();
    let (me, flood) = (bearer("me"), bearer("flood"));
    for one in [&me, &flood] {
        grants.accept(token(one), at(0), at(0));
    }
    grants.deny(&me, &[get(&me, "a")], at(1));
    for n in 1..=2 * DENIALS.all as u64 {
        grants.deny(&flood, &[get(&flood, &n.to_string())], at(n));
    }
    assert_eq!(grants.read().denials.row_count(), DENIALS.account + 1);
    let denied = |who, scope, moment| {
        grants
            .read()
            .denied_since(who, &get(who, scope), at(moment))
    };
    assert!(denied(&flood, "1", 0) && denied(&me, "a", 0));
    assert!(!denied(&me, "a", 1) && !denied(&me, "b", 0));
    let many: Vec<_> = (0..2 * DENIALS.all)
        .map(|n| bearer(&n.to_string()))
        .collect();
    for other in &many {
        grants.deny_unproven(other, &[get(other, "a")], at(1));
    }
    assert_eq!(grants.read().denials.row_count(), DENIALS.all);
    assert!(many.iter().all(|other| denied(other, "a", 0)));
    assert!(
        !denied(&me, "b", 1),
        "of requests from before the flood alone"
    );
}

/// The denial of a known right is a row among the grants, and was lost when newer grants evicted it.
#[test]
fn i7_a_denial_that_grants_evict_still_counts() {
    let grants = Grants::empty();
    for (caller, limit) in [
        (bearer("me"), GRANTS.account),
        (Credential::Anonymous, ANONYMOUS_GRANTS),
    ] {
        let right = get(&caller, "a");
        grants.allow(&caller, right, at(1), at(1));
        grants.deny(&caller, &[right], at(2));
        for n in 0..limit as u64 {
            grants.allow(&caller, get(&caller, &n.to_string()), at(n + 3), at(n + 3));
        }
        assert!(
            grants.read().denied_since(&caller, &right, at(1)),
            "{caller:?}"
        );
    }
}

/// The author's right to read was looked up and put by two locks, so that a 403 between them was overwritten.
#[test]
fn i7_a_refusal_during_a_write_is_not_overwritten() {
    let me = bearer("me");
    let (absence, read) = (Right::of(&me, Action::AbsenceOnly, b"a"), get(&me, "a"));
    for _ in 0..2_000 {
        let grants = Grants::empty();
        grants.allow(&me, absence, at(0), at(0));
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                grants.deny(&me, &[absence, read], at(2))
            });
            barrier.wait();
            grants.allow_author(&me, ObjectKey::new(b"a"), at(1));
        });
        assert_ne!(allows(&grants, &me, "a", 3), Some(true));
    }
}

/// A flood of other tokens' 401s pushed out the memory of a token's, and a late 2xx then proved it again.
#[test]
fn i7_a_late_success_proves_no_token_whose_rejection_may_be_forgotten() {
    let grants = Grants::empty();
    let me = bearer("me");
    grants.accept(token(&me), at(0), at(0));
    grants.reject(&me, at(2));
    for n in 0..MAX_REJECTED {
        grants.reject(&bearer(&n.to_string()), at(3));
    }
    grants.accept(token(&me), at(1), at(4));
    assert!(!grants.has_accepted(&me, at(4), ONE_DAY));
    grants.accept(token(&me), at(2), at(4));
    assert!(grants.has_accepted(&me, at(4), ONE_DAY), "requested since");
}

#[test]
fn i7_grants_of_a_replaced_cluster_are_void() {
    let grants = Grants::empty();
    let me = bearer("opaque");
    allow(&grants, &me, "a", 0);
    grants.cluster.advance();
    assert_eq!(allows(&grants, &me, "a", 1), None);
    assert_eq!(grants.row_counts().credentials, 0);
    assert_eq!(allow(&grants, &me, "b", 2), 2, "the new cluster's count");
    assert_eq!(allows(&grants, &me, "b", 3), Some(true));
}
