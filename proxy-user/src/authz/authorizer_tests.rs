//! Status codes in, decisions out, over a real store.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use hublet_wire::request::RequestInfo;

use super::*;
use crate::cache::keys;
use crate::clock::Clock;
use crate::config::CacheConfig;

const WEEK: Duration = Duration::from_secs(7 * 86_400);
const SECRET: &str = "/api/v1/namespaces/d/secrets/s";

struct Bench {
    cache: Arc<Cache>,
    authorizer: Authorizer,
    config: CacheConfig,
    clock: Clock,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = CacheConfig {
            dir: dir.path().to_owned(),
            page_cache: 1 << 20,
            max_bytes: 512 << 20,
        };
        let clock = Clock::default();
        let cache = Arc::new(Cache::open(&config, clock.clone()).unwrap());
        Self {
            authorizer: Authorizer::load(Arc::clone(&cache), WEEK).unwrap(),
            cache,
            config,
            clock,
            _dir: dir,
        }
    }

    fn with_attributes<T>(headers: &str, path: &str, then: impl FnOnce(&Attributes<'_>) -> T) -> T {
        let mut map = HeaderMap::new();
        for line in headers.split('\n').filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").unwrap();
            map.append(
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        let (method, path) = path.split_once(' ').unwrap_or(("GET", path));
        let (method, uri): (Method, Uri) = (method.parse().unwrap(), path.parse().unwrap());
        let (credential, info) = (
            Credential::from_headers(&map),
            RequestInfo::parse(&method, &uri),
        );
        let request = info.understood().unwrap();
        let mut key = Vec::new();
        keys::push_scope(&mut key, request);
        then(&Attributes {
            credential: &credential,
            request,
            key: &key,
        })
    }

    /// Starts again with the same store, which has been closed.
    fn reopen(&mut self) {
        let elsewhere = tempfile::tempdir().unwrap();
        let config = CacheConfig {
            dir: elsewhere.path().to_owned(),
            ..self.config.clone()
        };
        // Cache and authorizer both hold the former store until they are replaced.
        self.load(&config, Clock::default());
        self.load(&self.config.clone(), self.clock.clone());
    }

    fn load(&mut self, config: &CacheConfig, clock: Clock) {
        self.cache = Arc::new(Cache::open(config, clock).unwrap());
        self.authorizer = Authorizer::load(Arc::clone(&self.cache), WEEK).unwrap();
    }

    /// The cloud answers at once.
    fn observe(&self, headers: &str, path: &str, status: u16) {
        self.observe_late(headers, path, status, self.authorizer.now());
    }

    fn observe_late(&self, headers: &str, path: &str, status: u16, requested_at: Timestamp) {
        let response = ObservedResponse {
            status,
            requested_at,
        };
        Self::with_attributes(headers, path, |attributes| {
            self.authorizer.observe_response(attributes, response);
        });
    }

    fn decide(&self, headers: &str, path: &str) -> Decision {
        Self::with_attributes(headers, path, |attributes| {
            self.authorizer.decide(attributes)
        })
    }
}

const ME: &str = "Authorization: Bearer me";

#[tokio::test]
async fn i7_only_a_response_that_needs_a_token_proves_it() {
    let bench = Bench::new();
    for open in [
        "/version",
        "/version/",
        "/healthz",
        "/livez/ping",
        "/openid/v1/jwks",
        "/.well-known/x",
    ] {
        bench.observe(ME, open, 200);
        assert_eq!(
            bench.decide(ME, open),
            Decision::UnknownCredential,
            "{open}"
        );
    }
    bench.observe(
        ME,
        "/api/v1/namespaces/kube-public/configmaps/cluster-info",
        200,
    );
    bench.observe("", "/apis", 200);
    bench.observe(ME, "/apis", 200);
    bench.observe(ME, SECRET, 404);
    bench.observe(ME, SECRET, 403);
    assert_eq!(
        bench.decide(ME, SECRET),
        Decision::UnknownCredential,
        "anonymous callers get the same"
    );
    bench.observe(ME, "/api", 200);
    assert_eq!(bench.decide(ME, SECRET), Decision::NoOpinion);
    assert_eq!(bench.decide(ME, "/api"), Decision::Read);
    bench.observe(
        "Authorization: Bearer writer",
        "PUT /api/v1/namespaces/d/pods/p",
        200,
    );
    assert_eq!(
        bench.decide("Authorization: Bearer writer", SECRET),
        Decision::NoOpinion,
        "a write proves it, too"
    );
    bench.observe(ME, SECRET, 401);
    assert_eq!(bench.decide(ME, "/api"), Decision::Unauthorized);
}

#[tokio::test]
async fn i7_a_404_allows_only_the_same_404_and_a_subresource_nothing() {
    let bench = Bench::new();
    bench.observe(ME, "/api", 200);
    bench.observe(ME, SECRET, 404);
    assert_eq!(bench.decide(ME, SECRET), Decision::AbsenceOnly);
    assert_eq!(
        bench.decide(ME, "/api/v1/namespaces/d/secrets/other"),
        Decision::NoOpinion
    );
    bench.observe(ME, SECRET, 403);
    assert_eq!(bench.decide(ME, SECRET), Decision::NoOpinion, "taken back");
    let status = format!("{SECRET}/status");
    for code in [404, 200] {
        bench.observe(ME, &status, code);
        assert_eq!(bench.decide(ME, &status), Decision::NoOpinion);
        assert_eq!(bench.decide(ME, SECRET), Decision::NoOpinion);
    }
    bench.observe(ME, "/apis/x.io/v1/things", 404);
    assert_eq!(
        bench.decide(ME, "/apis/x.io/v1/things"),
        Decision::NoOpinion,
        "a list is no object"
    );
}

#[tokio::test]
async fn i7_a_refusal_in_a_namespace_revokes_the_grant_for_all_namespaces() {
    let bench = Bench::new();
    let (all, here, selected) = (
        "/api/v1/pods",
        "/api/v1/namespaces/d/pods",
        "/api/v1/pods?labelSelector=a",
    );
    bench.observe(ME, all, 200);
    for path in [all, here, selected] {
        assert_eq!(bench.decide(ME, path), Decision::Read, "{path}");
    }
    assert_eq!(
        bench.decide(ME, "/api/v1/pods?watch=true"),
        Decision::NoOpinion,
        "another verb"
    );
    bench.observe(ME, "/api/v1/pods?watch=true", 200);
    bench.observe(ME, here, 403);
    for path in [all, here, selected, "/api/v1/pods?watch=true"] {
        assert_ne!(bench.decide(ME, path), Decision::Read, "{path}");
    }
    assert_eq!(bench.decide(ME, all), Decision::Forbidden);
    assert_eq!(
        bench.decide("", all),
        Decision::Forbidden,
        "never allowed to anonymous callers"
    );
}

/// A slow response belongs to a request from before the caller lost the right.
#[tokio::test]
async fn i7_a_late_response_undoes_no_later_refusal() {
    let bench = Bench::new();
    bench.observe(ME, SECRET, 200);
    let requested_at = bench.authorizer.now();
    bench.clock.advance(1_000);
    bench.observe(ME, SECRET, 403);
    bench.observe_late(ME, SECRET, 200, requested_at);
    assert_eq!(bench.decide(ME, SECRET), Decision::Forbidden);
    bench.clock.advance(1_000);
    bench.observe(ME, SECRET, 200);
    assert_eq!(
        bench.decide(ME, SECRET),
        Decision::Read,
        "asked after the refusal"
    );
}

/// Only rights that had been known were remembered as denied, so that the slow 200 granted what the newer 403 had refused.
#[tokio::test]
async fn i7_a_slow_answer_grants_nothing_that_was_refused_since() {
    let unproven = "Authorization: Bearer unproven";
    let list = "/api/v1/namespaces/d/secrets";
    for (caller, path) in [(ME, SECRET), (ME, list), (unproven, SECRET)] {
        let bench = Bench::new();
        bench.observe(ME, "/api", 200);
        let requested_at = bench.authorizer.now();
        bench.clock.advance(1_000);
        bench.observe(caller, path, 403);
        bench.observe_late(caller, path, 200, requested_at);
        assert_eq!(
            bench.decide(caller, path),
            Decision::NoOpinion,
            "{caller} {path}"
        );
        bench.clock.advance(1_000);
        bench.observe(caller, path, 200);
        assert_eq!(bench.decide(caller, path), Decision::Read, "asked anew");
    }
    let bench = Bench::new();
    bench.observe(ME, "/api", 200);
    let requested_at = bench.authorizer.now();
    bench.clock.advance(1_000);
    bench.observe(ME, list, 403);
    bench.observe_late(ME, "/api/v1/secrets", 200, requested_at);
    assert_eq!(
        bench.decide(ME, list),
        Decision::NoOpinion,
        "a wider list would cover the refused one"
    );
}

/// A client that has the document requests it with `If-None-Match`, and gets 304.
#[tokio::test]
async fn i7_an_unchanged_document_is_allowed() {
    let bench = Bench::new();
    bench.observe(ME, "/openapi/v2", 304);
    assert_eq!(bench.decide(ME, "/openapi/v2"), Decision::Read);
}

#[tokio::test]
async fn i7_an_unproven_token_revokes_nothing_of_the_account_it_names() {
    let bench = Bench::new();
    let claims = "eyJpc3MiOiJrIiwic3ViIjoic3lzdGVtOnNlcnZpY2VhY2NvdW50OmQ6Y25pIn0";
    let (real, forged) = (format!("h.{claims}.1"), format!("h.{claims}.2"));
    bench.observe(&format!("Authorization: Bearer {real}"), SECRET, 200);
    for forged in [
        format!("Authorization: Bearer {forged}"),
        format!("Authorization: {forged}"),
    ] {
        bench.observe(&forged, SECRET, 403);
        bench.observe(&forged, "/version", 200);
        assert_ne!(bench.decide(&forged, SECRET), Decision::Read, "{forged}");
    }
    assert_eq!(
        bench.decide(&format!("Authorization: Bearer {real}"), SECRET),
        Decision::Read
    );
}

#[tokio::test]
async fn i7_grants_while_impersonating_alice_count_only_while_impersonating_alice() {
    let bench = Bench::new();
    let (alice, bob) = (
        format!("{ME}\nImpersonate-User: alice"),
        format!("{ME}\nImpersonate-User: bob"),
    );
    bench.observe(&alice, SECRET, 200);
    bench.observe(&bob, SECRET, 403);
    assert_eq!(bench.decide(&alice, SECRET), Decision::Read);
    for other in [bob, ME.into(), format!("{alice}\nImpersonate-Group: g")] {
        assert_eq!(bench.decide(&other, SECRET), Decision::NoOpinion, "{other}");
    }
}

/// A daemon that starts with its clock in the past must neither forget what was allowed nor believe it for ever.
#[tokio::test]
async fn i7_grants_survive_a_start_with_the_clock_set_back_and_age_from_then_on() {
    let mut bench = Bench::new();
    bench.observe(ME, SECRET, 200);
    bench.cache.close().await;
    let month = 30 * 86_400_000;
    bench.clock.advance(-month);
    bench.reopen();
    assert_eq!(bench.decide(ME, SECRET), Decision::Read);
    bench.cache.close().await;
    bench.reopen();
    bench
        .clock
        .advance(i64::try_from(WEEK.as_millis()).unwrap() + 60_000);
    assert_eq!(
        bench.decide(ME, SECRET),
        Decision::UnknownCredential,
        "a week after the start"
    );
}

/// A slow response to a request from before the token was revoked (a write whose body came late) proved the token again,
/// and undid the denial of a 404.
#[tokio::test]
async fn i7_a_late_response_undoes_neither_a_401_nor_a_refused_absence() {
    let bench = Bench::new();
    bench.observe(ME, "/api", 200);
    bench.observe(ME, SECRET, 200);
    bench.observe(ME, "/api/v1/namespaces/d/secrets/gone", 404);
    let requested_at = bench.authorizer.now();
    bench.clock.advance(1_000);
    bench.observe(ME, "/api/v1/namespaces/d/secrets/gone", 403);
    bench.observe_late(ME, "/api/v1/namespaces/d/secrets/gone", 404, requested_at);
    assert_eq!(
        bench.decide(ME, "/api/v1/namespaces/d/secrets/gone"),
        Decision::NoOpinion
    );
    bench.observe(ME, "/api", 401);
    bench.clock.advance(1_000);
    bench.observe_late(ME, "PUT /api/v1/namespaces/d/pods/p", 200, requested_at);
    assert_eq!(bench.decide(ME, SECRET), Decision::Unauthorized);
    bench.observe(ME, "/api", 200);
    assert_eq!(bench.decide(ME, SECRET), Decision::Read, "it is good again");
}

/// A list grant for all namespaces covers a list in one; a watch or a get is another right.
#[tokio::test]
async fn i7_a_grant_in_a_wider_scope_is_for_its_verb_alone() {
    let (all, here, selected) = (
        "/api/v1/pods",
        "/api/v1/namespaces/d/pods",
        "/api/v1/namespaces/d/pods?labelSelector=a",
    );
    let watch = |path: &str| {
        let separator = if path.contains('?') { '&' } else { '?' };
        format!("{path}{separator}watch=true")
    };
    let bench = Bench::new();
    bench.observe(ME, all, 200);
    assert_eq!(bench.decide(ME, here), Decision::Read);
    for other in [watch(here), watch(selected), format!("{here}/p")] {
        assert_eq!(bench.decide(ME, &other), Decision::NoOpinion, "{other}");
    }
    let bench = Bench::new();
    bench.observe(ME, &watch(all), 200);
    assert_eq!(bench.decide(ME, &watch(selected)), Decision::Read);
    for other in [here, selected] {
        assert_eq!(bench.decide(ME, other), Decision::NoOpinion, "{other}");
    }
    assert_eq!(
        bench.decide(ME, "/api/v1/secrets?watch=true"),
        Decision::NoOpinion,
        "another resource"
    );
}

#[tokio::test]
async fn i7_a_403_revokes_the_right_of_every_verb_across_a_restart() {
    let paths = [
        SECRET,
        "/api/v1/namespaces/d/secrets",
        "/api/v1/secrets?watch=true",
        "/openapi/v2",
    ];
    let mut bench = Bench::new();
    for path in paths {
        bench.observe(ME, path, 200);
        assert_eq!(bench.decide(ME, path), Decision::Read, "{path}");
        bench.observe(ME, path, 403);
        assert_eq!(bench.decide(ME, path), Decision::Forbidden, "{path}");
    }
    bench.cache.close().await;
    bench.reopen();
    for path in paths {
        assert_eq!(bench.decide(ME, path), Decision::Forbidden, "{path}");
    }
}

/// The grants of a store that could not be read at the start stayed on disk as they were, whatever was refused meanwhile,
/// and counted again after the next start; until then nobody was served.
#[tokio::test]
async fn i7_what_is_refused_before_a_store_is_opened_late_stays_refused() {
    const TAKEN: &str = "Authorization: Bearer taken";
    const UNPROVEN: &str = "Authorization: Bearer unproven";
    const REFUSED: &str = "Authorization: Bearer refused";
    let mut bench = Bench::new();
    for caller in [ME, TAKEN, UNPROVEN, REFUSED] {
        bench.observe(caller, SECRET, 200);
    }
    bench.cache.close().await;
    let path = bench.config.dir.join("hublet.redb");
    let elsewhere = path.with_extension("away");
    std::fs::rename(&path, &elsewhere).unwrap();
    std::fs::create_dir(&path).unwrap();
    bench.reopen();
    assert!(!bench.cache.is_readable());
    assert_eq!(bench.decide(ME, SECRET), Decision::UnknownCredential);
    bench.observe(TAKEN, "/api/v1/nodes", 200);
    bench.observe(TAKEN, SECRET, 403);
    bench.observe(UNPROVEN, SECRET, 403);
    bench.observe(REFUSED, SECRET, 401);
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&elsewhere, &path).unwrap();
    bench.authorizer.load_late().await;
    for _ in 0..2 {
        assert_eq!(bench.decide(ME, SECRET), Decision::Read);
        assert_eq!(bench.decide(TAKEN, SECRET), Decision::Forbidden);
        assert_eq!(bench.decide(UNPROVEN, SECRET), Decision::Forbidden);
        let refused = bench.decide(REFUSED, SECRET);
        let expected = [Decision::Unauthorized, Decision::UnknownCredential];
        assert!(expected.contains(&refused), "{refused:?}");
        bench.cache.close().await;
        bench.reopen();
    }
}

/// The proof is made of the request that was decided on, so that no other can be read with it.
#[tokio::test]
async fn i7_the_proof_holds_the_request_that_was_authorised() {
    struct Request<'a>(Attributes<'a>);

    impl<'a> AsRef<Attributes<'a>> for Request<'a> {
        fn as_ref(&self) -> &Attributes<'a> {
            &self.0
        }
    }

    let bench = Bench::new();
    bench.observe(ME, "/api", 200);
    bench.observe(ME, SECRET, 404);
    Bench::with_attributes(ME, "/api", |attributes| {
        match bench.authorizer.authorize(Request(*attributes)) {
            Ok(Permission::Read(allowed)) => assert_eq!(allowed.0.0.key, b"/api"),
            _ => panic!("allowed"),
        }
    });
    Bench::with_attributes(ME, SECRET, |attributes| {
        let permission = bench.authorizer.authorize(Request(*attributes));
        assert!(matches!(permission, Ok(Permission::AbsenceOnly(_))));
    });
    let denied = Bench::with_attributes(ME, "/api/v1/pods", |attributes| {
        bench.authorizer.authorize(Request(*attributes)).err()
    });
    assert!(matches!(denied, Some(Denied::Undecided(_))), "{denied:?}");
}
