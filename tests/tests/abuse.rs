//! Promise: a client that abuses hublet takes nothing from others (I14). Each row is an attack by an unprivileged
//! process, next to a client that behaves like a kubelet and must not notice it: no call fails, 99 % of its calls take
//! at most twice as long as before (or 100 ms, if that is longer) once the attack is under way, and watch events arrive
//! within a second. The daemon's memory stays below 96 MiB.
//!
//! Before there was a budget per client, each row stopped others: unread responses filled memory, idle connections took
//! every place, and requests that hung at the cloud took every connection to it.
//!
//! The suite prints its figures as a table at the end.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]
#![allow(clippy::print_stdout, reason = "the table stands in the suite's log")]

#[path = "abuse/attacks.rs"]
mod attacks;
#[path = "abuse/beside.rs"]
mod beside;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hublet_tests::cloud::{self, Rule, ServerFault, ServerFaultRule, User};
use hublet_tests::daemon;
use hublet_tests::disk::{self, SmallDisk};
use hublet_tests::eventually::{eventually, slowness_factor};
use hublet_tests::fault::Fault;
use hublet_tests::metrics::metric;
use hublet_tests::site::Site;
use serde_json::json;

use attacks::{Attack, Target};
use beside::{Beside, Seen};

/// The most that the daemon may ever have had in memory.
const MEMORY_MIB: u64 = 96;
/// Below this nobody calls an answer slow.
const FLOOR: Duration = Duration::from_millis(100);
/// The same where the attack keeps the test's cloud busy, which is one thread and shakes hands for each request.
const BUSY_CLOUD: Duration = Duration::from_secs(1);
const EVENT: Duration = Duration::from_secs(1);
/// Times: to watch the client before an attack, to let the attack occupy both processors, and to watch the client from
/// then on.
const QUIET: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_secs(2);
const UNDER_ATTACK: Duration = Duration::from_secs(4);

/// Fewer calls than these in that time have been waiting for something.
const FEW: usize = 40;

/// ConfigMaps of 8 KiB that the attackers list: 3 MB.
const MANY: usize = 350;
const BIG: &str = "/api/v1/namespaces/big/configmaps";

/// Streams on a connection, of a server that allows few.
const FEW_STREAMS: u32 = 20;
/// Watches at it, of nothing that is there.
const WATCHES: usize = 60;
const NONE: &str = "fieldSelector=metadata.name%3Dnone";
/// The store's disk, in megabytes.
const DISK: u32 = 256;
/// Times that all of the attackers' objects are written anew.
const REWRITES: usize = 8;

/// A document that the test's cloud gives without much ado, as long as a row wants it.
const DOCUMENT: &str = "/version";

struct Row {
    number: &'static str,
    what: &'static str,
    limit: &'static str,
    attack: Attack,
    /// With the link cut: the store answers, and nobody writes.
    cut: bool,
    /// Up to here calls are quick enough, however quick they were before.
    floor: Duration,
    /// A full disk is part of it.
    full_disk: bool,
    /// A further check of the daemon.
    check: fn(&Site, Before) -> Result<String>,
}

/// The daemon before an attack.
#[derive(Debug, Clone, Copy)]
struct Before {
    cloud_connects: f64,
    /// Of a processor.
    busy: f64,
}

#[test]
#[ignore = "the attackers' process"]
fn attacker() {
    attacks::attack().unwrap();
}

#[test]
fn a_well_behaved_client_notices_no_attack() {
    let (mut table, mut wrong) = (head(), Vec::new());
    for (streams, rows) in [(250, rows()), (FEW_STREAMS, few_streams())] {
        let Some(mut node) = Node::start(streams).unwrap() else {
            return;
        };
        for row in &rows {
            let outcome =
                run(&mut node, row).with_context(|| format!("{} {}", row.number, row.what));
            let outcome = outcome.unwrap();
            table.push_str(&outcome.line);
            wrong.extend(
                outcome
                    .wrong
                    .map(|what| format!("{} {}: {what}", row.number, row.what)),
            );
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{}\n{table}", wrong.join("\n"));
}

/// A node that is attacked.
struct Node {
    site: Site,
    disk: SmallDisk,
    program: Program,
}

impl Node {
    /// Its API server allows so many streams on a connection.
    fn start(max_streams: u32) -> Result<Option<Self>> {
        let cloud = cloud::Options {
            max_streams,
            ..Default::default()
        };
        let with = |options: &mut daemon::Options| options.bpffs = true;
        let Some((site, disk)) = disk::start_site("abuse", DISK, cloud, with, |_| Ok(()))? else {
            return Ok(None);
        };
        site.netns
            .run_ip(&format!("address add {}/32 dev lo", attacks::ADDRESS))?;
        prepare(&site)?;
        Ok(Some(Self {
            site,
            disk,
            program: Program::copy()?,
        }))
    }
}

fn row(number: &'static str, what: &'static str, limit: &'static str, attack: Attack) -> Row {
    Row {
        number,
        what,
        limit,
        attack,
        cut: false,
        floor: FLOOR,
        full_disk: false,
        check: |_, _| Ok(String::new()),
    }
}

fn rows() -> Vec<Row> {
    [floods(), readers(), disks(), connections()]
        .into_iter()
        .flatten()
        .collect()
}

fn floods() -> Vec<Row> {
    let fast = "/version".to_owned();
    let upgrades = "500 upgrades to a protocol that nobody knows";
    let busy = |number, what, limit, token: &str| Row {
        floor: BUSY_CLOUD,
        ..row(
            number,
            what,
            limit,
            Attack::Loops(
                if token.is_empty() { 64 } else { 4 },
                fast.clone(),
                token.into(),
            ),
        )
    };
    vec![
        busy(
            "17",
            "4 loops with junk tokens",
            "connections of their own",
            "Bearer junk",
        ),
        busy("20", "64 anonymous loops", "32 connections apart", ""),
        Row {
            check: few_connects,
            ..row(
                "23",
                upgrades,
                "requests like others; 256 upgrades",
                Attack::Upgrades(500, fast.clone()),
            )
        },
    ]
}

fn readers() -> Vec<Row> {
    const HALF: &str = "64 MiB under way, half of it a client's";
    let offline = |what, attack| Row {
        cut: true,
        ..row("22", what, HALF, attack)
    };
    let (list, document) = (|| BIG.to_owned(), DOCUMENT.to_owned());
    vec![
        row(
            "18",
            "8 lists of 3 MB that nobody reads",
            HALF,
            Attack::Unread(8, list()),
        ),
        row(
            "22",
            "8 × 250 streams of a document of 40 KB that nobody reads",
            HALF,
            Attack::UnreadStreams(8, 250, document.clone()),
        ),
        // Requests that waited for room counted nowhere: the memory of all of them, and every place among the requests.
        row(
            "22",
            "40 × 250 streams of the same",
            "64 requests of a client wait for room",
            Attack::UnreadStreams(40, 250, document.clone()),
        ),
        // Refusals counted nowhere either, and each kept its stream.
        row(
            "22",
            "1,500 × 250 streams to which nothing but heads can be sent",
            "8 streams on each of more than 32 connections, 64 refusals with a body",
            Attack::ShutStreams(1500, 250, document.clone()),
        ),
        row(
            "22",
            "200 connections with 16 uploads that nobody takes",
            HALF,
            Attack::Uploads(200, 16, list()),
        ),
        offline(
            "8 × 250 streams of a stored list that nobody reads",
            Attack::UnreadStreams(8, 250, list()),
        ),
        offline(
            "1,000 stored lists by HTTP/1.1 that nobody reads",
            Attack::Unread(1000, list()),
        ),
        row(
            "22",
            "40 documents of 4 MB, read but for their end",
            "16 MiB held for the writer",
            Attack::Unfinished(40, document, 3_900_000),
        ),
    ]
}

fn disks() -> Vec<Row> {
    let document = DOCUMENT.to_owned();
    vec![
        Row {
            check: bounded_snapshots,
            ..Row {
                cut: true,
                ..row(
                    "25",
                    "50 streams of a stored list that nobody reads, while all of it is written anew",
                    "a snapshot of the store lives for 2 s",
                    Attack::UnreadStreams(1, 50, BIG.to_owned()),
                )
            }
        },
        Row {
            check: known_to_be_full,
            full_disk: true,
            ..row(
                "27",
                "a disk without a free byte, and 30 documents of 4 MB for it",
                "served as it was last written; 4 MiB wait for the disk",
                Attack::Unfinished(30, document.clone(), 4_000_000),
            )
        },
        Row {
            check: small_store,
            ..row(
                "26",
                "30 documents of 4 MB that only an ignored parameter tells apart",
                "a document's path is its key; 512 MiB on disk",
                Attack::Unfinished(30, document, 4_000_000),
            )
        },
    ]
}

fn connections() -> Vec<Row> {
    let half = "4,096, of which one client gets half";
    let fat = "x".repeat(60 << 10);
    vec![
        row(
            "24",
            "4,400 connections by one client",
            half,
            Attack::Connections(4400, "GET /".into()),
        ),
        row(
            "24",
            "2,000 heads of 60 KiB that don't end",
            "16 KiB of many connections each",
            Attack::Connections(
                2000,
                format!("GET /version HTTP/1.1\r\nHost: a\r\nX-A: {fat}"),
            ),
        ),
        Row {
            check: idle_processor,
            ..row(
                "28",
                "2,000 connections that said P",
                "30 s for the first bytes",
                Attack::Connections(2000, "P".into()),
            )
        },
    ]
}

/// Watches at a server that allows few streams.
fn few_streams() -> Vec<Row> {
    let watch = format!("{BIG}?watch=true&{NONE}");
    vec![Row {
        check: all_are_open,
        ..row(
            "19",
            "60 watches, where the server allows 20 streams on a connection",
            "as many connections as it takes",
            Attack::UnreadStreams(1, WATCHES, watch),
        )
    }]
}

fn all_are_open(site: &Site, _: Before) -> Result<String> {
    let watches = site
        .cloud
        .record()
        .count_matching(|request| request.query.ends_with(NONE));
    ensure!(
        watches == WATCHES,
        "{watches} watches have come to the cloud"
    );
    Ok(format!(
        "{} connections to the cloud",
        site.daemon.fetch_status()?["cloud"]["connections"]
    ))
}

fn few_connects(site: &Site, before: Before) -> Result<String> {
    let more = metric("hublet_cloud_connects_total").sum(&site.daemon.scrape_metrics()?)
        - before.cloud_connects;
    ensure!(more < 100.0, "{more} connections to the cloud");
    Ok(format!("{more} more connections to the cloud"))
}

/// All is written anew while a reader stalls, and takes no more of the disk than it would without him. The link comes back
/// for that.
fn bounded_snapshots(site: &Site, before: Before) -> Result<String> {
    site.fault.set(Fault::None)?;
    for round in 0..REWRITES {
        fill(site, &round.to_string().repeat(8 << 10))?;
        list_again(site)?;
    }
    small_store(site, before)
}

/// Fills the store beyond the disk's space; stored objects are still served.
fn known_to_be_full(site: &Site, _: Before) -> Result<String> {
    let full = || {
        fill(site, &"y".repeat(16 << 10))
            .and_then(|()| list_again(site))
            .ok()?;
        let store = &site.daemon.fetch_status().ok()?["store"];
        (store["writable"] == false && store["objects"] != 0).then_some(())
    };
    eventually(
        Duration::from_secs(20),
        "the disk is known to be full",
        full,
    )?;
    Ok("known to be full".into())
}

/// Lists the attackers' objects until the cloud answers.
fn list_again(site: &Site) -> Result<()> {
    let admin = site.admin_client()?;
    eventually(Duration::from_secs(20), "the cloud lists all", || {
        let list = admin.get(BIG).ok()?;
        (list.status == 200 && list.header("x-hublet-source") == "cloud").then_some(())
    })
}

/// The attackers' list and one document are some 8 MB.
fn small_store(site: &Site, _: Before) -> Result<String> {
    let bytes = site.daemon.fetch_status()?["store"]["bytes"]
        .as_u64()
        .context("the store's bytes")?;
    ensure!(bytes < 32 << 20, "the store has {} MiB", bytes >> 20);
    Ok(format!("{} MiB on disk", bytes >> 20))
}

/// Both figures include the cost of the client beside.
fn idle_processor(site: &Site, before: Before) -> Result<String> {
    let now = busy(site)?;
    ensure!(
        now < before.busy + 0.2,
        "{now:.2} of a processor, {:.2} before",
        before.busy
    );
    Ok(format!(
        "{now:.2} of a processor, {:.2} before",
        before.busy
    ))
}

/// The attackers' objects, and the one account that may read them.
fn prepare(site: &Site) -> Result<()> {
    fill(site, &"x".repeat(8 << 10))?;
    site.cloud.put(beside::map("mine", 0))?;
    Ok(())
}

fn fill(site: &Site, data: &str) -> Result<()> {
    for number in 0..MANY {
        site.cloud.put(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"x": data},
            "metadata": {"namespace": "big", "name": format!("m{number:03}")},
        }))?;
    }
    Ok(())
}

struct Outcome {
    line: String,
    wrong: Option<String>,
}

fn run(
    Node {
        site,
        disk,
        program,
    }: &mut Node,
    row: &Row,
) -> Result<Outcome> {
    site.daemon.restart()?;
    let token = store_list(site)?;
    reach_cloud_state(site, row)?;
    let beside = Beside::start(site, !row.cut)?;
    wait(QUIET);
    let quiet = beside.take();
    let cloud_connects = metric("hublet_cloud_connects_total").sum(&site.daemon.scrape_metrics()?);
    let before = Before {
        cloud_connects,
        busy: busy(site)?,
    };
    if let Some(rule) = fault_rule(&row.attack) {
        site.cloud.server_faults().add_rule(rule);
    }
    if row.full_disk {
        disk.fill()?;
    }
    let target = Target {
        attack: row.attack.clone(),
        ca_pem: site.daemon.ca_pem()?,
        token,
    };
    let attack = target.start(&site.netns, &program.path())?;
    wait(SETTLE);
    // Failures count from here on, times do not yet.
    let beginning = beside.take();
    wait(UNDER_ATTACK);
    let checked = (row.check)(site, before);
    let ready = site
        .daemon
        .scrape_metrics()
        .map(|scrape| metric("hublet_ready").value(1.0).is_in(&scrape));
    let mut seen = beside.take();
    seen.failed.splice(0..0, beginning.failed);
    // The machine has other things to do, too: what is slow must be so three times over.
    for _ in 0..2 {
        if seen.p99() > bar(row, &quiet) {
            wait(UNDER_ATTACK);
            seen.again(beside.take());
        }
    }
    let peak = peak_mib(site)?;
    drop(attack);
    drop(beside);
    if row.full_disk {
        disk.free()?;
    }
    site.cloud.server_faults().clear();
    site.fault.set(Fault::None)?;
    Ok(assess(row, (&quiet, &seen), peak, (checked, ready)))
}

/// Has the list stored for a reader, whose token this returns, and for the administrator.
fn store_list(site: &Site) -> Result<String> {
    let token = site.cloud.rbac().issue_token(User::new("reader", &[]));
    site.cloud.rbac().add_rule(Rule::for_resources(
        "reader",
        "get list watch",
        "",
        "configmaps",
    ));
    for token in [&token, &site.cloud.admin_token] {
        let client = site.daemon.client(Some(token))?;
        eventually(Duration::from_secs(10), "the list is stored", || {
            (client.get(BIG).ok()?.status == 200).then_some(())
        })?;
    }
    Ok(token)
}

/// Cuts the link if the attack needs that, and waits until hublet knows the cloud's state.
fn reach_cloud_state(site: &Site, row: &Row) -> Result<()> {
    if row.cut {
        site.cut_link()?;
    }
    let state = if row.cut { "disconnected" } else { "connected" };
    eventually(Duration::from_secs(20), state, || {
        (site.daemon.fetch_status().ok()?["cloud"]["state"] == state).then_some(())
    })
}

/// The answers of the cloud that an attack needs.
fn fault_rule(attack: &Attack) -> Option<ServerFaultRule> {
    let (method, path, fault) = match attack {
        Attack::Unfinished(..) => ("GET", DOCUMENT, ServerFault::Long(4_000_000)),
        Attack::UnreadStreams(.., path) if path == DOCUMENT => {
            ("GET", DOCUMENT, ServerFault::Long(40_000))
        }
        Attack::Uploads(..) => ("POST", BIG, ServerFault::Hang),
        _ => return None,
    };
    Some(ServerFaultRule::new(method, path, fault))
}

fn bar(row: &Row, quiet: &Seen) -> Duration {
    (quiet.p99() * 2).max(row.floor * slowness_factor())
}

/// Compares the calls beside an attack with those before it, and with the bars.
fn assess(
    row: &Row,
    (quiet, seen): (&Seen, &Seen),
    peak: u64,
    (checked, ready): (Result<String>, Result<bool>),
) -> Outcome {
    let bound = bar(row, quiet);
    let event = seen.events.iter().max().copied().unwrap_or_default();
    let mut wrong = Vec::new();
    if let Some(first) = quiet.failed.iter().chain(&seen.failed).next() {
        wrong.push(format!(
            "{} calls failed, such as: {first}",
            seen.failed.len()
        ));
    }
    if seen.calls() < FEW {
        wrong.push(format!("{} calls came to an end", seen.calls()));
    }
    if seen.p99() > bound {
        wrong.push(format!(
            "calls took {:?}, {:?} before",
            seen.p99(),
            quiet.p99()
        ));
    }
    if !row.cut && (event > EVENT * slowness_factor() || seen.events.len() < 4) {
        wrong.push(format!(
            "{} events, up to {event:?} late",
            seen.events.len()
        ));
    }
    if peak > MEMORY_MIB {
        wrong.push(format!("{peak} MiB"));
    }
    if !matches!(ready, Ok(true)) {
        wrong.push(format!("not ready: {ready:?}"));
    }
    let note = checked.unwrap_or_else(|cause| {
        wrong.push(format!("{cause:#}"));
        String::new()
    });
    let events = if row.cut {
        "–".to_owned()
    } else {
        format!("{} ms", event.as_millis())
    };
    let line = format!(
        "| {} | {} | {} | {} of {} | {} → {} ms (bar {}) | {events} | {peak} MiB | {note} |\n",
        row.number,
        row.what,
        row.limit,
        seen.failed.len(),
        seen.calls() + seen.failed.len(),
        quiet.p99().as_millis(),
        seen.p99().as_millis(),
        bound.as_millis(),
    );
    Outcome {
        line,
        wrong: (!wrong.is_empty()).then(|| wrong.join("; ")),
    }
}

fn head() -> String {
    format!(
        "| issue | attack | limit | failed calls | p99 | latest event | peak RSS (bar {MEMORY_MIB}) | |\n\
         |---|---|---|---|---|---|---|---|\n"
    )
}

fn wait(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
}

/// proc_pid_status(5): the most that was resident since the start.
fn peak_mib(site: &Site) -> Result<u64> {
    let pid = site.daemon.pid().context("it runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? / 1024)
}

/// The part of a processor that the daemon uses.
fn busy(site: &Site) -> Result<f64> {
    let pid = site.daemon.pid().context("it runs")?;
    let ticks = || -> Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<_> = stat
            .rsplit_once(')')
            .context("a name")?
            .1
            .split_whitespace()
            .collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    };
    let (begin, before) = (Instant::now(), ticks()?);
    wait(Duration::from_secs(2));
    // CLK_TCK is 100 on every Linux.
    Ok((ticks()? - before) as f64 / 100.0 / begin.elapsed().as_secs_f64())
}

/// A copy of this program in a folder that everybody may enter.
struct Program(tempfile::TempDir);

impl Program {
    fn copy() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        let copy = Self(folder);
        std::fs::copy(std::env::current_exe()?, copy.path()).context("copy this program")?;
        std::fs::set_permissions(copy.path(), std::fs::Permissions::from_mode(0o755))?;
        Ok(copy)
    }

    fn path(&self) -> PathBuf {
        Path::new(self.0.path()).join("attacker")
    }
}
