//! The nginx to compare with: a TLS server with proxy_cache before its own plain origin, and one that passes to the
//! cloud.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::server::Server;
use crate::child::Child;
use crate::project::Project;

const STORED: u16 = 18_443;
const PASSING: u16 = 18_444;
const ORIGIN: u16 = 18_080;
const GRACE: Duration = Duration::from_secs(5);

/// Writes configuration and origin into `dir` and starts it on core 0. `pem` holds certificate and key.
pub(super) fn start(
    project: &Project,
    dir: &Path,
    pem: &Path,
    bodies: &[(&str, Vec<u8>)],
    cloud: Option<SocketAddr>,
) -> Result<Child> {
    let origin = dir.join("origin");
    for (path, body) in bodies {
        let file = origin.join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().context("a body has a folder")?)?;
        fs::write(&file, body).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let conf = dir.join("nginx.conf");
    fs::write(&conf, configuration(dir, pem, cloud))?;
    let mut command = project.command("taskset");
    command
        .args(["-c", "0", "nginx", "-p"])
        .arg(dir)
        .arg("-c")
        .arg(&conf);
    command.arg("-e").arg(dir.join("nginx-error.log"));
    Child::start("nginx", &command, &dir.join("nginx.log"), GRACE)
}

/// The front that stores.
pub(super) fn caching_server(child: &Child, ca: &Path) -> Server {
    Server::new(
        "nginx",
        SocketAddr::from(([127, 0, 0, 1], STORED)),
        ca,
        child.pid(),
    )
}

/// The front that passes to the cloud and keeps nothing.
pub(super) fn passing_server(child: &Child, ca: &Path) -> Server {
    Server::new(
        "nginx passing",
        SocketAddr::from(([127, 0, 0, 1], PASSING)),
        ca,
        child.pid(),
    )
}

/// As good an nginx as its documentation tells to write; one TLS ticket, as hublet sends.
fn configuration(dir: &Path, pem: &Path, cloud: Option<SocketAddr>) -> String {
    let (dir, pem) = (dir.display(), pem.display());
    let passing = cloud
        .map(|cloud| passing_server_block(&cloud))
        .unwrap_or_default();
    format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {dir}/nginx.pid;\nerror_log {dir}/nginx-error.log warn;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
         access_log off;\n\
         default_type application/json;\n\
         sendfile on;\n\
         keepalive_requests 1000000000;\n\
         keepalive_timeout 600s;\n\
         open_file_cache max=1000 inactive=1d;\n\
         client_body_temp_path {dir}/body;\n\
         proxy_temp_path {dir}/proxy;\n\
         fastcgi_temp_path {dir}/fastcgi;\n\
         uwsgi_temp_path {dir}/uwsgi;\n\
         scgi_temp_path {dir}/scgi;\n\
         proxy_cache_path {dir}/cache levels=1:2 keys_zone=objects:10m inactive=1d max_size=1g use_temp_path=off;\n\
         ssl_certificate {pem};\n\
         ssl_certificate_key {pem};\n\
         ssl_protocols TLSv1.3;\n\
         ssl_session_tickets on;\n\
         ssl_conf_command NumTickets 1;\n\
         server {{\n\
           listen 127.0.0.1:{STORED} ssl http2;\n\
           location / {{\n\
             proxy_pass http://127.0.0.1:{ORIGIN};\n\
             proxy_cache objects;\n\
             proxy_cache_valid 200 1d;\n\
             proxy_cache_key $request_uri;\n\
           }}\n\
         }}\n\
         server {{ listen 127.0.0.1:{ORIGIN}; root {dir}/origin; }}\n\
         {passing}}}\n"
    )
}

fn passing_server_block(cloud: &SocketAddr) -> String {
    format!(
        "upstream cloud {{ server {cloud}; keepalive 32; keepalive_requests 1000000000; }}\n\
         server {{\n\
           listen 127.0.0.1:{PASSING} ssl http2;\n\
           location / {{\n\
             proxy_pass https://cloud;\n\
             proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\";\n\
             proxy_buffering off;\n\
           }}\n\
         }}\n"
    )
}
