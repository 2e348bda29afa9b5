//! What comes out compiles, says what is missing, and holds no secret.

use proptest::prelude::*;

use super::deployments::per_million;
use super::*;
use crate::config::read_sources;
use crate::config::table::RoutingTable;
use crate::config::tests::{Map, compile_with, file};

const GIVEN: Given<'_> = Given {
    name: "config.yaml",
    key_digest: "sha256:1111111111111111111111111111111111111111111111111111111111111111",
    day: "2026-11-23",
};

/// The table of what was imported, with built-in files where no file takes their place.
fn table_of(imported: &Imported) -> RoutingTable {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in &imported.providers {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let sources = read_sources(None, Some(folder.path()), vec![file("routes.toml", &imported.routes)]).unwrap();
    compile_with(&sources, &Map::default(), None).unwrap_or_else(|errors| panic!("{errors:#?}\n{}", shown(imported)))
}

fn shown(imported: &Imported) -> String {
    let files = imported.providers.iter().map(|(name, text)| format!("==> providers/{name}\n{text}"));
    format!("==> routes.toml\n{}{}", imported.routes, files.collect::<String>())
}

#[test]
fn golden_configurations_become_these_files() {
    insta::with_settings!({ snapshot_path => "../../../tests/golden/import", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::glob!("../../../tests/golden/import", "*.yaml", |path| {
            let text = std::fs::read_to_string(path).unwrap();
            let imported = litellm(&text, GIVEN).unwrap();
            table_of(&imported);
            let written = shown(&imported);
            assert!(!written.contains("CANARY"), "a secret was copied: {written}");
            assert_eq!(imported.routes.matches("#   config.yaml:").count(), imported.left_out);
            insta::assert_snapshot!("files", written);
        });
    });
}

#[test]
fn a_price_of_a_token_is_told_for_a_million_digit_by_digit() {
    let cases = [
        ("0.0000025", "2.50"),
        ("2.5e-06", "2.50"),
        ("1e-05", "10.00"),
        ("0.000001", "1.00"),
        ("3E-8", "0.03"),
        ("1", "1000000.00"),
        ("0.000000000001", "0.000001"),
        ("1.25e-6", "1.25"),
        ("1.2345e-6", "1.2345"),
    ];
    for (one, million) in cases {
        assert_eq!(per_million(one).as_deref(), Some(million), "{one}");
    }
    for bad in ["", "0", "-1", "1e", "free", "1e-99", "0.0000000000001", ".", "1.2.3"] {
        assert_eq!(per_million(bad), None, "{bad}");
    }
}

#[test]
fn few_lines_do_not_become_many_values() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let inside = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{inside}]\n"));
    }
    assert!(matches!(litellm(&bomb, GIVEN), Err(ImportError::TooMuch { .. })));
    let deep = format!("a: {}{}", "[".repeat(500), "]".repeat(500));
    assert!(matches!(litellm(&deep, GIVEN), Err(ImportError::TooMuch { .. } | ImportError::Syntax { .. })));
    assert!(litellm("a: &a [*a]", GIVEN).is_err());
}

#[test]
fn what_is_no_configuration_is_refused_without_quoting_it() {
    for text in ["", "model_list: []", "- a", "just CANARY", "model_list: 5", "model_list: [{model_name: a}]"] {
        assert_eq!(litellm(text, GIVEN), Err(ImportError::NoModels), "{text}");
    }
    let broken = litellm("model_list:\n  - a: [CANARY\n b: }", GIVEN).unwrap_err().to_string();
    assert!(broken.starts_with("line ") && !broken.contains("CANARY"), "{broken}");
}

#[test]
fn defaults_behind_an_anchor_are_taken_over() {
    let text = "x: &d {api_base: 'http://localhost:9000/v1', api_key: none}\nmodel_list:\n\
                - model_name: a\n  litellm_params: {<<: *d, model: openai/m}\n";
    let imported = litellm(text, GIVEN).unwrap();
    let table = table_of(&imported);
    let route = table.llm_routes().values().next().unwrap();
    assert_eq!(route.candidates[0].provider.base_url.authority(), "localhost:9000");
}

proptest! {
    /// Whatever the names and numbers are, what comes out compiles.
    #[test]
    fn any_model_list_compiles(
        deployments in prop::collection::vec((
            "[a-c]{1}|[ -~]{1,70}|risk", "[a-z_]{1,12}|azure|bedrock|openai|ollama", "[ -~]{1,80}|gpt-4o",
            prop::option::of("[a-z:/.0-9]{1,30}|http://[a-z]{1,9}:[0-9]{2,4}/v1|https://[a-z]{2,9}\\.example/[a-z?#]{0,5}"),
            prop::option::of("CANARY[a-z]{3}|os.environ/[A-Z_]{1,9}"), prop::option::of(0u64..100_000_000),
        ), 1..8),
        strategy in "latency-based-routing|simple-shuffle|cost-based-routing|least-busy",
        retries in 0u8..20, timeout in 0.0f64..100_000.0,
    ) {
        let mut text = "model_list:\n".to_owned();
        for (name, prefix, model, base, key, rpm) in &deployments {
            let json = |text: &str| serde_json::to_string(text).unwrap();
            text.push_str(&format!("- model_name: {}\n  litellm_params:\n    model: {}\n", json(name), json(&format!("{prefix}/{model}"))));
            if let Some(base) = base { text.push_str(&format!("    api_base: {}\n", json(base))); }
            if let Some(key) = key { text.push_str(&format!("    api_key: {}\n", json(key))); }
            if let Some(rpm) = rpm { text.push_str(&format!("    rpm: {rpm}\n")); }
        }
        let others: Vec<&String> = deployments.iter().map(|deployment| &deployment.0).collect();
        text.push_str(&format!("router_settings:\n  routing_strategy: {strategy}\n  num_retries: {retries}\n  timeout: {timeout}\n  default_fallbacks: {}\n", serde_json::to_string(&others).unwrap()));
        if let Ok(imported) = litellm(&text, GIVEN) {
            table_of(&imported);
            prop_assert!(!shown(&imported).contains("CANARY"));
        }
    }
}

#[test]
fn the_built_in_files_are_taken_where_they_fit() {
    let text = "model_list:\n- model_name: a\n  litellm_params: {model: groq/openai/gpt-oss-120b}\n";
    let imported = litellm(text, GIVEN).unwrap();
    assert!(imported.providers.is_empty(), "{}", shown(&imported));
    assert!(imported.routes.contains("\"groq/gpt-oss-120b\""), "{}", imported.routes);
}
