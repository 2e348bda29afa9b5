//! YAML to a small tree with line numbers. Everything is bounded before it is built: depth, nodes, and what aliases expand
//! to, so that a few lines cannot become a gigabyte.

use std::collections::BTreeMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::ImportError;

const DEEPEST: usize = 32;
/// Nodes, each counted again wherever an alias stands for it.
const MOST_NODES: usize = 100_000;

/// One value with its line.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) kind: Kind,
    /// Nodes in it, itself included.
    weight: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// A text, number, flag, or nothing; quoted ones are text in any case.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Rc<Node>>),
    /// In written order; a key that occurs twice counts as its last.
    Map(Vec<(String, Rc<Node>)>),
}

impl Node {
    /// The value under a key.
    pub(super) fn get(&self, key: &str) -> Option<&Rc<Node>> {
        self.entries().iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The entries of a mapping; none of anything else.
    pub(super) fn entries(&self) -> &[(String, Rc<Node>)] {
        if let Kind::Map(entries) = &self.kind { entries } else { &[] }
    }

    /// The elements of a list; none of anything else.
    pub(super) fn items(&self) -> &[Rc<Node>] {
        if let Kind::List(items) = &self.kind { items } else { &[] }
    }

    /// Text or number as it is written; not `null`.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, plain }
                if !(*plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")) =>
            {
                Some(text)
            }
            _ => None,
        }
    }

    /// True for the ways to write yes.
    pub(super) fn is_true(&self) -> bool {
        self.text().is_some_and(|text| matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "on"))
    }
}

/// Reads the first document.
pub(super) fn parse(text: &str) -> Result<Node, ImportError> {
    let mut reader = Reader { parser: Parser::new_from_str(text), anchors: BTreeMap::new(), nodes: 0, line: 1 };
    loop {
        match reader.next()? {
            Event::StreamEnd => return Ok(empty(1)),
            Event::DocumentStart(_) => {
                let event = reader.next()?;
                return reader.node(event, 0).map(Rc::unwrap_or_clone);
            }
            _ => {}
        }
    }
}

fn empty(line: usize) -> Node {
    Node { line, kind: Kind::Map(Vec::new()), weight: 1 }
}

struct Reader<'t> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    anchors: BTreeMap<usize, Rc<Node>>,
    nodes: usize,
    line: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<Event<'t>, ImportError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                self.line = span.start.line();
                Ok(event)
            }
            // The parser's own words may quote the file.
            Some(Err(error)) => Err(ImportError::Syntax { line: error.marker().line(), what: "cannot be read" }),
            None => Ok(Event::StreamEnd),
        }
    }

    fn node(&mut self, event: Event<'t>, depth: usize) -> Result<Rc<Node>, ImportError> {
        if depth > DEEPEST {
            return Err(ImportError::TooMuch { line: self.line, what: "nested too deeply" });
        }
        let line = self.line;
        self.count(1)?;
        let (anchor, kind) = match event {
            Event::Alias(anchor) => return self.alias(anchor),
            Event::Scalar(text, style, anchor, _) => {
                (anchor, Kind::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain })
            }
            Event::SequenceStart(anchor, _) => (anchor, self.list(depth)?),
            Event::MappingStart(anchor, _) => (anchor, self.map(depth)?),
            _ => return Err(ImportError::Syntax { line, what: "a value was expected" }),
        };
        let weight = match &kind {
            Kind::Scalar { .. } => 1,
            Kind::List(items) => items.iter().map(|item| item.weight).sum::<usize>() + 1,
            Kind::Map(entries) => entries.iter().map(|(_, value)| value.weight).sum::<usize>() + 1,
        };
        let node = Rc::new(Node { line, kind, weight });
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        Ok(node)
    }

    /// What an alias stands for is shared, and counted as if it stood there.
    fn alias(&mut self, anchor: usize) -> Result<Rc<Node>, ImportError> {
        let what = "an alias inside of what it stands for";
        let node = self.anchors.get(&anchor).cloned().ok_or(ImportError::Syntax { line: self.line, what })?;
        self.count(node.weight)?;
        Ok(node)
    }

    fn count(&mut self, nodes: usize) -> Result<(), ImportError> {
        self.nodes = self.nodes.saturating_add(nodes);
        let what = "more than 100000 values, aliases counted as what they stand for";
        if self.nodes > MOST_NODES { Err(ImportError::TooMuch { line: self.line, what }) } else { Ok(()) }
    }

    fn list(&mut self, depth: usize) -> Result<Kind, ImportError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                Event::SequenceEnd => return Ok(Kind::List(items)),
                event => items.push(self.node(event, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Kind, ImportError> {
        let (mut entries, mut merged) = (Vec::new(), Vec::new());
        loop {
            let key = match self.next()? {
                Event::MappingEnd => break,
                event => self.node(event, depth + 1)?,
            };
            let event = self.next()?;
            let value = self.node(event, depth + 1)?;
            match key.text() {
                Some("<<") => merged.push(value),
                Some(name) => entries.push((name.to_owned(), value)),
                None => {}
            }
        }
        // `<<: *defaults`: what is written wins.
        for source in merged.iter().flat_map(|value| std::iter::once(value).chain(value.items())) {
            for (name, value) in source.entries() {
                if !entries.iter().any(|(known, _)| known == name) {
                    self.count(value.weight)?;
                    entries.push((name.clone(), Rc::clone(value)));
                }
            }
        }
        Ok(Kind::Map(entries))
    }
}
