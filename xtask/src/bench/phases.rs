//! The phases of the bench: fill a cloud, warm the store through hublet, measure while the cloud answers, cut it, measure
//! answers from the store.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::daemon::{self, Daemon};
use super::place::Sandbox;
use super::plan::{self, CPU, FIRST_BYTE, P50, P99, PEAK, RSS, TOTAL, Test};
use super::report::Report;
use super::server::{Generator, Load, Running, Server};
use super::{Extent, nginx, objects};
use crate::build::BenchPrograms;
use crate::child::{Child, Pause};
use crate::interrupt::Interrupt;
use crate::project::Project;
use crate::run::{Cloud, CloudKind};
use crate::step;

/// After a start, and after work, before memory is read as idle.
const SETTLE: Duration = Duration::from_secs(3);
/// Timeout of warming the store.
const WARM: Duration = Duration::from_secs(60);
/// Lists in one sample, one after the other.
const LISTS: usize = 4;
/// Lists at once.
const AT_ONCE: usize = 8;
/// Watches, and how they are spread over connections: (connections, streams on each, HTTP/2).
const WATCHES: [(usize, usize, bool); 2] = [(1_000, 1, false), (20, 50, true)];
/// The collection that is watched, from the version of its list on.
const WATCHED: &str = "/api/v1/namespaces/bench/configmaps";

/// A watch that resumes at the version of this list, so that it stays open.
fn watch_path(list: &[u8]) -> Result<String> {
    let list: serde_json::Value = serde_json::from_slice(list).context("the watched list")?;
    let version = list["metadata"]["resourceVersion"]
        .as_str()
        .context("a list without a resourceVersion")?;
    Ok(format!(
        "{WATCHED}?watch=true&resourceVersion={version}&timeoutSeconds=3000"
    ))
}

/// A bench in its place.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    project: &'a Project,
    built: &'a BenchPrograms,
    extent: &'a Extent,
    interrupt: &'a Interrupt,
    dir: PathBuf,
    cgroup: Option<PathBuf>,
    generator: Generator,
}

impl<'a> Bench<'a> {
    /// An empty folder in target/bench/.
    pub(super) fn new(
        project: &'a Project,
        built: &'a BenchPrograms,
        place: &Sandbox,
        extent: &'a Extent,
        interrupt: &'a Interrupt,
    ) -> Result<Self> {
        let dir = project.root.join("target").join("bench");
        if dir.exists() {
            std::fs::remove_dir_all(&dir)
                .with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        std::fs::create_dir_all(&dir)?;
        let generator = Generator {
            binary: built.load.clone(),
            token: dir.join("admin.token"),
        };
        let cgroup = place.cgroup().map(Path::to_path_buf);
        Ok(Self {
            project,
            built,
            extent,
            interrupt,
            dir,
            cgroup,
            generator,
        })
    }

    pub(super) fn run(&self, report: &mut Report) -> Result<()> {
        let cloud = Cloud::start_in(self.project, CloudKind::Scripted, &self.dir, self.interrupt)?;
        let mut pin = self.project.command("taskset");
        step::read_output(
            pin.args(["-a", "-c", "-p", "1"])
                .arg(cloud.child.pid().to_string()),
        )?;
        let direct = self.cloud_server(&cloud)?;
        self.fill_cloud(&direct)?;

        let daemon = self.daemon(&cloud);
        let (child, hublet) = daemon.start_ready()?;
        step::announce("warming the store through hublet");
        let bodies = self.warm_store(&hublet)?;
        let beside = nginx::start(
            self.project,
            &self.dir,
            &daemon.server_pem(),
            &bodies,
            Some(direct.address),
        )?;
        self.measure_online(
            report,
            &[
                hublet,
                nginx::passing_server(&beside, &daemon.ca_path()),
                direct,
            ],
        )?;
        daemon::stop_cleanly(child)?;

        step::announce("the cloud is cut: from here on all comes from the store");
        drop(cloud);
        self.measure_starts(report, &daemon)?;
        self.measure_stored(report, &daemon, &beside)?;
        self.measure_steering(report, &daemon, &beside)?;
        self.measure_list_offline(report, &daemon, &beside)?;
        self.measure_memory(report, &daemon, &beside)
    }

    fn fill_cloud(&self, cloud: &Server) -> Result<()> {
        step::announce(format_args!(
            "filling the cloud with {} Pods",
            objects::PODS
        ));
        let file = self.dir.join("objects");
        std::fs::write(&file, objects::post_file())?;
        self.generator.post_objects(cloud, &file)
    }

    fn cloud_server(&self, cloud: &Cloud) -> Result<Server> {
        let address = cloud.direct.trim_start_matches("https://");
        let address: SocketAddr = address
            .parse()
            .with_context(|| format!("the cloud's address {address}"))?;
        Ok(Server::new(
            "cloud",
            address,
            &self.dir.join("cloud-ca.crt"),
            cloud.child.pid(),
        ))
    }

    fn daemon(&self, cloud: &Cloud) -> Daemon<'a> {
        Daemon {
            project: self.project,
            binary: self.built.daemon.clone(),
            dir: self.dir.clone(),
            // As the others: past the fault proxy, which would add its own time to ours alone.
            cloud: cloud.direct.clone(),
            cgroup: self.cgroup.clone(),
        }
    }

    /// Asks once for all that is asked for later, and gives the bodies.
    fn warm_store(&self, hublet: &Server) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let mut bodies = Vec::new();
        for path in [objects::SMALL, objects::LARGE, objects::LIST] {
            bodies.push((path, self.first_body(hublet, path)?));
        }
        self.open_watches(hublet, 1, 1, false)
            .map(drop)
            .context("a watch while the cloud answers")?;
        Ok(bodies)
    }

    /// The first answer to a path. While the cloud makes the long list it may be taken for away: then again.
    fn first_body(&self, hublet: &Server, path: &str) -> Result<Vec<u8>> {
        let deadline = Instant::now() + WARM;
        loop {
            match hublet.fetch_body(&self.generator, path) {
                Err(error) if Instant::now() < deadline => {
                    step::note(format_args!("again: {error:#}"))
                }
                answered => return answered,
            }
            if self.interrupt.wait(Duration::from_secs(1)) {
                bail!("interrupted");
            }
        }
    }

    /// Forwarded GETs and the list, hublet beside a passing nginx and beside nobody.
    fn measure_online(&self, report: &mut Report, servers: &[Server; 3]) -> Result<()> {
        for round in 0..self.extent.rounds {
            for test in plan::forwarded_tests(self.extent.quick) {
                let sampled = self.sample_each(report, round, &test, servers);
                self.note_failure(report, &test.name, sampled.map(drop))?;
            }
            if self.extent.includes(plan::LIST_ONLINE) {
                let listed = servers
                    .iter()
                    .try_for_each(|server| self.measure_list(report, plan::LIST_ONLINE, server));
                self.note_failure(report, plan::LIST_ONLINE, listed)?;
            }
        }
        Ok(())
    }

    /// A round that failed online is said in the report; what is stored can still be measured.
    fn note_failure(&self, report: &mut Report, test: &str, outcome: Result<()>) -> Result<()> {
        self.check_interrupt()?;
        if let Err(error) = outcome {
            let what = format!("a round of {test}: {error:#}");
            step::note(&what);
            report.left_out.push(what);
        }
        Ok(())
    }

    /// Stored GETs, hublet beside nginx, interleaved.
    fn measure_stored(
        &self,
        report: &mut Report,
        daemon: &Daemon<'_>,
        beside: &Child,
    ) -> Result<()> {
        let tests = plan::stored_tests(self.extent.quick);
        if !tests.iter().any(|test| self.extent.includes(&test.name)) {
            return Ok(());
        }
        let (child, hublet) = daemon.start_ready()?;
        let nginx = nginx::caching_server(beside, &daemon.ca_path());
        let servers = [hublet, nginx];
        self.check_same_bodies(&servers)?;
        let mut anchors = Vec::new();
        for round in 0..self.extent.rounds {
            step::announce(format_args!(
                "stored GETs, round {} of {}",
                round + 1,
                self.extent.rounds
            ));
            for test in &tests {
                let costs = self.sample_each(report, round, test, &servers)?;
                if test.name == tests[0].name {
                    anchors.extend(costs.last().copied());
                }
            }
        }
        if let (Some(first), Some(last)) = (anchors.first(), anchors.last()) {
            report.facts.drift = last / first;
        }
        Pause::new().wait(SETTLE);
        report.add_value(
            plan::AFTER,
            servers[0].name,
            RSS,
            servers[0].process_tree().memory_mib("VmRSS")?,
        );
        daemon::stop_cleanly(child)
    }

    fn measure_steering(
        &self,
        report: &mut Report,
        daemon: &Daemon<'_>,
        beside: &Child,
    ) -> Result<()> {
        if !self.extent.includes(plan::CONNECT) {
            return Ok(());
        }
        let (child, hublet) = daemon.start_ready()?;
        self.measure_connects(report, beside, &hublet, &daemon.ca_path())?;
        daemon::stop_cleanly(child)
    }

    pub(super) fn extent(&self) -> &Extent {
        self.extent
    }

    pub(super) fn generator(&self) -> &Generator {
        &self.generator
    }

    pub(super) fn project(&self) -> &Project {
        self.project
    }

    pub(super) fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_deref()
    }

    /// One sample of each server, the first one changing by round; gives the servers' CPU costs in their order.
    pub(super) fn sample_each(
        &self,
        report: &mut Report,
        round: usize,
        test: &Test,
        servers: &[Server],
    ) -> Result<Vec<f64>> {
        if !self.extent.includes(&test.name) {
            return Ok(Vec::new());
        }
        let mut costs = vec![0.0; servers.len()];
        for turn in 0..servers.len() {
            let at = (turn + round) % servers.len();
            let server = &servers[at];
            self.check_interrupt()?;
            let sample = server
                .take_sample(&self.generator, &test.load)
                .with_context(|| test.name.clone())?;
            report.add_value(&test.name, server.name, CPU, sample.cpu);
            report.add_value(&test.name, server.name, P50, sample.seen.p50);
            report.add_value(&test.name, server.name, P99, sample.seen.p99);
            costs[at] = sample.cpu;
        }
        Ok(costs)
    }

    fn check_same_bodies(&self, servers: &[Server]) -> Result<()> {
        for path in [objects::SMALL, objects::LARGE] {
            let bodies: Vec<Vec<u8>> = servers
                .iter()
                .map(|server| server.fetch_body(&self.generator, path))
                .collect::<Result<_>>()?;
            if bodies.iter().any(|body| *body != bodies[0]) {
                bail!("the servers answer {path} differently: there is nothing to compare");
            }
            step::note(format_args!(
                "{path}: {} bytes, the same from all",
                bodies[0].len()
            ));
        }
        Ok(())
    }

    fn measure_list(&self, report: &mut Report, test: &str, server: &Server) -> Result<()> {
        self.check_interrupt()?;
        let forwarded = test == plan::LIST_ONLINE;
        let path = objects::LIST.to_owned();
        let load = Load {
            mode: "kept",
            path,
            h2: false,
            connections: 1,
            requests: LISTS,
            forwarded,
        };
        let sample = server
            .take_sample(&self.generator, &load)
            .with_context(|| test.to_owned())?;
        report.add_value(test, server.name, FIRST_BYTE, sample.seen.first_byte / 1e3);
        report.add_value(test, server.name, TOTAL, sample.seen.p50 / 1e3);
        report.add_value(test, server.name, "cpu ms", sample.cpu / 1e3);
        Ok(())
    }

    /// The list from the store: a fresh process each round, since the peak is what counts.
    fn measure_list_offline(
        &self,
        report: &mut Report,
        daemon: &Daemon<'_>,
        beside: &Child,
    ) -> Result<()> {
        if !self.extent.includes(plan::LIST_OFFLINE) {
            return Ok(());
        }
        let nginx = nginx::caching_server(beside, &daemon.ca_path());
        for round in 0..self.extent.rounds {
            step::announce(format_args!(
                "LIST from the store, round {} of {}",
                round + 1,
                self.extent.rounds
            ));
            let (child, hublet) = daemon.start_ready()?;
            for server in [&hublet, &nginx] {
                self.measure_list_peaks(report, server)?;
            }
            daemon::stop_cleanly(child)?;
        }
        Ok(())
    }

    /// The server's peak memory while it answers one list, and while it answers several at once.
    fn measure_list_peaks(&self, report: &mut Report, server: &Server) -> Result<()> {
        server.process_tree().reset_peak()?;
        self.measure_list(report, plan::LIST_OFFLINE, server)?;
        let peak = server.process_tree().memory_mib("VmHWM")?;
        report.add_value(plan::LIST_OFFLINE, server.name, PEAK, peak);
        server.process_tree().reset_peak()?;
        let load = Load {
            mode: "kept",
            path: objects::LIST.to_owned(),
            h2: false,
            connections: AT_ONCE,
            requests: AT_ONCE,
            forwarded: false,
        };
        server.take_sample(&self.generator, &load)?;
        let peak = server.process_tree().memory_mib("VmHWM")?;
        report.add_value(plan::LIST_OFFLINE, server.name, "peak at 8 MiB", peak);
        Ok(())
    }

    /// From the process's start, store and cloud as they are after a cut, to the first stored answer over TLS.
    fn measure_starts(&self, report: &mut Report, daemon: &Daemon<'_>) -> Result<()> {
        if !self.extent.includes(plan::START) {
            return Ok(());
        }
        let path = objects::SMALL.to_owned();
        let load = Load {
            mode: "first",
            path,
            h2: false,
            connections: 1,
            requests: 1,
            forwarded: false,
        };
        for round in 0..self.extent.rounds {
            self.check_interrupt()?;
            step::announce(format_args!(
                "cold start, round {} of {}",
                round + 1,
                self.extent.rounds
            ));
            let mut waiting = Running::start(&self.generator, &daemon.future_server(), &load)?;
            waiting.release()?;
            let child = daemon.spawn()?;
            let seen = waiting.read_result().context("cold start")?;
            report.add_value(plan::START, "hublet", "first answer ms", seen.seconds * 1e3);
            daemon::stop_cleanly(child)?;
        }
        Ok(())
    }

    /// Idle, and with a thousand idle watches: a fresh process each time.
    fn measure_memory(
        &self,
        report: &mut Report,
        daemon: &Daemon<'_>,
        beside: &Child,
    ) -> Result<()> {
        if self.extent.includes(plan::IDLE) {
            self.measure_idle(report, daemon, beside)?;
        }
        if self.extent.includes(plan::WATCHES) {
            self.measure_watches(report, daemon)?;
        }
        Ok(())
    }

    fn measure_idle(&self, report: &mut Report, daemon: &Daemon<'_>, beside: &Child) -> Result<()> {
        let pause = Pause::new();
        step::announce("idle memory");
        for _ in 0..self.extent.rounds.min(3) {
            let (child, hublet) = daemon.start_ready()?;
            pause.wait(SETTLE);
            let resident = hublet.process_tree().memory_mib("VmRSS")?;
            report.add_value(plan::IDLE, hublet.name, RSS, resident);
            daemon::stop_cleanly(child)?;
        }
        let nginx = nginx::caching_server(beside, &daemon.ca_path());
        let resident = nginx.process_tree().memory_mib("VmRSS")?;
        report.add_value(plan::IDLE, nginx.name, "RSS summed MiB", resident);
        let proportional = nginx.process_tree().proportional_mib()?;
        report.add_value(plan::IDLE, nginx.name, "Pss MiB", proportional);
        Ok(())
    }

    fn measure_watches(&self, report: &mut Report, daemon: &Daemon<'_>) -> Result<()> {
        let pause = Pause::new();
        for (connections, streams, h2) in WATCHES {
            step::announce(format_args!(
                "memory with {} idle watches on {connections} connections",
                connections * streams
            ));
            let (child, hublet) = daemon.start_ready()?;
            let held = self.open_watches(&hublet, connections, streams, h2)?;
            pause.wait(SETTLE);
            let metric = if h2 {
                "RSS MiB, h2 20×50"
            } else {
                "RSS MiB, h1 1000×1"
            };
            let resident = hublet.process_tree().memory_mib("VmRSS")?;
            report.add_value(plan::WATCHES, hublet.name, metric, resident);
            drop(held);
            daemon::stop_cleanly(child)?;
        }
        Ok(())
    }

    /// Opens watches; they are open until what is returned is dropped.
    fn open_watches(
        &self,
        hublet: &Server,
        connections: usize,
        streams: usize,
        h2: bool,
    ) -> Result<Running> {
        let load = Load {
            mode: "hold",
            path: watch_path(&self.first_body(hublet, WATCHED)?)?,
            h2,
            connections,
            requests: streams,
            forwarded: false,
        };
        Running::start(&self.generator, hublet, &load)
    }

    fn check_interrupt(&self) -> Result<()> {
        if self.interrupt.wait(Duration::ZERO) {
            bail!("interrupted");
        }
        Ok(())
    }
}
