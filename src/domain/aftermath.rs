//! What became of a payment, in the words of the API.

/// A word on one payment, said later by somebody who knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Aftermath {
    /// Good: it was what it seemed.
    Legitimate,
    /// Good: a person found that a REVIEW or REJECT was wrong.
    Overturned,
    /// Fraud, by somebody's judgement.
    Fraud,
    /// Fraud: the payer's bank took the money back.
    Chargeback,
    /// Fraud: the card scheme warned early.
    FraudWarning,
    /// Fraud: a person found that a REVIEW or REJECT was right.
    Confirmed,
    /// Neither: the money went back for another reason.
    Refunded,
}

impl Aftermath {
    /// Every word.
    pub const ALL: [Self; 7] = [
        Self::Legitimate,
        Self::Overturned,
        Self::Fraud,
        Self::Chargeback,
        Self::FraudWarning,
        Self::Confirmed,
        Self::Refunded,
    ];

    /// The word on the wire, in the record and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Legitimate => "legitimate",
            Self::Overturned => "overturned",
            Self::Fraud => "fraud",
            Self::Chargeback => "chargeback",
            Self::FraudWarning => "fraud_warning",
            Self::Confirmed => "confirmed",
            Self::Refunded => "refunded",
        }
    }

    /// Reads the word; exactly the known ones.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == word)
    }

    /// True for fraud, false for good, `None` for neither.
    pub fn is_fraud(self) -> Option<bool> {
        match self {
            Self::Fraud | Self::Chargeback | Self::FraudWarning | Self::Confirmed => Some(true),
            Self::Legitimate | Self::Overturned => Some(false),
            Self::Refunded => None,
        }
    }
}
