//! What operators did, in the same log as the calls and as sure to be there: no filter of diagnostics leaves it out.

use std::net::SocketAddr;
use std::time::Duration;

use super::{AccessLog, Line, write_now};
use crate::telemetry::logs::{LogFormat, field};

/// What is said about one action on the admin plane.
#[derive(Clone, Copy, Debug)]
pub struct ActionRecord<'a> {
    /// The action's name.
    pub action: &'a str,
    /// Where it came from, if known.
    pub peer: Option<SocketAddr>,
    /// What let them in.
    pub by: &'static str,
    /// The HTTP status they were told.
    pub status: u16,
    /// `done`, `refused`, `failed` or, for what lasts, `ended`.
    pub result: &'static str,
    /// From the request to its answer, or to its end for what lasts.
    pub duration: Duration,
    /// The configuration in force afterwards.
    pub config_version: &'a str,
    /// Lines that a reader could not be shown.
    pub missed: Option<u64>,
}

impl AccessLog {
    /// Writes one line about an operator's action. Never waits, like [`AccessLog::access`].
    pub fn action(&self, record: &ActionRecord<'_>) {
        self.lines.append(|out| write_action(self.format, record, out));
    }
}

fn write_action(format: LogFormat, record: &ActionRecord<'_>, out: &mut Vec<u8>) {
    let mut line = begin(format, out);
    line.text_field(field::ACTION, Some(record.action));
    line.text_field(field::PEER, record.peer.map(|peer| peer.to_string()).as_deref());
    line.word(field::BY, Some(record.by));
    line.number(field::STATUS, u64::from(record.status));
    line.word(field::RESULT, Some(record.result));
    line.milliseconds(field::DURATION_MS, record.duration);
    line.optional_number(field::MISSED, record.missed);
    line.text_field(field::CONFIG_VERSION, Some(record.config_version));
    line.end();
}

fn begin(format: LogFormat, out: &mut Vec<u8>) -> Line<'_> {
    match format {
        LogFormat::Json => {
            out.extend_from_slice(b"{\"timestamp\":\"");
            write_now(out);
            out.extend_from_slice(b"\",\"level\":\"INFO\",\"target\":\"admin\"");
        }
        LogFormat::Text => {
            write_now(out);
            out.extend_from_slice(b"  INFO admin:");
        }
    }
    Line { format, out }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: LogFormat) -> String {
        let record = ActionRecord {
            action: "reload",
            peer: Some("[::1]:4321".parse().unwrap()),
            by: "token",
            status: 422,
            result: "refused",
            duration: Duration::from_micros(12_345),
            config_version: "0123456789ab",
            missed: None,
        };
        let mut out = Vec::new();
        write_action(format, &record, &mut out);
        let text = String::from_utf8(out).unwrap();
        text.replace(&text[text.find("20").unwrap()..=text.find('Z').unwrap()], "NOW")
    }

    #[test]
    fn an_action_is_one_line_in_either_format() {
        assert_eq!(
            written(LogFormat::Json),
            "{\"timestamp\":\"NOW\",\"level\":\"INFO\",\"target\":\"admin\",\"action\":\"reload\",\"peer\":\"[::1]:4321\",\
             \"by\":\"token\",\"status\":422,\"result\":\"refused\",\"duration_ms\":12.345,\
             \"config.version\":\"0123456789ab\"}\n"
        );
        assert_eq!(
            written(LogFormat::Text),
            "NOW  INFO admin: action=reload peer=\"[::1]:4321\" by=token status=422 result=refused duration_ms=12.345 \
             config.version=0123456789ab\n"
        );
    }
}
