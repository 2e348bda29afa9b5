//! `weighbridge import`: a first routes.toml out of another gateway's configuration.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{chain, complain, digest, given_up, say};
use crate::config::import::{Given, ImportError, Imported, litellm};
use crate::config::load::LARGEST_FILE;
use crate::domain::clock;
use crate::sign::hmac::sha256_hex;

#[derive(Args)]
pub struct ImportArgs {
    #[command(subcommand)]
    from: From,
}

#[derive(Subcommand)]
enum From {
    /// From the config.yaml of a LiteLLM proxy
    Litellm(LitellmArgs),
}

#[derive(Args)]
struct LitellmArgs {
    /// The config.yaml, `-` for standard input
    file: PathBuf,
    /// A folder for routes.toml and the provider files, where none of them may be yet; the default is to print routes.toml
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0} cannot be read")]
    Read(String, #[source] std::io::Error),
    #[error("{0} is larger than 1 MiB, or not UTF-8 text")]
    Unfit(String),
    #[error("{0}")]
    Import(String, #[source] ImportError),
    #[error("no key can be made")]
    Key,
    #[error("{0} is there already, and nothing was written")]
    Exists(String),
    #[error("{0} cannot be written")]
    Write(String, #[source] std::io::Error),
}

/// Writes what can be taken over, and says what cannot.
pub fn run(args: &ImportArgs) -> ExitCode {
    let From::Litellm(args) = &args.from;
    match import(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => given_up(&chain(&error)),
    }
}

fn import(args: &LitellmArgs) -> Result<(), Trouble> {
    let name = args.file.display().to_string();
    let text = read(&args.file, &name)?;
    let key = digest::fresh().map_err(|_| Trouble::Key)?;
    let key_digest = format!("sha256:{}", sha256_hex(key.as_bytes()));
    let today = clock::rfc3339(clock::unix_ms());
    let day = today.split('T').next().unwrap_or_default();
    let file = args.file.file_name().map_or_else(|| name.clone(), |file| file.to_string_lossy().into_owned());
    let given = Given { name: &file, key_digest: &key_digest, day };
    let imported = litellm(&text, given).map_err(|error| Trouble::Import(name, error))?;
    if let Some(folder) = &args.output {
        write_all(folder, &imported)?;
    } else {
        say(imported.routes.trim_end());
        let files: Vec<&str> = imported.providers.iter().map(|(name, _)| name.as_str()).collect();
        if !files.is_empty() {
            complain(&format!("needs provider files that only --output DIR writes: {}", files.join(", ")));
        }
    }
    complain(&format!("key of the caller \"litellm\", told only here: {key}"));
    if imported.left_out > 0 {
        complain(&format!(
            "{} things did not come along; see the comments at the top of routes.toml",
            imported.left_out
        ));
    }
    Ok(())
}

fn read(path: &Path, name: &str) -> Result<String, Trouble> {
    let failed = |error| Trouble::Read(name.to_owned(), error);
    let unfit = || Trouble::Unfit(name.to_owned());
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        // Asked before opening: opening a FIFO blocks until somebody writes to it.
        if !fs::metadata(path).map_err(failed)?.is_file() {
            return Err(unfit());
        }
        fs::File::open(path).map_err(failed)?.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    let text = String::from_utf8(bytes).map_err(|_| unfit())?;
    if text.len() as u64 > LARGEST_FILE { Err(unfit()) } else { Ok(text) }
}

fn write_all(folder: &Path, imported: &Imported) -> Result<(), Trouble> {
    let providers = folder.join("providers");
    let files = imported.providers.iter().map(|(name, text)| (providers.join(name), text));
    let files: Vec<_> = std::iter::once((folder.join("routes.toml"), &imported.routes)).chain(files).collect();
    if let Some((path, _)) = files.iter().find(|(path, _)| path.exists()) {
        return Err(Trouble::Exists(path.display().to_string()));
    }
    fs::create_dir_all(&providers).map_err(|error| Trouble::Write(providers.display().to_string(), error))?;
    for (path, text) in files {
        let name = path.display().to_string();
        let created = fs::File::create_new(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        created.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Trouble::Exists(name.clone()),
            _ => Trouble::Write(name.clone(), error),
        })?;
        say(&format!("{name} written"));
    }
    Ok(())
}
