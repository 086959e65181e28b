//! CPU time and memory of a server, summed over its threads and its children (nginx's workers).

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// A server's process and its descendants.
#[derive(Debug, Clone)]
pub(super) struct ProcessTree(Vec<u32>);

impl ProcessTree {
    /// The process and whatever descends from it now.
    pub(super) fn of(pid: u32) -> Self {
        let mut all = vec![pid];
        let mut at = 0;
        while let Some(parent) = all.get(at).copied() {
            all.extend(child_pids(parent));
            at += 1;
        }
        Self(all)
    }

    /// Time on a CPU, in nanoseconds, of all threads that live now.
    pub(super) fn cpu_nanoseconds(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in &self.0 {
            for task in task_dirs(*pid) {
                // A thread that ended since it was listed costs what it cost before: too little to matter.
                let Ok(line) = fs::read_to_string(task.join("schedstat")) else {
                    continue;
                };
                let first = line
                    .split(' ')
                    .next()
                    .and_then(|ns| ns.trim().parse::<u64>().ok());
                sum += first.context("schedstat has no first number: is CONFIG_SCHED_INFO off?")?;
            }
        }
        Ok(sum)
    }

    /// `VmRSS` or `VmHWM`, in MiB, summed.
    pub(super) fn memory_mib(&self, what: &str) -> Result<f64> {
        let mut sum = 0;
        for pid in &self.0 {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))
                .with_context(|| format!("process {pid} has ended"))?;
            sum += parse_kib(&status, what)
                .with_context(|| format!("/proc/{pid}/status has no {what}"))?;
        }
        Ok(sum as f64 / 1024.0)
    }

    /// Proportional memory in MiB: shared pages count once over all who share them.
    pub(super) fn proportional_mib(&self) -> Result<f64> {
        let mut sum = 0;
        for pid in &self.0 {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            sum += parse_kib(&rollup, "Pss").context("smaps_rollup has no Pss")?;
        }
        Ok(sum as f64 / 1024.0)
    }

    /// Lets the peak (`VmHWM`) begin anew at what is resident now.
    pub(super) fn reset_peak(&self) -> Result<()> {
        for pid in &self.0 {
            fs::write(format!("/proc/{pid}/clear_refs"), "5").context("cannot reset VmHWM")?;
        }
        Ok(())
    }
}

fn task_dirs(pid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    entries.flatten().map(|entry| entry.path()).collect()
}

fn child_pids(pid: u32) -> Vec<u32> {
    task_dirs(pid)
        .iter()
        .filter_map(|task| fs::read_to_string(task.join("children")).ok())
        .flat_map(|line| {
            line.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

fn parse_kib(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_not_taken_for_a_longer_one() {
        let status = "VmHWM:\t   12345 kB\nRssAnon:\t 7 kB\nVmRSS:\t   10240 kB\nPss_Dirty:  1 kB\nPss:   2 kB\n";
        assert_eq!(parse_kib(status, "VmRSS"), Some(10240));
        assert_eq!(parse_kib(status, "VmHWM"), Some(12345));
        assert_eq!(parse_kib(status, "Pss"), Some(2));
        assert_eq!(parse_kib(status, "Rss"), None);
    }

    #[test]
    fn our_own_cpu_time_grows_with_work() {
        let us = ProcessTree::of(std::process::id());
        let before = us.cpu_nanoseconds().unwrap();
        let mut sum = 0_u64;
        while us.cpu_nanoseconds().unwrap() < before + 1_000_000 {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(us.memory_mib("VmRSS").unwrap() > 0.1);
    }
}
