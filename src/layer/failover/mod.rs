//! Retry, failover and hedging are one thing: when to start another attempt. One loop, one deadline; [`policy`] decides,
//! purely, and `routing::order` says whose turn it is.
//!
//! Moving on to another upstream is free while that one takes calls; repeating the same one spends its retry budget.
//! Only attempts a provider may have seen count towards the cap: our own refusals cost nothing and move on at once.

pub mod policy;
pub mod race;
pub mod tempo;
mod walk;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tower::Service;

use self::policy::{LEAST_TIME, Next, Situation};
use self::race::Hedge;
use self::walk::Walk;
use crate::config::asking::{FallbackOn, Order};
use crate::domain::jitter;
use crate::domain::operation::Safety;
use crate::domain::outcome::{Blame, FailureClass, Sent};
use crate::flight::call::Call;
use crate::flight::error::{AttemptError, CallError};
use crate::flight::reply::Reply;
use crate::flight::trail::AttemptNote;
use crate::layer::seam::Seam;
use crate::layer::{BoxFuture, always_ready};
use crate::telemetry::handles::ProviderMetrics;
use crate::telemetry::labels::AttemptOutcome;
use crate::telemetry::metrics::Metrics;
use crate::upstream::attempt::Attempt;
use crate::upstream::live::LiveUpstream;
use crate::wire::openai::EmbeddedError;

/// One try at one upstream, whatever its stack.
pub type AttemptService = Seam<Attempt, Reply, AttemptError>;

/// A candidate with the stack in front of it.
#[derive(Clone)]
pub struct Lane {
    /// The candidate.
    pub upstream: Arc<LiveUpstream>,
    /// Its attempt stack.
    pub service: AttemptService,
    /// Its share where the route draws by weight.
    pub weight: u32,
    /// Counts retries its budget refused.
    pub metrics: Arc<ProviderMetrics>,
}

/// Plain values for [`Failover`].
#[derive(Clone)]
pub struct Params {
    /// Candidates as listed; never empty.
    pub lanes: Arc<[Lane]>,
    /// Who of them comes first.
    pub order: Order,
    /// Refusals of the request that are followed by the next candidate all the same.
    pub fallback_on: FallbackOn,
    /// When a second one is asked beside the first, if ever.
    pub hedge: Option<Hedge>,
    /// Most attempts a provider may see for one call.
    pub max_attempts: u32,
    /// TCP and TLS.
    pub connect: Duration,
    /// What any provider is given to show its first content (LLM) or its answer (risk).
    pub first_content: Duration,
    /// Longest silence within a body.
    pub idle: Duration,
    /// Counts moves.
    pub metrics: Arc<Metrics>,
}

/// The innermost service of a route.
#[derive(Clone)]
pub struct Failover(Arc<Params>);

impl Failover {
    /// A loop over these candidates.
    pub fn new(params: Params) -> Self {
        Self(Arc::new(params))
    }
}

impl Service<Call> for Failover {
    type Response = Reply;
    type Error = CallError;
    type Future = BoxFuture<Result<Reply, CallError>>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        let params = Arc::clone(&self.0);
        Box::pin(async move { Flight::new(&params, call).run().await })
    }
}

/// An attempt on its way.
type Attempting = BoxFuture<Result<Reply, AttemptError>>;

/// What asking came to, and who spoke last.
struct Asked<'p> {
    lane: &'p Lane,
    result: Result<Reply, AttemptError>,
}

/// One call on its way through the candidates.
struct Flight<'p> {
    params: &'p Params,
    call: Call,
    walk: Walk<'p>,
    /// Attempts a provider may have seen.
    made: u32,
    /// True once the current candidate was tried again.
    repeated: bool,
    /// The earliest moment any candidate said it may have room.
    soonest: Option<Duration>,
    /// The failure that says most, of those that were followed by something.
    telling: Option<AttemptError>,
}

impl<'p> Flight<'p> {
    fn new(params: &'p Params, call: Call) -> Self {
        let walk = Walk::new(&params.lanes, params.order);
        Self { params, call, walk, made: 0, repeated: false, soonest: None, telling: None }
    }

    async fn run(mut self) -> Result<Reply, CallError> {
        let nobody = |call: &Call| CallError::NotOffered { operation: call.operation.label() };
        let mut lane = self.walk.first(&self.call).ok_or_else(|| nobody(&self.call))?;
        lane.upstream.health.deposit();
        if let Some(hedge) = &self.params.hedge {
            hedge.tempo.call(&hedge.policy, self.micros(lane));
        }
        loop {
            let asked = match &self.params.hedge {
                None => Asked { lane, result: self.begin(lane, 1)?.await },
                // Boxed, so that a call that is not hedged does not carry the room for two.
                Some(hedge) => Box::pin(self.race(lane, hedge)).await?,
            };
            lane = asked.lane;
            let error = match asked.result {
                Ok(reply) => match self.objection(lane) {
                    None => return Ok(reply),
                    Some(error) => error,
                },
                Err(error) => error,
            };
            let (class, next) = (error.class, self.noted(lane, error));
            match (next, if next == Next::Move { self.walk.next(&self.call) } else { None }) {
                (Next::Move, Some(next)) => {
                    self.moved(lane, next, class);
                    lane = next;
                    lane.upstream.health.deposit();
                    self.repeated = false;
                }
                (Next::Again(after), _) => {
                    self.repeated = true;
                    tokio::time::sleep(jitter::longer(after)).await;
                }
                (Next::Stop | Next::Move, _) => match self.last_resort() {
                    Some(resort) => lane = resort,
                    None => return Err(self.give_up()),
                },
            }
        }
    }

    /// Nobody was asked because every breaker is open: one whose cool-down has lasted long enough for that. A provider that
    /// has healed is found within seconds, however long it was away.
    fn last_resort(&mut self) -> Option<&'p Lane> {
        if self.made > 0 {
            return None;
        }
        let (now, params, call) = (Instant::now(), self.params, &self.call);
        for lane in params.lanes.iter().filter(|lane| lane.upstream.speaks(call).is_some()) {
            let wait = lane.upstream.health.resort(now)?;
            if wait.is_zero() {
                return Some(lane);
            }
            self.soonest = Some(self.soonest.map_or(wait, |soonest| soonest.min(wait)));
        }
        None
    }

    /// Starts the attempt that is this many after those already made.
    ///
    /// # Errors
    /// [`CallError::DeadlinePassed`] if there is no time for it.
    fn begin(&self, lane: &Lane, ahead: u32) -> Result<Attempting, CallError> {
        let now = Instant::now();
        let left = self.call.deadline.left(now);
        if left < LEAST_TIME {
            return Err(CallError::DeadlinePassed);
        }
        Ok(lane.service.ask(Attempt {
            call: self.call.clone(),
            number: self.made + ahead,
            begun: now,
            limit: now + self.share(left),
            fair: now + self.params.first_content,
            patience: self.patience(left),
            connect: self.params.connect.min(left),
            idle: self.params.idle,
        }))
    }

    /// How long it waits for a place at a full provider. A payment that nobody else can judge waits out a burst: without a
    /// verdict it would go to a person or be lost. Every other call is refused at once and tried elsewhere, since a queue
    /// before a provider that stays full is latency in disguise; a quarter of the time is what that may cost here.
    fn patience(&self, left: Duration) -> Duration {
        let alone = self.call.safety() == Safety::AtMostOnce && self.walk.left(&self.call) == 0;
        if alone { self.params.first_content.min(left) / 4 } else { Duration::ZERO }
    }

    /// How long this attempt may take until its first content. A whole answer shows nothing until it is done, so it is
    /// given its share of the time left, and at least what a stream would be given for its first content.
    fn share(&self, left: Duration) -> Duration {
        let first_content = self.params.first_content;
        if self.call.llm().stream {
            return first_content.min(left);
        }
        let parts = u32::try_from(self.walk.left_well(&self.call) + 1).unwrap_or(u32::MAX);
        (left / parts).max(first_content).min(left)
    }

    /// What is wrong with an answer that came: all it says is a filter's word, and another candidate may have more to say.
    /// Without one it is served.
    fn objection(&self, lane: &Lane) -> Option<AttemptError> {
        let mut story = self.call.context.trail.lock();
        if self.params.fallback_on.content_policy && self.could_move() {
            let ours = |note: &&mut AttemptNote| note.filtered && Arc::ptr_eq(&note.upstream, &lane.upstream.names);
            if let Some(note) = story.attempts.iter_mut().rev().find(ours) {
                note.outcome = AttemptOutcome::Failed(FailureClass::Refused);
                return Some(filtered());
            }
        }
        story.served = Some(Arc::clone(&lane.upstream.names));
        None
    }

    /// True if one more attempt, beside the one that has just ended, could follow.
    fn could_move(&self) -> bool {
        let time = self.call.deadline.left(Instant::now()) >= LEAST_TIME;
        time && self.made + 1 < self.params.max_attempts && self.walk.left(&self.call) > 0
    }

    /// True if the route lists what the request was refused for.
    fn lists(&self, error: &AttemptError) -> bool {
        let FallbackOn { too_long, content_policy } = self.params.fallback_on;
        let said = |is: fn(&EmbeddedError) -> bool| error.said.as_deref().is_some_and(is);
        too_long && said(EmbeddedError::is_too_long) || content_policy && said(EmbeddedError::is_content_policy)
    }

    /// Takes note of a failure and says what follows.
    fn noted(&mut self, lane: &Lane, error: AttemptError) -> Next {
        self.made += u32::from(was_seen(&error));
        let next = policy::next(&Situation {
            safety: self.call.safety(),
            class: error.class,
            sent: error.sent,
            attempts_left: self.params.max_attempts.saturating_sub(self.made),
            time_left: self.call.deadline.left(Instant::now()),
            others: self.walk.left(&self.call) > 0,
            repeated: self.repeated,
            listed: self.lists(&error),
        });
        self.remember(error);
        if matches!(next, Next::Again(_)) && !lane.upstream.health.withdraw() {
            lane.metrics.retry_budget_exhausted.inc();
            return Next::Stop;
        }
        next
    }

    /// Takes note of a failure that something else follows anyway.
    fn note(&mut self, error: AttemptError) {
        self.made += u32::from(was_seen(&error));
        self.remember(error);
    }

    fn remember(&mut self, error: AttemptError) {
        self.soonest = match (self.soonest, error.retry_after) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let more = |before: &AttemptError| policy::weight(error.root()) >= policy::weight(before.root());
        if self.telling.as_ref().is_none_or(more) {
            self.telling = Some(error);
        }
    }

    fn moved(&self, from: &Lane, to: &Lane, class: FailureClass) {
        self.params.metrics.failover(&from.upstream.names.upstream, &to.upstream.names.upstream, class);
    }

    /// What the caller is told: not the last failure but the one that says most; each is in the log.
    fn give_up(&mut self) -> CallError {
        match self.telling.take() {
            Some(telling) if telling.class != FailureClass::DeadlinePassed => {
                CallError::Exhausted { retry_after: self.soonest, last: telling }
            }
            Some(_) => CallError::DeadlinePassed,
            None => CallError::Internal,
        }
    }
}

/// True if the attempt reached its provider, or may have: our own refusals are none.
fn was_seen(error: &AttemptError) -> bool {
    error.class.blame() != Blame::Local || error.class == FailureClass::Unauthorised
}

fn filtered() -> AttemptError {
    let message = "the provider's content filter stopped the answer before its first word".to_owned();
    let said = EmbeddedError { code: Some("content_filter".to_owned()), message, ..EmbeddedError::default() };
    let refused = AttemptError::new(FailureClass::Refused, Sent::Yes, "the answer was filtered before its first word");
    AttemptError { said: Some(Arc::new(said)), ..refused }
}

#[cfg(test)]
mod tests;
