//! Where a tenant wants to be told that an answer it was given has been overtaken.
//!
//! The destination comes from the configuration alone and is checked as a provider's address is. In the sandbox, where no
//! call may leave the machine, only webhooks to private addresses remain.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::address::{self, Reach};
use super::checks;
use super::descriptor::Builder;
use super::error::Code;
use super::raw::provider::AuthKind;
use super::raw::webhook::RawWebhook;
use super::report::accept;
use super::secrets::Use;
use super::table::{Auth, Caller, Webhook, Webhooks};
use crate::domain::id::TenantId;

const MOST: usize = 1_000;

/// Checks all of them; reports what is wrong and leaves it out.
pub(super) fn build(raw: &[RawWebhook], callers: &[Arc<Caller>], builder: &Builder<'_>) -> Webhooks {
    let report = builder.report;
    checks::unique(raw.iter().filter_map(|hook| hook.tenant.as_ref()), "the webhook's tenant", report);
    if let Some(over) = raw.get(MOST) {
        report.add(over.at.mistake(Code::BadValue, format!("more than {MOST} webhooks")));
    }
    let tenants: BTreeSet<&str> = callers.iter().map(|caller| caller.tenant.as_str()).collect();
    let hooks = raw.iter().take(MOST).filter_map(|hook| webhook(hook, &tenants, builder));
    let leaves = |hook: &Webhook| address::reach(&hook.url.host) == Reach::Public;
    let hooks = hooks.filter(|hook| builder.options.rewire.is_none() || !leaves(hook));
    hooks.map(|hook| (hook.tenant.clone(), Arc::new(hook))).collect()
}

fn webhook(raw: &RawWebhook, tenants: &BTreeSet<&str>, builder: &Builder<'_>) -> Option<Webhook> {
    let report = builder.report;
    let stranger = raw.tenant.as_ref().filter(|tenant| !tenants.contains(tenant.value.as_str()));
    if let Some(tenant) = stranger {
        let mistake = tenant.mistake(Code::UnknownName, "no caller belongs to this tenant");
        report.add(mistake.hint("write the tenant of some [[caller]]; without one a caller's id is its tenant"));
    }
    let url = raw.url.as_ref().and_then(|url| accept(checks::base_url(url, raw.allow_private.as_ref()), report));
    let auth = raw.auth.as_ref()?;
    let kind = auth.kind.as_ref()?;
    if kind.value != AuthKind::DiHmac {
        report
            .add(kind.mistake(Code::Conflict, "what is sent to a webhook is signed").hint("write kind = \"di-hmac\""));
        return None;
    }
    let (Auth::DiHmac { keys }, secret_is_real) = builder.auth(auth, None, Use::ByRoute)? else {
        return None;
    };
    let allow_private = raw.allow_private.as_ref().is_some_and(|flag| flag.value);
    let tenant = TenantId::new(raw.tenant.as_ref()?.value.as_str());
    Some(Webhook { tenant, url: url?, allow_private, keys, secret_is_real })
}
