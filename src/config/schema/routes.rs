//! The keys of `routes.toml`.

use super::Kind::{Duration, Either, Flag, Form, Json, List, Map, Money, Number, Size, Table, Text, Whole, Words};
use super::provider::AUTH;
use super::{Key, Kind, key, must};

/// Letters, digits and `-_.`.
pub(super) const NAME: Kind = Form("^[A-Za-z0-9][-A-Za-z0-9_.]{0,63}$");
/// The same with spaces.
const LABEL: Kind = Form("^[A-Za-z0-9][-A-Za-z0-9_. ]{0,63}$");
/// `provider/model`.
const UPSTREAM: Kind = Form("^[^/]+/.+$");
pub(super) const VARIABLE: Kind = Form("^[A-Za-z_][A-Za-z0-9_]*$");

pub(super) const ROOT: &[Key] = &[
    must("version", Whole(1, 1), "The version of this format: 1."),
    key("lint", Table(LINT), "What `weighbridge check` is told not to warn about."),
    key(
        "disabled",
        List(&Text),
        "Providers, and models as provider/model, that are not asked for now; routes go on with their other candidates.",
    ),
    key("caller", List(&Table(CALLER)), "Who may call, one [[caller]] each."),
    key("model", Map(&Table(MODEL)), "LLM routes: [model.NAME], where NAME is what applications write in `model`."),
    key("risk", Table(RISK), "The risk route: payment decisions."),
    key(
        "jurisdiction",
        Map(&Table(JURISDICTION)),
        "What is kept of people, by the country of payer or merchant: [jurisdiction.TH]; the strictest wins.",
    ),
    key("webhook", List(&Table(WEBHOOK)), "Where a tenant is told of late verdicts, one [[webhook]] for each tenant."),
    key("traces", Table(TRACES), "Where OpenTelemetry spans are sent. Default: nowhere."),
    key("limits", Table(LIMITS), "Bounds for everybody together."),
    key("reload", Table(RELOAD), "What becomes of a configuration after it was put in force."),
    key("test", List(&Table(TEST)), "What a call must come to, one [[test]] each; a file whose tests fail is refused."),
];

const TEST: &[Key] = &[
    must("name", Text, "A sentence that says what must hold."),
    must("given", Either(&[Table(GIVEN_CALL), Table(GIVEN_PAYMENT)]), "What is asked, and what is down then."),
    must("expect", Table(EXPECT), "What must come of it."),
];

const DOWN: Kind = List(&Text);
const DOWN_SAYS: &str = "Providers or candidates whose breakers are open.";
const ASKING: &str = "Who asks. Default: the first caller who may.";

const GIVEN_CALL: &[Key] = &[
    key("caller", Text, ASKING),
    key("down", DOWN, DOWN_SAYS),
    key("model", Text, "The route, as an application names it."),
    key("operation", Words(OPERATIONS), "What is asked for. Default: chat.completions."),
    key("bytes", Whole(1, 32 << 20), "Bytes of the request's body. Default: 1000."),
    key("stream", Flag, "Whether the answer is to be told as it is made. Default: false."),
    key("headers", Map(&Text), "Headers of the request, for conditions of rules."),
];

const OPERATIONS: &[&str] = &[
    "chat.completions",
    "completions",
    "embeddings",
    "responses",
    "messages",
    "messages.count_tokens",
    "moderations",
    "images.generations",
    "audio.transcriptions",
    "audio.translations",
    "audio.speech",
];

const GIVEN_PAYMENT: &[Key] = &[
    key("caller", Text, ASKING),
    key("down", DOWN, DOWN_SAYS),
    key("out_trade_no", Json, "The attempt's number, as in a request."),
    key("amount", Text, "What is to be paid, as in \"88.88 CNY\"."),
    key("subject", Json, "What for, as in a request."),
    key("merchant", Table(GIVEN_MERCHANT), "Who is to be paid, as in a request."),
    key("user", Table(GIVEN_USER), "Who pays, as in a request."),
    key("instrument", Table(GIVEN_INSTRUMENT), "With what, as in a request."),
    key("device", Table(GIVEN_DEVICE), "From where, as in a request."),
    key("features", Json, "The extras asked for, as in a request."),
    key("at", Text, "When, as in RFC 3339. Default: 2026-01-01T12:00:00Z."),
    key("risk_score", Number(0.0, 1.0), "The score that the provider gives."),
    key("recommendation", Text, "The provider's own word."),
    key(
        "fails",
        Words(&["deadline", "unavailable", "no_verdict", "not_authentic", "budget"]),
        "Why there is no verdict.",
    ),
    key("lists", List(&Text), "Lists that somebody is on, besides those by the values above."),
    key("velocity", Map(&Whole(0, i64::MAX)), "What counters say, by name. Default: 0."),
];

const GIVEN_MERCHANT: &[Key] =
    &[key("id", Json, "Its number."), key("category", Json, "What it sells."), key("country", Json, "Where it is.")];

const GIVEN_USER: &[Key] = &[
    key("id", Json, "Their number."),
    key("country", Json, "Where they are."),
    key("email", Json, "Their address."),
    key("phone", Json, "Their number to call."),
    key("registered_at", Json, "Since when they have an account."),
    key("registered_days", Whole(0, 36_500), "The same in days before `at`."),
];

const GIVEN_INSTRUMENT: &[Key] = &[
    key("type", Json, "Its kind."),
    key("fingerprint", Json, "Its fingerprint."),
    key("bin", Json, "The first digits."),
    key("last4", Json, "The last digits."),
];

const GIVEN_DEVICE: &[Key] = &[
    key("id", Json, "Its number."),
    key("ip", Json, "Its address."),
    key("known_since", Json, "Since when it is known."),
    key("known_days", Whole(0, 36_500), "The same in days before `at`."),
];

const EXPECT: &[Key] = &[
    key("order", List(&Text), "Who is asked, in turn."),
    key("any_order", List(&Text), "Who is asked, where turns are drawn."),
    key("route", Text, "Which route serves it."),
    key(
        "error",
        Words(&[
            "unknown_model",
            "not_allowed",
            "not_offered",
            "price_unknown",
            "open",
            "deadline_passed",
            "provider_unavailable",
            "response_not_authentic",
            "no_verdict",
            "budget_spent",
        ]),
        "What the caller is told instead, in the words of the access log.",
    ),
    key("action", Words(&["PASS", "CHALLENGE", "REVIEW", "REJECT"]), "What is to be done."),
    key("policy", Text, "Which policy decides; default where none matches."),
    key("bands", Table(SOME_BANDS), "The thresholds that decide."),
];

const LINT: &[Key] = &[key(
    "allow",
    List(&Form("^W[0-9]{3}(:.+)?$")),
    "Warnings that are meant to be so: a code, as in \"W007\", or a code for one thing, as in \"W007:summary\".",
)];

const CALLER: &[Key] = &[
    must("id", NAME, "The name in logs and metrics."),
    key("tenant", NAME, "Whose data it is. Default: the id."),
    must(
        "key_digest",
        Form("^sha256:[0-9A-Fa-f]{64}$"),
        "SHA-256 of the caller's key; make one with: weighbridge digest --new.",
    ),
    must(
        "allow",
        List(&Text),
        "What it may use: route names, \"risk\", \"provider/model\", \"provider/*\", or \"*\" for every route.",
    ),
    key(
        "client_cert_sha256",
        List(&Text),
        "SHA-256 of certificates; where there are some, the caller must present one of them.",
    ),
    key("class", CLASS, CLASS_SAYS),
    key("limits", Table(CALLER_LIMITS), "How much it may call."),
    key(
        "budget",
        Either(&[Table(BUDGET), List(&Table(BUDGET))]),
        "What its calls may cost: a table, or a list of up to four; all of them hold.",
    ),
    key(
        "unpriced",
        Words(&["allow", "refuse"]),
        "What becomes of calls that no budget can count because their price is not known. Default: allow.",
    ),
    key("signature", Table(SIGNATURE), "Its requests must be signed: one key, or several while one replaces another."),
];

const CLASS: Kind = Words(&["batch", "low", "normal"]);
const CLASS_SAYS: &str = "What is given up first when there is too much to do: batch, then low. Default: normal.";

const CALLER_LIMITS: &[Key] = &[
    key("requests_per_minute", Whole(1, 100_000_000), "Requests a minute."),
    key("in_flight", Whole(1, 100_000_000), "Requests at the same time."),
    key("tokens_per_minute", Whole(1_000, 1_000_000_000), "Tokens a minute, of prompts and answers together."),
];

const BUDGET: &[Key] = &[
    must("amount", Money, "More than zero, as in \"500.00 CNY\"."),
    must("per", Words(&["day", "month"]), "When it begins again, in UTC."),
];

const SIGNATURE: &[Key] = &[
    key("key_id", NAME, "Names the secret in a signature."),
    key("secret_env", VARIABLE, "The environment variable that holds the secret."),
    key("secret_file", Text, "The file that holds the secret."),
    key("secret_encoding", Words(ENCODINGS), "How the secret is written; at least 32 bytes once decoded."),
    key("keys", List(&Table(KEYS)), "Several keys in the place of one, the newest first."),
];

pub(super) const ENCODINGS: &[&str] = &["hex", "base64", "raw"];

/// Keys that sign, as a provider and a caller list them.
pub(super) const KEYS: &[Key] = &[
    must("id", NAME, "Names the secret in a signature."),
    key("secret_env", VARIABLE, "The environment variable that holds the secret."),
    key("secret_file", Text, "The file that holds the secret."),
    must("secret_encoding", Words(ENCODINGS), "How the secret is written; at least 32 bytes once decoded."),
    must(
        "state",
        Words(&["active", "verify-only", "pending"]),
        "active: the first of these signs; verify-only: what is signed with it is still believed; pending: not yet.",
    ),
];

const MODEL: &[Key] = &[
    must(
        "candidates",
        List(&Either(&[UPSTREAM, Table(CANDIDATE)])),
        "Who is asked, \"provider/model\", the preferred one first; or { use = \"provider/model\", weight = 3 }.",
    ),
    key(
        "order",
        Words(&["as-listed", "weighted", "fastest", "cheapest"]),
        "Who comes first: as they are listed, drawn by weight, whoever begins to answer sooner, or who asks less. \
         Default: as-listed.",
    ),
    key(
        "sticky",
        Words(&["conversation"]),
        "With weighted and fastest: the turns of a conversation go to the same candidate.",
    ),
    key("timeouts", Table(TIMEOUTS), "How long the phases of a call may take."),
    key("max_attempts", Whole(1, 5), "Attempts for one call, over all candidates. Default: 3."),
    key("cache", Table(CACHE), "The same question of the same tenant is answered from memory. Default: never."),
    key(
        "fallback_on",
        List(&Words(&["context_length_exceeded", "content_policy"])),
        "Refusals of the request that the next candidate may still answer.",
    ),
    key("hedge", Table(HEDGE), "A second candidate is asked beside a slow first one."),
    key("class", CLASS, CLASS_SAYS),
    key("shadow", Table(SHADOW), "Copies of calls for a candidate on trial; its answers are thrown away."),
    key("rule", List(&Table(RULE)), "What differs for some calls; the first that matches holds, else the route's own."),
];

const RULE: &[Key] = &[
    key("name", Text, "For people. Default: rule 1, rule 2 and so on."),
    must(
        "when",
        Text,
        "Which calls: a condition in CEL over caller.id, caller.tenant, request.operation, request.stream, request.bytes, \
         request.estimated_tokens, hour_utc and header(\"name\").",
    ),
    key(
        "candidates",
        List(&Either(&[UPSTREAM, Table(CANDIDATE)])),
        "Who is asked for them. Default: the route's candidates.",
    ),
    key(
        "order",
        Words(&["as-listed", "weighted", "fastest", "cheapest"]),
        "Who comes first. Default: the route's order.",
    ),
    key("timeouts", Table(TIMEOUTS), "What is not written is the route's."),
    key("max_attempts", Whole(1, 5), "Attempts for one call. Default: the route's."),
];

const CANDIDATE: &[Key] = &[
    must("use", UPSTREAM, "provider/model"),
    key("weight", Whole(0, 1000), "Its share with order = \"weighted\"; 0 is the last resort. Default: 1."),
];

const TIMEOUTS: &[Key] = &[
    key("total", Duration, "From arrival to the end of the answer. Default: 600s."),
    key("connect", Duration, "TCP and TLS to a provider. Default: 1s."),
    key("first_content", Duration, "Until the first word of an answer. Default: 30s."),
    key("idle", Duration, "Longest silence within an answer. Default: 30s."),
    key(
        "heartbeat",
        Form("^(off|[0-9]+(ms|s|m|h|d))$"),
        "A comment is sent to the client of a stream in each such time in which nothing else was; 1s to 10m, or \"off\". \
         Default: 15s.",
    ),
];

const CACHE: &[Key] = &[
    must("ttl", Duration, "How long an answer is given again; 1s to 30d."),
    key(
        "stale_while_revalidate",
        Duration,
        "How much longer it is given at once while one fresh answer is asked for; 1s to 30d.",
    ),
    key("stale_if_error", Duration, "How much longer it may stand in when every candidate fails; 1s to 30d."),
    key(
        "cut_by_length",
        Words(&["pass", "store"]),
        "What becomes of answers that were cut by their token limit. Default: pass.",
    ),
];

const HEDGE: &[Key] = &[
    must("after", Form("^(p95|[0-9]+(ms|s|m|h|d))$"), "How long the first is waited for: \"p95\" or a time."),
    key("max_share", Number(0.0, 1.0), "Most hedges, as a share of the calls. Default: 0.05."),
    key("max_spend", Number(0.0, 1.0), "What hedges may cost, as a share of what the calls cost. Default: 0.05."),
];

const SHADOW: &[Key] = &[
    must("use", UPSTREAM, "provider/model"),
    must("percent", Number(0.0, 100.0), "How many calls are copied, in percent."),
    key("in_flight", Whole(1, 1000), "Copies at the same time. Default: 10."),
];

const RISK: &[Key] = &[
    must("candidates", List(&Text), "Who is asked: ids of providers that speak di-hmac, the preferred one first."),
    must("bands", Table(BANDS), "Scores below pass_below PASS, below review_from CHALLENGE, from there on REVIEW."),
    key("deadline", Duration, "The answer leaves by then, whatever the provider does. Default: 800ms."),
    key("hard_limit", Duration, "A late verdict is still awaited and recorded until then. Default: 3s."),
    key("connect", Duration, "TCP and TLS to the provider. Default: 150ms, at most half of the deadline."),
    key("max_attempts", Whole(1, 5), "Attempts for one decision. Default: 2."),
    key("vendor_action", Words(VENDOR), VENDOR_SAYS),
    key("on_exhausted", EXHAUSTED, "What is answered when no verdict came in time. Default: review."),
    key(
        "audit",
        Words(&["refuse", "continue"]),
        "A decision that cannot be recorded in time is withheld (503), or given and counted. Default: refuse.",
    ),
    key("reuse", Table(REUSE), "When an earlier PASS is given again for a later payment."),
    key("ladder", List(&NAME), "Features given up, in this order, when a budget has no room for all of them."),
    key("budget", List(&Table(RISK_BUDGET)), "What the decisions of merchants may cost."),
    key("velocity", List(&Table(VELOCITY)), "Counters over a sliding window."),
    key("policy", List(&Table(POLICY)), "The first whose condition holds decides in place of what [risk] says."),
    key("list", List(&Table(LISTS)), "Who is allowed, blocked or reviewed."),
];

const SCORE: Kind = Number(0.0, 1.0);
const VENDOR: &[&str] = &["floor", "advisory"];
const VENDOR_SAYS: &str =
    "The provider's own recommendation makes the action more severe (floor), or is only recorded (advisory).";

const BANDS: &[Key] = &[
    must("pass_below", SCORE, "Scores below it PASS."),
    must("review_from", SCORE, "Scores from it on are REVIEW, scores below it CHALLENGE."),
    key("reject_from", SCORE, "Scores from it on are REJECT. Default: none."),
];

const SOME_BANDS: &[Key] = &[
    key("pass_below", SCORE, "Scores below it PASS."),
    key("review_from", SCORE, "Scores from it on are REVIEW, scores below it CHALLENGE."),
    key("reject_from", SCORE, "Scores from it on are REJECT."),
];

const MODES: Kind = Words(&["review", "reject", "error", "local_rules"]);
const MODE: Kind = Either(&[MODES, Table(ACCEPT)]);
const EXHAUSTED: Kind = Either(&[MODES, Table(ACCEPT), Table(CAUSES)]);
const ACCEPT: &[Key] =
    &[must("accept_up_to", Money, "Amounts up to this, in the same currency, pass; all others are reviewed.")];
const CAUSES: &[Key] = &[
    key("deadline", MODE, "The provider was late."),
    key("unavailable", MODE, "Nobody could be asked."),
    key("no_verdict", MODE, "An answer without a verdict."),
    key("not_authentic", MODE, "An answer whose signature is wrong."),
    key("budget", MODE, "The merchant's budget is spent."),
    key("default", MODE, "Every other cause. Default: review."),
];

const REUSE: &[Key] = &[
    must(
        "mode",
        Words(&["off", "when-late", "first"]),
        "off, where the provider was late or away, or before it is asked.",
    ),
    key("ttl", Duration, "How old a decision may be; 10s to 1d."),
    key("max_amount", Money, "Largest payment it is given again for."),
    key("max_sum", Money, "Most money one decision may pass altogether."),
    key("max_uses", Whole(1, 1_000), "How often one decision is given again. Default: 5."),
    key("max_score", SCORE, "Highest score of a decision that is given again. Default: 0.2."),
    key("known_device", Duration, "How long the device must be known; 1m to 3650d. Default: 7d."),
    key("self_audit", Number(0.01, 1.0), "Share of such payments that go live all the same. Default: 0.05."),
    key("max_disagreement", Number(0.005, 0.5), "From this share of disagreement on, a merchant is switched off."),
];

const RISK_BUDGET: &[Key] = &[
    key("merchant", Text, "A merchant's id, or \"*\" for each merchant; or `category` in its place."),
    key("category", Text, "A category of merchants, all of it together."),
    key("tenant", NAME, "Only calls of this tenant's callers. Default: everybody's."),
    must("amount", Money, "More than zero, as in \"50.00 CNY\"."),
    must("per", Words(&["day", "month"]), "When it begins again, in UTC."),
    key("ladder_from", Number(0.0, 1.0), "From this share on the rest is kept for bare scores. Default: 1."),
    key(
        "when_spent",
        Words(&["score", "fall_back"]),
        "Buy the bare score all the same, or ask nobody. Default: score.",
    ),
];

const DIMENSIONS: &[&str] = &["user", "device", "ip", "bin", "instrument"];

const VELOCITY: &[Key] = &[
    must("name", Form("^[a-z_][a-z0-9_]{0,63}$"), "In reasons, metrics and policies: velocity.NAME."),
    must("by", Words(DIMENSIONS), "Whose attempts are counted together."),
    must("measure", Words(&["count", "sum", "distinct"]), "Attempts, their amounts, or different values."),
    key("of", Words(DIMENSIONS), "What `distinct` counts."),
    key("currency", Form("^[A-Z]{3}$"), "What `sum` adds up."),
    must("window", Duration, "How long an attempt counts; 1m to 30d."),
    key("limit", Whole(1, 1_000_000_000_000_000), "More than this is over the limit; of a sum in minor units."),
    key("over", Words(&["REVIEW", "REJECT"]), "The mildest action over the limit; without it, it is only told."),
    key("most", Whole(100, 1_000_000), "Keys kept; further ones are unknown."),
];

const POLICY: &[Key] = &[
    must("name", LABEL, "In answers, logs and diffs."),
    key("when", Text, "A condition in CEL; without it the policy matches everything."),
    key("bands", Table(SOME_BANDS), "Thresholds in place of those of [risk]."),
    key("vendor_action", Words(VENDOR), VENDOR_SAYS),
    key("on_exhausted", EXHAUSTED, "What is answered when no verdict came in time."),
    key("action", Words(&["CHALLENGE", "REVIEW", "REJECT"]), "The mildest action."),
];

const LISTS: &[Key] = &[
    must("name", LABEL, "In reasons and conditions: in_list(\"NAME\")."),
    must("kind", Words(&["allow", "block", "review"]), "What becomes of who is on it."),
    must(
        "by",
        Words(&["user", "device", "ip", "bin", "instrument", "merchant", "email", "country"]),
        "What its values are.",
    ),
    key("values", List(&Text), "The values; or `file` in its place."),
    key("file", Text, "A file with one value a line, relative to the folder of this one."),
];

const JURISDICTION: &[Key] = &[
    key("retention", Duration, "How long a person can be read of, in whole days, as in \"180d\"."),
    key(
        "redact",
        List(&Words(&["name", "national-id", "email", "phone", "ip", "device", "instrument", "subject", "metadata"])),
        "What of a payment is not kept at all.",
    ),
];

const TRACES: &[Key] = &[
    must("otlp", Form("^https?://"), "The collector's address; /v1/traces is added to it."),
    key("sample", Number(0.0, 1.0), "The share of traces beginning here that is taken. Default: 0.1."),
    key("auth", Table(AUTH), "What the collector wants to see, kind bearer or header. Default: nothing."),
    key("headers", Map(&Text), "Headers that are always sent; never credentials."),
    key("queue", Whole(16, 65_536), "Most requests whose spans wait to be sent. Default: 2048."),
    key("timeout", Duration, "Longest time one try may take. Default: 10s."),
    key("forward_to", List(&NAME), "Providers whose requests carry traceparent and tracestate. Default: none."),
];

const WEBHOOK: &[Key] = &[
    must("tenant", NAME, "The tenant of some [[caller]]."),
    must("url", Form("^https?://"), "Where notices are posted."),
    key("allow_private", Flag, "The address may be this machine or a private network. Default: false."),
    must("auth", Table(AUTH), "The key that signs notices, kind di-hmac."),
];

const RELOAD: &[Key] =
    &[key("roll_back", Table(ROLL_BACK), "When the configuration from before is put back by itself. Default: never.")];

const ROLL_BACK: &[Key] = &[
    must(
        "worse_than",
        Number(0.0, 1.0),
        "By how much the share of failed requests may be above that of the minute before: above 0, up to 1.",
    ),
    key("within", Duration, "How long a configuration is on trial: 5s to 10m. Default: 60s."),
    key("least", Whole(10, 1_000_000), "As many requests must have ended on it. Default: 50."),
];

const LIMITS: &[Key] = &[
    key("body", Size, "Largest LLM request. Default: 32MiB."),
    key("risk_body", Size, "Largest risk request. Default: 64KiB."),
    key("json_depth", Whole(1, 512), "Deepest JSON nesting. Default: 64."),
    key("head", Size, "Largest request head. Default: 16KiB."),
    key("head_fields", Whole(8, 1000), "Most header fields. Default: 64."),
    key("head_timeout", Duration, "From the first byte to the end of the head. Default: 10s."),
    key("body_idle", Duration, "Longest silence within a request body. Default: 10s."),
    key("write_stall", Duration, "Longest time a client may take no byte of its answer. Default: 30s."),
    key("keep_alive", Duration, "Longest idle time of a connection. Default: 60s."),
    key("handshake", Duration, "Longest time for a TLS handshake. Default: 5s."),
    key(
        "memory",
        Size,
        "What the process may use of memory before it gives up work. Default: the machine's or its group's.",
    ),
    key("connections", Whole(1, 1_000_000), "Client connections. Default: 10000."),
    key("in_flight", Whole(1, 1_000_000), "Requests at the same time. Default: 2000."),
    key("in_flight_bytes", Size, "Bodies of all requests in flight. Default: 512MiB."),
];
