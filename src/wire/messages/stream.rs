//! A stream of chat chunks as the events of a message, each as soon as its chunk is here.
//!
//! Blocks of this form come one after the other, while chat only marks what each piece belongs to: [`super::blocks`] puts
//! them in order. Beside what waits there, only the ending waits, for the token counts that follow the last choice.

use std::collections::VecDeque;

use super::blocks::{Blocks, Speech, StreamError};
use super::chat::{Completion, Counts, Said, stop_reason};
use super::failure::{Failure, error_event};
use super::form::{Ending, Message, StreamEvent};
use crate::wire::sse::Event;

/// One message being told.
pub struct StreamFromChat {
    id: String,
    model: String,
    state: State,
    blocks: Blocks,
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

impl StreamFromChat {
    /// Nothing has been told yet. `model` is the name the caller is to see, `id` the message's own, which starts with
    /// `msg_`.
    pub fn new(model: &str, id: &str) -> Self {
        Self {
            id: id.to_owned(),
            model: model.to_owned(),
            state: State::Fresh,
            blocks: Blocks::new(id),
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
            self.blocks.close(out);
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
            self.blocks.say(Speech::Thinking, &said.thinking, out)?;
        }
        for text in [&said.text, &said.refusal].into_iter().filter(|text| !text.is_empty()) {
            self.blocks.say(Speech::Text, text, out)?;
        }
        self.refused |= !said.refusal.is_empty();
        said.calls.iter().try_for_each(|call| self.blocks.call(call, out))
    }

    fn end(&mut self, out: &mut VecDeque<Event>) {
        self.start(out);
        self.blocks.close(out);
        let stop_reason = stop_reason(self.finish_reason.as_deref(), self.refused, self.blocks.called());
        let delta = Ending { stop_reason, stop_sequence: None };
        out.push_back(StreamEvent::MessageDelta { delta, usage: self.counts.into() }.event());
        out.push_back(StreamEvent::MessageStop.event());
        self.state = State::Over;
    }
}

impl std::fmt::Debug for StreamFromChat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamFromChat").field("id", &self.id).finish_non_exhaustive()
    }
}
