//! Makes a configuration runnable: live state taken over by identity, one built stack per route.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use http::HeaderValue;
use tokio::time::Instant;

use crate::config::table::{Caller, LlmRoute, RiskRoute, RoutingTable};
use crate::domain::id::RouteId;
use crate::domain::overload::Class;
use crate::flight::allowance::Allowance;
use crate::flight::arrival::LiveCaller;
use crate::flight::merchants::Merchants;
use crate::flight::quota::Quota;
use crate::flight::shares::Standing;
use crate::flight::trail::RouteNames;
use crate::gateway::notify::{Notifier, Post};
use crate::gateway::snapshot::{Doorkeeper, Kept, Parts, ReadyRoute, Shared, Snapshot};
use crate::gateway::stack;
use crate::layer::audit::Clerk;
use crate::telemetry::metrics::Metrics;
use crate::upstream::live::Fleet;

/// Makes `table` runnable, taking over live state from `previous`.
pub fn build(table: RoutingTable, previous: Option<&Snapshot>, shared: &Shared) -> Snapshot {
    let fleet =
        Fleet::build(&table, previous.map_or(&Fleet::default(), Snapshot::fleet), &shared.dial, &shared.metrics);
    let llm = table.llm_routes().values().map(|route| {
        let names = names(&route.id, &shared.metrics);
        let kept = kept(route, previous);
        let service = stack::llm(route, &kept, &fleet, shared);
        let doorkeeper = (route.class < Class::Normal).then(|| doorkeeper(shared));
        let rules = route.rules.iter().map(|rule| stack::llm(&rule.route, &kept, &fleet, shared)).collect();
        (route.id.clone(), ReadyRoute { names, service, kept, rules, doorkeeper })
    });
    let risk = table.risk_route().map(|route| {
        let names = names(&route.id, &shared.metrics);
        let records = shared.clerk.as_ref().map(Clerk::records);
        let post = Post::new(&shared.dial, &shared.notices, &shared.metrics, records);
        let revise = Notifier::wanted(table.webhooks(), post);
        shared.velocity.adopt(&route.velocity, &shared.metrics);
        if let Some(before) = previous.and_then(|snapshot| snapshot.table().risk_route()) {
            shared.decisions.rules_change(before, route);
        }
        let velocity = (!route.velocity.is_empty()).then(|| Arc::clone(&shared.velocity));
        let kept = Kept { merchants: merchants(route, previous, shared), velocity, ..Kept::default() };
        let service = stack::risk(route, &kept, revise, &fleet, shared);
        ReadyRoute { names, service, kept, rules: Vec::new(), doorkeeper: None }
    });
    let (llm, callers) = (llm.collect(), callers(&table, previous, shared));
    Snapshot::assemble(
        Parts {
            table,
            callers,
            fleet,
            llm,
            risk,
            clerk: shared.clerk.clone(),
            decisions: Arc::clone(&shared.decisions),
        },
        shared.metrics.snapshots_alive.hold(),
    )
}

/// Makes the table of `before` runnable again. It takes over what `before` had: what outlived the change since then is the
/// same in both, and what the change made new belongs to what it changed.
pub fn put_back(before: &Snapshot, in_force: &Snapshot, shared: &Shared) -> Snapshot {
    let again = build(before.table().clone(), Some(before), shared);
    let goes_on: HashSet<_> = again.live_callers().map(|live| &live.caller.id).collect();
    let gone = in_force.live_callers().filter(|live| !goes_on.contains(&live.caller.id));
    gone.filter_map(|live| live.quota.as_ref()).for_each(|quota| quota.retire());
    if again.merchants().is_none() {
        in_force.merchants().into_iter().for_each(|merchants| merchants.retire());
    }
    again
}

fn doorkeeper(shared: &Shared) -> Arc<Doorkeeper> {
    Arc::new(Doorkeeper { gate: Arc::clone(&shared.gate), metrics: Arc::clone(&shared.metrics) })
}

/// What the route remembers, taken over from the route of the same name.
fn kept(route: &LlmRoute, previous: Option<&Snapshot>) -> Kept {
    let before = previous.and_then(|snapshot| snapshot.llm(&route.id)).map(|ready| ready.kept.clone());
    let before = before.unwrap_or_default();
    Kept {
        tempo: route.variants().find_map(|route| route.asking.hedge).map(|_| before.tempo.unwrap_or_default()),
        copies: route.shadow.as_ref().map(|_| before.copies.unwrap_or_default()),
        merchants: None,
        velocity: None,
    }
}

/// What merchants have spent, taken over; nothing where no budget is left.
fn merchants(route: &RiskRoute, previous: Option<&Snapshot>, shared: &Shared) -> Option<Arc<Merchants>> {
    let before = previous.and_then(Snapshot::risk).and_then(|ready| ready.kept.merchants.clone());
    let Some(budgets) = &route.budgets else {
        before.inspect(|merchants| merchants.retire());
        return None;
    };
    let merchants = before.unwrap_or_else(|| Arc::new(Merchants::new(shared.calendar)));
    merchants.adopt(budgets, &shared.metrics);
    Some(merchants)
}

fn names(id: &RouteId, metrics: &Metrics) -> Arc<RouteNames> {
    let header = HeaderValue::from_str(id.as_str()).unwrap_or(HeaderValue::from_static("unknown"));
    Arc::new(RouteNames { id: id.clone(), header, metrics: metrics.route(id) })
}

fn callers(table: &RoutingTable, previous: Option<&Snapshot>, shared: &Shared) -> BTreeMap<[u8; 32], Arc<LiveCaller>> {
    let known: HashMap<_, _> = previous
        .into_iter()
        .flat_map(|snapshot| snapshot.callers().values())
        .map(|live| (live.caller.id.clone(), Arc::clone(live)))
        .collect();
    let revive = |(number, caller): (usize, &Arc<Caller>)| {
        let before = known.get(&caller.id);
        let allowance =
            before.map_or_else(|| Arc::new(Allowance::new(Instant::now())), |live| Arc::clone(&live.allowance));
        let quota = caller.has_quota().then(|| quota(caller, before.and_then(|live| live.quota.as_ref()), shared));
        let standing = Standing { class: caller.class, seat: Standing::seat_of(number) };
        (caller.key_digest, Arc::new(LiveCaller { caller: Arc::clone(caller), allowance, quota, standing }))
    };
    let callers: BTreeMap<_, Arc<LiveCaller>> = table.callers().iter().enumerate().map(revive).collect();
    let goes_on: HashSet<_> =
        callers.values().filter(|live| live.quota.is_some()).map(|live| &live.caller.id).collect();
    let gone = known.values().filter(|live| !goes_on.contains(&live.caller.id));
    gone.filter_map(|live| live.quota.as_ref()).for_each(|quota| quota.retire());
    callers
}

fn quota(caller: &Caller, before: Option<&Arc<Quota>>, shared: &Shared) -> Arc<Quota> {
    let quota = before.map_or_else(|| Arc::new(Quota::new(shared.calendar)), Arc::clone);
    quota.adopt(caller, &shared.metrics);
    quota
}
