//! From listed keys to a ring of them, their secrets resolved.

use super::checks;
use super::error::Code;
use super::raw::keys::{RawKey, RawKeys};
use super::raw::signature::RawSignature;
use super::report::Report;
use super::secrets::{Form, Secrets, Use};
use crate::sign::keyring::{KeyState, Keyring, KeyringError, MOST_ACTIVE, MOST_KEYS, SigningKey};

/// A ring, and whether all of its secrets are real ones.
pub(super) struct Ringed {
    pub(super) keys: Keyring,
    pub(super) real: bool,
}

/// What keys are resolved with.
#[derive(Clone, Copy)]
pub(super) struct Resolving<'r> {
    pub(super) secrets: Secrets<'r>,
    pub(super) used: Use,
    pub(super) report: &'r Report<'r>,
}

impl Resolving<'_> {
    /// The keys of a list; `None` after reporting what is wrong with them.
    pub(super) fn list(self, raw: &RawKeys) -> Option<Ringed> {
        checks::unique(raw.keys.iter().filter_map(|key| key.id.as_ref()), "the key's id", self.report);
        let resolved: Vec<_> = raw.keys.iter().map(|key| self.key(key, key.state.as_ref()?.value)).collect();
        let resolved: Option<Vec<_>> = resolved.into_iter().collect();
        let resolved = resolved.filter(|_| raw.sound)?;
        let real = resolved.iter().all(|(_, real)| *real);
        match Keyring::new(resolved.into_iter().map(|(key, _)| key).collect()) {
            Ok(keys) => Some(Ringed { keys, real }),
            // Reported above, with both places.
            Err(KeyringError::SameId) => None,
            Err(error) => {
                let hint = match error {
                    KeyringError::NoneActive => "write state = \"active\" at the key that is to sign".to_owned(),
                    _ => format!("at most {MOST_ACTIVE} are active and {MOST_KEYS} listed; take the revoked ones out"),
                };
                self.report.add(raw.at.mistake(Code::BadValue, error.to_string()).hint(hint));
                None
            }
        }
    }

    /// What a caller signs with.
    pub(super) fn signature(self, raw: &RawSignature) -> Option<Ringed> {
        match raw {
            RawSignature::Several(keys) => self.list(keys),
            RawSignature::Single(key) => {
                let (key, real) = self.key(key, KeyState::Active)?;
                Some(Ringed { keys: Keyring::single(key.id, key.secret), real })
            }
        }
    }

    fn key(self, raw: &RawKey, state: KeyState) -> Option<(SigningKey, bool)> {
        if !raw.place_is_sound {
            return None;
        }
        let place = checks::secret_place(&raw.at, raw.secret_env.as_ref(), raw.secret_file.as_ref());
        let place = self.report.accept(place);
        let (id, encoding) = (raw.id.as_ref()?.value.clone(), raw.encoding.as_ref()?.value);
        let resolved = self.secrets.resolve(&place?, Form::Signing(encoding), self.used);
        let resolved = self.report.accept(resolved)?;
        Some((SigningKey { id, secret: resolved.secret, state }, resolved.real))
    }
}
