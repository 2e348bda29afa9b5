//! What a configuration says that can never work or is unwise, without being wrong: the warnings of `weighbridge check`.
//!
//! Each has a code that stays, so that it can be looked up and silenced (`lint.allow` in `routes.toml`). It looks only at
//! configurations that compile, and it never changes what one means; what must not be is a mistake, elsewhere.

use super::catalog::Catalog;
use super::error::{Code, ConfigError, Style};
use super::raw::Document;
use super::raw::lint::RawAllowed;
use super::raw::routes::{Part, RawRoutes};
use super::report::{Mistake, Report};
use super::routes;
use super::schema;
use super::source::Sources;
use super::table::RoutingTable;

mod callers;
mod providers;
mod remarked;
mod risk;
mod route;

#[cfg(test)]
mod tests;

pub use super::rule::Rule;

/// Something worth a second look, with its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// Its kind.
    pub rule: Rule,
    /// What it is about: a route, caller, policy, list, counter or provider; `lint.allow` can name it.
    pub about: String,
    /// Where, what, and what to do; its `code` says nothing here.
    pub found: ConfigError,
}

impl Warning {
    /// As [`ConfigError::rendered`].
    pub fn rendered(&self, style: Style) -> String {
        self.found.rendered_as_warning(self.rule.code(), style)
    }
}

/// All warnings of a configuration that compiled to this table, by file and line, without those it allows.
pub fn lint(sources: &Sources, table: &RoutingTable) -> Vec<Warning> {
    let lists = sources.lists.iter().filter_map(|list| list.content.as_ref().ok());
    let report = Report::new(sources.routes.iter().chain(&sources.providers).chain(lists));
    let all = sources.routes.iter().chain(&sources.providers).enumerate();
    let mut documents: Vec<Document<'_>> = all.map(|(file, source)| Document::parse(source, file, &report)).collect();
    let providers = documents.split_off(sources.routes.len());
    let catalog = Catalog::read(&providers, &report);
    let parts = std::iter::once(Part::Main).chain(std::iter::repeat(Part::Overlay));
    let raw = documents.iter().zip(parts);
    let raw = raw.map(|(document, part)| RawRoutes::read(&document.root(schema::ROUTES, &report), part)).collect();
    let raw = routes::merge(raw, &report);
    let subject = Subject { sources, table, raw: &raw, catalog: &catalog, report: &report };
    let mut found = Found { report: &report, warnings: Vec::new() };
    for renamed in report.renamed() {
        let about = renamed.key.clone();
        found.warnings.push(Warning { rule: Rule::RenamedKey, about, found: renamed });
    }
    remarked::look(&subject, &mut found);
    route::look(&subject, &mut found);
    callers::look(&subject, &mut found);
    risk::look(&subject, &mut found);
    providers::look(&subject, &mut found);
    allow(found, &raw.allowed)
}

/// What the rules look at.
pub(super) struct Subject<'s> {
    pub(super) sources: &'s Sources,
    pub(super) table: &'s RoutingTable,
    pub(super) raw: &'s RawRoutes,
    pub(super) catalog: &'s Catalog,
    pub(super) report: &'s Report<'s>,
}

/// Where warnings are collected.
pub(super) struct Found<'r> {
    report: &'r Report<'r>,
    warnings: Vec<Warning>,
}

impl Found<'_> {
    /// Adds one.
    pub(super) fn add(&mut self, rule: Rule, about: &str, mistake: Mistake) {
        self.warnings.push(Warning { rule, about: about.to_owned(), found: self.report.placed(mistake) });
    }
}

/// Takes out what is allowed, and tells allowances that nothing needs.
fn allow(mut found: Found<'_>, allowed: &[RawAllowed]) -> Vec<Warning> {
    let covers = |entry: &RawAllowed, warning: &Warning| {
        entry.rule == warning.rule && entry.about.as_ref().is_none_or(|about| *about == warning.about)
    };
    let idle = allowed.iter().filter(|entry| !found.warnings.iter().any(|warning| covers(entry, warning)));
    let idle: Vec<_> =
        idle.map(|entry| entry.at.mistake(Code::Conflict, "there is no such warning to allow")).collect();
    found.warnings.retain(|warning| !allowed.iter().any(|entry| covers(entry, warning)));
    for mistake in idle {
        found.add(Rule::IdleAllowance, "lint", mistake.hint("remove it"));
    }
    let mut warnings = found.warnings;
    warnings.sort_by(|a, b| {
        let place = |warning: &Warning| (warning.found.line, warning.found.column, warning.rule.code());
        a.found.file.cmp(&b.found.file).then_with(|| place(a).cmp(&place(b)))
    });
    warnings.dedup();
    warnings
}
