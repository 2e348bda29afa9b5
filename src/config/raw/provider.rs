//! A provider file, key by key. `providers/README.md` is its documentation for people.

use std::collections::BTreeMap;

use super::RawFact;
use super::keys::RawKeys;
use super::prices::{RawRiskPrice, risk_price};
use super::shape::RawShape;
use super::tls::{self, RawTls};
use crate::config::error::Code;
use crate::config::read::{Table, Value};
use crate::config::report::Field;
use crate::config::table::{Protocol, StreamUsage};
use crate::config::tls::HttpVersion;
use crate::domain::money::Cost;
use crate::domain::operation::Operation;
use crate::domain::outcome::FailureClass;

const KEYS: [&str; 21] = [
    "id",
    "protocol",
    "base_url",
    "source",
    "auth",
    "operations",
    "headers",
    "limits",
    "quota_group",
    "stream_usage",
    "errors",
    "error_codes",
    "body",
    "drop",
    "rename",
    "paths",
    "model",
    "price",
    "allow_private",
    "tls",
    "http",
];
const PROTOCOLS: [(&str, Protocol); 2] = [("openai", Protocol::OpenAi), ("di-hmac", Protocol::DiHmac)];
const STREAM_USAGES: [(&str, StreamUsage); 3] =
    [("on-request", StreamUsage::OnRequest), ("always", StreamUsage::Always), ("never", StreamUsage::Never)];
/// What a status may be declared to mean. Classes that describe us, the wire or a lost body are not a status' to give.
pub(super) const CLASSES: [(&str, FailureClass); 8] = [
    ("overloaded", FailureClass::Overloaded),
    ("rate-limited", FailureClass::RateLimited),
    ("quota-exhausted", FailureClass::QuotaExhausted),
    ("provider-fault", FailureClass::ProviderFault),
    ("bad-reply", FailureClass::BadReply),
    ("unauthorised", FailureClass::Unauthorised),
    ("refused", FailureClass::Refused),
    ("no-content", FailureClass::NoContent),
];
/// How a signing secret may be written down.
pub(super) const ENCODINGS: [(&str, Encoding); 3] =
    [("hex", Encoding::Hex), ("base64", Encoding::Base64), ("raw", Encoding::Raw)];
const MOST_MODELS: usize = 500;
const MOST_IN_FLIGHT: u32 = 100_000;
const MOST_TOKENS: u32 = 100_000_000;

/// How a secret proves who we are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::config) enum AuthKind {
    None,
    Bearer,
    Header,
    DiHmac,
}

/// How a signing secret is written down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::config) enum Encoding {
    Hex,
    Base64,
    Raw,
}

#[derive(Clone, Debug)]
pub(in crate::config) struct RawAuth {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) kind: Option<Field<AuthKind>>,
    pub(in crate::config) secret_env: Option<Field<String>>,
    pub(in crate::config) secret_file: Option<Field<String>>,
    pub(in crate::config) name: Option<Field<String>>,
    pub(in crate::config) key_id: Option<Field<String>>,
    pub(in crate::config) secret_encoding: Option<Field<Encoding>>,
    /// Several keys in the place of the three above.
    pub(in crate::config) keys: Option<RawKeys>,
    /// False if some key is there but could not be read, so that it is not missing.
    pub(in crate::config) sound: bool,
}

#[derive(Clone, Debug)]
pub(in crate::config) struct RawModel {
    pub(in crate::config) id: Field<String>,
    pub(in crate::config) name: Option<Field<String>>,
    pub(in crate::config) price: Option<RawPrice>,
    pub(in crate::config) context: Option<Field<u32>>,
    pub(in crate::config) max_output: Option<Field<u32>>,
}

#[derive(Clone, Debug)]
pub(in crate::config) enum RawPrice {
    /// Nobody sends a bill.
    Free,
    Tokens(Box<RawTokenPrice>),
}

#[derive(Clone, Debug)]
pub(in crate::config) struct RawTokenPrice {
    pub(in crate::config) input: Field<Cost>,
    pub(in crate::config) cached: Option<Field<Cost>>,
    pub(in crate::config) output: Field<Cost>,
    pub(in crate::config) fact: RawFact,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::config) enum RawInFlight {
    Number(u32),
    Adaptive,
}

#[derive(Clone, Debug, Default)]
pub(in crate::config) struct RawLimits {
    pub(in crate::config) in_flight: Option<Field<RawInFlight>>,
    pub(in crate::config) least: Option<Field<u32>>,
    pub(in crate::config) most: Option<Field<u32>>,
}

#[derive(Clone, Debug)]
pub(in crate::config) struct RawOperations {
    pub(in crate::config) known: Vec<Field<Operation>>,
    /// False if some operation could not be read.
    pub(in crate::config) sound: bool,
}

impl RawOperations {
    /// True if such an operation is listed, or might be.
    pub(in crate::config) fn offers(&self, of_use: impl Fn(Operation) -> bool) -> bool {
        !self.sound || self.known.iter().any(|operation| of_use(operation.value))
    }
}

#[derive(Clone, Debug)]
pub(in crate::config) struct RawProvider {
    pub(in crate::config) id: Option<Field<String>>,
    pub(in crate::config) protocol: Option<Field<Protocol>>,
    pub(in crate::config) base_url: Option<Field<String>>,
    pub(in crate::config) source: Option<RawFact>,
    pub(in crate::config) auth: Option<RawAuth>,
    pub(in crate::config) operations: Option<Field<RawOperations>>,
    pub(in crate::config) headers: Vec<(Field<String>, Field<String>)>,
    pub(in crate::config) limits: RawLimits,
    pub(in crate::config) quota_group: Option<Field<String>>,
    pub(in crate::config) stream_usage: Option<Field<StreamUsage>>,
    pub(in crate::config) errors: BTreeMap<u16, FailureClass>,
    pub(in crate::config) shape: RawShape,
    pub(in crate::config) models: Vec<RawModel>,
    /// False if some model could not be read, so that one may be missing from `models`.
    pub(in crate::config) models_sound: bool,
    /// Where `[[model]]` stands, also if none of them could be read.
    pub(in crate::config) models_at: Option<Field<()>>,
    pub(in crate::config) price: Option<RawRiskPrice>,
    pub(in crate::config) price_at: Option<Field<()>>,
    pub(in crate::config) allow_private: Option<Field<bool>>,
    pub(in crate::config) tls: Option<RawTls>,
    pub(in crate::config) http: Option<Field<HttpVersion>>,
}

impl RawProvider {
    /// Reads a whole provider file.
    pub(in crate::config) fn read(root: &Table<'_>) -> Self {
        let root = root.clone().only_besides(&KEYS, &[], &tls::SWITCHES);
        tls::refuse_switches(&root);
        let tables = root.get("model").map(|value| value.tables()).unwrap_or_default();
        if let Some(first_over) = tables.get(MOST_MODELS) {
            let message = format!("more than {MOST_MODELS} models");
            first_over.report().add(first_over.mistake(Code::BadValue, message));
        }
        let models: Vec<RawModel> = tables.iter().take(MOST_MODELS).filter_map(model).collect();
        let place = |name: &str| root.get(name).map(|value| Field { value: (), at: value.at, key: value.key });
        Self {
            id: root.required("id").and_then(|value| provider_id(&value)),
            protocol: root.required("protocol").and_then(|value| value.word(&PROTOCOLS)),
            base_url: root.required("base_url").and_then(|value| value.string()),
            source: root.required("source").and_then(|value| source(&value)),
            auth: root.required("auth").and_then(|value| auth(&value)),
            operations: root.required("operations").and_then(|value| operations(&value)),
            headers: root.get("headers").map(|value| headers(&value)).unwrap_or_default(),
            limits: root.get("limits").and_then(|value| limits(&value)).unwrap_or_default(),
            quota_group: root.get("quota_group").and_then(|value| value.name("-_.")),
            stream_usage: root.get("stream_usage").and_then(|value| value.word(&STREAM_USAGES)),
            errors: root.get("errors").map(|value| errors(&value)).unwrap_or_default(),
            shape: RawShape::read(&root),
            models_sound: models.len() == tables.len(),
            models,
            models_at: place("model"),
            price: root.get("price").and_then(|value| risk_price(&value)),
            price_at: place("price"),
            allow_private: root.get("allow_private").and_then(|value| value.flag()),
            tls: root.get("tls").and_then(|value| RawTls::read(&value)),
            http: root.get("http").and_then(|value| tls::http(&value)),
        }
    }
}

fn provider_id(value: &Value<'_>) -> Option<Field<String>> {
    let id = value.name("-")?;
    let lower = id.value.len() <= 32 && !id.value.bytes().any(|b| b.is_ascii_uppercase());
    if lower { Some(id) } else { value.bad("a provider's id has at most 32 lower-case letters, digits and -") }
}

fn source(value: &Value<'_>) -> Option<RawFact> {
    RawFact::read(&value.table()?.only(&["url", "checked"], &[]), "url")
}

pub(super) fn auth(value: &Value<'_>) -> Option<RawAuth> {
    const KINDS: [(&str, AuthKind); 4] = [
        ("bearer", AuthKind::Bearer),
        ("header", AuthKind::Header),
        ("di-hmac", AuthKind::DiHmac),
        ("none", AuthKind::None),
    ];
    const AUTH_KEYS: [&str; 7] = ["kind", "secret_env", "secret_file", "name", "key_id", "secret_encoding", "keys"];
    let table = value.table()?.only(&AUTH_KEYS, &[]);
    let mut auth = RawAuth {
        at: Field { value: (), at: table.at, key: table.key.clone() },
        kind: table.required("kind").and_then(|value| value.word(&KINDS)),
        secret_env: table.get("secret_env").and_then(|value| value.string()),
        secret_file: table.get("secret_file").and_then(|value| value.string()),
        name: table.get("name").and_then(|value| value.string()),
        key_id: table.get("key_id").and_then(|value| value.name("-_.")),
        secret_encoding: table.get("secret_encoding").and_then(|value| value.word(&ENCODINGS)),
        keys: table.get("keys").and_then(|value| RawKeys::read(&value)),
        sound: true,
    };
    let readable = [
        ("secret_env", auth.secret_env.is_some()),
        ("secret_file", auth.secret_file.is_some()),
        ("name", auth.name.is_some()),
        ("key_id", auth.key_id.is_some()),
        ("secret_encoding", auth.secret_encoding.is_some()),
        ("keys", auth.keys.is_some()),
    ];
    auth.sound = readable.iter().all(|&(key, read)| read || table.get(key).is_none());
    Some(auth)
}

/// Every operation that providers may have, by its name.
pub(super) fn operation_words() -> Vec<(&'static str, Operation)> {
    Operation::ALL.iter().filter(|op| !op.asks_the_record()).map(|op| (op.label(), *op)).collect()
}

fn operations(value: &Value<'_>) -> Option<Field<RawOperations>> {
    let words = operation_words();
    let elements = value.list()?;
    let known: Vec<_> =
        elements.iter().filter_map(|element| if undescribed(element) { None } else { element.word(&words) }).collect();
    if elements.is_empty() {
        return value.bad("no operation");
    }
    let sound = known.len() == elements.len();
    Some(Field { value: RawOperations { known, sound }, at: value.at, key: value.key.clone() })
}

/// True, after saying so, of an operation whose name the dialect has and whose message nobody has described.
fn undescribed(element: &Value<'_>) -> bool {
    let named = ["risk.report", "risk.convert", "risk.dispute"];
    let text = element.is_string().then(|| element.string()).flatten();
    let Some(text) = text.filter(|text| named.contains(&text.value.as_str())) else { return false };
    let message = format!("`{}` is not supported by this version", text.value);
    let hint =
        "remove it; di-hmac has the name and describes no message, so nothing of the kind is sent to the provider";
    element.report().add(element.mistake(Code::Unsupported, message).hint(hint));
    true
}

pub(super) fn headers(value: &Value<'_>) -> Vec<(Field<String>, Field<String>)> {
    let Some(table) = value.table() else { return Vec::new() };
    table.entries().filter_map(|(name, value)| Some((name, value.string()?))).collect()
}

fn limits(value: &Value<'_>) -> Option<RawLimits> {
    let table = value.table()?.only(&["in_flight", "least", "most"], &[]);
    let number = |name: &str| table.get(name).and_then(|value| value.whole(1..=MOST_IN_FLIGHT));
    Some(RawLimits {
        in_flight: table.get("in_flight").and_then(|value| in_flight(&value)),
        least: number("least"),
        most: number("most"),
    })
}

fn in_flight(value: &Value<'_>) -> Option<Field<RawInFlight>> {
    if !value.is_string() {
        let number = value.whole(1..=MOST_IN_FLIGHT)?;
        return Some(number.with(RawInFlight::Number(number.value)));
    }
    let text = value.string()?;
    if text.value == "adaptive" {
        return Some(text.with(RawInFlight::Adaptive));
    }
    let mistake = value.mistake(Code::WrongType, "expected a whole number or \"adaptive\"");
    value.report().add(mistake.hint("write in_flight = 200 or in_flight = \"adaptive\""));
    None
}

fn errors(value: &Value<'_>) -> BTreeMap<u16, FailureClass> {
    let Some(table) = value.table() else { return BTreeMap::new() };
    let entry = |(status, value): (Field<String>, Value<'_>)| {
        let number = status.value.parse::<u16>().ok().filter(|number| (300..=599).contains(number));
        let well_formed = status.value.len() == 3 && number.is_some();
        if !well_formed {
            let mistake = status.mistake(Code::BadValue, "not an HTTP status between 300 and 599");
            table.report().add(mistake.hint("write it in quotes, as in \"402\" = \"quota-exhausted\""));
        }
        let class = value.word(&CLASSES)?;
        number.filter(|_| well_formed).map(|number| (number, class.value))
    };
    table.entries().filter_map(entry).collect()
}

fn model(table: &Table<'_>) -> Option<RawModel> {
    let table = table.clone().only(&["id", "name", "price", "context", "max_output"], &[]);
    let name = table.get("name").and_then(|value| upstream_name(&value));
    let price = table.get("price").and_then(|value| model_price(&value));
    let tokens = |name: &str| table.get(name).and_then(|value| value.whole(1..=MOST_TOKENS));
    let (context, max_output) = (tokens("context"), tokens("max_output"));
    let id = table.required("id").and_then(|value| value.name("-_.:@"))?;
    Some(RawModel { id, name, price, context, max_output })
}

/// A model's name at the provider: sent in JSON and shown in `wb-model`, so it must be fit for a header.
fn upstream_name(value: &Value<'_>) -> Option<Field<String>> {
    let name = value.string()?;
    let fits = (1..=200).contains(&name.value.len()) && name.value.bytes().all(|b| b.is_ascii_graphic());
    if fits { Some(name) } else { value.bad("a model's name has 1 to 200 visible ASCII characters without spaces") }
}

fn model_price(value: &Value<'_>) -> Option<RawPrice> {
    if value.is_string() {
        return value.word(&[("free", ())]).map(|_| RawPrice::Free);
    }
    token_price(value).map(Box::new).map(RawPrice::Tokens)
}

fn token_price(value: &Value<'_>) -> Option<RawTokenPrice> {
    const PRICE_KEYS: [&str; 5] = [
        "input_per_million_tokens",
        "cached_input_per_million_tokens",
        "output_per_million_tokens",
        "source",
        "checked",
    ];
    let table = value.table()?.only(&PRICE_KEYS, &[]);
    let input = table.required("input_per_million_tokens").and_then(|value| value.cost());
    let cached = table.get("cached_input_per_million_tokens").and_then(|value| value.cost());
    let output = table.required("output_per_million_tokens").and_then(|value| value.cost());
    let fact = RawFact::read(&table, "source");
    Some(RawTokenPrice { input: input?, cached, output: output?, fact: fact? })
}
