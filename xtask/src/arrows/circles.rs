//! Circles in a graph of modules: strongly connected components, by Tarjan's algorithm.

use std::collections::BTreeMap;

/// Edges by their beginning.
pub(super) type Graph<'a> = BTreeMap<&'a str, Vec<&'a str>>;

/// Modules that reach each other, two or more of them; sorted.
pub(super) fn find_circles<'a>(graph: &Graph<'a>) -> Vec<Vec<&'a str>> {
    let mut search = Search {
        graph,
        next: 0,
        marks: BTreeMap::new(),
        stack: Vec::new(),
        found: Vec::new(),
    };
    for module in graph.keys() {
        if !search.marks.contains_key(module) {
            search.visit_module(module);
        }
    }
    search.found.sort();
    search.found
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    index: usize,
    is_on_stack: bool,
}

struct Search<'g, 'a> {
    graph: &'g Graph<'a>,
    next: usize,
    marks: BTreeMap<&'a str, Mark>,
    stack: Vec<&'a str>,
    found: Vec<Vec<&'a str>>,
}

impl<'a> Search<'_, 'a> {
    /// Gives the lowest index that is reached from `module`.
    fn visit_module(&mut self, module: &'a str) -> usize {
        let index = self.next;
        self.next += 1;
        self.stack.push(module);
        let is_on_stack = true;
        self.marks.insert(module, Mark { index, is_on_stack });
        let mut low = index;
        for to in self.graph.get(module).into_iter().flatten() {
            low = low.min(self.low_of(to));
        }
        if low == index {
            self.close_component(module);
        }
        low
    }

    fn low_of(&mut self, module: &'a str) -> usize {
        match self.marks.get(module) {
            None => self.visit_module(module),
            Some(mark) if mark.is_on_stack => mark.index,
            Some(_) => usize::MAX,
        }
    }

    /// Takes the component whose first module this is off the stack.
    fn close_component(&mut self, first: &'a str) {
        let at = self.stack.iter().position(|module| *module == first);
        let mut component = self.stack.split_off(at.unwrap_or_default());
        for module in &component {
            if let Some(mark) = self.marks.get_mut(module) {
                mark.is_on_stack = false;
            }
        }
        if component.len() > 1 {
            component.sort_unstable();
            self.found.push(component);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph<'a>(edges: &[(&'a str, &'a str)]) -> Graph<'a> {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry(*from).or_default().push(*to);
        }
        graph
    }

    #[test]
    fn a_chain_has_no_circle() {
        assert!(find_circles(&graph(&[("a", "b"), ("b", "c"), ("a", "c")])).is_empty());
    }

    #[test]
    fn two_circles_are_told_apart() {
        let edges = [
            ("a", "b"),
            ("b", "a"),
            ("b", "c"),
            ("c", "d"),
            ("d", "e"),
            ("e", "c"),
        ];
        assert_eq!(
            find_circles(&graph(&edges)),
            [vec!["a", "b"], vec!["c", "d", "e"]]
        );
    }
}
