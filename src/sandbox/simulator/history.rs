//! A history as `weighbridge audit export --format csv` writes it, of payments that were never made.
//!
//! Rows come in the order of time, a day at a time, so that memory does not grow with the history. The action is what the
//! default bands and the provider's word make of the score.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::outcome::{DAY, LAST_DAY};
use super::{Payment, Scenario, Simulator};
use crate::domain::decision::{Action, Score};
use crate::domain::policy::Bands;

/// The columns, in order.
pub const HEADER: &str = "created_at,seq,id,trace_id,tenant,out_trade_no,merchant_id,merchant_category,user_id,country,\
    amount,currency,risk_score,recommendation,action,source,model_version,outcome,outcome_at";

/// What a history's rows know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Knowledge {
    /// What has become known a given number of days after the first day; the rest is empty.
    AsOf(u32),
    /// All that will ever be known.
    Final,
    /// The truth of every payment at once, also of those that were rejected. No real history has it.
    Truth,
}

/// How a history is written.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// The first day, counted from 1970-01-01.
    pub first_day: i64,
    /// Below it a payment passes.
    pub bands: Bands,
    /// What its rows know.
    pub knowledge: Knowledge,
}

/// What was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Payments.
    pub payments: u64,
    /// Frauds of the three published scenarios, and of card testing.
    pub frauds: [u64; 4],
}

impl Tally {
    /// Counts a payment.
    pub fn add(&mut self, payment: &Payment) {
        self.payments += 1;
        let [large, terminal, customer, testing] = &mut self.frauds;
        match payment.scenario {
            None => {}
            Some(Scenario::LargeAmount) => *large += 1,
            Some(Scenario::Terminal) => *terminal += 1,
            Some(Scenario::Customer) => *customer += 1,
            Some(Scenario::CardTesting) => *testing += 1,
        }
    }

    /// All frauds.
    pub fn all_frauds(&self) -> u64 {
        self.frauds.iter().sum()
    }
}

/// Writes the whole run; `progress` hears of every day that is done.
///
/// # Errors
/// When the output cannot be written.
pub fn write(
    simulator: &Simulator,
    format: &Format,
    out: &mut impl Write,
    mut progress: impl FnMut(u32),
) -> io::Result<Tally> {
    let mut tally = Tally::default();
    writeln!(out, "{HEADER}")?;
    let mut row = String::new();
    for day in 0..simulator.options.days {
        for payment in simulator.day(day) {
            row.clear();
            // Writing to a string cannot fail.
            let _ = write_row(&mut row, simulator, format, (tally.payments, &payment));
            out.write_all(row.as_bytes())?;
            tally.add(&payment);
        }
        progress(day);
    }
    out.flush()?;
    Ok(tally)
}

fn write_row(
    row: &mut String,
    simulator: &Simulator,
    format: &Format,
    (seq, payment): (u64, &Payment),
) -> std::fmt::Result {
    let (details, opinion) = (simulator.details(payment), simulator.opinion(payment));
    let (recommendation, model) = (opinion.recommendation, opinion.model_version);
    let action = format.bands.action(opinion.score).max(Action::of_recommendation(recommendation));
    moment(row, format.first_day + i64::from(payment.day), payment.second)?;
    let number = simulator.number(payment);
    write!(row, ",{},ra_{number},tr-{number},sim,{number},", seq + 1)?;
    let micro = opinion.score.micro();
    write!(row, "{},{},{},{},", details.merchant, details.category, details.user, details.country)?;
    write!(row, "{},{},{}.{:06},", details.amount, details.currency, micro / 1_000_000, micro % 1_000_000)?;
    write!(row, "{recommendation},{},live,{model},", action.as_str())?;
    write_outcome(row, simulator, format, (payment, action))?;
    row.push('\n');
    Ok(())
}

fn write_outcome(
    row: &mut String,
    simulator: &Simulator,
    format: &Format,
    (payment, action): (&Payment, Action),
) -> std::fmt::Result {
    let known = match (format.knowledge, simulator.outcome(payment, action)) {
        (Knowledge::Truth, _) => Some((if payment.scenario.is_some() { "fraud" } else { "legitimate" }, 0)),
        (Knowledge::AsOf(last), Some(outcome)) => {
            let at = u64::from(payment.day) * u64::from(DAY) + u64::from(payment.second) + u64::from(outcome.after);
            (at < u64::from(last) * u64::from(DAY)).then_some((outcome.label, outcome.after))
        }
        (Knowledge::Final, outcome) => outcome.map(|outcome| (outcome.label, outcome.after)),
        (Knowledge::AsOf(_), None) => None,
    };
    let Some((label, after)) = known else {
        row.push(',');
        return Ok(());
    };
    row.push_str(label);
    row.push(',');
    // At most 121 days of seconds: no overflow.
    let second = payment.second + after.min(DAY * (LAST_DAY + 1));
    moment(row, format.first_day + i64::from(payment.day) + i64::from(second / DAY), second % DAY)
}

/// RFC 3339 in UTC.
fn moment(row: &mut String, day: i64, second: u32) -> std::fmt::Result {
    let (year, month, date) = civil(day);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    write!(row, "{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of the month of a day counted from 1970-01-01.
fn civil(day: i64) -> (i32, u8, u8) {
    let epoch = time::macros::date!(1970 - 01 - 01);
    let date = epoch.checked_add(time::Duration::days(day)).unwrap_or(time::Date::MAX);
    (date.year(), u8::from(date.month()), date.day())
}

/// The bands of the product's example.
pub fn usual_bands() -> Option<Bands> {
    Bands::new(Score::from_micro(300_000)?, Score::from_micro(700_000)?, None)
}
