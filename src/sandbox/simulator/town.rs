//! Who pays where: customers and terminals on a square, and which terminals each customer reaches.
//!
//! Positions serve nothing else and are forgotten. Strips of the square are countries (our addition), so that payments
//! near a border are now and then across it.

use super::dice::{Dice, Purpose};
use super::{Options, place};

/// The side of the square.
const SIDE: f64 = 100.0;
/// How far a customer goes.
const RADIUS: f64 = 5.0;
/// Squares of the radius' size on one side, to look only at near terminals.
const CELLS: usize = 20;
/// Mean amounts of customers, in hundredths.
const MEAN_AMOUNT: [f64; 2] = [500.0, 10_000.0];
/// Most payments a day, on average, that a customer makes.
const MOST_A_DAY: f64 = 4.0;

/// How a customer pays.
pub(super) struct Customer {
    /// Mean amount in hundredths; its deviation is half of it.
    pub(super) mean: f64,
    /// How likely a day without payments is.
    pub(super) none_a_day: f64,
    pub(super) country: u8,
    /// From where to where its terminals are in [`Town::reach`].
    from: u32,
    to: u32,
}

/// The square.
pub(super) struct Town {
    pub(super) customers: Vec<Customer>,
    /// Countries of the terminals.
    pub(super) terminals: Vec<u8>,
    reach: Vec<u32>,
}

impl Town {
    pub(super) fn new(options: &Options) -> Self {
        let mut cells: Vec<Vec<(u32, [f64; 2])>> = vec![Vec::new(); CELLS * CELLS];
        let mut terminals = Vec::new();
        for number in 0..options.terminals {
            let mut dice = Dice::new(options.seed, Purpose::Terminal, [number, 0, 0]);
            let at = somewhere(&mut dice);
            terminals.push(country(at));
            if let Some(cell) = cells.get_mut(cell(at[0]) * CELLS + cell(at[1])) {
                cell.push((number, at));
            }
        }
        let mut town = Self { customers: Vec::new(), terminals, reach: Vec::new() };
        for number in 0..options.customers {
            let mut dice = Dice::new(options.seed, Purpose::Customer, [number, 0, 0]);
            let at = somewhere(&mut dice);
            let from = place(town.reach.len());
            town.reach.extend(near(&cells, at));
            let mean = dice.between(MEAN_AMOUNT[0], MEAN_AMOUNT[1]);
            let none_a_day = (-dice.between(0.0, MOST_A_DAY)).exp();
            let to = place(town.reach.len());
            town.customers.push(Customer { mean, none_a_day, country: country(at), from, to });
        }
        town
    }

    /// The terminals a customer pays at.
    pub(super) fn near(&self, customer: &Customer) -> &[u32] {
        self.reach.get(customer.from as usize..customer.to as usize).unwrap_or_default()
    }
}

fn somewhere(dice: &mut Dice) -> [f64; 2] {
    [dice.between(0.0, SIDE), dice.between(0.0, SIDE)]
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positions are between 0 and the side")]
fn cell(position: f64) -> usize {
    ((position / RADIUS) as usize).min(CELLS - 1)
}

/// Strips of ten: the first ones are one large country.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positions are between 0 and the side")]
fn country(at: [f64; 2]) -> u8 {
    match (at[0] / 10.0) as u8 {
        0..=3 => 0,
        strip => strip - 3,
    }
}

fn near(cells: &[Vec<(u32, [f64; 2])>], at: [f64; 2]) -> Vec<u32> {
    let around = |position: f64| cell(position).saturating_sub(1)..=(cell(position) + 1).min(CELLS - 1);
    let squares = around(at[0]).flat_map(|x| around(at[1]).map(move |y| x * CELLS + y));
    let candidates = squares.filter_map(|square| cells.get(square)).flatten();
    let within = |to: &[f64; 2]| (to[0] - at[0]).powi(2) + (to[1] - at[1]).powi(2) < RADIUS * RADIUS;
    candidates.filter(|(_, to)| within(to)).map(|(number, _)| *number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_only_at_near_squares_misses_no_terminal() {
        let options = Options { customers: 50, terminals: 2_000, ..Options::published(3) };
        let town = Town::new(&options);
        let position = |purpose, number| somewhere(&mut Dice::new(3, purpose, [number, 0, 0]));
        for (number, customer) in (0..).zip(&town.customers) {
            let at = position(Purpose::Customer, number);
            let mut found = town.near(customer).to_vec();
            found.sort_unstable();
            let distance = |to: [f64; 2]| (to[0] - at[0]).hypot(to[1] - at[1]);
            let all: Vec<u32> =
                (0..2_000).filter(|terminal| distance(position(Purpose::Terminal, *terminal)) < RADIUS).collect();
            assert_eq!(found, all);
        }
    }

    #[test]
    fn customers_are_as_published() {
        let town = Town::new(&Options::published(1));
        let count = 5_000.0;
        let reach = f64::from(place(town.reach.len())) / count;
        // 10,000 terminals times the circle's share of the square, less what lies outside of it.
        assert!((68.0..79.0).contains(&reach), "{reach}");
        let mean = town.customers.iter().map(|customer| customer.mean).sum::<f64>() / count;
        assert!((5_150.0..5_350.0).contains(&mean), "{mean}");
        let rate = town.customers.iter().map(|customer| -customer.none_a_day.ln()).sum::<f64>() / count;
        assert!((1.94..2.06).contains(&rate), "{rate}");
    }
}
