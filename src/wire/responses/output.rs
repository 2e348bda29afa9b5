//! The items of a response as they grow, and what is still to be told about them.
//!
//! Text is kept once: a delta that was not told yet is a stretch of it. What is told comes out one event at a time, so
//! that the closing events, each of which repeats all of the text, never lie in memory together.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;

use super::chat::{CallPiece, Chat};
use super::stream::StreamError;
use crate::wire::called::identity;

/// Items one response may have. Real ones have a handful.
const MOST_ITEMS: usize = 4_096;

/// Something to be told, in order.
pub(super) enum Step {
    Created,
    InProgress,
    ItemAdded(usize),
    PartAdded(At),
    Delta(At, Range<usize>),
    TextDone(At),
    PartDone(At),
    ItemDone(usize),
    End,
}

/// A part of an item.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub(super) item: usize,
    pub(super) part: usize,
}

/// How far an item is.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum State {
    Open,
    Completed,
    /// The answer was cut in it.
    Cut,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum ItemKind {
    Reasoning,
    Message,
    Call,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum PartKind {
    Summary,
    Text,
    Refusal,
    Arguments,
}

impl PartKind {
    fn item(self) -> ItemKind {
        match self {
            Self::Summary => ItemKind::Reasoning,
            Self::Text | Self::Refusal => ItemKind::Message,
            Self::Arguments => ItemKind::Call,
        }
    }
}

pub(super) struct Part {
    pub(super) kind: PartKind,
    pub(super) text: String,
}

pub(super) struct Item {
    pub(super) kind: ItemKind,
    pub(super) id: String,
    pub(super) state: State,
    pub(super) parts: Vec<Part>,
    /// Of a call.
    pub(super) call_id: String,
    /// Of a call.
    pub(super) name: String,
}

/// The open calls by what a piece may say of them, so that a piece finds its own among however many at one look. Of
/// several the last is found.
#[derive(Default)]
struct OpenCalls {
    by_id: HashMap<u64, usize>,
    by_index: HashMap<Option<u64>, usize>,
}

impl OpenCalls {
    fn add(&mut self, item: usize, piece: &CallPiece<'_>) {
        for index in [None, piece.index] {
            self.by_index.insert(index, item);
            if let Some(id) = &piece.id {
                self.by_id.insert(identity(index, id), item);
            }
        }
    }

    /// The call a piece belongs to: the one with its id, else the last of its index. Some providers give parallel calls
    /// one index but each its id and name, some send each in one piece that has neither index nor id.
    fn find(&self, piece: &CallPiece<'_>) -> Option<usize> {
        let same_id = piece.id.as_ref().and_then(|id| self.by_id.get(&identity(piece.index, id)));
        let begins = piece.name.is_some() && (piece.id.is_some() || piece.index.is_none());
        let found = same_id.or_else(|| self.by_index.get(&piece.index).filter(|_| !begins));
        found.copied()
    }
}

/// All items, in the order in which they began.
pub(super) struct Output {
    pub(super) items: Vec<Item>,
    pub(super) steps: VecDeque<Step>,
    /// What distinguishes this response's item ids from another's.
    suffix: String,
    calls: OpenCalls,
    /// The ids clients are told of calls.
    call_ids: HashSet<u64>,
    /// The last item that is no call.
    speech: Option<usize>,
    /// All items before this one are closed.
    closed: usize,
    bytes: usize,
    most_bytes: usize,
}

impl Output {
    /// Nothing said yet. At most `most_bytes` of text are kept.
    pub(super) fn new(response_id: &str, most_bytes: usize) -> Self {
        let suffix = response_id.strip_prefix("resp_").unwrap_or(response_id).to_owned();
        Self {
            items: Vec::new(),
            steps: VecDeque::new(),
            suffix,
            calls: OpenCalls::default(),
            call_ids: HashSet::new(),
            speech: None,
            closed: 0,
            bytes: 0,
            most_bytes,
        }
    }

    /// Takes what a message or a piece of one says.
    pub(super) fn take(&mut self, chat: &Chat<'_>) -> Result<(), StreamError> {
        for text in chat.said.reasoning() {
            self.say(PartKind::Summary, text)?;
        }
        for text in &chat.said.text.0 {
            self.say(PartKind::Text, text)?;
        }
        for text in &chat.said.refusal.0 {
            self.say(PartKind::Refusal, text)?;
        }
        chat.said.calls.iter().try_for_each(|piece| self.call(piece))
    }

    /// Closes what is open. If the answer was cut, it was cut in the last item.
    pub(super) fn close(&mut self, state: State) {
        let last = self.items.len().wrapping_sub(1);
        for item in self.closed..self.items.len() {
            self.close_item(item, if item == last { state } else { State::Completed });
        }
        self.closed = self.items.len();
        self.calls = OpenCalls::default();
    }

    fn say(&mut self, kind: PartKind, text: &str) -> Result<(), StreamError> {
        let item = self.speaking(kind.item())?;
        let Some(Item { parts, .. }) = self.items.get_mut(item) else { return Ok(()) };
        if parts.last().is_none_or(|part| part.kind != kind) {
            parts.push(Part { kind, text: String::new() });
            let part = parts.len() - 1;
            if let Some(before) = part.checked_sub(1) {
                self.steps
                    .extend([Step::TextDone(At { item, part: before }), Step::PartDone(At { item, part: before })]);
            }
            self.steps.push_back(Step::PartAdded(At { item, part }));
        }
        self.append(item, text)
    }

    /// The open message or reasoning of that kind, a new one if another kind of it is open or none.
    fn speaking(&mut self, kind: ItemKind) -> Result<usize, StreamError> {
        // After a call has begun, what is said is another message.
        let last = self.items.len().wrapping_sub(1);
        if self.items.last().is_some_and(|open| open.state == State::Open && open.kind == kind) {
            return Ok(last);
        }
        self.stop_speaking();
        self.open(kind)
    }

    fn stop_speaking(&mut self) {
        if let Some(item) = self.speech.take() {
            self.close_item(item, State::Completed);
        }
    }

    fn call(&mut self, piece: &CallPiece<'_>) -> Result<(), StreamError> {
        let item = match self.calls.find(piece) {
            Some(item) => item,
            None => self.begin_call(piece)?,
        };
        if let Some(name) = &piece.name
            && let Some(call) = self.items.get_mut(item)
            && call.name.is_empty()
        {
            call.name = name.clone().into_owned();
            self.grow(name.len())?;
        }
        match &piece.arguments {
            Some(arguments) => self.append(item, arguments),
            None => Ok(()),
        }
    }

    fn begin_call(&mut self, piece: &CallPiece<'_>) -> Result<usize, StreamError> {
        self.stop_speaking();
        let item = self.open(ItemKind::Call)?;
        // Clients match calls and results by this id, so it must be there and be the only one.
        let usable = piece.id.as_deref().filter(|id| !id.is_empty() && !self.call_ids.contains(&identity(None, id)));
        let call_id = usable.map_or_else(|| format!("call_{}_{item}", self.suffix), str::to_owned);
        self.call_ids.insert(identity(None, &call_id));
        self.grow(call_id.len())?;
        self.calls.add(item, piece);
        if let Some(call) = self.items.get_mut(item) {
            call.call_id = call_id;
            call.parts.push(Part { kind: PartKind::Arguments, text: String::new() });
        }
        Ok(item)
    }

    fn open(&mut self, kind: ItemKind) -> Result<usize, StreamError> {
        let item = self.items.len();
        if item >= MOST_ITEMS {
            return Err(StreamError::TooLarge);
        }
        let prefix = match kind {
            ItemKind::Reasoning => "rs",
            ItemKind::Message => "msg",
            ItemKind::Call => "fc",
        };
        self.items.push(Item {
            kind,
            id: format!("{prefix}_{}_{item}", self.suffix),
            state: State::Open,
            parts: Vec::new(),
            call_id: String::new(),
            name: String::new(),
        });
        if kind != ItemKind::Call {
            self.speech = Some(item);
        }
        self.steps.push_back(Step::ItemAdded(item));
        Ok(item)
    }

    /// Adds to an item's last part.
    fn append(&mut self, item: usize, text: &str) -> Result<(), StreamError> {
        self.grow(text.len())?;
        let Some(parts) = self.items.get_mut(item).map(|item| &mut item.parts) else { return Ok(()) };
        let number = parts.len().saturating_sub(1);
        if let Some(part) = parts.last_mut() {
            let start = part.text.len();
            part.text.push_str(text);
            self.steps.push_back(Step::Delta(At { item, part: number }, start..part.text.len()));
        }
        Ok(())
    }

    fn grow(&mut self, by: usize) -> Result<(), StreamError> {
        self.bytes = self.bytes.saturating_add(by);
        if self.bytes > self.most_bytes { Err(StreamError::TooLarge) } else { Ok(()) }
    }

    fn close_item(&mut self, item: usize, state: State) {
        let Some(open) = self.items.get_mut(item).filter(|open| open.state == State::Open) else { return };
        open.state = state;
        if let Some(part) = open.parts.len().checked_sub(1) {
            self.steps.push_back(Step::TextDone(At { item, part }));
            if open.kind != ItemKind::Call {
                self.steps.push_back(Step::PartDone(At { item, part }));
            }
        }
        self.steps.push_back(Step::ItemDone(item));
    }
}
