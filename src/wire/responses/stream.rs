//! The answer of a chat provider as the response the caller waits for, whole or event by event.

use std::sync::Arc;

use bytes::Bytes;

use super::chat::{Chat, Tokens};
use super::echo::{Echo, Identity, ResponseView, Status};
use super::events;
use super::output::{At, Item, Output, Part, State, Step};
use crate::wire::openai::{EmbeddedError, peek_chunk, peek_reply};
use crate::wire::sse::Event;

/// Bytes of text one streamed answer may have, which must be kept because its closing events repeat it.
const MOST_BYTES: usize = 32 << 20;

/// The codes an error may have: those of the official type that can happen here, and those beside it that OpenAI sends
/// and clients act on. Strict readers fail on any other.
const CODES: &[&str] = &[
    "server_error",
    "rate_limit_exceeded",
    "invalid_prompt",
    "context_length_exceeded",
    "insufficient_quota",
    "server_is_overloaded",
];

/// Why a stream cannot be carried on. [`StreamFromChat::fail`] tells the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// It has more than 32 MiB of text, or more than 4096 items.
    #[error("the answer is too long to be carried over from chat completions")]
    TooLarge,
    /// An event is no chunk of a chat answer.
    #[error("the stream is not made of chat completion chunks")]
    NotChat,
    /// The provider reports a failure.
    #[error("the provider reports a failure in its stream")]
    Reported(EmbeddedError),
}

/// A whole chat answer as a whole response; `None` if it is no chat answer or reports a failure.
///
/// `id` is the response's, such as `resp_` and something unique; `created_unix` is in seconds since 1970.
pub fn from_chat(reply: &[u8], echo: &Echo, id: &str, created_unix: u64) -> Option<Bytes> {
    let mut chat = Chat::read(reply).filter(|chat| chat.any)?;
    if chat.suspect && peek_reply(reply).is_some_and(|facts| facts.error.is_some()) {
        return None;
    }
    // In a whole answer the calls have no numbers, and each is one of its own.
    (0..).zip(&mut chat.said.calls).for_each(|(number, call)| call.index = Some(number));
    let mut output = Output::new(id, usize::MAX);
    output.take(&chat).ok()?;
    let ending = ending(chat.finish_reason.as_deref());
    output.close(last_state(ending));
    let model = chat.model.as_deref().unwrap_or(echo.model());
    let whose = Identity { id, created_at: created_unix, model, echo };
    let response = ResponseView::new(&whose, ending, &output, chat.usage.as_ref());
    serde_json::to_vec(&response).ok().map(Bytes::from)
}

/// A chat stream as a stream of response events.
///
/// [`StreamFromChat::push`] takes each event of the provider, and [`StreamFromChat::next`] gives what is to be told
/// because of it, until it gives nothing. Nothing is held back, but for the terminal event, which comes with the
/// provider's `[DONE]` because the token counts stand before that and after the finish reason.
pub struct StreamFromChat {
    id: String,
    created_at: u64,
    echo: Arc<Echo>,
    /// As the first chunk that names one has it.
    model: Option<String>,
    output: Output,
    sequence: u64,
    started: bool,
    usage: Option<Tokens>,
    ending: Option<Status<'static>>,
    failure: Option<Failure>,
    over: bool,
}

struct Failure {
    message: String,
    kind: String,
}

impl StreamFromChat {
    /// A stream of which nothing came yet. `id` is the response's; `created_unix` is in seconds since 1970.
    pub fn new(echo: Arc<Echo>, id: &str, created_unix: u64) -> Self {
        Self::limited(echo, id, created_unix, MOST_BYTES)
    }

    pub(super) fn limited(echo: Arc<Echo>, id: &str, created_unix: u64, most_bytes: usize) -> Self {
        Self {
            id: id.to_owned(),
            created_at: created_unix,
            echo,
            model: None,
            output: Output::new(id, most_bytes),
            sequence: 0,
            started: false,
            usage: None,
            ending: None,
            failure: None,
            over: false,
        }
    }

    /// Takes the provider's next event. Comments say nothing, and after the terminal event nothing does.
    ///
    /// # Errors
    ///
    /// [`StreamError`], after which [`StreamFromChat::fail`] is the only way on.
    pub fn push(&mut self, event: &Event) -> Result<(), StreamError> {
        if self.over {
            return Ok(());
        }
        if event.is_done() {
            self.start();
            self.output.close(State::Completed);
            self.output.steps.push_back(Step::End);
            self.over = true;
            return Ok(());
        }
        let Some(data) = event.data() else { return Ok(()) };
        let chat = Chat::read(&data).ok_or(StreamError::NotChat)?;
        if (chat.suspect || !chat.has_choices)
            && let Some(error) = peek_chunk(&data).error
        {
            return Err(StreamError::Reported(error));
        }
        if self.model.is_none() {
            self.model = chat.model.as_deref().map(str::to_owned);
        }
        self.start();
        self.output.take(&chat)?;
        if let Some(reason) = chat.finish_reason.as_deref() {
            let ending = ending(Some(reason));
            self.output.close(last_state(ending));
            self.ending.get_or_insert(ending);
        }
        self.usage = chat.usage.or(self.usage);
        Ok(())
    }

    /// What is to be told next; nothing until more is pushed.
    #[expect(clippy::should_implement_trait, reason = "nothing now is not the end, so this is no iterator")]
    pub fn next(&mut self) -> Option<Event> {
        loop {
            let step = self.output.steps.pop_front()?;
            if let Some(event) = self.render(&step) {
                self.sequence += 1;
                return Some(event);
            }
        }
    }

    /// Ends a stream that cannot end well with one `response.failed`, which [`StreamFromChat::next`] then gives. What
    /// clients do not know as a code becomes `server_error`, and `code` the error's type. Without effect after the end.
    pub fn fail(&mut self, message: &str, code: &str) {
        if self.over {
            return;
        }
        self.start();
        self.failure = Some(Failure { message: message.to_owned(), kind: code.to_owned() });
        self.output.steps.push_back(Step::End);
        self.over = true;
    }

    /// True once the terminal event is told or waits to be.
    pub fn is_over(&self) -> bool {
        self.over
    }

    fn start(&mut self) {
        if !self.started {
            self.started = true;
            self.output.steps.extend([Step::Created, Step::InProgress]);
        }
    }

    fn render(&self, step: &Step) -> Option<Event> {
        let number = self.sequence;
        match step {
            Step::Created => Some(self.lifecycle("response.created", Status::InProgress)),
            Step::InProgress => Some(self.lifecycle("response.in_progress", Status::InProgress)),
            Step::End => Some(self.end()),
            Step::ItemAdded(index) => Some(events::item_added(number, *index, self.output.items.get(*index)?)),
            Step::ItemDone(index) => Some(events::item_done(number, *index, self.output.items.get(*index)?)),
            Step::PartAdded(at) => self.part(*at).map(|(item, part)| events::part_added(number, *at, item, part)),
            Step::PartDone(at) => self.part(*at).map(|(item, part)| events::part_done(number, *at, item, part)),
            Step::TextDone(at) => self.part(*at).map(|(item, part)| events::text_done(number, *at, item, part)),
            Step::Delta(at, range) => {
                let (item, part) = self.part(*at)?;
                Some(events::delta(number, *at, item, (part.kind, part.text.get(range.clone())?)))
            }
        }
    }

    fn part(&self, at: At) -> Option<(&Item, &Part)> {
        let item = self.output.items.get(at.item)?;
        Some((item, item.parts.get(at.part)?))
    }

    fn end(&self) -> Event {
        if let Some(Failure { message, kind }) = &self.failure {
            let code = CODES.iter().find(|code| *code == kind).copied().unwrap_or("server_error");
            return self.lifecycle("response.failed", Status::Failed { code, kind, message });
        }
        match self.ending.unwrap_or(Status::Completed) {
            cut @ Status::Incomplete(_) => self.lifecycle("response.incomplete", cut),
            ending => self.lifecycle("response.completed", ending),
        }
    }

    fn lifecycle(&self, kind: &'static str, status: Status<'_>) -> Event {
        let model = self.model.as_deref().unwrap_or(self.echo.model());
        let whose = Identity { id: &self.id, created_at: self.created_at, model, echo: &self.echo };
        let usage = self.usage.as_ref().filter(|_| !matches!(status, Status::InProgress));
        events::lifecycle(kind, self.sequence, ResponseView::new(&whose, status, &self.output, usage))
    }
}

impl std::fmt::Debug for StreamFromChat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamFromChat")
            .field("sequence", &self.sequence)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

fn ending(finish_reason: Option<&str>) -> Status<'static> {
    match finish_reason {
        Some("length") => Status::Incomplete("max_output_tokens"),
        Some("content_filter") => Status::Incomplete("content_filter"),
        _ => Status::Completed,
    }
}

fn last_state(ending: Status<'_>) -> State {
    if matches!(ending, Status::Incomplete(_)) { State::Cut } else { State::Completed }
}
