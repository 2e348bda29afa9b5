//! A configuration that does worse than the one before is rolled back, if somebody said so.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, advance};
use weighbridge::flight::quota::Quota;
use weighbridge::gateway::build;
use weighbridge::gateway::trial::{Trial, Verdict};

use crate::harness::*;
use crate::process::{Client, PATIENCE, Sandbox, Site, wait_until};
use crate::takeover::Served;

const TERMS: &str = "[reload]\nroll_back = { worse_than = 0.05, least = 10 }\n";

/// The usual routes on trial, with one text in the place of another.
fn on_trial(from: &str, to: &str) -> Plan {
    let plan = Plan::replacing(from, to);
    Plan { routes: format!("{}{TERMS}", plan.routes), ..plan }
}

fn usual() -> Plan {
    on_trial("version = 1", "version = 1")
}

/// As the reloading thread does it.
struct Tried {
    world: World,
    trial: Trial,
}

impl Tried {
    fn with(plan: &Plan) -> Self {
        let mut tried = Self { world: World::with(plan), trial: Trial::default() };
        assert!(matches!(tried.look(), Verdict::Open));
        tried
    }

    fn look(&mut self) -> Verdict {
        self.trial.look(&self.world.live.load(), Instant::now())
    }

    fn swap(&mut self, plan: &Plan) {
        let before = self.world.live.load_full();
        self.world.reload(plan);
        self.trial.swapped(before, &self.world.live.load(), Instant::now());
    }

    /// True if something was put back.
    fn judge(&mut self) -> bool {
        let Verdict::Worse { before, .. } = self.look() else { return false };
        let again = build::put_back(&before.snapshot, &self.world.live.load(), &self.world.shared);
        self.world.live.store(Arc::new(again));
        true
    }

    async fn ask(&self, model: &str, times: usize, status: u16) {
        for _ in 0..times {
            assert_eq!(self.world.chat(&chat(model)).await.status, status);
        }
    }

    async fn fail(&self, model: &str, times: usize) {
        for _ in 0..times {
            assert!(self.world.chat(&chat(model)).await.status >= 500);
        }
    }

    /// The minute before.
    async fn good_minute(&mut self) {
        for _ in 0..6 {
            self.ask("solo", 10, 200).await;
            advance(Duration::from_secs(9)).await;
            assert!(!self.judge());
        }
    }
}

/// `solo` leads to a provider that fails.
fn worse() -> Plan {
    on_trial("[model.solo]\ncandidates = [\"alpha/fast\"]", "[model.solo]\ncandidates = [\"beta/fast\"]")
}

#[tokio::test(start_paused = true)]
async fn roll_back_a_worse_configuration_gives_way_and_what_it_began_ends_on_it() {
    let mut tried = Tried::with(&usual());
    tried.world.fault("beta", "status:500");
    tried.good_minute().await;
    let good = tried.world.live.load().table().version();
    tried.swap(&worse());
    let bad = tried.world.live.load().table().version().to_string();
    let mut stream = tried.world.open(&streamed("trio")).await;
    assert_eq!(stream.response.headers()["wb-config"], *bad);
    stream.next().await.unwrap();
    tried.fail("solo", 9).await;
    assert!(!tried.judge(), "too few to say anything");
    tried.fail("solo", 1).await;
    assert!(tried.judge());
    assert_eq!(tried.world.live.load().table().version(), good);
    let [alpha, beta, _] = tried.world.counts();
    tried.ask("solo", 5, 200).await;
    assert_eq!(tried.world.counts()[..2], [alpha + 5, beta], "the provider from before is asked again, at once");
    assert!(stream.rest().await.contains("[DONE]"));
    drop(stream);
    assert!(!tried.judge() && !tried.trial.is_on());
}

#[tokio::test(start_paused = true)]
async fn roll_back_what_callers_did_wrong_rolls_nothing_back() {
    let mut tried = Tried::with(&usual());
    tried.good_minute().await;
    tried.swap(&on_trial("allow = [\"duo\", \"kept\"]", "allow = [\"kept\"]"));
    assert!(tried.trial.is_on());
    tried.ask("nothing-of-the-kind", 200, 404).await;
    for _ in 0..100 {
        assert_eq!(tried.world.call(chat_request("wb-nobody", &chat("solo"))).await.status, 401);
        assert_eq!(tried.world.call(chat_request(SHOP, &json!({ "model": 1 }))).await.status, 400);
    }
    assert!(!tried.judge());
    advance(Duration::from_secs(61)).await;
    assert!(matches!(tried.look(), Verdict::Stays(_)) && !tried.trial.is_on());
}

#[tokio::test(start_paused = true)]
async fn roll_back_a_provider_that_was_bad_before_is_not_the_new_files_doing() {
    let mut tried = Tried::with(&usual());
    tried.world.fault("alpha", "status:500");
    for _ in 0..5 {
        tried.fail("solo", 10).await;
        advance(Duration::from_secs(9)).await;
        assert!(!tried.judge());
    }
    tried.swap(&on_trial("bands = {", "# another\nbands = {"));
    tried.fail("solo", 100).await;
    assert!(tried.trial.is_on() && !tried.judge());
}

#[tokio::test(start_paused = true)]
async fn roll_back_what_a_provider_refuses_since_the_change_is_the_new_files_doing() {
    for fault in ["status:404", "status:400"] {
        let mut tried = Tried::with(&usual());
        tried.world.fault("beta", fault);
        tried.good_minute().await;
        tried.swap(&worse());
        for number in 0..10 {
            assert!(!tried.judge(), "{number} are too few to say anything");
            let answer = tried.world.chat(&chat("solo")).await;
            assert!((400..500).contains(&answer.status), "{answer:?}");
        }
        assert!(tried.judge(), "{fault}");
        tried.ask("solo", 1, 200).await;
    }
}

#[tokio::test(start_paused = true)]
async fn roll_back_what_a_provider_refused_before_or_finds_too_large_is_not() {
    for (fault, at_first) in [("status:400", true), ("status:413", false)] {
        let mut tried = Tried::with(&usual());
        if at_first {
            tried.world.fault("alpha", fault);
        }
        for _ in 0..5 {
            for _ in 0..10 {
                tried.world.chat(&chat("solo")).await;
            }
            advance(Duration::from_secs(9)).await;
            assert!(!tried.judge());
        }
        tried.swap(&on_trial("bands = {", "# another\nbands = {"));
        tried.world.fault("alpha", fault);
        for _ in 0..100 {
            let answer = tried.world.chat(&chat("solo")).await;
            assert!((400..500).contains(&answer.status), "{answer:?}");
        }
        assert!(tried.trial.is_on() && !tried.judge(), "{fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn roll_back_two_bad_ones_in_a_row_lead_back_to_the_good_one() {
    let mut tried = Tried::with(&usual());
    tried.world.fault("beta", "status:500");
    tried.good_minute().await;
    let good = tried.world.live.load().table().version();
    tried.swap(&worse());
    tried.fail("solo", 5).await;
    let Plan { routes, .. } = worse();
    tried.swap(&Plan { routes: format!("# mended, or so somebody thought\n{routes}"), ..Plan::default() });
    tried.fail("solo", 10).await;
    assert!(tried.judge());
    assert_eq!(tried.world.live.load().table().version(), good);
    tried.ask("solo", 1, 200).await;
}

#[tokio::test(start_paused = true)]
async fn roll_back_decisions_without_a_verdict_count_as_failed() {
    let mut tried = Tried::with(&usual());
    for number in 0..30 {
        assert_eq!(tried.world.assess(&payment(&format!("before-{number}"), "1.00")).await.json()["source"], "live");
    }
    tried.swap(&on_trial("review_from = 0.7", "review_from = 0.6"));
    tried.world.fault("alipay", "status:500");
    for number in 0..20 {
        let answer = tried.world.assess(&payment(&format!("after-{number}"), "1.00")).await;
        assert_eq!((answer.status, answer.json()["source"].as_str()), (200, Some("fallback")));
    }
    assert!(tried.judge());
}

#[tokio::test(start_paused = true)]
async fn roll_back_what_a_caller_has_spent_comes_back_with_it() {
    let budget = "[[caller]]\nid = \"shop\"\nbudget = { amount = \"5.00 USD\", per = \"day\" }";
    let with_budget = || on_trial("[[caller]]\nid = \"shop\"", budget);
    let mut tried = Tried::with(&with_budget());
    tried.world.fault("beta", "status:500");
    tried.good_minute().await;
    let spent = |tried: &Tried| -> Option<Vec<String>> {
        let live = tried.world.live.load();
        let found = live.live_callers().find(|live| live.caller.id.as_str() == "shop").cloned().unwrap();
        let spending =
            |quota: &Arc<Quota>| quota.spending(&found.caller).iter().map(|of| of.sums.spent.to_string()).collect();
        found.quota.as_ref().map(spending)
    };
    let before = spent(&tried).unwrap();
    tried.swap(&worse());
    assert_eq!(spent(&tried), None, "no budget, nothing to count");
    tried.fail("solo", 10).await;
    assert!(tried.judge());
    assert_eq!(spent(&tried), Some(before));
}

#[tokio::test(start_paused = true)]
async fn roll_back_is_off_unless_it_is_asked_for() {
    let mut tried = Tried::with(&Plan::default());
    tried.ask("solo", 20, 200).await;
    assert!(tried.world.live.load().showing().is_none());
    tried.swap(&usual());
    assert!(!tried.trial.is_on(), "nothing was counted before it");
    tried.good_minute().await;
    tried.swap(&Plan::default());
    assert!(!tried.trial.is_on(), "the new file says when");
}

#[test]
fn roll_back_a_dead_address_is_taken_back_under_load_and_not_tried_again_by_itself() {
    let upstream = Sandbox::start(&Site::new(), &[]);
    let site = Served::site(&upstream);
    let good = fs::read_to_string(site.path("routes.toml")).unwrap();
    let good = format!("{good}\n[reload]\nroll_back = {{ worse_than = 0.1, least = 20 }}\n");
    site.write("routes.toml", &good);
    let supervisor = UnixDatagram::bind(site.path("notify")).unwrap();
    supervisor.set_read_timeout(Some(PATIENCE)).unwrap();
    let hears = |words: &str| {
        let mut state = [0; 256];
        loop {
            let length = supervisor.recv(&mut state).unwrap();
            if String::from_utf8_lossy(&state[..length]).contains(words) {
                return;
            }
        }
    };
    let served = Served::spawn(Served::command(&site, &upstream).env("NOTIFY_SOCKET", site.path("notify")));
    hears("READY=1\nSTATUS=serving the configuration on disk");
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4).map(|_| asking(&served, &stop)).collect();
    let ended =
        |outcome: &str| served.metric(&format!("weighbridge_requests_total{{route=\"steady\",outcome=\"{outcome}\"}}"));
    let reloads = |result: &str| served.metric(&format!("weighbridge_config_reloads_total{{result=\"{result}\"}}"));
    wait_until(PATIENCE, "requests before", || ended("ok") > 60.0);
    let version = served.status()["config_hash"].clone();

    let tokenmix = fs::read_to_string(site.path("providers/tokenmix.toml")).unwrap();
    let aggregator = upstream.told["aggregator"].as_str().unwrap();
    // Nobody listens on it.
    site.write("providers/tokenmix.toml", &tokenmix.replace(aggregator, "http://127.0.0.1:9"));
    wait_until(PATIENCE, "the roll-back", || reloads("rolled_back") == 1.0);
    hears("STATUS=serving the configuration from before, the one on disk was rolled back");
    let status = served.status();
    assert_eq!((&status["config"], &status["config_hash"]), (&json!("last-good"), &version));
    let told = &status["last_reload"];
    assert_eq!((&told["result"], &told["errors"][0]["code"]), (&json!("rolled_back"), &json!("rolled-back")));
    assert_eq!(served.metric("weighbridge_config_on_disk_not_in_force"), 1.0);
    let kept = fs::read_to_string(site.path("data/last-good.json")).unwrap();
    assert!(!kept.contains("127.0.0.1:9/"), "the last good one is the one in force");
    assert_eq!(served.chat().status, 200, "at once, whatever a breaker learned of the other address");

    // Another text, no better, and the first one again.
    site.write("routes.toml", "nothing of the kind");
    wait_until(PATIENCE, "the refusal", || served.status()["last_reload"]["result"] == "refused");
    site.write("routes.toml", &good);
    wait_until(PATIENCE, "it to be known again", || served.status()["last_reload"]["result"] == "rolled_back");
    let failed = ended("upstream_error");
    thread::sleep(Duration::from_millis(500));
    assert_eq!((served.status()["config_hash"].clone(), ended("upstream_error")), (version.clone(), failed));

    // Whoever asks for it gets it, and it is on trial again.
    let asked = Client::to(served.admin).call("POST", "/-/reload", &[], "").unwrap();
    assert_eq!(asked.status, 200, "{asked:?}");
    wait_until(PATIENCE, "the second roll-back", || reloads("rolled_back") == 2.0);
    assert_eq!(served.status()["config_hash"], version);

    site.write("providers/tokenmix.toml", &format!("{tokenmix}\n# mended\n"));
    wait_until(PATIENCE, "the repair", || served.metric("weighbridge_config_on_disk_not_in_force") == 0.0);
    hears("STATUS=serving the configuration on disk");
    assert_ne!(served.status()["config_hash"], version);
    stop.store(true, Ordering::SeqCst);
    clients.into_iter().for_each(|client| client.join().unwrap());
    served.stop();
}

/// A client who goes on whatever it is told.
fn asking(served: &Served, stop: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let (to, stop) = (served.data, Arc::clone(stop));
    thread::spawn(move || {
        while !stop.load(Ordering::SeqCst) {
            Client::to(to).chat(crate::takeover::KEY, "steady", &json!({})).unwrap();
            thread::sleep(Duration::from_millis(10));
        }
    })
}
