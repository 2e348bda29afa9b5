//! Merchants' money: exact, bounded, and the same after a reload and a restart.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::advance;

use super::*;
use crate::domain::currency::Currency;

/// 2026-11-22T10:00:00Z.
const NOW: u64 = 1_795_341_600_000;

fn cny(micro: i64) -> Cost {
    Cost { micro, currency: Currency::parse("CNY").unwrap() }
}

fn budget(whose: Whose, micro: i64) -> MerchantBudget {
    let (per, when_spent) = (Period::Day, WhenSpent::Score);
    MerchantBudget { whose, tenant: None, amount: cny(micro), per, ladder_from: WHOLE, when_spent }
}

fn named(id: &str, micro: i64) -> MerchantBudget {
    budget(Whose::Merchant(id.to_owned()), micro)
}

struct Fixture {
    merchants: Arc<Merchants>,
    budgets: RiskBudgets,
    metrics: Arc<Metrics>,
}

fn fixture(budgets: Vec<MerchantBudget>, most: usize) -> Fixture {
    let merchants = Arc::new(Merchants::with_room(Calendar::at(NOW), most));
    let (budgets, metrics) = (RiskBudgets::new(budgets, Vec::new()), Metrics::new());
    merchants.adopt(&budgets, &metrics);
    Fixture { merchants, budgets, metrics }
}

impl Fixture {
    fn accounts(&self, merchant: &str, category: Option<&str>) -> Vec<Account> {
        Account::of(&self.budgets, &TenantId::new("eu"), merchant, category)
    }

    fn claim(&self, merchant: &str, micro: i64) -> Result<Arc<MerchantClaim>, Spent> {
        self.merchants.claim(&self.accounts(merchant, None), cny(micro), Room::All)
    }

    fn sums(&self, place: usize) -> (i64, i64, i64) {
        let Sums { spent, estimated, reserved } = self.merchants.spending(&self.budgets.all()[place]).sums;
        (spent, estimated, reserved)
    }
}

#[tokio::test(start_paused = true)]
async fn c9_a_claim_is_held_in_all_accounts_or_in_none_and_settled_with_what_was_paid() {
    let travel = budget(Whose::Category("travel".to_owned()), 1_000);
    let world = fixture(vec![named("a", 100), travel], 10);
    let accounts = world.accounts("a", Some("travel"));
    let claim = world.merchants.claim(&accounts, cny(60), Room::All).unwrap();
    assert_eq!((world.sums(0), world.sums(1)), ((0, 0, 60), (0, 0, 60)));
    assert!(world.merchants.claim(&accounts, cny(41), Room::All).is_err());
    assert_eq!((world.sums(0), world.sums(1)), ((0, 0, 60), (0, 0, 60)), "the refused one left nothing behind");
    claim.pay(Payment::Counted(cny(50)));
    assert_eq!(world.sums(0), (50, 0, 10));
    claim.close();
    claim.close();
    assert_eq!((world.sums(0), world.sums(1)), ((50, 0, 0), (50, 0, 0)));
    claim.pay(Payment::Estimated(cny(5)));
    drop(claim);
    assert_eq!(world.sums(0), (55, 5, 0), "a late verdict costs as much");
}

#[tokio::test(start_paused = true)]
async fn the_stricter_of_two_spent_budgets_says_what_becomes_of_the_call() {
    let strict = MerchantBudget { when_spent: WhenSpent::FallBack, ..named("a", 100) };
    let month = MerchantBudget { per: Period::Month, ..named("a", 10) };
    let world = fixture(vec![strict, month], 10);
    assert_eq!(world.claim("a", 50).err(), Some(Spent(WhenSpent::Score)), "only the month's is spent");
    assert_eq!(world.claim("a", 500).err(), Some(Spent(WhenSpent::FallBack)));
    let forced = world.merchants.claim(&world.accounts("a", None), cny(500), Room::Overdraw).unwrap();
    forced.pay(Payment::Counted(cny(500)));
    assert_eq!(world.sums(0), (500, 0, 0), "what is bought all the same is counted all the same");
}

#[tokio::test(start_paused = true)]
async fn extras_have_room_up_to_a_share_and_the_score_has_all_of_it() {
    let early = MerchantBudget { ladder_from: 900_000, ..named("a", 100) };
    let world = fixture(vec![early], 10);
    let claim = |room| world.merchants.claim(&world.accounts("a", None), cny(91), room).is_ok();
    assert_eq!((claim(Room::WithExtras), claim(Room::All)), (false, true));
}

#[tokio::test(start_paused = true)]
async fn each_merchant_has_its_own_purse_and_those_beyond_the_bound_share_one() {
    let world = fixture(vec![budget(Whose::Each, 100)], 3);
    for merchant in ["a", "b", "c"] {
        world.claim(merchant, 100).unwrap().pay(Payment::Counted(cny(100)));
        assert!(world.claim(merchant, 1).is_err(), "{merchant}");
    }
    world.claim("d", 60).unwrap().pay(Payment::Counted(cny(60)));
    assert!(world.claim("e", 60).is_err(), "it shares with d");
    assert_eq!((world.sums(0), world.merchants.crowded()), ((360, 0, 0), 2));
    let other = Account::of(&world.budgets, &TenantId::new("us"), "a", None);
    assert!(
        world.merchants.claim(&other, cny(60), Room::All).is_err(),
        "another tenant's `a` is another one, and late"
    );
    advance(Duration::from_secs(86_400)).await;
    for merchant in ["x", "y", "z"] {
        world.claim(merchant, 100).unwrap().pay(Payment::Counted(cny(100)));
    }
    assert_eq!((world.sums(0), world.merchants.crowded()), ((300, 0, 0), 3), "yesterday's have made room");
}

#[tokio::test(start_paused = true)]
async fn spending_survives_a_reload_and_a_restart_and_ends_with_its_day() {
    let world = fixture(vec![named("a", 100), budget(Whose::Each, 100)], 10);
    world.claim("a", 70).unwrap().pay(Payment::Counted(cny(70)));
    world.claim("b", 80).unwrap().pay(Payment::Estimated(cny(80)));
    let smaller = RiskBudgets::new(vec![named("a", 50), budget(Whose::Each, 100)], Vec::new());
    world.merchants.adopt(&smaller, &world.metrics);
    let now = Account::of(&smaller, &TenantId::new("eu"), "a", None);
    assert!(world.merchants.claim(&now, cny(1), Room::All).is_err(), "the new limit holds, what was spent stays");

    let kept = world.merchants.kept();
    let again = fixture(world.budgets.all().to_vec(), 10);
    again.merchants.restore(&kept);
    assert_eq!((again.sums(0), again.sums(1)), ((70, 0, 0), (80, 80, 0)));
    assert_eq!(again.merchants.kept(), kept);
    let tomorrow = Merchants::new(Calendar::at(NOW + 86_400_000));
    tomorrow.adopt(&world.budgets, &world.metrics);
    tomorrow.restore(&kept);
    assert!(tomorrow.kept().is_empty());
    world.merchants.retire();
    let text = world.metrics.render();
    assert!(
        text.contains(
            r#"weighbridge_merchant_budget_limit_micro{whose="merchant",name="a",tenant="",per="day",currency="CNY"} 0"#
        ),
        "{text}"
    );
}

proptest! {
    #[test]
    fn c9_never_is_more_promised_than_there_is_and_every_micro_unit_paid_is_counted(
        steps in prop::collection::vec((0usize..3, 0i64..60, 0i64..60, any::<bool>()), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let world = fixture(vec![named("a", 200), budget(Whose::Each, 150)], 2);
            let (mut paid, mut open) = ([0i64; 2], Vec::new());
            for (who, estimate, cost, late) in steps {
                let place = usize::from(who > 0);
                let Ok(claim) = world.claim(["a", "b", "c"][who], estimate) else { continue };
                let cost = cost.min(estimate);
                claim.pay(Payment::Counted(cny(cost)));
                paid[place] += cost;
                if late { open.push(claim) }
                for (place, most) in [(0, 200), (1, 300)] {
                    let (spent, _, reserved) = world.sums(place);
                    assert!(spent == paid[place] && reserved >= 0 && spent + reserved <= most);
                }
            }
            drop(open);
            assert_eq!([world.sums(0), world.sums(1)], paid.map(|paid| (paid, 0, 0)));
        });
    }
}
