//! `weighbridge digest`: caller keys are never written down, only their digests.

use std::io::Read;
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;

use super::{given_up, say};
use crate::sign::hmac::sha256_hex;

/// Longest key read.
const LONGEST_KEY: u64 = 512;
/// Random bytes of a new key.
const KEY_BYTES: usize = 32;

#[derive(Args)]
pub struct DigestArgs {
    /// Make a new key and print it with its digest
    #[arg(long)]
    new: bool,
}

/// Prints a digest, and the key if it is new.
pub fn run(args: &DigestArgs) -> ExitCode {
    let key = if args.new { fresh() } else { read() };
    match key {
        Ok(key) => {
            if args.new {
                say(&format!("key         {key}"));
                say(&format!("key_digest  sha256:{}", sha256_hex(key.as_bytes())));
            } else {
                say(&format!("sha256:{}", sha256_hex(key.as_bytes())));
            }
            ExitCode::SUCCESS
        }
        Err(complaint) => given_up(complaint),
    }
}

/// A new key.
pub(super) fn fresh() -> Result<String, &'static str> {
    let mut bytes = [0u8; KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(|_| "the system gave no random bytes")?;
    Ok(format!("wb-{}", URL_SAFE_NO_PAD.encode(bytes)))
}

fn read() -> Result<String, &'static str> {
    let mut key = String::new();
    let input = std::io::stdin().take(LONGEST_KEY + 2);
    std::io::BufReader::new(input).read_to_string(&mut key).map_err(|_| "the key is not text")?;
    let key = key.trim_end_matches(['\r', '\n']);
    if key.is_empty() || key.len() as u64 > LONGEST_KEY {
        return Err("give one key of at most 512 characters on standard input");
    }
    Ok(key.to_owned())
}
