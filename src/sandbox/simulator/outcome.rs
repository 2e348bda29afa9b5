//! What becomes of a payment, and when that is known: the delays and the errors that real labels have.
//!
//! A reviewed payment has its reviewer's word on the next day, right or wrong. A fraud that was let through comes back as
//! a chargeback after weeks. A good payment is known to be good when no chargeback can follow any more. A payment that was
//! rejected never happened, so nobody ever learns: that gap is the point of simulating it.

use super::dice::{Dice, Purpose};
use super::{Payment, Reviewers};
use crate::domain::decision::Action;

/// Seconds of a day.
pub(super) const DAY: u32 = 86_400;
/// Half of all chargebacks have come after so many days.
const MEDIAN_DAYS: f64 = 35.0;
/// Deviation of the logarithm of their delay.
const SPREAD: f64 = 0.6;
/// Later than this none comes.
pub(super) const LAST_DAY: u32 = 120;

/// What became of a payment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// One of the contract's words.
    pub label: &'static str,
    /// Seconds from the payment to the moment it was known.
    pub after: u32,
}

/// `None` for what is never known.
pub(super) fn outcome(seed: u64, reviewers: Reviewers, payment: &Payment, action: Action) -> Option<Outcome> {
    let mut dice = Dice::new(seed, Purpose::Outcome, payment.key());
    let fraud = payment.scenario.is_some();
    let chargeback = Outcome { label: "chargeback", after: delay(&mut dice) };
    let reviewed = DAY / 4 + dice.below(DAY);
    let wrong = dice.share() < if fraud { reviewers.frauds_passed } else { reviewers.good_stopped };
    match action {
        Action::Reject => None,
        Action::Review if fraud != wrong => Some(Outcome { label: "confirmed", after: reviewed }),
        Action::Review if !fraud => Some(Outcome { label: "overturned", after: reviewed }),
        _ if fraud => Some(chargeback),
        _ => Some(Outcome { label: "legitimate", after: LAST_DAY * DAY }),
    }
}

/// Log-normal, cut at the last day.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and at most 120 days of seconds")]
fn delay(dice: &mut Dice) -> u32 {
    let days = (MEDIAN_DAYS * (SPREAD * dice.normal()).exp()).min(f64::from(LAST_DAY));
    (days * f64::from(DAY)) as u32
}
