//! The cost of steering: the eBPF programs' own time (the kernel's `bpf_stats`), and a new connection that is steered
//! beside one that dials hublet directly.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::nginx;
use super::phases::Bench;
use super::plan::{self, Test};
use super::report::Report;
use super::server::{Load, Server};
use crate::child::Child;
use crate::step;

/// Default of `--steer`.
const SERVICE: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)),
    443,
);
const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The programs whose time is reported, and the names of their metrics by destination.
const PROGRAMS: [&str; 3] = ["hub_connect4", "hub_sockops", "hub_lookup"];
const STEERED_METRICS: [&str; 3] = [
    "connect4 ns, steered",
    "sock_ops ns a call, steered",
    "sk_lookup ns a call, steered",
];
const DIRECT_METRICS: [&str; 3] = [
    "connect4 ns, direct",
    "sock_ops ns a call, direct",
    "sk_lookup ns a call, direct",
];
const ELSEWHERE_METRICS: [&str; 3] = [
    "connect4 ns, elsewhere",
    "sock_ops ns a call, elsewhere",
    "sk_lookup ns a call, elsewhere",
];

fn fresh_load(requests: usize) -> Load {
    Load {
        mode: "fresh",
        path: super::objects::SMALL.to_owned(),
        h2: false,
        connections: 1,
        requests,
        forwarded: false,
    }
}

/// Nanoseconds and runs of each program so far.
type ProgramTimes = BTreeMap<String, (u64, u64)>;

/// Nanoseconds and runs of a program between two readings.
fn spent_between(before: &ProgramTimes, after: &ProgramTimes, program: &str) -> (f64, f64) {
    let (old_time, old_runs) = before.get(program).copied().unwrap_or_default();
    let (new_time, new_runs) = after.get(program).copied().unwrap_or_default();
    ((new_time - old_time) as f64, (new_runs - old_runs) as f64)
}

/// A program in `bpftool prog show -j`.
#[derive(Debug, Deserialize)]
struct Program {
    #[serde(default)]
    name: String,
    #[serde(default)]
    run_time_ns: u64,
    #[serde(default)]
    run_cnt: u64,
}

/// The kernel counts while this lives.
struct BpfStats {
    before: String,
}

impl BpfStats {
    fn enable() -> Result<Self> {
        let before = std::fs::read_to_string(SWITCH).context("bpf_stats need root")?;
        std::fs::write(SWITCH, "1")?;
        Ok(Self { before })
    }
}

impl Drop for BpfStats {
    fn drop(&mut self) {
        let _as_it_was = std::fs::write(SWITCH, self.before.trim());
    }
}

impl Bench<'_> {
    /// Steered and direct fresh calls, interleaved; then the programs' time for each, and for calls to somebody else.
    pub(super) fn measure_connects(
        &self,
        report: &mut Report,
        beside: &Child,
        hublet: &Server,
        ca: &Path,
    ) -> Result<()> {
        if !self.extent().includes(plan::CONNECT) || self.cgroup().is_none() {
            return Ok(());
        }
        let requests = if self.extent().quick { 250 } else { 1_000 };
        let steered = hublet.dialled_by(hublet.name, SERVICE);
        let direct = hublet.dialled_by("direct", hublet.address);
        let elsewhere = nginx::caching_server(beside, ca);
        let test = Test {
            name: plan::CONNECT.to_owned(),
            load: fresh_load(requests),
        };
        for round in 0..self.extent().rounds {
            step::announce(format_args!(
                "steered and direct calls, round {} of {}",
                round + 1,
                self.extent().rounds
            ));
            self.sample_each(report, round, &test, &[steered.clone(), direct.clone()])?;
            let _counting = BpfStats::enable()?;
            for (server, metrics) in [
                (&steered, STEERED_METRICS),
                (&direct, DIRECT_METRICS),
                (&elsewhere, ELSEWHERE_METRICS),
            ] {
                self.measure_programs(report, server, &test.load, metrics)?;
            }
        }
        Ok(())
    }

    /// Adds the programs' own time for calls to a server, under the metrics for [`PROGRAMS`].
    fn measure_programs(
        &self,
        report: &mut Report,
        server: &Server,
        load: &Load,
        metrics: [&'static str; 3],
    ) -> Result<()> {
        let before = self.program_times()?;
        server.take_sample(self.generator(), load)?;
        let after = self.program_times()?;
        // hublet's self-probe connects meanwhile, too: so calls are counted by connect4 itself.
        let (_, calls) = spent_between(&before, &after, "hub_connect4");
        for (program, metric) in PROGRAMS.into_iter().zip(metrics) {
            let (time, _) = spent_between(&before, &after, program);
            report.add_value(PROGRAMS_TEST, "hublet", metric, time / calls.max(1.0));
        }
        Ok(())
    }

    fn program_times(&self) -> Result<ProgramTimes> {
        let text = step::read_output(
            self.project()
                .command("bpftool")
                .args(["prog", "show", "-j"]),
        )?;
        let programs: Vec<Program> = serde_json::from_str(&text).context("bpftool's answer")?;
        let mut sums = BTreeMap::new();
        for program in programs
            .into_iter()
            .filter(|program| program.name.starts_with("hub_"))
        {
            let sum: &mut (u64, u64) = sums.entry(program.name).or_default();
            *sum = (sum.0 + program.run_time_ns, sum.1 + program.run_cnt);
        }
        Ok(sums)
    }
}

/// Name of the programs' figures in the report.
const PROGRAMS_TEST: &str = "programs";
