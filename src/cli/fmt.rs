//! `weighbridge fmt`: the same file, tidier, and with the names of this version.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{ROUTES, complain, say};
use crate::config::format::{FormatError, Renamed, tidied, upgraded};
use crate::config::load::LARGEST_FILE;

#[derive(Args)]
pub struct FmtArgs {
    /// A routes or provider file, `-` for standard input and output
    #[arg(default_value = ROUTES, env = "WEIGHBRIDGE_ROUTES")]
    file: PathBuf,
    /// Write nothing, and fail if the file would change
    #[arg(long)]
    check: bool,
    /// Rewrite keys that have another name now
    #[arg(long)]
    upgrade: bool,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("cannot be read")]
    Read(#[source] std::io::Error),
    #[error("larger than 1 MiB, or not UTF-8 text")]
    Unfit,
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("cannot be written")]
    Write(#[source] std::io::Error),
}

/// Rewrites a file in place; it is as it was, or it is done.
pub fn run(args: &FmtArgs) -> ExitCode {
    let name = args.file.display();
    match rewrite(args) {
        Ok(true) if args.check => {
            complain(&format!("{name} would change; run: weighbridge fmt {name}"));
            ExitCode::FAILURE
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{name}: {}", super::chain(&error)));
            ExitCode::from(2)
        }
    }
}

/// True if the file changed, or would.
fn rewrite(args: &FmtArgs) -> Result<bool, Trouble> {
    let piped = args.file == Path::new("-");
    let text = read(&args.file, piped)?;
    let (new, renamed) = if args.upgrade { upgraded(&text)? } else { (text.clone(), Vec::new()) };
    let new = tidied(&new)?;
    for Renamed { line, old, new } in &renamed {
        complain(&format!("{}:{line}: `{old}` is called `{new}` now", args.file.display()));
    }
    let changed = new != text;
    if piped && !args.check {
        std::io::stdout().lock().write_all(new.as_bytes()).map_err(Trouble::Write)?;
    } else if changed && !args.check {
        write(&args.file, &new).map_err(Trouble::Write)?;
        say(&format!("{} rewritten", args.file.display()));
    }
    Ok(changed)
}

fn read(path: &Path, piped: bool) -> Result<String, Trouble> {
    let mut bytes = Vec::new();
    let most = LARGEST_FILE + 1;
    if piped {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes).map_err(Trouble::Read)?;
    } else {
        // Asked before opening: opening a FIFO blocks until somebody writes to it.
        if !std::fs::metadata(path).map_err(Trouble::Read)?.is_file() {
            return Err(Trouble::Unfit);
        }
        std::fs::File::open(path).map_err(Trouble::Read)?.take(most).read_to_end(&mut bytes).map_err(Trouble::Read)?;
    }
    let text = String::from_utf8(bytes).map_err(|_| Trouble::Unfit)?;
    if text.len() as u64 > LARGEST_FILE { Err(Trouble::Unfit) } else { Ok(text) }
}

/// Beside the file first and then in its place, so that a proxy that reads it meanwhile never sees half of it.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let path = path.canonicalize()?;
    let mut beside = path.clone().into_os_string();
    beside.push(format!(".{}.tmp", std::process::id()));
    let permissions = std::fs::metadata(&path)?.permissions();
    let written = std::fs::write(&beside, text)
        .and_then(|()| std::fs::set_permissions(&beside, permissions))
        .and_then(|()| std::fs::rename(&beside, &path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}
