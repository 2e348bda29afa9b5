//! The price book of a risk provider: what one call costs, by what is asked of the provider.
//!
//! Exact sums of integers in one currency, under a name of its own, so that a record can say which prices held. It knows
//! no budget and gives nothing up; that is `flight::merchants` and `layer::spend`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::currency::Currency;
use crate::domain::money::Cost;
use crate::wire::risk::Assessment;

/// The feature that asks for cross-border conversion analysis.
pub const FX: &str = "fx";

/// The price of a risk call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RiskPrice {
    /// The name of this price list, as records say it.
    pub version: Arc<str>,
    /// A plain call.
    pub standard: Cost,
    /// A call with cross-border conversion analysis, instead of `standard`.
    pub cross_border: Option<Cost>,
    /// Which calls are those.
    pub cross_border_when: CrossBorder,
    /// Surcharges by activated feature.
    pub features: BTreeMap<String, Cost>,
}

/// When a provider bills a call as one with cross-border analysis.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum CrossBorder {
    /// When feature [`FX`] is asked for.
    #[default]
    Asked,
    /// Then, and when payer and merchant are known to be in different countries.
    AskedOrAbroad,
}

impl RiskPrice {
    /// What this attempt costs with these features instead of its own; `None` if it would not fit.
    pub fn of(&self, assessment: &Assessment, features: &[String]) -> Option<Cost> {
        let crosses = || {
            let by_countries = self.cross_border_when == CrossBorder::AskedOrAbroad;
            features.iter().any(|feature| feature == FX) || by_countries && is_abroad(assessment)
        };
        let base = self.cross_border.filter(|_| crosses()).unwrap_or(self.standard);
        let extras = features.iter().filter_map(|feature| self.features.get(feature));
        extras.copied().try_fold(base, Cost::checked_add)
    }

    /// True if asking for the feature can change a price.
    pub fn knows(&self, feature: &str) -> bool {
        self.features.contains_key(feature) || feature == FX && self.cross_border.is_some()
    }

    /// The currency it is billed in.
    pub fn currency(&self) -> Currency {
        self.standard.currency
    }
}

/// What nobody said is no difference.
fn is_abroad(assessment: &Assessment) -> bool {
    let countries = assessment.user.country.as_ref().zip(assessment.merchant.country.as_ref());
    countries.is_some_and(|(payer, merchant)| payer != merchant)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::risk::decode;

    fn cny(micro: i64) -> Cost {
        Cost { micro, currency: Currency::parse("CNY").unwrap() }
    }

    fn price(cross_border_when: CrossBorder) -> RiskPrice {
        let features = [("ocr", 10_000), ("text", 5_000), (FX, 1_000)];
        RiskPrice {
            version: "2026-11".into(),
            standard: cny(20_000),
            cross_border: Some(cny(50_000)),
            cross_border_when,
            features: features.map(|(name, micro)| (name.to_owned(), cny(micro))).into(),
        }
    }

    fn assessment(payer: Option<&str>, merchant: Option<&str>) -> Assessment {
        let country = |code: Option<&str>| code.map_or(String::new(), |code| format!(r#","country":"{code}""#));
        let body = format!(
            r#"{{"out_trade_no":"T1","total_amount":"1.00","currency":"CNY","subject":"s",
                "merchant":{{"id":"m"{}}},"user":{{"id":"u"{}}}}}"#,
            country(merchant),
            country(payer)
        );
        decode(body.as_bytes()).unwrap()
    }

    fn named(features: &[&str]) -> Vec<String> {
        features.iter().map(|&feature| feature.to_owned()).collect()
    }

    #[test]
    fn c9_a_call_costs_its_base_and_every_surcharge_once() {
        let of = |features: &[&str]| {
            let price = price(CrossBorder::Asked).of(&assessment(Some("DE"), Some("CN")), &named(features));
            price.map(|cost| cost.micro)
        };
        assert_eq!(of(&[]), Some(20_000), "different countries alone are none of its business");
        assert_eq!(of(&["ocr", "text"]), Some(35_000));
        assert_eq!(of(&["fx", "ocr"]), Some(61_000));
        assert_eq!(of(&["unheard-of"]), Some(20_000));
    }

    #[test]
    fn c9_countries_make_a_call_cross_border_only_where_the_book_says_so_and_both_are_known() {
        let book = price(CrossBorder::AskedOrAbroad);
        let of = |payer, merchant| book.of(&assessment(payer, merchant), &[]).map(|cost| cost.micro);
        assert_eq!(of(Some("DE"), Some("CN")), Some(50_000));
        assert_eq!(of(Some("CN"), Some("CN")), Some(20_000));
        assert_eq!(of(None, Some("CN")), Some(20_000));
        assert_eq!(of(Some("DE"), None), Some(20_000));
        let plain = RiskPrice { cross_border: None, ..book.clone() };
        assert_eq!(plain.of(&assessment(Some("DE"), Some("CN")), &[]), Some(cny(20_000)), "there is no such price");
    }

    proptest! {
        #[test]
        fn c9_fewer_features_never_cost_more(mask in 0usize..16, lost in 0usize..4, abroad in any::<bool>()) {
            let all = ["ocr", "text", FX, "free"];
            let asked = |mask: usize| -> Vec<String> {
                all.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0).map(|(_, name)| (*name).to_owned()).collect()
            };
            let assessment = assessment(Some(if abroad { "DE" } else { "CN" }), Some("CN"));
            let book = price(CrossBorder::AskedOrAbroad);
            let (more, less) = (book.of(&assessment, &asked(mask)), book.of(&assessment, &asked(mask & !(1 << lost))));
            prop_assert!(less.unwrap().micro <= more.unwrap().micro);
        }
    }
}
