//! Whole files: what passes, and what each failure says.

use std::path::Path;

use super::*;
use crate::config::{CompileOptions, SecretPolicy, Secrets, SourceFile, Sources, Style, builtin, compile, render_all};
use crate::domain::secret::{Secret, SecretSource};

struct Nothing;

impl SecretSource for Nothing {
    fn env(&self, _: &str) -> Option<Secret> {
        None
    }

    fn file(&self, _: &str) -> Option<Secret> {
        None
    }
}

fn table(text: String) -> RoutingTable {
    let routes = vec![SourceFile { name: "routes.toml".to_owned(), text }];
    let sources = Sources { routes, providers: builtin::providers(), ..Sources::default() };
    let secrets = Secrets { source: &Nothing, policy: SecretPolicy::AllowMissing };
    let compiled = compile(&sources, &CompileOptions { secrets, rewire: None });
    compiled.unwrap_or_else(|errors| panic!("{}", render_all(&errors, Style::Plain)))
}

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(root.join("tests/golden/config").join(path)).unwrap()
}

#[test]
fn golden_every_failing_test_says_what_was_expected_what_came_and_why() {
    let errors = rehearsed(table(read("failing/tests.toml"))).expect_err("every test of this file fails");
    insta::with_settings!({ snapshot_path => "../../../tests/golden/config/failing", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("messages", render_all(&errors, Style::Plain));
    });
}

#[test]
fn tests_that_hold_let_the_table_through() {
    let text = read("good/tests.toml");
    let cases = text.matches("[[test]]").count();
    let passed = rehearsed(table(text)).unwrap_or_else(|errors| panic!("{}", render_all(&errors, Style::Plain)));
    assert_eq!(passed.cases().len(), cases);
}

#[test]
fn tests_of_rules_ask_as_calls_do() {
    let text = read("good/rules.toml");
    rehearsed(table(text.clone())).unwrap_or_else(|errors| panic!("{}", render_all(&errors, Style::Plain)));
    let errors = rehearsed(table(text.replace("bytes = 80_001", "bytes = 80_000"))).unwrap_err();
    let [error] = &*errors else { panic!("{errors:?}") };
    assert!(error.message.contains("expected openrouter/deepseek-chat, got tokenmix/deepseek-chat"), "{error}");
}

#[test]
fn a_failing_test_stands_where_it_is_written_and_is_a_mistake_like_others() {
    let text =
        read("good/tests.toml").replacen("expect = { action = \"REVIEW\" }", "expect = { action = \"PASS\" }", 1);
    let line = text.lines().position(|line| line == "expect = { action = \"PASS\" }").unwrap() + 1;
    let errors = rehearsed(table(text)).unwrap_err();
    let [error] = &*errors else { panic!("{errors:?}") };
    assert_eq!((error.line, error.code.as_str(), error.key.as_str()), (line, "failed-test", "test.expect.action"));
    assert!(error.message.ends_with("expected PASS, got REVIEW"), "{error}");
}

#[test]
fn hundreds_of_tests_are_all_run() {
    let text = read("good/tests.toml");
    let (head, cases) = text.split_at(text.find("[[test]]").unwrap());
    let many = (0..25).map(|copy| cases.replace("name = \"", &format!("name = \"{copy} ")));
    let many = format!("{head}{}", many.collect::<String>());
    let passed = rehearsed(table(many)).unwrap_or_else(|errors| panic!("{}", render_all(&errors, Style::Plain)));
    assert!((400..=500).contains(&passed.cases().len()), "{}", passed.cases().len());
}
