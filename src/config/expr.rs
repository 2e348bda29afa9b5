//! Conditions of policies: CEL text to a small typed tree that cannot fail.
//!
//! The language is the Common Expression Language (<https://github.com/google/cel-spec>, read 2026-11-23); the `cel`
//! crate parses it and nothing else of that crate is used. Its interpreter would find a misspelt name or a text compared
//! with a number only when a payment arrives. Here every name, type and function is known before a configuration is
//! accepted, so that what is left to do for a payment is to compare, without an allocation and without an error.
//!
//! What it deliberately does not have: arithmetic, macros over lists, regular expressions, and anything else whose cost
//! or failure depends on the payment. It does not evaluate either; `routing::policy` does.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::error::Code;
use super::lists::{List, Network};
use crate::domain::money::Money;

mod check;
mod names;
mod parse;
pub mod told;
mod words;

#[cfg(test)]
mod tests;

use names::Name;
pub(super) use words::masked;

/// Longest text of a condition, in bytes.
const LONGEST: usize = 1000;
/// Most words, literals and operators of a condition.
const MOST_WORDS: usize = 250;
/// Deepest nesting of brackets.
const DEEPEST: usize = 16;

/// A condition that was checked. Its literals may be about people: `Debug` shows none.
#[derive(Clone, PartialEq, Eq)]
pub struct Condition(pub(super) Node);

impl Condition {
    /// A condition that no text says.
    #[cfg(test)]
    pub(crate) fn of(root: Node) -> Self {
        Self(root)
    }

    /// What to evaluate.
    pub fn root(&self) -> &Node {
        &self.0
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Condition")
    }
}

/// One step of a condition; every one is true or false.
#[derive(Clone, PartialEq, Eq)]
pub enum Node {
    /// `true` and `false`, and what is always so.
    Always(bool),
    /// `!a`
    Not(Box<Node>),
    /// `a && b`
    All(Box<[Node]>),
    /// `a || b`
    Any(Box<[Node]>),
    /// `has(a)`
    Has(Fact),
    /// A text compared with texts of the configuration. False if the text is absent.
    Text(Text, TextTest),
    /// Two texts of the payment compared. False if one is absent.
    SameText {
        /// One.
        left: Text,
        /// The other.
        right: Text,
        /// Whether they must be the same, or must differ.
        same: bool,
    },
    /// Two whole numbers compared. False if one is absent.
    Whole {
        /// One.
        left: Whole,
        /// How.
        by: Comparison,
        /// The other.
        right: Whole,
    },
    /// The amount compared. False in another currency.
    Amount(Comparison, Money),
    /// The device's address, inside of any of these networks or outside of all. False if the address is absent.
    Address {
        /// One address is a network too.
        networks: Box<[Network]>,
        /// Inside or outside.
        inside: bool,
    },
    /// The caller asked for this paid extra.
    Feature(Box<str>),
    /// Somebody of this payment is on the list.
    Listed(NamedList),
    /// `request.stream`
    Streams,
    /// A header of the call compared with texts of the configuration. False if it is absent.
    Header(Arc<str>, TextTest),
}

/// A list in a condition. Conditions that name the same list are the same, whoever is on it.
#[derive(Clone)]
pub struct NamedList(pub Arc<List>);

impl PartialEq for NamedList {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for NamedList {}

/// What a text is compared with.
#[derive(Clone, PartialEq, Eq)]
pub enum TextTest {
    /// `==`
    Is(Box<str>),
    /// `!=`
    IsNot(Box<str>),
    /// `in [..]`
    OneOf(Box<[Box<str>]>),
    /// `.startsWith("..")`
    StartsWith(Box<str>),
    /// `.endsWith("..")`
    EndsWith(Box<str>),
    /// `.contains("..")`
    Contains(Box<str>),
}

/// How numbers and amounts are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    Different,
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    More,
    /// `>=`
    AtLeast,
}

impl Comparison {
    /// The answer for how the left side stands to the right one.
    pub fn holds(self, ordering: std::cmp::Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::Different => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::AtMost => ordering.is_le(),
            Self::More => ordering.is_gt(),
            Self::AtLeast => ordering.is_ge(),
        }
    }

    /// The same with the sides exchanged.
    fn mirrored(self) -> Self {
        match self {
            Self::Less => Self::More,
            Self::AtMost => Self::AtLeast,
            Self::More => Self::Less,
            Self::AtLeast => Self::AtMost,
            same => same,
        }
    }
}

/// A text of a payment attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Text {
    /// `caller.id`
    CallerId,
    /// `caller.tenant`
    CallerTenant,
    /// `out_trade_no`
    OutTradeNo,
    /// `subject`
    Subject,
    /// `currency`
    Currency,
    /// `merchant.id`
    MerchantId,
    /// `merchant.category`
    MerchantCategory,
    /// `merchant.country`
    MerchantCountry,
    /// `user.id`
    UserId,
    /// `user.country`
    UserCountry,
    /// `instrument.type`
    InstrumentType,
    /// `instrument.bin`
    InstrumentBin,
    /// `device.id`
    DeviceId,
    /// `request.operation`
    Operation,
}

/// A whole number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Whole {
    /// As it is written.
    Literal(i64),
    /// `request.bytes`: of the call's body.
    Bytes,
    /// `request.estimated_tokens`: what the call's body may come to.
    EstimatedTokens,
    /// `hour_utc`: 0 to 23.
    HourUtc,
    /// `user.registered_days`: whole days since the account was opened.
    RegisteredDays,
    /// `device.known_days`: whole days since the caller first saw the device.
    KnownDays,
    /// `velocity.<name>`: what is counted under that name. It is never absent: a condition that cannot be told it is not
    /// evaluated.
    Counter(Arc<str>),
}

/// Something a caller may leave out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fact {
    /// A text.
    Text(Text),
    /// A number.
    Whole(Whole),
    /// `device.ip`
    Address,
}

/// What a condition is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum About {
    /// A payment attempt.
    Payment,
    /// A call to a model.
    Call,
}

impl About {
    /// What a condition may look like, for somebody who wrote none.
    fn example(self) -> &'static str {
        match self {
            Self::Payment => "merchant.category == \"electronics\"",
            Self::Call => "request.estimated_tokens > 20000",
        }
    }
}

/// The names that only this configuration knows.
#[derive(Clone, Copy)]
pub(super) struct Known<'k> {
    /// What it is about.
    pub(super) about: About,
    /// The lists, for `in_list("..")`.
    pub(super) lists: &'k [Arc<List>],
    /// The counters, for `velocity.<name>`.
    pub(super) counters: &'k [Arc<str>],
}

/// A mistake in a condition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    /// Where, in bytes of the condition's text.
    pub(super) span: Range<usize>,
    pub(super) code: Code,
    /// Never quotes the text, but for names that may be shown.
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Fault {
    fn new(span: Range<usize>, code: Code, message: impl Into<String>) -> Self {
        Self { span, code, message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Reads and checks a condition.
///
/// # Errors
/// Every mistake of its names and types; of its grammar the first.
pub(super) fn compile(text: &str, known: Known<'_>) -> Result<Condition, Vec<Fault>> {
    let words = words::bounded(text).map_err(|fault| vec![fault])?;
    let tree = parse::parse(text, &words).map_err(|fault| vec![fault])?;
    check::check(&tree, known).map(Condition)
}
