//! The keys of provider files. `providers/README.md` says more about each.

use super::Kind::{Day, Either, Flag, Form, Json, List, Map, Money, Table, Text, Whole, Words};
use super::routes::{ENCODINGS, KEYS, NAME, VARIABLE};
use super::{Key, Kind, key, must};

pub(super) const ROOT: &[Key] = &[
    must("id", Form("^[a-z0-9][-a-z0-9]{0,31}$"), "The name routes use."),
    must("protocol", Words(&["openai", "di-hmac"]), "How to speak to it."),
    must("base_url", Form("^https?://[^?#@]+$"), "Where it is; paths are appended to it."),
    must("source", Table(SOURCE), "Where address and protocol were read, and when."),
    must("auth", Table(AUTH), "How to prove who we are."),
    must("operations", List(&Words(OPERATIONS)), "What it may be used for."),
    key("headers", Map(&Text), "Headers that are always sent; never credentials."),
    key("limits", Table(LIMITS), "How many requests at a time."),
    key("quota_group", NAME, "Providers with the same word pause together. Default: the id."),
    key(
        "stream_usage",
        Words(&["on-request", "always", "never"]),
        "Token usage on streams; the last two refuse to be asked. Default: on-request.",
    ),
    key("errors", Map(&Words(CLASSES)), "Statuses, in quotes, that mean something else here than usual."),
    key("error_codes", Map(&Words(CLASSES)), "Codes or types of its errors that mean something else; they come first."),
    key("body", Map(&Json), "Members that requests have here, each unless the caller's body has it."),
    key("drop", List(&Text), "Members it refuses: left out of requests."),
    key("rename", Map(&Text), "Members it knows by another name: old name = new name."),
    key("paths", Map(&Form("^/[A-Za-z0-9/_.~:-]*$")), "Whole paths of operations that are not below base_url."),
    key("model", List(&Table(MODEL)), "One [[model]] each; openai only."),
    key("price", Table(PRICE), "What a call costs; di-hmac only."),
    key("allow_private", Flag, "The address may be this machine or a private network. Default: false."),
    key("tls", Table(TLS), "Whose certificates are believed there and what we show; they are always verified."),
    key("http", Words(&["1.1", "2"]), "What is spoken to it; \"2\" over http:// is HTTP/2 without TLS. Default: 1.1."),
];

const TLS: &[Key] = &[
    key("ca", Text, "A PEM file of authorities; they and no others are trusted for this provider."),
    key("crl", Text, "A PEM file of revocation lists, one of each authority in the chain; only with ca."),
    key(
        "trust",
        Words(&["bundled", "system"]),
        "The program's own roots or the operating system's. Default: the system's, bundled where it has none.",
    ),
    key("client_cert", Text, "A PEM file: the certificate we show, then those that lead to its authority."),
    key("client_key", Text, "A PEM file: the certificate's private key; not readable by everybody."),
];

const PAGE: Kind = Form("^https://");

const SOURCE: &[Key] =
    &[must("url", PAGE, "The page where it was read."), must("checked", Day, "The day somebody looked.")];

/// Of a provider, and of a webhook.
pub(super) const AUTH: &[Key] = &[
    must(
        "kind",
        Words(&["bearer", "header", "di-hmac", "none"]),
        "Authorization: Bearer, the key alone in a header, signed requests, or nothing.",
    ),
    key("secret_env", VARIABLE, "The environment variable that holds the secret; never the secret itself."),
    key("secret_file", Text, "The file that holds the secret; one newline at its end is ignored."),
    key("name", Form("^[a-z0-9_-]{1,64}$"), "The header of kind header, in lower case."),
    key("key_id", NAME, "Names the secret in a signature; di-hmac without `keys`."),
    key("secret_encoding", Words(ENCODINGS), "How the signing secret is written; at least 32 bytes once decoded."),
    key("keys", List(&Table(KEYS)), "Several signing keys in the place of one, the newest first."),
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
    "models.list",
    "models.get",
    "risk.assess",
];

const CLASSES: &[&str] = &[
    "overloaded",
    "rate-limited",
    "quota-exhausted",
    "provider-fault",
    "bad-reply",
    "unauthorised",
    "refused",
    "no-content",
];

const MOST_IN_FLIGHT: i64 = 100_000;

const LIMITS: &[Key] = &[
    key(
        "in_flight",
        Either(&[Whole(1, MOST_IN_FLIGHT), Words(&["adaptive"])]),
        "Most requests to it at the same time; \"adaptive\" learns it. Default: 256.",
    ),
    key("least", Whole(1, MOST_IN_FLIGHT), "The least an adaptive limit may be. Default: 2."),
    key("most", Whole(1, MOST_IN_FLIGHT), "The most an adaptive limit may be. Default: 256."),
];

const MODEL: &[Key] = &[
    must("id", Form("^[A-Za-z0-9][-A-Za-z0-9_.:@]{0,63}$"), "What routes write after `provider/`."),
    key("name", Form("^[!-~]{1,200}$"), "What the provider wants to hear. Default: the id."),
    key(
        "price",
        Either(&[Words(&["free"]), Table(TOKEN_PRICE)]),
        "What tokens cost, or \"free\". Default: unknown, which is never free.",
    ),
    key("context", Whole(1, 100_000_000), "Tokens that prompt and answer may have together."),
    key("max_output", Whole(1, 100_000_000), "Tokens an answer may have."),
];

const TOKEN_PRICE: &[Key] = &[
    must("input_per_million_tokens", Money, "A million prompt tokens."),
    key("cached_input_per_million_tokens", Money, "A million prompt tokens that the provider had in its cache."),
    must("output_per_million_tokens", Money, "A million tokens of answers."),
    must("source", PAGE, "The page where it was read."),
    must("checked", Day, "The day somebody looked."),
];

const PRICE: &[Key] = &[
    key("version", NAME, "The name of this price list in records. Default: the day in `checked`."),
    must("standard", Money, "One call."),
    key("cross_border", Money, "One call across a border, in place of `standard`."),
    key(
        "cross_border_when",
        Words(&["asked", "asked-or-abroad"]),
        "Which calls those are: feature fx is asked for, or payer and merchant are in two countries. Default: asked.",
    ),
    key("features", Map(&Money), "On top, for each feature asked for."),
    must("source", PAGE, "The page where it was read."),
    must("checked", Day, "The day somebody looked."),
];
