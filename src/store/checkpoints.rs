//! The file of checkpoints: how a line is added, also after a crash that left half of one.
//!
//! A power cut may leave half a line, or a sector that is nothing at all, in which earlier lines end. Such an end is cut off
//! before the next line is written, and told: a line amid others that is no checkpoint is what a forger leaves, and a record
//! that a crash made suspicious for good would hide one. Only an end is ever cut, and only after a line that is one of ours;
//! a file that begins as none is put aside. What a line says is `chain.rs`'s.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::chain::Checkpoint;
use super::db::{self, StoreError};

/// What is looked at: a sector of 4096 bytes that is being written, and the lines that end in it.
const END: u64 = 16 * 1024;

/// Adds a line, with its line feed; it is durable when this returns.
pub(super) fn append(path: &Path, line: &str) -> Result<(), StoreError> {
    let begun = !path.exists();
    let write = || {
        let mut file = open(path)?;
        match end(&mut file)? {
            End::Whole => {}
            End::Torn { at, bytes } => {
                file.set_len(at)?;
                tracing::warn!(bytes, file = %path.display(), "the end of the checkpoints was torn, as by a crash, and is cut off");
            }
            End::Strange => {
                let aside = aside(path);
                fs::rename(path, &aside)?;
                tracing::warn!(file = %path.display(), aside = %aside.display(), "this held no checkpoints, and is put aside");
                file = open(path)?;
            }
        }
        let from = file.metadata()?.len();
        file.write_all(line.as_bytes()).and_then(|()| file.sync_data()).inspect_err(|_| {
            // What is read may not be on the disk, and never will be unless it is written again. A pipe cannot be cut.
            let _ = file.set_len(from);
        })
    };
    write().map_err(StoreError::io(path))?;
    if begun { db::sync_name(path) } else { Ok(()) }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

fn aside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".torn");
    name.into()
}

enum End {
    Whole,
    /// From there on it is no line of ours.
    Torn {
        at: u64,
        bytes: u64,
    },
    /// No line of ours is before it.
    Strange,
}

fn end(file: &mut File) -> io::Result<End> {
    // Not a file that can be looked back in: a pipe, a terminal.
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(End::Whole);
    }
    let from = file.seek(SeekFrom::Start(length.saturating_sub(END)))?;
    let mut bytes = Vec::new();
    file.take(END).read_to_end(&mut bytes)?;
    // The first line of what was read may have begun before it.
    let first_end = bytes.iter().position(|byte| *byte == b'\n');
    let begun = match first_end {
        _ if from == 0 => 0,
        Some(at) => at + 1,
        None => return Ok(End::Strange),
    };
    let mut at = begun;
    for line in bytes.get(begun..).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
        if !is_ours(line) {
            let at = from.saturating_add(at as u64);
            return Ok(if at == 0 { End::Strange } else { End::Torn { at, bytes: length - at } });
        }
        at += line.len();
    }
    Ok(End::Whole)
}

fn is_ours(line: &[u8]) -> bool {
    let Some((b'\n', text)) = line.split_last() else { return false };
    text.trim_ascii().is_empty() || serde_json::from_slice::<Checkpoint>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seq: i64) -> String {
        let word = |length| "ab".repeat(length);
        let checkpoint = Checkpoint { chain: word(16), seq, hash: word(32), at: 1, key: word(32), signature: word(64) };
        serde_json::to_string(&checkpoint).unwrap() + "\n"
    }

    fn after(before: &[u8]) -> (String, Option<Vec<u8>>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoints.jsonl");
        fs::write(&path, before).unwrap();
        append(&path, &line(9)).unwrap();
        (fs::read_to_string(&path).unwrap(), fs::read(aside(&path)).ok())
    }

    #[test]
    fn row_27_a_torn_end_is_cut_off_and_no_whole_line() {
        let lines: String = (1..80).map(line).collect();
        assert!(lines.len() as u64 > END);
        assert_eq!(after(lines.as_bytes()).0, format!("{lines}{}", line(9)));
        for torn in [line(80).as_bytes()[..100].to_vec(), vec![0; 300], vec![0xff; 4096], b"\n\xa5\n\n\x00\n".to_vec()]
        {
            let (left, aside) = after(&[lines.as_bytes(), &torn].concat());
            assert_eq!((left.replace("\n\n", "\n"), aside), (format!("{lines}{}", line(9)), None));
        }
        // A sector in which earlier lines end.
        let mut spoilt = lines.clone().into_bytes();
        let at = spoilt.len() - 1000;
        spoilt[at..].fill(0xa5);
        let (left, _) = after(&spoilt);
        let kept = left.lines().count() - 1;
        assert!(left.ends_with(&line(9)) && lines.starts_with(left.strip_suffix(&line(9)).unwrap()), "{kept}");
        assert!((74..79).contains(&kept), "{kept}");
    }

    #[test]
    fn row_27_what_begins_as_no_checkpoint_is_put_aside_and_kept() {
        for strange in [&line(1).as_bytes()[..50], b"somebody's own text\n"] {
            assert_eq!(after(strange), (line(9), Some(strange.to_vec())));
        }
    }
}
