//! What `model_list` says of one deployment: who serves it, with whose key, at what weight.

use super::yaml::Node;

/// One entry of `model_list`.
pub(super) struct Deployment {
    pub(super) line: usize,
    /// What applications ask for.
    pub(super) group: String,
    /// What stands before the first `/` of the model: LiteLLM's name of the provider.
    pub(super) prefix: String,
    /// What the provider is asked for.
    pub(super) model: String,
    pub(super) base: Base,
    pub(super) key: Key,
    /// `weight`, else `rpm`, else `tpm`.
    pub(super) weight: Option<u64>,
    pub(super) order: Option<u64>,
    /// Of prompts and answers, in USD for a million tokens.
    pub(super) price: Option<(String, String)>,
    /// `model_info.mode`.
    pub(super) mode: Option<String>,
    /// Keys that do not come along, with their lines.
    pub(super) left_out: Vec<(usize, String)>,
}

/// Where the provider is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Base {
    /// Where it always is.
    Usual,
    Address(String),
    /// Only a variable knows.
    Variable,
}

/// The provider's key.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Key {
    /// In the variable where LiteLLM looks by itself.
    Usual,
    Variable(String),
    /// It stands in the file: kept here to tell two of them apart, and never written.
    Written(String),
    /// None is needed.
    None,
}

/// Providers of LiteLLM that take no prefix apart.
const WITHOUT_PREFIX: &str = "openai";
const VARIABLE: &str = "os.environ/";
/// Keys of `litellm_params` that are read here.
const READ: [&str; 8] = ["model", "api_base", "base_url", "api_key", "weight", "rpm", "tpm", "order"];
/// Keys of `model_info` that are read, or that nothing here needs.
const READ_INFO: [&str; 5] = ["input_cost_per_token", "output_cost_per_token", "mode", "id", "base_model"];

impl Deployment {
    /// Reads an entry; `None` if it has no name or no model.
    pub(super) fn read(node: &Node) -> Option<Self> {
        let params = node.get("litellm_params")?;
        let text = |key: &str| params.get(key).and_then(|value| value.text());
        let number =
            |key: &str| text(key).and_then(|text| text.replace('_', "").parse::<u64>().ok()).filter(|n| *n > 0);
        let full = text("model")?;
        let (prefix, model) = full.split_once('/').unwrap_or((WITHOUT_PREFIX, full));
        let info = node.get("model_info");
        let cost = |key: &str| {
            let own = params.get(key).and_then(|value| value.text());
            per_million(own.or_else(|| info?.get(key)?.text())?)
        };
        let base = match text("api_base").or(text("base_url")) {
            None => Base::Usual,
            Some(address) if address.starts_with(VARIABLE) => Base::Variable,
            Some(address) => Base::Address(address.to_owned()),
        };
        let key = match text("api_key") {
            None => Key::Usual,
            Some(key) => match key.strip_prefix(VARIABLE) {
                Some(name) if is_variable(name) => Key::Variable(name.to_owned()),
                _ if ["none", "fake", "dummy", "empty", "no-key", ""].contains(&&*key.to_ascii_lowercase()) => {
                    Key::None
                }
                _ => Key::Written(key.to_owned()),
            },
        };
        Some(Self {
            line: node.line,
            group: node.get("model_name")?.text()?.to_owned(),
            prefix: prefix.to_owned(),
            model: model.to_owned(),
            base,
            key,
            weight: number("weight").or(number("rpm")).or(number("tpm")),
            order: number("order"),
            price: cost("input_cost_per_token").zip(cost("output_cost_per_token")),
            mode: info.and_then(|info| info.get("mode")?.text()).map(str::to_owned),
            left_out: left_out(node, params),
        })
    }
}

fn left_out(node: &Node, params: &Node) -> Vec<(usize, String)> {
    let known = |key: &str| READ.contains(&key) || READ_INFO.contains(&key);
    let params = params.entries().iter().filter(|(key, _)| !known(key)).map(|(key, value)| (value.line, key.clone()));
    let info = node.get("model_info").map(|info| info.entries()).unwrap_or_default();
    let info = info.iter().filter(|(key, _)| !READ_INFO.contains(&key.as_str()));
    let info = info.map(|(key, value)| (value.line, format!("model_info.{key}")));
    let own = node
        .entries()
        .iter()
        .filter(|(key, _)| !["model_name", "litellm_params", "model_info"].contains(&key.as_str()));
    let own = own.map(|(key, value)| (value.line, key.clone()));
    params.chain(info).chain(own).collect()
}

fn is_variable(name: &str) -> bool {
    let begins_well = name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    begins_well && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// A price for one token as a price for a million, digit by digit: `2.5e-06` is `2.5`. `None` if it is no price, or finer
/// than six decimals of a dollar.
pub(super) fn per_million(text: &str) -> Option<String> {
    let lower = text.trim().to_ascii_lowercase();
    let (mantissa, exponent) = lower.split_once('e').unwrap_or((&lower, "0"));
    let exponent: i64 = exponent.parse().ok()?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if !plain(whole) || !plain(fraction) || whole.len() + fraction.len() > 30 || exponent.abs() > 30 {
        return None;
    }
    let digits = format!("{whole}{fraction}");
    let point = i64::try_from(whole.len()).ok()? + exponent + 6;
    let padded = match usize::try_from(point) {
        Ok(point) => format!("{digits:0<point$}"),
        Err(_) => format!("{}{digits}", "0".repeat(usize::try_from(-point).ok()?)),
    };
    let (whole, fraction) = padded.split_at_checked(usize::try_from(point).unwrap_or(0))?;
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    if fraction.len() > 6 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let whole = if whole.is_empty() { "0" } else { whole };
    Some(if fraction.is_empty() { format!("{whole}.00") } else { format!("{whole}.{fraction:0<2}") })
}
