use std::time::Duration;

use super::*;
use crate::domain::currency::Currency;
use crate::domain::money::Cost;
use crate::domain::operation::Operation;
use crate::domain::outcome::End;
use crate::domain::usage::Usage;
use crate::telemetry::catalog::{Kind, TABLE};
use crate::telemetry::labels::{AttemptOutcome, ConnectionEnd, ExtraCost, RequestOutcome};

fn provider(name: &str) -> ProviderId {
    ProviderId::new(name)
}

fn everything() -> Arc<Metrics> {
    let metrics = Metrics::with_merchant_categories(&["grocery"]);
    metrics.route(&RouteId::new("chat"));
    metrics.provider(&provider("p"));
    metrics.risk_provider(&provider("p"));
    let upstream = metrics.upstream(&provider("p"), "m");
    upstream.usage(Operation::Embeddings, Usage::default());
    upstream.cost(Cost { micro: 5, currency: Currency::parse("CNY").unwrap() });
    metrics.failover(&UpstreamId::new("p/m"), &UpstreamId::new("q/m"), FailureClass::Overloaded);
    metrics.hedges(&RouteId::new("chat"));
    metrics.shadow(&provider("p"), "m");
    let cost = Cost { micro: 5, currency: Currency::parse("CNY").unwrap() };
    ExtraCost::ALL.iter().for_each(|purpose| metrics.extra_cost(&provider("p"), "m", *purpose, cost));
    metrics.risk_score(Some("v1"), Score::ONE);
    metrics.config_in_use("abcdef012345", 1_700_000_000);
    metrics.tls_expiry(1_800_000_000);
    metrics.caller(&CallerId::new("c"));
    metrics.velocity(&"cards".into());
    metrics.budget(&CallerId::new("c"), Period::Day, Currency::parse("CNY").unwrap());
    metrics.merchant_budget(["merchant", "m", ""], Period::Day, Currency::parse("CNY").unwrap());
    metrics.feature_dropped("fx");
    metrics
}

#[test]
fn names_help_and_types_are_the_contract() {
    let text = everything().render();
    let described: String = text.lines().filter(|line| line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/metrics.txt");
    if std::fs::read_to_string(golden).unwrap_or_default() != described {
        let found = concat!(env!("CARGO_MANIFEST_DIR"), "/target/metrics.txt");
        std::fs::write(found, &described).unwrap();
        panic!("the metrics differ from {golden}; if that is intended, copy {found} over it");
    }
}

#[test]
fn what_is_asked_of_a_model_counts_under_its_own_name() {
    let metrics = Metrics::new();
    let upstream = metrics.upstream(&provider("p"), "m");
    let tokens = |input| Usage { input_tokens: Some(input), output_tokens: None, ..Usage::default() };
    for (operation, input) in [(Operation::Responses, 2), (Operation::Messages, 3), (Operation::Embeddings, 7)] {
        upstream.usage(operation, tokens(input));
        upstream.observe_duration(operation, Duration::from_secs(1));
        upstream.observe_first_content(operation, Duration::from_secs(1));
    }
    let text = metrics.render();
    let line = |row: &str, name: &str, more: &str, value: u64| {
        let labels = format!("gen_ai_operation_name=\"{name}\",gen_ai_provider_name=\"p\",gen_ai_request_model=\"m\"");
        let line = format!("{row}{{{labels}{more}}} {value}\n");
        assert!(text.contains(&line), "{line}");
    };
    line("gen_ai_client_token_usage_sum", "chat", ",gen_ai_token_type=\"input\"", 5);
    line("gen_ai_client_token_usage_sum", "embeddings", ",gen_ai_token_type=\"input\"", 7);
    line("gen_ai_server_request_duration_seconds_count", "chat", "", 2);
    line("gen_ai_server_time_to_first_token_seconds_count", "embeddings", "", 1);
    assert!(!text.contains("text_completion"), "what was never asked has no series");
}

#[test]
fn each_row_of_the_catalogue_has_a_series() {
    let text = everything().render();
    for row in TABLE {
        let kind = match row.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        assert_eq!(text.matches(&format!("# TYPE {} {kind}\n", row.name)).count(), 1, "{}", row.name);
    }
}

#[test]
fn every_label_set_is_unique() {
    let metrics = everything();
    let text = metrics.render();
    let mut series: Vec<_> =
        text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.rsplit_once(' ')).map(|(s, _)| s).collect();
    let all = series.len();
    series.sort_unstable();
    series.dedup();
    assert_eq!(series.len(), all);
}

#[test]
fn failure_classes_count_under_their_own_reason() {
    let metrics = Metrics::new();
    let upstream = metrics.upstream(&provider("p"), "m");
    for (times, class) in FailureClass::ALL.into_iter().enumerate() {
        (0..=times).for_each(|_| upstream.attempt(class));
    }
    upstream.attempt(AttemptOutcome::Ok);
    let text = metrics.render();
    for (times, class) in FailureClass::ALL.into_iter().enumerate() {
        let line = format!(
            "weighbridge_upstream_attempts_total{{provider=\"p\",model=\"m\",outcome=\"failed\",reason=\"{}\"}} {}\n",
            class.label(),
            times + 1
        );
        assert!(text.contains(&line), "{line}");
    }
    assert!(text.contains("outcome=\"ok\",reason=\"none\"} 1\n"));
}

#[test]
fn outcomes_count_under_their_own_label() {
    let metrics = Metrics::with_merchant_categories(&["grocery"]);
    let route = metrics.route(&RouteId::new("chat"));
    route.request(RequestOutcome::Timeout);
    route.stream(End::ClientGone);
    metrics.shed(Class::Normal, ShedReason::Bytes);
    metrics.cache(Cache::Token, CacheEvent::Coalesced);
    metrics.config_reload(ReloadResult::Failure);
    metrics.decision(Some("grocery"), Action::Review, DecisionSource::Fallback(FallbackReason::NoVerdict));
    metrics.decision(Some("\"}{\n"), Action::Pass, DecisionSource::Live);
    metrics.connections.ended(ConnectionEnd::WriteStall).unwrap().inc();
    let text = metrics.render();
    for line in [
        "weighbridge_requests_total{route=\"chat\",outcome=\"timeout\"} 1",
        "weighbridge_stream_outcomes_total{route=\"chat\",outcome=\"client_gone\"} 1",
        "weighbridge_shed_total{class=\"normal\",reason=\"bytes\"} 1",
        "weighbridge_cache_events_total{cache=\"token\",event=\"coalesced\"} 1",
        "weighbridge_config_reloads_total{result=\"failure\"} 1",
        "weighbridge_decisions_total{merchant_category=\"grocery\",action=\"REVIEW\",source=\"fallback\"} 1",
        "weighbridge_decisions_total{merchant_category=\"other\",action=\"PASS\",source=\"live\"} 1",
        "weighbridge_connections_ended_total{reason=\"write_stall\"} 1",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line}");
    }
    assert_eq!(text.lines().filter(|line| line.contains("_total{") && line.ends_with(" 1")).count(), 8);
}

#[test]
fn a_reload_gets_the_same_series_back() {
    let metrics = Metrics::new();
    metrics.route(&RouteId::new("chat")).request(RequestOutcome::Ok);
    metrics.route(&RouteId::new("chat")).request(RequestOutcome::Ok);
    metrics
        .upstream(&provider("p"), "m")
        .usage(Operation::ChatCompletions, Usage { input_tokens: Some(3), output_tokens: None, ..Usage::default() });
    metrics
        .upstream(&provider("p"), "m")
        .usage(Operation::ChatCompletions, Usage { input_tokens: Some(4), output_tokens: None, ..Usage::default() });
    let text = metrics.render();
    assert!(text.contains("weighbridge_requests_total{route=\"chat\",outcome=\"ok\"} 2\n"));
    assert!(text.contains("weighbridge_tokens_total{provider=\"p\",model=\"m\",type=\"input\"} 7\n"));
    assert!(text.contains("gen_ai_token_type=\"input\"} 7\n"), "the sum of the histogram");
}

#[test]
fn names_beyond_the_bound_share_one_series() {
    let metrics = Metrics::new();
    for n in 0..MOST_NAMES + 10 {
        metrics.route(&RouteId::new(format!("r{n}"))).request(RequestOutcome::Ok);
    }
    for n in 0..MOST_VERSIONS + 3 {
        metrics.risk_score(Some(&format!("v{n}")), Score::ONE);
    }
    let text = metrics.render();
    assert!(text.contains("weighbridge_requests_total{route=\"other\",outcome=\"ok\"} 10\n"));
    assert!(text.contains("weighbridge_risk_score_count{model_version=\"other\"} 3\n"));
    assert!(!text.contains(&format!("r{MOST_NAMES}\"")));
}

#[test]
fn only_one_configuration_is_in_use() {
    let metrics = Metrics::new();
    metrics.config_in_use("aaaaaaaaaaaa", 1);
    metrics.config_in_use("bbbbbbbbbbbb", 2);
    let text = metrics.render();
    assert!(text.contains("weighbridge_config_info{hash=\"bbbbbbbbbbbb\"} 1\n") && !text.contains("aaaaaaaaaaaa"));
    assert!(text.contains("weighbridge_config_last_success_timestamp_seconds 2\n"));
}
