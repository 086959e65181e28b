//! Whose calls are steered. In: the configuration's selections, the pods that opted in, the cgroup tree as it changes.
//! Out: the entries of the programs' maps, kept true.

use std::collections::BTreeSet;
use std::fs;
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
use crate::ebpf::maps::{Programs, SelectionEntries};
use crate::node::cgroup::pod_of;

/// Looked at this often without an event, too.
const RECHECK: Duration = Duration::from_secs(30);
/// Directories of the tree that can hold pods, at most.
const MAX_DIRECTORIES: usize = 64;
/// Pods that opt in at most: room for other selections stays.
const MAX_PODS: usize = MAX_SELECT / 2;

#[derive(Debug)]
pub(super) struct Selection {
    config: SelectConfig,
    root: PathBuf,
    opted: Mutex<BTreeSet<String>>,
    changed: Notify,
}

impl Selection {
    /// `root` is where cgroup v2 is mounted.
    pub(super) fn new(config: &SelectConfig, root: &Path) -> Arc<Self> {
        Arc::new(Self {
            config: config.clone(),
            root: root.to_path_buf(),
            opted: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// These pods (by UID) want to be steered, and no others; those beyond the limit aren't. True when it is news.
    pub(super) fn opt_in(&self, pods: BTreeSet<String>) -> bool {
        let pods: BTreeSet<_> = if self.config.pods.contains(&PodSelector::Annotated) {
            pods.into_iter().take(MAX_PODS).collect()
        } else {
            BTreeSet::new()
        };
        let mut opted = self.opted.lock();
        if *opted == pods {
            return false;
        }
        *opted = pods;
        drop(opted);
        self.changed.notify_one();
        true
    }

    pub(super) fn describe(&self) -> String {
        let host = match (self.config.only.is_empty(), self.config.except.is_empty()) {
            (true, true) => "this network namespace".to_owned(),
            (only, except) => {
                let list = |selectors: &[Selector]| {
                    selectors
                        .iter()
                        .map(describe)
                        .collect::<Vec<_>>()
                        .join(", ")
                };
                let all = if only {
                    "all".to_owned()
                } else {
                    list(&self.config.only)
                };
                let but = if except {
                    String::new()
                } else {
                    format!(" but {}", list(&self.config.except))
                };
                format!("this network namespace ({all}{but})")
            }
        };
        match self.opted.lock().len() {
            0 => host,
            1 => format!("{host}, and one pod that opted in"),
            n => format!("{host}, and {n} pods that opted in"),
        }
    }

    /// Keeps the maps true, for ever.
    pub(super) async fn keep(self: Arc<Self>, programs: Arc<Programs>) {
        let mut told = None;
        let mut tree = Tree::watch().inspect_err(|error| {
            tracing::warn!("changes of the cgroup tree are seen every {RECHECK:?} only: {error}");
        });
        loop {
            let (entries, directories) = self.entries();
            if let Ok(tree) = &mut tree {
                tree.follow(&directories);
            }
            // Once more: a directory may have come between the look and the watch.
            let entries = if tree.is_ok() {
                self.entries().0
            } else {
                entries
            };
            if told.as_ref() != Some(&entries) {
                match programs.select(&entries) {
                    Ok(()) => told = Some(entries),
                    Err(error) => {
                        tracing::error!(
                            "the selection of callers can't be told to the kernel: {error}"
                        )
                    }
                }
            }
            let event = async {
                match &mut tree {
                    Ok(tree) => tree.changed().await,
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = event => {}
                () = tokio::time::sleep(RECHECK) => {}
            }
        }
    }

    /// What the programs are to be told now, and the directories where that could change.
    pub(super) fn entries(&self) -> (SelectionEntries, Vec<PathBuf>) {
        let mut entries = SelectionEntries {
            only: !self.config.only.is_empty(),
            ..SelectionEntries::default()
        };
        let mut directories = Vec::new();
        for (selectors, verdict) in [
            (&self.config.only, VERDICT_STEER),
            (&self.config.except, VERDICT_EXCEPT),
        ] {
            for selector in selectors {
                match selector {
                    Selector::Cgroup(path) => self.cgroup(
                        path,
                        (SELECT_CGROUP, verdict),
                        &mut entries,
                        &mut directories,
                    ),
                    Selector::Uid(uid) => entries.add(SELECT_UID, (*uid).into(), verdict),
                    Selector::Command(name) => entries.commands.push((comm(name), verdict)),
                }
            }
        }
        for selector in &self.config.pods {
            match selector {
                PodSelector::Annotated => {}
                PodSelector::Cgroup(path) => {
                    self.cgroup(
                        path,
                        (SELECT_POD_CGROUP, VERDICT_STEER),
                        &mut entries,
                        &mut directories,
                    );
                }
                PodSelector::Netns(cookie) => entries.add(SELECT_POD_NETNS, *cookie, VERDICT_STEER),
            }
        }
        let opted = self.opted.lock().clone();
        if !opted.is_empty() {
            let (pods, searched) = pods(&self.root);
            for (_, id) in pods.iter().filter(|(uid, _)| opted.contains(uid)) {
                entries.add(SELECT_POD_CGROUP, *id, VERDICT_STEER);
            }
            directories.extend(searched);
        }
        entries.pods = entries
            .keys
            .iter()
            .any(|(key, _)| matches!(key.kind, SELECT_POD_CGROUP | SELECT_POD_NETNS));
        (entries, directories)
    }

    fn cgroup(
        &self,
        path: &Path,
        (kind, verdict): (u32, u32),
        entries: &mut SelectionEntries,
        directories: &mut Vec<PathBuf>,
    ) {
        let full = self.root.join(path.strip_prefix("/").unwrap_or(path));
        if let Ok(meta) = fs::metadata(&full) {
            entries.add(kind, meta.ino(), verdict);
        }
        // It comes and goes in the last directory above it that is there.
        directories.extend(
            full.ancestors()
                .skip(1)
                .find(|above| above.is_dir())
                .map(Path::to_path_buf),
        );
    }
}

fn describe(selector: &Selector) -> String {
    match selector {
        Selector::Cgroup(path) => format!("cgroup {}", path.display()),
        Selector::Uid(uid) => format!("user {uid}"),
        Selector::Command(name) => format!("command {name}"),
    }
}

/// As the kernel cuts it.
fn comm(name: &str) -> [u8; COMM_LEN] {
    let mut comm = [0; COMM_LEN];
    comm.iter_mut()
        .zip(name.bytes().take(COMM_LEN - 1))
        .for_each(|(to, from)| *to = from);
    comm
}

/// The UIDs of the node's pods with their cgroups' ids, and the directories that hold them. The kubelet's layouts: with cgroupfs
/// `/kubepods/burstable/podUID`, with systemd `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice`.
fn pods(root: &Path) -> (Vec<(String, u64)>, Vec<PathBuf>) {
    let mut pods = Vec::new();
    let (mut directories, mut next) = (vec![root.to_path_buf()], 0);
    while next < directories.len() {
        for entry in fs::read_dir(&directories[next])
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if let Some(uid) = pod_of(&name) {
                pods.extend(entry.metadata().map(|meta| (uid, meta.ino())));
            } else if ["kube", "burstable", "besteffort"]
                .iter()
                .any(|part| name.contains(part))
                && directories.len() < MAX_DIRECTORIES
            {
                directories.push(entry.path());
            }
        }
        next += 1;
    }
    (pods, directories)
}

/// Directories that are watched for new and gone ones.
struct Tree {
    watches: Watches,
    events: EventStream<[u8; 4096]>,
}

impl Tree {
    fn watch() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        Ok(Self {
            watches: inotify.watches(),
            events: inotify.into_event_stream([0; 4096])?,
        })
    }

    /// Watches these directories. Watching one twice is the same watch, and one that goes ends its own.
    fn follow(&mut self, directories: &[PathBuf]) {
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR;
        for path in directories {
            let _gone_meanwhile = self.watches.add(path, mask);
        }
    }

    /// Waits for a change.
    async fn changed(&mut self) {
        if self.events.next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
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
        let (entries, directories) = Selection::new(&config, dir.path()).entries();
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
        assert!(entries.only && entries.pods);
        assert_eq!(
            directories,
            [dir.path(), dir.path()],
            "where the cgroups come and go"
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
        assert_eq!(
            selection.entries().0,
            SelectionEntries::default(),
            "nobody asked"
        );
        let unknown = "99999999-2222-4333-8444-555555555555";
        assert!(selection.opt_in(BTreeSet::from([B.to_owned(), unknown.to_owned()])));
        assert!(
            !selection.opt_in(BTreeSet::from([B.to_owned(), unknown.to_owned()])),
            "no news"
        );
        let (entries, directories) = selection.entries();
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
        assert!(entries.pods && !entries.only);
        assert_eq!(directories.len(), 4, "{directories:?}");
    }

    #[test]
    fn without_the_wish_nobody_opts_in() {
        let dir = tempfile::tempdir().unwrap();
        let selection = Selection::new(&SelectConfig::default(), dir.path());
        assert!(!selection.opt_in(BTreeSet::from([
            "11111111-2222-4333-8444-555555555555".to_owned()
        ])));
    }
}
