//! Files to text. The only part of the configuration that touches the disk.
//!
//! It refuses what would block or fill the memory: anything but a regular file (a FIFO waits for a writer), and files of
//! more than [`LARGEST_FILE`] bytes. It does not watch: [`content_hash`] is what a watcher compares.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::builtin;
use super::compile::add;
use super::error::ConfigError;
use super::lists::MOST_LISTS;
use super::source::{ListSource, SourceFile, Sources};
use crate::domain::secret::{PemFile, Secret};

/// Most bytes of one configuration file.
pub const LARGEST_FILE: u64 = 1 << 20;
const LARGEST_SECRET_FILE: u64 = 64 << 10;
/// Most bytes of all lists together: they are read again whenever somebody looks for a change.
const LARGEST_LISTS: usize = 8 << 20;
const MOST_PROVIDER_FILES: usize = 1000;
/// Others may neither read nor change a private key.
const OTHERS: u32 = 0o007;
/// The keys of `[tls]` that name files.
const PEM_KEYS: [&str; 4] = ["ca", "crl", "client_cert", "client_key"];

/// Reads `routes.toml` and the provider files.
///
/// `providers` is a folder; its `*.toml` files take the place of the built-in ones with the same `id`. Without a folder,
/// or if it does not exist, there are the built-in ones. `overlays` are appended to the routes as they are; without a
/// routes file they are all there is.
///
/// # Errors
/// One for each file that is missing, not a regular file, too large, not UTF-8 or not readable.
pub fn read_sources(
    routes: Option<&Path>,
    providers: Option<&Path>,
    overlays: Vec<SourceFile>,
) -> Result<Sources, Vec<ConfigError>> {
    read_files(routes, providers).map(|files| complete(files, overlays))
}

/// Reads what the operator wrote, and nothing else: no overlays, no built-in provider files.
///
/// # Errors
/// As [`read_sources`].
pub fn read_files(routes: Option<&Path>, providers: Option<&Path>) -> Result<Sources, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let mut sources = Sources::default();
    match routes.map(read_source) {
        Some(Ok(file)) => {
            sources.lists = routes.map(|routes| list_files(routes, &file)).unwrap_or_default();
            sources.routes.push(file);
        }
        Some(Err(error)) => errors.push(*error),
        None => {}
    }
    for path in provider_files(providers).unwrap_or_else(|error| {
        errors.push(*error);
        Vec::new()
    }) {
        match read_source(&path) {
            Ok(file) => sources.providers.push(file),
            Err(error) => errors.push(*error),
        }
    }
    if errors.is_empty() { Ok(sources) } else { Err(errors) }
}

/// Adds what the program itself knows: overlays, and the built-in files of providers that the operator's files do not name.
pub fn complete(mut files: Sources, overlays: Vec<SourceFile>) -> Sources {
    files.routes.extend(overlays);
    let own: Vec<String> = files.providers.iter().map(id_of).collect();
    files.providers.extend(builtin::providers().into_iter().filter(|file| !own.contains(&id_of(file))));
    files
}

/// SHA-256 over the bytes of `routes.toml`, the files of its lists, the provider files and the secret files, certificates
/// and private keys they name.
///
/// Never fails: what cannot be read counts as absent, so that its return is a change too.
pub fn content_hash(routes: &Path, providers: Option<&Path>) -> [u8; 32] {
    content_hash_with(routes, providers, &|path| pem_file(Path::new(path)).map(|file| file.content))
}

/// As [`content_hash`], with secret files, certificates and keys as somebody else finds them.
pub fn content_hash_with(routes: &Path, providers: Option<&Path>, secret: &dyn Fn(&str) -> Option<Secret>) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut paths = vec![routes.to_owned()];
    paths.extend(provider_files(providers).unwrap_or_default());
    let mut texts: Vec<SourceFile> = builtin::providers();
    for path in paths {
        let source = read_source(&path).ok();
        add(&mut hash, path.as_os_str().as_encoded_bytes());
        add_optional(&mut hash, source.as_ref().map(|source| source.text.as_bytes()));
        let is_routes = path == routes;
        for list in source.iter().filter(|_| is_routes).flat_map(|source| list_files(routes, source)) {
            add(&mut hash, list.path.as_bytes());
            add_optional(&mut hash, list.content.as_ref().ok().map(|file| file.text.as_bytes()));
        }
        texts.extend(source);
    }
    let mut secrets: Vec<String> = texts.iter().flat_map(secret_files_of).collect();
    secrets.sort();
    secrets.dedup();
    for path in secrets {
        let secret = secret(&path);
        add(&mut hash, path.as_bytes());
        add_optional(&mut hash, secret.as_ref().map(Secret::expose));
    }
    hash.finalize().into()
}

/// The content of a secret file without one trailing newline; `None` if it is not a regular readable file of at most
/// 64 KiB. What a [`SecretSource`](crate::domain::secret::SecretSource) answers for `secret_file`.
pub fn secret_file(path: &Path) -> Option<Secret> {
    let mut bytes = read_bytes(path, LARGEST_SECRET_FILE).ok()?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    Some(Secret::new(bytes))
}

/// A file of certificates or of a private key; `None` if it is not a regular readable file of at most 1 MiB. What a
/// [`SecretSource`](crate::domain::secret::SecretSource) answers for the files of `[tls]`.
pub fn pem_file(path: &Path) -> Option<PemFile> {
    let content = Secret::new(read_bytes(path, LARGEST_FILE).ok()?);
    let mode = fs::metadata(path).ok()?.permissions().mode();
    Some(PemFile { content, open_to_others: mode & OTHERS != 0 })
}

fn provider_files(folder: Option<&Path>) -> Result<Vec<PathBuf>, Box<ConfigError>> {
    let Some(folder) = folder else { return Ok(Vec::new()) };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => return Err(unreadable(folder, "not a folder")),
        Err(error) => return Err(unreadable(folder, reason(error.kind()))),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| unreadable(folder, reason(error.kind())))?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && entry.path().extension().is_some_and(|extension| extension == "toml") {
            paths.push(entry.path());
        }
        if paths.len() > MOST_PROVIDER_FILES {
            return Err(unreadable(folder, "more than 1000 provider files"));
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_source(path: &Path) -> Result<SourceFile, Box<ConfigError>> {
    let bytes = read_bytes(path, LARGEST_FILE).map_err(|reason| unreadable(path, reason))?;
    let text = String::from_utf8(bytes).map_err(|_| unreadable(path, "not UTF-8 text"))?;
    Ok(SourceFile { name: path.display().to_string(), text })
}

/// The content of a regular file of at most so many bytes.
///
/// # Errors
/// What is wrong with it, in words for a person.
pub fn read_bytes(path: &Path, most: u64) -> Result<Vec<u8>, &'static str> {
    // Asked before opening: opening a FIFO blocks until somebody writes to it.
    let metadata = fs::metadata(path).map_err(|error| reason(error.kind()))?;
    if !metadata.is_file() {
        return Err("not a regular file");
    }
    let file = File::open(path).map_err(|error| reason(error.kind()))?;
    let mut bytes = Vec::new();
    // Counted while reading as well: the file may grow after its size was asked.
    file.take(most + 1).read_to_end(&mut bytes).map_err(|error| reason(error.kind()))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= most) { Ok(bytes) } else { Err(too_large(most)) }
}

fn too_large(most: u64) -> &'static str {
    if most == LARGEST_FILE { "larger than 1 MiB" } else { "larger than 64 KiB" }
}

fn reason(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "there is no such file",
        ErrorKind::PermissionDenied => "permission denied",
        _ => "cannot be read",
    }
}

fn unreadable(path: &Path, reason: &str) -> Box<ConfigError> {
    let hint = match reason {
        "there is no such file" => Some("give its path with --routes, or start with: weighbridge sandbox".to_owned()),
        _ => None,
    };
    Box::new(ConfigError::of_file(path.display().to_string(), reason.to_owned(), hint))
}

/// The `id` in a provider file, or the file's name if it has none that can be read.
fn id_of(file: &SourceFile) -> String {
    let (entries, _) = DeTable::parse_recoverable(&file.text);
    let id = entries.get_ref().get("id").and_then(|id| id.get_ref().as_str()).map(str::to_owned);
    id.unwrap_or_else(|| {
        Path::new(&file.name).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
    })
}

fn secret_files_of(file: &SourceFile) -> Vec<String> {
    // The watcher asks every two seconds and at every hint, and most files name no secret file: look before parsing.
    let may_name_some = file.text.contains("secret_file") || file.text.contains("tls");
    if !may_name_some && !file.text.contains("\\u") && !file.text.contains("\\U") {
        return Vec::new();
    }
    let (entries, _) = DeTable::parse_recoverable(&file.text);
    let mut found = Vec::new();
    entries.get_ref().iter().for_each(|(key, value)| secret_files_in(key.get_ref(), value.get_ref(), &mut found));
    let tls = entries.get_ref().get("tls").and_then(|tls| tls.get_ref().as_table());
    found.extend(PEM_KEYS.iter().filter_map(|key| Some(tls?.get(*key)?.get_ref().as_str()?.to_owned())));
    found
}

/// Wherever it stands: in a provider's `auth`, in one of its keys, in a caller's `signature`.
fn secret_files_in(key: &str, value: &DeValue<'_>, found: &mut Vec<String>) {
    match value {
        DeValue::String(path) if key == "secret_file" => found.push(path.to_string()),
        DeValue::Table(entries) => {
            entries.iter().for_each(|(key, value)| secret_files_in(key.get_ref(), value.get_ref(), found));
        }
        DeValue::Array(values) => values.iter().for_each(|value| secret_files_in(key, value.get_ref(), found)),
        _ => {}
    }
}

/// The files of the lists that a routes file names, relative to its folder.
fn list_files(routes: &Path, source: &SourceFile) -> Vec<ListSource> {
    // As for secrets: look before parsing.
    let may_name_some = source.text.contains("list") && source.text.contains("file");
    if !may_name_some && !source.text.contains("\\u") && !source.text.contains("\\U") {
        return Vec::new();
    }
    let (entries, _) = DeTable::parse_recoverable(&source.text);
    let risk = entries.get_ref().get("risk").map(Spanned::get_ref);
    let lists = risk.and_then(DeValue::as_table).and_then(|risk| risk.get("list")).map(Spanned::get_ref);
    let lists = lists.and_then(DeValue::as_array).map(|lists| lists.iter()).into_iter().flatten();
    let paths = lists.filter_map(|list| list.get_ref().as_table()?.get("file")?.get_ref().as_str());
    let mut paths: Vec<&str> = paths.take(MOST_LISTS).collect();
    paths.sort_unstable();
    paths.dedup();
    let folder = routes.parent().unwrap_or(Path::new(""));
    let mut left = LARGEST_LISTS;
    let read = |path: &str| {
        let place = folder.join(path);
        let bytes = read_bytes(&place, LARGEST_FILE)?;
        left = left.checked_sub(bytes.len()).ok_or("the lists' files are larger than 8 MiB together")?;
        let text = String::from_utf8(bytes).map_err(|_| "not UTF-8 text")?;
        Ok(SourceFile { name: place.display().to_string(), text })
    };
    let mut read = read;
    paths.into_iter().map(|path| ListSource { path: path.to_owned(), content: read(path) }).collect()
}

fn add_optional(hash: &mut Sha256, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            hash.update([1]);
            add(hash, bytes);
        }
        None => hash.update([0]),
    }
}
