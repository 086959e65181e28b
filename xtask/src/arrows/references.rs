//! The paths that a Rust file names, read from its tokens, so that comments and strings don't count and macro arguments
//! do. Code under `#[cfg(test)]` is left out: tests may use everything.

use anyhow::{Context, Result};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A path as a file writes it, beginning with `crate`, `super`, `self` or a name in scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) path: Vec<String>,
    pub(super) line: usize,
}

/// One leaf of a `use` declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Import {
    pub(super) reference: Reference,
    /// The name that it brings into scope; `None` for `use path::*`.
    pub(super) name: Option<String>,
    /// `pub use` and `pub(…) use`: it only passes the item on.
    pub(super) is_reexport: bool,
}

/// Everything a file says about other modules.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct References {
    /// Modules that the file declares (`mod name;`), their tests left out.
    pub(super) children: Vec<String>,
    pub(super) imports: Vec<Import>,
    /// Paths of two or more segments in code.
    pub(super) paths: Vec<Reference>,
}

impl References {
    /// Reads a whole source file.
    pub(super) fn parse(source: &str) -> Result<Self> {
        let tokens: TokenStream = source
            .parse()
            .map_err(|error| anyhow::anyhow!("{error}"))
            .context("cannot split the file into tokens")?;
        let mut references = Self::default();
        references.read_tokens(tokens);
        Ok(references)
    }

    fn read_tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            at = if is_test_attribute(&tokens, at) {
                end_of_item(&tokens, at + 2)
            } else {
                self.read_one(&tokens, at)
            };
        }
    }

    /// Reads what begins at `at`; gives the place behind it.
    fn read_one(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        match &tokens[at] {
            TokenTree::Group(group) => {
                self.read_tokens(group.stream());
                at + 1
            }
            // `impl Trait + use<'a>` is no declaration.
            TokenTree::Ident(word) if word == "use" && !is_punct_at(tokens, at + 1, '<') => {
                self.read_use(tokens, at)
            }
            TokenTree::Ident(word) if word == "mod" => self.read_mod(tokens, at),
            TokenTree::Ident(_) if !follows_separator(tokens, at) => self.read_path(tokens, at),
            _ => at + 1,
        }
    }

    fn read_mod(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        if let (Some(TokenTree::Ident(name)), Some(TokenTree::Punct(end))) =
            (tokens.get(at + 1), tokens.get(at + 2))
            && end.as_char() == ';'
        {
            self.children.push(name.to_string());
        }
        at + 1
    }

    fn read_use(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        let end = end_of_item(tokens, at);
        let is_reexport = is_public(tokens, at);
        let tree = &tokens[at + 1..end.saturating_sub(1).max(at + 1)];
        read_use_tree(tree, &[], is_reexport, &mut self.imports);
        end
    }

    fn read_path(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        let (path, end) = path_at(tokens, at);
        if path.len() > 1 {
            let line = line_of(&tokens[at]);
            self.paths.push(Reference { path, line });
        }
        end.max(at + 1)
    }
}

/// Flattens `a::{b, c::d as e, f::*}` into its leaves.
fn read_use_tree(tokens: &[TokenTree], prefix: &[String], is_reexport: bool, to: &mut Vec<Import>) {
    for branch in tokens.split(|token| is_punct(token, ',')) {
        let Some(first) = branch.first() else {
            continue;
        };
        let line = line_of(first);
        let (segments, end) = path_at(branch, 0);
        let mut path = [prefix, &segments].concat();
        match branch.get(end) {
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                read_use_tree(&inner, &path, is_reexport, to);
            }
            Some(token) if is_punct(token, '*') => to.push(Import {
                reference: Reference { path, line },
                name: None,
                is_reexport,
            }),
            following => {
                let renamed = following.and_then(|_| branch.get(end + 1));
                // `use module::{self}` names the module.
                if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
                    path.pop();
                }
                let name =
                    renamed.map_or_else(|| path.last().cloned(), |name| Some(name.to_string()));
                to.push(Import {
                    reference: Reference { path, line },
                    name,
                    is_reexport,
                });
            }
        }
    }
}

/// The segments of the path that begins at `at`, and the place behind it: behind a last `::` where a group or
/// star follows that.
fn path_at(tokens: &[TokenTree], at: usize) -> (Vec<String>, usize) {
    let mut segments = Vec::new();
    let mut at = at;
    while let Some(TokenTree::Ident(word)) = tokens.get(at) {
        segments.push(word.to_string());
        at += 1;
        if !is_separator(tokens, at) {
            break;
        }
        at += 2;
    }
    (segments, at)
}

fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    is_punct_at(tokens, at, ':') && is_punct_at(tokens, at + 1, ':')
}

fn follows_separator(tokens: &[TokenTree], at: usize) -> bool {
    if at > 1 && is_separator(tokens, at - 2) {
        return true;
    }
    // `$crate::x` is the path of a macro's user; `.name` is a field or a method.
    at > 0
        && ['.', '\'']
            .iter()
            .any(|char| is_punct(&tokens[at - 1], *char))
}

/// `pub use` and `pub(crate) use`.
fn is_public(tokens: &[TokenTree], at: usize) -> bool {
    match &tokens[..at] {
        [.., TokenTree::Ident(word)] => word == "pub",
        [.., TokenTree::Ident(word), TokenTree::Group(_)] => word == "pub",
        _ => false,
    }
}

/// `#[cfg(test)]`, alone or within `all(…)`, and `#[test]`.
fn is_test_attribute(tokens: &[TokenTree], at: usize) -> bool {
    if !is_punct(&tokens[at], '#') {
        return false;
    }
    let Some(TokenTree::Group(attribute)) = tokens.get(at + 1) else {
        return false;
    };
    attribute.delimiter() == Delimiter::Bracket && is_test(attribute)
}

fn is_test(attribute: &Group) -> bool {
    let text = attribute.stream().to_string().replace(' ', "");
    text == "test" || text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

/// The place behind the item that begins at `at`: behind its `;` or its braces.
fn end_of_item(tokens: &[TokenTree], at: usize) -> usize {
    // A `use` has braces before its `;`.
    let is_use = matches!(tokens.get(at), Some(TokenTree::Ident(word)) if word == "use");
    let length = tokens[at..].iter().position(|token| match token {
        TokenTree::Group(group) => !is_use && group.delimiter() == Delimiter::Brace,
        token => is_punct(token, ';'),
    });
    length.map_or(tokens.len(), |length| at + length + 1)
}

fn is_punct(token: &TokenTree, char: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == char)
}

fn is_punct_at(tokens: &[TokenTree], at: usize, char: char) -> bool {
    tokens.get(at).is_some_and(|token| is_punct(token, char))
}

fn line_of(token: &TokenTree) -> usize {
    token.span().start().line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(source: &str) -> Vec<String> {
        let references = References::parse(source).unwrap();
        let written = |import: &Import| {
            let path = import.reference.path.join("::");
            let name = import.name.as_deref().unwrap_or("*");
            format!("{path} as {name}")
        };
        references.imports.iter().map(written).collect()
    }

    fn paths(source: &str) -> Vec<String> {
        let references = References::parse(source).unwrap();
        let joined = |reference: &Reference| reference.path.join("::");
        references.paths.iter().map(joined).collect()
    }

    #[test]
    fn a_use_tree_is_flattened() {
        assert_eq!(
            imports("use crate::cache::{self, feed::Feed as Changes, keys::*, Store};"),
            [
                "crate::cache as cache",
                "crate::cache::feed::Feed as Changes",
                "crate::cache::keys as *",
                "crate::cache::Store as Store",
            ]
        );
    }

    #[test]
    fn a_reexport_is_told_from_an_import() {
        let references =
            References::parse("pub(crate) use a::B;\npub use a::C;\nuse crate::d::E;").unwrap();
        let kinds: Vec<bool> = references.imports.iter().map(|i| i.is_reexport).collect();
        assert_eq!(kinds, [true, true, false]);
        assert_eq!(references.imports[2].reference.line, 3);
    }

    #[test]
    fn paths_in_code_and_in_macros_count_and_text_does_not() {
        let source = r#"
            // crate::comment::A
            /// crate::doc::B
            pub(crate) fn f(x: crate::clock::Clock) -> String {
                let s = "crate::text::C";
                format!("{}", super::name(s).len()) + x.field.std::nothing
            }"#;
        assert_eq!(paths(source), ["crate::clock::Clock", "super::name"]);
    }

    #[test]
    fn tests_are_left_out() {
        let source = "
            #[cfg(test)]
            mod tests;
            #[cfg(test)]
            mod more { use crate::app::App; }
            #[test]
            fn t() { crate::local::get(); }
            mod kept;
            use crate::clock::Clock;";
        let references = References::parse(source).unwrap();
        assert_eq!(references.children, ["kept"]);
        assert_eq!(imports(source), ["crate::clock::Clock as Clock"]);
        assert!(paths(source).is_empty());
    }
}
