//! The only place that knows the `cel` crate: text to a tree of our own, every node with its place in the text.
//!
//! What the language has and conditions do not is refused here by name, so that nobody looks for a misspelling.

use std::ops::Range;
use std::thread;

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, SourceInfo};
use cel::parser::{ParseErrors, Parser};

use super::super::error::Code;
use super::words::{Kind, Word};
use super::{DEEPEST, Fault};

/// A node with its place in the text, in bytes.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Tree {
    pub(super) span: Range<usize>,
    pub(super) form: Form,
}

/// What a condition can be made of.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Form {
    /// `merchant.category`
    Name(String),
    /// `has(merchant.category)`
    Has(Box<Tree>),
    Text(String),
    Whole(i64),
    Flag(bool),
    /// A number with decimals, a byte string and the like.
    Odd(&'static str),
    List(Vec<Tree>),
    /// An operator, by its sign.
    Operator(&'static str, Vec<Tree>),
    /// A function and, for a method, what it belongs to.
    Call {
        name: String,
        of: Option<Box<Tree>>,
        arguments: Vec<Tree>,
    },
}

/// Room for the parser's recursion. Built without optimisation it takes 200 KiB for each bracket it is in (measured on
/// 2026-11-23), and a thread usually has 2 MiB; what is not touched is not taken.
const STACK: usize = 16 << 20;

/// Reads a text whose words are bounded.
///
/// On a thread of its own, for its stack, and so that a bug of the parser is a mistake of one condition.
pub(super) fn parse(text: &str, words: &[Word]) -> Result<Tree, Fault> {
    let failed =
        || Fault::new(0..text.len(), Code::BadValue, "the condition could not be read").hint("write it simpler");
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("condition".to_owned()).stack_size(STACK);
        let reading = thread.spawn_scoped(scope, || read(text, words)).map_err(|_| failed())?;
        reading.join().unwrap_or_else(|_| Err(failed()))
    })
}

fn read(text: &str, words: &[Word]) -> Result<Tree, Fault> {
    let depth = u16::try_from(DEEPEST + 4).unwrap_or(u16::MAX);
    let parser = Parser::new().max_recursion_depth(depth).error_recovery_limit(3);
    match parser.parse_with_source_info(text) {
        Ok((root, places)) => Reader { text, words, places: &places }.read(&root),
        Err(errors) => Err(syntax(text, words, &errors)),
    }
}

/// The first mistake. The parser's own sentence would quote the text.
fn syntax(text: &str, words: &[Word], errors: &ParseErrors) -> Fault {
    let at = errors.errors.first().map_or(0, |error| offset(text, error.pos));
    let word = words.iter().find(|word| word.span.end > at);
    let Some(word) = word else {
        return Fault::new(text.len()..text.len(), Code::Syntax, "the condition ends too early");
    };
    let fault = Fault::new(word.span.clone(), Code::Syntax, "this cannot stand here");
    match text.get(word.span.clone()) {
        Some("=") => fault.hint("write == to compare"),
        Some("and") => fault.hint("write && for and"),
        Some("or") => fault.hint("write || for or"),
        Some("not" | "is") => fault.hint("write !(...) for not, == for is"),
        _ if word.kind == Kind::Value => fault.hint("a text is written \"like this\" or 'like this'"),
        _ => fault,
    }
}

/// Line and column from 1, the column in characters, as an offset in bytes.
fn offset(text: &str, (line, column): (isize, isize)) -> usize {
    let before = usize::try_from(line - 1).unwrap_or(0);
    let line_start = text.split_inclusive('\n').take(before).map(str::len).sum::<usize>();
    let column = usize::try_from(column - 1).unwrap_or(0);
    let rest = text.get(line_start..).unwrap_or_default();
    line_start + rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at)
}

struct Reader<'r> {
    text: &'r str,
    words: &'r [Word],
    places: &'r SourceInfo,
}

impl Reader<'_> {
    fn read(&self, node: &IdedExpr) -> Result<Tree, Fault> {
        let place = self.place(node);
        let tree = |form| Ok(Tree { span: place.clone(), form });
        match &node.expr {
            Expr::Ident(name) => tree(Form::Name(name.clone())),
            Expr::Select(select) if select.test => {
                let operand = self.read(&select.operand)?;
                let name = self.joined(operand, &select.field)?;
                tree(Form::Has(Box::new(name)))
            }
            Expr::Select(select) => self.joined(self.read(&select.operand)?, &select.field),
            Expr::Literal(literal) => tree(match literal {
                LiteralValue::Boolean(flag) => Form::Flag(*flag.inner()),
                LiteralValue::Int(number) => Form::Whole(*number.inner()),
                LiteralValue::String(text) => Form::Text(text.inner().to_owned()),
                LiteralValue::Double(_) => Form::Odd("a number with decimals"),
                LiteralValue::UInt(_) => Form::Odd("a number with a letter"),
                LiteralValue::Bytes(_) => Form::Odd("bytes"),
                LiteralValue::Null => Form::Odd("null"),
            }),
            Expr::List(list) => {
                tree(Form::List(list.elements.iter().map(|element| self.read(element)).collect::<Result<_, _>>()?))
            }
            Expr::Call(call) => self.call(place, call),
            Expr::Comprehension(_) => {
                let fault = Fault::new(self.function_at(&place), Code::Unsupported, "conditions have no loops");
                Err(fault.hint("write \"fx\" in features, or several conditions joined by ||"))
            }
            Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => {
                Err(Fault::new(place, Code::Unsupported, "conditions have no maps or structures"))
            }
        }
    }

    fn call(&self, place: Range<usize>, call: &CallExpr) -> Result<Tree, Fault> {
        const SIGNS: [(&str, &str); 10] = [
            ("_&&_", "&&"),
            ("_||_", "||"),
            ("!_", "!"),
            ("_==_", "=="),
            ("_!=_", "!="),
            ("_<_", "<"),
            ("_<=_", "<="),
            ("_>_", ">"),
            ("_>=_", ">="),
            ("@in", "in"),
        ];
        let mut arguments = Vec::with_capacity(call.args.len());
        for argument in &call.args {
            arguments.push(self.read(argument)?);
        }
        if let Some((_, sign)) = SIGNS.iter().find(|(name, _)| *name == call.func_name) {
            return Ok(Tree { span: place, form: Form::Operator(sign, arguments) });
        }
        let is_word = call.func_name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !is_word || call.func_name.starts_with('_') {
            let hint = match call.func_name.as_str() {
                "_?_:_" => "write conditions with && and ||, or two policies",
                "_[_]" => "fields are written with a point, as in merchant.category",
                _ => "numbers are compared, not computed",
            };
            return Err(Fault::new(place, Code::Unsupported, "conditions do not have this operator").hint(hint));
        }
        let of = call.target.as_ref().map(|of| self.read(of).map(Box::new)).transpose()?;
        let span = self.function_at(&place);
        Ok(Tree { span, form: Form::Call { name: call.func_name.clone(), of, arguments } })
    }

    /// A name and the field after its point.
    fn joined(&self, operand: Tree, field: &str) -> Result<Tree, Fault> {
        let Form::Name(name) = operand.form else {
            return Err(Fault::new(operand.span, Code::WrongType, "only names have fields"));
        };
        let after = self.words.iter().filter(|word| word.span.start >= operand.span.end);
        let end = after.take(2).last().map_or(operand.span.end, |word| word.span.end);
        Ok(Tree { span: operand.span.start..end, form: Form::Name(format!("{name}.{field}")) })
    }

    /// Where the parser says a node is: for operators and calls that is one sign.
    fn place(&self, node: &IdedExpr) -> Range<usize> {
        let (start, last) = self.places.offset_for(node.id).unwrap_or_default();
        let at = |offset: u32| usize::try_from(offset).unwrap_or(usize::MAX).min(self.text.len());
        let (start, end) = (at(start), at(last.saturating_add(1)));
        start..end.max(start)
    }

    /// The name of the function whose bracket is there.
    fn function_at(&self, bracket: &Range<usize>) -> Range<usize> {
        let before = self.words.iter().rfind(|word| word.span.end <= bracket.start && word.kind == Kind::Name);
        before.map_or_else(|| bracket.clone(), |word| word.span.clone())
    }
}
