//! Asks a running proxy over its admin listener. One question, one answer, one connection, all of it bounded.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::reach::{self, Address, Trust, Unreached};

const PATIENCE: Duration = Duration::from_secs(15);
const LONGEST_ANSWER: u64 = 32 << 20;

/// Where the running proxy is asked.
#[derive(Args, Clone)]
pub struct Running {
    /// The admin address of a running proxy, to ask about its present state; without a value http://127.0.0.1:9090. Its
    /// token, where it needs one, is read from WEIGHBRIDGE_ADMIN_TOKEN
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = reach::USUAL, value_parser = Address::read)]
    admin: Option<Address>,
    #[command(flatten)]
    trust: Trust,
}

impl Running {
    /// True if a running proxy is to be asked.
    pub fn is_asked(&self) -> bool {
        self.admin.is_some()
    }

    /// The same, and at this address where `--admin` says none.
    pub fn or_at(&self, listen: Option<SocketAddr>) -> Self {
        let scheme = if self.trust.speaks_tls() { "https" } else { "http" };
        let there = listen.and_then(|listen| Address::read(&format!("{scheme}://{listen}")).ok());
        Self { admin: self.admin.clone().or(there), ..self.clone() }
    }

    /// Posts a question, to the usual address if nobody said another.
    ///
    /// # Errors
    /// A sentence for the person who asked.
    pub fn ask(&self, path: &str, question: &str) -> Result<Said, String> {
        let admin = self.admin.clone().unwrap_or_default().of(&self.trust);
        let (mut wire, authority) = self.trust.connect(&admin, PATIENCE).map_err(Unreached::told)?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             connection: close\r\n{}\r\n",
            question.len(),
            reach::bearer()
        );
        let lost = |error: std::io::Error| format!("the proxy at {authority} went away ({error})");
        wire.write_all(head.as_bytes()).map_err(lost)?;
        wire.write_all(question.as_bytes()).and_then(|()| wire.flush()).map_err(lost)?;
        let mut answer = Vec::new();
        wire.take(LONGEST_ANSWER).read_to_end(&mut answer).map_err(lost)?;
        read(&answer)
    }
}

/// What a running proxy said.
pub enum Said {
    /// What was asked for.
    Answer(Value),
    /// Why it cannot be answered.
    Refusal(Value),
}

fn read(answer: &[u8]) -> Result<Said, String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("what answers there is no proxy of ours")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
    let json = || serde_json::from_str::<Value>(body).map_err(|_| "what answers there is no proxy of ours".to_owned());
    match status {
        Some(200) => json().map(Said::Answer),
        Some(422) => json().map(Said::Refusal),
        Some(404) => Err("the running proxy is too old to be asked this".to_owned()),
        _ => Err(format!("the running proxy refuses: {}", body.trim())),
    }
}
