//! How to compile: where secrets come from, and addresses that replace those of the files.

use super::secrets::Secrets;
use super::table::{BaseUrl, Protocol};
use crate::domain::id::ProviderId;

/// Replaces every provider's address, and so permits private ones: how the sandbox puts its simulators in.
pub type Rewire<'a> = dyn Fn(&ProviderId, Protocol) -> BaseUrl + 'a;

/// How to compile.
#[derive(Clone, Copy)]
pub struct CompileOptions<'a> {
    /// Where secrets come from.
    pub secrets: Secrets<'a>,
    /// Other addresses than the files say.
    pub rewire: Option<&'a Rewire<'a>>,
}
