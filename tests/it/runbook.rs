//! What a page of ops/runbook names is there: metrics, flags, fields of the access log, words of the configuration and of the
//! status, and the lines of the log that it searches for. That its commands run is tried in tests/sdk/test_runbook.py; what a
//! machine's journal says at night cannot be, so the words are held against the source that writes it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::tidy::source::{root, sources};

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// Each page's name and text.
fn pages() -> Vec<(String, String)> {
    let folder = fs::read_dir(root().join("ops/runbook")).unwrap();
    let mut pages: Vec<_> = folder
        .map(|page| page.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), read(&path)))
        .collect();
    pages.sort();
    assert!(pages.len() > 20, "{}", pages.len());
    pages
}

/// The text of the product's files, without comments and tests.
fn source() -> String {
    sources("src").into_iter().map(|file| file.text).collect()
}

/// What the product writes to its log: the statements that do.
fn logged(source: &str) -> Vec<&str> {
    let levels = ["tracing::error!(", "tracing::warn!(", "tracing::info!("];
    let statements = levels.iter().flat_map(|level| source.match_indices(level));
    statements.filter_map(|(at, _)| source[at..].split(");").next()).collect()
}

/// The commands of a page, one a line.
fn commands(page: &str) -> impl Iterator<Item = &str> {
    let block = |fence: &'static str| {
        page.split(fence).skip(1).filter_map(|rest| rest.split("```").next()).flat_map(str::lines)
    };
    block("```sh test\n").chain(block("```sh host\n")).filter(|line| !line.trim().is_empty())
}

/// The words of a text that satisfy this, cut at whatever else.
fn words(text: &str, is_of: impl Fn(char) -> bool) -> BTreeSet<&str> {
    text.split(|c: char| !is_of(c)).filter(|word| !word.is_empty()).collect()
}

fn inline(page: &str) -> Vec<&str> {
    page.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).filter(|span| !span.is_empty()).collect()
}

#[test]
fn each_line_of_the_log_that_a_page_searches_for_is_one_that_the_product_writes() {
    let source = source();
    let logged = logged(&source);
    let mut searched = 0;
    for (alert, page) in pages() {
        for command in commands(&page).filter(|command| command.starts_with("journalctl")) {
            let Some((_, search)) = command.split_once("| grep ") else { continue };
            searched += 1;
            let sought =
                search.split_whitespace().skip_while(|word| word.starts_with('-')).collect::<Vec<_>>().join(" ");
            let sought = sought.trim_matches('\'').to_lowercase();
            // Of a panic the language itself writes a line, `thread '...' panicked at ...`, as long as nobody replaces that.
            let of_the_language = sought == "panicked" && !source.contains("set_hook");
            let found = logged.iter().any(|statement| statement.to_lowercase().contains(&sought));
            assert!(of_the_language || found, "{alert}: nothing writes {sought:?}");
        }
    }
    assert!(searched >= 3, "{searched} searches");
}

#[test]
fn each_metric_that_a_page_names_is_one_that_the_product_exposes() {
    let golden = read(root().join("tests/golden/metrics.txt"));
    let known = words(&golden, |c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit());
    for (alert, page) in pages() {
        let named = words(&page, |c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit());
        for name in named.into_iter().filter(|name| name.starts_with("weighbridge_")) {
            // What ends so is the beginning of several, as a search has it.
            let found = match name.strip_suffix('_') {
                Some(_) => known.iter().any(|known| known.starts_with(name)),
                None => known.contains(name),
            };
            assert!(found, "{alert}: {name}");
        }
    }
}

#[test]
fn each_flag_that_a_page_gives_the_product_is_one_of_the_command_it_is_given_to() {
    let help = read(root().join("tests/golden/help.txt"));
    let helps: Vec<_> = help.split("$ weighbridge ").skip(1).collect();
    let mut given = 0;
    for (alert, page) in pages() {
        let spans = inline(&page);
        for span in commands(&page).chain(spans).flat_map(|line| line.split(['|', ';'])) {
            let Some(arguments) = span.trim().strip_prefix("weighbridge ") else { continue };
            let command: Vec<_> = arguments.split_whitespace().take_while(|word| !word.starts_with('-')).collect();
            let of = (1..=command.len()).rev().find_map(|many| {
                let asked = format!("{} --help\n", command[..many].join(" "));
                helps.iter().find(|help| help.starts_with(&asked))
            });
            let of = of.unwrap_or_else(|| panic!("{alert}: there is no command {span:?}"));
            for flag in arguments.split_whitespace().filter(|word| word.starts_with("--")) {
                given += 1;
                let known = words(of, |c| c.is_ascii_lowercase() || c == '-');
                assert!(known.contains(flag), "{alert}: {flag} in {span:?}");
            }
        }
    }
    assert!(given > 10, "{given} flags");
}

/// Fields of the access log and of the status that commands select, and words of labels and of the configuration in sentences.
#[test]
fn each_field_and_word_that_a_page_names_is_one_of_the_product() {
    let source = source();
    let is_of = |c: char| c.is_ascii_lowercase() || c == '_';
    let known = words(&source, is_of);
    let mut named = 0;
    for (alert, page) in pages() {
        let fields = commands(&page).filter_map(|command| command.split_once("| jq ")).flat_map(|(_, filter)| {
            let dotted = filter.split('.').skip(1).filter_map(|rest| rest.split(|c| !is_of(c)).next());
            dotted.chain(filter.split(['{', ',', '}']).map(str::trim)).collect::<Vec<_>>()
        });
        let spans = inline(&page);
        for word in fields.chain(spans).filter(|word| !word.is_empty() && word.chars().all(is_of)) {
            named += 1;
            assert!(known.contains(word), "{alert}: {word}");
        }
    }
    assert!(named > 30, "{named} words");
}
