//! `--server-addr`: texts in, checked addresses out.

use super::{ConfigError, Server};

/// More servers than any control plane has.
const MAX_SERVERS: usize = 16;

const FLAG: &str = "server-addr";

/// The API servers, in order.
///
/// # Errors
/// None, too many, one twice, or one that is no `https://HOST:PORT`.
pub(super) fn servers(urls: &[String]) -> Result<Vec<Server>, ConfigError> {
    let mut servers = Vec::new();
    for url in urls
        .iter()
        .map(|url| url.trim())
        .filter(|url| !url.is_empty())
    {
        let server = server(url)?;
        if servers.contains(&server) {
            return Err(ConfigError::value(
                FLAG,
                url,
                "is named twice: name each server once",
            ));
        }
        servers.push(server);
    }
    match servers.len() {
        0 => Err(ConfigError::missing(
            FLAG,
            "say where the API server is, as in --server-addr=https://192.168.1.102:6443",
        )),
        n if n > MAX_SERVERS => Err(ConfigError::value(
            FLAG,
            format!("({n} servers)"),
            format!("are too many: at most {MAX_SERVERS}"),
        )),
        _ => Ok(servers),
    }
}

fn server(url: &str) -> Result<Server, ConfigError> {
    let wrong = |reason: String| Err(ConfigError::value(FLAG, url, reason));
    let Some((scheme, rest)) = url.split_once("://") else {
        return wrong(format!("has no scheme: write https://{url}"));
    };
    if scheme.eq_ignore_ascii_case("http") {
        return wrong(format!(
            "is plain HTTP: hublet speaks TLS to the cloud, so write https://{rest}"
        ));
    }
    if !scheme.eq_ignore_ascii_case("https") {
        return wrong(format!("has the scheme {scheme:?}: write https://{rest}"));
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '@']) {
        return wrong("has more than a host and a port: write https://HOST:PORT".into());
    }
    let Ok(parsed) = authority.parse::<http::uri::Authority>() else {
        return wrong(
            "is malformed: write https://HOST:PORT, with an IPv6 address in brackets".into(),
        );
    };
    let host = parsed.host().trim_matches(['[', ']']);
    let (bracketed, is_v6) = (
        authority.starts_with('['),
        host.parse::<std::net::Ipv6Addr>().is_ok(),
    );
    if host.is_empty() || bracketed != is_v6 || !(is_v6 || is_host(host)) {
        return wrong("has no proper host: write https://HOST:PORT".into());
    }
    match (
        parsed.port(),
        authority.ends_with(']') || !authority[host.len()..].contains(':'),
    ) {
        (Some(port), _) => match port.as_str().parse() {
            Ok(0) | Err(_) => wrong(format!("has the port {port}: ports are 1 to 65535")),
            Ok(port) => Ok(Server {
                host: host.to_owned(),
                port,
            }),
        },
        (None, true) => Ok(Server {
            host: host.to_owned(),
            port: 443,
        }),
        (None, false) => wrong("has a wrong port: ports are 1 to 65535".into()),
    }
}

/// An IPv4 address or a DNS name.
fn is_host(host: &str) -> bool {
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if numeric {
        return host.parse::<std::net::Ipv4Addr>().is_ok();
    }
    rustls_pki_types::DnsName::try_from(host).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(url: &str) -> Result<(String, u16), String> {
        server(url)
            .map(|s| (s.host, s.port))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn server_urls_are_taken() {
        for (url, host, port) in [
            ("https://192.168.1.102:6443", "192.168.1.102", 6443),
            ("HTTPS://api.example.com:443/", "api.example.com", 443),
            ("https://api.example.com", "api.example.com", 443),
            ("https://[fd00::1]:6443", "fd00::1", 6443),
            ("https://[fd00::1]", "fd00::1", 443),
            ("https://localhost:1", "localhost", 1),
        ] {
            assert_eq!(one(url), Ok((host.to_owned(), port)), "{url}");
        }
    }

    #[test]
    fn wrong_server_urls_are_refused_with_what_to_write() {
        for (url, says) in [
            ("192.168.1.102:6443", "https://192.168.1.102:6443"),
            ("http://192.168.1.102:6443", "https://192.168.1.102:6443"),
            ("ftp://a:1", "https://a:1"),
            ("https://", "https://HOST:PORT"),
            ("https://:6443", "https://HOST:PORT"),
            ("https://a:0", "1 to 65535"),
            ("https://a:70000", "1 to 65535"),
            ("https://a:", "1 to 65535"),
            ("https://a:x", "1 to 65535"),
            ("https://a b:1", "https://HOST:PORT"),
            ("https://fd00::1:6443", "brackets"),
            ("https://[10.0.0.1]:6443", "https://HOST:PORT"),
            ("https://10.0.0:6443", "https://HOST:PORT"),
            ("https://999.1.1.1:6443", "https://HOST:PORT"),
            ("https://user:pw@a:1", "https://HOST:PORT"),
            ("https://a:1/path", "https://HOST:PORT"),
            ("https://a:1?x", "https://HOST:PORT"),
        ] {
            let error = one(url).expect_err(url);
            assert!(
                error.contains(says) && error.contains("--server-addr"),
                "{url}: {error}"
            );
        }
    }

    #[test]
    fn servers_keep_their_order_and_come_once() {
        let list =
            |urls: &[&str]| servers(&urls.iter().map(ToString::to_string).collect::<Vec<_>>());
        let two = list(&["https://b:1", " https://a:1"]).expect("two servers");
        assert_eq!(
            two.iter().map(|s| s.host.as_str()).collect::<Vec<_>>(),
            ["b", "a"]
        );
        assert!(
            list(&["https://a:1", "https://a:1/"])
                .expect_err("twice")
                .to_string()
                .contains("twice")
        );
        assert!(
            list(&[])
                .expect_err("none")
                .to_string()
                .contains("--server-addr is missing")
        );
        assert!(list(&["", " "]).is_err());
        let many: Vec<String> = (0..17).map(|n| format!("https://a{n}:1")).collect();
        assert!(
            servers(&many)
                .expect_err("17")
                .to_string()
                .contains("at most 16")
        );
    }
}
