//! The schema against the code that reads: neither may know what the other does not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{Key, Kind, NAMES, json_schema, root, text};
use crate::config::read::seen::{self, Read};
use crate::config::tests::compile_golden;

/// Keys that some form of a table requires and another has not: the schema has one table for all forms.
const REQUIRED_OF_SOME: &[(&str, &str)] =
    &[("routes/caller/[]/signature", "key_id"), ("routes/caller/[]/signature", "secret_encoding")];

/// Keys that are read to be refused with advice of their own: an editor must not offer them.
const REFUSED: &[&str] = &["store"];

/// What the schema says at a place; several kinds where there is a choice.
fn at<'k>(kinds: &[&'k Kind], place: &[&str]) -> Vec<&'k Kind> {
    let mut flat = Vec::new();
    let mut open: Vec<&Kind> = kinds.to_vec();
    while let Some(kind) = open.pop() {
        match kind {
            Kind::Either(kinds) => open.extend(kinds.iter()),
            other => flat.push(other),
        }
    }
    let Some((first, rest)) = place.split_first() else { return flat };
    let inside: Vec<&Kind> = flat
        .into_iter()
        .flat_map(|kind| match (kind, *first) {
            (Kind::Json, _) => vec![kind],
            (Kind::List(of), "[]") | (Kind::Map(of), "*") => vec![*of],
            (Kind::Table(keys), name) => keys.iter().filter(|key| key.name == name).map(|key| &key.kind).collect(),
            _ => Vec::new(),
        })
        .collect();
    at(&inside, rest)
}

fn kinds_of(shape: &str) -> Vec<&'static Kind> {
    let (name, place) = shape.split_once('/').unwrap_or((shape, ""));
    let keys = root(name).expect("a schema of this name").0;
    let root: &'static Kind = Box::leak(Box::new(Kind::Table(keys)));
    at(&[root], &place.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>())
}

fn words(kind: &Kind) -> Option<BTreeSet<String>> {
    let Kind::Words(words) = kind else { return None };
    Some(words.iter().map(|word| (*word).to_owned()).collect())
}

fn names(keys: &[Key]) -> BTreeSet<String> {
    keys.iter().map(|key| key.name.to_owned()).collect()
}

/// True if the schema lets the reader read what it reads there.
fn agrees(kind: &Kind, read: &Read) -> bool {
    let offered = |known: &BTreeSet<String>| {
        known.iter().filter(|name| !REFUSED.contains(&name.as_str())).cloned().collect::<BTreeSet<_>>()
    };
    let textual = matches!(
        kind,
        Kind::Text | Kind::Form(_) | Kind::Words(_) | Kind::Duration | Kind::Size | Kind::Money | Kind::Day
    );
    match read {
        _ if matches!(kind, Kind::Json) => true,
        Read::Text => textual,
        Read::Keys(known) => matches!(kind, Kind::Table(keys) if names(keys) == offered(known)),
        Read::Required(_) => matches!(kind, Kind::Table(_)),
        Read::Words(known) => words(kind).is_some_and(|words| words == *known),
        Read::Whole(least, most) => {
            let Kind::Whole(from, to) = kind else { return false };
            let (least, most): (i64, i64) = (least.parse().unwrap(), most.parse().unwrap());
            *from >= least && (*to == most || (*to <= most && most == i64::MAX))
        }
        Read::Number => matches!(kind, Kind::Number(..)),
        Read::Flag => matches!(kind, Kind::Flag),
        Read::Duration => matches!(kind, Kind::Duration | Kind::Form(_)),
        Read::Size => matches!(kind, Kind::Size),
        Read::Cost => matches!(kind, Kind::Money),
        Read::Day => matches!(kind, Kind::Day),
        Read::Table => matches!(kind, Kind::Table(_) | Kind::Map(_)),
        Read::List => matches!(kind, Kind::List(_)),
        Read::Json => false,
    }
}

/// Reads every golden file, right and wrong ones, in this thread.
fn everything_read() -> BTreeSet<(String, Read)> {
    for folder in ["good", "bad"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/config").join(folder);
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                let _ = compile_golden(&path);
            }
        }
    }
    seen::all()
}

#[test]
fn everything_that_is_read_is_in_the_schema() {
    let read = everything_read();
    let strays: Vec<_> = read
        .iter()
        .filter(|(shape, read)| !kinds_of(shape).iter().any(|kind| agrees(kind, read)))
        .map(|(shape, read)| format!("{shape}: {read:?}"))
        .collect();
    let advice = "src/config/schema/ has no such key, or another kind, word or bound there:";
    assert!(strays.is_empty(), "{advice}\n  {}", strays.join("\n  "));
}

#[test]
fn everything_in_the_schema_is_read() {
    let all = everything_read();
    // A table that stands in several places, such as `auth`, is the same code: one place shows that it is read.
    let mut shown: BTreeMap<(BTreeSet<String>, String), bool> = BTreeMap::new();
    for name in NAMES {
        walk(name, &Kind::Table(root(name).unwrap().0), &mut |shape, kind| {
            let Kind::Table(keys) = kind else { return };
            let seen = |read: Read| all.contains(&(shape.to_owned(), read));
            let mut note = |what: String, holds: bool| *shown.entry((names(keys), what)).or_default() |= holds;
            let as_read =
                |more: &[&str]| names(keys).into_iter().chain(more.iter().map(|name| (*name).to_owned())).collect();
            let whole = seen(Read::Keys(names(keys))) || seen(Read::Keys(as_read(REFUSED)));
            note("as one table".to_owned(), whole);
            for key in *keys {
                let place = format!("{shape}/{}", key.name);
                let inside =
                    |read: &str| read == place || read.strip_prefix(&place).is_some_and(|rest| rest.starts_with('/'));
                note(format!("`{}`", key.name), all.iter().any(|(read, _)| inside(read)));
                let agreed = key.required == seen(Read::Required(key.name.to_owned()));
                let exempt = REQUIRED_OF_SOME.contains(&(shape, key.name));
                note(
                    format!("`{}` as {}", key.name, if key.required { "required" } else { "optional" }),
                    agreed || exempt,
                );
            }
        });
    }
    let missing: Vec<String> = shown
        .iter()
        .filter(|(_, holds)| !**holds)
        .map(|((table, what), _)| {
            format!("{what}, in the table of: {}", table.iter().cloned().collect::<Vec<_>>().join(" "))
        })
        .collect();
    let advice = "no golden file in tests/golden/config has it, or nothing reads it:";
    assert!(missing.is_empty(), "{advice}\n  {}", missing.join("\n  "));
}

fn walk(shape: &str, kind: &Kind, visit: &mut impl FnMut(&str, &Kind)) {
    match kind {
        Kind::Either(kinds) => kinds.iter().for_each(|kind| walk(shape, kind, visit)),
        Kind::List(of) => walk(&format!("{shape}/[]"), of, visit),
        Kind::Map(of) => walk(&format!("{shape}/*"), of, visit),
        Kind::Table(keys) => {
            visit(shape, kind);
            keys.iter().for_each(|key| walk(&format!("{shape}/{}", key.name), &key.kind, visit));
        }
        // Its inside is anybody's.
        Kind::Json => {}
        other => visit(shape, other),
    }
}

#[test]
fn every_key_says_what_it_is_for() {
    for name in NAMES {
        walk(name, &Kind::Table(root(name).unwrap().0), &mut |shape, kind| {
            let Kind::Table(keys) = kind else { return };
            for key in *keys {
                assert!(
                    key.says.len() > 5 && key.says.ends_with(|c: char| ".`".contains(c) || c == 'l'),
                    "{shape}/{}",
                    key.name
                );
            }
        });
    }
}

#[test]
fn the_committed_schemas_are_these() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    for name in NAMES {
        let path = folder.join(format!("{name}.json"));
        let expected = text(name).unwrap();
        #[expect(clippy::disallowed_methods, reason = "how golden files are written anew")]
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &expected).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == expected, "{}: run with UPDATE_GOLDEN=1", path.display());
    }
    assert!(json_schema("other").is_none());
}
