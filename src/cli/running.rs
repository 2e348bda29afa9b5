//! Asks a running proxy over its admin listener. One question, one answer, one connection, all of it bounded.
//!
//! It speaks plain HTTP: the admin listener is on loopback, or behind whatever the operator puts in front of it.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use clap::Args;
use http::Uri;
use serde_json::Value;

use super::secrets::Environment;
use super::serve::ADMIN_TOKEN;
use crate::domain::secret::SecretSource;

const PATIENCE: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(3);
const LONGEST_ANSWER: u64 = 32 << 20;
const USUAL: &str = "http://127.0.0.1:9090";

/// Where the running proxy is asked.
#[derive(Args, Clone)]
pub struct Running {
    /// The admin address of a running proxy, to ask about its present state; without a value http://127.0.0.1:9090. Its
    /// token, where it needs one, is read from WEIGHBRIDGE_ADMIN_TOKEN
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = USUAL)]
    pub admin: Option<Uri>,
}

impl Running {
    /// The usual address.
    pub fn usual() -> Uri {
        Uri::from_static(USUAL)
    }
}

/// What a running proxy said.
pub enum Said {
    /// What was asked for.
    Answer(Value),
    /// Why it cannot be answered.
    Refusal(Value),
}

/// Posts a question.
///
/// # Errors
/// A sentence for the person who asked.
pub fn ask(admin: &Uri, path: &str, question: &str) -> Result<Said, String> {
    let authority = admin.authority().ok_or("give the admin address as in http://127.0.0.1:9090")?;
    if admin.scheme_str().is_some_and(|scheme| scheme != "http") {
        return Err("the admin address must begin with http://: tunnel to it rather than cross a network".to_owned());
    }
    let unreachable = |error: std::io::Error| {
        format!("no proxy answers at {authority} ({error}): start one, or give its --admin-listen address with --admin")
    };
    let token = Environment.env(ADMIN_TOKEN);
    let token = token.as_ref().and_then(|token| std::str::from_utf8(token.expose()).ok());
    let token = token.filter(|token| token.bytes().all(|b| b.is_ascii_graphic()));
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n{token}\r\n",
        question.len()
    );
    let place = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let address = place.to_socket_addrs().map_err(unreachable)?.next().ok_or("the admin address leads nowhere")?;
    let mut stream = TcpStream::connect_timeout(&address, CONNECT).map_err(unreachable)?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .map_err(unreachable)?;
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(question.as_bytes())).map_err(unreachable)?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer).map_err(unreachable)?;
    read(&answer)
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
