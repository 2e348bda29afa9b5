//! From deployments to providers: which of them are built in, which need a file, and what their models are called here.

use std::collections::BTreeSet;

use super::deployments::{Base, Deployment, Key};
use super::write::{Notes, quoted};
use crate::config::address::{self, Reach};
use crate::config::builtin;
use crate::config::source::SourceFile;

/// LiteLLM's names of providers that have a built-in file, and its id.
const BUILT_IN: [(&str, &str); 14] = [
    ("openai", "openai"),
    ("text-completion-openai", "openai"),
    ("anthropic", "anthropic"),
    ("deepseek", "deepseek"),
    ("groq", "groq"),
    ("mistral", "mistral"),
    ("openrouter", "openrouter"),
    ("gemini", "gemini"),
    ("together_ai", "together"),
    ("together", "together"),
    ("dashscope", "dashscope"),
    ("moonshot", "moonshot"),
    ("litellm_proxy", "litellm"),
    ("hosted_vllm", "vllm"),
];
/// Providers that speak a language of their own, which this program does not.
const FOREIGN: [&str; 10] = [
    "bedrock",
    "vertex_ai",
    "vertex_ai_beta",
    "sagemaker",
    "cohere",
    "cohere_chat",
    "replicate",
    "huggingface",
    "watsonx",
    "predibase",
];
/// An address that nobody has: it says what is missing, and it cannot be reached by accident.
const NOWHERE: &str = "https://weighbridge.invalid/v1";
/// Where nothing was looked up.
const NO_PAGE: &str = "https://weighbridge.invalid/nobody-looked";

/// One provider as it will be.
struct Planned {
    /// Who it is: deployments that agree in all three are one provider.
    key: (String, Base, Key),
    id: String,
    base_url: String,
    auth: String,
    /// The file that it is made of, if it is built in.
    built_in: Option<(SourceFile, toml::Table)>,
    /// Models that the built-in file has not: id, name, price, line.
    added: Vec<Added>,
    operations: BTreeSet<&'static str>,
    /// True if the file differs from the built-in one in more than models.
    changed: bool,
}

struct Added {
    id: String,
    name: String,
    price: Option<(String, String)>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Upstreams {
    planned: Vec<Planned>,
}

impl Upstreams {
    /// `provider/model` for a deployment; `None` if nobody here can speak to it.
    pub(super) fn candidate(&mut self, deployment: &Deployment, notes: &mut Notes) -> Option<String> {
        if FOREIGN.contains(&deployment.prefix.as_str()) {
            let why =
                "its provider does not speak OpenAI's interface; put a gateway in between, or use another provider";
            notes.add(deployment.line, &format!("the deployment of {}: {why}", quoted(&deployment.group)));
            return None;
        }
        let key = plain(deployment);
        let known = self.planned.iter().position(|planned| planned.key == key);
        let index = known.unwrap_or(self.planned.len());
        if known.is_none() {
            let planned = self.plan(key, deployment, notes);
            self.planned.push(planned);
        }
        let planned = self.planned.get_mut(index)?;
        let model = planned.model(deployment);
        planned.operations.insert(match deployment.mode.as_deref() {
            Some("embedding") => "embeddings",
            Some("completion") => "completions",
            Some("image_generation") => "images.generations",
            Some("audio_transcription") => "audio.transcriptions",
            Some("audio_speech") => "audio.speech",
            Some("moderation") => "moderations",
            Some("responses") => "responses",
            _ => "chat.completions",
        });
        Some(format!("{}/{model}", planned.id))
    }

    fn plan(&self, key: (String, Base, Key), deployment: &Deployment, notes: &mut Notes) -> Planned {
        let known = BUILT_IN.iter().find(|(prefix, _)| *prefix == key.0).and_then(|(_, id)| of_id(id));
        let usual = known.as_ref().and_then(|(_, table)| table.get("base_url")?.as_str()).map(str::to_owned);
        let base_url = match &key.1 {
            Base::Usual => usual.clone(),
            Base::Address(address) => Some(Self::address(address, deployment, notes)),
            Base::Variable => None,
        };
        let base_url = base_url.unwrap_or_else(|| {
            let what = "the address of the provider of";
            let why = "is not in the file: write it as base_url";
            notes.add(deployment.line, &format!("{what} {} {why} in its provider file", quoted(&deployment.group)));
            NOWHERE.to_owned()
        });
        let same = |usual: &String| usual.trim_end_matches('/') == base_url.trim_end_matches('/');
        let built_in = known.filter(|_| usual.as_ref().is_some_and(same));
        let host = address::parse(&base_url).map(|url| url.host).unwrap_or_default();
        let id = match &built_in {
            Some((_, table)) => self.id(said(table, "id")),
            // The name of a built-in provider stays free for itself.
            None if of_id(&key.0).is_some() => {
                self.id(&format!("{}-{}", key.0, host.split('.').next().unwrap_or_default()))
            }
            None => self.id(&key.0),
        };
        let variable = format!("{}_API_KEY", id.to_ascii_uppercase().replace('-', "_"));
        let own = built_in.as_ref().and_then(|(_, table)| table.get("auth")?.as_table()?.get("secret_env")?.as_str());
        let header =
            if key.0.starts_with("azure") { "kind = \"header\", name = \"api-key\"" } else { "kind = \"bearer\"" };
        let secret = match &key.2 {
            Key::None => None,
            Key::Usual if built_in.is_none() && address::reach(&host) == Reach::Private => None,
            Key::Variable(name) => Some(name.clone()),
            Key::Usual => Some(own.map_or(variable, str::to_owned)),
            Key::Written(_) => {
                let why = format!("stands in the file: put it into the variable {variable}, and make a new one");
                notes
                    .add(deployment.line, &format!("the key of the deployment of {} {why}", quoted(&deployment.group)));
                Some(variable)
            }
        };
        let changed =
            own.map(str::to_owned) != secret || built_in.as_ref().is_some_and(|(_, table)| said(table, "id") != id);
        let auth = match secret {
            Some(variable) => format!("{{ {header}, secret_env = \"{variable}\" }}"),
            None => "{ kind = \"none\" }".to_owned(),
        };
        Planned { key, id, base_url, auth, built_in, added: Vec::new(), operations: BTreeSet::new(), changed }
    }

    /// An address that the checks accept, or nowhere.
    fn address(written: &str, deployment: &Deployment, notes: &mut Notes) -> String {
        let plain = written.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        let path = match deployment.prefix.as_str() {
            "azure" if !plain.ends_with("/openai/v1") => "/openai/v1",
            "ollama" | "ollama_chat" if !plain.ends_with("/v1") => "/v1",
            _ => "",
        };
        let whole = format!("{plain}{path}");
        let Ok(url) = address::parse(&whole) else {
            notes.add(
                deployment.line,
                &format!("the address of the deployment of {} cannot be used", quoted(&deployment.group)),
            );
            return NOWHERE.to_owned();
        };
        if url.tls || address::reach(&url.host) == Reach::Private {
            return whole;
        }
        let why = "is plain http to a public host: https was written in its place";
        notes.add(deployment.line, &format!("the address of the deployment of {} {why}", quoted(&deployment.group)));
        whole.replacen("http://", "https://", 1)
    }

    /// A free id that begins like this.
    fn id(&self, like: &str) -> String {
        let plain: String =
            like.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
        let plain: String = plain.trim_matches('-').chars().take(28).collect();
        let plain = if plain.is_empty() { "provider".to_owned() } else { plain };
        let taken = |id: &String| self.planned.iter().any(|planned| planned.id == *id);
        let numbered = (2..).map(|number| format!("{plain}-{number}"));
        std::iter::once(plain.clone()).chain(numbered).find(|id| !taken(id)).unwrap_or(plain)
    }

    /// The files that are needed.
    pub(super) fn files(&self, day: &str) -> Vec<(String, String)> {
        let needed = self.planned.iter().filter(|planned| planned.needs_file());
        needed.map(|planned| (format!("{}.toml", planned.id), planned.file(day))).collect()
    }
}

impl Planned {
    /// What routes call the model.
    fn model(&mut self, deployment: &Deployment) -> String {
        let listed = self.built_in.iter().filter_map(|(_, table)| table.get("model")?.as_array()).flatten();
        let mut listed = listed.filter_map(|model| model.as_table());
        let name = |model: &toml::Table| {
            model.get("name").or(model.get("id")).and_then(|name| name.as_str()).map(str::to_owned)
        };
        if let Some(model) = listed.find(|model| name(model).as_deref() == Some(&deployment.model)) {
            return said(model, "id").to_owned();
        }
        if let Some(known) = self.added.iter().find(|added| added.name == deployment.model) {
            return known.id.clone();
        }
        let last = deployment.model.rsplit('/').next().unwrap_or_default();
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
        let id: String = last.chars().map(|c| if fits(c) { c } else { '-' }).take(60).collect();
        let id = id.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned();
        let id = if id.is_empty() { "model".to_owned() } else { id };
        let taken = |id: &String| self.has(id) || self.added.iter().any(|added| added.id == *id);
        let numbered = (2..100).map(|number| format!("{id}-{number}"));
        let id = std::iter::once(id.clone()).chain(numbered).find(|id| !taken(id)).unwrap_or(id);
        let added = Added { id: id.clone(), name: deployment.model.clone(), price: deployment.price.clone() };
        self.added.push(added);
        id
    }

    fn has(&self, id: &str) -> bool {
        let models = self.built_in.iter().filter_map(|(_, table)| table.get("model")?.as_array()).flatten();
        models.filter_map(|model| model.as_table()).any(|model| said(model, "id") == id)
    }

    fn needs_file(&self) -> bool {
        self.built_in.is_none() || self.changed || !self.added.is_empty()
    }

    fn file(&self, day: &str) -> String {
        let head = match &self.built_in {
            Some((source, table)) => self.of_built_in(&source.text, table),
            None => self.of_nothing(day),
        };
        let models = self.added.iter().map(|added| added.text(day));
        format!("{}\n{}", head.trim_end(), models.collect::<String>())
    }

    /// The built-in file under its name, with its key; its comments stay.
    fn of_built_in(&self, text: &str, table: &toml::Table) -> String {
        let lines = text.lines().map(|line| match line.split_once('=').map(|(key, _)| key.trim()) {
            Some("id") if line == format!("id = \"{}\"", said(table, "id")) => format!("id = \"{}\"", self.id),
            Some("auth") if line.starts_with("auth") && self.changed => format!("auth = {}", self.auth),
            _ => line.to_owned(),
        });
        lines.map(|line| line + "\n").collect()
    }

    fn of_nothing(&self, day: &str) -> String {
        let private = address::parse(&self.base_url).is_ok_and(|url| address::reach(&url.host) == Reach::Private);
        let private = if private { "allow_private = true # the address is of this machine or network\n" } else { "" };
        let operations: Vec<String> = self.operations.iter().map(|operation| quoted(operation)).collect();
        format!(
            "# Made from a LiteLLM configuration on {day}; nobody has looked at the provider's own pages: `source` is a\n\
             # placeholder, and what it needs changed in requests (`drop`, `rename`, `body`) is not known.\n\
             id = \"{}\"\nprotocol = \"openai\"\nbase_url = {}\n{private}\
             source = {{ url = \"{NO_PAGE}\", checked = \"{day}\" }}\nauth = {}\noperations = [{}]\n",
            self.id,
            quoted(&self.base_url),
            self.auth,
            operations.join(", ")
        )
    }
}

impl Added {
    fn text(&self, day: &str) -> String {
        let name = if self.name == self.id { String::new() } else { format!("name = {}\n", quoted(&self.name)) };
        let price = self.price.as_ref().map(|(input, output)| {
            format!(
                "price = {{ input_per_million_tokens = \"{input} USD\", output_per_million_tokens = \"{output} USD\", \
                 source = \"{NO_PAGE}\", checked = \"{day}\" }} # as the LiteLLM configuration said\n"
            )
        });
        format!("\n[[model]]\nid = {}\n{name}{}", quoted(&self.id), price.unwrap_or_default())
    }
}

/// Who it is, with what is usual said as that: then two ways to say it are one provider.
fn plain(deployment: &Deployment) -> (String, Base, Key) {
    let known = BUILT_IN.iter().find(|(prefix, _)| *prefix == deployment.prefix).and_then(|(_, id)| of_id(id));
    let (mut base, mut key) = (deployment.base.clone(), deployment.key.clone());
    if let Some((_, table)) = known {
        let usual = said(&table, "base_url").trim_end_matches('/');
        if matches!(&base, Base::Address(address) if address.trim_end_matches('/') == usual) {
            base = Base::Usual;
        }
        let own = table.get("auth").and_then(|auth| auth.get("secret_env")?.as_str());
        if matches!(&key, Key::Variable(name) if Some(name.as_str()) == own) {
            key = Key::Usual;
        }
    }
    (deployment.prefix.clone(), base, key)
}

fn of_id(id: &str) -> Option<(SourceFile, toml::Table)> {
    let parsed = builtin::providers().into_iter().filter_map(|file| {
        let table: toml::Table = file.text.parse().ok()?;
        Some((file, table))
    });
    let mut parsed = parsed;
    parsed.find(|(_, table)| said(table, "id") == id)
}

fn said<'t>(table: &'t toml::Table, key: &str) -> &'t str {
    table.get(key).and_then(|value| value.as_str()).unwrap_or_default()
}
