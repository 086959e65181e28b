//! A server under comparison, and samples of it: CPU per request in the server, latency at the load generator.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::process::ProcessTree;

/// A server under measurement.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    ca: PathBuf,
    pid: u32,
}

/// A job of the load generator.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) mode: &'static str,
    pub(super) path: String,
    pub(super) h2: bool,
    pub(super) connections: usize,
    pub(super) requests: usize,
    /// The answers must come from the cloud: hublet takes what it has from its store when the cloud is slow.
    pub(super) forwarded: bool,
}

/// The generator and the credential it shows.
#[derive(Debug, Clone)]
pub(super) struct Generator {
    pub(super) binary: PathBuf,
    pub(super) token: PathBuf,
}

/// The generator's first line: connected and warm.
#[derive(Debug, Deserialize)]
struct Ready {}

/// The generator's last line.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct LoadResult {
    pub(super) requests: usize,
    pub(super) seconds: f64,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) first_byte: f64,
    /// Answers from hublet's store.
    stored: usize,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) seen: LoadResult,
    /// Microseconds on a CPU for each request, in the server.
    pub(super) cpu: f64,
}

impl Server {
    /// The same server, dialled at another address.
    pub(super) fn dialled_by(&self, name: &'static str, address: SocketAddr) -> Self {
        Self {
            name,
            address,
            ..self.clone()
        }
    }

    pub(super) fn new(name: &'static str, address: SocketAddr, ca: &Path, pid: u32) -> Self {
        Self {
            name,
            address,
            ca: ca.to_path_buf(),
            pid,
        }
    }

    /// Its current processes.
    pub(super) fn process_tree(&self) -> ProcessTree {
        ProcessTree::of(self.pid)
    }

    /// Takes a sample: warmed up and connected before the CPU time is read first.
    pub(super) fn take_sample(&self, generator: &Generator, load: &Load) -> Result<Sample> {
        let mut running = Running::start(generator, self, load)?;
        let family = self.process_tree();
        let before = family.cpu_nanoseconds()?;
        running.release()?;
        let seen = running.read_result()?;
        let spent = family.cpu_nanoseconds()?.saturating_sub(before);
        if load.forwarded && seen.stored > 0 {
            bail!(
                "{} of {} answers came from the store: the cloud was too slow",
                seen.stored,
                seen.requests
            );
        }
        Ok(Sample {
            seen,
            cpu: spent as f64 / 1e3 / seen.requests.max(1) as f64,
        })
    }

    /// The body of one answer.
    pub(super) fn fetch_body(&self, generator: &Generator, path: &str) -> Result<Vec<u8>> {
        let load = Load {
            mode: "body",
            path: path.to_owned(),
            h2: false,
            connections: 1,
            requests: 1,
            forwarded: false,
        };
        let output = generator
            .command(self, &load)
            .output()
            .context("cannot start hublet-load")?;
        if !output.status.success() {
            bail!(
                "{} {path}: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(output.stdout)
    }
}

impl Generator {
    fn command(&self, server: &Server, load: &Load) -> Command {
        let mut command = Command::new("taskset");
        command.args(["-c", "1"]).arg(&self.binary).arg(load.mode);
        command
            .arg("--connect")
            .arg(server.address.to_string())
            .arg("--ca")
            .arg(&server.ca);
        command
            .arg("--token")
            .arg(&self.token)
            .arg("--path")
            .arg(&load.path);
        command
            .arg("--protocol")
            .arg(if load.h2 { "h2" } else { "h1" });
        command
            .arg("--connections")
            .arg(load.connections.to_string());
        command.arg("--requests").arg(load.requests.to_string());
        command
    }

    /// Fills a cloud with the objects of a file.
    pub(super) fn post_objects(&self, server: &Server, objects: &Path) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command
            .arg("post")
            .arg("--connect")
            .arg(server.address.to_string())
            .arg("--ca")
            .arg(&server.ca);
        command
            .arg("--token")
            .arg(&self.token)
            .arg("--objects")
            .arg(objects);
        let output = command.output().context("cannot start hublet-load")?;
        if !output.status.success() {
            bail!(
                "filling {}: {}",
                server.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }
}

/// A generator between its two lines; ended when dropped.
#[derive(Debug)]
pub(super) struct Running {
    process: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    /// Starts it and waits until it is connected and warm.
    pub(super) fn start(generator: &Generator, server: &Server, load: &Load) -> Result<Self> {
        let mut command = generator.command(server, load);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command
            .spawn()
            .context("cannot start taskset hublet-load")?;
        let stdin = process.stdin.take();
        let stdout = BufReader::new(process.stdout.take().context("no standard output")?);
        let mut running = Self {
            process,
            stdin,
            stdout,
        };
        let Ready {} = running
            .line()
            .with_context(|| format!("{} {} {}", server.name, load.mode, load.path))?;
        Ok(running)
    }

    /// Lets it begin.
    pub(super) fn release(&mut self) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .context("the generator was already let go")?;
        stdin.write_all(b"\n").context("the generator has ended")
    }

    /// Waits for its result.
    pub(super) fn read_result(mut self) -> Result<LoadResult> {
        let seen = self.line()?;
        self.process.wait()?;
        Ok(seen)
    }

    fn line<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.is_empty() {
            let mut error = String::new();
            if let Some(mut stderr) = self.process.stderr.take() {
                stderr.read_to_string(&mut error)?;
            }
            bail!("the generator failed: {}", error.trim());
        }
        serde_json::from_str(&line).with_context(|| format!("the generator said {line:?}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stdin = None;
        // Fails when it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
