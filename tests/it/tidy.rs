//! The house rules as tests: who may import whom, who alone may do a thing, how long things may get.
//!
//! Each rule is a table and one test; a failure lists `file:line` and what to do. To allow an exception, add a row with
//! its reason here, in the open. Rules look at production code: tests may do what they like.

pub mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use source::{Source, root, sources, words};

/// Who may import whom: only from lower floors, and nobody from the same floor (ARCHITECTURE.md).
const FLOORS: &[(&str, usize)] = &[
    ("domain", 0),
    ("wire", 1),
    ("sign", 1),
    ("redact", 1),
    ("config", 2),
    ("store", 2),
    ("telemetry", 2),
    ("sandbox", 2),
    ("routing", 3),
    ("insight", 3),
    ("flight", 3),
    ("upstream", 4),
    ("layer", 5),
    ("casework", 6),
    ("gateway", 6),
    ("server", 7),
    ("admin", 7),
    ("app", 8),
    ("cli", 9),
];

/// A thing that only some files may do.
struct Only {
    /// Names the rule in a failure.
    what: &'static str,
    /// Spellings that count, in code (`Seen::Code`) or with string literals (`Seen::Text`), as whole words.
    spelled: &'static [&'static str],
    seen: Seen,
    /// Where the rule applies: path prefixes.
    within: &'static [&'static str],
    /// Who may, and why: path prefixes.
    allowed: &'static [(&'static str, &'static str)],
    instead: &'static str,
}

#[derive(Clone, Copy, PartialEq)]
enum Seen {
    Code,
    Text,
}

const ONLY: &[Only] = &[
    Only {
        what: "opens outgoing connections",
        spelled: &["TcpStream::connect", "TcpSocket::new_v4", "TcpSocket::new_v6", "UnixStream::connect"],
        seen: Seen::Code,
        within: &["src/"],
        allowed: &[
            ("src/upstream/dial.rs", "the one seam to the network, where addresses are checked"),
            ("src/server/takeover.rs", "asks the process before this one, at a path the operator gave"),
            ("src/cli/running.rs", "asks the admin plane of a running proxy, where a person told it to"),
            ("src/sandbox/merchant.rs", "stands for a client, and knows only the proxy's own address"),
            ("src/cli/tail.rs", "follows a running proxy, where a person told it to"),
        ],
        instead: "dial through upstream::dial",
    },
    Only {
        what: "listens",
        spelled: &["TcpListener::bind", "TcpListener::from_std", "UnixListener::bind"],
        seen: Seen::Code,
        within: &["src/"],
        allowed: &[
            ("src/server/", "accepts"),
            ("src/sandbox/", "stands for the other side of the network"),
            ("src/app.rs", "binds before anything is started, so that a taken port is the first error"),
        ],
        instead: "let app.rs bind and hand the listener over",
    },
    Only {
        what: "spells a metric's name",
        spelled: &["\"weighbridge_"],
        seen: Seen::Text,
        within: &["src/"],
        allowed: &[("src/telemetry/catalog.rs", "the table of metrics")],
        instead: "add a row to telemetry/catalog.rs and use its handle",
    },
    Only {
        what: "reads the wall clock",
        spelled: &["SystemTime::now", "OffsetDateTime::now_utc", "Uuid::now_v7"],
        seen: Seen::Code,
        within: &["src/"],
        allowed: &[
            ("src/domain/clock.rs", "the one reader"),
            ("src/domain/id.rs", "request ids carry their time, nothing is decided by it"),
        ],
        instead: "use domain::clock, or tokio::time::Instant for what must end",
    },
    Only {
        what: "reads arguments or the environment",
        spelled: &["std::env", "env::var", "env::var_os", "env::vars", "env::args"],
        seen: Seen::Code,
        within: &["src/"],
        allowed: &[("src/cli/", "speaks to a person"), ("src/main.rs", "speaks to a person")],
        instead: "take the value as a parameter from cli",
    },
    Only {
        what: "prints",
        spelled: &["println!", "eprintln!", "print!", "eprint!", "stdout()", "stderr()"],
        seen: Seen::Code,
        within: &["src/"],
        allowed: &[
            ("src/cli/", "speaks to a person"),
            ("src/main.rs", "speaks to a person"),
            ("src/telemetry/logs.rs", "owns the log's output"),
        ],
        instead: "log with tracing, or return the text to cli",
    },
    Only {
        what: "starts tasks or threads",
        spelled: &["spawn(", "spawn_local(", "spawn_blocking(", "spawn_on(", "thread::Builder"],
        seen: Seen::Code,
        within: &["src/"],
        allowed: &[
            ("src/app.rs", "starts everything, in order"),
            ("src/app/", "threads beside the workers, each ended by whom app.rs stops"),
            ("src/layer/admission.rs", "refused bodies are read and thrown away, within a size and a second"),
            ("src/server/", "one runtime a core, one task a connection"),
            ("src/admin/", "one task a connection"),
            ("src/sandbox/", "stands for other programs"),
            ("src/config/expr/parse.rs", "the parser of conditions needs a deep stack; joined at once"),
            ("src/cli/doctor/mod.rs", "probes this machine while the network is waited for; joined at once"),
            ("src/cli/sandbox.rs", "gives the simulators a thread of their own"),
            ("src/layer/shadow.rs", "a copy of a call is waited for by nobody; bounded in number and time"),
            (
                "src/layer/cache/revalidate.rs",
                "what follows an old answer is waited for by nobody; one for an answer, by its deadline",
            ),
            ("src/layer/join.rs", "the call that leads outlives the client that started it"),
            ("src/layer/soft_deadline.rs", "a late verdict is awaited after the answer left"),
            ("src/layer/idempotency.rs", "the one call outlives the client that started it"),
            ("src/layer/idempotency/claims.rs", "a claim goes when its verdict is on record; bounded by the commit"),
            ("src/upstream/apart.rs", "large bodies are worked on away from the serving threads, two at a time"),
            ("src/upstream/pool.rs", "drives connections"),
            ("src/upstream/pool/", "drives connections"),
            ("src/upstream/token.rs", "refreshes early, for everybody"),
            ("src/gateway/reload.rs", "watches files"),
            ("src/telemetry/", "writes the log off the request's path"),
            ("src/store/writer.rs", "fsync blocks and has its own thread"),
            ("src/store/sweep.rs", "moving the log blocks, and no commit may wait for it"),
        ],
        instead: "await it where you are; a new task needs an owner, a deadline and a row here",
    },
    Only {
        what: "turns an error into a status code",
        spelled: &[
            "StatusCode::BAD_REQUEST",
            "StatusCode::UNAUTHORIZED",
            "StatusCode::FORBIDDEN",
            "StatusCode::NOT_FOUND",
            "StatusCode::METHOD_NOT_ALLOWED",
            "StatusCode::CONFLICT",
            "StatusCode::PAYLOAD_TOO_LARGE",
            "StatusCode::TOO_MANY_REQUESTS",
            "StatusCode::INTERNAL_SERVER_ERROR",
            "StatusCode::BAD_GATEWAY",
            "StatusCode::SERVICE_UNAVAILABLE",
            "StatusCode::GATEWAY_TIMEOUT",
        ],
        seen: Seen::Code,
        within: &["src/routing/", "src/flight/", "src/layer/", "src/casework/", "src/gateway/", "src/server/"],
        allowed: &[("src/layer/rescue.rs", "the one table of statuses")],
        instead: "return a CallError and give it its status in layer/rescue.rs",
    },
    Only {
        what: "reads operators' text into types",
        spelled: &["Deserialize"],
        seen: Seen::Code,
        within: &["src/config/", "src/domain/"],
        allowed: &[("src/config/raw", "says exactly what the text says")],
        instead: "read it in config/raw.rs and validate it in config/compile.rs",
    },
    Only {
        what: "implements tower's traits",
        spelled: &["tower::Service", "tower::Layer", "Service"],
        seen: Seen::Code,
        within: &["src/domain/", "src/wire/", "src/sign/", "src/redact/", "src/config/", "src/store/", "src/routing/"],
        allowed: &[],
        instead: "write a plain function; layers live on floor 5",
    },
];

/// Floors that stay free of the async runtime, but for its pausable clock.
const WITHOUT_RUNTIME: &[&str] = &["domain", "wire", "sign", "redact", "config", "routing", "insight"];
const PAUSABLE_CLOCK: &str = "tokio::time::Instant";

const MOST_LINES: usize = 600;
const MANY_LINES: usize = 400;
/// Tables may be long: they are read by looking up, not from top to bottom.
const TABLES: &[&str] = &["src/telemetry/catalog.rs", "src/config/checks.rs", "src/domain/currency.rs"];
const MOST_FUNCTION_LINES: usize = 80;

/// Fails with one line per finding.
fn none(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|&(_, floor)| floor)
}

/// Positions of `needle` in `hay` where it is a whole word on the sides that are letters.
fn whole<'a>(hay: &'a str, needle: &'a str) -> impl Iterator<Item = usize> + 'a {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    hay.match_indices(needle).map(|(at, _)| at).filter(move |&at| {
        let left = needle.starts_with(letter) && hay[..at].ends_with(letter);
        let right = needle.ends_with(letter) && !needle.ends_with('_') && hay[at + needle.len()..].starts_with(letter);
        !left && !right
    })
}

#[test]
fn modules_import_only_from_lower_floors() {
    let mut findings = Vec::new();
    for file in sources("src") {
        let module = file.module();
        let Some(own) = module.first() else { continue };
        let Some(own_floor) = floor(own) else {
            findings.push(format!("{}: `{own}` has no floor; add it to FLOORS in tests/it/tidy.rs", file.path));
            continue;
        };
        for (position, path) in file.crate_paths() {
            let Some(other) = path.first().filter(|other| *other != own) else { continue };
            let allowed = match floor(other) {
                _ if other == "sandbox" => own == "cli",
                _ if own == "sandbox" => ["domain", "wire", "sign"].contains(&other.as_str()),
                Some(other_floor) => other_floor < own_floor,
                None => false,
            };
            if !allowed {
                findings.push(format!(
                    "{}: `{own}` imports `{other}`; move the shared part down a floor",
                    file.at(position)
                ));
            }
        }
    }
    none("imports go only downward", &findings);
}

/// For each file of a module folder, the files of that folder it imports, and where.
type Imports = BTreeMap<String, BTreeMap<String, String>>;

#[test]
fn files_of_one_module_do_not_import_each_other_in_circles() {
    let mut modules: BTreeMap<String, Imports> = BTreeMap::new();
    for file in sources("src") {
        let module = file.module();
        let [own, part, ..] = module.as_slice() else { continue };
        let imports = modules.entry(own.clone()).or_default().entry(part.clone()).or_default();
        for (position, path) in file.crate_paths() {
            if let [top, other, ..] = path.as_slice()
                && top == own
                && other != part
            {
                imports.entry(other.clone()).or_insert_with(|| file.at(position));
            }
        }
    }
    let mut findings = BTreeSet::new();
    for imports in modules.values() {
        for mut circle in imports.keys().filter_map(|part| shortest_circle(imports, part)) {
            // The same circle is found from each of its files: name it once, from the first in name order.
            let first = circle.iter().enumerate().min_by_key(|(_, part)| **part).map_or(0, |(at, _)| at);
            circle.rotate_left(first);
            let places: Vec<&str> = circle
                .iter()
                .zip(circle.iter().cycle().skip(1))
                .map(|(from, to)| imports[*from][*to].as_str())
                .collect();
            findings.insert(format!("{} → {}: cut one of {}", circle.join(" → "), circle[0], places.join(", ")));
        }
    }
    let findings: Vec<String> = findings.into_iter().collect();
    none("files of one module import each other without circles", &findings);
}

/// The shortest way from a file over its imports back to it, each file once.
fn shortest_circle<'a>(imports: &'a Imports, start: &'a str) -> Option<Vec<&'a str>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut next = std::collections::VecDeque::from([start]);
    while let Some(part) = next.pop_front() {
        for other in imports.get(part).into_iter().flatten().map(|(other, _)| other.as_str()) {
            if other == start {
                let mut circle: Vec<&str> =
                    std::iter::successors(Some(part), |at| came_from.get(at).copied()).collect();
                circle.reverse();
                return Some(circle);
            }
            if !came_from.contains_key(other) {
                came_from.insert(other, part);
                next.push_back(other);
            }
        }
    }
    None
}

#[test]
fn some_things_are_done_in_one_place_only() {
    let files = sources("src");
    let mut findings = Vec::new();
    for rule in ONLY {
        let applies = |file: &&Source| {
            rule.within.iter().any(|prefix| file.path.starts_with(prefix))
                && !rule.allowed.iter().any(|(prefix, _)| file.path.starts_with(prefix))
        };
        for file in files.iter().filter(applies) {
            let hay = if rule.seen == Seen::Text { &file.text } else { &file.code };
            let lines: BTreeSet<String> =
                rule.spelled.iter().flat_map(|spelled| whole(hay, spelled)).map(|position| file.at(position)).collect();
            findings.extend(lines.into_iter().map(|at| format!("{at}: {}; {}", rule.what, rule.instead)));
        }
    }
    none("only the files of the ONLY table may do this", &findings);
}

#[test]
fn only_the_stack_names_layers() {
    let mut findings = Vec::new();
    for file in sources("src").iter().filter(|file| !file.path.starts_with("src/layer/")) {
        for (position, path) in file.crate_paths() {
            let a_layer =
                path.first().is_some_and(|top| top == "layer") && path.last().is_some_and(|name| is_layer(name));
            if a_layer && file.path != "src/gateway/stack.rs" {
                findings.push(format!("{}: names {}; push it in gateway/stack.rs", file.at(position), path.join("::")));
            }
        }
    }
    none("only gateway/stack.rs names layers", &findings);
}

#[test]
fn the_lower_floors_do_not_know_the_runtime() {
    let mut findings = Vec::new();
    for file in sources("src") {
        if !file.module().first().is_some_and(|own| WITHOUT_RUNTIME.contains(&own.as_str())) {
            continue;
        }
        for position in whole(&file.code, "tokio") {
            if !file.code[position..].starts_with(PAUSABLE_CLOCK) {
                findings.push(format!("{}: uses tokio; take a plain value, or move it to floor 4", file.at(position)));
            }
        }
    }
    none("nothing that decides or encodes knows tokio, except its clock", &findings);
}

#[test]
fn files_stay_short_enough_to_read() {
    let mut findings = Vec::new();
    for file in sources("src").iter().chain(&sources("tests/it")) {
        let lines = file.production_lines();
        if lines > MOST_LINES && !TABLES.contains(&file.path.as_str()) {
            findings.push(format!("{}: {lines} lines; it has become two things, split it", file.path));
        } else if lines > MANY_LINES {
            println!("note: {} has {lines} production lines", file.path);
        }
    }
    none(&format!("at most {MOST_LINES} production lines a file"), &findings);
}

#[test]
fn functions_stay_short_enough_to_read() {
    let mut findings = Vec::new();
    for file in sources("src").iter().chain(&sources("benches")) {
        for (position, name, lines) in file.functions() {
            if lines > MOST_FUNCTION_LINES {
                findings.push(format!("{}: `{name}` has {lines} lines; name its parts", file.at(position)));
            }
        }
    }
    none(&format!("at most {MOST_FUNCTION_LINES} lines a function"), &findings);
}

#[test]
fn every_module_says_why_it_exists() {
    let findings: Vec<String> = ["src", "tests/it", "benches"]
        .iter()
        .flat_map(|folder| sources(folder))
        .filter(|file| !file.is_test() && !file.raw.starts_with("//! "))
        .map(|file| format!("{}:1: open with `//!` and why this file exists", file.path))
        .collect();
    none("every file opens with its reason", &findings);
}

#[test]
fn nothing_is_left_unfinished() {
    let in_code = ["todo!", "unimplemented!", "#[ignore"];
    let in_comments = [concat!("TO", "DO"), concat!("FIX", "ME")];
    let mut findings = Vec::new();
    for file in sources("src").iter().chain(&sources("tests/it")).chain(&sources("benches")) {
        // Test modules are blanked from `code`, so the marks are looked for in the raw lines that are not comments.
        let raw_code = file.raw.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        let tidy_itself = file.path == "tests/it/tidy.rs";
        for (number, line) in raw_code.filter(|_| !tidy_itself) {
            if in_code.iter().any(|mark| line.contains(mark)) {
                findings.push(format!("{}:{}: finish it, or leave it out", file.path, number + 1));
            }
        }
        for position in in_comments.iter().flat_map(|mark| whole(&file.raw, mark)) {
            findings.push(format!("{}: do it, or file it; a note to oneself helps nobody here", file.at(position)));
        }
    }
    none("no stubs, no ignored tests, no notes to oneself", &findings);
}

#[test]
fn every_provider_fact_has_a_source_and_a_date() {
    let Ok(folder) = fs::read_dir(root().join("providers")) else { return };
    let mut findings = Vec::new();
    for path in
        folder.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|ext| ext == "toml"))
    {
        let name = format!("providers/{}", path.file_name().unwrap().to_string_lossy());
        let file: toml::Table = match fs::read_to_string(&path).unwrap().parse() {
            Ok(file) => file,
            Err(error) => {
                findings.push(format!("{name}: {error}"));
                continue;
            }
        };
        let sourced = |table: &toml::Table| {
            let named =
                |key: &str| table.get(key).is_some_and(|value| value.as_str().is_some_and(|text| !text.is_empty()));
            match table.get("source") {
                Some(toml::Value::Table(source)) => source.contains_key("url") && source.contains_key("checked"),
                _ => named("source") && named("checked"),
            }
        };
        if !sourced(&file) {
            findings.push(format!("{name}: add `source = {{ url = \"…\", checked = \"YYYY-MM-DD\" }}`"));
        }
        if file.get("price").and_then(toml::Value::as_table).is_some_and(|price| !sourced(price)) {
            findings.push(format!("{name}: `price` needs `source` and `checked`"));
        }
        for model in file.get("model").and_then(toml::Value::as_array).into_iter().flatten() {
            let price = model.get("price").and_then(toml::Value::as_table);
            if price.is_some_and(|price| !sourced(price)) {
                let id = model.get("id").and_then(toml::Value::as_str).unwrap_or("?");
                findings.push(format!("{name}: the price of model `{id}` needs `source` and `checked`"));
            }
        }
    }
    none("every fact about a provider says where it is from and when it was checked", &findings);
}

#[test]
fn no_tracked_file_names_a_machine_or_a_package_host() {
    let forbidden = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("index.cra", "tes.io"),
        concat!("static.cra", "tes.io"),
        concat!("registry.np", "mjs.org"),
        concat!("py", "pi.org"),
        concat!("files.python", "hosted.org"),
        concat!("deb.deb", "ian.org"),
        concat!("proxy.gol", "ang.org"),
    ];
    let mut findings = Vec::new();
    for path in tracked() {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = forbidden.iter().find(|word| line.contains(**word)) {
                findings.push(format!("{path}:{}: contains `{word}`; it means nothing on another machine", number + 1));
            }
        }
    }
    none("no machine paths, no package hosts", &findings);
}

/// Files under version control; none where there is no git, as in a source archive.
fn tracked() -> Vec<String> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let listed = listed.ok().filter(|output| output.status.success()).map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&listed).split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect()
}

/// ARCHITECTURE.md draws the stacks as tables whose first column is the layer's name in backticks, one row a layer, in
/// the order of gateway/stack.rs: the outermost first.
#[test]
fn architecture_md_lists_the_layers_in_the_order_of_the_stack() {
    let Some(stack) = sources("src/gateway").into_iter().find(|file| file.path == "src/gateway/stack.rs") else {
        return;
    };
    let pushed: Vec<String> = stack
        .code
        .split_inclusive(';')
        .filter(|statement| !statement.trim_start().starts_with("use "))
        .flat_map(|statement| words(statement).into_iter().map(|(_, word)| word.to_owned()))
        .filter(|word| is_layer(word))
        .fold(Vec::new(), |mut seen, word| {
            if !seen.contains(&word) {
                seen.push(word);
            }
            seen
        });
    assert!(!pushed.is_empty(), "src/gateway/stack.rs names no `…Layer`: then nobody can read the order there");

    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md exists and draws the stack");
    let drawn: Vec<String> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("| `")?.split('`').next())
        .filter(|name| is_layer(name))
        .map(str::to_owned)
        .collect();
    assert_eq!(drawn, pushed, "left: the tables of ARCHITECTURE.md; right: gateway/stack.rs, outermost first");
}

fn is_layer(name: &str) -> bool {
    name.len() > "Layer".len() && name.ends_with("Layer")
}

#[test]
fn the_scanner_sees_paths_and_not_comments_or_tests() {
    let raw = "//! x\nuse crate::{a::{b, c::D}, e};\n// crate::f\nfn g<'a>(h: &'a str) -> char {\n    super::i::j();\n    let _ = \
               \"crate::k\";\n    '{'\n}\n#[cfg(test)]\nmod tests { use crate::l; }\n";
    let file = Source::new("src/m/n.rs".to_owned(), raw.to_owned());
    let paths: Vec<String> = file.crate_paths().into_iter().map(|(_, path)| path.join("::")).collect();
    assert_eq!(paths, ["a::b", "a::c::D", "e", "m::i::j"]);
    let functions: Vec<_> =
        file.functions().into_iter().map(|(position, name, lines)| (file.at(position), name, lines)).collect();
    assert_eq!(functions, [("src/m/n.rs:4".to_owned(), "g", 5)]);
    assert_eq!(file.production_lines(), 9);
}
