//! Ten times as much is offered as can be served: what is given up, in which order, and how all of it comes back.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use weighbridge::gateway::pressure::{Comforts, Watch};
use weighbridge::telemetry::process::{Reading, Used};

use crate::harness::*;

/// The usual routes with these texts replaced.
fn plan(changes: &[(&str, &str)]) -> Plan {
    let mut plan = Plan::default();
    for (from, to) in changes {
        assert!(plan.routes.contains(from), "the routes do not say {from}");
        plan.routes = plan.routes.replacen(from, to, 1);
    }
    plan
}

fn head(path: &str, headers: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {SHOP}\r\ncontent-type: application/json\r\n{headers}\r\n"
    )
}

/// What comes back within a second.
async fn answer(io: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = vec![0; 16 * 1024];
    let read = timeout(Duration::from_secs(1), io.read(&mut bytes)).await.map_or(0, Result::unwrap);
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

fn shed(world: &World, class: &str, reason: &str) -> f64 {
    world.metric("weighbridge_shed_total", &[&format!("class=\"{class}\""), &format!("reason=\"{reason}\"")])
}

fn assert_shed(answer: &Answer) {
    assert_eq!((answer.status, answer.openai_error().as_str()), (503, "overloaded"));
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    let exact: u64 = answer.header("retry-after-ms").parse().unwrap();
    assert!((1..=5).contains(&wait) && (1_000..5_000).contains(&exact), "{wait} {exact}");
    assert!(answer.took <= Duration::from_millis(10), "{:?}", answer.took);
    assert_eq!(answer.header("connection"), "", "the connection is kept");
}

#[tokio::test(start_paused = true)]
async fn row_35_batch_is_shed_before_normal_and_payments_are_not_shed() {
    let world =
        World::with(&plan(&[("[limits]", "[limits]\nin_flight = 10"), ("\"other\"", "\"other\"\nclass = \"batch\"")]));
    world.fault("alpha", "delay:3s");
    let body = chat("duo");
    let seven = join_all((0..7).map(|_| world.call(chat_request(OFFICE, &body))));
    let (served, ()) = tokio::join!(seven, async {
        sleep(Duration::from_secs(1)).await;
        // Nothing but its key and path says what it is worth; its body never comes.
        let batch = world.call(chat_request(OFFICE, &body)).await;
        assert_shed(&batch);
        let two = join_all([world.chat(&body), world.chat(&body)]);
        let (normal, ()) = tokio::join!(two, async {
            sleep(Duration::from_secs(1)).await;
            assert_shed(&world.chat(&body).await);
            let decided = world.assess(&payment("T1", "88.13")).await;
            assert_eq!((decided.status, &decided.json()["source"]), (200, &"live".into()));
        });
        normal.iter().for_each(|answer| answer.assert_served("alpha", 1));
    });
    served.iter().for_each(|answer| answer.assert_served("alpha", 1));
    assert_eq!((shed(&world, "batch", "in_flight"), shed(&world, "normal", "in_flight")), (1.0, 1.0));
    assert_eq!((world.metric("weighbridge_shed_total", &["class=\"risk\""]), world.counts()), (0.0, [9, 0, 0]));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_35_a_route_may_be_worth_less_than_its_caller_and_never_more() {
    let changes = [
        ("[limits]", "[limits]\nin_flight = 10"),
        ("[model.solo]", "[model.solo]\nclass = \"batch\""),
        ("[model.trio]", "[model.trio]\nclass = \"low\""),
    ];
    let world = World::with(&plan(&changes));
    world.fault("alpha", "delay:3s");
    let (duo, solo, trio) = (chat("duo"), chat("solo"), chat("trio"));
    let seven = join_all((0..7).map(|_| world.chat(&duo)));
    tokio::join!(seven, async {
        sleep(Duration::from_secs(1)).await;
        assert_shed(&world.chat(&solo).await);
        world.chat(&trio).await.assert_served("alpha", 1);
    });
    assert_eq!((shed(&world, "batch", "in_flight"), world.counts()), (1.0, [8, 0, 0]));
    world.chat(&solo).await.assert_served("alpha", 1);
    world.assert_idle();
}

/// Both callers ask for a model for three seconds, each at its own pace; how many of each were served.
async fn offer(world: &World, shop_every: u64, office_every: u64) -> (usize, usize) {
    let body = chat("duo");
    let ask = |key: &'static str, every: u64| {
        let body = &body;
        let calls = (0..3_000 / every).map(move |number| async move {
            sleep(Duration::from_millis(number * every)).await;
            world.call(chat_request(key, body)).await
        });
        async move {
            let answers = join_all(calls).await;
            for refused in answers.iter().filter(|answer| answer.status != 200) {
                assert!(refused.status == 503 && !refused.header("retry-after").is_empty(), "{refused:?}");
                assert!(refused.took <= Duration::from_millis(10));
            }
            answers.iter().filter(|answer| answer.status == 200).count()
        }
    };
    tokio::join!(ask(SHOP, shop_every), ask(OFFICE, office_every))
}

#[tokio::test(start_paused = true)]
async fn row_36_a_caller_that_offers_ten_times_as_much_does_not_starve_another_of_the_process() {
    // Room for ten calls to models of 200 ms: 50 a second.
    let world = World::with(&plan(&[("[limits]", "[limits]\nin_flight = 12")]));
    world.fault("alpha", "delay:200ms");
    let (shop, office) = offer(&world, 8, 100).await;
    assert!(office >= 27, "{office} of 30");
    assert!(shop + office >= 135, "{} of 150", shop + office);
    assert!(shed(&world, "normal", "caller_share") > 0.0);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_36_nor_of_a_provider() {
    // Ten places at each of two providers, 200 ms each: 100 a second.
    let world = World::with(&Plan { provider_in_flight: 10, ..Plan::default() });
    world.fault("alpha", "delay:200ms");
    world.fault("beta", "delay:200ms");
    let (shop, office) = offer(&world, 6, 100).await;
    assert!(office >= 27, "{office} of 30");
    assert!(shop + office >= 270, "{} of 300", shop + office);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_34_a_shed_request_keeps_its_connection_and_its_body_is_not_read_into_memory() {
    let world = World::with(&plan(&[("[limits]", "[limits]\nin_flight = 2")]));
    world.fault("alpha", "delay:3s");
    let asked = chat("duo");
    let body = asked.to_string();
    let (mut io, _end) = world.raw();
    tokio::join!(world.chat(&asked), async {
        sleep(Duration::from_secs(1)).await;
        for late in [false, true] {
            let request = head("/v1/chat/completions", &format!("content-length: {}\r\n", body.len()));
            io.write_all(request.as_bytes()).await.unwrap();
            if !late {
                io.write_all(body.as_bytes()).await.unwrap();
            }
            let shed = answer(&mut io).await;
            assert!(shed.starts_with("HTTP/1.1 503") && !shed.contains("connection: close"), "{shed}");
            if late {
                io.write_all(body.as_bytes()).await.unwrap();
            }
        }
    });
    sleep(Duration::from_secs(1)).await;
    let request = head("/v1/chat/completions", &format!("content-length: {}\r\n", body.len()));
    io.write_all((request + &body).as_bytes()).await.unwrap();
    sleep(Duration::from_secs(4)).await;
    assert!(answer(&mut io).await.starts_with("HTTP/1.1 200"), "the same connection serves the next request");
    assert_eq!(world.counts(), [2, 0, 0]);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_32_a_body_of_unknown_length_takes_room_as_it_comes() {
    let world = World::with(&plan(&[("[limits]", "[limits]\nbody = \"600KiB\"\nin_flight_bytes = \"1MiB\"")]));
    let (mut io, _end) = world.raw_with(1 << 20);
    io.write_all(head("/v1/chat/completions", "transfer-encoding: chunked\r\n").as_bytes()).await.unwrap();
    sleep(Duration::from_millis(10)).await;
    assert_eq!(world.shared.gate.held_bytes(), 64 << 10);
    let chunk = format!("{:x}\r\n{}\r\n", 100_000, " ".repeat(100_000));
    for _ in 0..5 {
        io.write_all(chunk.as_bytes()).await.unwrap();
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.shared.gate.held_bytes(), 512 << 10);
    // Another that does not say how much it is gets what is left.
    let (mut other, _end) = world.raw_with(1 << 20);
    other.write_all(head("/v1/chat/completions", "transfer-encoding: chunked\r\n").as_bytes()).await.unwrap();
    for _ in 0..5 {
        other.write_all(chunk.as_bytes()).await.unwrap();
    }
    let refused = answer(&mut other).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("request bytes in flight"), "{refused}");
    assert!(shed(&world, "normal", "bytes") > 0.0);
    drop((io, other));
    sleep(Duration::from_millis(10)).await;
    assert_eq!(world.shared.gate.held_bytes(), 0);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_45_what_a_client_held_is_free_when_it_leaves_at_whatever_moment() {
    let world = World::new();
    let body = streamed("duo").to_string();
    let whole = head("/v1/chat/completions", &format!("content-length: {}\r\n", body.len())) + &body;
    let half = &whole[..whole.len() - 10];
    let unknown = head("/v1/chat/completions", "transfer-encoding: chunked\r\n") + "5\r\n{\"mod\r\n";
    for (sent, then) in [(half, 50), (unknown.as_str(), 50), (whole.as_str(), 0), (whole.as_str(), 100)] {
        world.fault("alpha", if then == 0 { "delay:5s" } else { "delay:1ms" });
        let mut held = Vec::new();
        for _ in 0..20 {
            let (mut io, end) = world.raw();
            io.write_all(sent.as_bytes()).await.unwrap();
            held.push((io, end));
        }
        sleep(Duration::from_millis(then.max(10))).await;
        assert_eq!(world.shared.gate.in_flight(), 20);
        for (io, end) in held {
            drop(io);
            end.await.unwrap();
        }
        sleep(Duration::from_millis(100)).await;
        assert_eq!(world.shared.gate.held_bytes(), 0);
        world.assert_idle();
    }
}

/// A world whose memory and descriptors are what the test says, in thousandths.
struct Pressed {
    world: World,
    levels: Arc<Mutex<(u64, u64)>>,
    closed: Arc<AtomicUsize>,
    /// Whether room may be kept for bodies to come.
    roomy: Arc<AtomicBool>,
    watch: Watch,
}

impl Pressed {
    fn new(plan: &Plan) -> Self {
        let (world, levels, closed) =
            (World::with(plan), Arc::<Mutex<(u64, u64)>>::default(), Arc::<AtomicUsize>::default());
        let (told, count) = (Arc::clone(&levels), Arc::clone(&closed));
        let measure = move |_| {
            let (memory, descriptors) = *told.lock().unwrap();
            let of = |used, limit| Some(Used { used, limit });
            let memory = if memory == u64::MAX { None } else { of(memory << 30, 1000 << 30) };
            Reading { memory, descriptors: of(descriptors, 1000) }
        };
        let close_idle = Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let roomy = Arc::<AtomicBool>::default();
        let spare = Arc::clone(&roomy);
        let keep_spare = Box::new(move |may| spare.store(may, Ordering::Relaxed));
        let comforts = Comforts { close_idle, keep_spare };
        let watch = Watch::new(Arc::clone(&world.live), &world.shared, Box::new(measure), comforts);
        Self { world, levels, closed, roomy, watch }
    }

    /// The next look cannot read what memory there is.
    fn finds_no_memory(&mut self, descriptors: u64) {
        self.finds(u64::MAX, descriptors);
    }

    /// The next look finds this.
    fn finds(&mut self, memory: u64, descriptors: u64) {
        *self.levels.lock().unwrap() = (memory, descriptors);
        self.watch.look();
    }

    async fn ask(&self, key: &str, model: &str) -> Answer {
        self.world.call(chat_request(key, &chat(model))).await
    }
}

#[tokio::test(start_paused = true)]
async fn row_32_stages_of_memory_give_up_one_thing_after_another_and_come_back() {
    let changes = [("[model.solo]", "[model.solo]\nclass = \"low\""), ("\"other\"", "\"other\"\nclass = \"batch\"")];
    let mut pressed = Pressed::new(&plan(&changes));
    // (thousandths of memory, batch, low, normal, idle connections closed)
    let stages = [
        (790, true, true, true, false),
        (800, false, true, true, false),
        (900, false, false, true, true),
        (950, false, false, false, true),
        (910, false, false, false, true),
        (890, false, false, true, true),
        (840, false, true, true, false),
        (740, true, true, true, false),
    ];
    for (memory, batch, low, normal, closes) in stages {
        let closed = pressed.closed.load(Ordering::Relaxed);
        pressed.finds(memory, 100);
        assert_eq!(pressed.closed.load(Ordering::Relaxed) > closed, closes, "{memory}");
        assert_eq!(
            pressed.roomy.load(Ordering::Relaxed),
            batch,
            "{memory}: room for bodies to come is the first to go"
        );
        for (key, model, served) in [(OFFICE, "duo", batch), (SHOP, "solo", low), (SHOP, "duo", normal)] {
            let answer = pressed.ask(key, model).await;
            if served {
                answer.assert_served("alpha", 1);
            } else {
                assert_shed(&answer);
            }
        }
        let decided = pressed.world.assess(&payment(&format!("T{memory}"), "88.13")).await;
        assert_eq!((decided.status, &decided.json()["source"]), (200, &Value::from("live")), "payments go on");
    }
    assert_eq!(pressed.world.metric("weighbridge_pressure_stage", &[]), 0.0);
    assert_eq!(pressed.world.metric("weighbridge_memory_limit_bytes", &[]), (1000u64 << 30) as f64);
    assert!(shed(&pressed.world, "batch", "memory") > 0.0);
    pressed.world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_31_descriptors_have_the_same_stages_and_the_metric_says_which_it_was() {
    let mut pressed = Pressed::new(&Plan::default());
    pressed.finds(100, 960);
    assert_shed(&pressed.ask(SHOP, "duo").await);
    assert_eq!((shed(&pressed.world, "normal", "descriptors"), shed(&pressed.world, "normal", "memory")), (1.0, 0.0));
    assert_eq!(pressed.world.metric("weighbridge_pressure_stage", &[]), 3.0);
    pressed.finds(960, 1000);
    pressed.finds_no_memory(100);
    assert_shed(&pressed.ask(SHOP, "duo").await);
    assert_eq!(shed(&pressed.world, "normal", "memory"), 1.0, "what cannot be read is as it was");
    pressed.finds(100, 100);
    pressed.ask(SHOP, "duo").await.assert_served("alpha", 1);
    assert_eq!(pressed.world.counts(), [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn row_32_a_lean_process_keeps_no_new_answers_and_a_tight_one_forgets_those_it_has() {
    let mut pressed = Pressed::new(&Plan::default());
    pressed.finds(850, 0);
    for _ in 0..2 {
        assert_eq!(pressed.ask(SHOP, "kept").await.header("wb-cache"), "miss");
    }
    pressed.finds(100, 0);
    assert_eq!(pressed.ask(SHOP, "kept").await.header("wb-cache"), "miss");
    pressed.finds(850, 0);
    assert_eq!(pressed.ask(SHOP, "kept").await.header("wb-cache"), "hit", "what is there is given all the same");
    pressed.finds(910, 0);
    assert_eq!(pressed.ask(SHOP, "kept").await.header("wb-cache"), "miss");
    assert_eq!(pressed.world.counts(), [4, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn row_32_a_lean_process_neither_hedges_nor_casts_shadows() {
    let route =
        "[model.duo]\nhedge = { after = \"200ms\", max_share = 1 }\nshadow = { use = \"gamma/fast\", percent = 100 }";
    let mut pressed = Pressed::new(&plan(&[("[model.duo]", route)]));
    pressed.world.fault("alpha", "delay:1s");
    pressed.finds(850, 0);
    pressed.ask(SHOP, "duo").await.assert_served("alpha", 1);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(pressed.world.counts(), [1, 0, 0]);
    pressed.finds(100, 0);
    assert_eq!(pressed.ask(SHOP, "duo").await.status, 200);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(pressed.world.counts(), [2, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn row_34_after_ten_times_as_much_as_it_can_serve_it_serves_as_before() {
    let world = World::with(&plan(&[("[limits]", "[limits]\nin_flight = 11")]));
    world.fault("alpha", "delay:400ms");
    let (shop, office) = offer(&world, 4, 300).await;
    assert!(shop + office >= 68, "{} of 75", shop + office);
    sleep(Duration::from_millis(500)).await;
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
    world.assert_idle();
}
