//! One provider file to one [`Provider`], its secret resolved.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::address;
use super::checks;
use super::error::Code;
use super::keys::Resolving;
use super::options::CompileOptions;
use super::prices::RiskPrice;
use super::raw::RawFact;
use super::raw::prices::RawRiskPrice;
use super::raw::provider::{AuthKind, RawAuth, RawInFlight, RawLimits, RawModel, RawPrice, RawProvider, RawTokenPrice};
use super::report::{Field, Mistake, Report, accept};
use super::secrets::{Form, Use};
use super::shape;
use super::table::{Auth, BaseUrl, Fact, Model, Protocol, Provider, ProviderFacts, StreamUsage};
use super::tls::HttpVersion;
use super::tls_plan::Securing;
use crate::domain::id::ProviderId;
use crate::domain::money::TokenPrice;
use crate::domain::secret::Secret;
use crate::sign::keyring::Keyring;

/// Enough for an ordinary account; every provider file should say its own.
const DEFAULT_IN_FLIGHT: u32 = 256;
/// An adaptive limit leaves at least this much, so that it can learn that things are well again.
const LEAST_IN_FLIGHT: u32 = 2;

/// A provider and what is known about where its numbers come from.
pub(super) struct Built {
    pub(super) provider: Arc<Provider>,
    pub(super) facts: ProviderFacts,
    /// False if the secret is a placeholder.
    pub(super) secret_is_real: bool,
}

/// What a provider is built with.
pub(super) struct Builder<'b> {
    pub(super) options: &'b CompileOptions<'b>,
    pub(super) report: &'b Report<'b>,
}

impl Builder<'_> {
    /// Checks a provider file and builds the provider; `None` after reporting what is wrong.
    pub(super) fn build(&self, raw: &RawProvider, used: Use) -> Option<Built> {
        let protocol = raw.protocol.as_ref().map(|field| field.value);
        let auth = raw.auth.as_ref().and_then(|auth| self.auth(auth, protocol, used));
        checks::unique(raw.models.iter().map(|model| &model.id), "the model's id", self.report);
        let models = raw.models.iter().filter_map(|model| self.model(model)).collect();
        let price = raw.price.as_ref().and_then(|price| self.risk_price(price));
        let headers = self.headers(raw);
        let base_url = self.base_url(raw, protocol);
        let tls = Securing { options: self.options, used, report: self.report }.settings(raw, base_url.as_ref());
        let protocol = protocol?;
        checks::sections_of_protocol(raw, protocol, self.report);
        let operations = checks::operations(raw, protocol, self.report);
        let shape = shape::shape(&raw.shape, self.report);
        let paths = shape::paths(&raw.shape, &operations, self.report);
        shape::of_protocol(&raw.shape, protocol, self.report);
        let limits = self.limits(&raw.limits);
        let id = ProviderId::new(raw.id.as_ref()?.value.as_str());
        let facts = facts(raw)?;
        let (auth, secret_is_real) = auth?;
        let provider = Provider {
            protocol,
            base_url: base_url?,
            auth,
            operations,
            headers,
            in_flight: limits.0,
            adaptive_least: limits.1,
            quota_group: raw.quota_group.as_ref().map_or_else(|| id.as_str().to_owned(), |group| group.value.clone()),
            stream_usage: raw.stream_usage.as_ref().map_or(StreamUsage::OnRequest, |field| field.value),
            errors: raw.errors.clone(),
            error_codes: raw.shape.error_codes.clone(),
            shape,
            // Simulators have everything where the protocol has it.
            paths: if self.options.rewire.is_some() { BTreeMap::new() } else { paths },
            models,
            price,
            allow_private: self.options.rewire.is_some() || raw.allow_private.as_ref().is_some_and(|flag| flag.value),
            tls,
            // Simulators speak HTTP/1.1.
            http: raw
                .http
                .as_ref()
                .filter(|_| self.options.rewire.is_none())
                .map_or(HttpVersion::One, |http| http.value),
            id,
        };
        Some(Built { provider: Arc::new(provider), facts, secret_is_real })
    }

    fn base_url(&self, raw: &RawProvider, protocol: Option<Protocol>) -> Option<BaseUrl> {
        let text = raw.base_url.as_ref()?;
        match self.options.rewire {
            Some(rewire) => {
                let well_formed =
                    address::parse(&text.value).map_err(|error| text.mistake(Code::BadValue, error.to_string()));
                accept(well_formed, self.report)?;
                Some(rewire(&ProviderId::new(raw.id.as_ref()?.value.as_str()), protocol?))
            }
            None => accept(checks::base_url(text, raw.allow_private.as_ref()), self.report),
        }
    }

    /// The most requests in flight, and the least where that adapts.
    fn limits(&self, raw: &RawLimits) -> (u32, Option<u32>) {
        let adaptive = raw.in_flight.as_ref().is_some_and(|limit| limit.value == RawInFlight::Adaptive);
        if !adaptive {
            for bound in [&raw.least, &raw.most].into_iter().flatten() {
                let mistake = bound.mistake(Code::Conflict, "this bounds an adaptive limit, and the limit is fixed");
                self.report.add(mistake.hint("write in_flight = \"adaptive\", or remove it"));
            }
            let number = raw.in_flight.as_ref().map(|limit| limit.value);
            return (if let Some(RawInFlight::Number(number)) = number { number } else { DEFAULT_IN_FLIGHT }, None);
        }
        let most = raw.most.as_ref().map_or(DEFAULT_IN_FLIGHT, |most| most.value);
        let least = raw.least.as_ref().map_or(LEAST_IN_FLIGHT.min(most), |least| least.value);
        if let Some(field) = raw.least.as_ref().filter(|_| least > most) {
            let mistake = field.mistake(Code::Conflict, format!("more than most, which is {most}"));
            self.report.add(mistake.hint("lower it, or raise most"));
        }
        (most, Some(least))
    }

    fn headers(&self, raw: &RawProvider) -> Vec<(String, String)> {
        let checked = raw.headers.iter().map(|(name, value)| checks::fixed_header(name, value));
        checked.filter_map(|header| accept(header, self.report)).collect()
    }

    /// A credential, its secret looked up.
    pub(super) fn auth(&self, raw: &RawAuth, protocol: Option<Protocol>, used: Use) -> Option<(Auth, bool)> {
        let kind = raw.kind.as_ref()?;
        if let Some(protocol) = protocol {
            let _ = accept(checks::auth_of_protocol(kind, protocol), self.report);
        }
        checks::auth_keys(raw, kind.value, self.report);
        match kind.value {
            AuthKind::None => Some((Auth::None, true)),
            AuthKind::Bearer => {
                let (secret, real) = self.secret(raw, Form::Key, used)?;
                Some((Auth::Bearer { secret }, real))
            }
            AuthKind::Header => {
                let name = self.accept_auth(checks::auth_header(raw), raw);
                let (secret, real) = self.secret(raw, Form::Key, used)?;
                Some((Auth::Header { name: name?, secret }, real))
            }
            AuthKind::DiHmac => {
                if let Some(keys) = &raw.keys {
                    let ringed = self.resolving(used).list(keys)?;
                    return Some((Auth::DiHmac { keys: ringed.keys }, ringed.real));
                }
                let key_id = required(raw.key_id.as_ref(), raw, "key_id", "the name the provider gave to the secret");
                let encoding =
                    required(raw.secret_encoding.as_ref(), raw, "secret_encoding", "\"hex\", \"base64\" or \"raw\"");
                let (key_id, encoding) = (self.accept_auth(key_id, raw), self.accept_auth(encoding, raw));
                let (secret, real) = self.secret(raw, Form::Signing(encoding?.value), used)?;
                Some((Auth::DiHmac { keys: Keyring::single(&*key_id?.value, secret) }, real))
            }
        }
    }

    fn resolving(&self, used: Use) -> Resolving<'_> {
        Resolving { secrets: self.options.secrets, used, report: self.report }
    }

    fn secret(&self, raw: &RawAuth, form: Form, used: Use) -> Option<(Secret, bool)> {
        let place = checks::secret_place(&raw.at, raw.secret_env.as_ref(), raw.secret_file.as_ref());
        let place = self.accept_auth(place, raw)?;
        let resolved = accept(self.options.secrets.resolve(&place, form, used), self.report)?;
        Some((resolved.secret, resolved.real))
    }

    /// Reports a mistake, unless it calls a key missing that is there and was reported as unreadable.
    fn accept_auth<T>(&self, checked: Result<T, Mistake>, raw: &RawAuth) -> Option<T> {
        match checked {
            Err(mistake) if mistake.is(Code::MissingKey) && !raw.sound => None,
            checked => accept(checked, self.report),
        }
    }

    fn model(&self, raw: &RawModel) -> Option<Arc<Model>> {
        let price = match &raw.price {
            Some(RawPrice::Tokens(price)) => Some(self.token_price(price)?),
            Some(RawPrice::Free) => Some(TokenPrice::FREE),
            None => None,
        };
        let (context, max_output) = (raw.context.as_ref(), raw.max_output.as_ref());
        if let (Some(context), Some(most)) =
            (context, max_output.filter(|most| context.is_some_and(|c| most.value > c.value)))
        {
            let mistake = most.mistake(Code::Conflict, format!("more than context, which is {}", context.value));
            self.report.add(mistake.hint("an answer is part of the context"));
        }
        let name = raw.name.as_ref().unwrap_or(&raw.id).value.clone();
        let (context, max_output) = (context.map(|field| field.value), max_output.map(|field| field.value));
        Some(Arc::new(Model { id: raw.id.value.clone(), name, price, context, max_output }))
    }

    fn token_price(&self, raw: &RawTokenPrice) -> Option<TokenPrice> {
        let input = raw.input.value;
        let output = accept(checks::same_currency(&raw.output, input.currency), self.report)?;
        let cached = match &raw.cached {
            Some(price) => Some(accept(checks::same_currency(price, input.currency), self.report)?),
            None => None,
        };
        Some(TokenPrice { input_per_million: input, cached_input_per_million: cached, output_per_million: output })
    }

    fn risk_price(&self, raw: &RawRiskPrice) -> Option<RiskPrice> {
        let currency = raw.standard.value.currency;
        let same = |price| accept(checks::same_currency(price, currency), self.report);
        let mut features = BTreeMap::new();
        for (name, price) in &raw.features {
            let name = accept(checks::feature_name(name, price), self.report);
            if let (Some(name), Some(price)) = (name, same(price)) {
                features.insert(name.to_string(), price);
            }
        }
        let cross_border = raw.cross_border.as_ref().map(same);
        let cross_border = match cross_border {
            Some(price) => Some(price?),
            None => None,
        };
        if let Some(when) = raw.cross_border_when.as_ref().filter(|_| raw.cross_border.is_none()) {
            let mistake = when.mistake(Code::Conflict, "there is no cross-border price that this could be about");
            self.report.add(mistake.hint("add cross_border, or remove it"));
        }
        Some(RiskPrice {
            // The day somebody looked names a price list too, if nothing better does.
            version: raw.version.as_ref().map_or(raw.fact.checked.value.as_str(), |version| &version.value).into(),
            standard: raw.standard.value,
            cross_border,
            cross_border_when: raw.cross_border_when.as_ref().map(|when| when.value).unwrap_or_default(),
            features,
        })
    }
}

fn required<'f, T>(
    field: Option<&'f Field<T>>,
    auth: &RawAuth,
    name: &str,
    hint: &str,
) -> Result<&'f Field<T>, Mistake> {
    field
        .ok_or_else(|| auth.at.mistake(Code::MissingKey, format!("missing key `{name}`")).hint(format!("write {hint}")))
}

fn facts(raw: &RawProvider) -> Option<ProviderFacts> {
    let fact = |raw: &RawFact| Fact { url: raw.url.value.clone(), checked: raw.checked.value.clone() };
    let models = raw.models.iter().filter_map(|model| match &model.price {
        Some(RawPrice::Tokens(price)) => Some((model.id.value.clone(), fact(&price.fact))),
        Some(RawPrice::Free) | None => None,
    });
    Some(ProviderFacts {
        source: fact(raw.source.as_ref()?),
        model_prices: models.collect(),
        price: raw.price.as_ref().map(|price| fact(&price.fact)),
    })
}
