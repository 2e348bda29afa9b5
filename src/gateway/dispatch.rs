//! From a path to an operation, and from a body to a call.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::future::{Either, Ready, ready};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use matchit::Router;
use tower::{Layer, Service};

use crate::config::table::{LlmRoute, Model, RiskRoute};
use crate::domain::clock;
use crate::domain::deadline::Deadline;
use crate::domain::operation::{Operation, TrafficClass};
use crate::domain::outcome::FailureClass;
use crate::domain::overload::Class;
use crate::domain::policy::Ruling;
use crate::flight::arrival::{Arrival, LiveCaller, Pinned};
use crate::flight::call::{CacheWish, Call, CallContext, Facts, RiskFacts};
use crate::flight::carried::Carried;
use crate::flight::error::CallError;
use crate::flight::facts::LlmFacts;
use crate::flight::reply::Reply;
use crate::flight::shares::Standing;
use crate::flight::upload::{Fault, Received, Upload};
use crate::flight::velocity::{Counted, Readings};
use crate::gateway::casebook;
use crate::gateway::counting;
use crate::gateway::decode::{Decoded, carry, conversation, decode, decode_form, forwarded};
use crate::gateway::snapshot::{ReadyRoute, RouteService, Snapshot};
use crate::layer::answering::{Gated, Touch, Touching};
use crate::layer::{BoxFuture, always_ready};
use crate::routing::policy;
use crate::routing::rule;
use crate::routing::select::{self, NoRoute};
use crate::telemetry::cells::Held;
use crate::telemetry::traces::Begun;
use crate::upstream::apart::{LARGE, LARGE_TO_PEEK, apart};
use crate::wire::openai::{ModelEntry, model_object, models_list};
use crate::wire::risk::{self, Assessment, DecisionView, encode_decision};

/// Who made the models, as `GET /v1/models` says it.
const OWNER: &str = "weighbridge";

/// Characters of an idempotency key.
const LONGEST_KEY: usize = 255;

/// The path table: exact paths, one method each.
static PATHS: LazyLock<Router<(Method, &'static str, Operation)>> = LazyLock::new(|| {
    let mut router = Router::new();
    for operation in Operation::ALL {
        let (method, allow) = if operation.is_get() { (Method::GET, "GET") } else { (Method::POST, "POST") };
        // A conflict would be a mistake in that table; the test below reads every row.
        drop(router.insert(operation.path(), (method, allow, operation)));
    }
    router
});

/// Makes [`Match`].
#[derive(Clone, Copy)]
pub struct MatchLayer;

/// Finds the operation, or 404, or 405.
#[derive(Clone)]
pub struct Match<S>(S);

impl<S> Layer<S> for MatchLayer {
    type Service = Match<S>;

    fn layer(&self, inner: S) -> Match<S> {
        Match(inner)
    }
}

impl<S, P, B> Service<Arrival<P, B>> for Match<S>
where
    S: Service<Arrival<P, B>, Error = CallError>,
{
    type Response = S::Response;
    type Error = CallError;
    type Future = Gated<S::Future, CallError>;

    always_ready!();

    fn call(&mut self, mut arrival: Arrival<P, B>) -> Self::Future {
        match find(&arrival.head.method, arrival.head.uri.path()) {
            Ok((operation, parameter)) => {
                arrival.trail.lock().operation = Some(operation);
                arrival.operation = Some(operation);
                arrival.parameter = parameter;
                Gated::open(self.0.call(arrival))
            }
            Err(error) => Gated::shut(error),
        }
    }
}

fn find(method: &Method, path: &str) -> Result<(Operation, Option<String>), CallError> {
    // It names no path, and no tunnel is ever opened.
    if method == Method::CONNECT {
        return Err(CallError::Method { allow: "GET, POST" });
    }
    let found = PATHS.at(path).map_err(|_| CallError::NotFound)?;
    let (expected, allow, operation) = found.value;
    if method != expected {
        return Err(CallError::Method { allow });
    }
    Ok((*operation, found.params.get("id").map(str::to_owned)))
}

/// The innermost ingress service: makes a call and hands it to its route.
#[derive(Clone, Copy)]
pub struct Dispatch;

impl Service<Arrival<Arc<Snapshot>, Received>> for Dispatch {
    type Response = Reply;
    type Error = CallError;
    type Future = Either<Ready<Result<Reply, CallError>>, Either<Flying, BoxFuture<Result<Reply, CallError>>>>;

    always_ready!();

    fn call(&mut self, arrival: Whole) -> Self::Future {
        let Some((operation, caller)) = arrival.operation.zip(arrival.caller.as_deref()) else {
            return Either::Left(ready(Err(CallError::Internal)));
        };
        let flying = match operation {
            Operation::RiskAssess => assess(&arrival, caller),
            Operation::RiskGet => return Either::Right(Either::Right(Box::pin(casebook::look_up(arrival)))),
            Operation::RiskOutcome => return Either::Right(Either::Right(Box::pin(casebook::note(arrival)))),
            Operation::ModelsList => return Either::Left(ready(Ok(list_models(&arrival, caller)))),
            Operation::ModelsGet => return Either::Left(ready(get_model(&arrival, caller))),
            Operation::CountTokens => return Either::Right(Either::Right(Box::pin(count(arrival)))),
            _ if is_long(&arrival, operation) => {
                return Either::Right(Either::Right(Box::pin(ask_apart(arrival, operation))));
            }
            _ => ask(&arrival, caller, operation),
        };
        flying.map_or_else(|error| Either::Left(ready(Err(error))), |flying| Either::Right(Either::Left(flying)))
    }
}

/// An arrival whose body is here, or enough of it.
type Whole = Arrival<Arc<Snapshot>, Received>;

/// A call with its route.
type Flying = Touching<BoxFuture<Result<Reply, CallError>>, Landing>;

/// A call to a model, as far as its body had to be read.
struct Understood<'r> {
    route: &'r Arc<LlmRoute>,
    facts: LlmFacts,
    carried: Option<Arc<Carried>>,
    conversation: Option<u64>,
    /// The number of the rule it comes under.
    rule: Option<usize>,
}

/// True if the body is better read on another thread. One that may have to be told as chat is sooner.
fn is_long(arrival: &Whole, operation: Operation) -> bool {
    let most = if operation.carried_by().is_some() { LARGE } else { LARGE_TO_PEEK };
    arrival.body.bytes.len() > most && arrival.body.upload.is_none()
}

fn ask(arrival: &Whole, caller: &LiveCaller, operation: Operation) -> Result<Flying, CallError> {
    take_off(arrival, caller, operation, understand(arrival, caller, operation)?)
}

/// As [`ask`], the body being read on another thread. What is counted is counted on this one.
async fn ask_apart(arrival: Whole, operation: Operation) -> Result<Reply, CallError> {
    let caller = arrival.caller.clone().ok_or(CallError::Internal)?;
    let read = apart(move || {
        let understood = understand(&arrival, &caller, operation);
        let owned = understood.map(|Understood { route, facts, carried, conversation, rule }| {
            let route = Arc::clone(route);
            move |arrival: &Whole, caller: &LiveCaller| {
                take_off(arrival, caller, operation, Understood { route: &route, facts, carried, conversation, rule })
            }
        });
        (arrival, caller, owned)
    });
    let (arrival, caller, take_off) = read.await.ok_or(CallError::Internal)?;
    let flying = take_off?(&arrival, &caller)?;
    drop(arrival);
    flying.await
}

/// `POST /v1/messages/count_tokens`: by a provider that counts, or estimated where the route has none.
async fn count(arrival: Whole) -> Result<Reply, CallError> {
    let caller = arrival.caller.clone().ok_or(CallError::Internal)?;
    if arrival.body.bytes.len() <= LARGE {
        return match estimated(&arrival, &caller) {
            Some(reply) => Ok(reply),
            None => ask(&arrival, &caller, Operation::CountTokens)?.await,
        };
    }
    let looked = apart(move || {
        let reply = estimated(&arrival, &caller);
        (arrival, reply)
    });
    match looked.await.ok_or(CallError::Internal)? {
        (_, Some(reply)) => Ok(reply),
        (arrival, None) => ask_apart(arrival, Operation::CountTokens).await,
    }
}

/// What is wrong with the call is told by whoever reads it next.
fn estimated(arrival: &Whole, caller: &LiveCaller) -> Option<Reply> {
    let (table, body, operation) = (arrival.pinned.table(), &arrival.body.bytes, Operation::CountTokens);
    let Decoded { model, facts } = decode(operation, body, table.limits().json_depth).ok()?;
    let route = select::llm(table, &caller.caller, &model).ok()?;
    let (route, _) =
        if route.rules.is_empty() { (route, None) } else { ruled(arrival, caller, route, (operation, &facts)) };
    let reply = counting::estimate(route, body)?;
    let names = arrival.pinned.llm(&route.id).map(|ready| Arc::clone(&ready.names));
    arrival.trail.lock().route = names;
    Some(reply)
}

fn understand<'a>(arrival: &'a Whole, caller: &LiveCaller, operation: Operation) -> Result<Understood<'a>, CallError> {
    let snapshot = &arrival.pinned;
    let body = &arrival.body.bytes;
    let Decoded { model, facts } = match &arrival.body.upload {
        Some(upload) => decode_form(body, upload)?,
        None => decode(operation, body, snapshot.table().limits().json_depth)?,
    };
    let route = select::llm(snapshot.table(), &caller.caller, &model).map_err(|missing| match missing {
        NoRoute::Unknown => CallError::UnknownModel { model: model.clone().into_owned() },
        NoRoute::NotAllowed => CallError::NotAllowed(model.clone().into_owned()),
    })?;
    let (route, rule) =
        if route.rules.is_empty() { (route, None) } else { ruled(arrival, caller, route, (operation, &facts)) };
    let carried = carry(operation, body, facts.stream, route)?;
    let sticky = route.asking.sticky.is_some();
    let said = || conversation((&arrival.head.headers, body), &caller.caller.tenant);
    let conversation = if sticky { said() } else { None };
    Ok(Understood { route, facts, carried, conversation, rule })
}

/// The route as it is for this call.
fn ruled<'r>(
    arrival: &Whole,
    caller: &LiveCaller,
    route: &'r Arc<LlmRoute>,
    (operation, facts): (Operation, &LlmFacts),
) -> (&'r Arc<LlmRoute>, Option<usize>) {
    let headers = &arrival.head.headers;
    let asked = rule::Asked {
        caller: &caller.caller,
        operation,
        stream: facts.stream,
        bytes: arrival.body.bytes.len(),
        header: &|name| headers.get(name)?.to_str().ok(),
        now_ms: clock::unix_ms(),
    };
    match rule::rule_for(route, &asked) {
        Some((number, rule)) => (&rule.route, Some(number)),
        None => (route, None),
    }
}

fn take_off(
    arrival: &Whole,
    caller: &LiveCaller,
    operation: Operation,
    understood: Understood<'_>,
) -> Result<Flying, CallError> {
    let Understood { route, facts, carried, conversation, rule } = understood;
    let ready = arrival.pinned.llm(&route.id).ok_or(CallError::Internal)?;
    let class = caller.standing.class.min(route.class);
    if let Some(doorkeeper) = ready.doorkeeper.as_deref().filter(|_| class < caller.standing.class) {
        doorkeeper.admit(class, arrival.pinned.table().limits())?;
    }
    let asked = Asked::of(&arrival.head.headers)?;
    let shows_early = facts.stream || operation == Operation::Speech;
    let longest = route.timeouts.total.min(asked.patience(shows_early));
    arrival.trail.lock().stream = facts.stream;
    let mut call = Call { carried, ..call(arrival, caller, operation, Facts::Llm(facts), (longest, asked)) };
    let revalidates = route.cache.is_some_and(|cache| !cache.stale_while_revalidate.is_zero());
    if (conversation.is_some() || class < caller.standing.class || revalidates)
        && let Some(context) = Arc::get_mut(&mut call.context)
    {
        context.conversation = conversation;
        context.standing.class = class;
        context.allowance = revalidates.then(|| Arc::clone(&caller.allowance));
    }
    let service = rule.and_then(|number| ready.rules.get(number)).unwrap_or(&ready.service);
    Ok(fly((ready, service), call, None))
}

fn assess(arrival: &Whole, caller: &LiveCaller) -> Result<Flying, CallError> {
    let snapshot = &arrival.pinned;
    let assessment = risk::decode(&arrival.body.bytes).map_err(|fields| CallError::BadFields(Arc::new(fields)))?;
    let route = select::risk(snapshot.table(), &caller.caller).map_err(|missing| match missing {
        NoRoute::Unknown => CallError::NotFound,
        NoRoute::NotAllowed => CallError::NotAllowed("risk".to_owned()),
    })?;
    let ready = snapshot.risk().ok_or(CallError::Internal)?;
    let counted = Counted { tenant: caller.caller.tenant.as_str(), assessment: &assessment, body: &arrival.body.bytes };
    let velocity = ready.kept.velocity.as_ref().map(|velocity| velocity.count(&counted, &route.velocity));
    let velocity = velocity.unwrap_or_default();
    let ruling = ruling(route, &assessment, (caller, &velocity));
    let limits = (route.hard_limit, Asked::default());
    let route = Arc::clone(route);
    let facts = Arc::new(RiskFacts { assessment, route, ruling, features_dropped: Vec::new(), velocity });
    let call = call(arrival, caller, Operation::RiskAssess, Facts::Risk(Arc::clone(&facts)), limits);
    Ok(fly((ready, &ready.service), call, Some(facts)))
}

/// What decides the attempt. Routes without policies and lists read no clock for it.
fn ruling(route: &RiskRoute, assessment: &Assessment, (caller, velocity): (&LiveCaller, &Readings)) -> Arc<Ruling> {
    if route.rules.is_empty() {
        return Arc::clone(&route.ruling);
    }
    let (caller, now_ms) = (&caller.caller, clock::unix_ms());
    let counters = |name: &str| velocity.number(name);
    policy::ruling_for(route, &policy::Input { assessment, caller, now_ms, counters: &counters, presumed: &[] })
}

fn fly((route, service): (&ReadyRoute, &RouteService), call: Call, assessed: Option<Arc<RiskFacts>>) -> Flying {
    call.context.trail.lock().route = Some(Arc::clone(&route.names));
    let upload = call.upload.clone();
    let landing = Landing { in_flight: route.names.metrics.in_flight.hold(), assessed, upload };
    Touching::new(service.ask(call), landing)
}

/// What becomes of a route's answer: it counts as in flight until its body ends, and a decision becomes bytes.
pub struct Landing {
    in_flight: Held,
    assessed: Option<Arc<RiskFacts>>,
    upload: Option<Arc<Upload>>,
}

impl Touch<Result<Reply, CallError>> for Landing {
    fn touch(self, answer: &mut Result<Reply, CallError>) {
        let reply = match answer {
            Ok(reply) => reply,
            Err(error) => {
                if let Some(upload) = &self.upload {
                    lost(error, upload);
                }
                return;
            }
        };
        let spelt = self.assessed.map_or(Ok(()), |facts| spell_out(reply, &facts));
        let in_flight = self.in_flight;
        reply.body.on_end(move |_| drop(in_flight));
        if let Err(error) = spelt {
            *answer = Err(error);
        }
    }
}

/// What became of an upload: if the caller did something wrong while sending, that is why there is no answer.
fn lost(error: &mut CallError, upload: &Upload) {
    let fault = upload.fault().map(|fault| match fault {
        Fault::TooLarge { limit_bytes } => CallError::BodyTooLarge { limit_bytes },
        Fault::Stalled => CallError::BodyIncomplete,
        Fault::Broken => CallError::Framing("the request body is malformed or broke off"),
        Fault::Form(wrong) => {
            CallError::BadRequest { message: wrong.message.to_owned(), param: wrong.param.map(str::to_owned) }
        }
    });
    match (fault, &mut *error) {
        (Some(fault), _) => *error = fault,
        (None, CallError::Exhausted { last, retry_after })
            if upload.is_spent() && last.class != FailureClass::Refused =>
        {
            *error = CallError::UploadLost { last: last.clone(), retry_after: *retry_after };
        }
        (None, _) => {}
    }
}

fn spell_out(reply: &mut Reply, facts: &RiskFacts) -> Result<(), CallError> {
    let decision = reply.decision.clone().ok_or(CallError::Internal)?;
    let view = DecisionView { out_trade_no: &facts.assessment.out_trade_no, decision: &decision };
    reply.body.fill(encode_decision(&view));
    reply.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(())
}

/// Its place in its trace, where there are traces.
fn trace_of(arrival: &Whole) -> Option<Arc<Begun>> {
    arrival.pinned.traces()?;
    arrival.trail.lock().trace.clone()
}

fn call(
    arrival: &Whole,
    caller: &LiveCaller,
    operation: Operation,
    facts: Facts,
    (longest, asked): (Duration, Asked),
) -> Call {
    let context = CallContext {
        id: arrival.id.clone(),
        caller: Arc::clone(&caller.caller),
        quota: caller.quota.clone(),
        allowance: None,
        standing: match operation.class() {
            TrafficClass::Risk => Standing { class: Class::Risk, ..caller.standing },
            TrafficClass::Llm => caller.standing,
        },
        arrived: arrival.arrived,
        trail: arrival.trail.clone(),
        cache: match asked.cache {
            // No form comes twice in the same bytes, its boundary is made up; and sound is handed on, not kept.
            CacheWish::Default | CacheWish::NoCache
                if arrival.body.upload.is_some() || operation == Operation::Speech =>
            {
                CacheWish::NoStore
            }
            wish => wish,
        },
        idempotency_key: asked.idempotency_key,
        forwarded: forwarded(operation, &arrival.head.headers),
        conversation: None,
        trace: trace_of(arrival),
    };
    let deadline = Deadline::after(arrival.arrived, longest);
    let Received { bytes: body, upload } = &arrival.body;
    let (body, upload, context) = (body.clone(), upload.clone(), Arc::new(context));
    Call { operation, body, facts, upload, carried: None, context, deadline }
}

/// What the caller asks of us in headers, found in one pass over them.
#[derive(Default)]
struct Asked {
    cache: CacheWish,
    idempotency_key: Option<HeaderValue>,
    /// Our own header, in seconds.
    ours: Option<f64>,
    sdk: Option<f64>,
    sdk_read: Option<f64>,
}

impl Asked {
    fn of(headers: &HeaderMap) -> Result<Self, CallError> {
        let mut asked = Self::default();
        for (name, value) in headers {
            match name.as_str() {
                "wb-cache" => asked.cache = cache_wish(value)?,
                "idempotency-key" => asked.note_key(value)?,
                "wb-timeout-ms" => asked.ours = number(value).map(|ms| ms / 1e3),
                "x-stainless-timeout" => asked.sdk = number(value),
                "x-stainless-read-timeout" => asked.sdk_read = number(value),
                _ => {}
            }
        }
        Ok(asked)
    }

    fn note_key(&mut self, key: &HeaderValue) -> Result<(), CallError> {
        let plain = (1..=LONGEST_KEY).contains(&key.len()) && key.as_bytes().iter().all(u8::is_ascii_graphic);
        if !plain || self.idempotency_key.is_some() {
            let what = "the header idempotency-key must come once, with 1 to 255 visible ASCII characters and no space";
            return Err(bad_header("idempotency-key", what));
        }
        self.idempotency_key = Some(key.clone());
        Ok(())
    }

    /// How long the caller said it would wait. The SDKs' own timers end with the headers of a stream, so for streams only
    /// our own header counts.
    fn patience(&self, stream: bool) -> Duration {
        let sdk = self.sdk.or(self.sdk_read).filter(|_| !stream);
        let seconds = self.ours.or(sdk);
        seconds.map_or(Duration::MAX, |seconds| Duration::from_secs_f64(seconds.min(86_400.0)))
    }
}

fn number(value: &HeaderValue) -> Option<f64> {
    value.to_str().ok()?.parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0)
}

fn cache_wish(value: &HeaderValue) -> Result<CacheWish, CallError> {
    match value.as_bytes() {
        b"default" => Ok(CacheWish::Default),
        b"no-cache" => Ok(CacheWish::NoCache),
        b"no-store" => Ok(CacheWish::NoStore),
        b"only-if-cached" => Ok(CacheWish::OnlyIfCached),
        _ => {
            let what = "the header wb-cache must be default, no-cache, no-store or only-if-cached";
            Err(bad_header("wb-cache", what))
        }
    }
}

fn bad_header(name: &str, what: &str) -> CallError {
    CallError::BadRequest { message: what.to_owned(), param: Some(name.to_owned()) }
}

fn list_models(arrival: &Whole, caller: &LiveCaller) -> Reply {
    let snapshot = &arrival.pinned;
    let routes = snapshot.table().llm_routes().values().filter(|route| caller.caller.may_use(route.id.as_str()));
    let mine: Vec<_> = routes.map(|route| entry(route, snapshot.loaded_at())).collect();
    Reply::json(models_list(&mine))
}

/// A route as a model: what holds whichever candidate answers.
fn entry(route: &LlmRoute, created: u64) -> ModelEntry<'_> {
    let least = |fact: fn(&Model) -> Option<u32>| {
        let facts = route.everybody().map(|candidate| fact(candidate.model.as_deref()?));
        facts.reduce(|a, b| Some(a?.min(b?))).flatten()
    };
    let (context, max_output) = (least(|model| model.context), least(|model| model.max_output));
    ModelEntry { id: route.id.as_str(), created, owned_by: OWNER, context, max_output }
}

fn get_model(arrival: &Whole, caller: &LiveCaller) -> Result<Reply, CallError> {
    let id = arrival.parameter.as_deref().unwrap_or_default();
    match select::llm(arrival.pinned.table(), &caller.caller, id) {
        Ok(route) => Ok(Reply::json(model_object(&entry(route, arrival.pinned.loaded_at())))),
        Err(_) => Err(CallError::UnknownModel { model: id.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f4_only_exact_paths_and_their_method_are_known() {
        let label = |method, path| find(&method, path).map_err(|error| error.label());
        assert_eq!(label(Method::POST, "/v1/chat/completions"), Ok((Operation::ChatCompletions, None)));
        assert_eq!(label(Method::GET, "/v1/models"), Ok((Operation::ModelsList, None)));
        assert_eq!(label(Method::GET, "/v1/models/a/b"), Ok((Operation::ModelsGet, Some("a/b".to_owned()))));
        assert_eq!(label(Method::POST, "/v1/risk/assessments"), Ok((Operation::RiskAssess, None)));
        let one = || Some("ra_1".to_owned());
        assert_eq!(label(Method::GET, "/v1/risk/assessments/ra_1"), Ok((Operation::RiskGet, one())));
        assert_eq!(label(Method::POST, "/v1/risk/assessments/ra_1/outcome"), Ok((Operation::RiskOutcome, one())));
        for method in [Method::GET, Method::TRACE, Method::CONNECT, Method::from_bytes(b"post").unwrap()] {
            assert_eq!(label(method.clone(), "/v1/chat/completions"), Err("method"), "{method}");
        }
        for path in
            ["/", "/v1/chat/completions/", "//v1/chat/completions", "/v1/x/../models", "/v1/..%2fmodels", "/metrics"]
        {
            assert_eq!(label(Method::POST, path), Err("not_found"), "{path}");
        }
    }

    #[test]
    fn the_callers_patience_is_read_from_our_header_first_and_never_cuts_a_stream_by_an_sdks_timer() {
        let headers = |fields: &[(&'static str, &str)]| -> HeaderMap {
            fields.iter().map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
        };
        let sdk = headers(&[("x-stainless-timeout", "60")]);
        assert_eq!(Asked::of(&sdk).unwrap().patience(false), Duration::from_secs(60));
        assert_eq!(Asked::of(&sdk).unwrap().patience(true), Duration::MAX);
        let both = headers(&[("x-stainless-timeout", "60"), ("wb-timeout-ms", "1500")]);
        assert_eq!(Asked::of(&both).unwrap().patience(true), Duration::from_millis(1500));
        for bad in ["0", "-1", "NaN", "soon"] {
            assert_eq!(Asked::of(&headers(&[("wb-timeout-ms", bad)])).unwrap().patience(false), Duration::MAX, "{bad}");
        }
    }
}
