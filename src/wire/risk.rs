//! Our own risk API: what payment code sends and gets.
//!
//! [`decode`] names every bad field at once, because whoever integrates wants one round trip, not ten. It never repeats
//! a value: any of them may be a card number. It decides nothing; `domain::policy` does.

use std::fmt;

use crate::domain::currency::Currency;
use crate::domain::money::Money;

mod answer;
mod country;
mod fields;
mod outcome;
mod problem;
mod request;

#[cfg(test)]
mod tests;

pub use answer::{DecisionView, encode_decision};
pub use fields::{FieldError, FieldErrorKind};
pub use outcome::{Report, decode_outcome, encode_noted};
pub use problem::{What, problem, status_of};
pub use request::decode;

/// One payment attempt to be judged, every field checked.
///
/// Debug output shows nothing but the attempt's own number: the rest is about people.
#[derive(Clone, PartialEq, Eq)]
pub struct Assessment {
    /// The merchant's number of the attempt: 1 to 64 characters of `[0-9A-Za-z_-]`.
    pub out_trade_no: String,
    /// What is to be paid.
    pub amount: Money,
    /// The amount as the caller spelled it.
    pub amount_text: String,
    /// What for, at most 256 characters.
    pub subject: String,
    /// Who is paid.
    pub merchant: Merchant,
    /// Who pays.
    pub user: User,
    /// With what.
    pub instrument: Instrument,
    /// From where.
    pub device: Device,
    /// Paid extras asked of the provider, at most 32, no two the same.
    pub features: Vec<String>,
    /// The caller's own object, as it was spelled.
    pub metadata: Option<String>,
}

impl Assessment {
    /// The currency of the amount.
    pub fn currency(&self) -> Currency {
        self.amount.currency()
    }
}

impl fmt::Debug for Assessment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assessment").field("out_trade_no", &self.out_trade_no).finish_non_exhaustive()
    }
}

/// Who is paid.
#[derive(Clone, PartialEq, Eq)]
pub struct Merchant {
    /// Its number at the caller's.
    pub id: String,
    /// What it sells, in the caller's words.
    pub category: Option<String>,
    /// ISO 3166-1 alpha-2.
    pub country: Option<String>,
}

/// Who pays.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// Their number at the caller's.
    pub id: String,
    /// ISO 3166-1 alpha-2.
    pub country: Option<String>,
    /// Their e-mail address.
    pub email: Option<String>,
    /// Their telephone number.
    pub phone: Option<String>,
    /// Since when they have an account.
    pub registered_at: Option<Moment>,
}

/// What is paid with. All fields are absent if the caller said nothing.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Instrument {
    /// `card`, `wallet`, in the caller's words.
    pub kind: Option<String>,
    /// The caller's stable, one-way name for the instrument.
    pub fingerprint: Option<String>,
    /// The first 6 to 8 digits of a card number.
    pub bin: Option<String>,
    /// Its last 4 digits.
    pub last4: Option<String>,
}

/// Where the payment comes from. All fields are absent if the caller said nothing.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// The caller's stable name for the device.
    pub id: Option<String>,
    /// An IPv4 or IPv6 address.
    pub ip: Option<String>,
    /// Since when the caller knows the device.
    pub known_since: Option<Moment>,
}

/// A moment the caller wrote.
#[derive(Clone, PartialEq, Eq)]
pub struct Moment {
    /// RFC 3339, as it was spelled.
    pub text: String,
    /// Milliseconds since 1970, negative before.
    pub unix_ms: i64,
}
