//! `hublet bpf`: shows and detaches the pinned programs and maps, without bpftool and without a daemon
//! that answers.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Output;
use super::table::{or_dash, print_field_section, print_line_section, print_table, yes_no};
use crate::ebpf::dump::{
    AllEntries, CommandEntry, ConfigEntry, DecisionCounts, InterfaceEntry, MapEntries,
    SelectionEntry, ServiceEntry,
};
use crate::ebpf::flows::Flow;
use crate::ebpf::pins::{Pinned, PinnedError, PinnedLink};
use crate::text::printable_json;

/// Subcommands of `hublet bpf`.
#[derive(Debug, Subcommand)]
pub enum BpfCommand {
    /// Show links, switches, services, selections, interfaces, counters and flows
    Status(BpfArgs),
    /// Show one map's entries: HUB_CONFIG, HUB_SERVICES, HUB_SELECT, HUB_SELECT_CMD, HUB_IFACES, HUB_STATS, HUB_FLOWS
    Dump(DumpArgs),
    /// Detach the programs: nothing is steered, attested or guarded until the daemon starts again
    Detach(BpfArgs),
}

/// Flags of every subcommand.
#[derive(Debug, Clone, Args)]
pub struct BpfArgs {
    /// Mount point of bpffs
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `hublet bpf dump`.
#[derive(Debug, Clone, Args)]
pub struct DumpArgs {
    /// Name of the map
    pub map: String,
    #[command(flatten)]
    pub common: BpfArgs,
}

#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    #[error(transparent)]
    Pinned(#[from] PinnedError),
    #[error("can't write the output: {0}")]
    Write(#[from] io::Error),
    #[error("can't format as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The document of `hublet bpf status`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BpfStatus {
    links: Vec<PinnedLink>,
    #[serde(flatten)]
    maps: Option<AllEntries>,
    /// The reason why the maps can't be read.
    problem: Option<String>,
}

/// The document of `hublet bpf detach`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Detached {
    /// The pins that were removed.
    detached: Vec<String>,
}

/// Runs a subcommand.
///
/// # Errors
/// Nothing is pinned, the kernel refuses, or `out` is closed.
pub fn bpf(command: &BpfCommand, out: &mut dyn Write) -> Result<(), BpfError> {
    match command {
        BpfCommand::Status(args) => {
            let status = BpfStatus::read(&Pinned::find(&args.bpffs)?)?;
            print(&status, args.output, out)
        }
        BpfCommand::Dump(DumpArgs { map, common }) => {
            let entries = Pinned::find(&common.bpffs)?.dump(map)?;
            print(&entries, common.output, out)
        }
        BpfCommand::Detach(args) => {
            let pins = Pinned::find(&args.bpffs)?.detach()?;
            let detached = pins.iter().map(|pin| pin.display().to_string());
            let detached = detached.collect();
            print(&Detached { detached }, args.output, out)
        }
    }
}

impl BpfStatus {
    /// Reads the links and every map. Maps of another version can't be decoded: then the problem is named.
    fn read(pinned: &Pinned) -> Result<Self, PinnedError> {
        let links = pinned.links()?;
        let (maps, problem) = match pinned.dump_all() {
            Ok(maps) => (Some(maps), None),
            Err(error @ PinnedError::Layout { .. }) => (None, Some(error.to_string())),
            Err(error) => return Err(error),
        };
        Ok(Self {
            links,
            maps,
            problem,
        })
    }
}

/// A document that can be printed for people.
trait Sections: Serialize {
    fn print_sections(&self, out: &mut dyn Write) -> io::Result<()>;
}

fn print(document: &impl Sections, output: Output, out: &mut dyn Write) -> Result<(), BpfError> {
    match output {
        Output::Json => {
            let json = serde_json::to_string_pretty(document)?;
            writeln!(out, "{}", printable_json(&json))?;
        }
        Output::Table => document.print_sections(out)?,
    }
    Ok(())
}

impl Sections for Detached {
    fn print_sections(&self, out: &mut dyn Write) -> io::Result<()> {
        print_line_section("detached", &self.detached, out)
    }
}

impl Sections for BpfStatus {
    fn print_sections(&self, out: &mut dyn Write) -> io::Result<()> {
        print_links(&self.links, out)?;
        if let Some(maps) = &self.maps {
            print_config(&maps.config, out)?;
            print_services(&maps.services, out)?;
            print_selections(&maps.select, out)?;
            print_commands(&maps.select_cmd, out)?;
            print_interfaces(&maps.ifaces, out)?;
            print_decisions(&maps.stats, out)?;
            print_flows(&maps.flows, out)?;
        }
        print_line_section("problem", self.problem.as_slice(), out)
    }
}

impl Sections for MapEntries {
    fn print_sections(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Config(config) => print_config(config, out),
            Self::Services(services) => print_services(services, out),
            Self::Selections(selections) => print_selections(selections, out),
            Self::Commands(commands) => print_commands(commands, out),
            Self::Interfaces(interfaces) => print_interfaces(interfaces, out),
            Self::Decisions(counts) => print_decisions(counts, out),
            Self::Flows(flows) => print_flows(flows, out),
        }
    }
}

fn print_links(links: &[PinnedLink], out: &mut dyn Write) -> io::Result<()> {
    let rows = links.iter().map(|link| {
        let PinnedLink {
            name,
            hook,
            program,
            pin,
        } = link.clone();
        vec![name, hook, program, pin]
    });
    print_table("links", &["name", "hook", "program", "pin"], rows, out)
}

fn print_config(config: &ConfigEntry, out: &mut dyn Write) -> io::Result<()> {
    let age = config.heartbeat_age_ms.map(|age| format!("{age} ms"));
    let ports: Vec<_> = config.ports.iter().map(u16::to_string).collect();
    let fields = [
        ("steering", yes_no(config.steering)),
        ("guard", yes_no(config.guard)),
        ("selected processes only", yes_no(config.selected)),
        ("pods", yes_no(config.pods)),
        ("heartbeat age", or_dash(age)),
        ("heartbeat limit", format!("{} ms", config.ttl_ms)),
        ("network namespace", config.netns.to_string()),
        ("own cgroup", config.own_cgroup.to_string()),
        ("bypass mark", config.bypass_mark.to_string()),
        ("proxy", config.proxy.to_string()),
        ("ports", ports.join(", ")),
    ];
    print_field_section("config", fields, out)
}

fn print_services(services: &[ServiceEntry], out: &mut dyn Write) -> io::Result<()> {
    let rows = services.iter().map(|entry| {
        vec![
            entry.service.to_string(),
            entry.to.to_string(),
            entry.usage.to_owned(),
        ]
    });
    print_table("services", &["service", "to", "use"], rows, out)
}

fn print_selections(selections: &[SelectionEntry], out: &mut dyn Write) -> io::Result<()> {
    let rows = selections.iter().map(|entry| {
        vec![
            entry.kind.to_owned(),
            entry.value.to_string(),
            entry.verdict.to_owned(),
        ]
    });
    print_table("select", &["kind", "value", "verdict"], rows, out)
}

fn print_commands(commands: &[CommandEntry], out: &mut dyn Write) -> io::Result<()> {
    let rows = commands
        .iter()
        .map(|entry| vec![entry.command.clone(), entry.verdict.to_owned()]);
    print_table("select_cmd", &["command", "verdict"], rows, out)
}

fn print_interfaces(interfaces: &[InterfaceEntry], out: &mut dyn Write) -> io::Result<()> {
    let rows = interfaces.iter().map(|entry| {
        vec![
            entry.name.clone(),
            entry.index.to_string(),
            entry.kind.to_owned(),
        ]
    });
    print_table("ifaces", &["name", "index", "kind"], rows, out)
}

fn print_decisions(counts: &DecisionCounts, out: &mut dyn Write) -> io::Result<()> {
    let fields = counts.iter().map(|(name, count)| (name, count.to_string()));
    print_field_section("stats", fields, out)
}

/// The buckets of the latency are for programs: `-o json` has them.
fn print_flows(flows: &[Flow], out: &mut dyn Write) -> io::Result<()> {
    let columns = [
        "service",
        "cgroup",
        "steered",
        "direct",
        "off",
        "own",
        "not selected",
        "stale",
        "no listener",
        "established",
        "closed",
        "bytes up",
        "bytes down",
        "retransmits",
        "latency µs",
    ];
    print_table("flows", &columns, flows.iter().map(flow_row), out)
}

fn flow_row(flow: &Flow) -> Vec<String> {
    let counts = &flow.counts;
    let numbers = [
        flow.cgroup_id,
        counts.steered,
        counts.direct,
        counts.off,
        counts.own,
        counts.not_selected,
        counts.stale,
        counts.no_listener,
        counts.established,
        counts.closed,
        counts.bytes_up,
        counts.bytes_down,
        counts.retransmits,
        counts.latency_us,
    ];
    let numbers = numbers.iter().map(u64::to_string);
    [flow.service.to_string()]
        .into_iter()
        .chain(numbers)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use hublet_ebpf::FlowCounts;

    use super::*;

    const GOLDEN: &str = include_str!("bpf.golden.json");
    const SERVICE: SocketAddr = SocketAddr::new(
        std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)),
        443,
    );

    fn printed(document: &impl Sections, output: Output) -> String {
        let mut out = Vec::new();
        print(document, output, &mut out).expect("written");
        String::from_utf8(out).expect("UTF-8")
    }

    /// A document in which every part has content.
    fn sample_status() -> BpfStatus {
        let link = PinnedLink {
            name: "hub_connect4".to_owned(),
            hook: "cgroup 1".to_owned(),
            program: "hub_connect4".to_owned(),
            pin: "/sys/fs/bpf/hublet/0/links/hub_connect4".to_owned(),
        };
        BpfStatus {
            links: vec![link],
            maps: Some(sample_maps()),
            problem: Some("another layout".to_owned()),
        }
    }

    fn sample_maps() -> AllEntries {
        AllEntries {
            config: sample_config(),
            services: vec![ServiceEntry {
                service: SERVICE,
                to: ([127, 0, 0, 1], 10268).into(),
                usage: "steered",
            }],
            select: vec![SelectionEntry {
                kind: "uid",
                value: 4242,
                verdict: "except",
            }],
            select_cmd: vec![CommandEntry {
                command: "kubelet".to_owned(),
                verdict: "steer",
            }],
            ifaces: vec![InterfaceEntry {
                name: "lo".to_owned(),
                index: 1,
                kind: "local",
            }],
            stats: [("steered", 3), ("seen", 5)].into(),
            flows: vec![sample_flow()],
        }
    }

    fn sample_config() -> ConfigEntry {
        ConfigEntry {
            steering: true,
            guard: false,
            selected: false,
            pods: false,
            heartbeat_age_ms: None,
            ttl_ms: 3000,
            netns: 849,
            own_cgroup: 0,
            bypass_mark: 7,
            proxy: [127, 0, 0, 1].into(),
            ports: vec![443, 10268],
        }
    }

    fn sample_flow() -> Flow {
        let mut counts = FlowCounts {
            steered: 2,
            latency_us: 40,
            ..FlowCounts::default()
        };
        counts.latency[1] = 2;
        Flow {
            cgroup_id: 99,
            service: SERVICE,
            counts,
        }
    }

    /// Scripts of operators read it.
    #[test]
    fn the_document_is_the_golden_one() {
        let written = printed(&sample_status(), Output::Json);
        assert_eq!(written, GOLDEN, "written now:\n{written}");
    }

    #[test]
    fn the_table_shows_every_part() {
        let text = printed(&sample_status(), Output::Table);
        for section in [
            "\nLINKS\n  NAME          HOOK      PROGRAM       PIN\n  hub_connect4  cgroup 1  hub_connect4  /sys",
            "\nCONFIG\n  steering                 yes\n  guard                    no\n",
            "  heartbeat age            -\n  heartbeat limit          3000 ms\n",
            "  ports                    443, 10268\n",
            "\nSERVICES\n  SERVICE        TO               USE\n  10.96.0.1:443  127.0.0.1:10268  steered\n",
            "\nSELECT\n  KIND  VALUE  VERDICT\n  uid   4242   except\n",
            "\nSELECT_CMD\n  COMMAND  VERDICT\n  kubelet  steer\n",
            "\nIFACES\n  NAME  INDEX  KIND\n  lo    1      local\n",
            "\nSTATS\n  seen     5\n  steered  3\n",
            "\nFLOWS\n  SERVICE        CGROUP  STEERED  DIRECT ",
            "\n  10.96.0.1:443  99      2        0 ",
            "\nPROBLEM\n  another layout\n",
        ] {
            assert!(text.contains(section), "{section} in {text}");
        }
    }

    #[test]
    fn one_maps_entries_are_printed_alone() {
        let dumped = MapEntries::Interfaces(sample_maps().ifaces);
        let json = printed(&dumped, Output::Json);
        assert!(json.starts_with("[\n  {\n    \"name\": \"lo\""), "{json}");
        let table = printed(&dumped, Output::Table);
        assert!(table.starts_with("\nIFACES\n"), "{table}");
        let none = printed(&MapEntries::Flows(Vec::new()), Output::Table);
        assert_eq!(none, "", "a map without entries");
    }

    #[test]
    fn pins_that_were_removed_are_lines() {
        let detached = vec!["/a".to_owned(), "/b".to_owned()];
        let text = printed(&Detached { detached }, Output::Table);
        assert_eq!(text, "\nDETACHED\n  /a\n  /b\n");
    }

    #[test]
    fn without_pins_the_error_names_the_directory() {
        let bpffs = tempfile::tempdir().expect("a directory");
        let args = BpfArgs {
            bpffs: bpffs.path().to_path_buf(),
            output: Output::Table,
        };
        for command in [BpfCommand::Status(args.clone()), BpfCommand::Detach(args)] {
            let error = bpf(&command, &mut Vec::new())
                .expect_err("no pins")
                .to_string();
            assert!(
                error.contains(&bpffs.path().display().to_string()),
                "{error}"
            );
        }
    }
}
