//! The few facts of an LLM request that anybody acts on.

/// What we read of an LLM request; everything else travels untouched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LlmFacts {
    /// The caller wants server-sent events.
    pub stream: bool,
    /// The caller wants the usage event at the end of the stream.
    pub include_usage: bool,
    /// Somebody in the proxy wants that event too, and takes it out for callers who did not ask.
    pub keeps_usage: bool,
    /// The caller sent `stream_options`, which not every provider takes.
    pub has_stream_options: bool,
    /// The answer may be something else than JSON or events: sound, subtitles, bare text.
    pub plain: bool,
    /// It refers to something its provider keeps, or adds to it, so that a second one at the same time would not be the
    /// same call.
    pub anchored: bool,
    /// Where in the body the model's name stands, between its quotes; `None` if it is spelled with escapes.
    pub model_at: Option<Span>,
}

/// A stretch of a body, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Its first byte.
    pub start: usize,
    /// One past its last.
    pub end: usize,
}
