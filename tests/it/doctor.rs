//! `weighbridge doctor` as a person runs it: against simulated providers, a wrong key, nobody, and the other side's text.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::machine::Stopwatch;
use crate::process::{Ended, Sandbox, Site, left_by, repository, run, weighbridge};

/// Longer than any secret a simulator would take for its own.
const WRONG: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";

/// A configuration whose providers are the sandbox's simulators, as an operator would write it.
fn pointed_at(site: &Site, openai: &str, alipay: &str) {
    let aggregator = format!(
        "id = \"near\"\nprotocol = \"openai\"\nbase_url = \"{openai}/near/v1\"\nallow_private = true\n\
         source = {{ url = \"https://weighbridge.invalid/near\", checked = \"2026-11-22\" }}\n\
         auth = {{ kind = \"bearer\", secret_env = \"NEAR_KEY\" }}\noperations = [\"chat.completions\"]\n\
         [[model]]\nid = \"m\"\nname = \"m\"\n"
    );
    site.write("providers/near.toml", &aggregator);
    let own = fs::read_to_string(repository().join("providers/alipay.toml")).unwrap();
    let moved = own.lines().map(|line| match line.split_once(" = ") {
        Some(("base_url", _)) => format!("base_url = \"{alipay}\"\nallow_private = true"),
        Some(("allow_private", _)) => String::new(),
        _ => line.to_owned(),
    });
    site.write("providers/alipay.toml", &moved.collect::<Vec<_>>().join("\n"));
    let digest = "00".repeat(32);
    site.write(
        "doctor.toml",
        &format!(
            "version = 1\n[[caller]]\nid = \"a\"\nkey_digest = \"sha256:{digest}\"\nallow = [\"*\"]\n\
             [model.near]\ncandidates = [\"near/m\"]\n[risk]\ncandidates = [\"alipay\"]\n\
             bands = {{ pass_below = 0.3, review_from = 0.7 }}\n"
        ),
    );
}

fn doctor(site: &Site, more: &[&str]) -> Command {
    let mut command = weighbridge();
    command.current_dir(site.path(".")).args(["doctor", "--routes", "doctor.toml", "--data-dir", "kept"]);
    // Ports that nobody else's test has.
    command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]).args(more);
    command
}

fn checks(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

fn verdict<'v>(told: &'v Value, check: &str) -> &'v str {
    let found = told["checks"].as_array().unwrap().iter().find(|one| one["check"] == check);
    found.unwrap_or_else(|| panic!("{check}: {told:#}"))["verdict"].as_str().unwrap()
}

/// The simulators' addresses and their one secret.
struct Peers {
    _sandbox: Sandbox,
    openai: String,
    alipay: String,
    secret: String,
}

fn peers() -> Peers {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let told = |key: &str| sandbox.told[key].as_str().unwrap().to_owned();
    Peers { openai: told("aggregator"), alipay: told("alipay"), secret: told("signing_secret"), _sandbox: sandbox }
}

/// Every variable the Alipay file names, with one value.
fn secrets(command: &mut Command, secret: &str) {
    let own = fs::read_to_string(repository().join("providers/alipay.toml")).unwrap();
    let named = own.split("secret_env = \"").skip(1).filter_map(|rest| rest.split('"').next());
    for name in named {
        command.env(name, secret);
    }
    command.env("NEAR_KEY", secret);
}

#[test]
fn a_healthy_site_is_all_right_and_leaves_nothing_behind() {
    let (site, peers) = (Site::new(), peers());
    pointed_at(&site, &peers.openai, &peers.alipay);
    let mut command = doctor(&site, &["--json"]);
    secrets(&mut command, &peers.secret);
    let ended = run(&mut command);
    let told = checks(&ended);
    for check in
        ["configuration", "clock", "data folder", "data port", "near credential", "near connection", "near key"]
    {
        assert_ne!(verdict(&told, check), "FAIL", "{told:#}");
    }
    assert_eq!((verdict(&told, "file watching"), verdict(&told, "alipay key")), ("OK", "OK"), "{told:#}");
    assert_eq!(verdict(&told, "alipay clock"), "OK", "{told:#}");
    assert_eq!((ended.code, &told["failures"]), (Some(0), &json!(0)), "{told:#}");
    assert!(!ended.out.contains(&peers.secret) && !ended.err.contains(&peers.secret));
    assert!(!site.path("kept").exists());
    let left = fs::read_dir(site.path(".")).unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    assert!(left.into_iter().all(|name| !name.contains("doctor-")));
}

#[test]
fn a_wrong_key_is_a_failure_for_both_kinds_of_provider() {
    let (site, peers) = (Site::new(), peers());
    pointed_at(&site, &peers.openai, &peers.alipay);
    let mut command = doctor(&site, &["--json"]);
    secrets(&mut command, WRONG);
    let ended = run(&mut command);
    let told = checks(&ended);
    assert_eq!(verdict(&told, "alipay key"), "FAIL", "{told:#}");
    assert_eq!(verdict(&told, "near key"), "FAIL", "{told:#}");
    assert_eq!(ended.code, Some(1));
    assert!(!ended.out.contains(WRONG));
}

#[test]
fn a_missing_secret_is_told_and_the_way_to_the_provider_is_probed_all_the_same() {
    let (site, peers) = (Site::new(), peers());
    pointed_at(&site, &peers.openai, &peers.alipay);
    let ended = run(&mut doctor(&site, &[]));
    assert_eq!(ended.code, Some(1));
    assert!(ended.out.contains("NEAR_KEY is not set or empty"), "{}", ended.out);
    assert!(ended.out.contains("OK    near connection"), "{}", ended.out);
    assert!(ended.out.contains("FAIL  near credential"), "{}", ended.out);
    for line in ended.out.lines().rev().skip(1) {
        assert!(["OK    ", "WARN  ", "FAIL  "].iter().any(|start| line.starts_with(start)), "{line}");
    }
}

#[test]
fn providers_that_refuse_or_never_answer_are_told_within_the_time_of_one_probe() {
    let site = Site::new();
    // One accepts and says nothing, one is not there.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    pointed_at(&site, &format!("http://{}", silent.local_addr().unwrap()), &format!("http://{closed}"));
    let mut command = doctor(&site, &["--json"]);
    secrets(&mut command, WRONG);
    let child = command.spawn().unwrap();
    let started = Stopwatch::of(child.id());
    let ended = left_by(child.wait_with_output().unwrap());
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    let told = checks(&ended);
    assert_eq!((verdict(&told, "near key"), verdict(&told, "alipay connection")), ("FAIL", "FAIL"), "{told:#}");
    assert!(ended.out.contains("no answer within 5 s"));
}

#[test]
fn a_taken_port_is_a_failure_unless_a_proxy_has_it() {
    let (site, sandbox) = (Site::new(), Sandbox::start(&Site::new(), &[]));
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let asked = |listen: String, admin: String| {
        let mut command = weighbridge();
        command.current_dir(site.path(".")).args(["doctor", "--json", "--listen", &listen, "--admin-listen", &admin]);
        checks(&run(&mut command))
    };
    let told = asked(sandbox.data.to_string(), sandbox.admin.to_string());
    assert_eq!((verdict(&told, "data port"), verdict(&told, "admin port")), ("OK", "OK"), "{told:#}");
    let told = asked(stranger.local_addr().unwrap().to_string(), "127.0.0.1:0".to_owned());
    assert_eq!((verdict(&told, "data port"), verdict(&told, "admin port")), ("FAIL", "OK"), "{told:#}");
}

#[test]
fn a_broken_configuration_is_told_with_its_place() {
    let site = Site::new();
    site.write("doctor.toml", "version = 1\n[model.x]\ncandidates = [\"nobody/nothing\"]\n");
    let ended = run(&mut doctor(&site, &[]));
    assert_eq!(ended.code, Some(1));
    assert!(ended.out.contains("FAIL  configuration            doctor.toml:3:"), "{}", ended.out);
}

/// Runs `doctor --string-to-sign` with this on its standard input.
fn signing(input: &str, more: &[&str]) -> Ended {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input.as_bytes()).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    run(weighbridge().current_dir(repository()).args(["doctor", "--string-to-sign"]).args(more).stdin(file))
}

#[test]
fn the_published_vectors_are_signed_as_published_and_the_secret_is_not_printed() {
    let golden = fs::read_to_string(repository().join("tests/golden/sign/di.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    for kind in ["requests", "responses"] {
        let mut given = golden[kind][0].clone();
        given["secret_hex"] = golden["secret_hex"].clone();
        let ended = signing(&given.to_string(), &["--json"]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let expected = json!({ "string_to_sign": golden[kind][0]["string_to_sign"], "sig": golden[kind][0]["sig"] });
        assert_eq!(serde_json::from_str::<Value>(&ended.out).unwrap(), expected);
        assert!(!ended.out.contains(golden["secret_hex"].as_str().unwrap()));
        given.as_object_mut().unwrap().remove("secret_hex");
        assert_eq!(
            serde_json::from_str::<Value>(&signing(&given.to_string(), &["--json"]).out).unwrap()["sig"],
            Value::Null
        );
    }
}

#[test]
fn the_other_sides_text_is_compared_to_the_first_byte() {
    let golden = fs::read_to_string(repository().join("tests/golden/sign/di.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let (given, text) = (golden["requests"][0].to_string(), golden["requests"][0]["string_to_sign"].as_str().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let theirs = folder.path().join("theirs");
    let against = |text: &str, more: &[&str]| {
        fs::write(&theirs, text).unwrap();
        signing(&given, &[&["--theirs", theirs.to_str().unwrap()][..], more].concat())
    };
    assert_eq!(against(text, &[]).code, Some(0));
    let ended = against(&text.replace("/gateway.do", "/gateway%2Edo"), &["--json"]);
    let told: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((ended.code, &told["same"], &told["difference"]["holds"]), (Some(1), &json!(false), &json!("path")));
    assert_eq!(told["difference"]["byte"], text.find(".do").unwrap());
    let ended = against(&format!("{text}\n"), &[]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.out.contains("theirs ends with a line break"), "{}", ended.out);
    assert_eq!(signing("{\"secret\":\"hush-hush-hush\",", &[]).code, Some(2));
    assert!(!signing("{\"secret\":\"hush-hush-hush\",", &[]).err.contains("hush"));
}
