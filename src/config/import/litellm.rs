//! The sections of a LiteLLM proxy `config.yaml`, as <https://docs.litellm.ai/docs/proxy/configs> describes them (read
//! 2026-11-23).

use std::rc::Rc;
use std::time::Duration;

use super::deployments::Deployment;
use super::upstreams::Upstreams;
use super::write::{Notes, quoted};
use super::yaml::Node;
use super::{Given, ImportError, Imported};
use crate::config::read::is_name;
use crate::config::units;

/// As many as a route may have.
const MOST_CANDIDATES: usize = 32;
const MOST_ROUTES: usize = 500;
const HEAVIEST: u64 = 1000;
/// LiteLLM's own life of an entry where none is written, in seconds.
const USUAL_TTL: f64 = 600.0;

/// What holds for every route.
struct Settings {
    strategy: String,
    retries: Option<u64>,
    /// Seconds.
    timeout: Option<f64>,
    /// Seconds.
    cache: Option<f64>,
    /// What follows when a group fails: its name, and those after it.
    fallbacks: Vec<(String, Vec<String>)>,
    too_long: Vec<(String, Vec<String>)>,
    refused: Vec<(String, Vec<String>)>,
    /// What follows every group.
    always: Vec<String>,
    /// Other names of groups.
    aliases: Vec<(String, String)>,
}

/// One route as it will be.
struct Group {
    name: String,
    deployments: Vec<Deployment>,
    candidates: Vec<(String, Option<u64>)>,
}

pub(super) fn import(root: &Node, given: Given<'_>) -> Result<Imported, ImportError> {
    let mut notes = Notes::default();
    let mut upstreams = Upstreams::default();
    let groups = groups(root, &mut upstreams, &mut notes);
    if groups.is_empty() {
        return Err(ImportError::NoModels);
    }
    let settings = settings(root, &mut notes);
    let routes: String = groups.iter().map(|group| route(group, &group.name, &groups, &settings, &mut notes)).collect();
    let aliases: String = settings
        .aliases
        .iter()
        .filter(|(alias, _)| !groups.iter().any(|group| group.name == *alias))
        .filter_map(|(alias, name)| {
            let group = groups.iter().find(|group| group.name == *name)?;
            Some(route(group, &route_name(alias), &groups, &settings, &mut notes))
        })
        .collect();
    let left_out = notes.len();
    let told = if left_out == 0 {
        "# Everything came along.\n".to_owned()
    } else {
        format!("# What did not come along:\n#\n{}", notes.comments(given.name))
    };
    let routes = format!(
        "# Made from a LiteLLM configuration on {}. Look for mistakes: weighbridge check --allow-missing-secrets\n#\n{told}\
         version = 1\n\n# Keys of LiteLLM's database, and the master key, are not taken over: one [[caller]] for each who may \
         call.\n[[caller]]\nid = \"litellm\"\nkey_digest = \"{}\"\nallow = [\"*\"]\n{routes}{aliases}",
        given.day, given.key_digest
    );
    Ok(Imported { routes, providers: upstreams.files(given.day), left_out })
}

/// `model_list`, by name, in the order of first mention; only those that somebody here can serve.
fn groups(root: &Node, upstreams: &mut Upstreams, notes: &mut Notes) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for node in root.get("model_list").map(|list| list.items()).unwrap_or_default() {
        let Some(deployment) = Deployment::read(node) else {
            notes.add(node.line, "a deployment without model_name or litellm_params.model");
            continue;
        };
        if deployment.group.contains('*') || deployment.model.contains('*') {
            let why = "names any model: list the models, and let callers have them by allow = [\"provider/*\"]";
            notes.add(deployment.line, &format!("{} {why}", quoted(&deployment.group)));
            continue;
        }
        if !(1..=200).contains(&deployment.model.len()) || !deployment.model.bytes().all(|b| b.is_ascii_graphic()) {
            notes.add(deployment.line, &format!("a deployment of {}: no name of a model", quoted(&deployment.group)));
            continue;
        }
        for (line, key) in &deployment.left_out {
            notes.add(*line, &format!("{key} of the deployment of {}", quoted(&deployment.group)));
        }
        let name = route_name(&deployment.group);
        if name != deployment.group && !groups.iter().any(|group| group.name == name) {
            notes.add(
                deployment.line,
                &format!("the route of {} is called {}", quoted(&deployment.group), quoted(&name)),
            );
        }
        let Some(candidate) = upstreams.candidate(&deployment, notes) else { continue };
        let weighed = (candidate, deployment.weight);
        let index = groups.iter().position(|group| group.name == name);
        let full = groups.len() >= MOST_ROUTES;
        match index.and_then(|index| groups.get_mut(index)) {
            Some(group) => {
                if !group.candidates.iter().any(|(known, _)| *known == weighed.0) {
                    group.candidates.push(weighed);
                }
                group.deployments.push(deployment);
            }
            None if !full => {
                groups.push(Group { name, deployments: vec![deployment], candidates: vec![weighed] });
            }
            None => notes.add(deployment.line, "more than 500 routes"),
        }
    }
    groups
}

/// A name that a route may have.
fn route_name(group: &str) -> String {
    if group == "risk" {
        return "risk-model".to_owned();
    }
    if is_name(group, "-_./") {
        return group.to_owned();
    }
    let plain: String =
        group.chars().map(|c| if c.is_ascii_alphanumeric() || "-_./".contains(c) { c } else { '-' }).collect();
    let plain: String = plain.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).chars().take(64).collect();
    if plain.is_empty() { "model".to_owned() } else { plain }
}

fn settings(root: &Node, notes: &mut Notes) -> Settings {
    let section = |name: &str| root.get(name).cloned();
    let (router, litellm) = (section("router_settings"), section("litellm_settings"));
    // Both sections may say it; the router's word counts.
    let either = |key: &str| {
        let own = router.as_ref().and_then(|node| node.get(key)).cloned();
        own.or_else(|| litellm.as_ref().and_then(|node| node.get(key)).cloned())
    };
    let number = |key: &str| either(key).and_then(|node| node.text()?.parse::<f64>().ok());
    let chains = |key: &str| either(key).map(|node| chains(&node)).unwrap_or_default();
    let cached = litellm.as_ref().and_then(|node| node.get("cache")).is_some_and(|node| node.is_true());
    let params = litellm.as_ref().and_then(|node| node.get("cache_params")).cloned();
    let ttl = params.as_ref().and_then(|node| node.get("ttl")?.text()?.parse::<f64>().ok());
    if cached && params.as_ref().and_then(|node| node.get("type")?.text()).is_some_and(|kind| kind != "local") {
        notes.add(
            params.as_ref().map_or(1, |node| node.line),
            "the cache is in the memory of each proxy, and not shared",
        );
    }
    left_out(root, notes);
    Settings {
        strategy: either("routing_strategy").and_then(|node| node.text().map(str::to_owned)).unwrap_or_default(),
        retries: number("num_retries").filter(|retries| (0.0..100.0).contains(retries)).and_then(whole),
        timeout: number("timeout").or(number("request_timeout")),
        cache: cached.then(|| ttl.unwrap_or(USUAL_TTL)),
        fallbacks: chains("fallbacks"),
        too_long: chains("context_window_fallbacks"),
        refused: chains("content_policy_fallbacks"),
        always: either("default_fallbacks").map(|node| names(&node)).unwrap_or_default(),
        aliases: aliases(router.as_ref()),
    }
}

fn whole(number: f64) -> Option<u64> {
    format!("{number:.0}").parse().ok()
}

/// `[{a: [b, c]}, …]`
fn chains(node: &Node) -> Vec<(String, Vec<String>)> {
    let entries = node.items().iter().flat_map(|item| item.entries());
    entries.map(|(name, after)| (name.clone(), names(after))).collect()
}

fn names(node: &Node) -> Vec<String> {
    node.items().iter().filter_map(|item| item.text()).map(str::to_owned).collect()
}

/// `model_group_alias: {a: b, c: {model: d}}`
fn aliases(router: Option<&Rc<Node>>) -> Vec<(String, String)> {
    let Some(node) = router.and_then(|router| router.get("model_group_alias")) else { return Vec::new() };
    let target = |node: &Node| node.text().or_else(|| node.get("model")?.text()).map(route_name);
    node.entries().iter().filter_map(|(alias, node)| Some((alias.clone(), target(node)?))).collect()
}

/// Everything else by its key; values stay where they are.
fn left_out(root: &Node, notes: &mut Notes) {
    const READ: [(&str, &[&str]); 2] = [
        (
            "router_settings",
            &[
                "routing_strategy",
                "num_retries",
                "timeout",
                "fallbacks",
                "context_window_fallbacks",
                "content_policy_fallbacks",
                "default_fallbacks",
                "model_group_alias",
            ],
        ),
        (
            "litellm_settings",
            &[
                "num_retries",
                "request_timeout",
                "fallbacks",
                "context_window_fallbacks",
                "content_policy_fallbacks",
                "default_fallbacks",
                "cache",
                "cache_params",
                "set_verbose",
                "json_logs",
            ],
        ),
    ];
    for (section, node) in root.entries().iter().filter(|(section, _)| section != "model_list") {
        let read = READ.iter().find(|(name, _)| name == section).map(|(_, keys)| *keys).unwrap_or_default();
        if node.entries().is_empty() {
            notes.add(node.line, section);
        }
        for (key, value) in node.entries().iter().filter(|(key, _)| !read.contains(&key.as_str())) {
            let why = match (section.as_str(), key.as_str()) {
                ("general_settings", "master_key") => {
                    ": callers have keys of their own; weighbridge digest --new makes one"
                }
                ("litellm_settings", "drop_params") => ": name the members in `drop` of a provider file",
                ("environment_variables", _) => ": set it where the proxy is started",
                ("litellm_settings", "success_callback" | "failure_callback" | "callbacks") => {
                    ": the access log and /metrics tell every call"
                }
                _ => "",
            };
            notes.add(value.line, &format!("{section}.{key}{why}"));
        }
    }
}

/// One `[model.NAME]`.
fn route(group: &Group, name: &str, groups: &[Group], settings: &Settings, notes: &mut Notes) -> String {
    let line = group.deployments.first().map_or(1, |deployment| deployment.line);
    let own = group.candidates.len();
    let after = |chains: &[(String, Vec<String>)]| {
        let chain = chains.iter().find(|(of, _)| route_name(of) == group.name);
        chain.map(|(_, after)| after.iter().map(|name| route_name(name)).collect::<Vec<_>>()).unwrap_or_default()
    };
    let (failed, long, refused) = (after(&settings.fallbacks), after(&settings.too_long), after(&settings.refused));
    let always: Vec<String> = settings.always.iter().map(|name| route_name(name)).collect();
    let next = failed.iter().chain(&long).chain(&refused).chain(&always);
    let mut candidates = followed(group, next.map(String::as_str), groups, notes);
    if candidates.len() > MOST_CANDIDATES {
        notes.add(line, &format!("the candidates of {} after the first {MOST_CANDIDATES}", quoted(name)));
        candidates.truncate(MOST_CANDIDATES);
    }
    let order = order(group, own, candidates.len(), settings);
    if let Some(lost) = order.lost {
        notes.add(line, &format!("the order of {}: {lost}", quoted(name)));
    }
    if order.word == Some("as-listed") {
        let rank = |candidate: &String| {
            let of_group = group.candidates.iter().position(|(known, _)| known == candidate);
            of_group.and_then(|index| group.deployments.get(index)?.order).unwrap_or(u64::MAX)
        };
        candidates.sort_by_key(|(candidate, _)| rank(candidate));
    }
    let word = order.word.filter(|word| *word != "as-listed").map(|word| format!("order = \"{word}\"\n"));
    let words = [("context_length_exceeded", &long), ("content_policy", &refused)];
    let words: Vec<String> =
        words.iter().filter(|(_, after)| !after.is_empty()).map(|(word, _)| quoted(word)).collect();
    let several = !words.is_empty() && candidates.len() > 1;
    let fallback_on = several.then(|| format!("fallback_on = [{}]\n", words.join(", ")));
    [
        format!("\n[model.{}]\n", if is_name(name, "-_") { name.to_owned() } else { quoted(name) }),
        word.unwrap_or_default(),
        listed(&candidates, own, order.word == Some("weighted")),
        fallback_on.unwrap_or_default(),
        numbers(candidates.len(), settings),
    ]
    .concat()
}

/// A group's candidates and those that are asked when all of these have failed.
fn followed<'n>(
    group: &Group,
    next: impl Iterator<Item = &'n str>,
    groups: &[Group],
    notes: &mut Notes,
) -> Vec<(String, Option<u64>)> {
    let line = group.deployments.first().map_or(1, |deployment| deployment.line);
    let mut candidates = group.candidates.clone();
    for next in next {
        let Some(found) = groups.iter().find(|group| group.name == next) else {
            let of = quoted(&group.name);
            notes.add(line, &format!("the fallback of {of} to {}, which is no route", quoted(next)));
            continue;
        };
        for (candidate, _) in &found.candidates {
            if !candidates.iter().any(|(known, _)| known == candidate) {
                candidates.push((candidate.clone(), Some(0)));
            }
        }
    }
    candidates
}

struct Ordered {
    word: Option<&'static str>,
    lost: Option<&'static str>,
}

/// LiteLLM's strategy in a word of ours.
fn order(group: &Group, own: usize, all: usize, settings: &Settings) -> Ordered {
    if group.deployments.iter().any(|deployment| deployment.order.is_some()) {
        return Ordered { word: Some("as-listed"), lost: None };
    }
    if own < 2 {
        return Ordered { word: None, lost: None };
    }
    let (word, lost) = match settings.strategy.as_str() {
        "latency-based-routing" => ("fastest", None),
        "cost-based-routing" => ("cheapest", None),
        "" | "simple-shuffle" => ("weighted", None),
        _ => ("weighted", Some("drawn by weight; nothing here counts what others have in use at the provider")),
    };
    if word != "weighted" && all > own {
        let lost = "drawn by weight, since candidates that are asked last are known to that order only";
        return Ordered { word: Some("weighted"), lost: Some(lost) };
    }
    Ordered { word: Some(word), lost }
}

fn listed(candidates: &[(String, Option<u64>)], own: usize, weighted: bool) -> String {
    let weights: Vec<u64> = candidates.iter().take(own).map(|(_, weight)| weight.unwrap_or(1)).collect();
    let even = weights.windows(2).all(|pair| pair.first() == pair.last());
    let divisor = weights.iter().fold(0, |a, b| common(a, *b)).max(1);
    let most = weights.iter().map(|weight| weight / divisor).max().unwrap_or(1);
    let scaled =
        |weight: u64| if most <= HEAVIEST { weight / divisor } else { (weight / divisor * HEAVIEST / most).max(1) };
    let one = |(index, (candidate, weight)): (usize, &(String, Option<u64>))| {
        let candidate = quoted(candidate);
        match weight {
            _ if !weighted => candidate,
            _ if index >= own => format!("{{ use = {candidate}, weight = 0 }}"),
            _ if even => candidate,
            weight => format!("{{ use = {candidate}, weight = {} }}", scaled(weight.unwrap_or(1))),
        }
    };
    let all: Vec<String> = candidates.iter().enumerate().map(one).collect();
    if all.len() < 3 {
        format!("candidates = [{}]\n", all.join(", "))
    } else {
        format!("candidates = [\n  {},\n]\n", all.join(",\n  "))
    }
}

fn common(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common(b, a % b) }
}

fn numbers(candidates: usize, settings: &Settings) -> String {
    let retries = settings.retries.unwrap_or(0);
    let attempts = usize::try_from(retries).unwrap_or(5).saturating_add(1).max(candidates).clamp(1, 5);
    let needed = settings.retries.is_some() || attempts > 3;
    let total = settings.timeout.and_then(|seconds| duration(seconds, 86_400_000.0));
    let ttl = settings.cache.and_then(|seconds| duration(seconds.max(1.0), 2_592_000_000.0));
    [
        needed.then(|| format!("max_attempts = {attempts}\n")),
        total.map(|total| format!("timeouts = {{ total = \"{total}\" }}\n")),
        ttl.map(|ttl| format!("cache = {{ ttl = \"{ttl}\" }}\n")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Seconds as they are written here, at most so many milliseconds.
fn duration(seconds: f64, most_ms: f64) -> Option<String> {
    let ms = (seconds * 1000.0).clamp(1.0, most_ms);
    whole(ms).filter(|_| seconds > 0.0).map(|ms| units::shown(Duration::from_millis(ms)))
}
