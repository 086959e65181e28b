//! The modules of a crate and their uses of each other, each path resolved through imports and re-exports to the file that
//! defines the item.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::references::{Import, Reference, References};

/// Imports and re-exports that are followed from one path.
const MAX_HOPS: usize = 16;

/// A file of the crate, by the path of its module (`["cache", "store"]`; the root's is empty).
#[derive(Debug)]
struct Module {
    file: PathBuf,
    references: References,
}

/// One file names an item of another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Use {
    /// Modules as `cache::store`.
    pub(super) from: String,
    pub(super) to: String,
    /// Modules of other stages that re-export the item, as the path names them.
    pub(super) via: Vec<String>,
    pub(super) file: PathBuf,
    pub(super) line: usize,
}

/// All modules of a crate.
#[derive(Debug, Default)]
pub(super) struct Modules(BTreeMap<Vec<String>, Module>);

impl Modules {
    /// Reads `src/` of a crate from `lib.rs` on.
    pub(super) fn read_crate(src: &Path) -> Result<Self> {
        let mut modules = Self::default();
        modules.read_file(src, &src.join("lib.rs"), Vec::new())?;
        Ok(modules)
    }

    fn read_file(&mut self, src: &Path, file: &Path, path: Vec<String>) -> Result<()> {
        let source =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let references = References::parse(&source).with_context(|| file.display().to_string())?;
        let folder = src.join(path.iter().collect::<PathBuf>());
        for child in &references.children {
            let beside = folder.join(format!("{child}.rs"));
            let within = folder.join(child).join("mod.rs");
            let file = if beside.is_file() { beside } else { within };
            self.read_file(
                src,
                &file,
                [path.as_slice(), std::slice::from_ref(child)].concat(),
            )?;
        }
        self.insert(path, file, references);
        Ok(())
    }

    fn insert(&mut self, path: Vec<String>, file: &Path, references: References) {
        let file = file.to_path_buf();
        self.0.insert(path, Module { file, references });
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Every use of one file by another, once for each pair of files.
    pub(super) fn find_uses(&self) -> Vec<Use> {
        let mut seen = BTreeSet::new();
        let mut uses = Vec::new();
        for (path, module) in &self.0 {
            for reference in module.references.used_paths() {
                let mut trail = Vec::new();
                let Some(target) = self.resolve_path(path, &reference.path, &mut trail) else {
                    continue;
                };
                trail.retain(|passed| passed.first() != path.first());
                let via: Vec<String> = trail.iter().map(|passed| passed.join("::")).collect();
                if target != *path && seen.insert((path, target.clone(), via.clone())) {
                    uses.push(Use {
                        from: path.join("::"),
                        to: target.join("::"),
                        via,
                        file: module.file.clone(),
                        line: reference.line,
                    });
                }
            }
        }
        uses
    }

    /// The module that defines what `path`, written in module `from`, names; `None` for other crates' items. Modules
    /// whose imports were followed are added to `trail`.
    fn resolve_path(
        &self,
        from: &[String],
        path: &[String],
        trail: &mut Vec<Vec<String>>,
    ) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.follow_path(Vec::new(), rest, trail),
            "self" => self.follow_path(from.to_vec(), rest, trail),
            "super" => self.resolve_super(from, rest, trail),
            name if self.defines(from, name) => self.follow_path(from.to_vec(), path, trail),
            _ => None,
        }
    }

    fn resolve_super(
        &self,
        from: &[String],
        rest: &[String],
        trail: &mut Vec<Vec<String>>,
    ) -> Option<Vec<String>> {
        let (_, parent) = from.split_last()?;
        if rest.first().is_some_and(|next| next == "super") {
            return self.resolve_path(parent, rest, trail);
        }
        self.follow_path(parent.to_vec(), rest, trail)
    }

    /// Does the module declare or import a module or item of this crate by that name?
    fn defines(&self, module: &[String], name: &str) -> bool {
        self.child_module(module, name).is_some() || self.find_import(module, name).is_some()
    }

    /// Follows `rest` down from `module`, through re-exports where it meets them.
    fn follow_path(
        &self,
        module: Vec<String>,
        rest: &[String],
        trail: &mut Vec<Vec<String>>,
    ) -> Option<Vec<String>> {
        let Some((name, rest)) = rest.split_first() else {
            return Some(module);
        };
        if let Some(child) = self.child_module(&module, name) {
            return self.follow_path(child, rest, trail);
        }
        if let Some(import) = self.find_import(&module, name) {
            let path = [&import.reference.path, rest].concat();
            trail.push(module.clone());
            if trail.len() > MAX_HOPS {
                return None;
            }
            // An import of another crate's item (`use hyper::body`) ends here: no use of ours.
            return self.resolve_path(&module, &path, trail);
        }
        Some(module)
    }

    fn child_module(&self, module: &[String], name: &str) -> Option<Vec<String>> {
        let path = [module, &[name.to_owned()]].concat();
        self.0.contains_key(&path).then_some(path)
    }

    fn find_import(&self, module: &[String], name: &str) -> Option<&Import> {
        let imports = &self.0.get(module)?.references.imports;
        // `use name;` of another crate imports itself.
        imports
            .iter()
            .find(|import| import.name.as_deref() == Some(name) && import.reference.path != [name])
    }
}

impl References {
    /// The file's own uses: all but re-exports.
    fn used_paths(&self) -> impl Iterator<Item = &Reference> {
        let imported = self.imports.iter().filter(|import| !import.is_reexport);
        imported.map(|import| &import.reference).chain(&self.paths)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A crate of modules `(path, source)`.
    pub(in crate::arrows) fn crate_of(files: &[(&str, &str)]) -> Modules {
        let mut modules = Modules::default();
        for (path, source) in files {
            let path: Vec<String> = path
                .split("::")
                .filter(|p| !p.is_empty())
                .map(str::to_owned)
                .collect();
            let file = PathBuf::from(path.join("/"));
            modules.insert(path, &file, References::parse(source).unwrap());
        }
        modules
    }

    fn uses(files: &[(&str, &str)]) -> Vec<String> {
        let uses = crate_of(files).find_uses();
        uses.iter()
            .map(|u| format!("{} -> {}", u.from, u.to))
            .collect()
    }

    #[test]
    fn a_path_is_resolved_through_the_reexport_to_the_file() {
        let found = uses(&[
            ("", "mod cache; mod local;"),
            ("cache", "mod store; pub(crate) use store::Store;"),
            ("cache::store", "pub(crate) struct Store;"),
            (
                "local",
                "use crate::cache::Store;\nuse hyper::body::Body;\nfn f(s: Store, b: Body) {}",
            ),
        ]);
        assert_eq!(found, ["local -> cache::store"]);
    }

    #[test]
    fn super_self_and_names_in_scope_are_resolved() {
        let found = uses(&[
            ("", "mod cache; mod clock;"),
            ("clock", ""),
            (
                "cache",
                "mod keys; mod store; use crate::clock;\nfn f() { clock::now(); store::open(); }",
            ),
            ("cache::keys", ""),
            (
                "cache::store",
                "use super::keys::Key;\nfn g() { super::super::clock::now(); }",
            ),
        ]);
        assert_eq!(
            found,
            [
                "cache -> clock",
                "cache -> cache::store",
                "cache::store -> cache::keys",
                "cache::store -> clock",
            ]
        );
    }

    #[test]
    fn a_circle_of_imports_ends() {
        let found = uses(&[
            ("", "mod a; mod b;"),
            ("a", "pub(crate) use crate::b::X;"),
            (
                "b",
                "pub(crate) use crate::a::X;\nfn f() { crate::a::X::new(); }",
            ),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }
}
