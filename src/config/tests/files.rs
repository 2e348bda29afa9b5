//! Files on disk, the embedded ones, and what a reload would change.

use std::fs;
use std::path::Path;

use super::*;
use crate::config::{TableDiff, builtin, content_hash, read_sources, secret_file};

fn write(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_embedded_files_compile_and_each_is_named_after_its_provider() {
    let folder = tempfile::tempdir().unwrap();
    let routes = write(folder.path(), "routes.toml", builtin::ROUTES);
    let sources = read_sources(Some(&routes), Some(&folder.path().join("missing")), Vec::new()).unwrap();
    let table = compile_with(&sources, &Map::default(), None).unwrap_or_else(|errors| panic!("{}", lines(&errors)));
    for (id, facts) in table.facts() {
        assert!(sources.providers.iter().any(|file| file.name == format!("builtin/{id}.toml")), "{id}");
        assert!(facts.source.checked.as_str() >= "2026-11-22", "{id}: {}", facts.source.checked);
    }
    let routes: Vec<&str> = table.llm_routes().keys().map(|id| id.as_str()).collect();
    assert_eq!(routes, ["narrative", "summary"]);
    assert!(table.risk_route().is_some());
    assert_eq!(table.limits(), self::table("version = 1").limits(), "the example's limits are the defaults");
    let digest = |key: &str| -> [u8; 32] { <sha2::Sha256 as sha2::Digest>::digest(key).into() };
    for caller in table.callers() {
        assert_eq!(caller.key_digest, digest(&format!("wb-demo-{}-0123456789abcdef", caller.id)));
    }
}

#[test]
fn the_embedded_files_also_compile_against_simulators() {
    let sources = Sources {
        routes: vec![file("routes.toml", builtin::ROUTES)],
        providers: builtin::providers(),
        ..Sources::default()
    };
    let table = compile_with(&sources, &Map::default(), Some(&loopback)).unwrap();
    assert!(table.providers().values().all(|provider| !provider.base_url.tls));
}

#[test]
fn an_operator_s_file_takes_the_place_of_the_built_in_one() {
    let folder = tempfile::tempdir().unwrap();
    let routes = write(folder.path(), "routes.toml", "version = 1\n");
    let providers = folder.path().join("providers");
    fs::create_dir(&providers).unwrap();
    write(&providers, "mine.toml", &with(LLM, "id = \"agg\"", "id = \"openai\""));
    write(&providers, "README.md", "not read");
    write(&providers, ".hidden.toml", "= not read");
    let sources = read_sources(Some(&routes), Some(&providers), Vec::new()).unwrap();
    assert_eq!(sources.providers.len(), builtin::providers().len());
    let table = compile_with(&sources, &Map::default(), None).unwrap();
    assert_eq!(table.providers()["openai"].base_url.host, "agg.example");
}

#[test]
fn a_broken_file_named_like_a_built_in_one_takes_its_place_too() {
    let (folder, providers) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let routes = write(folder.path(), "routes.toml", "version = 1\n");
    write(providers.path(), "openai.toml", "= 1\n");
    let sources = read_sources(Some(&routes), Some(providers.path()), Vec::new()).unwrap();
    assert!(!sources.providers.iter().any(|file| file.name == "builtin/openai.toml"));
}

#[test]
fn what_cannot_be_read_is_refused_with_a_sentence_and_never_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let why = |path: &Path| lines(&read_sources(Some(path), None, Vec::new()).unwrap_err());
    assert!(why(&folder.path().join("missing.toml")).contains("there is no such file"));
    assert!(why(folder.path()).contains("not a regular file"));
    assert!(why(Path::new("/dev/null")).contains("not a regular file"));
    let large = write(folder.path(), "large.toml", &" ".repeat((1 << 20) + 1));
    assert!(why(&large).contains("larger than 1 MiB"));
    let latin = folder.path().join("latin.toml");
    fs::write(&latin, b"a = \"\xe9\"").unwrap();
    assert!(why(&latin).contains("not UTF-8 text"));
    let fifo = folder.path().join("fifo.toml");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert!(why(&fifo).contains("not a regular file"));
    assert!(secret_file(&fifo).is_none());
    let routes = write(folder.path(), "routes.toml", "version = 1\n");
    let errors = read_sources(Some(&routes), Some(&routes), Vec::new()).unwrap_err();
    assert!(lines(&errors).contains("not a folder"), "{}", lines(&errors));
    let errors = read_sources(Some(&routes), Some(folder.path()), Vec::new()).unwrap_err();
    assert_eq!(errors.len(), 3, "large, latin and fifo: {}", lines(&errors));
}

#[test]
fn the_content_hash_follows_routes_providers_and_secret_files() {
    let folder = tempfile::tempdir().unwrap();
    let routes = write(folder.path(), "routes.toml", "version = 1\n");
    let providers = folder.path().join("providers");
    let hash = || content_hash(&routes, Some(&providers));
    let mut seen = vec![hash()];
    assert_eq!(seen[0], hash());
    let mut changed = |what: &str| {
        let now = content_hash(&routes, Some(&providers));
        assert!(!seen.contains(&now), "{what}");
        seen.push(now);
    };
    fs::write(&routes, "version = 1 # changed\n").unwrap();
    changed("routes");
    let secret = folder.path().join("secret");
    let place = format!("secret_file = \"{}\"", secret.display());
    fs::create_dir(&providers).unwrap();
    write(&providers, "p.toml", &with(LLM, "secret_env = \"AGG_API_KEY\"", &place));
    changed("provider file");
    fs::write(&secret, "one-secret").unwrap();
    changed("secret file");
    fs::write(&secret, "another-secret").unwrap();
    changed("secret file's content");
    fs::remove_file(&routes).unwrap();
    changed("routes removed");
}

#[test]
fn a_secret_file_loses_one_newline_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let read = |text: &str| secret_file(&write(folder.path(), "s", text)).map(|secret| secret.expose().to_vec());
    assert_eq!(read("a\n"), Some(b"a".to_vec()));
    assert_eq!(read("a\r\n"), Some(b"a".to_vec()));
    assert_eq!(read("a\n\n"), Some(b"a\n".to_vec()));
    assert_eq!(read(" a "), Some(b" a ".to_vec()));
    assert_eq!(read(&"x".repeat((64 << 10) + 1)), None);
    assert!(secret_file(&folder.path().join("missing")).is_none());
}

#[test]
fn a_diff_names_what_changed_and_no_values() {
    let before = table(ROUTES);
    assert!(TableDiff::between(&before, &table(&format!("{ROUTES}# comment\n"))).is_empty());
    let routes = with(&with(ROUTES, "10m", "20m"), "0.7", "0.8");
    let routes = with(
        &routes,
        "[model.summary]",
        "[limits]\nhead = \"8KiB\"\n[model.other]\ncandidates = [\"agg/fast\"]\n[model.summary]",
    );
    let routes = with(
        &with(&routes, "id = \"checkout\"", "id = \"till\""),
        "\"agg/clever\"]",
        "\"agg/clever\"]\nmax_attempts = 2",
    );
    let llm = with(LLM, "agg.example/v1", "agg2.example/v1");
    let rotated = Map { known: [("JUDGE_SECRET".into(), "5e".repeat(32))].into(), strict: false };
    let after = compile_with(&sources(&routes, &[&llm, RISK]), &rotated, None).unwrap();
    let diff = TableDiff::between(&before, &after);
    let expected = "~ limits: head\n+ caller till\n- caller checkout\n~ provider agg: base_url\n~ provider judge: secret\n\
                    + route other\n~ route summary: max_attempts, cache\n~ route risk: bands\n";
    assert_eq!(diff.to_string(), expected);
    let backwards = TableDiff::between(&after, &before).to_string();
    assert!(backwards.contains("- route other\n") && backwards.contains("+ caller checkout\n"), "{backwards}");
}

#[test]
fn golden_bad_files_give_exactly_these_messages() {
    insta::with_settings!({ snapshot_path => "../../../tests/golden/config/bad", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::glob!("../../../tests/golden/config/bad", "*.toml", |path| {
            let errors = compile_golden(path).expect_err("a bad file must not compile");
            let rendered = crate::config::render_all(&errors, crate::config::Style::Plain);
            insta::assert_snapshot!("messages", format!("{}\n\n{rendered}", lines(&errors)));
        });
    });
}

#[test]
fn golden_good_files_compile() {
    insta::glob!("../../../tests/golden/config/good", "*.toml", |path| {
        if let Err(errors) = compile_golden(path) {
            panic!("{}\n{}", path.display(), lines(&errors));
        }
    });
}

/// `provider-*.toml` is a provider file used by a small `routes.toml`; anything else is a `routes.toml`.
pub(in crate::config) fn compile_golden(path: &Path) -> Result<RoutingTable, Vec<ConfigError>> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let text = fs::read_to_string(path).unwrap();
    let mut providers = builtin::providers();
    let routes = if name.starts_with("provider-") {
        providers.push(file(name, &text));
        file("routes.toml", "version = 1\n[model.m]\ncandidates = [\"example/small\"]\n")
    } else {
        file(name, &text)
    };
    compile_with(&Sources { routes: vec![routes], providers, ..Sources::default() }, &Map::default(), None)
}
