//! `--server-addr`: the addresses of the API servers.

use std::fmt;

use serde::Serialize;

use super::ConfigError;

/// More than any control plane has.
const MAX_SERVERS: usize = 16;

/// The port of an https URL without one.
const HTTPS_PORT: u16 = 443;

const FLAG: &str = "server-addr";

/// One API server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Server {
    /// DNS name or IP address, without brackets.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The API servers, in order.
pub(super) fn parse_servers(urls: &[String]) -> Result<Vec<Server>, ConfigError> {
    let mut servers = Vec::new();
    let urls_given = urls.iter().map(|url| url.trim());
    for url in urls_given.filter(|url| !url.is_empty()) {
        let server = parse_new_server(url, &servers)
            .map_err(|reason| ConfigError::invalid(FLAG, url, reason))?;
        servers.push(server);
    }
    check_count(servers.len(), urls)?;
    Ok(servers)
}

fn check_count(count: usize, urls: &[String]) -> Result<(), ConfigError> {
    match count {
        0 => Err(ConfigError::missing(
            FLAG,
            "give the API server's URL, as in --server-addr=https://192.168.1.102:6443",
        )),
        1..=MAX_SERVERS => Ok(()),
        _ => Err(ConfigError::invalid(
            FLAG,
            urls.join(","),
            format!("at most {MAX_SERVERS} servers are supported"),
        )),
    }
}

fn parse_new_server(url: &str, known: &[Server]) -> Result<Server, String> {
    let server = parse_server(url)?;
    if known.contains(&server) {
        return Err("the same server is given twice".into());
    }
    Ok(server)
}

/// The part behind `https://`.
fn strip_scheme(url: &str) -> Result<&str, String> {
    match url.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => Ok(rest),
        Some((_, rest)) => Err(format!(
            "hublet connects to the API server with TLS only; use https://{rest}"
        )),
        None => Err(format!("the scheme is missing; use https://{url}")),
    }
}

fn parse_server(url: &str) -> Result<Server, String> {
    let rest = strip_scheme(url)?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '@']) {
        return Err("only a host and a port are allowed; use https://HOST:PORT".into());
    }
    let parsed: http::uri::Authority = authority
        .parse()
        .map_err(|_| "use https://HOST:PORT, with an IPv6 address in brackets")?;
    let host = parse_host(authority, &parsed)?;
    Ok(Server {
        port: parse_port(authority, &parsed)?,
        host: host.to_owned(),
    })
}

fn parse_host<'a>(
    authority: &str,
    parsed: &'a http::uri::Authority,
) -> Result<&'a str, &'static str> {
    let host = parsed.host().trim_matches(['[', ']']);
    let is_bracketed = authority.starts_with('[');
    let is_v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
    if is_bracketed != is_v6 || !(is_v6 || is_host(host)) {
        return Err("the host must be a DNS name or an IP address; use https://HOST:PORT");
    }
    Ok(host)
}

fn parse_port(authority: &str, parsed: &http::uri::Authority) -> Result<u16, &'static str> {
    const INVALID: &str = "the port must be between 1 and 65535";
    match parsed.port_u16() {
        Some(port) if port > 0 => Ok(port),
        Some(_) => Err(INVALID),
        // `Authority` drops a port that isn't a number, so its colon must be absent, too.
        None if authority == parsed.host() => Ok(HTTPS_PORT),
        None => Err(INVALID),
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
        parse_servers(&[url.to_owned()])
            .map(|servers| (servers[0].host.clone(), servers[0].port))
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
            ("https://a:0", "1 and 65535"),
            ("https://a:70000", "1 and 65535"),
            ("https://a:", "1 and 65535"),
            ("https://a:x", "1 and 65535"),
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
        let list = |urls: &[&str]| {
            parse_servers(&urls.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
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
                .contains("--server-addr is required")
        );
        assert!(list(&["", " "]).is_err());
        let many: Vec<String> = (0..17).map(|n| format!("https://a{n}:1")).collect();
        assert!(
            parse_servers(&many)
                .expect_err("17")
                .to_string()
                .contains("at most 16")
        );
    }
}
