//! From the keys of [`raw::shape`](super::raw::shape) to a [`Shape`]: rules that compare them with each other and with the
//! rest of a provider file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::error::Code;
use super::raw::shape::RawShape;
use super::report::{Field, Report};
use super::table::Protocol;
use crate::domain::operation::Operation;
use crate::wire::json_edit::{RESERVED, Shape};

/// The changes to request bodies, `None` if there are none.
pub(super) fn shape(raw: &RawShape, report: &Report<'_>) -> Option<Arc<Shape>> {
    let names = || {
        let added = raw.add.iter().map(|(name, _)| name);
        added.chain(&raw.drop).chain(raw.rename.iter().flat_map(|(old, new)| [old, new]))
    };
    for name in names().filter(|name| RESERVED.contains(&name.value.as_str())) {
        let mistake = name.mistake(Code::Conflict, "this member is the proxy's own to read and write");
        report.add(mistake.hint(format!("leave alone: {}", RESERVED.join(", "))));
    }
    once_each(names(), report);
    let shape = Shape {
        add: raw.add.iter().map(|(name, added)| (name.value.clone(), added.clone())).collect(),
        rename: raw.rename.iter().map(|(old, new)| (old.value.clone(), new.value.clone())).collect(),
        drop: raw.drop.iter().map(|name| name.value.clone()).collect(),
    };
    (!shape.is_empty()).then(|| Arc::new(shape))
}

/// No member is changed in two ways, and no two become one.
fn once_each<'f>(names: impl Iterator<Item = &'f Field<String>>, report: &Report<'_>) {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name.value.as_str()) {
            report.add(name.mistake(Code::Conflict, "this member is changed in two ways").hint("keep one of them"));
        }
    }
}

/// Paths of operations that the file lists.
pub(super) fn paths(raw: &RawShape, operations: &[Operation], report: &Report<'_>) -> BTreeMap<Operation, String> {
    for (operation, _) in raw.paths.iter().filter(|(operation, _)| !operations.contains(&operation.value)) {
        let mistake = operation.mistake(Code::Conflict, "the operation is not listed in operations");
        report.add(mistake.hint("list it there, or remove its path"));
    }
    raw.paths.iter().map(|(operation, path)| (operation.value, path.clone())).collect()
}

/// These keys belong to `openai`.
pub(super) fn of_protocol(raw: &RawShape, protocol: Protocol, report: &Report<'_>) {
    if let (Protocol::DiHmac, Some(at)) = (protocol, &raw.at) {
        let message = "body, drop, rename, paths and error_codes belong to protocol openai";
        report.add(at.mistake(Code::Conflict, message).hint("remove it"));
    }
}
