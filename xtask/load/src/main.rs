//! `hublet-load`: sends one request many times to one server and measures latency. It prints a JSON line when it is ready
//! and one with the result; between the two it waits for a line on its standard input, so that the caller can read the
//! server's CPU time around the sample.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    reason = "the lines on standard output are the interface"
)]

mod connection;
mod h1;
mod h2;
mod hold;
mod hpack;
mod message;
mod sample;
mod target;

use std::io::{BufRead, stdin};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use message::Request;
use target::Target;

/// A blocking TLS client for measurements: TLS 1.3, X25519, no resumption, TCP_NODELAY.
#[derive(Debug, Parser)]
struct Arguments {
    /// The measurement.
    #[arg(value_enum)]
    mode: Mode,
    /// Address of the server.
    #[arg(long, value_name = "IP:PORT")]
    connect: std::net::SocketAddr,
    /// Name that the certificate must carry.
    #[arg(long, default_value = "kubernetes.default.svc")]
    name: String,
    /// PEM file of the CA that signed the certificate.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// File with a bearer token.
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// Path and query; several are asked in turn on each connection.
    #[arg(long, value_name = "PATH", required_unless_present = "objects")]
    path: Vec<String>,
    /// Protocol.
    #[arg(long, value_enum, default_value_t = Protocol::H1)]
    protocol: Protocol,
    /// Connections that are kept open, one thread each.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Requests in all (`hold`: streams on each connection).
    #[arg(long, default_value_t = 1)]
    requests: usize,
    /// `post`: file with a collection's path, a tab and a JSON object on each line.
    #[arg(long, value_name = "FILE")]
    objects: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Each request on a new TCP and TLS connection.
    Fresh,
    /// All requests on kept connections.
    Kept,
    /// Tries until the first response, from the moment that the line on standard input comes.
    First,
    /// Opens watches and holds them until the standard input ends.
    Hold,
    /// Posts the objects of a file (to fill a cloud).
    Post,
    /// Prints the body of one response and nothing else.
    Body,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// HTTP/1.1 with keep-alive.
    H1,
    /// HTTP/2.
    H2,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let h2 = arguments.protocol == Protocol::H2;
    let target = Target::new(arguments.connect, &arguments.name, &arguments.ca, h2)?;
    let token = arguments
        .token
        .as_deref()
        .map(target::read_token)
        .transpose()?;
    let templates: Vec<Request> = arguments
        .path
        .iter()
        .map(|path| Request::get(path, token.as_deref()))
        .collect();
    let first = templates.first();
    let request = || first.context("--path is missing");
    let result = match arguments.mode {
        Mode::Post => {
            let objects = arguments
                .objects
                .as_deref()
                .context("`post` needs --objects")?;
            sample::post_objects(&target, token.as_deref(), objects)?
        }
        Mode::Body => return sample::print_body(&target, request()?),
        Mode::Fresh => sample::sample_fresh(&target, &templates, arguments.requests)?,
        Mode::Kept => sample::sample_kept(
            &target,
            &templates,
            arguments.connections,
            arguments.requests,
        )?,
        Mode::First => sample::sample_first(&target, request()?)?,
        Mode::Hold => hold::hold_watches(
            &target,
            request()?,
            arguments.connections,
            arguments.requests,
        )?,
    };
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}

/// Says that all is set up, and waits for the caller to say go; false when the caller is gone.
fn wait_for_go(response: &message::Response) -> Result<bool> {
    println!("{}", serde_json::to_string(response)?);
    let mut line = String::new();
    Ok(stdin()
        .lock()
        .read_line(&mut line)
        .context("standard input")?
        > 0)
}
