//! `weighbridge audit notices`: what the outbox holds, and what becomes of the notices nobody took.
//!
//! It works on the files, beside a proxy that serves or without one; a running proxy finds within seconds what was changed.
//! It sends nothing itself.

use std::io::{self, BufWriter, Write};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::chain;
use super::place::{Done, Place};
use crate::domain::clock;
use crate::store::outbox::{self, Kept, MOST_PENDING, State, Which};
use crate::store::query::Reader;

#[derive(Args)]
pub(super) struct NoticesArgs {
    #[command(flatten)]
    place: Place,
    /// Show only those in this state; the default is all that were not delivered
    #[arg(long, value_name = "STATE")]
    state: Option<Shown>,
    /// Send this dead letter again, by its event id, or all of them
    // Ids are random letters, of which the first may be a hyphen.
    #[arg(long, value_name = "EVENT|all", allow_hyphen_values = true, conflicts_with_all = ["state", "drop"])]
    resend: Option<String>,
    /// Drop this notice unless it was delivered, by its event id, or all dead letters
    #[arg(long, value_name = "EVENT|all", allow_hyphen_values = true, conflicts_with = "state")]
    drop: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shown {
    /// To be tried, or tried again
    Pending,
    /// Its receiver took it; the newest 1,000
    Delivered,
    /// Given up; the newest 1,000
    Dead,
}

impl From<Shown> for State {
    fn from(shown: Shown) -> Self {
        match shown {
            Shown::Pending => Self::Pending,
            Shown::Delivered => Self::Delivered,
            Shown::Dead => Self::Dead,
        }
    }
}

/// One notice.
#[derive(Serialize)]
struct Line<'k> {
    event: &'k str,
    state: &'static str,
    tenant: &'k str,
    decision: &'k str,
    served: &'k str,
    tries: usize,
    #[serde(skip_serializing_if = "str::is_empty")]
    failure: &'k str,
    created_at: String,
    changed_at: String,
}

pub(super) fn run(args: &NoticesArgs) -> Done {
    let folder = &args.place.data_dir;
    if let Some(event) = &args.resend {
        let now = i64::try_from(clock::unix_ms()).unwrap_or(i64::MAX);
        let revived = outbox::revive(folder, &which(event), now).map_err(|error| chain(&error))?;
        return told(revived, event, "will be sent again, by a running proxy within seconds, else when it starts");
    }
    if let Some(event) = &args.drop {
        let gone = outbox::discard(folder, &which(event)).map_err(|error| chain(&error))?;
        return told(gone, event, "dropped; what was on its way this moment may still arrive");
    }
    let reader = Reader::open(folder).map_err(|error| chain(&error))?;
    let states = args.state.map_or_else(|| vec![State::Pending, State::Dead], |shown| vec![shown.into()]);
    let mut out = BufWriter::new(io::stdout().lock());
    for state in states {
        for kept in reader.notices(state, MOST_PENDING).map_err(|error| chain(&error))? {
            match writeln!(out, "{}", line(&kept)) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(None),
                written => written.map_err(|error| format!("cannot write: {error}"))?,
            }
        }
    }
    match out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("cannot write: {error}")),
        _ => Ok(None),
    }
}

fn which(event: &str) -> Which {
    if event == "all" { Which::AllDead } else { Which::One(event.to_owned()) }
}

fn told(changed: usize, event: &str, what: &str) -> Done {
    match changed {
        0 if event != "all" => Err("there is no such notice; weighbridge audit notices lists them".to_owned()),
        1 => Ok(Some(format!("1 notice {what}"))),
        number => Ok(Some(format!("{number} notices {what}"))),
    }
}

fn line(kept: &Kept) -> String {
    let Kept { notice, state, tries, failure, created_ms, changed_ms } = kept;
    let line = Line {
        event: notice.id(),
        state: state.as_str(),
        tenant: notice.tenant(),
        decision: notice.decision(),
        served: &notice.served().id,
        tries: *tries,
        failure,
        created_at: clock::rfc3339(*created_ms),
        changed_at: clock::rfc3339(*changed_ms),
    };
    serde_json::to_string(&line).unwrap_or_default()
}
