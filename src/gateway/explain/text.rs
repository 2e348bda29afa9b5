//! An explanation for a terminal: what was asked, where it goes, who is asked and who is not.

use std::fmt;

use super::findings::{Candidate, Explanation, Facts, Payment, Policy};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = &self.asked;
        let model = asked.model.as_ref().map(|model| format!(" of model {model}")).unwrap_or_default();
        let chosen = if asked.chosen { ", the first who may" } else { "" };
        let (operation, caller, tenant) = (asked.operation, &asked.caller, &asked.tenant);
        writeln!(f, "{operation}{model} by {caller} (tenant {tenant}{chosen}), {} bytes", asked.bytes)?;
        let seen =
            if self.live { "in force now" } else { "from files: what is down, full or cached is not known here" };
        writeln!(f, "config {}, {seen}", self.config)?;
        match &self.route {
            Some(route) => writeln!(f, "\nroute {route}\n  {}", self.because)?,
            None => writeln!(f, "\nno route\n  {}", self.because)?,
        }
        if !self.rules.is_empty() {
            writeln!(f, "\nrules")?;
            self.rules.iter().try_for_each(|one| policy(one, f))?;
        }
        if let Some(payment) = &self.payment {
            decided(payment, f)?;
        }
        if let Some(error) = self.error {
            writeln!(f, "\nthe caller gets an error: {error}")?;
        }
        if !self.candidates.is_empty() {
            writeln!(f, "\ncandidates")?;
            self.candidates.iter().try_for_each(|one| candidate(one, f))?;
        }
        section("timers", &self.timers, f)?;
        section("cache", &self.cache, f)?;
        if let Some(payment) = &self.payment {
            rest(payment, f)?;
        }
        section("limits of the caller", &self.caller, f)?;
        self.notes.iter().try_for_each(|note| writeln!(f, "\nnote: {note}"))
    }
}

fn section(name: &str, facts: &Facts, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if facts.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{name}")?;
    let width = facts.keys().map(String::len).max().unwrap_or(0);
    facts.iter().try_for_each(|(name, value)| writeln!(f, "  {name:<width$}  {}", value.as_str().unwrap_or_default()))
}

fn lines(name: &str, lines: &[String], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{name}")?;
    lines.iter().try_for_each(|line| writeln!(f, "  {line}"))
}

fn candidate(one: &Candidate, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let turn = one.turn.map_or_else(|| "-".to_owned(), |turn| format!("{turn}."));
    write!(f, "  {turn:<3} {:<30} {}", one.upstream, one.because)?;
    if let Some(sent_as) = one.sent_as {
        write!(f, "; sent as {sent_as}")?;
    }
    if let Some(price) = &one.price {
        write!(f, "; {price}")?;
    }
    writeln!(f)?;
    let Some(state) = &one.state else { return Ok(()) };
    let paused =
        if state.paused_for_ms > 0 { format!(", paused for {} ms", state.paused_for_ms) } else { String::new() };
    let (breaker, standing) = (state.breaker, state.standing);
    writeln!(f, "      breaker {breaker}, {standing}, {} of {} in flight{paused}", state.in_flight, state.limit)
}

fn decided(payment: &Payment, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "\naction {}", payment.action.unwrap_or("not known"))?;
    payment.decided.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
    writeln!(f, "\npolicy {}\n  {}", payment.policy, payment.bands)?;
    payment.policies.iter().try_for_each(|one| policy(one, f))
}

fn policy(one: &Policy, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "  \"{}\" {}: {}", one.name, one.outcome, one.when)?;
    for term in &one.terms {
        let holds = match term.holds {
            Some(true) => "yes",
            Some(false) => "no ",
            None => "?  ",
        };
        writeln!(f, "      {holds} {}  ({})", term.text, term.reads)?;
    }
    Ok(())
}

fn rest(payment: &Payment, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let lists = payment.lists.iter().map(|list| {
        let on = if list.on_it { "on it" } else { "not on it" };
        format!("{} ({} by {}): {on}", list.name, list.kind, list.by)
    });
    lines("lists", &lists.collect::<Vec<_>>(), f)?;
    lines("counters", &payment.velocity, f)?;
    let without = payment.without_verdict.iter();
    let without = without.map(|one| format!("{:<16} {}: {}", one.cause, one.mode, one.gives));
    lines("without a verdict", &without.collect::<Vec<_>>(), f)?;
    lines("budgets", &payment.budgets, f)?;
    lines("features given up, in this order", &payment.ladder, f)?;
    let guards = payment.guards.iter().map(|guard| {
        let holds = match guard.holds {
            Some(true) => "holds",
            Some(false) => "forbids it",
            None => "depends on the earlier decision",
        };
        format!("{:<16} {holds}", guard.guard)
    });
    lines("earlier decisions given again", &payment.reuse.iter().cloned().chain(guards).collect::<Vec<_>>(), f)
}
