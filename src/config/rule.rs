//! The codes of warnings. A code is never given to another warning, also when its own is gone.

/// A kind of warning.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// A key by its former name.
    RenamedKey,
    /// A policy behind one that takes everything it could.
    UnreachablePolicy,
    /// `local_rules` where no list allows anybody.
    IdleLocalRules,
    /// A budget for a tenant without callers.
    BudgetForNobody,
    /// A feature on the ladder that nobody charges for.
    IdleRung,
    /// The cheapest first, and a price is not known.
    UnknownPriceLast,
    /// One candidate, and nobody behind it.
    OneCandidate,
    /// Several candidates, one place.
    OnePlace,
    /// Phases that are longer than the whole.
    PhasesTooLong,
    /// A budget that cannot count some calls.
    UncountedBudget,
    /// Answers that were drawn, and are given again.
    CachedDraw,
    /// A caller without a route, or no caller at all.
    IdleCaller,
    /// A route without a caller.
    IdleRoute,
    /// A list without values.
    EmptyList,
    /// A counter that decides nothing.
    IdleCounter,
    /// A provider file that no route leads to.
    IdleProvider,
    /// A candidate that the attempts end before.
    CandidateOutOfReach,
    /// A key that everybody can read in the example.
    DemoKey,
    /// A provider at the address where this proxy listens.
    Loop,
    /// A warning is allowed that is not there.
    IdleAllowance,
    /// A route's rule behind one that takes every call it could.
    UnreachableRule,
}

impl Rule {
    /// Every one, in the order of the codes.
    pub const ALL: [Self; 21] = [
        Self::RenamedKey,
        Self::UnreachablePolicy,
        Self::IdleLocalRules,
        Self::BudgetForNobody,
        Self::IdleRung,
        Self::UnknownPriceLast,
        Self::OneCandidate,
        Self::OnePlace,
        Self::PhasesTooLong,
        Self::UncountedBudget,
        Self::CachedDraw,
        Self::IdleCaller,
        Self::IdleRoute,
        Self::EmptyList,
        Self::IdleCounter,
        Self::IdleProvider,
        Self::CandidateOutOfReach,
        Self::DemoKey,
        Self::Loop,
        Self::IdleAllowance,
        Self::UnreachableRule,
    ];

    /// The code: `W007`.
    pub fn code(self) -> &'static str {
        match self {
            Self::RenamedKey => "W001",
            Self::UnreachablePolicy => "W002",
            Self::IdleLocalRules => "W003",
            Self::BudgetForNobody => "W004",
            Self::IdleRung => "W005",
            Self::UnknownPriceLast => "W006",
            Self::OneCandidate => "W007",
            Self::OnePlace => "W008",
            Self::PhasesTooLong => "W009",
            Self::UncountedBudget => "W010",
            Self::CachedDraw => "W011",
            Self::IdleCaller => "W012",
            Self::IdleRoute => "W013",
            Self::EmptyList => "W014",
            Self::IdleCounter => "W015",
            Self::IdleProvider => "W016",
            Self::CandidateOutOfReach => "W017",
            Self::DemoKey => "W018",
            Self::Loop => "W019",
            Self::IdleAllowance => "W020",
            Self::UnreachableRule => "W021",
        }
    }
}
