//! `weighbridge tail`: the calls of a running proxy, as they end.
//!
//! It asks in HTTP/1.0, so that the answer is plain lines up to the end of the connection. A connection that is lost is
//! tried again for as long as somebody looks on; only the first must succeed, because a wrong address never will.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value};

use super::reach::{self, Address, Trust, Unreached, Wire};
use super::{complain, given_up};

/// Three heartbeats of the proxy.
const SILENCE: Duration = Duration::from_secs(45);
const LONGEST_LINE: u64 = 256 * 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const STRANGER: &str = "what answers there is no proxy of ours";

#[derive(Args)]
pub struct TailArgs {
    /// The admin address of the running proxy, by default http://127.0.0.1:9090; its token, where it needs one, is read from
    /// WEIGHBRIDGE_ADMIN_TOKEN
    #[arg(long, value_name = "URL", value_parser = Address::read)]
    admin: Option<Address>,
    #[command(flatten)]
    trust: Trust,
    /// Only calls of this route
    #[arg(long)]
    route: Option<String>,
    /// Only calls of this caller
    #[arg(long)]
    caller: Option<String>,
    /// Only calls that ended so: ok, client_error, unauthorised, rate_limited, shed, upstream_error, timeout,
    /// client_gone, shutting_down, error, or failed for all but ok
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    outcome: Vec<String>,
    /// Print the lines of the log as they are, in JSON
    #[arg(long)]
    json: bool,
}

/// Why the stream is over.
enum Over {
    /// Nobody reads what we print.
    Unread,
    /// The proxy is not there, or no more.
    Lost(String),
    /// The proxy will not answer this question.
    Refused(String),
}

/// Prints until told to stop. Exit code 2 if there is nothing to follow.
pub fn run(args: &TailArgs) -> ExitCode {
    let mut pause = FIRST_PAUSE;
    let mut seen = false;
    loop {
        let over = open(args).and_then(|lines| {
            if seen {
                complain("connected again; calls in between are not shown");
            }
            (seen, pause) = (true, FIRST_PAUSE);
            Err(print(args, lines))
        });
        match over {
            Ok(()) | Err(Over::Unread) => return ExitCode::SUCCESS,
            Err(Over::Lost(why)) if seen => {
                if pause == FIRST_PAUSE {
                    complain(&format!("{why}; trying again"));
                }
                thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(Over::Lost(why) | Over::Refused(why)) => {
                return given_up(&why);
            }
        }
    }
}

type Stream = BufReader<Wire>;

fn open(args: &TailArgs) -> Result<Stream, Over> {
    let refused = |why: &str| Over::Refused(why.to_owned());
    let admin = args.admin.clone().unwrap_or_default().of(&args.trust);
    let (mut wire, authority) = args.trust.connect(&admin, SILENCE).map_err(|unreached| match unreached {
        Unreached::Never(why) => Over::Refused(why),
        Unreached::NotNow(why) => Over::Lost(why),
    })?;
    let lost = |error: io::Error| Over::Lost(format!("no proxy answers at {authority} ({error})"));
    let bearer = reach::bearer();
    let head = format!("GET /-/tail?{} HTTP/1.0\r\nhost: {authority}\r\n{bearer}\r\n", query(args));
    wire.write_all(head.as_bytes()).and_then(|()| wire.flush()).map_err(lost)?;

    let mut stream = BufReader::new(wire);
    let status = read_head(&mut stream).map_err(lost)?.ok_or_else(|| refused(STRANGER))?;
    match status {
        200 => Ok(stream),
        404 | 400 | 401 | 405 | 421 | 503 => {
            let mut told = String::new();
            stream.take(1_024).read_to_string(&mut told).map_err(lost)?;
            let why = format!("the running proxy refuses: {}", plain(told.trim()));
            // Seats come free again.
            Err(if status == 503 { Over::Lost(why) } else { Over::Refused(why) })
        }
        _ => Err(refused(STRANGER)),
    }
}

/// The status, once the head is read.
fn read_head(stream: &mut Stream) -> io::Result<Option<u16>> {
    let first = read_line(stream)?;
    let first = String::from_utf8_lossy(&first);
    let status = first.starts_with("HTTP/1.").then(|| first.split(' ').nth(1)?.parse().ok()).flatten();
    // More header fields than that has no answer of ours.
    for _ in 0..64 {
        if status.is_none() || read_line(stream)?.trim_ascii().is_empty() {
            return Ok(status);
        }
    }
    Ok(None)
}

fn read_line(stream: &mut Stream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    stream.take(LONGEST_LINE).read_until(b'\n', &mut line)?;
    if line.ends_with(b"\n") { Ok(line) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn query(args: &TailArgs) -> String {
    let outcomes = (!args.outcome.is_empty()).then(|| args.outcome.join(","));
    let pairs = [("route", &args.route), ("caller", &args.caller), ("outcome", &outcomes)];
    let pairs = pairs.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded(value.as_ref()?))));
    pairs.collect::<Vec<_>>().join("&")
}

fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b',' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn print(args: &TailArgs, mut lines: Stream) -> Over {
    let mut out = io::stdout();
    loop {
        let line = match read_line(&mut lines) {
            Ok(line) => line,
            Err(error) => return Over::Lost(format!("the proxy went away ({error})")),
        };
        if line == b"\n" {
            continue;
        }
        let shown = if args.json { Some(line) } else { for_people(&line) };
        let Some(shown) = shown else { return Over::Refused(STRANGER.to_owned()) };
        if out.write_all(&shown).and_then(|()| out.flush()).is_err() {
            return Over::Unread;
        }
    }
}

/// One aligned line.
fn for_people(line: &[u8]) -> Option<Vec<u8>> {
    let line: Map<String, Value> = serde_json::from_slice(line).ok()?;
    if let Some(missed) = line.get("missed").and_then(Value::as_u64) {
        return Some(format!("{missed} calls are not shown: they came faster than they were read\n").into_bytes());
    }
    let text = |name: &str| plain(line.get(name).and_then(Value::as_str).unwrap_or("-"));
    let number = |name: &str| line.get(name).and_then(Value::as_f64).unwrap_or_default();
    let time = text("timestamp");
    let time = time.split_once('T').map_or(time.as_str(), |(_, time)| time.trim_end_matches('Z'));
    let mut shown = format!(
        "{time}  {:<3}  {:<14}  {:<16}  {:<14}  {:>9.1} ms",
        number("status"),
        text("outcome"),
        text("route.id"),
        text("caller.id"),
        number("duration_ms")
    );
    let tokens = |name: &str| line.get(name).and_then(Value::as_u64);
    let more = [
        line.contains_key("attempts").then(|| text("attempts").replace(',', " > ")),
        line.contains_key("decision").then(|| format!("{} {}", text("decision"), text("decision.source"))),
        line.get("cache").filter(|cache| *cache != "bypass").map(|_| format!("cache {}", text("cache"))),
        tokens("tokens_in").zip(tokens("tokens_out")).map(|(given, made)| format!("{given}+{made} tokens")),
        line.contains_key("cost").then(|| text("cost")),
        line.get("stream.end").filter(|end| *end != "complete").map(|_| format!("stream {}", text("stream.end"))),
        line.contains_key("error.code").then(|| text("error.code")),
        Some(text("call.id")),
    ];
    more.iter().flatten().for_each(|more| shown.extend(["  ", more]));
    shown.push('\n');
    Some(shown.into_bytes())
}

/// Nothing that would steer the reader's terminal.
fn plain(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> String {
        String::from_utf8(for_people(line.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn a_call_is_one_aligned_line() {
        let line = r#"{"timestamp":"2026-11-23T10:00:00.123Z","level":"INFO","target":"access","call.id":"req_1",
            "caller.id":"shop","operation":"chat.completions","route.id":"summary","status":200,"outcome":"ok",
            "attempts":"a/m:overloaded,b/m:ok","provider.id":"b","model":"m","cache":"bypass","duration_ms":1250.500,
            "overhead_us":120,"bytes_in":1,"bytes_out":2,"tokens_in":12,"tokens_out":34,"cost":"0.0012 USD"}"#;
        assert_eq!(
            shown(line),
            "10:00:00.123  200  ok              summary           shop               1250.5 ms  a/m:overloaded > b/m:ok  \
             12+34 tokens  0.0012 USD  req_1\n"
        );
        let line = r#"{"timestamp":"2026-11-23T10:00:00.123Z","call.id":"req_2","caller.id":"shop","route.id":"risk",
            "status":200,"outcome":"ok","cache":"miss","decision":"REVIEW","decision.source":"fallback","duration_ms":50.0}"#;
        assert_eq!(
            shown(line),
            "10:00:00.123  200  ok              risk              shop                 50.0 ms  REVIEW fallback  \
             cache miss  req_2\n"
        );
        let line = r#"{"timestamp":"2026-11-23T10:00:00.123Z","call.id":"req_3","caller.id":"shop","route.id":"summary",
            "status":200,"outcome":"upstream_error","attempts":"a/m:ok","stream.end":"truncated","duration_ms":50.0}"#;
        assert!(shown(line).ends_with(" ms  a/m:ok  stream truncated  req_3\n"), "{}", shown(line));
        assert!(shown(&line.replace("truncated", "complete")).ends_with(" ms  a/m:ok  req_3\n"));
        assert!(shown(r#"{"target":"tail","missed":7}"#).starts_with("7 calls are not shown"));
    }

    #[test]
    fn s12_what_is_shown_cannot_steer_a_terminal() {
        let line = r#"{"call.id":"a\u001b[2Jb\u202ec","route.id":"x\ny"}"#;
        let shown = shown(line);
        assert!(shown.contains("a\u{fffd}[2Jb\u{fffd}c") && shown.contains("x\u{fffd}y"), "{shown}");
    }

    #[test]
    fn a_filter_is_encoded_for_the_query() {
        let args = TailArgs {
            admin: None,
            trust: Trust::default(),
            route: Some("a b&c".to_owned()),
            caller: None,
            outcome: vec!["shed".to_owned(), "timeout".to_owned()],
            json: false,
        };
        assert_eq!(query(&args), "route=a%20b%26c&outcome=shed,timeout");
    }
}
