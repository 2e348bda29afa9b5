//! Configuration as code: warnings for people, scripts and reviews, and files that are rewritten or made.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::process::{Ended, Site, repository, run, weighbridge};

const CALLER: &str = "[[caller]]\nid = \"shop\"\nallow = [\"*\"]\n\
    key_digest = \"sha256:1111111111111111111111111111111111111111111111111111111111111111\"\n";

fn at(site: &Site, arguments: &[&str]) -> Ended {
    run(weighbridge().current_dir(site.path(".")).args(arguments))
}

fn check(site: &Site, more: &[&str]) -> Ended {
    at(site, &[&["check", "--allow-missing-secrets"], more].concat())
}

fn json(ended: &Ended) -> serde_json::Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|_| panic!("{ended:?}"))
}

/// One route with nobody behind its only candidate.
fn lonely() -> Site {
    let site = Site::new();
    let route = "[model.m]\ncandidates = [\"openai/gpt-5.6-luna\"]\n";
    site.write("routes.toml", &format!("version = 1\n{CALLER}{route}"));
    site
}

#[test]
fn warnings_are_told_with_their_place_and_fail_only_strictly() {
    let site = lonely();
    let checked = check(&site, &[]);
    assert_eq!(checked.code, Some(0), "{}", checked.err);
    assert!(checked.err.starts_with("warning[W007]: one candidate"), "{}", checked.err);
    assert!(checked.err.contains("--> routes.toml:7:14\n") && checked.err.ends_with("1 warning\n"), "{}", checked.err);
    assert!(checked.out.contains("\nok, version "), "{}", checked.out);
    assert_eq!(check(&site, &["--strict"]).code, Some(1));
    let text = std::fs::read_to_string(site.path("routes.toml")).unwrap();
    site.write("routes.toml", &text.replace("version = 1\n", "version = 1\nlint = { allow = [\"W007:m\"] }\n"));
    let silenced = check(&site, &["--strict"]);
    assert_eq!((silenced.code, silenced.err.as_str()), (Some(0), ""));
}

#[test]
fn a_script_gets_one_object() {
    let site = lonely();
    let checked = check(&site, &["--format", "json"]);
    assert_eq!((checked.code, checked.err.as_str()), (Some(0), ""));
    let told = json(&checked);
    assert_eq!(told["config_hash"].as_str().map(str::len), Some(12));
    assert_eq!(told["errors"], serde_json::json!([]));
    let expected = serde_json::json!([{
        "file": "routes.toml", "line": 7, "column": 14, "key": "model.m.candidates", "code": "W007",
        "message": "one candidate, and nobody to ask when it fails", "hint": "add a candidate of another provider",
    }]);
    assert_eq!(told["warnings"], expected);
    site.write("routes.toml", "version = 1\n[model.m]\ncandidates = [\"openai/sk-CANARY\"]\nordr = 1\n");
    let refused = check(&site, &["--format", "json"]);
    assert_eq!((refused.code, refused.err.as_str()), (Some(1), ""));
    let told = json(&refused);
    let codes: Vec<_> =
        told["errors"].as_array().unwrap().iter().map(|error| error["code"].as_str().unwrap()).collect();
    assert_eq!((codes, &told["config_hash"]), (vec!["unknown-name", "unknown-key"], &serde_json::Value::Null));
    assert!(!refused.out.contains("CANARY"), "{}", refused.out);
}

#[test]
fn a_review_gets_annotations_of_one_line_each() {
    let site = lonely();
    let checked = check(&site, &["--format", "github"]);
    let line = "::warning file=routes.toml,line=7,col=14,title=W007::one candidate, and nobody to ask when it fails \
                (model.m.candidates)%0Aadd a candidate of another provider\n";
    assert_eq!((checked.code, checked.out.as_str(), checked.err.as_str()), (Some(0), line, ""));
    site.write("a,b:c.toml", "version = 2\n");
    let refused = check(&site, &["--format", "github", "a,b:c.toml"]);
    assert!(
        refused.out.starts_with("::error file=a%2Cb%3Ac.toml,line=1,col=11,title=unsupported::"),
        "{}",
        refused.out
    );
    assert_eq!(refused.code, Some(1));
}

#[test]
fn fmt_rewrites_once_says_so_and_keeps_what_it_does_not_understand() {
    let site = Site::new();
    site.write("routes.toml", "version = 1  \r\n\n\n\n# a comment\n[model.m] # another\ncandidates=[\"a/b\"]\n\n");
    let unchecked = at(&site, &["fmt", "--check"]);
    assert_eq!(unchecked.code, Some(1));
    assert!(unchecked.err.contains("weighbridge fmt routes.toml"), "{}", unchecked.err);
    assert_eq!(at(&site, &["fmt"]).out, "routes.toml rewritten\n");
    let tidy = "version = 1\n\n# a comment\n[model.m] # another\ncandidates=[\"a/b\"]\n";
    assert_eq!(std::fs::read_to_string(site.path("routes.toml")).unwrap(), tidy);
    for again in [&["fmt"][..], &["fmt", "--check"], &["fmt", "--upgrade"]] {
        let again = at(&site, again);
        assert_eq!((again.code, again.out.as_str(), again.err.as_str()), (Some(0), "", ""));
    }
    site.write("routes.toml", "version = ");
    let refused = at(&site, &["fmt"]);
    assert_eq!((refused.code, refused.out.as_str()), (Some(2), ""));
    assert_eq!(std::fs::read_to_string(site.path("routes.toml")).unwrap(), "version = ");
    assert_eq!(
        std::fs::read_dir(site.path("."))
            .unwrap()
            .filter(|entry| { entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().ends_with(".tmp")) })
            .count(),
        0
    );
}

#[test]
fn fmt_of_standard_input_goes_to_standard_output() {
    let mut child = weighbridge().args(["fmt", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"a = 1   \n\n\n").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"a = 1\n");
}

#[cfg(unix)]
#[test]
fn fmt_follows_a_link_and_keeps_permissions() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let site = Site::new();
    site.write("real.toml", "a = 1   \n");
    std::fs::set_permissions(site.path("real.toml"), std::fs::Permissions::from_mode(0o640)).unwrap();
    symlink(site.path("real.toml"), site.path("link.toml")).unwrap();
    assert_eq!(at(&site, &["fmt", "link.toml"]).code, Some(0));
    assert!(std::fs::symlink_metadata(site.path("link.toml")).unwrap().is_symlink());
    assert_eq!(std::fs::read_to_string(site.path("real.toml")).unwrap(), "a = 1\n");
    assert_eq!(std::fs::metadata(site.path("real.toml")).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn an_imported_configuration_passes_check_and_holds_no_secret() {
    let site = Site::new();
    let config = repository().join("tests/golden/import/realistic.yaml");
    let config = config.to_str().unwrap();
    let imported = at(&site, &["import", "litellm", config, "--output", "made"]);
    assert_eq!(imported.code, Some(0), "{}", imported.err);
    assert!(imported.out.starts_with("made/routes.toml written\n"), "{}", imported.out);
    let key = imported.err.lines().find_map(|line| line.split_once("told only here: ")).unwrap().1;
    let checked = run(weighbridge().current_dir(site.path("made")).args(["check", "--allow-missing-secrets"]));
    assert_eq!(checked.code, Some(0), "{}", checked.err);
    for entry in std::fs::read_dir(site.path("made/providers")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!text.contains("CANARY") && !text.contains(key), "{text}");
    }
    let routes = std::fs::read_to_string(site.path("made/routes.toml")).unwrap();
    assert!(!routes.contains("CANARY") && !routes.contains(key) && routes.contains("realistic.yaml:"), "{routes}");
    let again = at(&site, &["import", "litellm", config, "--output", "made"]);
    assert_eq!(again.code, Some(2));
    assert!(again.err.contains("is there already, and nothing was written"), "{}", again.err);
    assert_eq!(std::fs::read_to_string(site.path("made/routes.toml")).unwrap(), routes);
}

#[test]
fn an_import_without_a_folder_is_printed_and_names_the_files_it_needs() {
    let site = Site::new();
    let of = |name: &str| repository().join("tests/golden/import").join(name).display().to_string();
    let printed = at(&site, &["import", "litellm", &of("smallest.yaml")]);
    assert_eq!(printed.code, Some(0), "{}", printed.err);
    assert!(!printed.err.contains("--output"), "{}", printed.err);
    site.write("routes.toml", &printed.out);
    assert_eq!(check(&site, &[]).code, Some(0));
    let printed = at(&site, &["import", "litellm", &of("ordered.yaml")]);
    assert!(
        printed.err.contains("needs provider files that only --output DIR writes: together.toml"),
        "{}",
        printed.err
    );
    for wrong in ["nowhere.yaml", "."] {
        let refused = at(&site, &["import", "litellm", wrong]);
        assert_eq!((refused.code, refused.out.as_str()), (Some(2), ""), "{}", refused.err);
    }
}

#[test]
fn providers_are_listed_with_who_says_so() {
    let site = Site::new();
    let text = at(&site, &["providers"]);
    assert_eq!((text.code, text.err.as_str()), (Some(0), ""));
    for part in [
        "openrouter     openai https://openrouter.ai/api/v1\n",
        "  file         providers/openrouter.toml\n",
        "price unknown",
        ", 2026-",
    ] {
        assert!(text.out.contains(part), "{part}: {}", text.out);
    }
    let listed = json(&at(&site, &["providers", "--json"]));
    let listed = listed["providers"].as_array().unwrap();
    let of = |id: &str| listed.iter().find(|provider| provider["id"] == id).unwrap();
    assert_eq!(of("alipay")["price"]["standard"], "0.02 CNY");
    assert_eq!(of("alipay")["operations"], serde_json::json!(["risk.assess"]));
    assert_eq!(of("openai")["models"][0]["price"]["output_per_million_tokens"], "1.20 USD");
    assert!(listed.iter().all(|provider| provider["source"]["checked"].as_str().is_some_and(|day| day.len() == 10)));
    site.write("providers/mine.toml", "id = \"mine\"\n");
    let refused = at(&site, &["providers"]);
    assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""));
    assert!(refused.err.contains("missing key `protocol`"), "{}", refused.err);
}

#[test]
fn every_shell_gets_a_script() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(Command::new(weighbridge().get_program()).args(["completions", shell]));
        assert_eq!(script.code, Some(0));
        assert!(script.out.contains("weighbridge") && script.out.contains("allow-missing-secrets"), "{shell}");
    }
}
