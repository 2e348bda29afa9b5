//! What the log says too, at the keys it is about.

use super::{Found, Rule, Subject};
use crate::config::error::Code;
use crate::config::raw::policy::RawPolicy;
use crate::config::remarks::{Remark, of_table};
use crate::config::report::Field;

pub(super) fn look(subject: &Subject<'_>, found: &mut Found<'_>) {
    for Remark { rule, about, text } in of_table(subject.table) {
        let Some((at, hint)) = place_of(rule, &about, subject) else { continue };
        found.add(rule, &about, at.mistake(Code::Conflict, text).hint(hint));
    }
}

fn place_of(rule: Rule, about: &str, subject: &Subject<'_>) -> Option<(Field<()>, &'static str)> {
    let risk = subject.raw.risk.as_ref();
    let policy = || {
        let named = |policy: &&RawPolicy| policy.name.as_ref().is_some_and(|name| name.value == about);
        risk?.policies.iter().find(named)
    };
    match rule {
        Rule::UnreachablePolicy => Some((policy()?.name.as_ref()?.with(()), "remove it, or move it up")),
        Rule::IdleLocalRules => {
            let own = policy().and_then(|policy| policy.on_exhausted.as_ref());
            let at = own.or(risk?.on_exhausted.as_ref())?;
            Some((at.with(()), "add a [[risk.list]] with kind = \"allow\", or write \"review\""))
        }
        Rule::BudgetForNobody => {
            let tenants = risk?.spending.budgets.iter().filter_map(|budget| budget.tenant.as_ref());
            let at = tenants.into_iter().find(|tenant| tenant.value == about)?;
            Some((at.with(()), "name the tenant of some [[caller]], or remove it"))
        }
        Rule::IdleRung => {
            let at = risk?.spending.ladder.as_ref()?.value.iter().find(|rung| rung.value == about)?;
            Some((at.with(()), "remove it, or give it a price in the provider's file"))
        }
        Rule::UnreachableRule => {
            let routes = subject.table.llm_routes().iter();
            let mut named = routes.flat_map(|(id, route)| {
                let rules = route.rules.iter().enumerate();
                rules.map(move |(number, rule)| (id, number, format!("{id}.{}", rule.name)))
            });
            let (id, number, _) = named.find(|(_, _, name)| name == about)?;
            let route = subject.raw.models.iter().find(|route| route.name.value == id.as_str())?;
            Some((route.rules.get(number)?.at.with(()), "remove it, or move it up"))
        }
        Rule::UnknownPriceLast => {
            let route = subject.raw.models.iter().find(|route| route.name.value == about)?;
            Some((route.order.as_ref()?.with(()), "give the model its price in the provider's file"))
        }
        _ => None,
    }
}
