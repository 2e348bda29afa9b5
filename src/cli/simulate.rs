//! `weighbridge simulate`: histories to try the analytic commands on, made up, with the truth known.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use time::Date;
use time::macros::{date, format_description};

use super::{chain, complain, given_up};
use crate::sandbox::simulator::history::{self, Format, Knowledge, Tally};
use crate::sandbox::simulator::{Calibration, CardTesting, Options, Simulator, Vendor};

#[derive(Args)]
pub struct SimulateArgs {
    /// Where the history is written as CSV, `-` for standard output
    #[arg(long, value_name = "FILE")]
    history: PathBuf,
    /// Customers; two terminals and three customers are attacked each day, so fraud is a larger share of a smaller town
    #[arg(long, value_name = "NUMBER", default_value = "5000")]
    customers: u32,
    /// Terminals; twice the customers unless given
    #[arg(long, value_name = "NUMBER")]
    terminals: Option<u32>,
    /// Days
    #[arg(long, value_name = "NUMBER", default_value = "183")]
    days: u32,
    /// Everything follows from it
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    seed: u64,
    /// The first day
    #[arg(long, value_name = "DATE", default_value = "2026-01-01", value_parser = day)]
    start: Date,
    /// Which outcomes the rows have
    #[arg(long, value_enum, default_value = "final")]
    outcomes: Outcomes,
    /// How the provider's score relates to the probability of fraud
    #[arg(long, value_enum, default_value = "honest")]
    calibration: Bent,
    /// From this day on, counted from 0, another model scores
    #[arg(long, value_name = "NUMBER")]
    model_change: Option<u32>,
    /// The calibration of that other model
    #[arg(long, value_enum, default_value = "overconfident", requires = "model_change")]
    calibration_after: Bent,
    /// Leave out the bursts of card testing, which the published simulator does not have
    #[arg(long)]
    published: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Outcomes {
    /// What is known on the day after the last one
    Known,
    /// All that will ever be known: nothing of what was rejected
    Final,
    /// The truth of every row, which no real history has
    Truth,
}

#[derive(Clone, Copy, ValueEnum)]
enum Bent {
    /// It is the probability
    Honest,
    /// Too near to 0 and 1
    Overconfident,
    /// Too near to the middle
    Timid,
    /// Much too high
    Alarmist,
}

impl From<Bent> for Calibration {
    fn from(bent: Bent) -> Self {
        match bent {
            Bent::Honest => Self::Honest,
            Bent::Overconfident => Self::Overconfident,
            Bent::Timid => Self::Timid,
            Bent::Alarmist => Self::Alarmist,
        }
    }
}

fn day(text: &str) -> Result<Date, String> {
    let date = Date::parse(text, format_description!("[year]-[month]-[day]"))
        .map_err(|_| "write a date such as 2026-01-01".to_owned())?;
    let supported = date!(1970 - 01 - 01)..=date!(9000 - 01 - 01);
    if supported.contains(&date) { Ok(date) } else { Err("write a date from 1970 on".to_owned()) }
}

/// Writes a history.
pub fn run(args: &SimulateArgs) -> ExitCode {
    match written(args) {
        Ok(tally) => {
            let [large, terminal, customer, testing] = tally.frauds;
            complain(&format!(
                "{} payments, {} frauds: {large} large amounts, {terminal} at compromised terminals, {customer} of \
                 compromised customers, {testing} of card testing",
                tally.payments,
                tally.all_frauds()
            ));
            ExitCode::SUCCESS
        }
        Err(complaint) => given_up(&complaint),
    }
}

fn written(args: &SimulateArgs) -> Result<Tally, String> {
    let card_testing = if args.published { CardTesting::Never } else { CardTesting::Weekly };
    let change = args.model_change.map(|day| (day, args.calibration_after.into()));
    let options = Options {
        customers: args.customers,
        terminals: args.terminals.unwrap_or(args.customers.saturating_mul(2)),
        days: args.days,
        card_testing,
        vendor: Vendor { calibration: args.calibration.into(), change },
        ..Options::published(args.seed)
    };
    let simulator = Simulator::new(options).map_err(|error| error.to_string())?;
    let format = Format {
        first_day: (args.start - date!(1970 - 01 - 01)).whole_days(),
        bands: history::usual_bands().ok_or("the bands cross")?,
        knowledge: match args.outcomes {
            Outcomes::Known => Knowledge::AsOf(args.days.saturating_add(1)),
            Outcomes::Final => Knowledge::Final,
            Outcomes::Truth => Knowledge::Truth,
        },
    };
    let mut out: Box<dyn Write> = if args.history.as_os_str() == "-" {
        Box::new(BufWriter::new(io::stdout().lock()))
    } else {
        let file = File::create(&args.history).map_err(|error| format!("{}: {error}", args.history.display()))?;
        Box::new(BufWriter::new(file))
    };
    let shown = io::stderr().is_terminal();
    let progress = |day: u32| {
        if shown && (day + 1).is_multiple_of(10) {
            let _ = write!(io::stderr(), "\r{} of {} days ", day + 1, args.days);
        }
    };
    let tally = history::write(&simulator, &format, &mut out, progress);
    if shown {
        let _ = write!(io::stderr(), "\r");
    }
    match tally {
        // Whoever reads may have seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Tally::default()),
        other => other.map_err(|error| format!("the history cannot be written: {}", chain(&error))),
    }
}
