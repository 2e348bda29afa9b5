//! Laws of money and tokens: nothing is lost, nothing is settled twice, no limit is passed by promises.

use proptest::prelude::*;

use super::*;
use crate::config::table::Unpriced;
use crate::domain::id::{CallerId, TenantId};
use crate::domain::overload::Class;

/// 2026-11-30T23:59:00Z: a minute before a day and a month turn.
const EVE: u64 = 1_796_083_140_000;
const DAY_MS: u64 = 86_400_000;

fn money(micro: i64, code: &str) -> Cost {
    Cost { micro, currency: Currency::parse(code).unwrap() }
}

fn usd(micro: i64) -> Cost {
    money(micro, "USD")
}

fn caller(tokens_per_minute: Option<u32>, budgets: &[(Cost, Period)]) -> Caller {
    Caller {
        id: CallerId::new("shop"),
        tenant: TenantId::new("shop"),
        client_certs: Vec::new(),
        key_digest: [1; 32],
        class: Class::Normal,
        allow: Vec::new(),
        requests_per_minute: None,
        in_flight: None,
        tokens_per_minute,
        budgets: budgets.iter().map(|&(amount, per)| Budget { amount, per }).collect(),
        unpriced: Unpriced::Allow,
        signature: None,
    }
}

fn quota(caller: &Caller) -> Arc<Quota> {
    let quota = Arc::new(Quota::new(Calendar::at(EVE)));
    quota.adopt(caller, &Metrics::new());
    quota
}

fn sums(quota: &Quota, caller: &Caller) -> (i64, i64) {
    let spending = quota.spending(caller);
    (spending[0].sums.spent, spending[0].sums.reserved)
}

fn claim(quota: &Arc<Quota>, caller: &Caller, micro: i64) -> Result<Arc<Claim>, Refusal> {
    quota.claim(&Wish { caller, size: Size { input: 100, output: 100 }, costs: &[usd(micro)] })
}

#[tokio::test(start_paused = true)]
async fn what_is_held_back_is_gone_for_others_until_it_is_let_go() {
    let caller = caller(None, &[(usd(1_000), Period::Day)]);
    let quota = quota(&caller);
    let first = claim(&quota, &caller, 700).unwrap();
    assert!(matches!(claim(&quota, &caller, 301), Err(Refusal::Budget { per: Period::Day, .. })));
    let second = claim(&quota, &caller, 300).unwrap();
    assert_eq!(sums(&quota, &caller), (0, 1_000));
    assert!(first.pay(Payment::Counted(usd(150)), 200));
    assert_eq!(sums(&quota, &caller), (150, 850), "paid out of what was held back");
    first.close();
    first.close();
    assert_eq!(sums(&quota, &caller), (150, 300));
    drop((first, second));
    assert_eq!(sums(&quota, &caller), (150, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_dearer_than_it_was_taken_to_be_is_paid_in_full_and_late_ones_too() {
    let caller = caller(Some(6_000), &[(usd(1_000), Period::Day)]);
    let quota = quota(&caller);
    let claim_of_it = claim(&quota, &caller, 100).unwrap();
    claim_of_it.pay(Payment::Counted(usd(900)), 3_000);
    claim_of_it.close();
    claim_of_it.pay(Payment::Estimated(usd(400)), 1_000);
    assert_eq!((sums(&quota, &caller), quota.room(6_000).remaining), ((1_300, 0), 2_000));
    assert_eq!(quota.spending(&caller)[0].sums.estimated, 400);
    assert!(claim(&quota, &caller, 1).is_err());
}

#[tokio::test(start_paused = true)]
async fn windows_turn_at_midnight_and_calls_in_flight_go_over_with_what_they_hold() {
    let caller = caller(None, &[(usd(1_000), Period::Day), (usd(1_500), Period::Month)]);
    let quota = quota(&caller);
    let early = claim(&quota, &caller, 100).unwrap();
    early.pay(Payment::Counted(usd(900)), 0);
    let night = claim(&quota, &caller, 50).unwrap();
    assert!(claim(&quota, &caller, 200).is_err());
    tokio::time::advance(Duration::from_secs(60)).await;
    let both =
        |quota: &Quota| quota.spending(&caller).iter().map(|s| (s.sums.spent, s.sums.reserved)).collect::<Vec<_>>();
    assert_eq!(both(&quota), [(0, 50), (0, 50)], "a day and a month began");
    night.pay(Payment::Counted(usd(60)), 0);
    night.close();
    assert_eq!(both(&quota), [(60, 0), (60, 0)], "paid when it ended");
    tokio::time::advance(Duration::from_millis(DAY_MS)).await;
    let today = claim(&quota, &caller, 800).unwrap();
    today.pay(Payment::Counted(usd(800)), 0);
    assert_eq!(both(&quota), [(800, 0), (860, 0)], "the month goes on");
    tokio::time::advance(Duration::from_millis(DAY_MS)).await;
    let ends = EVE + 60_000 + 31 * DAY_MS;
    assert_eq!(claim(&quota, &caller, 700).err(), Some(Refusal::Budget { per: Period::Month, ends }));
    assert_eq!(both(&quota)[0], (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_one_budget_refuses_takes_nothing_of_another_or_of_the_tokens() {
    let caller = caller(Some(1_000), &[(usd(1_000), Period::Day), (money(10, "CNY"), Period::Day)]);
    let quota = quota(&caller);
    let costs = [usd(10), money(11, "CNY")];
    let wish = Wish { caller: &caller, size: Size { input: 100, output: 100 }, costs: &costs };
    assert!(quota.claim(&wish).is_err());
    assert_eq!((sums(&quota, &caller), quota.room(1_000).remaining), ((0, 0), 1_000));
    let wish = Wish { costs: &[usd(10)], size: Size { input: 0, output: 1_000 }, ..wish };
    let held = quota.claim(&wish).unwrap();
    assert!(matches!(quota.claim(&wish), Err(Refusal::Tokens(_))));
    assert_eq!(sums(&quota, &caller), (0, 10));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn what_no_budget_can_count_is_counted_as_that() {
    let caller = caller(None, &[(usd(1_000), Period::Day)]);
    let quota = quota(&caller);
    let claim = claim(&quota, &caller, 10).unwrap();
    assert!(!claim.pay(Payment::Unpriced, 5));
    assert!(!claim.pay(Payment::Counted(money(5, "CNY")), 5));
    assert!(claim.pay(Payment::Counted(usd(5)), 5));
    assert_eq!((quota.unpriced(), sums(&quota, &caller)), (2, (5, 5)));
}

#[tokio::test(start_paused = true)]
async fn a_changed_budget_keeps_what_was_spent_and_a_kept_sum_only_counts_in_its_own_window() {
    let old = caller(None, &[(usd(1_000), Period::Day)]);
    let quota = quota(&old);
    claim(&quota, &old, 600).unwrap().pay(Payment::Counted(usd(600)), 0);
    let new = caller(None, &[(money(5, "CNY"), Period::Day), (usd(500), Period::Day)]);
    quota.adopt(&new, &Metrics::new());
    assert!(claim(&quota, &new, 1).is_err());
    assert_eq!(quota.spending(&new)[1].sums.spent, 600);

    let kept = quota.kept();
    let reborn = self::quota(&new);
    reborn.restore(&kept);
    assert_eq!(reborn.spending(&new)[1].sums.spent, 600);
    let stale = Kept { window: kept[0].window - DAY_MS, ..kept[0] };
    let reborn = self::quota(&new);
    reborn.restore(&[stale]);
    assert_eq!(reborn.spending(&new)[1].sums.spent, 0);
}

#[test]
fn many_threads_never_hold_back_more_than_the_limit() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _context = runtime.enter();
    let caller = caller(None, &[(usd(1_000), Period::Day)]);
    let quota = quota(&caller);
    let met: usize = std::thread::scope(|scope| {
        let thread = || scope.spawn(|| (0..500).filter_map(|_| claim(&quota, &caller, 7).ok()).collect::<Vec<_>>());
        let threads: Vec<_> = (0..4).map(|_| thread()).collect();
        let claims: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(sums(&quota, &caller), (0, 7 * claims.len() as i64));
        claims.len()
    });
    assert_eq!((met, sums(&quota, &caller)), (142, (0, 0)));
}

#[derive(Clone, Debug)]
enum Step {
    Claim(i64),
    Pay(usize, i64, u64),
    Close(usize),
    Drop(usize),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0i64..400).prop_map(Step::Claim),
        (0usize..6, 0i64..600, 0u64..500).prop_map(|(which, micro, tokens)| Step::Pay(which, micro, tokens)),
        (0usize..6).prop_map(Step::Close),
        (0usize..6).prop_map(Step::Drop),
        (0u64..20).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn sums_are_the_sums_of_what_was_paid_and_nothing_stays_held_back(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let caller = caller(Some(2_000), &[(usd(1_000), Period::Month)]);
            let quota = Arc::new(Quota::new(Calendar::at(EVE + 2 * DAY_MS)));
            quota.adopt(&caller, &Metrics::new());
            let (mut claims, mut paid) = (Vec::new(), 0i64);
            for step in steps {
                match step {
                    Step::Claim(micro) => {
                        let (spent, reserved) = sums(&quota, &caller);
                        if let Ok(claim) = claim(&quota, &caller, micro) {
                            claims.push(claim);
                            prop_assert!(spent + reserved + micro <= 1_000);
                        }
                    }
                    Step::Pay(which, micro, tokens) => if let Some(claim) = claims.get(which) {
                        claim.pay(Payment::Counted(usd(micro)), tokens);
                        paid += micro;
                    },
                    Step::Close(which) => if let Some(claim) = claims.get(which) { claim.close() },
                    Step::Drop(which) => if which < claims.len() { drop(claims.remove(which)) },
                    Step::Wait(seconds) => tokio::time::advance(Duration::from_secs(seconds)).await,
                }
                let (spent, reserved) = sums(&quota, &caller);
                prop_assert_eq!(spent, paid);
                prop_assert!(reserved >= 0);
                prop_assert!(quota.room(2_000).remaining <= 2_000);
            }
            claims.clear();
            prop_assert_eq!(sums(&quota, &caller), (paid, 0));
            Ok(())
        })?;
    }
}
