//! How the simulated Alipay decides: by the last digits of the amount, so that every outcome can be had from a shell.
//!
//! The table is public because the documentation and `weighbridge sandbox` print it.

use super::super::fault::Fault;

/// What one ending of an amount causes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MagicAmount {
    /// The point and two decimals. Currencies with another number of decimals have no magic amounts.
    pub ending: &'static str,
    /// What happens.
    pub effect: Effect,
    /// The same for people.
    pub note: &'static str,
}

/// What happens to a scoring call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// A well-formed verdict.
    Verdict {
        /// A JSON number.
        score: &'static str,
        /// The provider's word.
        recommendation: &'static str,
        /// For staff.
        explanation: &'static str,
    },
    /// This body, authentic but odd.
    Body(&'static str),
    /// A fault, in the grammar of [`Fault::parse`].
    Fault(&'static str),
}

/// What every other amount gets.
pub const USUAL: Effect =
    Effect::Verdict { score: "0.12", recommendation: "PASS", explanation: "nothing unusual about this payment" };

/// All the magic amounts.
pub const MAGIC_AMOUNTS: [MagicAmount; 17] = [
    verdict(".13", ["0.42", "REVIEW", "suspicious device fingerprint mismatch"], "0.42, to be reviewed"),
    verdict(".30", ["0.3", "PASS", "at the edge of the first band"], "exactly 0.3, where challenges begin by default"),
    verdict(".49", ["0.5", "CHALLENGE", "first payment from this country"], "0.5, to be challenged"),
    verdict(
        ".70",
        ["0.7", "CHALLENGE", "at the edge of the second band"],
        "exactly 0.7, where reviews begin by default",
    ),
    verdict(".79", ["0.79", "REVIEW", "many cards on one device"], "0.79, to be reviewed"),
    verdict(".91", ["0.91", "REJECT", "instrument seen in confirmed fraud"], "0.91, to be rejected"),
    fault(".50", "delay:2s", "the answer takes two seconds"),
    fault(".51", "unsigned", "the answer is not signed"),
    fault(".52", "bad-signature", "the answer's signature is wrong"),
    body(".53", r#"{"risk_score":1.5,"recommendation":"PASS"}"#, "the score is 1.5"),
    fault(".54", "garbage", "the answer is not JSON"),
    fault(".55", "status:503", "the answer is a 503"),
    fault(".56", "refuse", "the connection closes without an answer"),
    body(".57", r#"{"recommendation":"PASS"}"#, "there is no score"),
    body(".58", r#"{"risk_score":0.05,"recommendation":"APPROVE"}"#, "the word is unknown, the score low"),
    fault(".59", "stall:10", "the answer stops after ten bytes"),
    body(".60", r#"{"risk_score":NaN,"recommendation":"PASS"}"#, "the score is the bare word NaN"),
];

const fn verdict(ending: &'static str, says: [&'static str; 3], note: &'static str) -> MagicAmount {
    let [score, recommendation, explanation] = says;
    MagicAmount { ending, effect: Effect::Verdict { score, recommendation, explanation }, note }
}

const fn body(ending: &'static str, body: &'static str, note: &'static str) -> MagicAmount {
    MagicAmount { ending, effect: Effect::Body(body), note }
}

const fn fault(ending: &'static str, text: &'static str, note: &'static str) -> MagicAmount {
    MagicAmount { ending, effect: Effect::Fault(text), note }
}

/// The body and the fault of an amount.
pub(super) fn outcome(amount: &str) -> (String, Option<Fault>) {
    let magic = MAGIC_AMOUNTS.iter().find(|magic| is_ending(amount, magic.ending));
    match magic.map_or(USUAL, |magic| magic.effect) {
        Effect::Body(body) => (body.to_owned(), None),
        Effect::Fault(text) => (written(USUAL), Fault::parse(text).ok()),
        verdict @ Effect::Verdict { .. } => (written(verdict), None),
    }
}

fn is_ending(amount: &str, ending: &str) -> bool {
    amount.strip_suffix(ending).is_some_and(|whole| !whole.contains('.'))
}

/// The texts of the table need no escaping.
fn written(effect: Effect) -> String {
    match effect {
        Effect::Verdict { score, recommendation, explanation } => {
            format!(r#"{{"risk_score":{score},"recommendation":"{recommendation}","explanation":"{explanation}"}}"#)
        }
        Effect::Body(text) | Effect::Fault(text) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_no_ending_twice_and_only_faults_that_exist() {
        for (index, magic) in MAGIC_AMOUNTS.iter().enumerate() {
            assert!(MAGIC_AMOUNTS.iter().skip(index + 1).all(|other| other.ending != magic.ending), "{magic:?}");
            assert!(magic.ending.len() == 3 && magic.ending.starts_with('.'), "{magic:?}");
            if let Effect::Fault(text) = magic.effect {
                assert!(Fault::parse(text).is_ok(), "{text}");
            }
        }
    }

    #[test]
    fn every_verdict_of_the_table_is_json() {
        for magic in MAGIC_AMOUNTS.iter().filter(|magic| matches!(magic.effect, Effect::Verdict { .. })) {
            let (body, fault) = outcome(&format!("88{}", magic.ending));
            assert!(serde_json::from_str::<serde_json::Value>(&body).is_ok() && fault.is_none(), "{body}");
        }
    }

    #[test]
    fn only_amounts_with_two_decimals_are_magic() {
        assert!(outcome("1.13").0.contains("0.42"));
        for usual in ["113", "1.130", "0.113", "13", "88.88", "1.00"] {
            assert_eq!(outcome(usual).0, written(USUAL), "{usual}");
        }
    }
}
