//! From the name of a secret to the secret, strong enough for its use (G7).
//!
//! An absent, empty or short secret is a mistake of the configuration: a signature under an empty key proves nothing, and
//! finding out at the first payment is too late. Messages name the variable, never anything of its content.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use super::error::Code;
use super::mask;
use super::raw::provider::Encoding;
use super::report::{Field, Mistake};
use crate::domain::secret::{Secret, SecretSource};

/// Shortest key of an HTTP API, in characters.
const SHORTEST_KEY: usize = 8;
/// Shortest signing secret, in decoded bytes.
const SHORTEST_SIGNING_SECRET: usize = 32;
const LONGEST_SECRET: usize = 8192;
const PLACEHOLDER: &[u8] = b"weighbridge-placeholder-not-a-real-secret";

/// What to do about a secret that is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecretPolicy {
    /// A mistake, if a route uses the provider.
    Required,
    /// A placeholder takes its place: for checking a configuration where its secrets are not, never for serving.
    AllowMissing,
}

/// Where secrets come from, and how strict to be.
#[derive(Clone, Copy)]
pub struct Secrets<'a> {
    /// The environment and files, or a map.
    pub source: &'a dyn SecretSource,
    /// What to do about a missing one.
    pub policy: SecretPolicy,
}

/// Whether any route leads to the provider.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    /// Its secret must be there.
    ByRoute,
    /// Its secret may be missing.
    None,
}

/// Where a provider file says its secret is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Env(Field<String>),
    File(Field<String>),
}

/// What a secret is for, and so what it must look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// Sent in a header.
    Key,
    /// Signs.
    Signing(Encoding),
}

/// A secret that may be used.
pub(super) struct Resolved {
    pub(super) secret: Secret,
    /// False for a placeholder.
    pub(super) real: bool,
}

impl Secrets<'_> {
    /// Looks a secret up and checks it.
    pub(super) fn resolve(self, place: &Place, form: Form, used: Use) -> Result<Resolved, Mistake> {
        let found = place.look_up(self.source).filter(|secret| !secret.expose().is_empty());
        let checked = match found {
            Some(secret) => check(&secret, form).map(|secret| Resolved { secret, real: true }),
            None if self.policy == SecretPolicy::AllowMissing => return Ok(placeholder()),
            None => Err("is not set or empty"),
        };
        match (checked, used) {
            (Ok(resolved), _) => Ok(resolved),
            (Err(_), Use::None) => Ok(placeholder()),
            (Err(problem), Use::ByRoute) => Err(place.mistake(problem)),
        }
    }
}

impl Place {
    fn look_up(&self, source: &dyn SecretSource) -> Option<Secret> {
        match self {
            Self::Env(name) => source.env(&name.value),
            Self::File(path) => source.file(&path.value),
        }
    }

    fn mistake(&self, problem: &str) -> Mistake {
        match self {
            Self::Env(name) => {
                let shown = if mask::variable_may_be_shown(&name.value) {
                    format!("environment variable {}", name.value)
                } else {
                    "the environment variable named here".to_owned()
                };
                name.mistake(Code::Secret, format!("{shown} {problem}"))
                    .hint("set it before starting; a running process can only learn new secrets from a secret_file")
            }
            Self::File(path) => {
                let shown = if mask::may_be_shown(path.value.trim_start_matches(['.', '/'])) {
                    format!("the secret file {}", path.value)
                } else {
                    "the secret file named here".to_owned()
                };
                let problem = problem.replace("is not set or empty", "cannot be read or is empty");
                path.mistake(Code::Secret, format!("{shown} {problem}")).hint("put the secret there before starting")
            }
        }
    }
}

/// True for what stands in for a secret that was not there.
pub fn is_placeholder(secret: &Secret) -> bool {
    secret.expose() == PLACEHOLDER
}

fn placeholder() -> Resolved {
    Resolved { secret: Secret::new(PLACEHOLDER.to_vec()), real: false }
}

fn check(secret: &Secret, form: Form) -> Result<Secret, &'static str> {
    let bytes = secret.expose();
    if bytes.len() > LONGEST_SECRET {
        return Err("is longer than 8192 bytes");
    }
    match form {
        Form::Key if !bytes.iter().all(u8::is_ascii_graphic) => {
            Err("contains spaces or characters that cannot be sent in a header")
        }
        Form::Key if bytes.len() < SHORTEST_KEY => Err("is shorter than 8 characters"),
        Form::Key => Ok(secret.clone()),
        Form::Signing(encoding) => check_signing(bytes, encoding),
    }
}

fn check_signing(bytes: &[u8], encoding: Encoding) -> Result<Secret, &'static str> {
    let decoded = match encoding {
        Encoding::Hex => from_hex(bytes).ok_or("is not hexadecimal as secret_encoding says")?,
        Encoding::Base64 => {
            let decoded = STANDARD.decode(bytes).or_else(|_| STANDARD_NO_PAD.decode(bytes));
            decoded.map_err(|_| "is not base64 as secret_encoding says")?
        }
        Encoding::Raw => bytes.to_vec(),
    };
    let decoded = Secret::new(decoded);
    let bytes = decoded.expose();
    if bytes.len() < SHORTEST_SIGNING_SECRET {
        return Err("is shorter than 32 bytes once decoded");
    }
    if bytes.iter().all(|&b| b == 0 || b.is_ascii_whitespace()) {
        return Err("is blank");
    }
    Ok(decoded)
}

/// Reads an even number of hexadecimal digits, `None` for anything else.
pub(super) fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_chunks::<2>();
    let bytes = pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?));
    if rest.is_empty() { bytes.collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str, form: Form) -> Option<&'static str> {
        check(&Secret::new(text.as_bytes().to_vec()), form).err()
    }

    #[test]
    fn g7_a_signing_secret_has_at_least_32_decoded_bytes() {
        let signing = Form::Signing;
        assert_eq!(problem(&"ab".repeat(32), signing(Encoding::Hex)), None);
        assert_eq!(problem(&"ab".repeat(31), signing(Encoding::Hex)), Some("is shorter than 32 bytes once decoded"));
        assert_eq!(
            problem(&"a".repeat(65), signing(Encoding::Hex)),
            Some("is not hexadecimal as secret_encoding says")
        );
        assert_eq!(problem(&"QUJD".repeat(11), signing(Encoding::Base64)), None);
        assert_eq!(
            problem(&"QUJD".repeat(10), signing(Encoding::Base64)),
            Some("is shorter than 32 bytes once decoded")
        );
        assert_eq!(problem("not base64!", signing(Encoding::Base64)), Some("is not base64 as secret_encoding says"));
        assert_eq!(problem(&"r".repeat(31), signing(Encoding::Raw)), Some("is shorter than 32 bytes once decoded"));
        assert_eq!(problem(&" \n".repeat(32), signing(Encoding::Raw)), Some("is blank"));
        assert_eq!(problem(&"00".repeat(32), signing(Encoding::Hex)), Some("is blank"));
    }

    #[test]
    fn g7_an_api_key_is_long_enough_and_fits_a_header() {
        assert_eq!(problem("sk-12345", Form::Key), None);
        assert_eq!(problem("sk-1234", Form::Key), Some("is shorter than 8 characters"));
        let unfit = Some("contains spaces or characters that cannot be sent in a header");
        for text in ["        ", "sk-12345\r\nx: y", "sk-12345 ", "clé-secrète"] {
            assert_eq!(problem(text, Form::Key), unfit, "{text:?}");
        }
    }
}
