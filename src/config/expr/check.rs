//! Names and types: from what was written to what will be evaluated, with every mistake on the way.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use super::super::error::Code;
use super::super::lists::Network;
use super::super::read::{nearest, shown, suggest};
use super::super::units;
use super::names::{self, METHODS, Name, Presence};
use super::parse::{Form, Tree};
use super::{About, Comparison, Fact, Fault, Known, NamedList, Node, Text, TextTest, Whole};
use crate::domain::currency::Currency;
use crate::domain::money::Money;
use crate::wire::risk::is_country;

/// A part of a condition with its type. Names keep their type; what is written keeps its text.
enum Typed {
    Condition(Node),
    Text(Text),
    Literal(String),
    Whole(Whole),
    Amount,
    Money(Money),
    Address,
    Features,
    Header(Arc<str>),
    Many(Vec<(Range<usize>, Typed)>),
}

impl Typed {
    fn name(&self) -> &'static str {
        match self {
            Self::Condition(_) => "true or false",
            Self::Text(_) | Self::Literal(_) | Self::Header(_) => "a text",
            Self::Whole(_) => "a whole number",
            Self::Amount | Self::Money(_) => "an amount",
            Self::Address => "an address",
            Self::Features => "the list of features",
            Self::Many(_) => "a list",
        }
    }
}

/// A part of a condition, typed, with its place.
struct Part {
    span: Range<usize>,
    typed: Typed,
}

/// Checks a whole condition.
pub(super) fn check(tree: &Tree, known: Known<'_>) -> Result<Node, Vec<Fault>> {
    let mut checker = Checker { known, faults: Vec::new() };
    match checker.condition(tree) {
        Some(node) if checker.faults.is_empty() => Ok(node),
        _ => Err(checker.faults),
    }
}

struct Checker<'k> {
    known: Known<'k>,
    faults: Vec<Fault>,
}

impl Checker<'_> {
    /// Reports; `None` stands for a part that is wrong and already told.
    fn wrong<T>(&mut self, fault: Fault) -> Option<T> {
        self.faults.push(fault);
        None
    }

    fn condition(&mut self, tree: &Tree) -> Option<Node> {
        match self.part(tree)?.typed {
            Typed::Condition(node) => Some(node),
            other => {
                let message = format!("this must be true or false, and is {}", other.name());
                let fault = Fault::new(tree.span.clone(), Code::WrongType, message);
                self.wrong(fault.hint(format!("compare it, as in {}", self.known.about.example())))
            }
        }
    }

    fn part(&mut self, tree: &Tree) -> Option<Part> {
        let typed = match &tree.form {
            Form::Name(name) => self.name(tree, name)?,
            Form::Has(name) => Typed::Condition(self.has(name)?),
            Form::Text(text) => Typed::Literal(text.clone()),
            Form::Whole(number) => Typed::Whole(Whole::Literal(*number)),
            Form::Flag(flag) => Typed::Condition(Node::Always(*flag)),
            Form::Odd(what) => {
                let fault = Fault::new(tree.span.clone(), Code::WrongType, format!("{what} is compared with nothing"));
                return self.wrong(fault.hint("write a whole number, or money(\"88.88 CNY\")"));
            }
            Form::List(elements) => {
                let parts: Vec<Option<Part>> = elements.iter().map(|element| self.part(element)).collect();
                let parts: Option<Vec<Part>> = parts.into_iter().collect();
                Typed::Many(parts?.into_iter().map(|part| (part.span, part.typed)).collect())
            }
            Form::Operator(sign, operands) => Typed::Condition(self.operator(tree, sign, operands)?),
            Form::Call { name, of, arguments } => self.call(tree, name, of.as_deref(), arguments)?,
        };
        Some(Part { span: tree.span.clone(), typed })
    }

    fn name(&mut self, tree: &Tree, name: &str) -> Option<Typed> {
        Some(match self.find(tree, name)? {
            Name::Text(text, _) => Typed::Text(text),
            Name::Whole(whole, _) => Typed::Whole(whole),
            Name::Amount => Typed::Amount,
            Name::Address => Typed::Address,
            Name::Features => Typed::Features,
            Name::Streams => Typed::Condition(Node::Streams),
        })
    }

    fn find(&mut self, tree: &Tree, name: &str) -> Option<Name> {
        let (known, counters) = (self.known, self.known.counters);
        if let Some(found) = names::find(name, known) {
            return Some(found);
        }
        let below = names::below(name, known);
        if !below.is_empty() {
            let fault = Fault::new(tree.span.clone(), Code::WrongType, "this name has fields and is not a value");
            return self.wrong(fault.hint(format!("known: {}", below.join(", "))));
        }
        let fault = Fault::new(tree.span.clone(), Code::UnknownName, format!("unknown name {}", shown(name, "here")));
        let fault = match name.strip_prefix("velocity.") {
            Some(_) if counters.is_empty() => fault.hint("this configuration counts nothing"),
            _ => fault,
        };
        let section = name.split_once('.').map(|(section, _)| names::below(section, known));
        let candidates = section.filter(|below| !below.is_empty()).unwrap_or_else(|| names::all(known));
        let candidates: Vec<&str> = candidates.iter().map(String::as_str).collect();
        let hint = suggest(name, &candidates).filter(|_| fault.hint.is_none());
        self.wrong(match hint {
            Some(hint) => fault.hint(hint),
            None => fault,
        })
    }

    fn has(&mut self, tree: &Tree) -> Option<Node> {
        let Form::Name(name) = &tree.form else {
            return self.wrong(Fault::new(tree.span.clone(), Code::WrongType, "has() asks for a name"));
        };
        Some(match self.find(tree, name)? {
            Name::Text(text, Presence::Perhaps) => Node::Has(Fact::Text(text)),
            Name::Whole(whole, Presence::Perhaps) => Node::Has(Fact::Whole(whole)),
            Name::Address => Node::Has(Fact::Address),
            _ => Node::Always(true),
        })
    }

    fn operator(&mut self, tree: &Tree, sign: &'static str, operands: &[Tree]) -> Option<Node> {
        match (sign, operands) {
            ("!", [operand]) => Some(Node::Not(Box::new(self.condition(operand)?))),
            ("&&" | "||", [left, right]) => {
                let (left, right) = (self.condition(left), self.condition(right));
                Some(joined(sign, left?, right?))
            }
            ("in", [left, right]) => {
                let (left, right) = (self.part(left), self.part(right));
                self.member(tree, left?, right?)
            }
            (_, [left, right]) => {
                let (left, right) = (self.part(left), self.part(right));
                self.comparison(tree, sign, left?, right?)
            }
            _ => self.wrong(Fault::new(tree.span.clone(), Code::Unsupported, "conditions do not have this operator")),
        }
    }

    fn comparison(&mut self, tree: &Tree, sign: &str, left: Part, right: Part) -> Option<Node> {
        let by = comparison(sign)?;
        let equality = match by {
            Comparison::Equal => Some(true),
            Comparison::Different => Some(false),
            _ => None,
        };
        match (left.typed, right.typed, equality) {
            (Typed::Whole(left), Typed::Whole(right), _) => Some(Node::Whole { left, by, right }),
            (Typed::Amount, Typed::Money(money), _) => Some(Node::Amount(by, money)),
            (Typed::Money(money), Typed::Amount, _) => Some(Node::Amount(by.mirrored(), money)),
            (Typed::Text(left), Typed::Text(right), Some(same)) => Some(Node::SameText { left, right, same }),
            (Typed::Text(text), Typed::Literal(literal), Some(same)) => self.text(text, right.span, literal, same),
            (Typed::Literal(literal), Typed::Text(text), Some(same)) => self.text(text, left.span, literal, same),
            (Typed::Header(name), Typed::Literal(literal), Some(same))
            | (Typed::Literal(literal), Typed::Header(name), Some(same)) => Some(header(name, literal, same)),
            (Typed::Address, Typed::Literal(literal), Some(inside)) => self.address(right.span, &literal, inside),
            (Typed::Literal(literal), Typed::Address, Some(inside)) => self.address(left.span, &literal, inside),
            (left, right, _) => self.wrong(mismatch(tree, sign, &left, &right)),
        }
    }

    fn text(&mut self, text: Text, span: Range<usize>, literal: String, same: bool) -> Option<Node> {
        self.possible(text, span, &literal)?;
        let literal = literal.into_boxed_str();
        let test = if same { TextTest::Is(literal) } else { TextTest::IsNot(literal) };
        Some(Node::Text(text, test))
    }

    fn address(&mut self, span: Range<usize>, literal: &str, inside: bool) -> Option<Node> {
        if let Ok(address) = literal.parse::<IpAddr>() {
            return Some(Node::Address { networks: Box::new([Network::of_address(address)]), inside });
        }
        let fault = Fault::new(span, Code::BadValue, "not an IP address");
        self.wrong(fault.hint("a network is written device.ip in [\"203.0.113.0/24\"]"))
    }

    /// A text that can be the fact's; comparing with another is a mistake that would never show.
    fn possible(&mut self, text: Text, span: Range<usize>, literal: &str) -> Option<()> {
        let bin = |text: &str| (6..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        let (fits, what) = match text {
            Text::MerchantCountry | Text::UserCountry => {
                (is_country(literal), "not an ISO 3166-1 country in upper case, as in \"CN\"")
            }
            Text::Currency => (Currency::parse(literal).is_some(), "not an active ISO 4217 currency in upper case"),
            Text::InstrumentBin => (bin(literal), "not the first 6 to 8 digits of a card number"),
            _ => (!literal.is_empty(), "the text is empty, and this never is"),
        };
        if fits { Some(()) } else { self.wrong(Fault::new(span, Code::BadValue, what)) }
    }

    fn member(&mut self, tree: &Tree, left: Part, right: Part) -> Option<Node> {
        match (left.typed, right.typed) {
            (Typed::Literal(feature), Typed::Features) => Some(Node::Feature(feature.into_boxed_str())),
            (Typed::Text(text), Typed::Many(elements)) => {
                let texts = elements.into_iter().map(|(span, element)| match element {
                    Typed::Literal(literal) => {
                        self.possible(text, span, &literal)?;
                        Some(literal.into_boxed_str())
                    }
                    other => self.wrong(element_of(span, "texts", &other)),
                });
                let texts: Vec<_> = texts.collect();
                Some(Node::Text(text, TextTest::OneOf(texts.into_iter().collect::<Option<_>>()?)))
            }
            (Typed::Header(name), Typed::Many(elements)) => {
                let texts = elements.into_iter().map(|(span, element)| match element {
                    Typed::Literal(literal) => Some(literal.into_boxed_str()),
                    other => self.wrong(element_of(span, "texts", &other)),
                });
                let texts: Vec<_> = texts.collect();
                Some(Node::Header(name, TextTest::OneOf(texts.into_iter().collect::<Option<_>>()?)))
            }
            (Typed::Whole(whole), Typed::Many(elements)) => {
                let equal = elements.into_iter().map(|(span, element)| match element {
                    Typed::Whole(right) => Some(Node::Whole { left: whole.clone(), by: Comparison::Equal, right }),
                    other => self.wrong(element_of(span, "whole numbers", &other)),
                });
                let equal: Vec<_> = equal.collect();
                Some(Node::Any(equal.into_iter().collect::<Option<_>>()?))
            }
            (Typed::Address, Typed::Many(elements)) => {
                let networks = elements.into_iter().map(|(span, element)| match element {
                    Typed::Literal(literal) => match Network::parse(&literal) {
                        Some(network) => Some(network),
                        None => self.wrong(Fault::new(span, Code::BadValue, "not an IP address or network")),
                    },
                    other => self.wrong(element_of(span, "addresses", &other)),
                });
                let networks: Vec<_> = networks.collect();
                let networks = networks.into_iter().collect::<Option<_>>()?;
                Some(Node::Address { networks, inside: true })
            }
            (left, right) => {
                let fault = mismatch(tree, "in", &left, &right);
                self.wrong(fault.hint("write user.country in [\"CN\", \"TH\"], or \"fx\" in features"))
            }
        }
    }

    fn call(&mut self, tree: &Tree, name: &str, of: Option<&Tree>, arguments: &[Tree]) -> Option<Typed> {
        match (name, of) {
            ("header", None) if self.known.about == About::Call => self.header(tree, arguments).map(Typed::Header),
            ("money", None) if self.known.about == About::Payment => self.money(tree, arguments).map(Typed::Money),
            ("in_list", None) if self.known.about == About::Payment => {
                self.in_list(tree, arguments).map(Typed::Condition)
            }
            (name, Some(of)) if METHODS.contains(&name) => self.method(tree, name, of, arguments).map(Typed::Condition),
            ("matches", _) => {
                let fault = Fault::new(tree.span.clone(), Code::Unsupported, "conditions have no regular expressions");
                self.wrong(fault.hint("write startsWith(\"..\"), endsWith(\"..\") or contains(\"..\")"))
            }
            _ => {
                let message = format!("no such function {}", shown(name, "here"));
                let fault = Fault::new(tree.span.clone(), Code::UnknownName, message);
                let known = if of.is_some() { &METHODS } else { names::functions(self.known.about) };
                let in_another_case = known.iter().copied().find(|known| known.eq_ignore_ascii_case(name));
                let hint = match in_another_case.or_else(|| nearest(name, known.iter().copied())) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => format!("known: {}", known.join(", ")),
                };
                self.wrong(fault.hint(hint))
            }
        }
    }

    /// The one text a function takes.
    fn literal<'t>(&mut self, tree: &Tree, arguments: &'t [Tree], hint: &str) -> Option<(&'t Tree, &'t str)> {
        match arguments {
            [argument @ Tree { form: Form::Text(text), .. }] => Some((argument, text)),
            [argument] => {
                let fault = Fault::new(argument.span.clone(), Code::WrongType, "a text in quotes belongs here");
                self.wrong(fault.hint(hint))
            }
            _ => {
                let message = format!("the function takes one text, and is given {}", arguments.len());
                self.wrong(Fault::new(tree.span.clone(), Code::WrongType, message).hint(hint))
            }
        }
    }

    fn money(&mut self, tree: &Tree, arguments: &[Tree]) -> Option<Money> {
        let (argument, text) = self.literal(tree, arguments, "write money(\"500.00 CNY\")")?;
        match units::money(text) {
            Ok(money) => Some(money),
            Err(error) => self.wrong(Fault::new(argument.span.clone(), Code::BadValue, error.to_string())),
        }
    }

    fn in_list(&mut self, tree: &Tree, arguments: &[Tree]) -> Option<Node> {
        let (argument, name) =
            self.literal(tree, arguments, "write in_list(\"name\") with the name of a [[risk.list]]")?;
        if let Some(list) = self.known.lists.iter().find(|list| *list.name == *name) {
            return Some(Node::Listed(NamedList(Arc::clone(list))));
        }
        let known: Vec<&str> = self.known.lists.iter().map(|list| &*list.name).collect();
        let fault = Fault::new(argument.span.clone(), Code::UnknownName, "no such list");
        let hint = suggest(name, &known).unwrap_or_else(|| "add a [[risk.list]] with this name".to_owned());
        self.wrong(fault.hint(hint))
    }

    fn method(&mut self, tree: &Tree, name: &str, of: &Tree, arguments: &[Tree]) -> Option<Node> {
        let of_span = of.span.clone();
        let texts = self.part(of)?.typed;
        match &texts {
            Typed::Text(_) | Typed::Header(_) => {}
            other => {
                let message = format!("{name} is a function of texts, and this is {}", other.name());
                return self.wrong(Fault::new(of_span, Code::WrongType, message));
            }
        }
        let (_, literal) = self.literal(tree, arguments, "write it as in subject.startsWith(\"gift\")")?;
        let literal = Box::from(literal);
        let test = match name {
            "startsWith" => TextTest::StartsWith(literal),
            "endsWith" => TextTest::EndsWith(literal),
            _ => TextTest::Contains(literal),
        };
        match texts {
            Typed::Text(text) => Some(Node::Text(text, test)),
            Typed::Header(name) => Some(Node::Header(name, test)),
            _ => None,
        }
    }

    /// The name of a header, as it is looked up.
    fn header(&mut self, tree: &Tree, arguments: &[Tree]) -> Option<Arc<str>> {
        const SECRET: [&str; 4] = ["authorization", "x-api-key", "proxy-authorization", "cookie"];
        let (argument, name) = self.literal(tree, arguments, "write header(\"x-team\") == \"search\"")?;
        let lower = name.to_ascii_lowercase();
        if name.len() > 64 || http::HeaderName::from_bytes(lower.as_bytes()).is_err() {
            return self.wrong(Fault::new(argument.span.clone(), Code::BadValue, "not the name of a header"));
        }
        if SECRET.contains(&&*lower) {
            let fault = Fault::new(argument.span.clone(), Code::Conflict, "this header holds a credential");
            return self.wrong(fault.hint("ask who calls, with caller.id or caller.tenant"));
        }
        Some(lower.into())
    }
}

fn header(name: Arc<str>, literal: String, same: bool) -> Node {
    let literal = literal.into_boxed_str();
    Node::Header(name, if same { TextTest::Is(literal) } else { TextTest::IsNot(literal) })
}

/// `a && (b && c)` as one list, so that equal conditions are equal however they are bracketed.
fn joined(sign: &str, left: Node, right: Node) -> Node {
    let mut all = Vec::new();
    for node in [left, right] {
        match node {
            Node::All(nodes) if sign == "&&" => all.extend(nodes),
            Node::Any(nodes) if sign == "||" => all.extend(nodes),
            node => all.push(node),
        }
    }
    if sign == "&&" { Node::All(all.into()) } else { Node::Any(all.into()) }
}

fn comparison(sign: &str) -> Option<Comparison> {
    Some(match sign {
        "==" => Comparison::Equal,
        "!=" => Comparison::Different,
        "<" => Comparison::Less,
        "<=" => Comparison::AtMost,
        ">" => Comparison::More,
        ">=" => Comparison::AtLeast,
        _ => return None,
    })
}

fn element_of(span: Range<usize>, wanted: &str, found: &Typed) -> Fault {
    Fault::new(span, Code::WrongType, format!("a list of {wanted} belongs here, and this is {}", found.name()))
}

fn mismatch(tree: &Tree, sign: &str, left: &Typed, right: &Typed) -> Fault {
    let message = format!("{} and {} cannot be compared with {sign}", left.name(), right.name());
    let fault = Fault::new(tree.span.clone(), Code::WrongType, message);
    match (left, right) {
        (Typed::Amount, _) | (_, Typed::Amount) => fault.hint("write amount >= money(\"500.00 CNY\")"),
        (Typed::Text(_) | Typed::Literal(_), Typed::Text(_) | Typed::Literal(_)) => {
            fault.hint("compare a name with == or !=")
        }
        (Typed::Features, _) | (_, Typed::Features) => fault.hint("write \"fx\" in features"),
        (Typed::Condition(_), _) | (_, Typed::Condition(_)) => fault.hint("write && for and, || for or, ! for not"),
        _ => fault,
    }
}
