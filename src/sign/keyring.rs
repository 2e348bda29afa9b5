//! The keys of one party: which of them signs, and which of them may have signed what arrives.
//!
//! Two keys overlap while one replaces the other, so that neither side has to change at the same moment. It does not
//! know where secrets come from: configuration resolves them.

use crate::domain::secret::Secret;

/// Most keys of one party: two that are in use, one that comes and one that goes.
pub const MOST_KEYS: usize = 4;
/// Most keys in use at a time.
pub const MOST_ACTIVE: usize = 2;

/// What may be done with a key. A revoked one is taken out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KeyState {
    /// Nothing yet: the other side may not know it.
    Pending,
    /// It signs if it is the first one listed that may, and what it signed is believed.
    Active,
    /// What it signed is still believed; it signs nothing new.
    VerifyOnly,
}

impl KeyState {
    /// The word in configuration.
    pub fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::VerifyOnly => "verify-only",
        }
    }
}

/// A secret with its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SigningKey {
    /// Its name on the wire: 1 to 64 characters of `[0-9A-Za-z._-]`.
    pub id: String,
    /// At least 32 bytes, decoded.
    pub secret: Secret,
    /// What may be done with it.
    pub state: KeyState,
}

/// Why keys are no ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyringError {
    /// Nothing could be signed.
    #[error("no key is active")]
    NoneActive,
    /// More than [`MOST_ACTIVE`] active ones, or more than [`MOST_KEYS`] in all.
    #[error("more than two active keys, or more than four in all")]
    TooMany,
    /// One id for two secrets.
    #[error("two keys have the same id")]
    SameId,
}

/// One party's keys, the newest first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keyring {
    /// The one that signs.
    signer: SigningKey,
    /// All of them, in the order they are listed in.
    keys: Vec<SigningKey>,
}

impl Keyring {
    /// One key, in use.
    pub fn single(id: impl Into<String>, secret: Secret) -> Self {
        let signer = SigningKey { id: id.into(), secret, state: KeyState::Active };
        Self { keys: vec![signer.clone()], signer }
    }

    /// These keys, the newest first.
    ///
    /// # Errors
    /// [`KeyringError`] if none could sign, if there are too many, or if two have one name.
    pub fn new(keys: Vec<SigningKey>) -> Result<Self, KeyringError> {
        let active = keys.iter().filter(|key| key.state == KeyState::Active).count();
        if active > MOST_ACTIVE || keys.len() > MOST_KEYS {
            return Err(KeyringError::TooMany);
        }
        if keys.iter().enumerate().any(|(index, key)| keys.iter().skip(index + 1).any(|other| other.id == key.id)) {
            return Err(KeyringError::SameId);
        }
        let signer = keys.iter().find(|key| key.state == KeyState::Active).cloned().ok_or(KeyringError::NoneActive)?;
        Ok(Self { signer, keys })
    }

    /// The newest active key: the first one listed.
    pub fn signer(&self) -> &SigningKey {
        &self.signer
    }

    /// The key of this name, if what it signed may be believed.
    pub fn verifier(&self, id: &str) -> Option<&SigningKey> {
        self.keys.iter().find(|key| key.id == id && key.state != KeyState::Pending)
    }

    /// All keys, whatever may be done with them.
    pub fn keys(&self) -> &[SigningKey] {
        &self.keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str, state: KeyState) -> SigningKey {
        SigningKey { id: id.to_owned(), secret: Secret::new(vec![7; 32]), state }
    }

    #[test]
    fn c11_the_first_listed_active_key_signs_and_pending_ones_are_believed_for_nothing() {
        use KeyState::{Active, Pending, VerifyOnly};
        let ring = Keyring::new(vec![key("k3", Pending), key("k2", Active), key("k1", VerifyOnly)]).unwrap();
        assert_eq!(ring.signer().id, "k2");
        let believed = |id| ring.verifier(id).is_some();
        assert!(believed("k2") && believed("k1") && !believed("k3") && !believed("k4"));
    }

    #[test]
    fn c11_a_ring_has_a_key_to_sign_with_and_at_most_two_in_use() {
        use KeyState::{Active, Pending, VerifyOnly};
        let wrong = |keys| Keyring::new(keys).unwrap_err();
        assert_eq!(wrong(vec![]), KeyringError::NoneActive);
        assert_eq!(wrong(vec![key("a", VerifyOnly), key("b", Pending)]), KeyringError::NoneActive);
        assert_eq!(wrong(vec![key("a", Active), key("b", Active), key("c", Active)]), KeyringError::TooMany);
        assert_eq!(wrong(vec![key("a", Active), key("a", VerifyOnly)]), KeyringError::SameId);
        let many = ["a", "b", "c", "d", "e"].map(|id| key(id, VerifyOnly));
        assert_eq!(wrong(many.to_vec()), KeyringError::TooMany);
    }

    #[test]
    fn s11_a_ring_shows_no_secret() {
        let shown = format!("{:?}", Keyring::single("k1", Secret::new(b"CANARY".to_vec())));
        assert!(shown.contains("***") && !shown.contains("CANARY") && !shown.contains("67"), "{shown}");
    }
}
