//! What a caller may ask for, and how safely it may be asked twice.

/// One thing the data plane can do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `GET /v1/models`
    ModelsList,
    /// `GET /v1/models/{id}`
    ModelsGet,
    /// `POST /v1/risk/assessments`
    RiskAssess,
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

/// The family of bodies and errors a path speaks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Dialect {
    /// OpenAI's error object.
    OpenAi,
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
    pub const ALL: [Self; 4] = [Self::ChatCompletions, Self::ModelsList, Self::ModelsGet, Self::RiskAssess];

    /// The name used in provider files, logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::ChatCompletions => "chat.completions",
            Self::ModelsList => "models.list",
            Self::ModelsGet => "models.get",
            Self::RiskAssess => "risk.assess",
        }
    }

    /// The default safety; a dialect may know better (`di-hmac` defines `Idempotency-Key`).
    pub fn safety(self) -> Safety {
        match self {
            Self::ChatCompletions => Safety::Repeatable,
            Self::ModelsList | Self::ModelsGet => Safety::ReadOnly,
            Self::RiskAssess => Safety::AtMostOnce,
        }
    }

    /// How errors on this operation are written.
    pub fn dialect(self) -> Dialect {
        match self {
            Self::ChatCompletions | Self::ModelsList | Self::ModelsGet => Dialect::OpenAi,
            Self::RiskAssess => Dialect::Problem,
        }
    }

    /// Whose capacity it uses.
    pub fn class(self) -> TrafficClass {
        match self {
            Self::ChatCompletions | Self::ModelsList | Self::ModelsGet => TrafficClass::Llm,
            Self::RiskAssess => TrafficClass::Risk,
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
