//! What a caller may ask for, and how safely it may be asked twice.

/// One thing the data plane can do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Operation {
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /v1/responses`
    Responses,
    /// `POST /v1/messages`
    Messages,
    /// `POST /v1/messages/count_tokens`
    CountTokens,
    /// `POST /v1/moderations`
    Moderations,
    /// `POST /v1/images/generations`
    Images,
    /// `POST /v1/audio/transcriptions`
    Transcriptions,
    /// `POST /v1/audio/translations`
    Translations,
    /// `POST /v1/audio/speech`
    Speech,
    /// `GET /v1/models`
    ModelsList,
    /// `GET /v1/models/{id}`
    ModelsGet,
    /// `POST /v1/risk/assessments`
    RiskAssess,
    /// `GET /v1/risk/assessments/{id}`
    RiskGet,
    /// `POST /v1/risk/assessments/{id}/outcome`
    RiskOutcome,
}

/// Whether repeating an operation can do harm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Safety {
    /// Repeat and hedge freely.
    ReadOnly,
    /// Repeating costs money but changes nothing.
    Repeatable,
    /// A repeat may be a second decision: only when nothing was sent.
    AtMostOnce,
}

/// The family of errors and stream endings a path speaks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Dialect {
    /// OpenAI's error object; streams end in `[DONE]`.
    OpenAi,
    /// OpenAI's error object; streams end in an event of their own.
    Responses,
    /// OpenAI's error object; streams end in an event of their own or in `[DONE]`, and may be no events at all.
    Audio,
    /// Anthropic's error object; streams end in an event of their own.
    Anthropic,
    /// RFC 9457 problem details.
    Problem,
}

/// Which reserved share of the process a call draws on, and what is shed first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TrafficClass {
    /// Payment decisions: reserved permits, shed last.
    Risk,
    /// LLM traffic.
    Llm,
}

impl Operation {
    /// Every operation, for tables.
    pub const ALL: [Self; 16] = [
        Self::ChatCompletions,
        Self::Completions,
        Self::Embeddings,
        Self::Responses,
        Self::Messages,
        Self::CountTokens,
        Self::Moderations,
        Self::Images,
        Self::Transcriptions,
        Self::Translations,
        Self::Speech,
        Self::ModelsList,
        Self::ModelsGet,
        Self::RiskAssess,
        Self::RiskGet,
        Self::RiskOutcome,
    ];

    /// The name used in provider files, logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::ChatCompletions => "chat.completions",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Responses => "responses",
            Self::Messages => "messages",
            Self::CountTokens => "messages.count_tokens",
            Self::Moderations => "moderations",
            Self::Images => "images.generations",
            Self::Transcriptions => "audio.transcriptions",
            Self::Translations => "audio.translations",
            Self::Speech => "audio.speech",
            Self::ModelsList => "models.list",
            Self::ModelsGet => "models.get",
            Self::RiskAssess => "risk.assess",
            Self::RiskGet => "risk.get",
            Self::RiskOutcome => "risk.outcome",
        }
    }

    /// Where callers find it. Below `/v1` providers have the same path.
    pub fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
            Self::CountTokens => "/v1/messages/count_tokens",
            Self::Moderations => "/v1/moderations",
            Self::Images => "/v1/images/generations",
            Self::Transcriptions => "/v1/audio/transcriptions",
            Self::Translations => "/v1/audio/translations",
            Self::Speech => "/v1/audio/speech",
            Self::ModelsList => "/v1/models",
            Self::ModelsGet => "/v1/models/{*id}",
            Self::RiskAssess => "/v1/risk/assessments",
            Self::RiskGet => "/v1/risk/assessments/{id}",
            Self::RiskOutcome => "/v1/risk/assessments/{id}/outcome",
        }
    }

    /// True if it is asked for with GET; the others take POST.
    pub fn is_get(self) -> bool {
        matches!(self, Self::ModelsList | Self::ModelsGet | Self::RiskGet)
    }

    /// True if it is about the record, which no provider has.
    pub fn asks_the_record(self) -> bool {
        matches!(self, Self::RiskGet | Self::RiskOutcome)
    }

    /// True if a model of some provider answers it.
    pub fn asks_a_model(self) -> bool {
        !matches!(self, Self::ModelsList | Self::ModelsGet) && self.class() == TrafficClass::Llm
    }

    /// True if its body is a form (`multipart/form-data`), which may hold a file; the others take JSON.
    pub fn takes_form(self) -> bool {
        matches!(self, Self::Transcriptions | Self::Translations)
    }

    /// What it can be turned into for a provider that does not have it.
    pub fn carried_by(self) -> Option<Self> {
        matches!(self, Self::Responses | Self::Messages).then_some(Self::ChatCompletions)
    }

    /// The default safety; a dialect may know better (`di-hmac` defines `Idempotency-Key`).
    pub fn safety(self) -> Safety {
        match self {
            Self::ModelsList | Self::ModelsGet | Self::RiskGet => Safety::ReadOnly,
            Self::RiskAssess | Self::RiskOutcome => Safety::AtMostOnce,
            _ => Safety::Repeatable,
        }
    }

    /// How errors on this operation are written, and how its streams end.
    pub fn dialect(self) -> Dialect {
        match self {
            Self::RiskAssess | Self::RiskGet | Self::RiskOutcome => Dialect::Problem,
            Self::Messages | Self::CountTokens => Dialect::Anthropic,
            Self::Responses => Dialect::Responses,
            Self::Transcriptions | Self::Translations | Self::Speech => Dialect::Audio,
            _ => Dialect::OpenAi,
        }
    }

    /// Whose capacity it uses.
    pub fn class(self) -> TrafficClass {
        match self {
            Self::RiskAssess | Self::RiskGet | Self::RiskOutcome => TrafficClass::Risk,
            _ => TrafficClass::Llm,
        }
    }
}

impl TrafficClass {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Risk => "risk",
            Self::Llm => "llm",
        }
    }
}
