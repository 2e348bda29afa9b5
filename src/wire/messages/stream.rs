//! A stream of chat chunks as the events of a message, each as soon as its chunk is here.
//!
//! Blocks of this form come one after the other, while chat only marks what each piece belongs to. So a block ends when
//! a piece of another kind comes. Only the ending waits, for the token counts that follow the last choice.

use std::collections::VecDeque;

use super::chat::{Call, Completion, Counts, Said, stop_reason};
use super::failure::{Failure, error_event};
use super::form::{Block, Delta, Ending, Input, Message, StreamEvent, call_id};
use crate::wire::sse::Event;

/// Blocks one message may have. A peer that makes more is not answering anybody.
const MAX_BLOCKS: usize = 4_096;

/// Why a stream of chunks cannot be told as events any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// A piece of a tool call came after the next one had begun, and that block has ended.
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

/// One message being told.
pub struct StreamFromChat {
    id: String,
    model: String,
    state: State,
    open: Option<Open>,
    /// Blocks begun so far, and the index of the next.
    blocks: usize,
    called: bool,
    refused: bool,
    finish_reason: Option<String>,
    counts: Counts,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Fresh,
    Telling,
    Over,
}

/// The block that is open.
#[derive(PartialEq, Eq)]
enum Open {
    Text,
    Thinking,
    Call { index: Option<u64>, id: String },
}

impl StreamFromChat {
    /// Nothing has been told yet. `model` is the name the caller is to see, `id` the message's own, which starts with
    /// `msg_`.
    pub fn new(model: &str, id: &str) -> Self {
        Self {
            id: id.to_owned(),
            model: model.to_owned(),
            state: State::Fresh,
            open: None,
            blocks: 0,
            called: false,
            refused: false,
            finish_reason: None,
            counts: Counts::default(),
        }
    }

    /// Takes the next event of the chat stream, `[DONE]` included, and adds what it becomes to `out`: several events, or
    /// none. Whether a chunk reports an error is for whoever reads the upstream to see, as for chat itself.
    ///
    /// # Errors
    ///
    /// When the stream cannot be told; [`StreamFromChat::fail`] then says so.
    pub fn push(&mut self, event: &Event, out: &mut VecDeque<Event>) -> Result<(), StreamError> {
        if self.state == State::Over {
            return Ok(());
        }
        if event.is_done() {
            self.end(out);
            return Ok(());
        }
        let Some(data) = event.data() else { return Ok(()) };
        let completion = Completion::read(&data).ok_or(StreamError::NotChat)?;
        self.start(out);
        if let Some(counts) = completion.usage {
            self.counts = counts;
        }
        let Some(choice) = completion.choice else { return Ok(()) };
        self.say(&choice.said, out)?;
        if let Some(reason) = choice.finish_reason {
            self.finish_reason = Some(reason.into_owned());
            self.close(out);
        }
        Ok(())
    }

    /// The one event that ends a message which cannot end well. Nothing follows it.
    pub fn fail(&mut self, failure: &Failure<'_>) -> Event {
        self.state = State::Over;
        error_event(failure)
    }

    fn start(&mut self, out: &mut VecDeque<Event>) {
        if self.state == State::Fresh {
            self.state = State::Telling;
            out.push_back(StreamEvent::MessageStart { message: Message::new(&self.id, &self.model, &[]) }.event());
        }
    }

    fn say(&mut self, said: &Said<'_>, out: &mut VecDeque<Event>) -> Result<(), StreamError> {
        if !said.thinking.is_empty() {
            self.begin(Open::Thinking, || Block::Thinking { thinking: "", signature: "" }, out)?;
            self.delta(Delta::Thinking { thinking: &said.thinking }, out);
        }
        for text in [&said.text, &said.refusal].into_iter().filter(|text| !text.is_empty()) {
            self.begin(Open::Text, || Block::Text { text: "" }, out)?;
            self.delta(Delta::Text { text }, out);
        }
        self.refused |= !said.refusal.is_empty();
        said.calls.iter().try_for_each(|call| self.call(call, out))
    }

    fn call(&mut self, call: &Call<'_>, out: &mut VecDeque<Event>) -> Result<(), StreamError> {
        if !self.continues(call) {
            self.begin_call(call, out)?;
        }
        if !call.function.arguments.is_empty() {
            self.delta(Delta::InputJson { partial_json: &call.function.arguments }, out);
        }
        Ok(())
    }

    /// True for a piece of the call that is open. Some servers give every call the same index, or none at all, and tell
    /// calls apart by their identity, or send each in one piece.
    fn continues(&self, call: &Call<'_>) -> bool {
        let Some(Open::Call { index, id }) = &self.open else { return false };
        let other_index = call.index.is_some() && call.index != *index;
        let named = !call.function.name.is_empty();
        let other_id = named && !call.id.is_empty() && call.id != *id;
        let whole = named && call.id.is_empty() && call.index.is_none();
        !other_index && !other_id && !whole
    }

    fn begin_call(&mut self, call: &Call<'_>, out: &mut VecDeque<Event>) -> Result<(), StreamError> {
        if call.function.name.is_empty() {
            return Err(if self.called { StreamError::Mixed } else { StreamError::Unnamed });
        }
        self.called = true;
        let id = call_id(&call.id, &self.id, self.blocks).into_owned();
        let open = Open::Call { index: call.index, id: call.id.clone().into_owned() };
        self.begin(open, || Block::ToolUse { id: &id, name: &call.function.name, input: Input::Awaited {} }, out)
    }

    /// Begins a block, unless it is the open one.
    fn begin<'b>(
        &mut self,
        open: Open,
        block: impl FnOnce() -> Block<'b>,
        out: &mut VecDeque<Event>,
    ) -> Result<(), StreamError> {
        if self.open.as_ref() == Some(&open) {
            return Ok(());
        }
        self.close(out);
        if self.blocks == MAX_BLOCKS {
            return Err(StreamError::TooManyBlocks);
        }
        out.push_back(StreamEvent::ContentBlockStart { index: self.blocks, content_block: block() }.event());
        self.blocks += 1;
        self.open = Some(open);
        Ok(())
    }

    fn delta(&mut self, delta: Delta<'_>, out: &mut VecDeque<Event>) {
        let index = self.blocks.saturating_sub(1);
        out.push_back(StreamEvent::ContentBlockDelta { index, delta }.event());
    }

    fn close(&mut self, out: &mut VecDeque<Event>) {
        if self.open.take().is_some() {
            out.push_back(StreamEvent::ContentBlockStop { index: self.blocks.saturating_sub(1) }.event());
        }
    }

    fn end(&mut self, out: &mut VecDeque<Event>) {
        self.start(out);
        self.close(out);
        let stop_reason = stop_reason(self.finish_reason.as_deref(), self.refused, self.called);
        let delta = Ending { stop_reason, stop_sequence: None };
        out.push_back(StreamEvent::MessageDelta { delta, usage: self.counts.into() }.event());
        out.push_back(StreamEvent::MessageStop.event());
        self.state = State::Over;
    }
}

impl std::fmt::Debug for StreamFromChat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamFromChat").field("id", &self.id).field("blocks", &self.blocks).finish_non_exhaustive()
    }
}
