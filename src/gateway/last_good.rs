//! The last configuration that compiled, on disk, so that a start with a broken file serves all the same.
//!
//! One file in the data folder: the texts of `routes.toml`, of the provider files and of the lists' files, as they were read.
//! It holds no secret, because those texts cannot; it holds the values of lists, and is readable for nobody else. It is used
//! at a start only, only if the files on disk are refused, and only for the same paths: a mistyped `--routes` must not
//! serve what another file once said. Whoever serves from it says so in the log, in `/status.json` and in a metric, until the
//! files are repaired.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{self, Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::config::error::ConfigError;
use crate::config::source::{ListSource, SourceFile, Sources};
use crate::config::table::RoutingTable;
use crate::domain::clock;
use crate::gateway::origin::{Origin, tell};
use crate::gateway::spending::write;

const NAME: &str = "last-good.json";
const FORMAT: u64 = 1;
/// More is not kept: the largest files a configuration of any use comes to, several times over.
const MOST_BYTES: usize = 64 << 20;

/// Keeps what was good.
pub struct LastGood {
    file: PathBuf,
    routes: String,
    providers: String,
    /// The hash of what the file holds; `None` before the first time.
    holds: Option<[u8; 32]>,
    failing: bool,
}

/// What a start found.
pub struct Found {
    /// What is to be served.
    pub table: RoutingTable,
    /// What is wrong with the files on disk, if it is not theirs.
    pub refused: Option<Vec<ConfigError>>,
}

/// Loads the configuration, or else the last good one.
///
/// # Errors
/// Every mistake of the files on disk, if there is none or it is of no use either.
pub fn start(origin: &Origin, last_good: Option<&mut LastGood>) -> Result<Found, Vec<ConfigError>> {
    let loaded = origin.read().and_then(|files| Ok((origin.compile(files.clone())?, files)));
    let errors = match (loaded, last_good) {
        (Ok((table, files)), last_good) => {
            if let Some(last_good) = last_good {
                last_good.keep(&files);
            }
            return Ok(Found { table, refused: None });
        }
        (Err(errors), Some(last_good)) => match last_good.table(origin) {
            Some(table) => {
                tell(&errors, "the configuration on disk is refused, serving the last good one until it is repaired");
                return Ok(Found { table, refused: Some(errors) });
            }
            None => errors,
        },
        (Err(errors), None) => errors,
    };
    Err(errors)
}

impl LastGood {
    /// Keeps it in this folder, which need not exist yet.
    pub fn new(folder: &Path, origin: &Origin) -> Self {
        let spelled = |path: &Path| path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
        let (routes, providers) = (spelled(&origin.routes), spelled(&origin.providers));
        Self { file: folder.join(NAME), routes, providers, holds: None, failing: false }
    }

    /// Keeps these files. What cannot be kept is told and stops nothing.
    pub fn keep(&mut self, files: &Sources) {
        let hash = hash(files);
        if self.holds == Some(hash) {
            return;
        }
        let text = self.spell(files);
        let kept = if text.len() > MOST_BYTES {
            Err(io::Error::new(ErrorKind::FileTooLarge, "the files are larger than 64 MiB together"))
        } else {
            write(&self.file, &text)
        };
        match kept {
            Ok(()) => (self.holds, self.failing) = (Some(hash), false),
            Err(error) if !self.failing => {
                self.failing = true;
                let file = self.file.display();
                tracing::error!(%error, %file, "the configuration cannot be kept, a start with a broken file would have to refuse");
            }
            Err(_) => {}
        }
    }

    /// What was kept, compiled; `None` if there is nothing of use, which is told.
    fn table(&self, origin: &Origin) -> Option<RoutingTable> {
        let file = self.file.display();
        match read(&self.file) {
            Ok(page) if !self.is_ours(&page) => {
                tracing::error!(%file, "there is a last good configuration, and it is of other files");
                None
            }
            Ok(page) => {
                let compiled = files(&page).map(|files| origin.compile(files));
                let at = page.get("kept_at").and_then(Value::as_str).unwrap_or_default();
                match compiled {
                    Some(Ok(table)) => {
                        tracing::warn!(%file, kept_at = at, config.version = %table.version(), "using the last good configuration");
                        Some(table)
                    }
                    Some(Err(errors)) => {
                        tell(&errors, "the last good configuration is refused too");
                        None
                    }
                    None => {
                        tracing::error!(%file, "the last good configuration is not a file of this program");
                        None
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!(%error, %file, "the last good configuration cannot be read");
                None
            }
        }
    }

    fn is_ours(&self, page: &Value) -> bool {
        let says = |key: &str, path: &String| page.get(key).and_then(Value::as_str) == Some(path);
        says("routes_file", &self.routes) && says("providers_folder", &self.providers)
    }

    fn spell(&self, files: &Sources) -> String {
        let one = |file: &SourceFile| json!({ "name": file.name, "text": file.text });
        let list = |list: &ListSource| {
            let file = list.content.as_ref().ok()?;
            Some(json!({ "path": list.path, "name": file.name, "text": file.text }))
        };
        let page = json!({
            "format": FORMAT,
            "kept_at": clock::rfc3339(clock::unix_ms()),
            "routes_file": self.routes,
            "providers_folder": self.providers,
            "routes": files.routes.iter().map(one).collect::<Vec<_>>(),
            "providers": files.providers.iter().map(one).collect::<Vec<_>>(),
            "lists": files.lists.iter().filter_map(list).collect::<Vec<_>>(),
        });
        page.to_string()
    }
}

fn hash(files: &Sources) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    };
    for (kind, files) in [("routes", &files.routes), ("providers", &files.providers)] {
        add(kind);
        for text in files.iter().flat_map(|file| [&file.name, &file.text]) {
            add(text);
        }
    }
    for list in &files.lists {
        add(&list.path);
        add(list.content.as_ref().map_or("", |file| &file.text));
    }
    hash.finalize().into()
}

fn read(file: &Path) -> io::Result<Value> {
    let mut text = String::new();
    File::open(file)?.take(MOST_BYTES as u64).read_to_string(&mut text)?;
    // The parser's own message would quote the file.
    serde_json::from_str(&text).map_err(|_| io::Error::new(ErrorKind::InvalidData, "not a file of this program"))
}

fn files(page: &Value) -> Option<Sources> {
    if page.get("format")?.as_u64()? != FORMAT {
        return None;
    }
    let word = |one: &Value, key: &str| Some(one.get(key)?.as_str()?.to_owned());
    let file = |one: &Value| Some(SourceFile { name: word(one, "name")?, text: word(one, "text")? });
    let all = |key: &str| page.get(key)?.as_array()?.iter().map(file).collect::<Option<Vec<_>>>();
    let list = |one: &Value| Some(ListSource { path: word(one, "path")?, content: Ok(file(one)?) });
    let lists = page.get("lists")?.as_array()?.iter().map(list).collect::<Option<Vec<_>>>()?;
    Some(Sources { routes: all("routes")?, providers: all("providers")?, lists })
}
