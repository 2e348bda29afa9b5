//! Keys that sign, as a provider's `auth` and a caller's `signature` list them.

use super::provider::{ENCODINGS, Encoding};
use crate::config::read::{Table, Value};
use crate::config::report::Field;
use crate::sign::keyring::KeyState;

const STATES: [(&str, KeyState); 3] =
    [("active", KeyState::Active), ("verify-only", KeyState::VerifyOnly), ("pending", KeyState::Pending)];

/// One key.
#[derive(Clone, Debug)]
pub(in crate::config) struct RawKey {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) id: Option<Field<String>>,
    pub(in crate::config) secret_env: Option<Field<String>>,
    pub(in crate::config) secret_file: Option<Field<String>>,
    pub(in crate::config) encoding: Option<Field<Encoding>>,
    /// Absent where there is one key and so no choice.
    pub(in crate::config) state: Option<Field<KeyState>>,
    /// False if `secret_env` or `secret_file` is there but could not be read, so that it is not missing.
    pub(in crate::config) place_is_sound: bool,
}

/// A list of keys, the newest first.
#[derive(Clone, Debug)]
pub(in crate::config) struct RawKeys {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) keys: Vec<RawKey>,
    /// False if some element is no table.
    pub(in crate::config) sound: bool,
}

impl RawKey {
    /// An element of a list: it has a state.
    fn listed(table: &Table<'_>) -> Self {
        let table = table.clone().only(&["id", "secret_env", "secret_file", "secret_encoding", "state"], &[]);
        let state = table.required("state").and_then(|value| value.word(&STATES));
        Self { state, ..Self::of(&table, "id") }
    }

    /// The keys that every form has; `name` is what the id is called.
    pub(in crate::config) fn of(table: &Table<'_>, name: &str) -> Self {
        let (secret_env, secret_file) = (table.get("secret_env"), table.get("secret_file"));
        let present = secret_env.is_some() || secret_file.is_some();
        let secret_env = secret_env.and_then(|value| value.string());
        let secret_file = secret_file.and_then(|value| value.string());
        Self {
            at: Field { value: (), at: table.at, key: table.key.clone() },
            id: table.required(name).and_then(|value| value.name("-_.")),
            encoding: table.required("secret_encoding").and_then(|value| value.word(&ENCODINGS)),
            state: None,
            place_is_sound: !present || secret_env.is_some() || secret_file.is_some(),
            secret_env,
            secret_file,
        }
    }
}

impl RawKeys {
    /// `keys = [{ id = "k2", secret_env = "…", secret_encoding = "hex", state = "active" }, …]`
    pub(in crate::config) fn read(value: &Value<'_>) -> Option<Self> {
        let elements = value.list()?;
        let keys: Vec<RawKey> = elements.iter().filter_map(Value::table).map(|table| RawKey::listed(&table)).collect();
        let sound = keys.len() == elements.len();
        Some(Self { at: Field { value: (), at: value.at, key: value.key.clone() }, keys, sound })
    }
}
