//! What callers and merchants spent, on disk, so that a restart is no second budget.
//!
//! One small file, written anew a few seconds after something changed and when the process stops, never on a request's
//! path. It is a convenience and no ledger: what was spent in the last seconds before a crash is forgotten, and a file that
//! cannot be read or written is told in the log and stops nothing. Several processes must not share one.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::domain::currency::Currency;
use crate::domain::id::CallerId;
use crate::domain::period::Period;
use crate::flight::merchants::{Key, MOST_MERCHANTS};
use crate::flight::quota::Kept;
use crate::gateway::snapshot::{Live, Snapshot};

/// How long a change may wait to be written.
const INTERVAL: Duration = Duration::from_secs(5);
/// More than all callers with all their budgets and all merchants need.
const MOST_BYTES: u64 = 16 << 20;
/// Merchants that are read: those with a purse of their own, and all that a configuration can name.
const MOST_READ: usize = MOST_MERCHANTS + 2_000;
const NAME: &str = "spending.json";
const VERSION: u64 = 1;

/// Writes what was spent, from a thread of its own.
pub struct Keeper {
    file: PathBuf,
    live: Live,
    written: String,
    failing: bool,
}

impl Keeper {
    /// Keeps the spending of `live` in this folder, which need not exist yet.
    pub fn new(folder: &Path, live: Live) -> Self {
        Self { file: folder.join(NAME), live, written: String::new(), failing: false }
    }

    /// Gives callers and merchants back what the file says they had spent in the windows that run now. Call it before anybody
    /// spends.
    pub fn restore(&self) {
        let known = match read(&self.file) {
            Ok(known) => known,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                let aside = self.file.with_extension("json.broken");
                let moved = fs::rename(&self.file, &aside).is_ok();
                let file = self.file.display();
                tracing::error!(%error, %file, moved, "what was spent cannot be read, all budgets begin anew");
                return;
            }
        };
        let snapshot = self.live.load();
        for live in snapshot.live_callers() {
            if let (Some(quota), Some(kept)) = (&live.quota, known.callers.get(&live.caller.id)) {
                quota.restore(kept);
            }
        }
        if let Some(merchants) = snapshot.merchants() {
            merchants.restore(&known.merchants);
        }
    }

    /// Writes after every change, and a last time when `stop` says so or is gone.
    pub fn run(mut self, stop: &Receiver<()>) {
        while matches!(stop.recv_timeout(INTERVAL), Err(RecvTimeoutError::Timeout)) {
            self.save();
        }
        self.save();
    }

    fn save(&mut self) {
        let text = spell(&self.live.load());
        if text == self.written {
            return;
        }
        match write(&self.file, &text) {
            Ok(()) => (self.written, self.failing) = (text, false),
            // Once: the next try is seconds away.
            Err(error) if !self.failing => {
                self.failing = true;
                let file = self.file.display();
                tracing::error!(%error, %file, "what was spent cannot be written, a restart would forget it");
            }
            Err(_) => {}
        }
    }
}

/// What a file says.
#[derive(Default, Debug)]
struct Known {
    callers: HashMap<CallerId, Vec<Kept>>,
    merchants: Vec<(Key, Kept)>,
}

/// Empty if nobody has spent anything: then there is no need of a file.
fn spell(snapshot: &Snapshot) -> String {
    let mut callers = Map::new();
    snapshot.turn_budgets();
    for live in snapshot.live_callers() {
        let kept = live.quota.as_ref().map(|quota| quota.kept()).unwrap_or_default();
        if !kept.is_empty() {
            callers.insert(live.caller.id.to_string(), kept.iter().map(spell_one).collect());
        }
    }
    let merchants = snapshot.merchants().map(|merchants| merchants.kept()).unwrap_or_default();
    if callers.is_empty() && merchants.is_empty() {
        return String::new();
    }
    let merchants: Vec<_> = merchants.iter().map(|(key, kept)| spell_merchant(*key, kept)).collect();
    json!({ "version": VERSION, "callers": callers, "merchants": merchants }).to_string()
}

fn spell_one(kept: &Kept) -> Value {
    Value::Object(spell_fields(kept))
}

fn spell_merchant(key: Key, kept: &Kept) -> Value {
    let mut one = spell_fields(kept);
    one.insert("key".to_owned(), format!("{:032x}", u128::from_be_bytes(key.0)).into());
    Value::Object(one)
}

fn spell_fields(kept: &Kept) -> Map<String, Value> {
    let fields = [
        ("per", json!(kept.per.label())),
        ("currency", json!(kept.currency.code())),
        ("window_unix_ms", json!(kept.window)),
        ("spent_micro", json!(kept.spent)),
        ("estimated_micro", json!(kept.estimated)),
    ];
    fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

/// Whole or not at all, also if the machine stops in between.
pub(super) fn write(file: &Path, text: &str) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let beside = file.with_extension("json.new");
    let mut new = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    new.write_all(text.as_bytes())?;
    new.sync_all()?;
    fs::rename(&beside, file)?;
    File::open(folder)?.sync_all()
}

fn read(file: &Path) -> io::Result<Known> {
    let mut text = String::new();
    File::open(file)?.take(MOST_BYTES).read_to_string(&mut text)?;
    if text.is_empty() {
        return Ok(Known::default());
    }
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "not a file of this program");
    // The parser's own message would quote the file.
    let page: Value = serde_json::from_str(&text).map_err(|_| broken())?;
    if page.get("version").and_then(Value::as_u64) != Some(VERSION) {
        return Err(broken());
    }
    let callers = page.get("callers").and_then(Value::as_object).ok_or_else(broken)?;
    let kept = |(id, list): (&String, &Value)| {
        let list = list.as_array()?.iter().map(read_one).collect::<Option<_>>()?;
        Some((CallerId::new(id.as_str()), list))
    };
    let callers = callers.iter().map(kept).collect::<Option<_>>().ok_or_else(broken)?;
    // A version before had no merchants, and needs none to be believed.
    let merchants = page.get("merchants").map_or(Some(Vec::new()), |list| {
        list.as_array()?.iter().take(MOST_READ).map(|one| Some((key(one)?, read_one(one)?))).collect()
    });
    Ok(Known { callers, merchants: merchants.ok_or_else(broken)? })
}

fn key(one: &Value) -> Option<Key> {
    let digits =
        one.get("key")?.as_str().filter(|key| key.len() == 32 && key.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u128::from_str_radix(digits, 16).ok().map(|key| Key(key.to_be_bytes()))
}

fn read_one(value: &Value) -> Option<Kept> {
    let amount = |key: &str| value.get(key)?.as_i64().filter(|micro| *micro >= 0);
    let word = |key: &str| value.get(key)?.as_str();
    Some(Kept {
        currency: Currency::parse(word("currency")?)?,
        per: Period::parse(word("per")?)?,
        window: value.get("window_unix_ms")?.as_u64()?,
        spent: amount("spent_micro")?,
        estimated: amount("estimated_micro")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        let currency = Currency::parse("USD").unwrap();
        Kept { currency, per: Period::Month, window: 86_400_000, spent: 1_234_567, estimated: 5 }
    }

    #[test]
    fn what_is_written_is_read_again_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new").join(NAME);
        let text = json!({ "version": 1, "callers": { "shop": [spell_one(&kept())] } }).to_string();
        write(&file, &text).unwrap();
        write(&file, &text).unwrap();
        assert_eq!(read(&file).unwrap().callers[&CallerId::new("shop")], [kept()]);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_merchants_spent_is_read_again_too() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(NAME);
        let key = Key(*b"0123456789abcdef");
        let page = json!({ "version": 1, "callers": {}, "merchants": [spell_merchant(key, &kept())] }).to_string();
        write(&file, &page).unwrap();
        assert_eq!(read(&file).unwrap().merchants, [(key, kept())]);
        for broken in [page.replace("3031", "30"), page.replace("3031", "zz31"), page.replace("\"key\"", "\"kay\"")] {
            fs::write(&file, &broken).unwrap();
            assert!(read(&file).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_an_error_and_its_words_are_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(NAME);
        let one = spell_one(&kept()).to_string();
        let negative = one.replace("1234567", "-1");
        let strange = one.replace("USD", "ECU");
        let texts = [
            "CANARY".to_owned(),
            "{}".to_owned(),
            r#"{"version":2,"callers":{}}"#.to_owned(),
            r#"{"version":1,"callers":{"shop":7}}"#.to_owned(),
            format!(r#"{{"version":1,"callers":{{"shop":[{negative}]}}}}"#),
            format!(r#"{{"version":1,"callers":{{"shop":[{strange}]}}}}"#),
            format!(r#"{{"version":1,"callers":{{"shop":[{one}]"#),
        ];
        for text in texts {
            fs::write(&file, &text).unwrap();
            let error = read(&file).unwrap_err();
            assert!(!error.to_string().contains("CANARY"), "{text}");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{text}");
        }
        fs::write(&file, b"\xff\xfe").unwrap();
        assert!(read(&file).is_err());
        assert_eq!(read(&folder.path().join("missing")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
