//! A request's credential, read from its headers as the API server reads it; pure.
//!
//! Sources: `k8s.io/apiserver/pkg/authentication/request/{bearertoken/bearertoken.go,websocket/protocol.go}` and
//! `pkg/endpoints/filters/impersonation.go`. A well-formed bearer token is authenticated or answered 401 there, on every
//! path; any other `Authorization` is ignored, and the request is anonymous. So the two must never be mixed up here.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use serde_json::Value;

/// Prefix of the WebSocket subprotocol that carries a token.
const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";
/// Claims that differ between two tokens of one user.
const PER_TOKEN_CLAIMS: [&str; 4] = ["exp", "iat", "nbf", "jti"];
/// Subjects of service accounts, whose rights hang on the name alone.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// The account that grants belong to: 16 bytes of a SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Identity(pub(super) [u8; 16]);

impl Identity {
    /// Callers without a credential.
    pub(crate) const ANONYMOUS: Self = Self([0; 16]);
}

/// An account in logs: the beginning of its digest, which tells accounts apart and nothing else.
impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Self::ANONYMOUS {
            return f.write_str("anonymous");
        }
        f.write_str("sha256:")?;
        self.0[..6]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// SHA-256 of a bearer token.
pub(crate) type TokenDigest = [u8; 32];

/// A bearer token, as its digest. Its claims count only once the cloud has accepted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub digest: TokenDigest,
    /// The account that its claims name, or one of its own.
    pub account: Identity,
}

/// The credential that a request carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// No credential: `system:anonymous` to the cloud.
    Anonymous,
    /// An `Authorization` that the API server ignores (another scheme, no scheme, two blanks): anonymous there, and here.
    /// Since another server might accept it, no right is learnt for anonymous callers from its responses.
    Ignored,
    /// Not wholly understood: several `Authorization`s, a proxy's identity headers, a token in a WebSocket subprotocol,
    /// headers that `Connection` removes, impersonation without a token. It has no rights here.
    Unclear,
    Token {
        token: Token,
        /// Digest of the `Impersonate-*` headers: user, groups, uid and extra.
        impersonation: Option<[u8; 32]>,
    },
}

/// As [`Credential`], before anything is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RawCredential<'a> {
    Nothing,
    Ignored,
    Unclear,
    /// A token, and whether there are `Impersonate-*` headers.
    Bearer(&'a [u8], bool),
}

impl<'a> RawCredential<'a> {
    /// Reads a request's headers, in one pass: they are read for every request.
    pub(crate) fn from_headers(headers: &'a HeaderMap) -> Self {
        let (mut first, mut several, mut impersonates, mut unclear) = (None, false, false, false);
        for (name, value) in headers {
            let value = value.as_bytes();
            match name.as_str() {
                "authorization" if first.is_none() => first = Some(value),
                "authorization" => several = true,
                // A header that `Connection` names does not reach the cloud.
                "connection" => unclear |= list_items(value).any(names_a_credential),
                "sec-websocket-protocol" => unclear |= list_items(value).any(carries_a_token),
                name if is_impersonation(name) => impersonates = true,
                name => unclear |= is_of_a_proxy(name),
            }
        }
        if unclear || first.is_some_and(|value: &[u8]| !value.is_ascii()) {
            return Self::Unclear;
        }
        match (first, first.and_then(bearer_token)) {
            // The API server reads the first one; a proxy in front of it may read another.
            (_, Some(token)) if !several => Self::Bearer(token, impersonates),
            (_, Some(_)) => Self::Unclear,
            _ if impersonates => Self::Unclear,
            (None, None) => Self::Nothing,
            (Some(_), None) => Self::Ignored,
        }
    }
}

impl Credential {
    /// The account that its token names, before the cloud has confirmed it; anonymous without one.
    pub(crate) fn account(&self) -> Identity {
        match self {
            Self::Token { token, .. } => token.account,
            Self::Anonymous | Self::Ignored | Self::Unclear => Identity::ANONYMOUS,
        }
    }

    pub(crate) fn from_headers(headers: &HeaderMap) -> Self {
        Self::from_headers_with(headers, Token::digest)
    }

    /// As [`Self::from_headers`], for a caller that may have digested the token before.
    pub(crate) fn from_headers_with(
        headers: &HeaderMap,
        digest: impl FnOnce(&[u8]) -> Token,
    ) -> Self {
        match RawCredential::from_headers(headers) {
            RawCredential::Nothing => Self::Anonymous,
            RawCredential::Ignored => Self::Ignored,
            RawCredential::Unclear => Self::Unclear,
            RawCredential::Bearer(token, impersonates) => Self::Token {
                token: digest(token),
                impersonation: impersonates.then(|| impersonation_digest(headers)),
            },
        }
    }
}

impl Token {
    pub(crate) fn digest(token: &[u8]) -> Self {
        let digest = sha256(&[token]);
        let account = match subject_of(token) {
            Some(subject) => identity_of(&[b"jwt", &subject]),
            None => identity_of(&[b"token", &digest]),
        };
        Self { digest, account }
    }
}

/// SHA-256 over parts, each with its length before it, so that no two lists of parts read alike.
pub(super) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut joined = Vec::with_capacity(parts.iter().map(|part| part.len() + 8).sum());
    for part in parts {
        joined.extend_from_slice(&(part.len() as u64).to_le_bytes());
        joined.extend_from_slice(part);
    }
    digest(&SHA256, &joined)
        .as_ref()
        .try_into()
        .unwrap_or([0; 32])
}

fn identity_of(parts: &[&[u8]]) -> Identity {
    let mut short = [0; 16];
    short.copy_from_slice(&sha256(parts)[..16]);
    Identity(short)
}

/// The token of an `Authorization` value, as `bearertoken.go` reads it; `None` where it ignores the header.
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let mut parts = value.trim_ascii().splitn(3, |byte| *byte == b' ');
    let (scheme, token) = (parts.next()?, parts.next()?);
    (scheme.eq_ignore_ascii_case(b"bearer") && !token.is_empty()).then_some(token)
}

fn is_impersonation(name: &str) -> bool {
    name.starts_with("impersonate-")
}

/// The headers by which an authenticating proxy names the caller to the API server, in their usual names.
fn is_of_a_proxy(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("x-remote-") else {
        return false;
    };
    matches!(rest, "user" | "group" | "uid") || rest.starts_with("extra-")
}

/// The items of a header that is a comma-separated list.
fn list_items(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

fn names_a_credential(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"authorization") || begins_with(name, "impersonate-")
}

fn carries_a_token(protocol: &[u8]) -> bool {
    begins_with(protocol, WEBSOCKET_BEARER)
}

/// `text` begins with `prefix`, in whatever case.
fn begins_with(text: &[u8], prefix: &str) -> bool {
    text.get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

/// Digest of the `Impersonate-*` headers, by name; a name's values in their order.
fn impersonation_digest(headers: &HeaderMap) -> [u8; 32] {
    let mut named: Vec<(&str, &[u8])> = headers
        .iter()
        .filter(|(name, _)| is_impersonation(name.as_str()))
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    named.sort_by_key(|(name, _)| *name);
    let parts: Vec<&[u8]> = named
        .iter()
        .flat_map(|(name, value)| [name.as_bytes(), value])
        .collect();
    sha256(&parts)
}

/// The account that a JWT names, unverified: issuer and subject of a service account. Two tokens of another user may differ in
/// groups or scopes, so there every claim counts but those of the token itself.
fn subject_of(token: &[u8]) -> Option<Vec<u8>> {
    let parts: Vec<&[u8]> = token.split(|byte| *byte == b'.').collect();
    let [_, payload, _] = parts[..] else {
        return None;
    };
    let mut claims: BTreeMap<String, Value> =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    let (issuer, subject) = (text_claim(&claims, "iss")?, text_claim(&claims, "sub")?);
    if subject.starts_with(SERVICE_ACCOUNT) {
        return serde_json::to_vec(&(issuer, subject)).ok();
    }
    for name in PER_TOKEN_CLAIMS {
        claims.remove(name);
    }
    serde_json::to_vec(&claims).ok()
}

fn text_claim<'a>(claims: &'a BTreeMap<String, Value>, name: &str) -> Option<&'a str> {
    let text = claims.get(name)?.as_str()?;
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                *name,
                http::HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        headers
    }

    fn presented(value: &str) -> String {
        format!(
            "{:?}",
            RawCredential::from_headers(&headers(&[("authorization", value)]))
        )
    }

    /// The table is `bearertoken.go`'s own: scheme and token are split by one blank, and what is left over is nothing.
    #[test]
    fn i7_an_authorization_is_read_as_the_api_server_reads_it() {
        let token = format!("{:?}", RawCredential::Bearer(b"t.o.k", false));
        for bearer in [
            "Bearer t.o.k",
            "bearer t.o.k",
            "BEARER t.o.k ",
            " Bearer t.o.k",
            "Bearer t.o.k and more",
        ] {
            assert_eq!(presented(bearer), token, "{bearer:?}");
        }
        for passed_over in [
            "t.o.k",
            "Bearer",
            "Bearer ",
            "Bearer  t.o.k",
            "Bearer\tt.o.k",
            "Token t.o.k",
            "Basic dDpr",
            "",
        ] {
            assert_eq!(presented(passed_over), "Ignored", "{passed_over:?}");
        }
        assert_eq!(
            presented("\u{a0}Bearer t.o.k"),
            "Unclear",
            "Go trims more blanks than ASCII's"
        );
        assert_eq!(
            RawCredential::from_headers(&HeaderMap::new()),
            RawCredential::Nothing
        );
    }

    #[test]
    fn i7_a_credential_that_is_not_understood_has_no_identity() {
        let bearer = ("authorization", "Bearer t.o.k");
        let websocket = (
            "sec-websocket-protocol",
            "v4, base64url.bearer.authorization.k8s.io.dC5vLms",
        );
        for unclear in [
            [bearer, ("authorization", "Bearer other")],
            [bearer, ("x-remote-user", "admin")],
            [bearer, ("x-remote-extra-scopes", "all")],
            [bearer, ("connection", "close, Authorization")],
            [bearer, ("connection", "Impersonate-User")],
            [bearer, websocket],
            [("impersonate-user", "alice"), ("accept", "*/*")],
            [
                ("impersonate-user", "alice"),
                ("authorization", "Basic dDpr"),
            ],
        ] {
            assert_eq!(
                Credential::from_headers(&headers(&unclear)),
                Credential::Unclear,
                "{unclear:?}"
            );
        }
        let odd_first = [("authorization", "Basic dDpr"), bearer];
        assert_eq!(
            Credential::from_headers(&headers(&odd_first)),
            Credential::Ignored,
            "the first one counts"
        );
    }

    #[test]
    fn i7_impersonation_is_part_of_the_identity() {
        let of = |pairs: &[(&'static str, &str)]| {
            let all = [&[("authorization", "Bearer t")], pairs].concat();
            Credential::from_headers(&headers(&all))
        };
        let personas = [
            of(&[]),
            of(&[("impersonate-user", "alice")]),
            of(&[("impersonate-user", "bob")]),
            of(&[
                ("impersonate-user", "alice"),
                ("impersonate-group", "admins"),
            ]),
            of(&[("impersonate-user", "alice"), ("impersonate-uid", "1")]),
            of(&[
                ("impersonate-user", "alice"),
                ("impersonate-extra-scopes", "view"),
            ]),
        ];
        for (n, one) in personas.iter().enumerate() {
            assert!(
                personas.iter().skip(n + 1).all(|other| other != one),
                "{one:?}"
            );
        }
        let again = of(&[
            ("impersonate-group", "admins"),
            ("impersonate-user", "alice"),
        ]);
        assert_eq!(again, personas[3], "names in any order");
    }

    fn jwt(claims: &str) -> Token {
        Token::digest(format!("h.{}.s", URL_SAFE_NO_PAD.encode(claims)).as_bytes())
    }

    #[test]
    fn i7_a_service_account_is_its_subject_and_another_user_all_claims() {
        let pod = |pod: &str| {
            let sub = "system:serviceaccount:kube-system:cni";
            jwt(&format!(
                r#"{{"iss":"k","sub":"{sub}","jti":"{pod}","kubernetes.io":{{"pod":"{pod}"}}}}"#
            ))
        };
        assert_eq!(pod("a").account, pod("b").account);
        assert_ne!(pod("a").digest, pod("b").digest);
        let user = |groups: &str, exp: u32| {
            jwt(&format!(
                r#"{{"exp":{exp},"iss":"o","sub":"u","groups":["{groups}"]}}"#
            ))
        };
        assert_eq!(
            user("view", 1).account,
            user("view", 2).account,
            "a token later"
        );
        assert_ne!(
            user("view", 1).account,
            user("admin", 1).account,
            "less scope is less right"
        );
        let forged = jwt(r#"{"iss":"evil","sub":"system:serviceaccount:kube-system:cni"}"#);
        assert_ne!(forged.account, pod("a").account);
    }
}
