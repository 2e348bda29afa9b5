//! `[[test]]`, `explain` and `diff` with the built program: from files, beside a running proxy, and about the past.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::process::{Answer, Client, Ended, Sandbox, Site, repository, routes_with, run, weighbridge};

fn of(site: &Site, arguments: &[&str]) -> Command {
    let mut command = weighbridge();
    command.current_dir(site.path("")).args(arguments);
    command
}

fn with_input(mut command: Command, input: &str) -> Ended {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn ask(sandbox: &Sandbox, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let headers: Vec<_> = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Client::to(sandbox.admin).call("POST", path, &headers, body).unwrap()
}

fn admin(sandbox: &Sandbox) -> String {
    format!("http://{}", sandbox.admin)
}

fn payment(key: &str, number: &str, more: &Value) -> (Vec<(String, String)>, String) {
    let mut body = json!({ "out_trade_no": number, "total_amount": "88.88", "currency": "CNY", "subject": "demo",
        "merchant": { "id": "m1", "category": "electronics" },
        "user": { "id": "canary-user", "email": "canary@example.com" } });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    (vec![("authorization".to_owned(), format!("Bearer {key}"))], body.to_string())
}

const FAILING: &str = "\n[[test]]\nname = \"never asks TokenMix\"\ngiven = { model = \"summary\", caller = \"backoffice\" }\n\
                       expect = { order = [\"openrouter/deepseek-chat\"] }\n";

#[test]
fn a_reload_with_a_test_that_fails_is_refused_and_the_old_routes_go_on() {
    let site = Site::new();
    let checked = run(&mut of(&site, &["check", "--allow-missing-secrets"]));
    assert!(checked.out.contains(", 2 tests passed"), "{}", checked.out);
    let sandbox = Sandbox::start(&site, &[]);
    let before = sandbox.version();
    site.replace("routes.toml", &format!("{}{FAILING}", routes_with("newer")));

    let refused = sandbox.reload();
    assert_eq!(refused.status, 422, "{refused:?}");
    let errors = refused.json()["errors"].clone();
    assert_eq!((errors.as_array().unwrap().len(), &errors[0]["code"]), (1, &json!("failed-test")), "{errors}");
    let message = errors[0]["message"].as_str().unwrap();
    assert!(
        message.contains("\"never asks TokenMix\" fails: expected openrouter/deepseek-chat, got tokenmix/"),
        "{message}"
    );
    assert_eq!((sandbox.version(), sandbox.has_route("newer")), (before, false));
    assert_eq!(sandbox.chat("summary", &json!({})).status, 200);
    assert_eq!(sandbox.status()["last_reload"]["errors"], errors);

    let checked = run(&mut of(&site, &["check", "--allow-missing-secrets"]));
    assert_eq!(checked.code, Some(1));
    assert!(checked.err.contains("error[failed-test]: the test \"never asks TokenMix\" fails"), "{}", checked.err);
    let started = run(&mut of(&site, &["sandbox", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]));
    assert_eq!(started.code, Some(2), "{}", started.err);
    // Whoever looks for the reason is not stopped by it.
    let explained = run(&mut of(&site, &["explain", "--model", "summary", "--caller", "backoffice"]));
    assert_eq!(explained.code, Some(0), "{}", explained.err);

    site.replace("routes.toml", &routes_with("newer"));
    assert_eq!(sandbox.reload().status, 200);
    assert!(sandbox.has_route("newer"));
}

#[test]
fn explain_from_files_says_who_is_asked_and_who_is_not() {
    let site = Site::new();
    let told = run(&mut of(&site, &["explain", "--model", "summary", "--down", "tokenmix", "--json"]));
    assert_eq!(told.code, Some(0), "{}", told.err);
    let told: Value = serde_json::from_str(&told.out).unwrap();
    let turns: Vec<_> = told["candidates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["upstream"].clone(), one["turn"].clone()))
        .collect();
    let expected = [(json!("openrouter/deepseek-chat"), json!(1)), (json!("tokenmix/deepseek-chat"), Value::Null)];
    assert_eq!((turns, &told["live"]), (expected.to_vec(), &json!(false)));

    let (_, body) = payment("", "T1", &json!({ "instrument": { "fingerprint": "canary0canary0" } }));
    let told =
        with_input(of(&site, &["explain", "--request", "-", "--score", "0.42", "--recommendation", "REVIEW"]), &body);
    assert_eq!(told.code, Some(0), "{}", told.err);
    assert!(told.out.contains("\naction REVIEW\n"), "{}", told.out);
    assert!(!told.out.contains("canary"), "{}", told.out);

    for (arguments, says) in [
        (&["explain"][..], "say what is asked"),
        (&["explain", "--model", "summary", "--caller", "nobody"][..], "known: checkout, backoffice"),
        (&["explain", "--request", "missing.json"][..], "missing.json"),
        (&["explain", "--model", "summary", "--admin", "http://127.0.0.1:1"][..], "no proxy answers"),
    ] {
        let told = run(&mut of(&site, arguments));
        assert_eq!((told.code, told.out.as_str()), (Some(1), ""), "{arguments:?}");
        assert!(told.err.contains(says), "{arguments:?}: {}", told.err);
    }
}

#[test]
fn explain_beside_a_running_proxy_knows_what_is_alive_and_what_happened() {
    let site = Site::new();
    let sandbox = Sandbox::start(&site, &[]);
    let at = admin(&sandbox);
    let told = run(&mut of(&site, &["explain", "--model", "summary", "--caller", "backoffice", "--admin", &at]));
    assert_eq!(told.code, Some(0), "{}", told.err);
    assert!(told.out.contains("in force now") && told.out.contains("breaker closed, well, 0 of 200"), "{}", told.out);

    // One that moved on, one that failed, and one that did neither.
    let past = |id: &str| run(&mut of(&site, &["explain", "--request-id", id, "--admin", &at]));
    let moved = sandbox.chat("sandbox/fail-503", &json!({}));
    let told = past(moved.header("x-request-id").unwrap());
    assert_eq!(told.code, Some(0), "{}", told.err);
    assert!(told.out.contains("failed: ") && told.out.contains("still in force"), "{}", told.out);
    let plain = sandbox.chat("summary", &json!({}));
    let told = past(plain.header("x-request-id").unwrap());
    assert_eq!(told.code, Some(1));
    assert!(told.err.contains("the access log") && told.err.contains("ra_"), "{}", told.err);

    // Of a stream that broke off, the attempt alone would look like a success.
    let cut = sandbox.chat("summary", &json!({ "stream": true, "sandbox_fault": "cut:3" }));
    assert_eq!(cut.status, 200);
    let cut = cut.header("x-request-id").unwrap();
    let told = past(cut);
    assert!(told.out.contains("\nbroke off    after its beginning was sent: truncated\n"), "{}", told.out);
    let told = past(moved.header("x-request-id").unwrap());
    assert!(!told.out.contains("broke off"), "{}", told.out);

    let (headers, body) = payment(&sandbox.key, "T-explained", &json!({}));
    let decided = sandbox.client().call("POST", "/v1/risk/assessments", &headers, &body).unwrap();
    assert_eq!(decided.status, 200, "{decided:?}");
    let told = past(decided.json()["id"].as_str().unwrap());
    assert_eq!(told.code, Some(0), "{}", told.err);
    let action = decided.json()["action"].as_str().unwrap().to_owned();
    assert!(
        told.out.contains(&format!("action       {action}\n")) && told.out.contains("policy       default"),
        "{}",
        told.out
    );
    assert!(!told.out.contains("canary"), "{}", told.out);
    assert_eq!(past("ra_unknown").code, Some(1));
}

#[test]
fn diff_tells_what_a_reload_would_change_and_changes_nothing() {
    let site = Site::new();
    let sandbox = Sandbox::start(&site, &[]);
    let (before, at) = (sandbox.version(), admin(&sandbox));
    let diff = |arguments: &[&str]| run(of(&site, &["diff"]).args(arguments));
    let same = diff(&["routes.toml", "--admin", &at]);
    assert_eq!((same.code, same.out.as_str()), (Some(0), "nothing would change\n"), "{}", same.err);

    let text = fs::read_to_string(repository().join("routes.toml")).unwrap();
    let other = text.replace("deadline = \"800ms\"", "deadline = \"700ms\"").replace("88207c57", "88207c58");
    let other = other.replace("requests_per_minute = 600,", "requests_per_minute = 700,");
    assert_ne!(text, other);
    site.write("new.toml", &format!("{other}\n[model.poems]\ncandidates = [\"tokenmix/deepseek-chat\"]\n"));
    for arguments in [&["new.toml", "--admin", &at][..], &["routes.toml", "new.toml"][..]] {
        let told = diff(arguments);
        assert_eq!(told.code, Some(1), "{}", told.err);
        for line in [
            "    deadline: 800ms → 700ms\n",
            "    limits.requests_per_minute: 600 → 700\n",
            "    key_digest: changed\n",
            "+ route poems\n    candidates: tokenmix/deepseek-chat\n",
        ] {
            assert!(told.out.contains(line), "{line}: {}", told.out);
        }
        assert!(!told.out.contains("88207c5"), "{}", told.out);
    }
    assert_eq!(sandbox.version(), before);

    site.write("wrong.toml", &text.replace("candidates = [\"alipay\"]", "candidates = [\"alipai\"]"));
    for arguments in
        [&["wrong.toml", "--admin", &at][..], &["routes.toml", "wrong.toml"][..], &["routes.toml", "none"][..]]
    {
        let told = diff(arguments);
        assert_eq!((told.code, told.out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(told.err.contains("wrong.toml:") || told.err.contains("none"), "{}", told.err);
    }
    assert_eq!(diff(&["routes.toml", "--admin", "http://127.0.0.1:1"]).code, Some(2));
}

#[test]
fn s14_questions_come_from_nobody_elses_page_and_are_bounded() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let question = json!({ "model": "summary" }).to_string();
    assert_eq!(ask(&sandbox, "/-/explain", &[], &question).status, 200);
    for path in ["/-/explain", "/-/diff", "/-/reload"] {
        for header in [("origin", "http://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
            assert_eq!(ask(&sandbox, path, &[header], &question).status, 403, "{path} {header:?}");
        }
        assert_eq!(ask(&sandbox, path, &[("host", "evil.example")], &question).status, 421, "{path}");
        assert_eq!(Client::to(sandbox.admin).call("GET", path, &[], "").unwrap().status, 405, "{path}");
    }
    let untyped = Client::to(sandbox.admin).call("POST", "/-/explain", &[], "").unwrap();
    assert_eq!(untyped.status, 415, "{untyped:?}");
    let long = format!("{{\"model\": \"{}\"}}", "a".repeat(2 << 20));
    assert_eq!(ask(&sandbox, "/-/explain", &[], &long).status, 413);
    for wrong in ["[]", "{\"modell\": 1}"] {
        let answer = ask(&sandbox, "/-/explain", &[], wrong);
        assert_eq!(answer.status, 422, "{answer:?}");
        assert!(!answer.body.contains("modell"), "{answer:?}");
    }
    let data = Client::to(sandbox.data).call("POST", "/-/explain", &[], &question).unwrap();
    assert_eq!(data.status, 404, "no admin path on the data listener: {data:?}");
}

#[test]
fn s11_no_secret_can_be_had_by_asking_what_a_configuration_would_change() {
    let site = Site::new();
    let sandbox = Sandbox::start(&site, &[]);
    let text = fs::read_to_string(repository().join("routes.toml")).unwrap();
    let provider = fs::read_to_string(repository().join("providers/tokenmix.toml")).unwrap();
    let provider = provider.replace("secret_env = \"TOKENMIX_API_KEY\"", "secret_file = \"/etc/hostname\"");
    let question = json!({
        "routes": { "name": "routes.toml", "text": text },
        "providers": [{ "name": "providers/tokenmix.toml", "text": provider }],
    });
    let answer = ask(&sandbox, "/-/diff", &[], &question.to_string());
    let hostname = fs::read_to_string("/etc/hostname").unwrap_or_default();
    assert!(!answer.body.contains("secret") || answer.status == 422, "{answer:?}");
    assert!(hostname.trim().is_empty() || !answer.body.contains(hostname.trim()), "{answer:?}");
}
