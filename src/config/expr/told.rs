//! A condition as text again, for people, and what of a payment's values may be shown beside it.
//!
//! What is written here can be read by `parse`, but for what is left out: a literal or a value that names a person, their
//! device or their payment is shortened, and what looks like an address, a telephone number, a card or a fingerprint is
//! described instead of shown.

use std::fmt;

use super::names;
use super::{Comparison, Condition, Fact, Name, Node, Text, TextTest, Whole};

/// Longest text shown.
const LONGEST_SHOWN: usize = 64;
/// As many digits can be a telephone number.
const TELEPHONE: usize = 7;
/// A word this long without a space is a fingerprint, a token or the like.
const FINGERPRINT: usize = 24;
/// Characters left of what names somebody.
const INITIALS: usize = 2;
/// Digits of a card that name its bank.
const BANK: usize = 6;

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text_of(&self.0))
    }
}

/// A part of a condition as text.
pub fn text_of(node: &Node) -> String {
    match node {
        Node::Always(answer) => answer.to_string(),
        Node::Not(inner) => format!("!({})", text_of(inner)),
        Node::All(parts) => joined(parts, " && "),
        Node::Any(parts) => joined(parts, " || "),
        Node::Has(fact) => format!("has({})", fact_name(fact)),
        Node::Text(text, test) => test_of(text.name(), &|literal| text.shown(literal), test),
        Node::Header(name, test) => test_of(&format!("header(\"{name}\")"), &discreet, test),
        Node::Streams => "request.stream".to_owned(),
        Node::SameText { left, right, same } => {
            format!("{} {} {}", left.name(), if *same { "==" } else { "!=" }, right.name())
        }
        Node::Whole { left, by, right } => format!("{} {} {}", left.name(), by.sign(), right.name()),
        Node::Amount(by, money) => format!("amount {} money(\"{money}\")", by.sign()),
        Node::Address { networks, inside } => {
            let (sign, networks) = (if *inside { "in" } else { "not in" }, networks.len());
            format!("device.ip {sign} [{networks} network{}]", if networks == 1 { "" } else { "s" })
        }
        Node::Feature(feature) => format!("\"{feature}\" in features"),
        Node::Listed(list) => format!("in_list(\"{}\")", list.0.name),
    }
}

/// The parts of a condition that are true or false by themselves, from left to right.
pub fn terms(node: &Node) -> Vec<&Node> {
    match node {
        Node::Not(inner) => terms(inner),
        Node::All(parts) | Node::Any(parts) => parts.iter().flat_map(terms).collect(),
        leaf => vec![leaf],
    }
}

fn joined(parts: &[Node], by: &str) -> String {
    let bracketed = |part: &Node| match part {
        Node::All(_) | Node::Any(_) => format!("({})", text_of(part)),
        part => text_of(part),
    };
    parts.iter().map(bracketed).collect::<Vec<_>>().join(by)
}

fn test_of(name: &str, shown: &dyn Fn(&str) -> String, test: &TextTest) -> String {
    let quoted = |literal: &str| format!("\"{}\"", shown(literal));
    match test {
        TextTest::Is(other) => format!("{name} == {}", quoted(other)),
        TextTest::IsNot(other) => format!("{name} != {}", quoted(other)),
        TextTest::OneOf(others) => {
            let others: Vec<_> = others.iter().map(|other| quoted(other)).collect();
            format!("{name} in [{}]", others.join(", "))
        }
        TextTest::StartsWith(begin) => format!("{name}.startsWith({})", quoted(begin)),
        TextTest::EndsWith(end) => format!("{name}.endsWith({})", quoted(end)),
        TextTest::Contains(part) => format!("{name}.contains({})", quoted(part)),
    }
}

/// The name of something that may be absent.
pub fn fact_name(fact: &Fact) -> String {
    match fact {
        Fact::Text(text) => text.name().to_owned(),
        Fact::Whole(whole) => whole.name(),
        Fact::Address => "device.ip".to_owned(),
    }
}

impl Text {
    /// Its name in conditions.
    pub fn name(self) -> &'static str {
        let is = |name: &Name| matches!(name, Name::Text(text, _) if *text == self);
        names::everywhere().find(|(_, name)| is(name)).map_or("", |(name, _)| name)
    }

    /// What may be shown of a value of it.
    pub fn shown(self, value: &str) -> String {
        match self {
            Self::UserId | Self::DeviceId | Self::OutTradeNo => shortened(value, INITIALS),
            // Six to eight digits that name a bank; never more, whatever a caller writes.
            Self::InstrumentBin => {
                value.chars().take(BANK).collect::<String>() + if value.len() > BANK { "…" } else { "" }
            }
            _ => discreet(value),
        }
    }
}

impl Whole {
    /// Its name in conditions, or its digits.
    pub fn name(&self) -> String {
        match self {
            Self::Literal(number) => number.to_string(),
            Self::Counter(counter) => format!("velocity.{counter}"),
            named => {
                let is = |name: &Name| matches!(name, Name::Whole(whole, _) if whole == named);
                names::everywhere().find(|(_, name)| is(name)).map_or("", |(name, _)| name).to_owned()
            }
        }
    }
}

impl Comparison {
    /// As it is written.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::Different => "!=",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::More => ">",
            Self::AtLeast => ">=",
        }
    }
}

fn shortened(value: &str, keep: usize) -> String {
    let shown = discreet(value);
    let kept: String = shown.chars().take(keep).collect();
    if shown.starts_with('…') || shown.chars().count() <= keep { shown } else { format!("{kept}…") }
}

/// A value as far as it may be shown: nothing that could be an e-mail address, a telephone number, a card or a fingerprint.
pub fn discreet(value: &str) -> String {
    let digits = value.chars().filter(char::is_ascii_digit).count();
    let longest = value.split(|c: char| !c.is_ascii_alphanumeric()).map(str::len).max().unwrap_or(0);
    if value.contains('@') {
        return "…@…".to_owned();
    }
    if digits >= TELEPHONE || longest >= FINGERPRINT {
        return "…".to_owned();
    }
    let shown: String = value.chars().take(LONGEST_SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if value.chars().count() > LONGEST_SHOWN { format!("{shown}…") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::expr::{About, Known, compile};

    fn told(text: &str) -> String {
        compile(text, Known { about: About::Payment, lists: &[], counters: &["cards".into()] })
            .unwrap_or_else(|_| panic!("{text}"))
            .to_string()
    }

    #[test]
    fn a_condition_reads_as_it_was_written() {
        for text in [
            "merchant.category == \"electronics\" && amount >= money(\"500.00 CNY\")",
            "user.country in [\"CN\", \"TH\"] || !(has(device.id))",
            "(velocity.cards > 2 || hour_utc < 6) && subject.startsWith(\"gift\")",
            "\"fx\" in features && user.country != merchant.country",
        ] {
            assert_eq!(told(text), text);
            assert_eq!(told(&told(text)), text);
        }
    }

    #[test]
    fn s11_what_names_a_person_is_not_shown() {
        assert_eq!(told("user.id == \"u-123456\""), "user.id == \"u-…\"");
        assert_eq!(told("device.ip == \"203.0.113.7\""), "device.ip in [1 network]");
        assert_eq!(told("subject.contains(\"a@b.example\")"), "subject.contains(\"…@…\")");
        for value in ["anna@example.com", "+66 81 234 5678", "4111111111111111", "4111-1111-1111-1111", &"f".repeat(24)]
        {
            let shown = discreet(value);
            assert!(shown.chars().all(|c| "…@".contains(c)), "{shown}");
            for text in [Text::UserId, Text::DeviceId, Text::Subject, Text::OutTradeNo] {
                assert!(text.shown(value).chars().all(|c| "…@".contains(c)), "{}", text.shown(value));
            }
        }
        assert_eq!(Text::InstrumentBin.shown("62123499"), "621234…");
        assert_eq!(discreet("electronics"), "electronics");
    }
}
