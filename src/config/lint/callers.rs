//! Callers: what they may use, what their budgets count, and whose key they have.

use super::route::defined_at;
use super::{Found, Rule, Subject};
use crate::config::builtin;
use crate::config::error::Code;
use crate::config::raw::callers::RawCaller;
use crate::config::report::{At, Mistake};
use crate::config::table::{Caller, Candidate, Unpriced};
use crate::domain::id::RouteId;

/// The digests of the two keys that stand in the comments of the example.
const DEMO_KEYS: [&str; 2] = [
    "sha256:88207c57eb9adfeaafac72db07bb11f632740eab18c10730930fda14f84bc7f4",
    "sha256:fd90ab1f01caa1b4276ea45ca4f2490371cdaa7f66b3fbcbf5d8215aef21daa8",
];

pub(super) fn look(subject: &Subject<'_>, found: &mut Found<'_>) {
    if subject.table.callers().is_empty() {
        let mistake =
            Mistake::new(At::new(0, 0..0), "caller", Code::Conflict, "there is no caller: nobody may ask anything");
        found.add(Rule::IdleCaller, "caller", mistake.hint("add a [[caller]]; weighbridge digest --new makes its key"));
    }
    // The example as it is shipped is for trying out; whatever was made of it is not.
    let is_the_example = subject.sources.routes.iter().any(|file| file.text == builtin::ROUTES);
    for raw in &subject.raw.callers {
        let Some(id) = &raw.id else { continue };
        let Some(caller) = subject.table.callers().iter().find(|caller| caller.id.as_str() == id.value) else {
            continue;
        };
        if let Some(allow) = raw.allow.as_ref().filter(|_| caller.allow.is_empty()) {
            let mistake = allow.mistake(Code::Conflict, "there is no route that this caller may use");
            found.add(Rule::IdleCaller, &id.value, mistake.hint("add a [model.NAME] section, or [risk]"));
        }
        let demo = raw.key_digest.as_ref().filter(|digest| DEMO_KEYS.contains(&&*digest.value.to_ascii_lowercase()));
        if let Some(digest) = demo.filter(|_| !is_the_example) {
            let mistake = digest.mistake(Code::Secret, "everybody can read the key of this digest in the example");
            found.add(Rule::DemoKey, &id.value, mistake.hint("make a key of your own: weighbridge digest --new"));
        }
        uncounted(raw, caller, subject, found);
    }
}

/// Routes with candidates whose price is not known in any currency of the caller's budgets.
fn uncounted(raw: &RawCaller, caller: &Caller, subject: &Subject<'_>, found: &mut Found<'_>) {
    let Some(budget) = raw.budgets.iter().flatten().next() else { return };
    let counted = |candidate: &Candidate| {
        let price = candidate.model.as_ref().and_then(|model| model.price);
        price.is_some_and(|price| caller.budgets.iter().any(|budget| budget.amount.currency == price.currency()))
    };
    let blind = |route: &&RouteId| {
        let llm = subject.table.llm_routes().get(*route);
        llm.is_some_and(|llm| !llm.everybody().all(counted))
    };
    let routes: Vec<&RouteId> = caller.allow.iter().filter(blind).collect();
    let Some(first) = routes.first().and_then(|route| subject.table.llm_routes().get(*route)) else { return };
    let Some(candidate) = first.everybody().find(|candidate| !counted(candidate)) else { return };
    let named = budget.amount.with(candidate.upstream.as_str().to_owned());
    let shown: Vec<&str> = routes.iter().take(10).map(|route| route.as_str()).collect();
    let (what, hint) = match caller.unpriced {
        Unpriced::Allow => ("are not counted", "give the models their prices, or write unpriced = \"refuse\""),
        Unpriced::Refuse => ("are refused", "give the models their prices, or take the routes out of its allow"),
    };
    let message = format!(
        "no price in the budget's currency is known for {}{} so calls {what} on: {}",
        candidate.upstream,
        match defined_at(&named, subject) {
            place if place.is_empty() => ",".to_owned(),
            place => place,
        },
        shown.join(", ")
    );
    let about = caller.id.as_str();
    found.add(Rule::UncountedBudget, about, budget.amount.mistake(Code::Conflict, message).hint(hint));
}
