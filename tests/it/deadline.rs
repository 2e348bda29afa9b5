//! The promise of the risk route: its answer leaves by the deadline, counted from arrival, under every fault of the
//! provider (rows 1 to 6 of the fault matrix, where a payment has no other provider to go to).
//!
//! In memory the clock is paused and the promise exact; over real sockets nothing looks at the clock (`cargo bench --bench
//! stack -- --deadline` does). Both count what the provider read: a payment is assessed at most once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};
use weighbridge::sandbox::alipay::Alipay;
use weighbridge::sandbox::serve_connection;

use crate::harness::sockets::{BlackHole, Leave, Peer, handshake};
use crate::harness::*;

/// The route's default.
const DEADLINE: Duration = Duration::from_millis(800);
/// And how long a call may go on unheard.
const HARD_LIMIT: Duration = Duration::from_secs(3);
/// Far more than anything over real sockets takes, on the slowest machine.
const EVER: Duration = Duration::from_secs(60);

/// Which of the two calls of an assessment goes wrong.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Call {
    Token,
    Scoring,
}

/// How far the provider gets with it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Stage {
    /// It does not read the request.
    Accepted,
    /// It reads it.
    Asked,
    /// It answers up to the end of the head.
    Headed,
    /// It answers up to the middle of the body.
    Begun,
}

/// And what it does then.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Then {
    Close,
    HalfClose,
    Silence,
    /// A byte every 20 ms, for ever.
    Drip,
}

const CALLS: [Call; 2] = [Call::Token, Call::Scoring];
const STAGES: [Stage; 4] = [Stage::Accepted, Stage::Asked, Stage::Headed, Stage::Begun];
const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 60000\r\n\r\n";
const HALF: &str = r#"{"risk_score":0.01,"#;

/// What was seen from the provider's side.
#[derive(Clone, Default)]
struct Seen {
    /// Connections it still has.
    open: Arc<AtomicUsize>,
    /// Assessments it read to the end.
    assessed: Arc<AtomicUsize>,
}

impl Seen {
    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    fn assessed(&self) -> usize {
        self.assessed.load(Ordering::SeqCst)
    }
}

struct Opened(Arc<AtomicUsize>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Reads on until the other side has left.
async fn left(io: &mut (impl AsyncRead + Unpin)) {
    let mut scratch = [0; 4096];
    while let Ok(1..) = io.read(&mut scratch).await {}
}

/// Has the simulator answer a request, and passes its answer on.
async fn relay(io: &mut (impl AsyncWrite + Unpin), alipay: Alipay, request: &str) {
    let (mut near, far) = duplex(PIPE);
    let serving = tokio::spawn(serve_connection(far, move |request| {
        let alipay = alipay.clone();
        async move { alipay.handle(request).await }
    }));
    near.write_all(request.as_bytes()).await.unwrap();
    let answer = read_request(&mut near).await;
    let _ = io.write_all(answer.as_bytes()).await;
    drop(near);
    drop(serving.await);
}

/// The provider's side of one connection: all goes well up to this stage of this call.
async fn up_to<I: AsyncRead + AsyncWrite + Unpin>(io: &mut I, call: Call, stage: Stage, seen: &Seen, alipay: Alipay) {
    if call == Call::Scoring {
        // Its token is a good one; a connection that is used for scoring at once has nothing to answer before.
        let request = read_request(io).await;
        let token = request.starts_with("POST /oauth2/token");
        if !token {
            seen.assessed.fetch_add(usize::from(!request.is_empty()), Ordering::SeqCst);
        } else {
            relay(io, alipay, &request).await;
            if stage == Stage::Accepted {
                return;
            }
            let request = read_request(io).await;
            seen.assessed.fetch_add(usize::from(!request.is_empty()), Ordering::SeqCst);
        }
    } else if stage != Stage::Accepted {
        read_request(io).await;
    }
    let said = match stage {
        Stage::Accepted | Stage::Asked => String::new(),
        Stage::Headed => HEAD.to_owned(),
        Stage::Begun => format!("{HEAD}{HALF}"),
    };
    // The proxy may have hung up.
    let _ = io.write_all(said.as_bytes()).await;
}

async fn then(io: &mut (impl AsyncRead + AsyncWrite + Unpin), then: Then, stage: Stage) {
    match then {
        Then::Close => {}
        Then::HalfClose => {
            let _ = io.shutdown().await;
            left(io).await;
        }
        Then::Silence => left(io).await,
        Then::Drip => {
            let headed = matches!(stage, Stage::Headed | Stage::Begun);
            let mut dripping = if headed { "" } else { "HTTP/1.1 200 OK\r\nx-padding: " }.bytes();
            while io.write_all(&[dripping.next().unwrap_or(b' ')]).await.is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// The way to a provider that gets so far with each connection and then does that.
fn provider(world: &World, call: Call, stage: Stage, does: Then, seen: &Seen) -> Link {
    let (seen, alipay) = (seen.clone(), world.alipay.clone());
    peer(move |mut io| {
        let (seen, alipay) = (seen.clone(), alipay.clone());
        async move {
            seen.open.fetch_add(1, Ordering::SeqCst);
            let _opened = Opened(Arc::clone(&seen.open));
            up_to(&mut io, call, stage, &seen, alipay).await;
            then(&mut io, does, stage).await;
        }
    })
}

/// The answer is a decision of the route's failure mode.
fn assert_review(answer: &Answer, what: &str) {
    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    let decision = answer.json();
    assert_eq!(
        (&decision["action"], &decision["source"], &decision["degraded"]),
        (&json!("REVIEW"), &json!("fallback"), &json!(true)),
        "{what}"
    );
    assert_eq!(decision["risk_score"], Value::Null, "{what}");
}

/// Makes the way to a provider with a fault.
type Prepare = Box<dyn Fn(&World, &Seen) -> Link>;

/// A fault, and what a payment may make of it.
struct Case {
    what: String,
    /// Whether the provider reads an assessment at all.
    read: bool,
    prepare: Prepare,
}

impl Case {
    fn of(call: Call, stage: Stage, does: Then) -> Self {
        let prepare = move |world: &World, seen: &Seen| provider(world, call, stage, does, seen);
        let what = format!("{does:?} of the {call:?} call when {stage:?}");
        Self { what, read: call == Call::Scoring && stage != Stage::Accepted, prepare: Box::new(prepare) }
    }

    /// Every stage of both calls.
    fn all(does: Then) -> impl Iterator<Item = Self> {
        CALLS.into_iter().flat_map(move |call| STAGES.map(|stage| Self::of(call, stage, does)))
    }

    /// One payment after another, then many at once: each is answered on time, none is assessed twice, and when the last
    /// call's hard limit is over nothing is left of any.
    async fn kept_on_time(&self) {
        let (what, world, seen) = (&self.what, World::new(), Seen::default());
        let before = Handle::current().metrics().num_alive_tasks();
        world.net.always("alipay", (self.prepare)(&world, &seen));
        let mut asked = 0;
        for round in [1, 1, 1, 50] {
            let bodies: Vec<Value> = (0..round).map(|at| payment(&format!("T{}", asked + at), "1.00")).collect();
            asked += round;
            for answer in join_all(bodies.iter().map(|body| world.assess(body))).await {
                assert_review(&answer, what);
                assert!(answer.took <= DEADLINE, "{what}: {:?}", answer.took);
            }
            assert!(seen.assessed() <= asked, "{what}: {} of {asked}", seen.assessed());
        }
        assert!(seen.assessed() > 0 || !self.read, "{what}: it was never asked");
        // A token's fetch, which the last call may have begun, has as long again.
        sleep(2 * HARD_LIMIT).await;
        assert_eq!(seen.open(), 0, "{what}: a connection is left");
        world.assert_idle();
        let after = Handle::current().metrics().num_alive_tasks();
        assert!(after <= before, "{what}: {before} tasks before, {after} after");
    }

    /// A route that wants an error gets it as early.
    async fn an_error_as_early(&self) {
        let world = World::with(&Plan::replacing("on_exhausted = \"review\"", "on_exhausted = \"error\""));
        world.net.always("alipay", (self.prepare)(&world, &Seen::default()));
        let answer = world.assess(&payment("T1", "1.00")).await;
        assert_eq!((answer.status, answer.header("content-type")), (503, "application/problem+json"), "{}", self.what);
        assert!(answer.took <= DEADLINE, "{}: {:?}", self.what, answer.took);
    }
}

#[tokio::test(start_paused = true)]
async fn row_1_risk_a_refused_connection_costs_a_payment_no_time_and_the_provider_nothing() {
    let case = Case { what: "refused".into(), read: false, prepare: Box::new(|_, _| Link::Refused) };
    case.kept_on_time().await;
    case.an_error_as_early().await;
}

#[tokio::test(start_paused = true)]
async fn row_3_risk_a_fin_at_any_stage_of_either_call_keeps_the_deadline_and_is_assessed_once() {
    for case in Case::all(Then::Close).chain(Case::all(Then::HalfClose)) {
        case.kept_on_time().await;
        case.an_error_as_early().await;
    }
}

#[tokio::test(start_paused = true)]
async fn row_4_risk_a_syn_without_an_answer_keeps_the_deadline() {
    let case = Case { what: "dropped".into(), read: false, prepare: Box::new(|_, _| Link::BlackHole) };
    case.kept_on_time().await;
    case.an_error_as_early().await;
}

#[tokio::test(start_paused = true)]
async fn row_5_risk_silence_at_any_stage_of_either_call_keeps_the_deadline_and_ends_at_the_hard_limit() {
    for case in Case::all(Then::Silence) {
        case.kept_on_time().await;
        case.an_error_as_early().await;
    }
}

#[tokio::test(start_paused = true)]
async fn row_6_risk_an_answer_that_drips_and_never_comes_to_its_content_keeps_the_deadline() {
    for case in Case::all(Then::Drip) {
        case.kept_on_time().await;
        case.an_error_as_early().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_the_routes_own_and_counts_from_arrival() {
    for deadline in [120, 300, 2_500] {
        let plan = Plan::replacing("bands = {", &format!("deadline = \"{deadline}ms\"\nbands = {{"));
        let world = World::with(&plan);
        world.fault("alipay", "stall");
        let body = payment("T1", "1.00").to_string();
        let (mut io, _end) = world.raw();
        let head = format!(
            "POST /v1/risk/assessments HTTP/1.1\r\nhost: proxy.test\r\nauthorization: Bearer {SHOP}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let start = Instant::now();
        io.write_all(head.as_bytes()).await.unwrap();
        // The body takes half of the time there is.
        sleep(Duration::from_millis(deadline / 2)).await;
        io.write_all(body.as_bytes()).await.unwrap();
        let answer = read_request(&mut io).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"fallback\""), "{answer}");
        assert!(start.elapsed() <= Duration::from_millis(deadline), "{:?} of {deadline}", start.elapsed());
    }
}

/// A world whose limits are short, so that waiting for them is.
fn impatient() -> World {
    World::with(&Plan::replacing("bands = {", "deadline = \"300ms\"\nhard_limit = \"600ms\"\nbands = {"))
}

/// A real port that gets so far with each connection.
async fn real(world: &World, call: Call, stage: Stage, leave: Leave, seen: &Seen) -> Peer {
    let (seen, alipay) = (seen.clone(), world.alipay.clone());
    Peer::new(move |mut io: TcpStream| {
        let (seen, alipay) = (seen.clone(), alipay.clone());
        async move {
            up_to(&mut io, call, stage, &seen, alipay).await;
            leave.act(io).await;
        }
    })
    .await
}

/// Two payments, which the provider leaves without an answer; then it is left alone.
async fn reviewed(world: World, link: Link, peer: Option<Peer>, (what, seen): (String, Seen)) {
    world.net.always("alipay", link);
    for number in 1..=2 {
        let body = payment(&format!("T{number}"), "1.00");
        let answer = timeout(EVER, world.assess(&body)).await.unwrap_or_else(|_| panic!("{what}: no answer"));
        assert_review(&answer, &what);
        assert!(seen.assessed() <= number, "{what}: {} of {number}", seen.assessed());
    }
    if let Some(peer) = peer {
        timeout(EVER, peer.left_alone()).await.unwrap_or_else(|_| panic!("{what}: a connection is left"));
    }
    // The call may go on after its answer, up to the hard limit.
    let busy = || world.live.load().providers().iter().any(|(_, provider)| provider.bulkhead.taken() > 0);
    let quiet = async {
        while busy() || world.shared.gate.in_flight() > 0 || world.metric("weighbridge_in_flight", &[]) > 0.0 {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(EVER, quiet).await.unwrap_or_else(|_| panic!("{what}: a place is still taken"));
    world.assert_idle();
}

async fn reviewed_at_every_stage(leave: Leave) {
    let stages = CALLS.into_iter().flat_map(|call| STAGES.map(|stage| (call, stage)));
    join_all(stages.map(|(call, stage)| async move {
        let (world, seen) = (impatient(), Seen::default());
        let peer = real(&world, call, stage, leave, &seen).await;
        let what = format!("{leave:?} of the {call:?} call when {stage:?}");
        reviewed(world, peer.link(), Some(peer), (what, seen)).await;
    }))
    .await;
}

#[tokio::test]
async fn row_2_risk_a_reset_at_any_stage_of_either_call_is_a_review_and_assessed_once() {
    reviewed_at_every_stage(Leave::Reset).await;
}

#[tokio::test]
async fn row_5_risk_silence_on_real_sockets_is_a_review_and_leaves_no_connection() {
    reviewed_at_every_stage(Leave::Silence).await;
}

#[tokio::test]
async fn row_5_risk_a_tls_connection_that_stops_before_or_after_its_handshake_is_a_review() {
    let cases = Leave::ALL.into_iter().flat_map(|leave| [(leave, false), (leave, true)]);
    join_all(cases.map(|(leave, secured)| async move {
        let peer = Peer::new(move |io| async move {
            leave.act(if secured { handshake(io).await.into_inner().0 } else { io }).await;
        });
        let (peer, what) = (peer.await, format!("{leave:?}, after the handshake {secured}"));
        reviewed(impatient(), peer.tls_link(), Some(peer), (what, Seen::default())).await;
    }))
    .await;
}

#[tokio::test]
async fn row_4_risk_a_port_that_drops_syns_is_a_review() {
    let hole = BlackHole::new();
    reviewed(impatient(), hole.link(), None, ("a full queue".into(), Seen::default())).await;
}
