//! `weighbridge audit`: the record of decisions without the proxy, or beside it while it serves.
//!
//! `verify` says whether all is as it was written, `export` hands it to analysts, `erase` forgets a person, `notices` shows
//! the outbox. Exit code 1 says
//! that the record is not sound, or that what was asked for could not be done.

use std::fs;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime};

use super::notices::{self, NoticesArgs};
use super::place::{Done, Place};
use super::{chain, complain, say};
use crate::domain::clock;
use crate::store::book::{self, Book};
use crate::store::chain::hex;
use crate::store::db::{self, StoreError};
use crate::store::query::{Progress, Reader, Stored, Verified, Wanted, verify};
use crate::store::writer::CHECKPOINTS;

/// Characters of the bar.
const BAR: usize = 40;

#[derive(Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Walk the chain of records and name the first that is not as it was written
    Verify(VerifyArgs),
    /// Write decisions and what became of them, one line each
    Export(ExportArgs),
    /// Destroy a person's keys, so that nobody can read any more what the record says of them
    Erase(EraseArgs),
    /// Show the notices that no webhook took yet, send dead letters again, or drop them
    Notices(NoticesArgs),
}

#[derive(Args)]
struct VerifyArgs {
    #[command(flatten)]
    place: Place,
    /// A copy of checkpoints.jsonl, kept elsewhere, without which a cut tail cannot be told; the default is the one in the
    /// data folder
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
}

#[derive(Args)]
struct ExportArgs {
    #[command(flatten)]
    place: Place,
    /// How lines are written
    #[arg(long, default_value = "jsonl", value_name = "FORMAT")]
    format: Format,
    /// Decisions made at this moment (2026-11-22 or 2026-11-22T10:00:00Z) or later
    #[arg(long, value_parser = moment, value_name = "TIME")]
    since: Option<i64>,
    /// Decisions made before this moment
    #[arg(long, value_parser = moment, value_name = "TIME")]
    until: Option<i64>,
    /// Of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// To this merchant
    #[arg(long)]
    merchant: Option<String>,
}

#[derive(Args)]
struct EraseArgs {
    #[command(flatten)]
    place: Place,
    /// Whose customer it is
    #[arg(long)]
    tenant: String,
    /// The person's user.id
    #[arg(long)]
    user: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// JSON Lines
    Jsonl,
    /// CSV with a header
    Csv,
}

/// Runs one of the commands.
pub fn run(args: &AuditArgs) -> ExitCode {
    let done = match &args.command {
        AuditCommand::Verify(args) => run_verify(args),
        AuditCommand::Export(args) => run_export(args),
        AuditCommand::Erase(args) => run_erase(args),
        AuditCommand::Notices(args) => notices::run(args),
    };
    match done {
        Ok(text) => {
            if let Some(text) = text {
                say(&text);
            }
            ExitCode::SUCCESS
        }
        Err(complaint) => {
            complain(&complaint);
            ExitCode::FAILURE
        }
    }
}

/// A moment in milliseconds since 1970; a date is its first moment in UTC.
fn moment(text: &str) -> Result<i64, String> {
    let date = time::macros::format_description!("[year]-[month]-[day]");
    let read = OffsetDateTime::parse(text, &Rfc3339);
    let read = read.or_else(|_| Date::parse(text, date).map(|date| date.midnight().assume_utc()));
    let nanos =
        read.map_err(|_| "write a date or a moment, as in 2026-11-22T10:00:00Z".to_owned())?.unix_timestamp_nanos();
    i64::try_from(nanos.div_euclid(1_000_000)).map_err(|_| "is too far away".to_owned())
}

fn run_verify(args: &VerifyArgs) -> Done {
    let folder = &args.place.data_dir;
    let (path, asked_for) = match &args.checkpoint {
        Some(path) => (path.clone(), true),
        None => (folder.join(CHECKPOINTS), false),
    };
    let checkpoints = match fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if !asked_for && error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    let mut bar = Bar::new("records");
    let verified = verify(folder, checkpoints.as_deref(), |progress| bar.show(progress));
    bar.clear();
    match verified.map_err(|error| told(&error, &path))? {
        Verified::Bad(finding) => Err(format!("the record is not sound: {finding}")),
        Verified::Sound(proof) => {
            let anchored = match proof.anchored {
                0 => "no checkpoint vouches for them: a cut tail would not show".to_owned(),
                seq => format!("a checkpoint vouches for those up to {seq}"),
            };
            let parts = if proof.readable == 1 { "personal part" } else { "personal parts" };
            let keys = if proof.destroyed == 1 { "key is" } else { "keys are" };
            Ok(Some(format!(
                "{} records, all as they were written; {anchored}; {} {parts} can be read, {} {keys} destroyed; head {}",
                proof.records,
                proof.readable,
                proof.destroyed,
                hex(&proof.head)
            )))
        }
    }
}

fn told(error: &StoreError, checkpoints: &Path) -> String {
    match error {
        StoreError::Checkpoint(error) => format!("{}: {error}", checkpoints.display()),
        error => chain(error),
    }
}

fn run_export(args: &ExportArgs) -> Done {
    let reader = Reader::open(&args.place.data_dir).map_err(|error| chain(&error))?;
    let wanted =
        Wanted { since: args.since, until: args.until, tenant: args.tenant.clone(), merchant: args.merchant.clone() };
    let mut out = BufWriter::new(io::stdout().lock());
    let mut bar = Bar::new("records");
    let header = match args.format {
        Format::Csv => writeln!(out, "{}", COLUMNS.join(",")),
        Format::Jsonl => Ok(()),
    };
    let walked = header.map_err(ExportError::Out).and_then(|()| {
        reader.walk(&wanted, |stored, progress| {
            if let Some(stored) = stored {
                let line = Line::of(stored);
                match args.format {
                    Format::Jsonl => writeln!(out, "{}", line.json()),
                    Format::Csv => writeln!(out, "{}", line.csv()),
                }?;
            } else {
                bar.show(progress);
            }
            Ok(())
        })
    });
    bar.clear();
    match walked.and_then(|()| Ok(out.flush()?)) {
        // Whoever reads has enough.
        Err(ExportError::Out(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(None),
        Err(error) => Err(chain(&error)),
        Ok(()) => Ok(None),
    }
}

#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot write")]
    Out(#[from] io::Error),
}

/// The columns, part of the contract: never rename one, never change the order.
const COLUMNS: [&str; 19] = [
    "created_at",
    "seq",
    "id",
    "trace_id",
    "tenant",
    "out_trade_no",
    "merchant_id",
    "merchant_category",
    "user_id",
    "country",
    "amount",
    "currency",
    "risk_score",
    "recommendation",
    "action",
    "source",
    "model_version",
    "outcome",
    "outcome_at",
];

/// One decision, in the order of [`COLUMNS`].
#[derive(Serialize)]
struct Line<'s> {
    created_at: String,
    seq: i64,
    id: &'s str,
    trace_id: Option<&'s str>,
    tenant: &'s str,
    out_trade_no: &'s str,
    merchant_id: &'s str,
    merchant_category: Option<&'s str>,
    user_id: Option<&'s str>,
    country: Option<&'s str>,
    amount: &'s str,
    currency: &'s str,
    risk_score: Option<f64>,
    recommendation: Option<&'s str>,
    action: &'s str,
    source: &'s str,
    model_version: Option<&'s str>,
    outcome: Option<&'s str>,
    outcome_at: Option<String>,
}

impl<'s> Line<'s> {
    fn of(stored: &'s Stored) -> Self {
        let (body, outcome) = (&stored.body, stored.outcome.as_ref());
        let personal = stored.personal.as_ref();
        Self {
            created_at: clock::rfc3339(body.created_at_ms),
            seq: stored.seq,
            id: &stored.id,
            trace_id: body.trace_id.as_deref(),
            tenant: &stored.tenant,
            out_trade_no: &body.out_trade_no,
            merchant_id: &body.merchant_id,
            merchant_category: body.merchant_category.as_deref(),
            user_id: personal.map(|personal| personal.user_id.as_str()),
            country: personal.and_then(|personal| personal.country.as_deref()),
            amount: &body.amount,
            currency: &body.currency,
            risk_score: body.score().map(crate::domain::decision::Score::as_f64),
            recommendation: body.recommendation.as_deref(),
            action: &body.action,
            source: &body.source,
            model_version: body.model_version.as_deref(),
            outcome: outcome.map(|outcome| outcome.label.as_str()),
            outcome_at: outcome.map(|outcome| clock::rfc3339(u64::try_from(outcome.at_ms).unwrap_or_default())),
        }
    }

    fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    fn csv(&self) -> String {
        let seq = self.seq.to_string();
        let score = self.risk_score.map(|score| score.to_string());
        let cells: [Option<&str>; COLUMNS.len()] = [
            Some(&self.created_at),
            Some(&seq),
            Some(self.id),
            self.trace_id,
            Some(self.tenant),
            Some(self.out_trade_no),
            Some(self.merchant_id),
            self.merchant_category,
            self.user_id,
            self.country,
            Some(self.amount),
            Some(self.currency),
            score.as_deref(),
            self.recommendation,
            Some(self.action),
            Some(self.source),
            self.model_version,
            self.outcome,
            self.outcome_at.as_deref(),
        ];
        cells.map(|cell| quoted(cell.unwrap_or_default())).join(",")
    }
}

/// As RFC 4180 has it (<https://www.rfc-editor.org/rfc/rfc4180>, read Nov 2026).
fn quoted(cell: &str) -> String {
    if cell.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

fn run_erase(args: &EraseArgs) -> Done {
    let folder = &args.place.data_dir;
    if !folder.join(db::FILE).exists() {
        return Err(chain(&StoreError::None(folder.clone())));
    }
    let erased = book::keys(folder).and_then(|keys| Book::open(folder, keys)?.erase(&args.tenant, &args.user));
    match erased.map_err(|error| chain(&error))? {
        Some(seq) => Ok(Some(format!(
            "the keys are destroyed; record {seq} says so. Backups of the data folder still hold them"
        ))),
        None => Err("the record has no key of this person: none was ever made, or it was destroyed before".to_owned()),
    }
}

/// How far a walk is, for somebody who watches; in a pipe it says nothing.
struct Bar {
    what: &'static str,
    shown: bool,
    terminal: bool,
}

impl Bar {
    fn new(what: &'static str) -> Self {
        Self { what, shown: false, terminal: io::stderr().is_terminal() }
    }

    fn show(&mut self, Progress { done, all }: Progress) {
        if !self.terminal || all <= 0 {
            return;
        }
        self.shown = true;
        let filled =
            usize::try_from(done.clamp(0, all)).unwrap_or_default() * BAR / usize::try_from(all).unwrap_or(1).max(1);
        let bar = "#".repeat(filled) + &" ".repeat(BAR.saturating_sub(filled));
        let _ = write!(io::stderr().lock(), "\r[{bar}] {done} of {all} {}", self.what);
    }

    fn clear(&mut self) {
        if self.shown {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}
