//! The blocks of a message one after the other, whatever order their pieces came in.
//!
//! Chat marks what each piece belongs to, so providers may begin a second tool call before the first is whole, or speak
//! between two pieces of one. Here a block is told until it is over and only then the next one. So while a call's
//! arguments are no whole JSON object yet, what belongs to others is held back, up to [`MOST_HELD`]; beyond that the call
//! is taken for whole, and so is one that no piece can mean any more, because a later call has taken its place: neither
//! an index nor an id tells the two apart. It deliberately does not check arguments: a call that never becomes whole is
//! told as it came, once the answer is over.
//!
//! A call without any arguments therefore holds back what follows it for as long as a piece could still name it. Nothing
//! better can be done in this form: blocks are told one after the other, so to tell anything of the next one is to say
//! that this call has no arguments, and a piece with its index or id may yet come.

use std::collections::{HashSet, VecDeque};

use super::chat::Call;
use super::form::{Block, Delta, Input, StreamEvent, call_id};
use crate::wire::called::identity;
use crate::wire::sse::Event;

/// Blocks one message may have. A peer that makes more is not answering anybody.
const MOST_BLOCKS: usize = 4_096;

/// Bytes held back at once: texts, arguments, names, ids, and [`HELD_BLOCK`] for each block.
pub(super) const MOST_HELD: usize = 1 << 20;

/// What a block that is held back counts for beside its texts, in bytes. More than it takes: each piece is compared with
/// every block that is held back, so there are at most a few hundred of them.
const HELD_BLOCK: usize = 4_096;

/// Why a stream of chunks cannot be told as events any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// A piece of a tool call came after its block had ended: more than a mebibyte of others was held back for it, or its
    /// arguments were whole already.
    #[error("the provider mixes the pieces of several tool calls")]
    Mixed,
    /// A tool call began without the tool's name.
    #[error("the provider calls a tool without naming it")]
    Unnamed,
    /// More than 4,096 blocks.
    #[error("the provider's answer has too many blocks")]
    TooManyBlocks,
    /// An event's data is no JSON object.
    #[error("the provider's stream holds something else than chat chunks")]
    NotChat,
}

/// What a block is.
enum Kind {
    Text,
    Thinking,
    Call(Callee),
}

/// Something said that is no call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    Text,
    Thinking,
}

struct Callee {
    index: Option<u64>,
    id: String,
    name: String,
    arguments: Arguments,
    /// True if a later call gets every piece that could have meant this one.
    replaced: bool,
}

/// A block whose turn has not come.
struct Held {
    kind: Kind,
    text: String,
}

/// Which block a piece of a call belongs to.
#[derive(Clone, Copy)]
enum Place {
    Open,
    Held(usize),
    /// To a call that is over.
    Over,
    /// To none so far.
    New,
}

/// The blocks of one message.
pub(super) struct Blocks {
    message: String,
    open: Option<Kind>,
    /// Filled only while the open block is a call that is not whole.
    held: VecDeque<Held>,
    held_bytes: usize,
    /// Blocks begun so far, and the index of the next.
    begun: usize,
    /// The calls that are over, by index and id.
    over: HashSet<u64>,
    called: bool,
}

impl Blocks {
    /// None yet. `message` is the message's id.
    pub(super) fn new(message: &str) -> Self {
        Self {
            message: message.to_owned(),
            open: None,
            held: VecDeque::new(),
            held_bytes: 0,
            begun: 0,
            over: HashSet::new(),
            called: false,
        }
    }

    /// True if there was any call.
    pub(super) fn called(&self) -> bool {
        self.called
    }

    /// Takes a piece of what is said.
    pub(super) fn say(&mut self, speech: Speech, text: &str, out: &mut VecDeque<Event>) -> Result<(), StreamError> {
        if self.open.as_ref().is_some_and(|open| open.is(speech)) {
            self.delta(text, out);
            return Ok(());
        }
        if !self.waits() {
            return self.begin(speech.kind(), text, out);
        }
        match self.held.back_mut().filter(|last| last.kind.is(speech)) {
            Some(last) => {
                last.text.push_str(text);
                self.held_bytes += text.len();
            }
            None => self.hold(speech.kind(), text)?,
        }
        self.advance(out);
        Ok(())
    }

    /// Takes a piece of a call.
    pub(super) fn call(&mut self, call: &Call<'_>, out: &mut VecDeque<Event>) -> Result<(), StreamError> {
        let arguments = call.function.arguments.as_ref();
        match self.place(call) {
            Place::Open => self.delta(arguments, out),
            Place::Held(number) => {
                if let Some(held) = self.held.get_mut(number) {
                    held.text.push_str(arguments);
                    held.kind.read(arguments);
                    self.held_bytes += arguments.len();
                }
            }
            Place::Over if arguments.trim().is_empty() => {}
            Place::Over => return Err(StreamError::Mixed),
            Place::New if call.function.name.is_empty() => return Err(StreamError::Unnamed),
            Place::New => self.begin_call(call, out)?,
        }
        self.advance(out);
        Ok(())
    }

    /// Ends the open block and tells whatever was held back.
    pub(super) fn close(&mut self, out: &mut VecDeque<Event>) {
        self.stop(out);
        while self.tell_next(out) {
            self.stop(out);
        }
    }

    /// Where a piece belongs. Its id says so if it has one that is known. Else it is the call of its index that began
    /// last: some servers give every call the same index, or none, and tell calls apart by their identity, or send each
    /// in one piece.
    fn place(&self, call: &Call<'_>) -> Place {
        let open = match &self.open {
            Some(Kind::Call(callee)) => Some((Place::Open, callee)),
            _ => None,
        };
        let held = self.held.iter().enumerate().filter_map(|(number, held)| match &held.kind {
            Kind::Call(callee) => Some((Place::Held(number), callee)),
            _ => None,
        });
        let mut latest = held.rev().chain(open);
        let same_id = latest.clone().find(|(_, callee)| callee.named_by(call));
        let found = same_id.or_else(|| latest.find(|(_, callee)| callee.continued_by(call)));
        match found {
            Some((place, _)) => place,
            None if self.is_over(call) => Place::Over,
            None => Place::New,
        }
    }

    /// True for a piece of a call that is over. One without a name, where no call is open, can be nothing else.
    fn is_over(&self, call: &Call<'_>) -> bool {
        let known = !call.id.is_empty() && self.over.contains(&identity(call.index, &call.id));
        known || (self.called && call.function.name.is_empty())
    }

    fn begin_call(&mut self, call: &Call<'_>, out: &mut VecDeque<Event>) -> Result<(), StreamError> {
        self.called = true;
        let mut callee = Callee {
            index: call.index,
            id: call.id.clone().into_owned(),
            name: call.function.name.clone().into_owned(),
            arguments: Arguments::default(),
            replaced: false,
        };
        self.replace(&callee);
        let arguments = call.function.arguments.as_ref();
        if self.waits() {
            callee.arguments.read(arguments);
            self.hold(Kind::Call(callee), arguments)
        } else {
            self.begin(Kind::Call(callee), arguments, out)
        }
    }

    /// A call begins: what has no id is found by its index, and there the last one is found first.
    fn replace(&mut self, by: &Callee) {
        let held = self.held.iter_mut().map(|held| &mut held.kind);
        for kind in self.open.iter_mut().chain(held) {
            if let Kind::Call(earlier) = kind {
                earlier.replaced |= earlier.id.is_empty() && (earlier.index.is_none() || earlier.index == by.index);
            }
        }
    }

    /// True while what belongs to other blocks is held back.
    fn waits(&self) -> bool {
        matches!(&self.open, Some(Kind::Call(callee)) if !callee.replaced && !callee.arguments.are_whole())
    }

    fn hold(&mut self, kind: Kind, text: &str) -> Result<(), StreamError> {
        if self.begun + self.held.len() >= MOST_BLOCKS {
            return Err(StreamError::TooManyBlocks);
        }
        let held = Held { kind, text: text.to_owned() };
        self.held_bytes += held.size();
        self.held.push_back(held);
        Ok(())
    }

    /// Tells what was held back as far as its turn has come.
    fn advance(&mut self, out: &mut VecDeque<Event>) {
        while !self.held.is_empty() && (!self.waits() || self.held_bytes > MOST_HELD) {
            self.stop(out);
            self.tell_next(out);
        }
    }

    /// Tells the first block that was held back; false if there is none.
    fn tell_next(&mut self, out: &mut VecDeque<Event>) -> bool {
        let Some(next) = self.held.pop_front() else { return false };
        self.held_bytes = self.held_bytes.saturating_sub(next.size());
        self.start(next.kind, out);
        self.tell(&next.text, out);
        true
    }

    fn begin(&mut self, kind: Kind, text: &str, out: &mut VecDeque<Event>) -> Result<(), StreamError> {
        self.stop(out);
        if self.begun == MOST_BLOCKS {
            return Err(StreamError::TooManyBlocks);
        }
        self.start(kind, out);
        self.delta(text, out);
        Ok(())
    }

    fn start(&mut self, kind: Kind, out: &mut VecDeque<Event>) {
        let index = self.begun;
        let id;
        let content_block = match &kind {
            Kind::Text => Block::Text { text: "" },
            Kind::Thinking => Block::Thinking { thinking: "", signature: "" },
            Kind::Call(callee) => {
                id = call_id(&callee.id, &self.message, index);
                Block::ToolUse { id: &id, name: &callee.name, input: Input::Awaited {} }
            }
        };
        out.push_back(StreamEvent::ContentBlockStart { index, content_block }.event());
        self.begun += 1;
        self.open = Some(kind);
    }

    /// Tells a piece of the open block that was not read yet.
    fn delta(&mut self, text: &str, out: &mut VecDeque<Event>) {
        if let Some(open) = &mut self.open {
            open.read(text);
        }
        self.tell(text, out);
    }

    fn tell(&self, text: &str, out: &mut VecDeque<Event>) {
        let delta = match &self.open {
            Some(Kind::Text) => Delta::Text { text },
            Some(Kind::Thinking) => Delta::Thinking { thinking: text },
            Some(Kind::Call(_)) => Delta::InputJson { partial_json: text },
            None => return,
        };
        if !text.is_empty() {
            let index = self.begun.saturating_sub(1);
            out.push_back(StreamEvent::ContentBlockDelta { index, delta }.event());
        }
    }

    fn stop(&mut self, out: &mut VecDeque<Event>) {
        let Some(ended) = self.open.take() else { return };
        out.push_back(StreamEvent::ContentBlockStop { index: self.begun.saturating_sub(1) }.event());
        if let Kind::Call(callee) = ended {
            self.over.insert(identity(callee.index, &callee.id));
        }
    }
}

impl Held {
    fn size(&self) -> usize {
        let named = match &self.kind {
            Kind::Call(callee) => callee.id.len() + callee.name.len(),
            _ => 0,
        };
        HELD_BLOCK + named + self.text.len()
    }
}

impl Speech {
    fn kind(self) -> Kind {
        match self {
            Self::Text => Kind::Text,
            Self::Thinking => Kind::Thinking,
        }
    }
}

impl Kind {
    fn is(&self, speech: Speech) -> bool {
        matches!((self, speech), (Self::Text, Speech::Text) | (Self::Thinking, Speech::Thinking))
    }

    fn read(&mut self, text: &str) {
        if let Self::Call(callee) = self {
            callee.arguments.read(text);
        }
    }
}

impl Callee {
    /// The piece has this call's id, and nothing speaks against it.
    fn named_by(&self, call: &Call<'_>) -> bool {
        !call.id.is_empty() && call.id == self.id && (call.index.is_none() || call.index == self.index)
    }

    fn continued_by(&self, call: &Call<'_>) -> bool {
        let named = !call.function.name.is_empty();
        let other_index = call.index.is_some() && call.index != self.index;
        let other_id = named && !call.id.is_empty() && call.id != self.id;
        let whole = named && call.id.is_empty() && call.index.is_none();
        !other_index && !other_id && !whole
    }
}

/// How far the JSON of a call's arguments is. Only brackets and quotes count, so that each byte is looked at once.
#[derive(Default)]
struct Arguments {
    begun: bool,
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Arguments {
    fn read(&mut self, piece: &str) {
        for byte in piece.bytes() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.quoted => self.escaped = true,
                b'"' => self.quoted = !self.quoted,
                b'{' | b'[' if !self.quoted => {
                    self.begun = true;
                    self.depth += 1;
                }
                b'}' | b']' if !self.quoted => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }

    fn are_whole(&self) -> bool {
        self.begun && self.depth == 0 && !self.quoted
    }
}
