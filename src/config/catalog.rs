//! Every provider file by its id, for the questions routes ask: does it exist, does it offer this, what was meant.
//!
//! A file with mistakes still counts as existing, so that one typing error in it is not also reported by every route
//! that uses it.

use std::collections::{BTreeMap, BTreeSet};

use super::builtin;
use super::checks;
use super::error::Code;
use super::mask;
use super::raw::Document;
use super::raw::provider::{RawPrice, RawProvider};
use super::read::{nearest, shown};
use super::report::{Field, Mistake, Report, accept};
use super::schema;
use super::table::Protocol;
use crate::domain::currency::Currency;
use crate::domain::money::TokenPrice;
use crate::domain::operation::Operation;

/// A candidate that exists.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Pick {
    pub(super) provider: String,
    pub(super) model: Option<String>,
}

impl Pick {
    /// `provider/model`, or the provider alone.
    pub(super) fn upstream(&self) -> String {
        match &self.model {
            Some(model) => format!("{}/{model}", self.provider),
            None => self.provider.clone(),
        }
    }
}

/// All provider files.
#[derive(Default)]
pub(super) struct Catalog {
    providers: BTreeMap<String, RawProvider>,
    /// Ids of files that are not TOML.
    unreadable: BTreeSet<String>,
    /// True if some file did not even give its id: then "no such provider" would be a guess.
    nameless: bool,
}

impl Catalog {
    /// Reads all files.
    pub(super) fn read<'t>(documents: &'t [Document<'t>], report: &'t Report<'t>) -> Self {
        let mut catalog = Self::default();
        for document in documents {
            if document.sound {
                catalog.add(RawProvider::read(&document.root(schema::PROVIDER, report)), report);
            } else {
                match document.id() {
                    Some(id) => drop(catalog.unreadable.insert(id.to_owned())),
                    None => catalog.nameless = true,
                }
            }
        }
        catalog
    }

    fn add(&mut self, provider: RawProvider, report: &Report<'_>) {
        let Some(id) = provider.id.clone() else {
            self.nameless = true;
            return;
        };
        if let Some(first) = self.providers.get(&id.value).and_then(|first| first.id.as_ref()) {
            let mistake =
                id.mistake(Code::Repeated, format!("provider {} exists already", shown(&id.value, "with this id")));
            report.add(mistake.hint(format!("first at {}", report.place_of(first.at))));
        } else {
            self.providers.insert(id.value, provider);
        }
    }

    /// Every provider by id.
    pub(super) fn providers(&self) -> &BTreeMap<String, RawProvider> {
        &self.providers
    }

    /// A risk candidate: a provider that speaks `di-hmac` and assesses risk.
    pub(super) fn risk_pick(&self, candidate: &Field<String>) -> Result<Option<Pick>, Mistake> {
        if candidate.value.contains('/') {
            let mistake = candidate.mistake(Code::BadValue, "a risk candidate is a provider's id without a model");
            return Err(mistake.hint("write the id alone, as in \"alipay\""));
        }
        let Some(provider) = self.find(candidate, &candidate.value)? else { return Ok(None) };
        check_protocol(candidate, provider, Protocol::DiHmac)?;
        check_operation(candidate, provider, Operation::RiskAssess, |operation| operation == Operation::RiskAssess)?;
        Ok(Some(Pick { provider: candidate.value.clone(), model: None }))
    }

    /// An LLM candidate: `provider/model`, both known.
    pub(super) fn llm_pick(&self, candidate: &Field<String>, report: &Report<'_>) -> Result<Option<Pick>, Mistake> {
        let Some((id, model)) =
            candidate.value.split_once('/').filter(|(id, model)| !id.is_empty() && !model.is_empty())
        else {
            let mistake = candidate.mistake(Code::BadValue, "a candidate is written provider/model");
            return Err(mistake.hint(self.models_of(&candidate.value)));
        };
        let Some(provider) = self.llm_provider(candidate, id)? else { return Ok(None) };
        if provider.models.iter().any(|known| known.id.value == model) {
            return Ok(Some(Pick { provider: id.to_owned(), model: Some(model.to_owned()) }));
        }
        if !provider.models_sound {
            return Ok(None);
        }
        Err(unknown_model(candidate, (id, model), provider, report))
    }

    /// All models of a provider, for `provider/*`.
    pub(super) fn llm_picks(&self, candidate: &Field<String>, id: &str) -> Result<Vec<Pick>, Mistake> {
        let Some(provider) = self.llm_provider(candidate, id)? else { return Ok(Vec::new()) };
        if provider.models.is_empty() && provider.models_sound {
            return Err(candidate.mistake(Code::UnknownName, "the provider has no models"));
        }
        let pick = |model: &str| Pick { provider: id.to_owned(), model: Some(model.to_owned()) };
        Ok(provider.models.iter().map(|model| pick(&model.id.value)).collect())
    }

    /// Whether a provider's id is that of a file.
    pub(super) fn exists(&self, id: &Field<String>) -> Result<(), Mistake> {
        self.find(id, &id.value).map(drop)
    }

    /// Where a candidate is defined: its model's line, or its provider's.
    pub(super) fn place_of(&self, pick: &Pick, report: &Report<'_>) -> Option<String> {
        let provider = self.providers.get(&pick.provider)?;
        let model = provider.models.iter().find(|model| pick.model.as_ref() == Some(&model.id.value));
        let at = model.map(|model| model.id.at).or_else(|| provider.id.as_ref().map(|id| id.at))?;
        Some(report.place_of(at))
    }

    /// The currency a model is billed in, if its price is known.
    pub(super) fn currency_of(&self, pick: &Pick) -> Option<Currency> {
        let model = pick.model.as_ref()?;
        let known = self.providers.get(&pick.provider)?.models.iter().find(|known| known.id.value == *model)?;
        Some(match known.price.as_ref()? {
            RawPrice::Tokens(price) => price.input.value.currency,
            RawPrice::Free => TokenPrice::FREE.currency(),
        })
    }

    fn llm_provider(&self, candidate: &Field<String>, id: &str) -> Result<Option<&RawProvider>, Mistake> {
        let Some(provider) = self.find(candidate, id)? else { return Ok(None) };
        check_protocol(candidate, provider, Protocol::OpenAi)?;
        check_operation(candidate, provider, Operation::ChatCompletions, Operation::asks_a_model)?;
        Ok(Some(provider))
    }

    /// The provider, `None` if a mistake in its file has been reported already.
    fn find(&self, candidate: &Field<String>, id: &str) -> Result<Option<&RawProvider>, Mistake> {
        if let Some(provider) = self.providers.get(id) {
            return Ok(Some(provider));
        }
        if self.nameless || self.unreadable.contains(id) {
            return Ok(None);
        }
        let message =
            if mask::may_be_shown(id) { format!("no provider `{id}`") } else { "no such provider".to_owned() };
        let mistake = candidate.mistake(Code::UnknownName, message);
        Err(match nearest(id, self.providers.keys().map(String::as_str)) {
            Some(meant) => mistake.hint(format!("did you mean `{meant}`?")),
            None => mistake.hint(format!("known: {}", list(self.providers.keys().map(String::as_str)))),
        })
    }

    fn models_of(&self, id: &str) -> String {
        match self.providers.get(id) {
            Some(provider) if !provider.models.is_empty() => {
                let models: Vec<String> =
                    provider.models.iter().map(|model| format!("{id}/{}", model.id.value)).collect();
                format!("as in: {}", list(models.iter().map(String::as_str)))
            }
            _ => "as in \"openrouter/deepseek-chat\"".to_owned(),
        }
    }
}

fn unknown_model(
    candidate: &Field<String>,
    (id, model): (&str, &str),
    provider: &RawProvider,
    report: &Report<'_>,
) -> Mistake {
    let known = || provider.models.iter().map(|model| model.id.value.as_str());
    let message = format!("provider `{id}` has no {}", shown(model, "such model"));
    let message = if mask::may_be_shown(model) { message.replace("no `", "no model `") } else { message };
    let mistake = candidate.mistake(Code::UnknownName, message);
    let place = provider.id.as_ref().map(|id| report.place_of(id.at)).unwrap_or_default();
    match nearest(model, known()) {
        _ if builtin::has_model(id, model) => mistake.hint(format!(
            "the built-in file of this provider has it; the file at {place} takes its place and has: {}",
            list(known())
        )),
        Some(meant) => mistake.hint(format!("did you mean `{id}/{meant}`?")),
        None => mistake.hint(format!("the provider defined at {place} has: {}", list(known()))),
    }
}

fn check_protocol(candidate: &Field<String>, provider: &RawProvider, wanted: Protocol) -> Result<(), Mistake> {
    let Some(protocol) = &provider.protocol else { return Ok(()) };
    match (protocol.value, wanted) {
        (Protocol::OpenAi, Protocol::DiHmac) => {
            let mistake = candidate.mistake(Code::Conflict, "the provider speaks openai, which has no risk decisions");
            Err(mistake.hint("a risk candidate's protocol is \"di-hmac\""))
        }
        (Protocol::DiHmac, Protocol::OpenAi) => {
            let mistake = candidate.mistake(Code::Conflict, "the provider speaks di-hmac, which has no models");
            Err(mistake.hint("use it under [risk]; a model's candidates speak \"openai\""))
        }
        (Protocol::OpenAi, Protocol::OpenAi) | (Protocol::DiHmac, Protocol::DiHmac) => Ok(()),
    }
}

/// Whether some operation of the provider is of use here; `wanted` is the one to name if not.
fn check_operation(
    candidate: &Field<String>,
    provider: &RawProvider,
    wanted: Operation,
    of_use: impl Fn(Operation) -> bool,
) -> Result<(), Mistake> {
    let Some(operations) = &provider.operations else { return Ok(()) };
    // An operation that could not be read has been reported and may be the wanted one.
    if operations.value.offers(of_use) {
        return Ok(());
    }
    let mistake = candidate.mistake(Code::Conflict, format!("the provider does not offer {}", wanted.label()));
    Err(mistake.hint("choose another provider, or add the operation to its file if it can do it"))
}

fn list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let shown: Vec<&str> = names.filter(|name| mask::may_be_shown(name)).take(10).collect();
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

/// The candidates that exist, of a list that must have some and none twice.
pub(super) fn picks(
    candidates: Option<&Field<Vec<Field<String>>>>,
    pick: impl Fn(&Field<String>) -> Result<Option<Pick>, Mistake>,
    report: &Report<'_>,
) -> Vec<Pick> {
    let Some(candidates) = candidates else { return Vec::new() };
    let _ = accept(checks::not_empty(candidates, "name at least one candidate, the preferred one first"), report);
    checks::unique(candidates.value.iter(), "the candidate", report);
    candidates.value.iter().filter_map(|candidate| accept(pick(candidate), report).flatten()).collect()
}
