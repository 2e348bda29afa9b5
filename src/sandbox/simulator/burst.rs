//! Card testing: one device, one terminal, many stolen cards, small amounts, within minutes. Not in the published
//! simulator, and therefore switched off where its counts matter.

use super::dice::{Dice, Purpose};
use super::outcome::DAY;
use super::{CardTesting, Options, Payer, Payment, Scenario};

/// One day in so many has a burst.
const DAYS_APART: u32 = 7;
/// Payments of a burst: at least, and how many more.
const PAYMENTS: (u32, u32) = (40, 120);
/// Seconds between two of them, at most.
const PAUSE: u32 = 8;
/// Hundredths: at least, and how many more.
const AMOUNT: (u32, u32) = (50, 250);

/// The burst of a day, usually none.
pub(super) fn on(options: &Options, day: u32) -> Vec<Payment> {
    let mut dice = Dice::new(options.seed, Purpose::Burst, [day, 0, 0]);
    if options.card_testing == CardTesting::Never || !dice.once_in(DAYS_APART) {
        return Vec::new();
    }
    let terminal = dice.below(options.terminals);
    let count = PAYMENTS.0 + dice.below(PAYMENTS.1);
    let mut second = dice.below(DAY - (PAYMENTS.0 + PAYMENTS.1) * PAUSE);
    let payments = (0..count).map(|index| {
        second += 1 + dice.below(PAUSE);
        let minor = i64::from(AMOUNT.0 + dice.below(AMOUNT.1));
        let (payer, scenario) = (Payer::CardTester, Some(Scenario::CardTesting));
        Payment { day, second, payer, index, terminal, minor, scenario }
    });
    payments.collect()
}
