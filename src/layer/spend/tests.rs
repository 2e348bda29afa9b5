//! What is given up, in which order, and what is asked for then.

use std::sync::Mutex;

use tower::{ServiceExt, service_fn};

use super::*;
use crate::config::budgets::{MerchantBudget, WHOLE, Whose};
use crate::config::prices::CrossBorder;
use crate::config::table::{Candidate, Provider};
use crate::domain::currency::Currency;
use crate::domain::period::Period;
use crate::flight::quota::Calendar;
use crate::upstream::testing::{risk_call, whole};

fn cny(micro: i64) -> Cost {
    Cost { micro, currency: Currency::parse("CNY").unwrap() }
}

fn price(features: &[(&str, i64)]) -> RiskPrice {
    let features = features.iter().map(|&(name, micro)| (name.to_owned(), cny(micro))).collect();
    let (version, cross_border_when) = ("v1".into(), CrossBorder::Asked);
    RiskPrice { version, standard: cny(20), cross_border: None, cross_border_when, features }
}

/// A route whose candidates have these prices, under one budget, and a call that asks for these features.
fn fixture(prices: &[RiskPrice], amount: i64, asked: &[&str]) -> (Params, Call) {
    let mut call = risk_call("T1", "1.00");
    let facts = call.risk().unwrap();
    let (mut route, mut facts) = (RiskRoute::clone(&facts.route), RiskFacts::clone(facts));
    let first = route.candidates[0].clone();
    let candidate = |price: &RiskPrice| {
        let provider = Provider { price: Some(price.clone()), ..Provider::clone(&first.provider) };
        Candidate { provider: Arc::new(provider), ..first.clone() }
    };
    route.candidates = prices.iter().map(candidate).collect();
    let (per, ladder_from, when_spent) = (Period::Day, WHOLE, WhenSpent::FallBack);
    let budget = MerchantBudget { whose: Whose::Each, tenant: None, amount: cny(amount), per, ladder_from, when_spent };
    let ladder = ["free", "ocr", "text", "fx"].map(str::to_owned);
    route.budgets = Some(Arc::new(RiskBudgets::new(vec![budget], ladder.into())));
    let (route, metrics) = (Arc::new(route), Metrics::new());
    facts.assessment.features = asked.iter().map(|&feature| feature.to_owned()).collect();
    facts.route = Arc::clone(&route);
    call.facts = Facts::Risk(Arc::new(facts));
    let merchants = Merchants::new(Calendar::at(1_795_341_600_000));
    merchants.adopt(route.budgets.as_ref().unwrap(), &metrics);
    (Params { route, merchants: Some(Arc::new(merchants)), metrics }, call)
}

/// What the layer below is asked for, and what was left out; `None` if it is not asked.
async fn asked_for(params: Params, call: Call) -> Option<(Vec<String>, Vec<String>)> {
    let seen = Arc::new(Mutex::new(None));
    let sees = Arc::clone(&seen);
    let service = service_fn(move |call: Call| {
        let facts = call.risk().unwrap();
        *sees.lock().unwrap() = Some((facts.assessment.features.clone(), facts.features_dropped.clone()));
        std::future::ready(Ok(whole("")))
    });
    let answer = SpendLayer(params).layer(service).oneshot(call).await;
    let seen = seen.lock().unwrap().take();
    assert_eq!(answer.is_ok(), seen.is_some());
    assert!(seen.is_some() || matches!(answer, Err(CallError::NoDecision(FallbackReason::Budget))));
    seen
}

fn names(features: &[&str]) -> Vec<String> {
    features.iter().map(|&feature| feature.to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_dearest_candidate_is_estimated_and_what_saves_with_any_of_them_is_given_up() {
    let both = [price(&[("ocr", 30)]), price(&[("text", 40)])];
    // 60 with `text` at the second; without it the first one's 50 is the dearest.
    let ask = ["text", "free", "unlisted", "ocr"];
    let table = [
        (60, Some((ask.to_vec(), vec![]))),
        (59, Some((vec!["free", "unlisted"], vec!["ocr", "text"]))),
        (20, Some((vec!["free", "unlisted"], vec!["ocr", "text"]))),
        (19, None),
    ];
    for (amount, expected) in table {
        let (params, call) = fixture(&both, amount, &ask);
        let expected = expected.map(|(asked, dropped)| (names(&asked), names(&dropped)));
        assert_eq!(asked_for(params, call).await, expected, "{amount}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_reached_nobody_leaves_the_budget_as_it_was() {
    let (params, call) = fixture(&[price(&[])], 20, &[]);
    for _ in 0..3 {
        assert!(
            asked_for(params.clone(), call.clone()).await.is_some(),
            "nothing was paid, so all of it is there again"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_budget_nothing_is_estimated() {
    let (params, call) = fixture(&[price(&[("ocr", 30)])], 1, &["ocr"]);
    let params = Params { merchants: None, ..params };
    assert_eq!(asked_for(params, call).await, Some((names(&["ocr"]), names(&[]))));
}
