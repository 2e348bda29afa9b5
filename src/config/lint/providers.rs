//! Provider files: those that no route leads to, and those that lead back here.

use std::collections::BTreeSet;

use super::{Found, Rule, Subject};
use crate::config::builtin;
use crate::config::error::Code;
use crate::config::table::{BaseUrl, Candidate, RoutingTable};

/// Where `serve` listens for applications unless it is told otherwise.
const DATA_PORT: u16 = 8080;

pub(super) fn look(subject: &Subject<'_>, found: &mut Found<'_>) {
    let used = used(subject.table);
    // A copy of a built-in file does no harm and needs no route.
    let shipped: BTreeSet<String> = builtin::providers().into_iter().map(|file| file.text).collect();
    for (id, raw) in subject.catalog.providers() {
        let Some(at) = raw.id.as_ref() else { continue };
        let Some(file) = subject.report.file(at.at) else { continue };
        if !used.contains(id.as_str()) {
            if !file.name.starts_with(builtin::FOLDER) && !shipped.contains(&file.text) {
                let mistake = at.mistake(Code::Conflict, "no route leads to this provider");
                found.add(Rule::IdleProvider, id, mistake.hint("name it in a route's candidates, or remove the file"));
            }
            continue;
        }
        let provider = subject.table.providers().iter().find(|(known, _)| known.as_str() == id);
        let Some((_, provider)) = provider.filter(|(_, provider)| is_here(&provider.base_url)) else { continue };
        let message = format!(
            "this is where this proxy listens unless told otherwise ({}): a call would come back to it, again and again",
            provider.base_url.authority()
        );
        let mistake = raw.base_url.as_ref().unwrap_or(at).mistake(Code::Conflict, message);
        found.add(
            Rule::Loop,
            id,
            mistake.hint("give the provider's own address, or start serve with another --listen"),
        );
    }
}

fn used(table: &RoutingTable) -> BTreeSet<&str> {
    let shadows = table.llm_routes().values().filter_map(|route| route.shadow.as_ref().map(|shadow| &shadow.candidate));
    let llm = table.llm_routes().values().flat_map(|route| route.everybody());
    let risk = table.risk_route().into_iter().flat_map(|route| &route.candidates);
    llm.chain(shadows).chain(risk).map(|candidate: &Candidate| candidate.provider.id.as_str()).collect()
}

fn is_here(url: &BaseUrl) -> bool {
    let loopback =
        url.host == "localhost" || url.host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    loopback && url.port == DATA_PORT && !url.tls
}
