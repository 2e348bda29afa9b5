//! Faults a simulated provider can be told to show, as short texts and as scripts.
//!
//! It exists so that a test, a body field and a command-line flag name a fault in the same words. It does not act a
//! fault out: each simulated provider does that in its own protocol.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many keys one [`Faults`] remembers.
const MAX_KEYS: usize = 256;

/// How many faults one script holds; what is beyond is left out.
const MAX_SCRIPT: usize = 1_024;

/// The longest delay a text may ask for.
const MAX_DELAY: Duration = Duration::from_secs(600);

/// One thing that goes wrong with one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The answer is right, but starts this much later.
    Delay(Duration),
    /// The connection closes without a byte.
    Refuse,
    /// The connection is reset where the transport allows it, else as [`Fault::Refuse`].
    Reset,
    /// This status instead of an answer.
    Status {
        /// The status code, 100 to 599.
        code: u16,
        /// Headers the answer carries beside its usual ones.
        headers: Vec<(String, String)>,
        /// The body as it leaves; `None` means the protocol's own error body.
        body: Option<String>,
    },
    /// A 200 without content.
    Empty,
    /// A 200 whose body reports an error of this status.
    ErrorIn200 {
        /// The status the error claims.
        status: u16,
    },
    /// After this many content events the connection ends without a terminal event.
    CutAfter(usize),
    /// After this many content events nothing more comes, and the connection stays open.
    StallAfter(usize),
    /// Not even headers come, and the connection stays open.
    Stall,
    /// An answer whose signature is wrong. A protocol that signs nothing answers as usual.
    BadSignature,
    /// An answer that should be signed and is not. A protocol that signs nothing answers as usual.
    Unsigned,
    /// An answer whose signature is wrong in this way. A protocol that signs nothing answers as usual.
    Forged(Forgery),
    /// A 200 with a body that is not the protocol.
    Garbage,
}

/// What is wrong with a signature that somebody took trouble with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgery {
    /// Made 301 seconds ago.
    OldTime,
    /// Another request's.
    OtherRequest,
    /// Made for another status.
    OtherStatus,
    /// It says that there is no algorithm.
    NoAlgorithm,
    /// The algorithm's name in lower case.
    LowerCase,
    /// An older version.
    Downgrade,
    /// A right one, twice.
    Twice,
    /// A right one, under a key id that nobody knows.
    UnknownKey,
}

impl Forgery {
    /// Every forgery by the word that stands behind `forged:`.
    pub const WORDS: [(&str, Self); 8] = [
        ("old-time", Self::OldTime),
        ("other-request", Self::OtherRequest),
        ("other-status", Self::OtherStatus),
        ("no-algorithm", Self::NoAlgorithm),
        ("lower-case", Self::LowerCase),
        ("downgrade", Self::Downgrade),
        ("twice", Self::Twice),
        ("unknown-key", Self::UnknownKey),
    ];

    fn parse(word: &str) -> Result<Self, FaultError> {
        let known = Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, forgery)| *forgery);
        known.ok_or(FaultError::Value(
            "forged",
            "one of old-time, other-request, other-status, no-algorithm, lower-case, downgrade, twice, unknown-key",
        ))
    }
}

/// Why a text names no fault. The text itself is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// The first word is none of the known ones.
    #[error(
        "no such fault, write one of delay, refuse, reset, status, empty, error-in-200, cut, stall, bad-signature, \
         unsigned, forged, garbage"
    )]
    Unknown,
    /// A value is missing after the colon.
    #[error("the fault {0} needs a value after a colon")]
    Missing(&'static str),
    /// A value is there and should not be.
    #[error("the fault {0} takes no value")]
    Unexpected(&'static str),
    /// The value cannot be read.
    #[error("the value of the fault {0} cannot be read, write {1}")]
    Value(&'static str, &'static str),
}

impl Fault {
    /// Reads a fault: `delay:800ms`, `refuse`, `reset`, `status:503`, `status:429;retry-after=2;retry-after-ms=50`,
    /// `empty`, `error-in-200:429`, `cut:3`, `stall:2`, `stall`, `bad-signature`, `unsigned`,
    /// `forged:old-time` and the like, `garbage`.
    ///
    /// After a status, `body=` is the last part and takes the rest of the text, semicolons included.
    ///
    /// # Errors
    ///
    /// When the text is none of these forms.
    pub fn parse(text: &str) -> Result<Self, FaultError> {
        let text = text.trim();
        let (word, value) = match text.split_once(':') {
            Some((word, value)) => (word, Some(value)),
            None => (text, None),
        };
        match word {
            "delay" => Ok(Self::Delay(delay(required("delay", value)?)?)),
            "refuse" => bare("refuse", value, Self::Refuse),
            "reset" => bare("reset", value, Self::Reset),
            "status" => status(required("status", value)?),
            "empty" => bare("empty", value, Self::Empty),
            "error-in-200" => Ok(Self::ErrorIn200 { status: code("error-in-200", required("error-in-200", value)?)? }),
            "cut" => Ok(Self::CutAfter(count("cut", required("cut", value)?)?)),
            "stall" => match value {
                Some(events) => Ok(Self::StallAfter(count("stall", events)?)),
                None => Ok(Self::Stall),
            },
            "bad-signature" => bare("bad-signature", value, Self::BadSignature),
            "forged" => Ok(Self::Forged(Forgery::parse(required("forged", value)?)?)),
            "unsigned" => bare("unsigned", value, Self::Unsigned),
            "garbage" => bare("garbage", value, Self::Garbage),
            _ => Err(FaultError::Unknown),
        }
    }
}

fn required<'t>(word: &'static str, value: Option<&'t str>) -> Result<&'t str, FaultError> {
    value.filter(|value| !value.is_empty()).ok_or(FaultError::Missing(word))
}

fn bare(word: &'static str, value: Option<&str>, fault: Fault) -> Result<Fault, FaultError> {
    if value.is_some() { Err(FaultError::Unexpected(word)) } else { Ok(fault) }
}

fn count(word: &'static str, value: &str) -> Result<usize, FaultError> {
    value.parse().map_err(|_| FaultError::Value(word, "a number of events such as 3"))
}

fn code(word: &'static str, value: &str) -> Result<u16, FaultError> {
    let code = value.parse().ok().filter(|code| (100..600).contains(code));
    code.ok_or(FaultError::Value(word, "a status between 100 and 599"))
}

fn delay(value: &str) -> Result<Duration, FaultError> {
    let unit = |suffix: &str| value.strip_suffix(suffix).and_then(|number| number.parse::<u64>().ok());
    let length = if let Some(millis) = unit("ms") {
        Some(Duration::from_millis(millis))
    } else {
        unit("s").map(Duration::from_secs)
    };
    length
        .filter(|length| *length <= MAX_DELAY)
        .ok_or(FaultError::Value("delay", "a time of at most 600s such as 800ms or 2s"))
}

fn status(value: &str) -> Result<Fault, FaultError> {
    let (number, mut rest) = value.split_once(';').map_or((value, None), |(number, rest)| (number, Some(rest)));
    let code = code("status", number)?;
    let mut headers = Vec::new();
    let mut body = None;
    while let Some(parts) = rest {
        if let Some(text) = parts.strip_prefix("body=") {
            body = Some(text.to_owned());
            break;
        }
        let (part, tail) = parts.split_once(';').map_or((parts, None), |(part, tail)| (part, Some(tail)));
        headers.push(header(part)?);
        rest = tail;
    }
    Ok(Fault::Status { code, headers, body })
}

/// Checked here, so that acting a fault out cannot fail later.
fn header(part: &str) -> Result<(String, String), FaultError> {
    let wrong = FaultError::Value("status", "headers as name=value, with semicolons between them");
    let (name, value) = part.split_once('=').ok_or(wrong)?;
    http::HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong)?;
    http::HeaderValue::from_str(value).map_err(|_| wrong)?;
    Ok((name.to_owned(), value.to_owned()))
}

/// The faults waiting for each key, shared by everyone who holds a clone.
///
/// A key is whatever the simulated provider looks faults up by: a provider's name, an operation. At most 256 keys.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    // A blocking lock: held for one map access and never across an await.
    plans: Arc<Mutex<HashMap<String, Plan>>>,
}

#[derive(Debug, Default)]
struct Plan {
    script: VecDeque<Fault>,
    always: Option<Fault>,
}

impl Faults {
    /// Nothing goes wrong until somebody says so.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the script of `key`: each request takes one fault, and the last does not repeat. What [`Faults::always`]
    /// said takes over again when the script is used up. False, and no change, when 256 other keys are in use.
    pub fn set(&self, key: &str, script: Vec<Fault>) -> bool {
        self.with_plan(key, |plan| plan.script = script.into_iter().take(MAX_SCRIPT).collect())
    }

    /// Shows `fault` for every request under `key` that no script answers. False, and no change, when 256 other keys
    /// are in use.
    pub fn always(&self, key: &str, fault: Fault) -> bool {
        self.with_plan(key, |plan| plan.always = Some(fault))
    }

    /// Forgets all that was said about `key`.
    pub fn clear(&self, key: &str) {
        self.lock().remove(key);
    }

    /// Takes the fault the next request under `key` shows.
    pub fn next(&self, key: &str) -> Option<Fault> {
        let mut plans = self.lock();
        let plan = plans.get_mut(key)?;
        plan.script.pop_front().or_else(|| plan.always.clone())
    }

    fn with_plan(&self, key: &str, change: impl FnOnce(&mut Plan)) -> bool {
        let mut plans = self.lock();
        if plans.len() >= MAX_KEYS && !plans.contains_key(key) {
            return false;
        }
        change(plans.entry(key.to_owned()).or_default());
        true
    }

    /// A panic of another holder leaves whole plans behind, so the poison says nothing here.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Plan>> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16) -> Fault {
        Fault::Status { code, headers: Vec::new(), body: None }
    }

    #[test]
    fn every_documented_text_names_its_fault() {
        let paced = [("retry-after", "2"), ("retry-after-ms", "50")];
        let headers = paced.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let table = [
            ("delay:800ms", Fault::Delay(Duration::from_millis(800))),
            ("delay:2s", Fault::Delay(Duration::from_secs(2))),
            ("refuse", Fault::Refuse),
            ("reset", Fault::Reset),
            ("status:503", status(503)),
            ("status:429;retry-after=2;retry-after-ms=50", Fault::Status { code: 429, headers, body: None }),
            ("status:500;body=a;b=c", Fault::Status { code: 500, headers: Vec::new(), body: Some("a;b=c".to_owned()) }),
            ("empty", Fault::Empty),
            ("error-in-200:429", Fault::ErrorIn200 { status: 429 }),
            ("cut:3", Fault::CutAfter(3)),
            ("stall:2", Fault::StallAfter(2)),
            (" stall ", Fault::Stall),
            ("bad-signature", Fault::BadSignature),
            ("unsigned", Fault::Unsigned),
            ("garbage", Fault::Garbage),
        ];
        for (text, fault) in table {
            assert_eq!(Fault::parse(text), Ok(fault), "{text}");
        }
    }

    #[test]
    fn a_text_that_names_no_fault_says_what_to_write() {
        assert_eq!(Fault::parse("explode"), Err(FaultError::Unknown));
        assert_eq!(Fault::parse("cut"), Err(FaultError::Missing("cut")));
        assert_eq!(Fault::parse("refuse:1"), Err(FaultError::Unexpected("refuse")));
        for text in ["delay:8", "delay:601s", "status:42", "status:600", "status:503;x", "status:503;a b=c", "cut:-1"] {
            assert!(matches!(Fault::parse(text), Err(FaultError::Value(..))), "{text}");
        }
        assert!(!Fault::parse("delay:CANARY").unwrap_err().to_string().contains("CANARY"));
    }

    #[test]
    fn a_script_is_used_up_and_its_last_fault_does_not_repeat() {
        let faults = Faults::new();
        faults.set("tokenmix", vec![status(503), Fault::Refuse]);
        assert_eq!(faults.next("openrouter"), None);
        assert_eq!(faults.next("tokenmix"), Some(status(503)));
        assert_eq!(faults.clone().next("tokenmix"), Some(Fault::Refuse));
        assert_eq!(faults.next("tokenmix"), None);
    }

    #[test]
    fn what_is_always_so_waits_for_the_script_and_ends_with_clear() {
        let faults = Faults::new();
        faults.always("a", Fault::Empty);
        faults.set("a", vec![Fault::Stall]);
        assert_eq!(faults.next("a"), Some(Fault::Stall));
        assert_eq!(faults.next("a"), Some(Fault::Empty));
        assert_eq!(faults.next("a"), Some(Fault::Empty));
        faults.clear("a");
        assert_eq!(faults.next("a"), None);
    }

    #[test]
    fn the_257th_key_is_refused_and_known_keys_still_change() {
        let faults = Faults::new();
        for key in 0..MAX_KEYS {
            assert!(faults.always(&key.to_string(), Fault::Empty));
        }
        assert!(!faults.always("one more", Fault::Empty));
        assert!(faults.always("0", Fault::Stall));
    }
}
