//! Hot reload with the built program: every way to save a file, every way to save a broken one, and what must survive.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::{PATIENCE, Sandbox, Site, Traffic, routes_with, run, wait_of_its_own, wait_until, weighbridge};

/// Rows 38 and 39: from the last byte written to the new configuration in force.
const LIVE: Duration = Duration::from_secs(3);
/// How long a file must stay the same to be taken for a whole one.
const SETTLE: Duration = Duration::from_millis(200);

fn in_force(sandbox: &Sandbox, how: &str, holds: impl FnMut() -> bool) {
    println!("{how}: {:?}", wait_of_its_own(sandbox.pid(), LIVE, how, holds));
}

fn is_live(sandbox: &Sandbox, route: &str, how: &str) {
    in_force(sandbox, how, || sandbox.has_route(route));
}

#[test]
fn row_39_every_way_of_saving_is_in_force_within_three_seconds_and_no_request_is_lost() {
    let site = Site::new();
    let sandbox = Sandbox::start(&site, &[]);
    let traffic = Traffic::start(&sandbox, 20);
    let before = sandbox.version();

    site.replace("routes.toml", &routes_with("renamed-over"));
    is_live(&sandbox, "renamed-over", "rename over the file");

    let taken = || sandbox.metric(r#"weighbridge_config_reloads_total{result="success"}"#);
    // On a busy machine the halves may come so far apart that each of them is a file that somebody saved.
    let together = (0..50).any(|number| {
        let (route, before) = (format!("two-halves-{number}"), taken());
        let apart = write_in_two_halves(&site, &routes_with(&route));
        is_live(&sandbox, &route, "truncated and written in two halves");
        in_force(&sandbox, "and counted", || taken() > before);
        assert!(apart >= SETTLE || taken() - before == 1.0, "never half a file");
        apart < SETTLE
    });
    assert!(together, "no two halves were written within {SETTLE:?}");

    // A file system with a coarse clock shows the same size and the same time.
    let modified = fs::metadata(site.path("routes.toml")).unwrap().modified().unwrap();
    site.write("routes.toml", &routes_with("two-hulves"));
    File::options().append(true).open(site.path("routes.toml")).unwrap().set_modified(modified).unwrap();
    is_live(&sandbox, "two-hulves", "same size, same time");

    // vim with a backup: the old file moves away, a new one takes its name.
    fs::rename(site.path("routes.toml"), site.path("routes.toml~")).unwrap();
    site.write("routes.toml", &routes_with("with-backup"));
    is_live(&sandbox, "with-backup", "moved away and written anew");

    let limit = |provider: &str| limit_of(&sandbox.status(), provider);
    let tokenmix = fs::read_to_string(site.path("providers/tokenmix.toml")).unwrap();
    assert_eq!(limit("tokenmix"), Some(200));
    site.write("providers/tokenmix.toml", &tokenmix.replace("in_flight = 200", "in_flight = 123"));
    in_force(&sandbox, "a provider file edited", || limit("tokenmix") == Some(123));

    site.write("providers/added.toml", &tokenmix.replace("\"tokenmix\"", "\"added\""));
    let with_added = routes_with("added")
        .replace("\n[model.added]\ncandidates = [\"tokenmix/", "\n[model.added]\ncandidates = [\"added/");
    site.replace("routes.toml", &with_added);
    is_live(&sandbox, "added", "a provider file added");
    assert_eq!(limit("added"), Some(200));
    assert_eq!(sandbox.chat("added", &json!({})).header("wb-provider"), Some("added"));

    site.replace("routes.toml", &routes_with("without-added"));
    fs::remove_file(site.path("providers/added.toml")).unwrap();
    is_live(&sandbox, "without-added", "a provider file removed");
    // Two changes: they may be noticed one after the other.
    in_force(&sandbox, "a provider file removed", || limit("added").is_none());

    // The whole folder is swapped; whoever watched it watches the old one.
    fs::rename(site.path("providers"), site.path("providers.old")).unwrap();
    fs::create_dir(site.path("providers")).unwrap();
    site.write("providers/tokenmix.toml", &tokenmix.replace("in_flight = 200", "in_flight = 45"));
    in_force(&sandbox, "the folder of providers swapped", || limit("tokenmix") == Some(45));

    let answers = traffic.all_answered();
    assert!(answers.iter().any(|answer| answer.header("wb-config") == Some(&before)));
    assert_eq!(sandbox.status()["last_reload"]["errors"], json!([]));
}

/// Tells how long a reader could have taken the first half for the whole.
fn write_in_two_halves(site: &Site, text: &str) -> Duration {
    let begun = Instant::now();
    let mut file = File::create(site.path("routes.toml")).unwrap();
    let (first, second) = text.split_at(text.len() / 2);
    file.write_all(first.as_bytes()).unwrap();
    file.flush().unwrap();
    thread::sleep(Duration::from_millis(100));
    file.write_all(second.as_bytes()).unwrap();
    begun.elapsed()
}

fn limit_of(status: &Value, provider: &str) -> Option<u64> {
    let providers = status["providers"].as_array().unwrap();
    providers.iter().find(|known| known["id"] == provider)?["limit"].as_u64()
}

/// Config maps are folders of links to `..data`, which is a link to a dated folder, which is replaced as a whole.
#[test]
fn row_39_a_config_map_that_swaps_its_link_is_in_force_within_three_seconds() {
    let site = Site::new();
    fs::remove_file(site.path("routes.toml")).unwrap();
    let publish = |name: &str, route: &str| {
        fs::create_dir(site.path(name)).unwrap();
        site.write(&format!("{name}/routes.toml"), &routes_with(route));
        symlink(name, site.path("..data_tmp")).unwrap();
        fs::rename(site.path("..data_tmp"), site.path("..data")).unwrap();
    };
    publish("..2026_11_22_01", "first");
    symlink("..data/routes.toml", site.path("routes.toml")).unwrap();
    let sandbox = Sandbox::start(&site, &[]);
    let traffic = Traffic::start(&sandbox, 20);
    assert!(sandbox.has_route("first"));
    for (folder, route) in [("..2026_11_22_02", "second"), ("..2026_11_22_03", "third")] {
        publish(folder, route);
        is_live(&sandbox, route, "a swapped link");
    }
    fs::remove_dir_all(site.path("..2026_11_22_02")).unwrap();
    traffic.all_answered();
    assert_eq!(sandbox.metric(r#"weighbridge_config_reloads_total{result="failure"}"#), 0.0);
}

/// Saves something that is no configuration.
type Breakage = (&'static str, fn(&Site), &'static str);

const BREAKAGES: &[Breakage] = &[
    ("bad TOML", |site| site.write("routes.toml", "version = 1\nkey = \"sk-CANARY\n"), "--> routes.toml:2:"),
    (
        "an unknown field",
        |site| site.write("routes.toml", &format!("{}\nsk_canary = \"sk-CANARY\"\n", routes_with("x"))),
        "--> routes.toml:",
    ),
    (
        "a route twice",
        |site| site.write("routes.toml", &format!("{}[model.x]\ncandidates = [\"sk-CANARY\"]\n", routes_with("x"))),
        "--> routes.toml:",
    ),
    ("an empty file", |site| site.write("routes.toml", "# nothing\n"), "--> routes.toml:1:1"),
    ("zero bytes", |site| drop(File::create(site.path("routes.toml")).unwrap()), "--> routes.toml:1:1"),
    ("no file", |_| {}, "there is no such file"),
    ("a folder in its place", |site| fs::create_dir(site.path("routes.toml")).unwrap(), "not a regular file"),
    (
        "a FIFO in its place",
        |site| assert!(Command::new("mkfifo").arg(site.path("routes.toml")).status().unwrap().success()),
        "not a regular file",
    ),
    // Tests may run as root, to whom every file is readable.
    ("a link to nowhere", |site| symlink("nowhere", site.path("routes.toml")).unwrap(), "there is no such file"),
    ("too much", |site| site.write("routes.toml", &"# sk-CANARY\n".repeat(100_000)), "larger than 1 MiB"),
    (
        "a gibibyte of nothing",
        |site| File::create(site.path("routes.toml")).unwrap().set_len(1 << 30).unwrap(),
        "larger than 1 MiB",
    ),
    ("not text", |site| fs::write(site.path("routes.toml"), [0xff; 64]).unwrap(), "not UTF-8"),
];

fn remove(site: &Site) {
    let path = site.path("routes.toml");
    // One of the breakages is that it is gone already.
    let _ = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
}

#[test]
fn row_38_what_is_no_configuration_changes_nothing_and_is_told_everywhere() {
    let site = Site::new();
    let sandbox = Sandbox::start(&site, &[]);
    let traffic = Traffic::start(&sandbox, 20);
    let failures = || sandbox.metric(r#"weighbridge_config_reloads_total{result="failure"}"#);
    for (number, (what, break_it, told)) in BREAKAGES.iter().enumerate() {
        let (version, failed) = (sandbox.version(), failures());
        remove(&site);
        break_it(&site);
        let rendered = || sandbox.status()["last_reload"]["rendered"].to_string();
        in_force(&sandbox, what, || failures() > failed && rendered().contains(told));
        let status = sandbox.status();
        assert_eq!(status["config_hash"], version.as_str(), "{what}");
        let first = &status["last_reload"]["errors"][0];
        assert!(first["file"] == "routes.toml" && first["line"].as_u64() > Some(0), "{what}: {first}");
        assert!(first["message"].is_string() && status["last_reload"]["at"].is_string(), "{what}: {first}");
        let answer = sandbox.chat("sandbox/steady", &json!({}));
        assert_eq!((answer.status, answer.header("wb-config")), (200, Some(version.as_str())), "{what}");
        assert_eq!(sandbox.admin_get("/readyz").status, 200, "{what}: it serves, so it is ready");

        remove(&site);
        let route = format!("repaired-{number}");
        site.write("routes.toml", &routes_with(&route));
        is_live(&sandbox, &route, what);
        // It is told a moment after it is so.
        in_force(&sandbox, what, || sandbox.status()["last_reload"]["errors"] == json!([]));
    }
    traffic.all_answered();
    let log = sandbox.log();
    assert!(log.contains("configuration refused") && log.contains("\"routes.toml:2:"), "{log}");
    let everything = [log, sandbox.status().to_string(), sandbox.admin_get("/metrics").body].concat();
    assert!(!everything.to_lowercase().contains("canary"), "S15: {everything}");
}

#[test]
fn row_37_thirty_reloads_in_a_row_lose_no_request_and_each_has_one_version() {
    let site = Site::new();
    let sandbox = Sandbox::start(&site, &[]);
    let mut written = BTreeSet::from([sandbox.version()]);
    let traffic = Traffic::start(&sandbox, 20);
    for number in 0..30 {
        site.replace("routes.toml", &routes_with(&format!("v{number}")));
        let told = sandbox.reload();
        assert_eq!(told.status, 200, "{told:?}");
        written.insert(told.json()["config_hash"].as_str().unwrap().to_owned());
    }
    let last = sandbox.version();
    wait_until(PATIENCE, "traffic on the last version", || {
        sandbox.chat("sandbox/steady", &json!({})).header("wb-config") == Some(&last)
    });
    let seen: BTreeSet<_> =
        traffic.all_answered().iter().map(|answer| answer.header("wb-config").unwrap().to_owned()).collect();
    assert_eq!(written.len(), 31);
    assert!(seen.len() > 3 && seen.is_subset(&written), "{seen:?} {written:?}");
    wait_until(PATIENCE, "old snapshots to go", || sandbox.metric("weighbridge_config_snapshots_alive") == 1.0);
    assert_eq!(sandbox.metric(&format!(r#"weighbridge_config_info{{hash="{last}"}}"#)), 1.0);
    assert_eq!(sandbox.admin_get("/metrics").body.matches("\nweighbridge_config_info{").count(), 1);
}

#[test]
fn row_40_a_stream_of_a_provider_that_is_removed_ends_as_if_nothing_had_happened() {
    let site = Site::new();
    let tokenmix = fs::read_to_string(site.path("providers/tokenmix.toml")).unwrap();
    site.write("providers/leaving.toml", &tokenmix.replace("\"tokenmix\"", "\"leaving\""));
    let text = routes_with("leaving")
        .replace("candidates = [\"tokenmix/deepseek-chat\"]\n", "candidates = [\"leaving/deepseek-chat\"]\n");
    site.write("routes.toml", &text);
    let sandbox = Sandbox::start(&site, &[]);
    let before = sandbox.version();
    let streams: Vec<_> = (0..20).map(|_| sandbox.stream("leaving", 500)).collect();

    site.write("routes.toml", &routes_with("arriving"));
    fs::remove_file(site.path("providers/leaving.toml")).unwrap();
    let told = sandbox.reload();
    assert_eq!(told.status, 200, "{told:?}");
    let after = told.json()["config_hash"].as_str().unwrap().to_owned();
    assert_ne!(before, after);
    assert_eq!(limit_of(&sandbox.status(), "leaving"), None);
    assert_eq!(sandbox.chat("leaving", &json!({})).status, 404);
    assert_eq!(sandbox.chat("arriving", &json!({})).header("wb-config"), Some(after.as_str()));
    assert_eq!(sandbox.metric("weighbridge_config_snapshots_alive"), 2.0, "the streams hold the old one");

    for stream in streams {
        assert_eq!(stream.head.header("wb-config"), Some(before.as_str()));
        let text = stream.rest().unwrap();
        assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("\"error\""), "{text}");
    }
    wait_until(PATIENCE, "the old snapshot to go", || sandbox.metric("weighbridge_config_snapshots_alive") == 1.0);
}

#[test]
fn row_37_what_is_known_about_a_provider_survives_a_reload() {
    let site = Site::new();
    let sandbox = Sandbox::start(&site, &[]);
    // An exhausted account opens the breaker for longer than this test takes.
    let exhausted = json!({ "sandbox_fault": { "tokenmix": "status:402" } });
    assert_eq!(sandbox.chat("summary", &exhausted).header("wb-provider"), Some("openrouter"));
    let state = || {
        let status = sandbox.status();
        let route = status["routes"].as_array().unwrap().iter().find(|route| route["id"] == "summary").cloned();
        route.unwrap()["candidates"][0].clone()
    };
    assert_eq!((&state()["upstream"], &state()["breaker"]), (&json!("tokenmix/deepseek-chat"), &json!("open")));
    let stream = sandbox.stream("sandbox/steady", 400);
    let in_flight = |kind: &str, id: &str| {
        let status = sandbox.status();
        let found = status[kind].as_array().unwrap().iter().find(|known| known["id"] == id).cloned();
        found.unwrap()["in_flight"].as_u64().unwrap()
    };
    let counted =
        || [in_flight("providers", "sandbox"), in_flight("callers", "sandbox"), in_flight("routes", "sandbox/steady")];
    assert_eq!(counted(), [1, 1, 1]);

    site.write("routes.toml", &routes_with("next"));
    assert_eq!(sandbox.reload().status, 200);
    assert!(sandbox.has_route("next"));
    assert_eq!(state()["breaker"], "open");
    assert_eq!(counted(), [1, 1, 1], "the stream still counts");
    let answer = sandbox.chat("summary", &json!({}));
    assert_eq!((answer.status, answer.header("wb-provider")), (200, Some("openrouter")));
    assert!(stream.rest().unwrap().ends_with("data: [DONE]\n\n"));
    wait_until(PATIENCE, "nothing in flight", || counted() == [0, 0, 0]);
}

#[test]
fn sighup_and_post_reload_look_at_once_and_say_what_is_wrong() {
    let site = Site::new();
    let sandbox = Sandbox::start(&site, &[]);
    let count = |result: &str| sandbox.metric(&format!("weighbridge_config_reloads_total{{result=\"{result}\"}}"));
    let version = sandbox.version();
    sandbox.signal("HUP");
    wait_until(PATIENCE, "SIGHUP to be heard", || count("success") == 1.0);
    assert_eq!(sandbox.version(), version, "nothing changed, and that is fine");

    site.write("routes.toml", "version = \"sk-CANARY\"\n");
    let refused = sandbox.reload();
    assert_eq!(refused.status, 422, "{refused:?}");
    assert_eq!(refused.json()["errors"][0]["line"], 1);
    assert!(!refused.body.contains("CANARY"));
    sandbox.signal("HUP");
    wait_until(PATIENCE, "SIGHUP to be heard", || count("failure") >= 2.0);
    assert_eq!(sandbox.version(), version);

    site.write("routes.toml", &routes_with("next"));
    let told = sandbox.reload();
    assert_eq!((told.status, &told.json()["config_hash"]), (200, &json!(sandbox.version())));
    // One line a mistake and one a reload, for whoever searches the log; the writer is some milliseconds behind.
    for text in [r#""changes":"none""#, "; + route next", r#""message":"routes.toml:1:11: "#] {
        wait_until(PATIENCE, text, || sandbox.log().contains(text));
    }
    assert!(!sandbox.log().contains("CANARY"));
}

/// Reading the files is an event in their folder too; a process that listened to that would be busy for ever.
#[test]
fn a_process_with_nothing_to_do_does_nothing() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let Some(before) = sandbox.ticks() else { return };
    thread::sleep(Duration::from_millis(2500));
    let used = sandbox.ticks().unwrap() - before;
    assert!(used <= 10, "{used} ticks of 10 ms in 2.5 s");
}

#[test]
fn the_command_asks_for_a_reload_and_its_exit_code_says_how_it_went() {
    let site = Site::new();
    site.write("routes.toml", &routes_with("first"));
    let sandbox = Sandbox::start(&site, &[]);
    let listen = sandbox.admin.to_string();
    let reload = |arguments: &[&str], listen: &str| {
        let ended = run(weighbridge().arg("reload").args(arguments).env("WEIGHBRIDGE_ADMIN_LISTEN", listen));
        (ended.code, ended.out + &ended.err)
    };
    site.replace("routes.toml", &routes_with("second"));
    let (code, said) = reload(&[], &listen);
    assert!(code == Some(0) && said.starts_with("in force: version ") && said.contains(&sandbox.version()), "{said}");

    site.replace("routes.toml", &routes_with("third").replace("version = 1", "version = 9"));
    let (code, said) = reload(&["--admin", &format!("http://{listen}")], "127.0.0.1:1");
    assert!(code == Some(1) && said.contains("routes.toml:") && said.contains("what was in force still is"), "{said}");

    let (code, said) = reload(&[], "127.0.0.1:1");
    assert!(code == Some(2) && said.contains("no proxy answers at 127.0.0.1:1"), "{said}");
    site.replace("routes.toml", &routes_with("second"));
    assert_eq!(reload(&[], &listen).0, Some(0));
}
