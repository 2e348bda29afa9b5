//! Requests of the past: what became of one, from what is kept in memory, and a decision from the record.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Unanswerable;
use super::findings::Facts;
use crate::config::cases::bands_in_words;
use crate::config::table::RoutingTable;
use crate::config::units::shown;
use crate::domain::clock;
use crate::domain::decision::DecisionSource;
use crate::domain::operation::Operation;
use crate::domain::outcome::End;
use crate::flight::trail::{AttemptNote, CacheNote};
use crate::gateway::snapshot::Snapshot;
use crate::layer::recent::{MOST_KEPT, Past, Recent};
use crate::store::query::Reader;
use crate::telemetry::labels::AttemptOutcome;

/// How the ids of decisions begin.
const DECISION: &str = "ra_";

/// What is known of a request of the past, for JSON and for people.
pub struct Told {
    /// Names with values.
    pub facts: Facts,
    /// The same in lines.
    pub text: String,
}

/// Looks a request or a decision up. Reads the disk for a decision.
///
/// # Errors
/// [`Unanswerable`] if nothing is known of it.
pub fn explain(snapshot: &Snapshot, recent: &Recent, id: &str) -> Result<Told, Unanswerable> {
    if id.starts_with(DECISION) {
        let reader = snapshot.clerk().and_then(|clerk| clerk.records().reader());
        let reader = reader.ok_or_else(|| Unanswerable::new("there is no record of decisions to look in"))?;
        return decision(snapshot.table(), reader, id);
    }
    let unknown = || {
        Unanswerable(format!(
            "nothing is kept of this request: only the last {MOST_KEPT} that failed, moved on, fell back or took long are; \
             the access log has a line of every request, and a decision is found by its own id, {DECISION}..."
        ))
    };
    recent.find(id).map(|past| request(snapshot, &past)).ok_or_else(unknown)
}

fn request(snapshot: &Snapshot, past: &Past) -> Told {
    let mut facts = Facts::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            facts.insert(name.to_owned(), json!(value));
        }
    };
    let ago = past.arrived.elapsed();
    let at = clock::unix_ms().saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
    add("request", Some(past.id.as_str().to_owned()));
    add("came", Some(clock::rfc3339(at)));
    add("asked", past.operation.map(|operation| Operation::label(operation).to_owned()));
    add("caller", past.caller.as_ref().map(ToString::to_string));
    add("route", past.route.as_ref().map(ToString::to_string));
    add("answered", Some(format!("{} ({}) after {}", past.status, past.outcome.label(), ms(past.duration))));
    add("of it ours", Some(ms(past.overhead)));
    add("error", past.error.map(str::to_owned));
    let broken = past.stream_end.filter(|end| *end != End::Complete);
    add("broke off", broken.map(|end| format!("after its beginning was sent: {}", end.label())));
    add("served by", past.served.as_ref().map(|served| served.upstream.to_string()));
    add("cache", (past.cache != CacheNote::Bypass).then(|| past.cache.label().to_owned()));
    add("decision", past.decision.map(|(action, source)| format!("{}, {}", action.as_str(), source_in_words(source))));
    let (then, now) = (past.config.to_string(), snapshot.table().version().to_string());
    let since = if then == now { "still in force".to_owned() } else { format!("since replaced by {now}") };
    add("config", Some(format!("{then}, {since}")));
    let attempts: Vec<String> = past.attempts.iter().map(|note| attempt(past, note)).collect();
    let dropped =
        past.dropped.iter().map(|names| format!("{}: on its way when nobody waited any more", names.upstream));
    let attempts: Vec<String> = attempts.into_iter().chain(dropped).collect();
    let text = text(&facts, ("attempts", &attempts, "none: nobody was asked"));
    facts.insert("attempts".to_owned(), json!(attempts));
    Told { facts, text }
}

fn attempt(past: &Past, note: &AttemptNote) -> String {
    let begun = note.since.saturating_duration_since(past.arrived);
    let how = match note.outcome {
        AttemptOutcome::Ok => "answered".to_owned(),
        AttemptOutcome::Failed(class) => format!("failed: {}", class.label()),
        AttemptOutcome::Outpaced => "dropped, another one was faster".to_owned(),
        AttemptOutcome::Abandoned => "given up, nobody waited any more".to_owned(),
    };
    format!("{}: begun {} after arrival, {how} after {}", note.upstream.upstream, ms(begun), ms(note.duration))
}

fn ms(duration: Duration) -> String {
    let micros = duration.as_micros();
    if micros < 10_000 {
        format!("{}.{:03} ms", micros / 1_000, micros % 1_000)
    } else {
        format!("{} ms", micros / 1_000)
    }
}

fn source_in_words(source: DecisionSource) -> String {
    match source {
        DecisionSource::Fallback(reason) => format!("fallback: {}", reason.text()),
        source => source.as_str().to_owned(),
    }
}

fn text(facts: &Facts, (name, lines, none): (&str, &[String], &str)) -> String {
    let one =
        |(name, value): (&String, &serde_json::Value)| format!("{name:<12} {}", value.as_str().unwrap_or_default());
    let head: Vec<String> = facts.iter().map(one).collect();
    let lines = if lines.is_empty() { none.to_owned() } else { lines.join("\n  ") };
    format!("{}\n\n{name}\n  {lines}\n", head.join("\n"))
}

/// A decision as it is on record, whoever's it is: operators serve all tenants.
fn decision(table: &RoutingTable, reader: &Arc<Reader>, id: &str) -> Result<Told, Unanswerable> {
    let unreadable = |_| Unanswerable::new("the record of decisions cannot be read");
    let mut tenants: Vec<&str> = table.callers().iter().map(|caller| caller.tenant.as_str()).collect();
    tenants.sort_unstable();
    tenants.dedup();
    for tenant in tenants {
        let Some(stored) = reader.decision(tenant, id).map_err(unreadable)? else { continue };
        let decision = stored.decision().map_err(unreadable)?;
        let mut facts = Facts::new();
        let mut add = |name: &str, value: String| facts.insert(name.to_owned(), json!(value));
        add("decision", id.to_owned());
        add("made", clock::rfc3339(decision.created_at_ms));
        add("tenant", tenant.to_owned());
        add("action", decision.action.as_str().to_owned());
        add("source", source_in_words(decision.source));
        if let Some(verdict) = &decision.verdict {
            let score = verdict.score.map_or_else(|| "no score".to_owned(), |score| format!("score {score}"));
            let word = verdict.recommendation.as_deref().map(crate::config::expr::told::discreet);
            let said = word.map_or_else(String::new, |word| format!(", said {word}"));
            let took = match verdict.provider.latency_ms {
                0 => "in less than 1 ms".to_owned(),
                ms => format!("after {ms} ms"),
            };
            add("verdict", format!("{} {took}: {score}{said}", verdict.provider.id));
            add("price", verdict.cost.map_or_else(|| "unknown".to_owned(), |cost| cost.to_string()));
            if !verdict.features_dropped.is_empty() {
                add("given up", verdict.features_dropped.join(", "));
            }
        }
        if let Some(reused) = &decision.reused {
            add("given again", format!("{:?} is {} old", reused.of, shown(Duration::from_millis(reused.age_ms))));
        }
        add("policy", format!("{} ({})", decision.applied.rule, bands_in_words(decision.applied.bands)));
        let (then, now) = (&*decision.applied.version, table.version().to_string());
        let since = if *then == *now { "still in force".to_owned() } else { format!("since replaced by {now}") };
        add("config", format!("{then}, {since}"));
        // Words of the provider's may be about a person; codes are not.
        let reasons: Vec<String> = decision.reasons.iter().map(|reason| reason.code.clone()).collect();
        let text = text(&facts, ("reasons", &reasons, "none"));
        facts.insert("reasons".to_owned(), json!(reasons));
        return Ok(Told { facts, text });
    }
    Err(Unanswerable::new("there is no such decision on record"))
}
