//! The callers that are steered: configured selections and pods that opted in, translated to map entries as cgroups come
//! and go.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use hublet_ebpf::{
    COMM_LEN, MAX_SELECT, SELECT_CGROUP, SELECT_POD_CGROUP, SELECT_POD_NETNS, SELECT_UID,
    VERDICT_EXCEPT, VERDICT_STEER,
};
use inotify::{EventStream, Inotify, WatchMask, Watches};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::{PodSelector, SelectConfig, Selector};
use crate::ebpf::maps::SelectionEntries;
use crate::ebpf::programs::Programs;
use crate::node::cgroup::{directories_in, pod_uid_in};

/// The cgroup tree is also read at this interval, in case inotify loses an event.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// Directories that are searched for pods at most.
const MAX_DIRECTORIES: usize = 64;
/// Pods that opt in at most; the rest of the map is for other selections.
const MAX_PODS: usize = MAX_SELECT / 2;

#[derive(Debug)]
pub(super) struct Selection {
    config: SelectConfig,
    /// The root of the cgroup hierarchy.
    root: PathBuf,
    opted_in: Mutex<BTreeSet<String>>,
    changed: Notify,
}

/// The selection as the cgroup tree is now.
#[derive(Debug, Default)]
pub(super) struct CurrentSelection {
    pub(super) entries: SelectionEntries,
    /// Directories in which selected cgroups may come and go.
    directories: Vec<PathBuf>,
}

impl Selection {
    /// `root` is the root of the cgroup hierarchy.
    pub(super) fn new(config: &SelectConfig, root: &Path) -> Arc<Self> {
        Arc::new(Self {
            config: config.clone(),
            root: root.to_path_buf(),
            opted_in: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Replaces the UIDs of the pods that opt in; those beyond the limit are ignored. True if they have changed.
    pub(super) fn set_opted_in(&self, pods: BTreeSet<String>) -> bool {
        let pods: BTreeSet<_> = pods.into_iter().take(MAX_PODS).collect();
        let changed = self.selects_annotated() && *self.opted_in.lock() != pods;
        if changed {
            *self.opted_in.lock() = pods;
            self.changed.notify_one();
        }
        changed
    }

    fn selects_annotated(&self) -> bool {
        self.config.pods.contains(&PodSelector::Annotated)
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        let host = self.describe_host();
        match self.opted_in.lock().len() {
            0 => host,
            1 => format!("{host}, and one pod that opted in"),
            n => format!("{host}, and {n} pods that opted in"),
        }
    }

    fn describe_host(&self) -> String {
        const NETNS: &str = "this network namespace";
        let SelectConfig { only, except, .. } = &self.config;
        match (only.is_empty(), except.is_empty()) {
            (true, true) => NETNS.into(),
            (true, false) => format!("{NETNS} (all but {})", describe_all(except)),
            (false, true) => format!("{NETNS} ({})", describe_all(only)),
            (false, false) => {
                format!(
                    "{NETNS} ({} but {})",
                    describe_all(only),
                    describe_all(except)
                )
            }
        }
    }

    /// Keeps the maps up to date until it is dropped.
    pub(super) async fn run(self: Arc<Self>, programs: Arc<Programs>) {
        let mut installed = None;
        let mut watches = DirectoryWatches::new().inspect_err(|error| {
            tracing::warn!(
                "can't watch the cgroup tree, so it is checked every {CHECK_INTERVAL:?}: {error}"
            );
        });
        loop {
            let current = self.watch_current(&mut watches);
            if installed.as_ref() != Some(&current.entries) && install(&programs, &current) {
                installed = Some(current.entries);
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = next_change(&mut watches) => {}
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
            }
        }
    }

    /// The selection, with watches on the directories in which it may change.
    fn watch_current(&self, watches: &mut io::Result<DirectoryWatches>) -> CurrentSelection {
        let current = self.current();
        let Ok(watches) = watches else {
            return current;
        };
        watches.add(&current.directories);
        // A cgroup may have appeared before its directory was watched.
        self.current()
    }

    pub(super) fn current(&self) -> CurrentSelection {
        let mut current = CurrentSelection::default();
        current.entries.selected_only = !self.config.only.is_empty();
        for selector in &self.config.only {
            current.add_selector(&self.root, selector, VERDICT_STEER);
        }
        for selector in &self.config.except {
            current.add_selector(&self.root, selector, VERDICT_EXCEPT);
        }
        for selector in &self.config.pods {
            current.add_pod_selector(&self.root, selector);
        }
        let opted_in = self.opted_in.lock().clone();
        if !opted_in.is_empty() {
            current.add_pods(&self.root, &opted_in);
        }
        current
    }
}

impl CurrentSelection {
    fn add_selector(&mut self, root: &Path, selector: &Selector, verdict: u32) {
        match selector {
            Selector::Cgroup(path) => self.add_cgroup(root, path, SELECT_CGROUP, verdict),
            Selector::Uid(uid) => self.entries.add(SELECT_UID, (*uid).into(), verdict),
            Selector::Command(name) => self.entries.commands.push((truncated_comm(name), verdict)),
        }
    }

    fn add_pod_selector(&mut self, root: &Path, selector: &PodSelector) {
        match selector {
            PodSelector::Annotated => {}
            PodSelector::Cgroup(path) => {
                self.add_cgroup(root, path, SELECT_POD_CGROUP, VERDICT_STEER);
            }
            PodSelector::Netns(cookie) => {
                self.entries.add(SELECT_POD_NETNS, *cookie, VERDICT_STEER);
            }
        }
    }

    fn add_cgroup(&mut self, root: &Path, path: &Path, kind: u32, verdict: u32) {
        let full = root.join(path.strip_prefix("/").unwrap_or(path));
        if let Ok(meta) = fs::metadata(&full) {
            self.entries.add(kind, meta.ino(), verdict);
        }
        // It comes and goes in the nearest ancestor that exists.
        let ancestor = full.ancestors().skip(1).find(|above| above.is_dir());
        self.directories.extend(ancestor.map(Path::to_path_buf));
    }

    fn add_pods(&mut self, root: &Path, uids: &BTreeSet<String>) {
        let found = find_pods(root);
        for pod in found.pods.iter().filter(|pod| uids.contains(&pod.uid)) {
            self.entries
                .add(SELECT_POD_CGROUP, pod.cgroup_id, VERDICT_STEER);
        }
        self.directories.extend(found.directories);
    }
}

/// False if the kernel refuses.
fn install(programs: &Programs, current: &CurrentSelection) -> bool {
    let set = programs.set_selection(&current.entries);
    set.inspect_err(|error| {
        tracing::error!("the kernel rejected the selection of callers: {error}");
    })
    .is_ok()
}

fn describe_all(selectors: &[Selector]) -> String {
    let selectors: Vec<_> = selectors.iter().map(describe_selector).collect();
    selectors.join(", ")
}

fn describe_selector(selector: &Selector) -> String {
    match selector {
        Selector::Cgroup(path) => format!("cgroup {}", path.display()),
        Selector::Uid(uid) => format!("user {uid}"),
        Selector::Command(name) => format!("command {name}"),
    }
}

/// The name as the kernel truncates it, with a NUL at the end.
fn truncated_comm(name: &str) -> [u8; COMM_LEN] {
    let mut comm = [0; COMM_LEN];
    for (to, from) in comm.iter_mut().zip(name.bytes().take(COMM_LEN - 1)) {
        *to = from;
    }
    comm
}

struct PodCgroup {
    uid: String,
    cgroup_id: u64,
}

struct FoundPods {
    pods: Vec<PodCgroup>,
    /// The directories that were searched, and those that are still to be.
    directories: Vec<PathBuf>,
}

impl FoundPods {
    /// Adds a pod's cgroup, or a directory that may hold some.
    fn add(&mut self, entry: &DirEntry) {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if let Some(uid) = pod_uid_in(&name) {
            let cgroup_id = entry.metadata().map(|meta| meta.ino());
            self.pods
                .extend(cgroup_id.map(|cgroup_id| PodCgroup { uid, cgroup_id }));
        } else if may_hold_pods(&name) && self.directories.len() < MAX_DIRECTORIES {
            self.directories.push(entry.path());
        }
    }
}

/// Finds the pods of the node in the kubelet's layouts: `/kubepods/burstable/podUID` with the cgroupfs driver,
/// `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice` with systemd's.
fn find_pods(root: &Path) -> FoundPods {
    let mut found = FoundPods {
        pods: Vec::new(),
        directories: vec![root.to_path_buf()],
    };
    let mut next = 0;
    while next < found.directories.len() {
        for entry in directories_in(&found.directories[next]) {
            found.add(&entry);
        }
        next += 1;
    }
    found
}

fn may_hold_pods(name: &str) -> bool {
    ["kube", "burstable", "besteffort"]
        .iter()
        .any(|part| name.contains(part))
}

/// Directories that are watched for created and deleted entries.
struct DirectoryWatches {
    watches: Watches,
    events: EventStream<[u8; 4096]>,
}

impl DirectoryWatches {
    fn new() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        Ok(Self {
            watches: inotify.watches(),
            events: inotify.into_event_stream([0; 4096])?,
        })
    }

    /// Adding a directory twice gives the same watch; a watch ends with its directory.
    fn add(&mut self, directories: &[PathBuf]) {
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR;
        for path in directories {
            let _gone_meanwhile = self.watches.add(path, mask);
        }
    }
}

/// Never returns without watches.
async fn next_change(watches: &mut io::Result<DirectoryWatches>) {
    if let Ok(watches) = watches
        && watches.events.next().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use hublet_ebpf::SelectKey;

    use super::*;

    fn annotated(root: &Path) -> Arc<Selection> {
        Selection::new(
            &SelectConfig {
                pods: vec![PodSelector::Annotated],
                ..SelectConfig::default()
            },
            root,
        )
    }

    #[test]
    fn selectors_become_entries_and_exceptions_are_kept_beside() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("system.slice/kubelet.service")).unwrap();
        let config = SelectConfig {
            only: vec![
                Selector::Uid(0),
                Selector::Cgroup("/system.slice".into()),
                Selector::Cgroup("/none".into()),
            ],
            except: vec![
                Selector::Uid(0),
                Selector::Command("a-very-long-executable".into()),
            ],
            pods: vec![PodSelector::Netns(7)],
        };
        let current = Selection::new(&config, dir.path()).current();
        let (entries, directories) = (current.entries, current.directories);
        let slice = fs::metadata(dir.path().join("system.slice")).unwrap().ino();
        assert_eq!(
            entries.keys,
            [
                (
                    SelectKey {
                        value: 0,
                        kind: SELECT_UID,
                        zero: 0
                    },
                    VERDICT_STEER | VERDICT_EXCEPT
                ),
                (
                    SelectKey {
                        value: slice,
                        kind: SELECT_CGROUP,
                        zero: 0
                    },
                    VERDICT_STEER
                ),
                (
                    SelectKey {
                        value: 7,
                        kind: SELECT_POD_NETNS,
                        zero: 0
                    },
                    VERDICT_STEER
                ),
            ]
        );
        assert_eq!(entries.commands, [(*b"a-very-long-exe\0", VERDICT_EXCEPT)]);
        assert!(entries.selected_only && entries.has_pods());
        assert_eq!(
            directories,
            [dir.path(), dir.path()],
            "the cgroups come and go there"
        );
    }

    #[test]
    fn pods_that_opt_in_are_found_in_both_layouts() {
        const A: &str = "0a1b2c3d-0000-4000-8000-0123456789ab";
        const B: &str = "11111111-2222-4333-8444-555555555555";
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(format!("kubepods/burstable/pod{A}/c"))).unwrap();
        let b = format!("kubepods.slice/kubepods-pod{}.slice", B.replace('-', "_"));
        fs::create_dir_all(dir.path().join(&b)).unwrap();
        fs::create_dir_all(dir.path().join("system.slice/x.service")).unwrap();
        let selection = annotated(dir.path());
        assert_eq!(selection.current().entries, SelectionEntries::default());
        let unknown = "99999999-2222-4333-8444-555555555555";
        assert!(selection.set_opted_in(BTreeSet::from([B.to_owned(), unknown.to_owned()])));
        assert!(
            !selection.set_opted_in(BTreeSet::from([B.to_owned(), unknown.to_owned()])),
            "no change"
        );
        let current = selection.current();
        let (entries, directories) = (current.entries, current.directories);
        let id = fs::metadata(dir.path().join(&b)).unwrap().ino();
        assert_eq!(
            entries.keys,
            [(
                SelectKey {
                    value: id,
                    kind: SELECT_POD_CGROUP,
                    zero: 0
                },
                VERDICT_STEER
            )]
        );
        assert!(entries.has_pods() && !entries.selected_only);
        assert_eq!(directories.len(), 4, "{directories:?}");
    }

    #[test]
    fn no_pod_opts_in_unless_annotated_pods_are_steered() {
        let dir = tempfile::tempdir().unwrap();
        let selection = Selection::new(&SelectConfig::default(), dir.path());
        assert!(!selection.set_opted_in(BTreeSet::from([
            "11111111-2222-4333-8444-555555555555".to_owned()
        ])));
    }

    #[test]
    fn the_number_of_pods_that_opt_in_is_limited() {
        let dir = tempfile::tempdir().unwrap();
        let selection = annotated(dir.path());
        let pods = (0..MAX_PODS + 10).map(|n| format!("pod-{n:06}"));
        assert!(selection.set_opted_in(pods.collect()));
        assert_eq!(selection.opted_in.lock().len(), MAX_PODS);
    }

    #[test]
    fn the_selection_is_described_for_people() {
        let dir = tempfile::tempdir().unwrap();
        let describe = |only: &[Selector], except: &[Selector]| {
            let config = SelectConfig {
                only: only.to_vec(),
                except: except.to_vec(),
                pods: vec![PodSelector::Annotated],
            };
            Selection::new(&config, dir.path()).describe()
        };
        let kubelet = [Selector::Command("kubelet".into())];
        let users = [Selector::Uid(7), Selector::Cgroup("/system.slice".into())];
        assert_eq!(describe(&[], &[]), "this network namespace");
        assert_eq!(
            describe(&kubelet, &[]),
            "this network namespace (command kubelet)"
        );
        assert_eq!(
            describe(&[], &users),
            "this network namespace (all but user 7, cgroup /system.slice)"
        );
        assert_eq!(
            describe(&kubelet, &users),
            "this network namespace (command kubelet but user 7, cgroup /system.slice)"
        );
        let selection = annotated(dir.path());
        selection.set_opted_in(BTreeSet::from(["a".to_owned()]));
        assert!(selection.describe().ends_with("and one pod that opted in"));
        selection.set_opted_in(BTreeSet::from(["a".to_owned(), "b".to_owned()]));
        assert!(selection.describe().ends_with("and 2 pods that opted in"));
    }

    #[test]
    fn a_cgroup_that_appears_is_selected() {
        let dir = tempfile::tempdir().unwrap();
        let config = SelectConfig {
            pods: vec![PodSelector::Cgroup("/kubepods/late".into())],
            ..SelectConfig::default()
        };
        let selection = Selection::new(&config, dir.path());
        assert_eq!(selection.current().entries.keys, []);
        fs::create_dir_all(dir.path().join("kubepods/late")).unwrap();
        let current = selection.current();
        assert_eq!(current.entries.keys[0].0.kind, SELECT_POD_CGROUP);
        assert_eq!(current.directories, [dir.path().join("kubepods")]);
    }
}
