//! The commands as a person or a script meets them: what they print, where, and how they exit.

use std::io::Write;
use std::net::TcpListener;
use std::process::Command;

use crate::process::{Ended, Sandbox, Site, repository, run, weighbridge};

/// Every credential the shipped `routes.toml` needs.
const VARIABLES: [&str; 3] = ["ALIPAY_SECRET", "OPENROUTER_API_KEY", "TOKENMIX_API_KEY"];

fn here(arguments: &[&str]) -> Command {
    let mut command = weighbridge();
    command.current_dir(repository()).args(arguments);
    command
}

fn digest(arguments: &[&str], input: &str) -> Ended {
    let mut child = here(&["digest"]).args(arguments).stdin(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

#[test]
fn the_shipped_files_have_no_mistakes() {
    let checked = run(&mut here(&["check", "--allow-missing-secrets"]));
    assert_eq!((checked.code, checked.err.as_str()), (Some(0), ""));
    assert!(checked.out.contains("\nok, version "), "{}", checked.out);
    assert!(checked.out.contains("tokenmix/deepseek-chat, then openrouter/deepseek-chat"), "{}", checked.out);
}

#[test]
fn check_without_secrets_names_every_missing_variable() {
    let checked = run(&mut here(&["check"]));
    assert_eq!((checked.code, checked.out.as_str()), (Some(1), ""));
    VARIABLES.iter().for_each(|name| assert!(checked.err.contains(name), "{}", checked.err));
    assert!(checked.err.trim_end().ends_with("3 mistakes"), "{}", checked.err);
}

#[test]
fn serve_without_secrets_does_not_start_and_names_them() {
    let started = run(&mut here(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]));
    assert_eq!((started.code, started.out.as_str()), (Some(2), ""));
    VARIABLES.iter().for_each(|name| assert!(started.err.contains(name), "{}", started.err));
    assert!(started.err.contains("weighbridge sandbox"), "what to do without keys: {}", started.err);
}

#[test]
fn a_secret_that_is_empty_is_as_missing_as_none() {
    let started = run(here(&["serve", "--listen", "127.0.0.1:0"]).env("TOKENMIX_API_KEY", ""));
    assert_eq!(started.code, Some(2));
    assert!(started.err.contains("TOKENMIX_API_KEY"), "{}", started.err);
}

#[test]
fn s15_check_prints_every_mistake_with_its_place_and_no_value() {
    let site = Site::new();
    let text = r#"version = 1
[[caller]]
id = "checkout"
key_digest = "sk-CANARY-digest"
allow = ["sumary"]
api_key = "sk-CANARY-unknown"
[model.summary]
candidates = ["tokenmix/sk-CANARY-model"]
timeouts = { total = "sk-CANARY-time" }
max_attempts = "sk-CANARY-number"
order = "sk-CANARY-word"
"#;
    site.write("routes.toml", text);
    let checked = run(weighbridge().current_dir(site.path(".")).args(["check", "--allow-missing-secrets"]));
    assert_eq!(checked.code, Some(1));
    for place in ["4:14", "5:10", "6:1", "8:15", "9:22", "10:16", "11:9"] {
        assert!(checked.err.contains(&format!("--> routes.toml:{place}\n")), "{place}: {}", checked.err);
    }
    assert_eq!(checked.err.matches('^').count().min(7), 7, "each has a caret: {}", checked.err);
    assert!(checked.err.trim_end().ends_with("7 mistakes"), "{}", checked.err);
    assert!(checked.err.contains("did you mean `summary`?"), "{}", checked.err);
    assert!(!format!("{checked:?}").contains("CANARY"), "{}", checked.err);
}

#[test]
fn check_takes_the_file_as_an_argument_and_says_when_there_is_none() {
    let site = Site::new();
    site.write("other.toml", "version = 7\n");
    let checked = run(weighbridge().current_dir(site.path(".")).args(["check", "other.toml"]));
    assert_eq!(checked.code, Some(1));
    assert!(checked.err.contains("--> other.toml:1:"), "{}", checked.err);
    let checked = run(weighbridge().current_dir(site.path(".")).args(["check", "nowhere.toml"]));
    assert_eq!(checked.code, Some(1));
    assert!(checked.err.contains("there is no such file") && checked.err.contains("nowhere.toml"), "{}", checked.err);
}

#[test]
fn check_shows_what_a_route_says_of_its_order_and_what_is_worth_a_look() {
    let site = Site::new();
    let text = r#"version = 1
[[caller]]
id = "shop"
allow = ["*"]
key_digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
[model.drawn]
order = "weighted"
sticky = "conversation"
candidates = [{ use = "tokenmix/deepseek-chat", weight = 3 }, "openrouter/deepseek-chat"]
fallback_on = ["content_policy"]
hedge = { after = "p95" }
shadow = { use = "openai/gpt-5.6-luna", percent = 5 }
[model.cheap]
order = "cheapest"
candidates = ["openai/gpt-5.6-luna", "tokenmix/deepseek-chat"]
"#;
    site.write("routes.toml", text);
    let checked = run(weighbridge().current_dir(site.path(".")).args(["check", "--allow-missing-secrets"]));
    assert_eq!(checked.code, Some(0), "{}", checked.err);
    for note in [
        "(order weighted; weights 3:1; sticky by conversation; fallback on content_policy; hedged; shadow openai/gpt-5.6-luna)",
        "(order cheapest)",
    ] {
        assert!(checked.out.contains(note), "{note}: {}", checked.out);
    }
    let remark = "warning[W006]: route cheap: the price of tokenmix/deepseek-chat is not known, so it is asked last
  --> routes.toml:14:9
   |
14 | order = …
   |         ^ model.cheap.order
   |
   = help: give the model its price in the provider's file

1 warning
";
    assert_eq!(checked.err, remark);
}

#[test]
fn a_digest_is_made_of_a_key_with_or_without_its_newline() {
    // printf 'wb-demo-checkout-0123456789abcdef' | sha256sum; it also stands in routes.toml.
    let known = "sha256:88207c57eb9adfeaafac72db07bb11f632740eab18c10730930fda14f84bc7f4\n";
    for key in ["wb-demo-checkout-0123456789abcdef", "wb-demo-checkout-0123456789abcdef\n"] {
        let made = digest(&[], key);
        assert_eq!((made.code, made.out.as_str(), made.err.as_str()), (Some(0), known, ""));
    }
    for bad in ["", "\n", &"k".repeat(513)] {
        let refused = digest(&[], bad);
        assert_eq!((refused.code, refused.out.as_str()), (Some(2), ""));
        assert!(refused.err.contains("standard input"), "{}", refused.err);
    }
}

#[test]
fn a_new_key_has_the_digest_that_is_printed_with_it() {
    let made = digest(&["--new"], "");
    let mut lines = made.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let (key, told) = (lines.next().unwrap(), lines.next().unwrap());
    assert_eq!((key[0], told[0], lines.next()), ("key", "key_digest", None));
    assert_eq!(digest(&[], key[1]).out.trim_end(), told[1]);
    assert_ne!(digest(&["--new"], "").out, made.out, "never the same twice");
}

/// `tests/golden/help.txt` is what a reader of the documentation can rely on. When it differs on purpose, run this test
/// with UPDATE_GOLDEN=1.
#[test]
fn the_help_is_the_documented_one() {
    let mut help = String::new();
    for arguments in [
        &[][..],
        &["serve"],
        &["sandbox"],
        &["check"],
        &["fmt"],
        &["import"],
        &["import", "litellm"],
        &["providers"],
        &["schema"],
        &["explain"],
        &["diff"],
        &["reload"],
        &["audit"],
        &["audit", "verify"],
        &["audit", "export"],
        &["audit", "erase"],
        &["audit", "notices"],
        &["doctor"],
        &["digest"],
        &["simulate"],
        &["completions"],
        &["tail"],
    ] {
        let printed = run(here(arguments).arg("--help"));
        assert_eq!((printed.code, printed.err.as_str()), (Some(0), ""));
        help.push_str(&format!("$ weighbridge {}\n{}\n", [arguments, &["--help"]].concat().join(" "), printed.out));
    }
    let golden = repository().join("tests/golden/help.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &help).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert_eq!(help, expected, "run with UPDATE_GOLDEN=1 if the new text is right");
}

#[test]
fn a_wrong_argument_is_exit_2_with_the_usage() {
    for arguments in [&["bogus"][..], &["serve", "--bogus"], &["serve", "--listen", "nowhere"], &[]] {
        let refused = run(&mut here(arguments));
        assert_eq!((refused.code, refused.out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(refused.err.contains("Usage") || refused.err.contains("--help"), "{}", refused.err);
    }
}

#[test]
fn the_sandbox_tells_machines_everything_in_its_first_line() {
    let site = Site::new();
    let sandbox = Sandbox::start(&site, &[]);
    let answer = sandbox.chat("summary", &serde_json::json!({}));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("wb-config"), Some(sandbox.version().as_str()));
}

#[test]
fn the_sandbox_needs_no_file_at_all() {
    let empty = tempfile::tempdir().unwrap();
    let mut command = weighbridge();
    command.current_dir(empty.path()).args(["sandbox", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    let mut child = command.spawn().unwrap();
    let mut banner = String::new();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    while !banner.contains("Ctrl-C") && std::io::BufRead::read_line(&mut out, &mut banner).unwrap() > 0 {}
    child.kill().unwrap();
    child.wait().unwrap();
    for text in ["built-in example", "export WB_URL=http://127.0.0.1:", "OPENAI_BASE_URL=", "/status.json"] {
        assert!(banner.contains(text), "{banner}");
    }
    // A path that was given is meant.
    let named = run(weighbridge().current_dir(empty.path()).args(["sandbox", "--routes", "mine.toml"]));
    assert_eq!(named.code, Some(2));
    assert!(named.err.contains("mine.toml"), "{}", named.err);
}

#[test]
fn a_port_in_use_is_named_with_the_flag_that_changes_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, other) in [("--listen", "--admin-listen"), ("--admin-listen", "--listen")] {
        let refused = run(&mut here(&["sandbox", flag, &address, other, "127.0.0.1:0"]));
        assert_eq!((refused.code, refused.out.as_str()), (Some(2), ""));
        assert!(refused.err.contains(&address) && refused.err.contains(&format!("with {flag}:")), "{}", refused.err);
    }
}

#[test]
fn s14_an_admin_listener_that_others_can_reach_needs_a_token() {
    let open = ["sandbox", "--listen", "127.0.0.1:0", "--admin-listen", "0.0.0.0:0"];
    let short = [("WEIGHBRIDGE_ADMIN_TOKEN", "sk-CANARY")];
    for variables in [&[][..], &short] {
        let refused = run(here(&open).envs(variables.iter().copied()));
        assert_eq!((refused.code, refused.out.as_str()), (Some(2), ""));
        assert!(refused.err.contains("WEIGHBRIDGE_ADMIN_TOKEN"), "{}", refused.err);
        assert!(!refused.err.contains("CANARY"), "{}", refused.err);
    }
}

#[test]
fn variables_stand_for_flags() {
    let site = Site::new();
    site.write("elsewhere.toml", "version = 7\n");
    let mut command = weighbridge();
    command.current_dir(site.path(".")).arg("check").env("WEIGHBRIDGE_ROUTES", "elsewhere.toml");
    let checked = run(&mut command);
    assert!(checked.err.contains("elsewhere.toml:1:"), "{}", checked.err);
    let started = std::time::Instant::now();
    let refused = run(here(&["serve"]).env("WEIGHBRIDGE_DRAIN_TIMEOUT", "soon"));
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("--drain-timeout"), "{}", refused.err);
    assert!(started.elapsed() < std::time::Duration::from_secs(10));
}
