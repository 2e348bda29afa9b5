//! Throw-away credentials for one run of the sandbox.
//!
//! They are made at start from the operating system's random source, so that nothing that works in a sandbox works
//! anywhere else. They are never written to disk.

use std::collections::HashMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::domain::secret::{Secret, SecretSource};

/// The key id under which the simulated Alipay knows the proxy.
pub const ALIPAY_KEY_ID: &str = "sandbox-1";
/// A second one, so that a rotation can be tried.
pub const ALIPAY_NEXT_KEY_ID: &str = "sandbox-2";

/// Why there are no credentials.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the operating system's random source failed: no sandbox credentials can be made")]
pub struct NoRandomness;

/// One run's credentials.
#[derive(Clone, Debug)]
pub struct SandboxKeys {
    /// 32 bytes that sign calls to the simulated Alipay, known there as [`ALIPAY_KEY_ID`].
    pub alipay: Secret,
    /// The bearer key of the simulated aggregator.
    pub aggregator: Secret,
    /// The key an application uses towards the proxy.
    pub caller: Secret,
}

impl SandboxKeys {
    /// Makes new ones.
    ///
    /// # Errors
    /// [`NoRandomness`] if the operating system has none to give.
    pub fn fresh() -> Result<Self, NoRandomness> {
        Ok(Self {
            alipay: Secret::new(random()?.to_vec()),
            aggregator: key("sk-sandbox-")?,
            caller: key("wb-sandbox-")?,
        })
    }

    /// [`SandboxKeys::alipay`] as 64 hex digits, the spelling a provider file with `secret_encoding = "hex"` expects.
    pub fn alipay_hex(&self) -> Secret {
        let mut hex = String::with_capacity(64);
        for byte in self.alipay.expose() {
            // Writing into a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        Secret::new(hex.into_bytes())
    }
}

/// Secrets by the name of an environment variable, in place of the environment. It has no files.
#[derive(Clone, Debug, Default)]
pub struct SandboxSecrets {
    by_name: HashMap<String, Secret>,
}

impl SandboxSecrets {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces one.
    #[must_use]
    pub fn with(mut self, name: &str, secret: Secret) -> Self {
        self.by_name.insert(name.to_owned(), secret);
        self
    }
}

impl SecretSource for SandboxSecrets {
    fn env(&self, name: &str) -> Option<Secret> {
        self.by_name.get(name).cloned()
    }

    fn file(&self, _path: &str) -> Option<Secret> {
        None
    }
}

fn key(prefix: &str) -> Result<Secret, NoRandomness> {
    Ok(Secret::new(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(random()?)).into_bytes()))
}

fn random() -> Result<[u8; 32], NoRandomness> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_has_its_own_credentials_and_none_of_them_shows() {
        let (a, b) = (SandboxKeys::fresh().unwrap(), SandboxKeys::fresh().unwrap());
        assert!(a.alipay != b.alipay && a.aggregator != b.aggregator && a.caller != b.caller);
        assert_eq!(format!("{a:?}"), "SandboxKeys { alipay: ***, aggregator: ***, caller: *** }");
    }

    #[test]
    fn the_alipay_secret_is_spelled_in_hex_for_provider_files() {
        let keys = SandboxKeys { alipay: Secret::new((0..32).collect()), ..SandboxKeys::fresh().unwrap() };
        let hex = keys.alipay_hex();
        assert!(hex.expose().starts_with(b"000102") && hex.expose().ends_with(b"1e1f") && hex.expose().len() == 64);
    }

    #[test]
    fn secrets_are_found_by_name_only() {
        let secrets = SandboxSecrets::new().with("ALIPAY_SECRET", Secret::new(b"x".to_vec()));
        assert!(secrets.env("ALIPAY_SECRET").is_some() && secrets.env("OTHER").is_none());
        assert!(secrets.file("/etc/hostname").is_none());
    }
}
