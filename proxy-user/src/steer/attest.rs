//! The caller of an accepted connection: the kernel's record, completed with the cgroup's path, the pod and container in it,
//! and the executable.

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

use crate::caller::Process;
use crate::ebpf::maps::from_map;
use crate::node::cgroup::{Cgroups, container_id_in, pod_uid_in};

/// Processes whose /proc directory is held open: most connections come from the same few.
const MAX_PROCESSES: usize = 64;

/// Time for which a cached executable path is trusted: too short for the pid to be reused.
const EXECUTABLE_TTL: Duration = Duration::from_millis(100);

/// The most recent callers.
#[derive(Debug, Default)]
pub(super) struct ProcessCache(Mutex<VecDeque<CachedProcess>>);

#[derive(Debug)]
struct CachedProcess {
    pid: u32,
    /// Its /proc directory, which stands for this process even if the pid is reused.
    directory: OwnedFd,
    executable: String,
    checked: Instant,
}

impl ProcessCache {
    /// Completes the kernel's record with what is known of the caller at accept.
    pub(super) fn describe(&self, ident: &Ident, cgroups: &Cgroups) -> Process {
        let cgroup = cgroups.path_of(ident.cgroup_id, ident.pid);
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
            command: command_of(ident),
            executable: self.executable(ident),
            original: Some(SocketAddr::new(from_map(ident.orig_ip), ident.orig_port)),
            steered: ident.flags & IDENT_STEERED != 0,
        }
    }

    fn executable(&self, ident: &Ident) -> Option<String> {
        let mut cache = self.0.lock();
        let at = cache.iter().position(|process| process.pid == ident.pid);
        if let Some(process) = at.map(|at| &cache[at])
            && process.is_fresh()
        {
            return Some(process.executable.clone());
        }
        let cached = at.and_then(|at| cache.remove(at));
        let process = cached
            .and_then(CachedProcess::recheck)
            .or_else(|| CachedProcess::open(ident))?;
        let executable = process.executable.clone();
        cache.push_front(process);
        cache.truncate(MAX_PROCESSES);
        Some(executable)
    }
}

fn command_of(ident: &Ident) -> String {
    let name = ident.comm.split(|byte| *byte == 0).next();
    String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
}

impl CachedProcess {
    /// `None` if the caller has ended; a process with its pid that started after the call is another one.
    fn open(ident: &Ident) -> Option<Self> {
        let path = format!("/proc/{}", ident.pid);
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(path.as_str(), flags, Mode::empty()).ok()?;
        let executable = read_executable(&directory)?;
        let called = ticks_since_boot(ident.connect_ns)?;
        (read_start_time(&directory)? <= called).then(|| Self {
            pid: ident.pid,
            directory,
            executable,
            checked: Instant::now(),
        })
    }

    fn is_fresh(&self) -> bool {
        self.checked.elapsed() < EXECUTABLE_TTL
    }

    /// `None` if the process has ended.
    fn recheck(self) -> Option<Self> {
        let executable = read_executable(&self.directory)?;
        Some(Self {
            executable,
            checked: Instant::now(),
            ..self
        })
    }
}

fn read_executable(directory: &OwnedFd) -> Option<String> {
    readlinkat(directory, "exe")
        .ok()
        .map(|path| path.to_string_lossy().into_owned())
}

/// Start time of a process in clock ticks since the boot (proc_pid_stat(5), field 22).
fn read_start_time(directory: &OwnedFd) -> Option<u64> {
    let stat = openat(directory, "stat", OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let mut text = String::new();
    fs::File::from(stat).read_to_string(&mut text).ok()?;
    parse_start_time(&text)
}

/// The name in parentheses may contain blanks and parentheses.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// A time of CLOCK_MONOTONIC in clock ticks since the boot, rounded up.
fn ticks_since_boot(monotonic_ns: u64) -> Option<u64> {
    let ticks_per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    let since_boot = Duration::from_nanos(monotonic_ns) + time_asleep()?;
    let ticks = since_boot.as_nanos() * u128::from(ticks_per_second) / 1_000_000_000;
    u64::try_from(ticks).ok().map(|ticks| ticks + 1)
}

/// The time since the boot that CLOCK_MONOTONIC doesn't count.
fn time_asleep() -> Option<Duration> {
    let since_boot = clock_now(ClockId::CLOCK_BOOTTIME)?;
    Some(since_boot.saturating_sub(clock_now(ClockId::CLOCK_MONOTONIC)?))
}

fn clock_now(clock: ClockId) -> Option<Duration> {
    clock_gettime(clock).map(Duration::from).ok()
}

/// From `/kubepods/burstable/podUID/CONTAINER`, or the same in systemd's form.
fn pod_and_container(cgroup: &str) -> (Option<String>, Option<String>) {
    let mut components = cgroup.split('/');
    let pod = components.by_ref().find_map(pod_uid_in);
    let container = pod
        .as_ref()
        .and_then(|_| components.find_map(container_id_in));
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
        assert_eq!(
            parse_start_time(&format!("12 (a) b) (c) {fields}")),
            Some(4711)
        );
        assert_eq!(parse_start_time("12 (a"), None);
    }

    #[test]
    fn a_process_that_started_after_the_call_is_another_one() {
        let pid = std::process::id();
        let processes = ProcessCache::default();
        let early = Ident {
            pid,
            connect_ns: 1,
            ..Ident::default()
        };
        assert_eq!(
            processes.executable(&early),
            None,
            "it started after this call"
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
            "cached"
        );
        processes.0.lock()[0].checked -= EXECUTABLE_TTL;
        assert_eq!(
            processes.executable(&call).as_deref(),
            Some(own.as_str()),
            "rechecked by the descriptor"
        );
        assert_eq!(processes.0.lock().len(), 1);
    }
}
