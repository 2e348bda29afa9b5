//! What was counted about payment attempts and found out about reuse, on disk between a planned end and the next start.
//!
//! A file each in the data folder, written when a process ends in good order or hands over, and removed by the next one that
//! reads it: it holds hashes with their pepper, readable for nobody else, and no process counts on from it twice. A crash
//! leaves none, and all counters begin anew. It deliberately is no copy that is kept while the process runs: that would be
//! as large, every few seconds, and the record is what lasts.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::domain::clock;
use crate::flight::velocity::{Carried, MOST_BYTES, Velocity};
use crate::gateway::snapshot::Shared;
use crate::layer::decision_cache::DecisionCache;

const NAME: &str = "velocity.bin";
const STANDINGS: &str = "reuse.json";

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

/// Keeps for the next process how well reused decisions agreed. What cannot be kept is told and stops nothing. Blocks.
pub fn keep_standings(memory: &DecisionCache, folder: &Path) {
    let Some(text) = memory.carried() else { return };
    let file = folder.join(STANDINGS);
    if let Err(error) = write(&file, text.as_bytes()) {
        let file = file.display();
        tracing::error!(%error, %file, "how well reused decisions agreed cannot be kept over a restart, and is forgotten");
    }
}

/// Goes on with what the process before kept. Call it before anybody is counted or asked. Blocks.
pub fn go_on(shared: &Shared, folder: &Path) {
    let Shared { velocity, decisions: memory, metrics, .. } = shared;
    // With room for a head and the digest.
    if let Some((file, bytes)) = taken(&folder.join(NAME), MOST_BYTES as u64 + 4096) {
        if let Some(counters) = velocity.go_on(&bytes, clock::unix_ms()) {
            tracing::info!(counters, "velocity counters go on from the process before");
        } else {
            tracing::error!(%file, "velocity counters begin anew, the file of the last ones is broken");
        }
    }
    if let Some((file, bytes)) = taken(&folder.join(STANDINGS), DecisionCache::MOST_CARRIED) {
        if let Some((merchants, off)) = memory.go_on(&bytes) {
            metrics.reuse.switched_off(off);
            tracing::info!(merchants, off, "how well reused decisions agree is known from the process before");
        } else {
            tracing::error!(%file, "how well reused decisions agreed is forgotten, the file of it is broken");
        }
    }
}

/// What a file holds, which is gone afterwards; `None` if there is none, or it cannot be gone on from, which is told.
fn taken(file: &Path, most: u64) -> Option<(String, Vec<u8>)> {
    let (read, name) = (read(file, most), file.display().to_string());
    // First of all: nobody may go on from it a second time.
    if let Err(error) = fs::remove_file(file)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::error!(%error, file = name, "what the last process kept is not gone on from, its file cannot be removed");
        return None;
    }
    match read {
        Ok(bytes) => Some((name, bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => {
            tracing::error!(%error, file = name, "what the last process kept is lost, its file cannot be read");
            None
        }
    }
}

/// Whole or not at all.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = file.with_extension("new");
    // One that a crash left may have other rights.
    fs::remove_file(&beside).or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    new.write_all(bytes)?;
    new.sync_all()?;
    fs::rename(&beside, file)
}

fn read(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
