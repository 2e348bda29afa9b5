//! Every metric: name, kind, unit, labels and help. The only file that contains metric names.
//!
//! Names are part of the contract (API.md, section 4) and label values come from configuration or from the closed sets
//! of [`super::labels`], never from a request. The `gen_ai_*` rows follow OpenTelemetry's names and buckets
//! (<https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>, as known on 2026-11-22), spelt the way
//! Prometheus spells them.

/// What a metric can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations by size.
    Histogram(&'static Buckets),
}

/// What one step of a metric means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Plain numbers.
    Count,
    /// Seconds, as Prometheus wants them; kept as nanoseconds.
    Seconds,
    /// Millionths of a currency's major unit.
    MicroUnits,
    /// A share of one; kept as millionths.
    Ratio,
    /// Model tokens.
    Tokens,
    /// Bytes.
    Bytes,
}

/// Upper bounds of a histogram, inclusive, in the integer unit it is observed in.
#[derive(PartialEq, Eq, Debug)]
pub struct Buckets {
    /// Ascending bounds; one more bucket above the last is implied.
    pub bounds: &'static [u64],
    /// How many observed units make one exported unit: 10^9 for nanoseconds shown as seconds.
    pub scale: u32,
}

/// One metric.
#[derive(PartialEq, Eq, Debug)]
pub struct Row {
    /// The stable name.
    pub name: &'static str,
    /// What it can do.
    pub kind: Kind,
    /// What one step means.
    pub unit: Unit,
    /// Label names, in the order their values are given.
    pub labels: &'static [&'static str],
    /// One sentence for people.
    pub help: &'static str,
}

const NANOS: u32 = 1_000_000_000;
const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;

/// Whole calls: a risk answer in 50 ms, an LLM answer in minutes.
static CALL_SECONDS: Buckets = Buckets {
    bounds: &[
        5 * MS,
        10 * MS,
        25 * MS,
        50 * MS,
        100 * MS,
        200 * MS,
        400 * MS,
        600 * MS,
        800 * MS,
        S,
        2 * S,
        5 * S,
        10 * S,
        30 * S,
        60 * S,
        120 * S,
        300 * S,
        600 * S,
    ],
    scale: NANOS,
};

/// What we add ourselves.
static OVERHEAD_SECONDS: Buckets = Buckets {
    bounds: &[
        50 * US,
        100 * US,
        150 * US,
        200 * US,
        300 * US,
        500 * US,
        750 * US,
        MS,
        2 * MS,
        5 * MS,
        10 * MS,
        25 * MS,
        50 * MS,
        100 * MS,
    ],
    scale: NANOS,
};

/// A commit: one or two writes that the disk must confirm.
static COMMIT_SECONDS: Buckets = Buckets {
    bounds: &[
        250 * US,
        500 * US,
        MS,
        2 * MS,
        5 * MS,
        10 * MS,
        20 * MS,
        40 * MS,
        60 * MS,
        100 * MS,
        250 * MS,
        500 * MS,
        S,
        5 * S,
    ],
    scale: NANOS,
};

/// Twenty equal steps from 0 to 1; a score is kept as millionths.
static SCORES: Buckets = Buckets {
    bounds: &[
        50_000, 100_000, 150_000, 200_000, 250_000, 300_000, 350_000, 400_000, 450_000, 500_000, 550_000, 600_000,
        650_000, 700_000, 750_000, 800_000, 850_000, 900_000, 950_000, 1_000_000,
    ],
    scale: 1_000_000,
};

static GENAI_TOKENS: Buckets = Buckets {
    bounds: &[1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216, 67_108_864],
    scale: 1,
};

static GENAI_DURATION: Buckets = Buckets {
    bounds: &[
        10 * MS,
        20 * MS,
        40 * MS,
        80 * MS,
        160 * MS,
        320 * MS,
        640 * MS,
        1_280 * MS,
        2_560 * MS,
        5_120 * MS,
        10_240 * MS,
        20_480 * MS,
        40_960 * MS,
        81_920 * MS,
    ],
    scale: NANOS,
};

static GENAI_FIRST_TOKEN: Buckets = Buckets {
    bounds: &[
        MS,
        5 * MS,
        10 * MS,
        20 * MS,
        40 * MS,
        60 * MS,
        80 * MS,
        100 * MS,
        250 * MS,
        500 * MS,
        750 * MS,
        S,
        2_500 * MS,
        5 * S,
        7_500 * MS,
        10 * S,
    ],
    scale: NANOS,
};

macro_rules! catalog {
    ($($id:ident: $kind:expr, $unit:ident, $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Row =
                Row { name: $name, kind: $kind, unit: Unit::$unit, labels: &[$($label),*], help: $help };
        )*

        /// Every metric there is.
        pub static TABLE: &[&Row] = &[$(&$id),*];
    };
}

use Kind::{Counter, Gauge, Histogram};

catalog! {
    REQUESTS: Counter, Count, "weighbridge_requests_total" ["route", "outcome"]
        "Calls that ended, by how they ended for the caller.";
    REQUEST_DURATION: Histogram(&CALL_SECONDS), Seconds, "weighbridge_request_duration_seconds" ["route"]
        "From the first byte of a request to the last byte of its answer.";
    OVERHEAD: Histogram(&OVERHEAD_SECONDS), Seconds, "weighbridge_overhead_seconds" ["route"]
        "Time a call spent in this process, queueing included and upstream time excluded.";
    IN_FLIGHT: Gauge, Count, "weighbridge_in_flight" ["route"]
        "Calls whose answer has not ended.";
    UPSTREAM_ATTEMPTS: Counter, Count, "weighbridge_upstream_attempts_total" ["provider", "model", "outcome", "reason"]
        "Attempts at a provider, by outcome and failure class.";
    UPSTREAM_DURATION: Histogram(&CALL_SECONDS), Seconds, "weighbridge_upstream_duration_seconds" ["provider", "model"]
        "From sending an attempt to the end of its answer.";
    FIRST_CONTENT: Histogram(&CALL_SECONDS), Seconds, "weighbridge_first_content_seconds" ["provider", "model"]
        "From sending an attempt to its first content.";
    FAILOVERS: Counter, Count, "weighbridge_failovers_total" ["from", "to", "reason"]
        "Moves of a call from one upstream to another, by what the first one did.";
    HEDGES: Counter, Count, "weighbridge_hedges_total" ["route", "outcome"]
        "Second attempts beside a slow first one, by what became of them.";
    SHADOW_ATTEMPTS: Counter, Count, "weighbridge_shadow_attempts_total" ["provider", "model", "outcome", "reason"]
        "Copies of calls for a candidate on trial, by outcome and failure class or by why there was none.";
    SHADOW_FIRST_CONTENT: Histogram(&CALL_SECONDS), Seconds, "weighbridge_shadow_first_content_seconds" ["provider", "model"]
        "From sending a copy to a candidate on trial to its first content.";
    BREAKER_STATE: Gauge, Count, "weighbridge_breaker_state" ["provider", "model"]
        "0 closed, 1 half-open, 2 open.";
    RETRY_BUDGET_EXHAUSTED: Counter, Count, "weighbridge_retry_budget_exhausted_total" ["provider"]
        "Retries at the same provider that its budget refused.";
    STREAM_OUTCOMES: Counter, Count, "weighbridge_stream_outcomes_total" ["route", "outcome"]
        "Streamed answers, by how their body ended.";
    MALFORMED_EVENTS: Counter, Count, "weighbridge_malformed_events_total" ["provider", "model"]
        "Events of streams that are not JSON where they should be, passed on as they came.";
    CACHE_EVENTS: Counter, Count, "weighbridge_cache_events_total" ["cache", "event"]
        "What caches did.";
    SHED: Counter, Count, "weighbridge_shed_total" ["class", "reason"]
        "Calls refused because the process was full or the caller had its share of what was left.";
    IN_FLIGHT_BYTES: Gauge, Bytes, "weighbridge_in_flight_bytes" []
        "Body bytes of requests in flight, read or declared and awaited.";
    PRESSURE_STAGE: Gauge, Count, "weighbridge_pressure_stage" []
        "0 normal, 1 lean, 2 tight, 3 risk-only: what memory and descriptors have come to.";
    MEMORY_USED: Gauge, Bytes, "weighbridge_memory_used_bytes" []
        "Memory of the process, or of its control group without what can be dropped.";
    MEMORY_LIMIT: Gauge, Bytes, "weighbridge_memory_limit_bytes" []
        "Memory the process may use: the least of limits.memory, the control group's limit and the machine's.";
    DESCRIPTORS_OPEN: Gauge, Count, "weighbridge_descriptors_open" []
        "Open file descriptors.";
    DESCRIPTORS_LIMIT: Gauge, Count, "weighbridge_descriptors_limit" []
        "File descriptors the process may have.";
    DECISIONS: Counter, Count, "weighbridge_decisions_total" ["merchant_category", "action", "source"]
        "Risk decisions, by what was answered and where it came from.";
    RISK_SCORE: Histogram(&SCORES), Ratio, "weighbridge_risk_score" ["model_version"]
        "Scores that providers reported.";
    VELOCITY_EVENTS: Counter, Count, "weighbridge_velocity_events_total" ["counter", "event"]
        "Payment attempts as velocity counters saw them: counted, over the limit, unknown for want of room.";
    VELOCITY_KEYS: Gauge, Count, "weighbridge_velocity_keys" ["counter"]
        "Users, devices and the like that a velocity counter keeps.";
    REUSE_REFUSED: Counter, Count, "weighbridge_reuse_refused_total" ["guard"]
        "Earlier decisions that were not given again, by the first guard that forbade it.";
    REUSE_COMPARED: Counter, Count, "weighbridge_reuse_compared_total" ["result"]
        "Live verdicts where an earlier decision would have passed, by whether the provider passed too.";
    REUSE_BOUND: Gauge, Count, "weighbridge_reuse_disagreement_bound_ppm" []
        "The largest upper 95 % bound of disagreement of a merchant with enough comparisons, in millionths.";
    REUSE_OFF: Gauge, Count, "weighbridge_reuse_merchants_off" []
        "Merchants whose earlier decisions are not given again because too many disagreed.";
    AUDIT_COMMIT: Histogram(&COMMIT_SECONDS), Seconds, "weighbridge_audit_commit_seconds" []
        "How long the record took to make a group of entries durable.";
    AUDIT_BACKLOG: Gauge, Count, "weighbridge_audit_backlog" []
        "Entries that wait to be recorded.";
    AUDIT_UNRECORDED: Counter, Count, "weighbridge_audit_unrecorded_total" ["result"]
        "Decisions that could not be recorded in time, by whether they were withheld, given all the same or waited for by nobody.";
    AUDIT_EXPIRED: Counter, Count, "weighbridge_audit_expired_keys_total" []
        "Keys of persons that were destroyed because their time was over.";
    OUTCOMES: Counter, Count, "weighbridge_outcomes_total" ["label"]
        "What became of payments, as reported.";
    ODD_ANSWERS: Counter, Count, "weighbridge_odd_answers_total" ["provider", "reason"]
        "Authentic answers of a risk provider that hold something nobody agreed on.";
    CLOCK_SKEW: Gauge, Seconds, "weighbridge_provider_clock_skew_seconds" ["provider"]
        "How far a risk provider's clock is ahead of ours, by its authentic answers; 0 before the first.";
    SIGNATURES_REFUSED: Counter, Count, "weighbridge_signatures_refused_total" ["reason"]
        "Requests of callers who must sign, refused for their signature.";
    TOKENS: Counter, Tokens, "weighbridge_tokens_total" ["provider", "model", "type"]
        "Tokens as the provider counted them.";
    COST: Counter, MicroUnits, "weighbridge_cost_micro_total" ["provider", "model", "currency"]
        "What calls cost, in millionths of the currency's major unit.";
    EXTRA_COST: Counter, MicroUnits, "weighbridge_extra_cost_micro_total" ["provider", "model", "currency", "purpose"]
        "What answers nobody was shown cost, in millionths of the currency's major unit: estimated for attempts that were outpaced or brought no verdict.";
    UNPRICED: Counter, Count, "weighbridge_unpriced_requests_total" []
        "Calls whose cost is unknown (no price in the descriptor, or no usage from the provider) or that no budget counts.";
    QUOTA_REFUSED: Counter, Count, "weighbridge_quota_refused_total" ["caller", "reason"]
        "Calls refused because the caller's tokens or money were used up, or their price unknown.";
    BUDGET_LIMIT: Gauge, MicroUnits, "weighbridge_budget_limit_micro" ["caller", "per", "currency"]
        "A caller's budget, in millionths of the currency's major unit; 0 once it is configured no more.";
    BUDGET_SPENT: Gauge, MicroUnits, "weighbridge_budget_spent_micro" ["caller", "per", "currency"]
        "What of the budget is spent in the day or month that runs now.";
    BUDGET_RESERVED: Gauge, MicroUnits, "weighbridge_budget_reserved_micro" ["caller", "per", "currency"]
        "What of the budget is held back for calls in flight.";
    MERCHANT_BUDGET_LIMIT: Gauge, MicroUnits, "weighbridge_merchant_budget_limit_micro"
        ["whose", "name", "tenant", "per", "currency"]
        "What decisions may cost, in millionths of the currency's major unit; 0 once it is configured no more.";
    MERCHANT_BUDGET_SPENT: Gauge, MicroUnits, "weighbridge_merchant_budget_spent_micro"
        ["whose", "name", "tenant", "per", "currency"]
        "What of the budget is spent in the day or month that runs now.";
    MERCHANT_BUDGET_RESERVED: Gauge, MicroUnits, "weighbridge_merchant_budget_reserved_micro"
        ["whose", "name", "tenant", "per", "currency"]
        "What of the budget is held back for calls in flight.";
    MERCHANT_BUDGET_CALLS: Counter, Count, "weighbridge_merchant_budget_calls_total" ["outcome"]
        "Risk calls that a merchant's budget held for, by what it let them have.";
    FEATURES_DROPPED: Counter, Count, "weighbridge_features_dropped_total" ["feature"]
        "Features that risk calls asked for and a merchant's budget left out.";
    CONFIG_INFO: Gauge, Count, "weighbridge_config_info" ["hash"]
        "1 for the configuration in use.";
    TRACES_EXPORTED: Counter, Count, "weighbridge_traces_exported_total" []
        "Requests, and copies of them for candidates on trial, whose spans a collector has taken.";
    TRACES_DROPPED: Counter, Count, "weighbridge_traces_dropped_total" ["reason"]
        "Requests, and copies of them for candidates on trial, whose spans were to be sent and reached no collector.";
    WEBHOOK_NOTICES: Counter, Count, "weighbridge_webhook_notices_total" ["outcome"]
        "Notices of late verdicts: failed tries, those delivered, those given up.";
    CONFIG_RELOADS: Counter, Count, "weighbridge_config_reloads_total" ["result"]
        "Reloads that changed the configuration or failed to.";
    CONFIG_LAST_SUCCESS: Gauge, Seconds, "weighbridge_config_last_success_timestamp_seconds" []
        "When the configuration in use was loaded, in seconds since 1970.";
    CONFIG_NOT_IN_FORCE: Gauge, Count, "weighbridge_config_on_disk_not_in_force" []
        "1 while the configuration on disk is not the one in use, because it was refused.";
    CONFIG_SNAPSHOTS: Gauge, Count, "weighbridge_config_snapshots_alive" []
        "Configurations still held by calls in flight, the current one included.";
    CONNECTIONS_OPEN: Gauge, Count, "weighbridge_connections_open" []
        "Client connections now open.";
    CONNECTIONS_REFUSED: Counter, Count, "weighbridge_connections_refused_total" ["reason"]
        "Connections turned away before any request.";
    CONNECTIONS_ENDED: Counter, Count, "weighbridge_connections_ended_total" ["reason"]
        "Connections that ended, by why.";
    TLS_RELOADS: Counter, Count, "weighbridge_tls_reloads_total" ["result"]
        "Times the files of the listener's certificate changed, by what became of it.";
    TLS_EXPIRY: Gauge, Seconds, "weighbridge_tls_certificate_expiry_timestamp_seconds" []
        "When the listener's certificate expires, in seconds since 1970; absent without TLS.";
    POLICY_UNCLEAR: Counter, Count, "weighbridge_policy_unclear_total" []
        "Payment attempts for which a policy's condition could not be evaluated, so that a person decides.";
    PANICS: Counter, Count, "weighbridge_panics_total" []
        "Bugs that were contained to one request or connection.";
    LOG_DROPPED: Counter, Count, "weighbridge_log_dropped_total" []
        "Access log lines given up because the log could not be written fast enough.";
    GENAI_TOKEN_USAGE: Histogram(&GENAI_TOKENS), Tokens, "gen_ai_client_token_usage"
        ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_token_type"]
        "Tokens of one call, under OpenTelemetry's name.";
    GENAI_REQUEST_DURATION: Histogram(&GENAI_DURATION), Seconds, "gen_ai_server_request_duration_seconds"
        ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"]
        "From sending an attempt to the end of its answer, under OpenTelemetry's name.";
    GENAI_TIME_TO_FIRST_TOKEN: Histogram(&GENAI_FIRST_TOKEN), Seconds, "gen_ai_server_time_to_first_token_seconds"
        ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"]
        "From sending an attempt to its first content, under OpenTelemetry's name.";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_name_is_declared_once_and_says_its_unit() {
        let mut seen = HashSet::new();
        for row in TABLE {
            assert!(seen.insert(row.name), "{} twice", row.name);
            assert!(row.name.starts_with("weighbridge_") || row.name.starts_with("gen_ai_"), "{}", row.name);
            assert_eq!(row.kind == Kind::Counter, row.name.ends_with("_total"), "{}", row.name);
            assert!(row.unit != Unit::Seconds || row.name.ends_with("_seconds"), "{}", row.name);
            assert!(row.help.ends_with('.'), "{}", row.name);
        }
    }

    #[test]
    fn bounds_ascend() {
        for row in TABLE {
            if let Kind::Histogram(buckets) = row.kind {
                assert!(buckets.bounds.is_sorted_by(|a, b| a < b), "{}", row.name);
            }
        }
    }
}
