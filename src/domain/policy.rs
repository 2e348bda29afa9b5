//! From a score and a recommendation to an action. Pure, exact, and unable to turn "unknown" into a pass.

use std::sync::Arc;

use super::decision::{Action, FallbackReason, Reason, Score};
use super::money::Money;

pub use super::decision::{Applied, Bands, DEFAULT_RULE};

/// What the provider's own recommendation may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VendorAction {
    /// It can make the action more severe, never less.
    Floor,
    /// It is recorded and ignored.
    Advisory,
}

/// What to answer when no verdict could be had. There is no bare "accept".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnExhausted {
    /// A person decides.
    Review,
    /// Stop the payment.
    Reject,
    /// 503, and the caller decides.
    Error,
    /// Our own lists decide: whoever is on an allow list passes, everybody else is reviewed.
    LocalRules,
    /// PASS for amounts up to this one in the same currency, REVIEW otherwise; never after an answer that was not authentic.
    AcceptUpTo(Money),
}

/// What to answer without a verdict, by what went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FailureModes {
    /// The provider was late.
    pub deadline: OnExhausted,
    /// Nobody could be reached.
    pub unavailable: OnExhausted,
    /// An answer came that could not be trusted.
    pub not_authentic: OnExhausted,
    /// An answer came without a usable verdict.
    pub no_verdict: OnExhausted,
    /// The merchant's money for decisions is spent.
    pub budget: OnExhausted,
    /// Everything else, a bug of ours among it.
    pub otherwise: OnExhausted,
}

impl FailureModes {
    /// The same whatever went wrong.
    pub fn all(mode: OnExhausted) -> Self {
        Self { deadline: mode, unavailable: mode, not_authentic: mode, no_verdict: mode, budget: mode, otherwise: mode }
    }

    /// The mode for what went wrong.
    pub fn of(&self, reason: FallbackReason) -> OnExhausted {
        match reason {
            FallbackReason::Deadline => self.deadline,
            FallbackReason::Unavailable => self.unavailable,
            FallbackReason::NotAuthentic => self.not_authentic,
            FallbackReason::NoVerdict => self.no_verdict,
            FallbackReason::Budget => self.budget,
            FallbackReason::OurFault => self.otherwise,
        }
    }
}

/// What a list does to whoever is on it. In order: where two lists disagree, the later one wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ListKind {
    /// PASS, whatever the score and the provider's word.
    Allow,
    /// At least REVIEW.
    Review,
    /// REJECT.
    Block,
}

impl ListKind {
    /// The word in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Review => "review",
            Self::Block => "block",
        }
    }

    /// The mildest action it leaves.
    fn floor(self) -> Action {
        match self {
            Self::Allow => Action::Pass,
            Self::Review => Action::Review,
            Self::Block => Action::Reject,
        }
    }
}

/// A list that somebody of this payment attempt is on. Never who.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The list's name in the configuration.
    pub list: Arc<str>,
    /// What it does.
    pub kind: ListKind,
}

/// What decides one payment attempt: the policy that matched it, or the route's own settings, and the lists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ruling {
    /// What the answer says of it.
    pub applied: Applied,
    /// What the provider's recommendation may do.
    pub vendor_action: VendorAction,
    /// What to answer when no verdict could be had.
    pub on_exhausted: FailureModes,
    /// The mildest action the policy allows.
    pub at_least: Option<Action>,
    /// The strongest list that somebody of this attempt is on.
    pub listed: Option<Listed>,
    /// A policy whose condition could not be evaluated: a person decides, whatever else matched.
    pub unclear: Option<Arc<str>>,
}

impl Ruling {
    /// A ruling that is nothing but bands, the provider's word and failure modes.
    pub fn plain(applied: Applied, vendor_action: VendorAction, on_exhausted: FailureModes) -> Self {
        Self { applied, vendor_action, on_exhausted, at_least: None, listed: None, unclear: None }
    }

    /// The mildest action anything but a verdict leaves.
    fn floor(&self) -> Action {
        let listed = self.listed.as_ref().map(|listed| listed.kind.floor());
        let unclear = self.unclear.as_ref().map(|_| Action::Review);
        [self.at_least, listed, unclear].into_iter().flatten().max().unwrap_or(Action::Pass)
    }

    fn is_allowed(&self) -> bool {
        self.listed.as_ref().is_some_and(|listed| listed.kind == ListKind::Allow)
    }

    /// The action when no verdict could be had; `None` where that is an error.
    ///
    /// Only a provider that was late or away excuses a PASS. Whoever can forge, spoil or provoke an answer must not be
    /// able to make a payment pass, and neither must a bug of ours.
    pub fn without_verdict(&self, reason: FallbackReason, amount: Money) -> Option<Action> {
        let excused = matches!(reason, FallbackReason::Deadline | FallbackReason::Unavailable);
        let pass_if = |passes: bool| if excused && passes { Action::Pass } else { Action::Review };
        let action = match self.on_exhausted.of(reason) {
            OnExhausted::Review => Action::Review,
            OnExhausted::Reject => Action::Reject,
            // What is rejected whatever a provider says needs nobody to decide.
            OnExhausted::Error => return (self.floor() == Action::Reject).then_some(Action::Reject),
            OnExhausted::LocalRules => pass_if(self.is_allowed()),
            OnExhausted::AcceptUpTo(most) => {
                pass_if(amount.currency() == most.currency() && amount.minor() <= most.minor())
            }
        };
        Some(action.max(self.floor()))
    }

    /// What the lists and the policy have to say about an action, by name and without a value.
    pub fn reasons(&self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut add = |code: &str, text: String| reasons.push(Reason { code: code.to_owned(), text });
        if let Some(Listed { list, kind }) = &self.listed {
            let (code, effect) = match kind {
                ListKind::Allow => ("allow_list", "which lets it pass if a provider gave a score"),
                ListKind::Review => ("review_list", "which asks for a review at least"),
                ListKind::Block => ("block_list", "which rejects it"),
            };
            add(code, format!("on the list \"{list}\", {effect}"));
        }
        if let Some(action) = self.at_least {
            add("policy", format!("the policy \"{}\" asks for {} at least", self.applied.rule, action.as_str()));
        }
        if let Some(policy) = &self.unclear {
            add("policy_unclear", format!("the condition of policy \"{policy}\" could not be evaluated"));
        }
        reasons
    }
}

/// The action for an authentic verdict, or `None` if it holds nothing to decide on.
///
/// A missing score cannot pass on the recommendation's word alone under [`VendorAction::Advisory`]; under
/// [`VendorAction::Floor`] a recommendation without a score is a verdict, except that PASS without a score is a REVIEW:
/// nothing was measured. An allow list passes what was measured and nothing else; the ruling's other floors hold always.
pub fn decide(ruling: &Ruling, score: Option<Score>, recommendation: Option<&str>) -> Option<Action> {
    let vendor = match ruling.vendor_action {
        VendorAction::Floor => recommendation.map(Action::of_recommendation),
        VendorAction::Advisory => None,
    };
    let judged = match (score, vendor) {
        (Some(_), _) if ruling.is_allowed() => Action::Pass,
        (Some(score), vendor) => ruling.applied.bands.action(score).max(vendor.unwrap_or(Action::Pass)),
        (None, Some(vendor)) if vendor > Action::Pass => vendor,
        (None, Some(_)) => Action::Review,
        (None, None) => return None,
    };
    Some(judged.max(ruling.floor()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::currency::Currency;

    fn score(text: &str) -> Score {
        Score::parse(text).unwrap()
    }

    fn bands() -> Bands {
        Bands::new(score("0.3"), score("0.7"), Some(score("0.9"))).unwrap()
    }

    #[test]
    fn a_score_equal_to_a_threshold_belongs_to_the_band_above() {
        let action = |text| bands().action(score(text));
        assert_eq!(action("0"), Action::Pass);
        assert_eq!(action("0.299999"), Action::Pass);
        assert_eq!(action("0.3"), Action::Challenge);
        assert_eq!(action("0.7"), Action::Review);
        assert_eq!(action("0.9"), Action::Reject);
        assert_eq!(action("1"), Action::Reject);
    }

    #[test]
    fn without_a_reject_threshold_nothing_is_rejected_by_score() {
        let bands = Bands::new(score("0.3"), score("0.7"), None).unwrap();
        assert_eq!(bands.action(Score::ONE), Action::Review);
    }

    fn money(text: &str, code: &str) -> Money {
        Money::parse(text, Currency::parse(code).unwrap()).unwrap()
    }

    fn ruling(vendor: VendorAction) -> Ruling {
        let applied = Applied { bands: bands(), ..Applied::sample() };
        Ruling::plain(applied, vendor, FailureModes::all(OnExhausted::Review))
    }

    fn on(kind: ListKind) -> Ruling {
        let listed = Some(Listed { list: "a".into(), kind });
        Ruling { listed, ..ruling(VendorAction::Floor) }
    }

    fn failing(mode: OnExhausted) -> Ruling {
        Ruling { on_exhausted: FailureModes::all(mode), ..ruling(VendorAction::Floor) }
    }

    #[test]
    fn the_recommendation_is_a_floor_unless_advisory() {
        let decide = |vendor, word| decide(&ruling(vendor), Some(score("0.42")), word);
        assert_eq!(decide(VendorAction::Floor, Some("REVIEW")), Some(Action::Review));
        assert_eq!(decide(VendorAction::Floor, Some("PASS")), Some(Action::Challenge));
        assert_eq!(decide(VendorAction::Floor, Some("shrug")), Some(Action::Review));
        assert_eq!(decide(VendorAction::Advisory, Some("REJECT")), Some(Action::Challenge));
    }

    #[test]
    fn c8_no_score_is_never_a_pass() {
        let (floor, advisory) = (ruling(VendorAction::Floor), ruling(VendorAction::Advisory));
        assert_eq!(decide(&floor, None, Some("PASS")), Some(Action::Review));
        assert_eq!(decide(&floor, None, Some("REJECT")), Some(Action::Reject));
        assert_eq!(decide(&floor, None, None), None);
        assert_eq!(decide(&advisory, None, Some("PASS")), None);
        assert_eq!(decide(&on(ListKind::Allow), None, Some("PASS")), Some(Action::Review));
        assert_eq!(decide(&on(ListKind::Block), None, None), None, "that is for the failure mode to say");
    }

    #[test]
    fn lists_pass_review_or_reject_whatever_was_measured() {
        for (text, word) in [("0.01", "PASS"), ("0.95", "REJECT"), ("0.5", "CHALLENGE")] {
            let action = |kind| decide(&on(kind), Some(score(text)), Some(word)).unwrap();
            assert_eq!((action(ListKind::Allow), action(ListKind::Block)), (Action::Pass, Action::Reject));
            assert!(action(ListKind::Review) >= Action::Review);
        }
    }

    #[test]
    fn an_allow_list_does_not_undo_what_the_policy_demands() {
        let ruling = Ruling { at_least: Some(Action::Review), ..on(ListKind::Allow) };
        assert_eq!(decide(&ruling, Some(score("0.01")), Some("PASS")), Some(Action::Review));
        let unclear = Ruling { unclear: Some("b".into()), ..on(ListKind::Allow) };
        assert_eq!(decide(&unclear, Some(score("0.01")), Some("PASS")), Some(Action::Review));
    }

    #[test]
    fn c7_an_answer_that_cannot_be_trusted_is_never_accepted() {
        let ruling = failing(OnExhausted::AcceptUpTo(money("50.00", "CNY")));
        let action = |reason, text, code| ruling.without_verdict(reason, money(text, code));
        assert_eq!(action(FallbackReason::Deadline, "50.00", "CNY"), Some(Action::Pass));
        assert_eq!(action(FallbackReason::Deadline, "50.01", "CNY"), Some(Action::Review));
        assert_eq!(action(FallbackReason::Unavailable, "1.00", "USD"), Some(Action::Review));
        use FallbackReason::{Budget, NoVerdict, NotAuthentic, OurFault};
        for reason in [NotAuthentic, NoVerdict, Budget, OurFault] {
            assert_eq!(action(reason, "1.00", "CNY"), Some(Action::Review));
        }
    }

    #[test]
    fn each_cause_has_its_mode() {
        let modes = FailureModes {
            deadline: OnExhausted::AcceptUpTo(money("50.00", "CNY")),
            unavailable: OnExhausted::Error,
            not_authentic: OnExhausted::Reject,
            no_verdict: OnExhausted::LocalRules,
            budget: OnExhausted::Reject,
            otherwise: OnExhausted::Review,
        };
        let ruling = Ruling { on_exhausted: modes, ..ruling(VendorAction::Floor) };
        let actions = FallbackReason::ALL.map(|reason| ruling.without_verdict(reason, money("1.00", "CNY")));
        let [pass, review, reject] = [Action::Pass, Action::Review, Action::Reject].map(Some);
        let expected = [pass, None, reject, review, reject, review];
        assert_eq!(actions, expected);
    }

    #[test]
    fn under_local_rules_an_allow_list_passes_only_what_a_provider_did_not_answer() {
        let modes = FailureModes::all(OnExhausted::LocalRules);
        let action = |kind, reason| {
            Ruling { on_exhausted: modes, ..on(kind) }.without_verdict(reason, money("1.00", "CNY")).unwrap()
        };
        for reason in FallbackReason::ALL {
            let excused = matches!(reason, FallbackReason::Deadline | FallbackReason::Unavailable);
            assert_eq!(action(ListKind::Allow, reason) == Action::Pass, excused, "{reason:?}");
            assert_eq!(action(ListKind::Review, reason), Action::Review);
            assert_eq!(action(ListKind::Block, reason), Action::Reject);
        }
    }

    #[test]
    fn only_what_says_accept_or_allow_can_ever_pass_without_a_verdict() {
        for reason in FallbackReason::ALL {
            for mode in [OnExhausted::Review, OnExhausted::Reject, OnExhausted::Error, OnExhausted::LocalRules] {
                assert_ne!(failing(mode).without_verdict(reason, money("0.01", "CNY")), Some(Action::Pass));
            }
            for mode in [OnExhausted::Review, OnExhausted::Reject, OnExhausted::Error] {
                let allowed = Ruling { on_exhausted: FailureModes::all(mode), ..on(ListKind::Allow) };
                assert_ne!(allowed.without_verdict(reason, money("0.01", "CNY")), Some(Action::Pass));
            }
        }
    }

    #[test]
    fn whoever_is_blocked_is_rejected_although_the_route_wants_an_error() {
        let ruling = |kind| Ruling { on_exhausted: FailureModes::all(OnExhausted::Error), ..on(kind) };
        let action = |kind| ruling(kind).without_verdict(FallbackReason::Deadline, money("1.00", "CNY"));
        assert_eq!(action(ListKind::Block), Some(Action::Reject));
        assert_eq!((action(ListKind::Review), action(ListKind::Allow)), (None, None));
    }

    #[test]
    fn reasons_name_the_list_and_the_policy() {
        let listed = Some(Listed { list: "stolen cards".into(), kind: ListKind::Block });
        let ruling =
            Ruling { listed, at_least: Some(Action::Review), unclear: Some("c".into()), ..on(ListKind::Allow) };
        let codes: Vec<String> = ruling.reasons().into_iter().map(|reason| reason.code).collect();
        assert_eq!(codes, ["block_list", "policy", "policy_unclear"]);
        assert!(ruling.reasons()[0].text.contains("\"stolen cards\""));
        assert!(super::Ruling { listed: None, at_least: None, unclear: None, ..ruling }.reasons().is_empty());
    }

    #[test]
    fn crossing_thresholds_are_no_bands() {
        assert_eq!(Bands::new(score("0.7"), score("0.3"), None), None);
        assert_eq!(Bands::new(score("0.3"), score("0.7"), Some(score("0.5"))), None);
    }

    fn actions() -> impl Strategy<Value = Action> {
        prop::sample::select(vec![Action::Pass, Action::Challenge, Action::Review, Action::Reject])
    }

    fn words() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["PASS", "CHALLENGE", "REVIEW", "REJECT", "shrug", ""])
    }

    fn kind_of(ruling: &Ruling) -> ListKind {
        ruling.listed.as_ref().map_or(ListKind::Allow, |listed| listed.kind)
    }

    fn rulings() -> impl Strategy<Value = Ruling> {
        let kinds = prop::sample::select(vec![ListKind::Allow, ListKind::Review, ListKind::Block]);
        let accept = OnExhausted::AcceptUpTo(money("50.00", "CNY"));
        let modes = vec![OnExhausted::Review, OnExhausted::Reject, OnExhausted::Error, OnExhausted::LocalRules, accept];
        let vendors = prop::sample::select(vec![VendorAction::Floor, VendorAction::Advisory]);
        let all = (vendors, prop::sample::select(modes), prop::option::of(kinds), prop::option::of(actions()));
        all.prop_map(|(vendor_action, mode, kind, at_least)| Ruling {
            vendor_action,
            at_least,
            on_exhausted: FailureModes::all(mode),
            listed: kind.map(|kind| Listed { list: "a".into(), kind }),
            ..ruling(VendorAction::Floor)
        })
    }

    proptest! {
        #[test]
        fn a_higher_score_is_never_treated_more_mildly(a in 0u32..=1_000_000, b in 0u32..=1_000_000) {
            let (low, high) = (Score::from_micro(a.min(b)).unwrap(), Score::from_micro(a.max(b)).unwrap());
            prop_assert!(bands().action(low) <= bands().action(high));
        }

        #[test]
        fn a_floor_never_makes_an_action_milder(
            plain in rulings(),
            micro in prop::option::of(0u32..=1_000_000),
            word in prop::option::of(words()),
            floor in actions(),
            reason in prop::sample::select(FallbackReason::ALL.to_vec()),
        ) {
            let score = micro.and_then(Score::from_micro);
            let amount = money("1.00", "CNY");
            let both = |ruling: &Ruling| (decide(ruling, score, word), ruling.without_verdict(reason, amount));
            let (live, fallback) = both(&plain);
            let policy = Ruling { at_least: plain.at_least.max(Some(floor)), ..plain.clone() };
            let kinds = [ListKind::Review, ListKind::Block];
            let lists = kinds.map(|kind| Ruling {
                listed: Some(Listed { list: "a".into(), kind: kind.max(kind_of(&plain)) }),
                ..plain.clone()
            });
            let unclear = Ruling { unclear: Some("b".into()), ..plain.clone() };
            for stricter in lists.into_iter().chain([policy, unclear]) {
                let (live_then, fallback_then) = both(&stricter);
                prop_assert_eq!(live.is_none(), live_then.is_none());
                prop_assert!(live <= live_then, "{:?} {:?}", plain, stricter);
                prop_assert!(fallback <= fallback_then, "{:?} {:?}", plain, stricter);
            }
        }

        #[test]
        fn a_providers_word_never_makes_an_action_milder(
            plain in rulings(),
            micro in 0u32..=1_000_000,
            word in words(),
        ) {
            let score = Score::from_micro(micro);
            prop_assert!(decide(&plain, score, None) <= decide(&plain, score, Some(word)));
            let silent = decide(&plain, None, None);
            prop_assert!(silent.is_none() && decide(&plain, None, Some(word)) != Some(Action::Pass));
        }
    }
}
