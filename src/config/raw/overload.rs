//! What is given up first, and what there is of what can run out: `class` of callers and routes, `memory` of `[limits]`.

use crate::config::read::Value;
use crate::config::report::Field;
use crate::domain::overload::Class;

const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

/// Payments are a class of their own, which nobody else can be put into.
pub(super) fn class(value: &Value<'_>) -> Option<Field<Class>> {
    value.word(&[("batch", Class::Batch), ("low", Class::Low), ("normal", Class::Normal)])
}

/// Less than this holds no proxy.
pub(super) fn memory(value: &Value<'_>) -> Option<Field<usize>> {
    value.size(64 * MIB..=16 * 1024 * GIB)
}
