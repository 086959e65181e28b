//! One request over plain HTTP on loopback (readiness, control ports).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use ureq::Agent;

const TIMEOUT: Duration = Duration::from_secs(2);
const MAX_RESPONSE: u64 = 1 << 20;

/// The status code and body of the response to `GET path`.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let config = Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false);
    let agent: Agent = config.build().into();
    let mut response = agent
        .get(format!("http://{address}{path}"))
        .call()
        .with_context(|| format!("no HTTP server answers on {address}; is it running?"))?;
    let body = response.body_mut().with_config().limit(MAX_RESPONSE);
    let text = body
        .read_to_string()
        .with_context(|| format!("the response of {address} to {path} broke off"))?;
    Ok((response.status().as_u16(), text))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_response_is_read_and_a_closed_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 512]).unwrap();
            let answer = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 5\r\n\r\nearly";
            stream.write_all(answer).unwrap();
        });
        assert_eq!(
            get(address, "/v1/readyz").unwrap(),
            (500, "early".to_owned())
        );
        server.join().unwrap();
        let error = format!("{:#}", get(address, "/v1/readyz").unwrap_err());
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
