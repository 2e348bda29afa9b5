//! What was counted about payment attempts, on disk between a planned end and the next start.
//!
//! One file in the data folder, written when a process ends in good order or hands over, and removed by the next one that
//! reads it: it holds hashes with their pepper, readable for nobody else, and no process counts on from it twice. A crash
//! leaves none, and all counters begin anew. It deliberately is no copy that is kept while the process runs: that would be
//! as large, every few seconds, and the record is what lasts.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::domain::clock;
use crate::flight::velocity::{Carried, MOST_BYTES, Velocity};

const NAME: &str = "velocity.bin";

/// Keeps the numbers for the next process. What cannot be kept is told and stops nothing. Blocks.
pub fn keep(velocity: &Velocity, folder: &Path) {
    let Some(Carried { bytes, left_out }) = velocity.carried(clock::unix_ms()) else { return };
    for counter in left_out {
        tracing::warn!(counter, "a velocity counter is too large to be kept over a restart, and begins anew");
    }
    let file = folder.join(NAME);
    if let Err(error) = write(&file, &bytes) {
        tracing::error!(%error, file = %file.display(), "velocity counters cannot be kept over a restart, and begin anew");
    }
}

/// Goes on with what the process before kept. Call it before anybody is counted. Blocks.
pub fn go_on(velocity: &Velocity, folder: &Path) {
    let file = folder.join(NAME);
    let read = read(&file);
    // First of all: nobody may go on from it a second time.
    if let Err(error) = fs::remove_file(&file)
        && error.kind() != ErrorKind::NotFound
    {
        let file = file.display();
        return tracing::error!(%error, %file, "velocity counters begin anew, the file of the last ones cannot be removed");
    }
    match read {
        Ok(bytes) => match velocity.go_on(&bytes, clock::unix_ms()) {
            Some(counters) => tracing::info!(counters, "velocity counters go on from the process before"),
            None => {
                tracing::error!(file = %file.display(), "velocity counters begin anew, the file of the last ones is broken");
            }
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            tracing::error!(%error, file = %file.display(), "velocity counters begin anew, the file of the last ones cannot be read");
        }
    }
}

/// Whole or not at all.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = file.with_extension("bin.new");
    // One that a crash left may have other rights.
    fs::remove_file(&beside).or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    new.write_all(bytes)?;
    new.sync_all()?;
    fs::rename(&beside, file)
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // With room for a head and the digest.
    File::open(file)?.take(MOST_BYTES as u64 + 4096).read_to_end(&mut bytes)?;
    Ok(bytes)
}
