//! The control plane's programs: from `KUBEBUILDER_ASSETS` (envtest's convention), or our own build of `tests/kube` with Go,
//! kept in the workspace's target directory. Ours includes the kubelet and a program that runs in pods.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

/// Small, and with the version that the modules leave out of themselves (`kubectl version`, `/version`).
const LINK_FLAGS: &str = "-ldflags=-s -w -X k8s.io/component-base/version.gitVersion=v1.34.4";

/// The programs in `tests/kube`.
const PROGRAMS: [&str; 2] = ["kube", "pod"];

/// The programs of one control plane.
#[derive(Debug, Clone)]
pub enum Binaries {
    /// The folder of our `kube` with its verbs `etcd`, `apiserver`, `kcm`, `kubelet`, and of `pod`.
    Built(PathBuf),
    /// A folder with `kube-apiserver`, `etcd`, and perhaps `kube-controller-manager`.
    Assets(PathBuf),
}

/// The reason for which this machine has no control plane, and how to get one.
#[derive(Debug, Clone)]
pub struct Unavailable(String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Binaries {
    /// Finds the programs, building them when needed (five minutes the first time, nothing later).
    ///
    /// # Errors
    /// The build failed, or `KUBEBUILDER_ASSETS` names a folder without the programs. A machine without both Go
    /// and that variable is not an error but `Unavailable`.
    pub fn find() -> Result<Result<Self, Unavailable>> {
        if let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS") {
            let folder = PathBuf::from(folder);
            for program in ["kube-apiserver", "etcd"] {
                if !folder.join(program).is_file() {
                    bail!(
                        "KUBEBUILDER_ASSETS={}: there is no {program} in it",
                        folder.display()
                    );
                }
            }
            return Ok(Ok(Self::Assets(folder)));
        }
        let go = Command::new("go")
            .arg("version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !go.is_ok_and(|status| status.success()) {
            return Ok(Err(Unavailable(
                "the real kube-apiserver is built with Go: install Go 1.24 or newer (https://go.dev/dl/), or set \
                 KUBEBUILDER_ASSETS to a folder with kube-apiserver and etcd (`setup-envtest use -p path`)"
                    .into(),
            )));
        }
        build_programs().map(|program| Ok(Self::Built(program)))
    }

    /// etcd with its data in `dir`, serving clients at `url`.
    pub fn etcd_command(&self, dir: &Path, url: &str) -> Command {
        match self {
            Self::Built(folder) => {
                let mut command = verb_command(folder, "etcd");
                command.arg(dir).arg(url);
                command
            }
            Self::Assets(folder) => {
                let mut command = Command::new(folder.join("etcd"));
                command
                    .arg("--data-dir")
                    .arg(dir)
                    .args(["--unsafe-no-fsync", "--log-level=warn"]);
                command
                    .arg(format!("--listen-client-urls={url}"))
                    .arg(format!("--advertise-client-urls={url}"));
                command.arg("--listen-peer-urls=http://127.0.0.1:0");
                command
            }
        }
    }

    pub fn apiserver_command(&self) -> Command {
        match self {
            Self::Built(folder) => verb_command(folder, "apiserver"),
            Self::Assets(folder) => Command::new(folder.join("kube-apiserver")),
        }
    }

    /// kube-controller-manager, without flags, if there is one.
    pub fn controller_manager_command(&self) -> Option<Command> {
        match self {
            Self::Built(folder) => Some(verb_command(folder, "kcm")),
            Self::Assets(folder) => {
                let program = folder.join("kube-controller-manager");
                program.is_file().then(|| Command::new(program))
            }
        }
    }

    /// The folder with our `kube` (for the kubelet) and `pod` (for its pods); envtest's has neither.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Built(folder) => Some(folder),
            Self::Assets(_) => None,
        }
    }
}

fn verb_command(folder: &Path, verb: &str) -> Command {
    let mut command = Command::new(folder.join("kube"));
    command.arg(verb);
    command
}

/// Builds `tests/kube` into `TARGET/kube/`. Several test processes may call it at once: one builds.
fn build_programs() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kube");
    let folder = target_directory().join("kube");
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let lock = std::fs::File::create(folder.join(".lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("locking the build of the real kube-apiserver")?;
    if !PROGRAMS
        .iter()
        .all(|program| is_newer(&folder.join(program), &source))
    {
        run_go(&source, &folder)?;
    }
    Ok(folder)
}

/// Whether the program is newer than each of its sources: running Go to find out would cost seconds.
fn is_newer(program: &Path, source: &Path) -> bool {
    let Some(built) = modification_time(program) else {
        return false;
    };
    // This file too: the flags are in it.
    let flags = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kube/binaries.rs");
    let mut sources = [source.to_path_buf(), source.join("pod")]
        .into_iter()
        .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .chain([flags]);
    sources.all(|path| modification_time(&path).is_some_and(|changed| changed < built))
}

fn modification_time(path: &Path) -> Option<std::time::SystemTime> {
    path.metadata()
        .and_then(|metadata| metadata.modified())
        .ok()
}

/// `-v` prints a line for each module fetched and each package compiled.
fn go_command(source: &Path, folder: &Path) -> Command {
    let mut command = Command::new("go");
    command
        .args(["build", "-v", "-trimpath", "-buildvcs=false", LINK_FLAGS])
        .arg("-o")
        .arg(folder)
        .args([".", "./pod"])
        // Static: `pod` is alone in its image.
        .env("CGO_ENABLED", "0")
        .current_dir(source)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn run_go(source: &Path, folder: &Path) -> Result<()> {
    let started = Instant::now();
    print_progress(format_args!(
        "building the real kube-apiserver (tests/kube): about 5 minutes the first time"
    ));
    let mut child = go_command(source, folder).spawn().context("running go")?;
    let mut last = Vec::new();
    let (mut lines, mut printed_at) = (0_u32, Instant::now());
    for line in BufReader::new(child.stderr.take().expect("stderr is piped")).lines() {
        let line = line?;
        lines += 1;
        if printed_at.elapsed() > Duration::from_secs(10) {
            printed_at = Instant::now();
            print_progress(format_args!(
                "  {:>4} s, {lines} steps: {line}",
                started.elapsed().as_secs()
            ));
        }
        last.push(line);
        if last.len() > 20 {
            last.remove(0);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!(
            "go build in {} failed ({status}): is the Go module proxy reachable?\n{}",
            source.display(),
            last.join("\n")
        );
    }
    print_progress(format_args!("built in {} s", started.elapsed().as_secs()));
    // Go leaves an unchanged output's time alone; what we compare with is when it was last known to be right.
    for program in PROGRAMS {
        let built = std::fs::File::options()
            .append(true)
            .open(folder.join(program))?;
        built.set_modified(std::time::SystemTime::now())?;
    }
    Ok(())
}

/// The test harness captures `eprintln!`; a long build must be seen while it runs.
fn print_progress(line: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// The target directory that the running program was built into: the parent of its profile's folder.
fn target_directory() -> PathBuf {
    let built = std::env::current_exe().ok().and_then(|program| {
        let profile = program
            .ancestors()
            .find(|folder| folder.ends_with("debug") || folder.ends_with("release"))?;
        profile.parent().map(Path::to_owned)
    });
    built.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"))
}
