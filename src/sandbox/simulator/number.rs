//! A payment's number says which it is: `sim-1-30-4711-0`, optionally with the name of a run behind it.
//!
//! So the simulated Alipay can find the truth about a payment it is asked about without having been told. A run's name
//! keeps the numbers of two runs apart, which the proxy would otherwise take for repeats.

use super::{Options, Payer, Payment, Simulator, burst};

/// How each begins.
const PREFIX: &str = "sim-";
/// In the place of a customer.
const CARD_TESTER: &str = "t";

/// The seed a number belongs to; `None` if it is no simulated payment's.
pub fn seed(out_trade_no: &str) -> Option<u64> {
    out_trade_no.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

impl Simulator {
    /// The payment's number, without a run's name.
    pub fn number(&self, payment: &Payment) -> String {
        let Payment { day, payer, index, .. } = payment;
        let seed = self.options.seed;
        match payer {
            Payer::Customer(number) => format!("{PREFIX}{seed}-{day}-{number}-{index}"),
            Payer::CardTester => format!("{PREFIX}{seed}-{day}-{CARD_TESTER}-{index}"),
        }
    }

    /// The payment with this number, if this simulator makes it.
    pub fn find(&self, out_trade_no: &str) -> Option<Payment> {
        let mut parts = out_trade_no.strip_prefix(PREFIX)?.split('-');
        let Options { seed, days, .. } = self.options;
        let number = |text: &str| text.parse::<u32>().ok();
        parts.next()?.parse::<u64>().ok().filter(|of| *of == seed)?;
        let day = number(parts.next()?).filter(|day| *day < days)?;
        let payer = parts.next()?;
        let index = number(parts.next()?)?;
        let mut found = None;
        let mut look = |payment: Payment| {
            if payment.index == index {
                found = Some(payment);
            }
        };
        if payer == CARD_TESTER {
            burst::on(&self.options, day).into_iter().for_each(look);
        } else {
            self.labelled(number(payer)?, day, &mut look);
        }
        found
    }
}
