//! What a provider would say of a simulated payment.
//!
//! It sees evidence, one number that is normal with deviation 1 around 0 for good payments and around [`SKILL`] for
//! frauds. So the probability of fraud given the evidence is known exactly, and the score says it: σ(logit(p) + noise). A
//! [`Calibration`] bends the score as real models are bent: sure of itself, timid, or asked of another population. It does
//! not learn: only the date on which its model changes is set.

use super::dice::{Dice, Purpose};
use super::{Payment, Vendor};
use crate::domain::decision::Score;

/// How far the evidence of frauds lies from that of good payments, in deviations.
const SKILL: f64 = 3.0;
/// Deviation of the noise on the score's logit.
const NOISE: f64 = 0.25;
/// From this score on the provider wants a person to look.
const REVIEW_FROM: u32 = 300_000;
/// From this score on it wants the payment stopped.
const REJECT_FROM: u32 = 850_000;

/// The model before a change, and the only one without.
pub const MODEL_VERSION: &str = "di-2026.01.0";
/// The model after a change.
pub const NEXT_MODEL_VERSION: &str = "di-2026.07.0";

/// How the score relates to the probability.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Calibration {
    /// It is the probability, but for noise.
    #[default]
    Honest,
    /// Too near to 0 and to 1.
    Overconfident,
    /// Too near to the middle.
    Timid,
    /// Much too high throughout, as from a population with more fraud.
    Alarmist,
}

impl Calibration {
    /// Slope and shift on the logit.
    fn bend(self) -> (f64, f64) {
        match self {
            Self::Honest => (1.0, 0.0),
            Self::Overconfident => (1.8, 0.0),
            Self::Timid => (0.5, 0.0),
            Self::Alarmist => (1.0, 1.5),
        }
    }
}

/// What it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opinion {
    /// The score.
    pub score: Score,
    /// Its own word.
    pub recommendation: &'static str,
    /// For staff.
    pub explanation: &'static str,
    /// The model that scored.
    pub model_version: &'static str,
}

/// `prior` is the logit of the share of frauds among all payments.
pub(super) fn opinion(seed: u64, prior: f64, vendor: &Vendor, payment: &Payment) -> Opinion {
    let mut dice = Dice::new(seed, Purpose::Evidence, payment.key());
    let evidence = dice.normal() + if payment.scenario.is_some() { SKILL } else { 0.0 };
    let truth = prior + SKILL * evidence - SKILL * SKILL / 2.0;
    let changed = vendor.change.filter(|(day, _)| payment.day >= *day);
    let (calibration, model_version) =
        changed.map_or((vendor.calibration, MODEL_VERSION), |(_, next)| (next, NEXT_MODEL_VERSION));
    let (slope, shift) = calibration.bend();
    let score = score(slope * truth + shift + NOISE * dice.normal());
    let (recommendation, explanation) = match score.micro() {
        REJECT_FROM.. => ("REJECT", "pattern of earlier confirmed frauds"),
        REVIEW_FROM.. => ("REVIEW", "unlike this customer's earlier payments"),
        _ => ("PASS", "nothing unusual about this payment"),
    };
    Opinion { score, recommendation, explanation, model_version }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and a million")]
fn score(logit: f64) -> Score {
    let share = 1.0 / (1.0 + (-logit).exp());
    Score::from_micro((share * 1e6).round() as u32).unwrap_or(Score::ONE)
}
