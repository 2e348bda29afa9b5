//! The simulated towns whose payments this Alipay knows the truth about: as many as few runs need, made when first met.

use std::sync::{Arc, Mutex, PoisonError};

use super::super::simulator::{Options, Simulator, number};
use crate::domain::money::Money;

/// Towns at once; payments of further ones are answered as anybody's are.
const MOST: usize = 4;

#[derive(Default)]
pub(super) struct Towns {
    /// A blocking lock: it is held while a town is made, some ten milliseconds, so that no other makes it too.
    known: Mutex<Vec<Arc<Simulator>>>,
}

impl Towns {
    /// What to say of a payment that one of the towns makes, to the cent.
    pub(super) fn verdict(&self, out_trade_no: &str, paid: Money) -> Option<String> {
        let town = self.town(number::seed(out_trade_no)?)?;
        let payment = town.find(out_trade_no).filter(|payment| town.paid(payment) == Some(paid))?;
        let opinion = town.opinion(&payment);
        let micro = opinion.score.micro();
        let score = format!("{}.{:06}", micro / 1_000_000, micro % 1_000_000);
        let (word, text) = (opinion.recommendation, opinion.explanation);
        Some(format!(r#"{{"risk_score":{score},"recommendation":"{word}","explanation":"{text}"}}"#))
    }

    fn town(&self, seed: u64) -> Option<Arc<Simulator>> {
        // A panic of another holder leaves whole towns behind.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(town) = known.iter().find(|town| town.options().seed == seed) {
            return Some(Arc::clone(town));
        }
        if known.len() >= MOST {
            return None;
        }
        let town = Arc::new(Simulator::new(Options::sandbox(seed)).ok()?);
        known.push(Arc::clone(&town));
        Some(town)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_of_the_town_has_the_simulators_score_and_any_other_has_none() {
        let (towns, town) = (Towns::default(), Simulator::new(Options::sandbox(1)).unwrap());
        let payment = town.day(30)[17];
        let (number, paid) = (town.number(&payment), town.paid(&payment).unwrap());
        let said: serde_json::Value = serde_json::from_str(&towns.verdict(&number, paid).unwrap()).unwrap();
        let opinion = town.opinion(&payment);
        assert_eq!(said["risk_score"].as_f64(), Some(opinion.score.as_f64()));
        assert_eq!(said["recommendation"], opinion.recommendation);
        assert!(towns.verdict(&format!("{number}-r1"), paid).is_some());
        let other = Money::parse("7777.77", paid.currency()).or(Money::parse("7777", paid.currency())).unwrap();
        assert_eq!(towns.verdict(&number, other), None, "another amount is another payment");
        assert_eq!(towns.verdict("T0001", paid), None);
        for seed in 2..=4 {
            towns.town(seed).unwrap();
        }
        assert!(towns.town(5).is_none() && towns.town(1).is_some());
    }
}
