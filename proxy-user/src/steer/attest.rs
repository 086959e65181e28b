//! Who called, in full. In: what the programs left on an accepted socket. Out: a [`Process`], with what user space can
//! add while the caller is still there: the cgroup's path, the pod and the container in it, the executable.

use std::collections::VecDeque;
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hublet_ebpf::{IDENT_STEERED, Ident};
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use parking_lot::Mutex;

use crate::authz::caller::Process;
use crate::ebpf::maps::ip;
use crate::node::cgroup::{Cgroups, container_of, pod_of};

/// Processes whose /proc directory is held open: the same few call again and again.
const MAX_HELD: usize = 64;

/// A look at a process holds this long: its pid can't come round again in less, nor does it matter that it called exec.
const HOLDS: Duration = Duration::from_millis(100);

/// The processes that called last.
#[derive(Debug, Default)]
pub(super) struct Processes(Mutex<VecDeque<Held>>);

#[derive(Debug)]
struct Held {
    pid: u32,
    /// Its /proc directory: of this very process, however often its pid is used again.
    dir: OwnedFd,
    executable: String,
    looked: Instant,
}

impl Processes {
    /// Adds to a record what can be found out at accept.
    pub(super) fn describe(&self, ident: &Ident, cgroups: &Cgroups) -> Process {
        let name = ident
            .comm
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        let cgroup = cgroups.path(ident.cgroup_id, ident.pid);
        let (pod_uid, container_id) = cgroup.as_deref().map(pod_and_container).unwrap_or_default();
        Process {
            pid: ident.pid,
            uid: ident.uid,
            gid: ident.gid,
            cgroup_id: ident.cgroup_id,
            cgroup,
            pod_uid,
            container_id,
            netns: ident.netns,
            command: String::from_utf8_lossy(name).into_owned(),
            executable: self.executable(ident),
            original: Some(SocketAddr::new(ip(ident.orig_ip), ident.orig_port)),
            steered: ident.flags & IDENT_STEERED != 0,
        }
    }

    /// The executable of the process that called.
    fn executable(&self, ident: &Ident) -> Option<String> {
        let mut held = self.0.lock();
        let known = held.iter().position(|held| held.pid == ident.pid);
        if let Some(known) = known
            .map(|at| &held[at])
            .filter(|known| known.looked.elapsed() < HOLDS)
        {
            return Some(known.executable.clone());
        }
        let known = known.and_then(|at| held.remove(at));
        let looked = known.and_then(Held::again).or_else(|| Held::of(ident))?;
        let executable = looked.executable.clone();
        held.push_front(looked);
        held.truncate(MAX_HELD);
        Some(executable)
    }
}

impl Held {
    /// `None`: there is no such process, or it is another one, that started after the call.
    fn of(ident: &Ident) -> Option<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = open(
            format!("/proc/{}", ident.pid).as_str(),
            flags,
            Mode::empty(),
        )
        .ok()?;
        let executable = link(&dir)?;
        let called = since_boot(ident.connect_ns)?;
        (started(&dir)? <= called).then(|| Self {
            pid: ident.pid,
            dir,
            executable,
            looked: Instant::now(),
        })
    }

    /// `None`: it has ended.
    fn again(self) -> Option<Self> {
        let executable = link(&self.dir)?;
        Some(Self {
            executable,
            looked: Instant::now(),
            ..self
        })
    }
}

fn link(dir: &OwnedFd) -> Option<String> {
    readlinkat(dir, "exe")
        .ok()
        .map(|path| path.to_string_lossy().into_owned())
}

/// When a process started, in clock ticks since the boot (proc_pid_stat(5), field 22).
fn started(dir: &OwnedFd) -> Option<u64> {
    let stat = openat(dir, "stat", OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let mut text = String::new();
    fs::File::from(stat).read_to_string(&mut text).ok()?;
    start_in(&text)
}

/// The name in brackets may hold blanks and brackets.
fn start_in(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// A time of CLOCK_MONOTONIC as clock ticks since the boot, rounded up.
fn since_boot(monotonic_ns: u64) -> Option<u64> {
    let now = |clock| clock_gettime(clock).map(Duration::from);
    let asleep = now(ClockId::CLOCK_BOOTTIME)
        .ok()?
        .saturating_sub(now(ClockId::CLOCK_MONOTONIC).ok()?);
    let ticks = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    let ns = (Duration::from_nanos(monotonic_ns) + asleep).as_nanos();
    u64::try_from(ns * u128::from(ticks) / 1_000_000_000)
        .ok()
        .map(|ticks| ticks + 1)
}

/// `/kubepods/burstable/podUID/CONTAINER` and systemd's form of it.
fn pod_and_container(cgroup: &str) -> (Option<String>, Option<String>) {
    let mut components = cgroup.split('/');
    let pod = components.by_ref().find_map(pod_of);
    let container = pod.as_ref().and_then(|_| components.find_map(container_of));
    (pod, container)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "0a1b2c3d-0000-4000-8000-0123456789ab";
    const CONTAINER: &str = "5d41402abc4b2a76b9719d911017c5925d41402abc4b2a76b9719d911017c592";

    #[test]
    fn pods_and_containers_are_found_in_cgroup_paths() {
        let systemd = POD.replace('-', "_");
        for path in [
            format!("/kubepods/burstable/pod{POD}/{CONTAINER}"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/cri-containerd-{CONTAINER}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{systemd}.slice/crio-{CONTAINER}.scope/container"),
            format!("/kubelet/kubepods/pod{POD}/{CONTAINER}"),
        ] {
            assert_eq!(
                pod_and_container(&path),
                (Some(POD.into()), Some(CONTAINER.into())),
                "{path}"
            );
        }
        assert_eq!(
            pod_and_container(&format!("/kubepods/pod{POD}")),
            (Some(POD.into()), None)
        );
        for path in [
            "/",
            "/system.slice/podman.service",
            "/user.slice/pod-of-whales",
            &format!("/docker/{CONTAINER}"),
        ] {
            assert_eq!(pod_and_container(path), (None, None), "{path}");
        }
    }

    #[test]
    fn start_times_are_read_past_strange_names() {
        let fields = "S 1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 1 0 4711 1 1";
        assert_eq!(start_in(&format!("12 (a) b) (c) {fields}")), Some(4711));
        assert_eq!(start_in("12 (a"), None);
    }

    #[test]
    fn a_process_that_started_after_the_call_is_another_one() {
        let pid = std::process::id();
        let processes = Processes::default();
        let early = Ident {
            pid,
            connect_ns: 1,
            ..Ident::default()
        };
        assert_eq!(
            processes.executable(&early),
            None,
            "nobody was here at the boot"
        );
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map(Duration::from)
            .expect("clock");
        let call = Ident {
            connect_ns: u64::try_from(now.as_nanos()).expect("small"),
            ..early
        };
        let own = std::env::current_exe().expect("exe").display().to_string();
        assert_eq!(processes.executable(&call).as_deref(), Some(own.as_str()));
        assert_eq!(
            processes.executable(&call).as_deref(),
            Some(own.as_str()),
            "again, as it was seen"
        );
        processes.0.lock()[0].looked -= HOLDS;
        assert_eq!(
            processes.executable(&call).as_deref(),
            Some(own.as_str()),
            "again, by the descriptor"
        );
        assert_eq!(processes.0.lock().len(), 1);
    }
}
