//! Used nonces on disk, so that a restart is no second chance for a request that was accepted before it.
//!
//! Two files take turns: while one is written, the other holds what came before, and it is emptied when all of that is
//! too old to matter. A record is written before its request is let through and reaches the operating system at once:
//! the process may end in any way, only a machine that loses power may lose the last moments. A file that cannot be
//! written is told and removed, and the next start then accepts nothing signed before it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::nonces::{LIFE, Nonce};

const NAMES: [&str; 2] = ["nonces.0", "nonces.1"];
/// Eight bytes of time, sixteen of nonce.
const RECORD: usize = 24;
/// More than a file of full nonce stores, also after some restarts.
const MOST_BYTES: u64 = 128 << 20;

/// The two files, opened when there is something to write.
pub(super) struct Journal {
    folder: PathBuf,
    writing: Option<Writing>,
    /// Which file comes next.
    next: usize,
    /// How far each file was read.
    read_to: [u64; 2],
    /// True once it could not be written: it is not tried again, so that what is there stays whole or away.
    broken: bool,
}

struct Writing {
    file: File,
    /// When its first record was made, milliseconds since 1970.
    since_ms: u64,
}

impl Journal {
    /// The files of this folder, which need not exist yet.
    pub(super) fn open(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), writing: None, next: 0, read_to: [0; 2], broken: false }
    }

    /// What is still of use, with its age, the oldest first; `None` if there is no file.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn read(&mut self, now_ms: u64) -> io::Result<Option<Vec<(Duration, Nonce)>>> {
        let mut found: Option<Vec<(Duration, Nonce)>> = None;
        for (path, place) in self.paths().into_iter().zip(0..) {
            let mut bytes = Vec::new();
            match File::open(&path) {
                Ok(file) => drop(file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            }
            if u64::try_from(bytes.len()).is_ok_and(|length| length > MOST_BYTES) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than nonces can be"));
            }
            self.read_up_to(place, bytes.len());
            let records = bytes.as_chunks::<RECORD>().0.iter().map(|record| read_record(record, now_ms));
            found.get_or_insert_default().extend(records.filter(|(age, _)| *age < LIFE));
        }
        if let Some(found) = &mut found {
            found.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
        }
        Ok(found)
    }

    /// What was added to the files since they were read last, by this process and by another one.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn added(&mut self) -> io::Result<Vec<Nonce>> {
        let mut added = Vec::new();
        for (path, place) in self.paths().into_iter().zip(0..) {
            let mut file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let known = self.read_to.get(place).copied().unwrap_or_default();
            // A shorter one was emptied, and all in it is new.
            let from = if file.metadata()?.len() < known { 0 } else { known };
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(MOST_BYTES).read_to_end(&mut bytes)?;
            self.read_up_to(place, usize::try_from(from).unwrap_or_default() + bytes.len());
            added.extend(bytes.as_chunks::<RECORD>().0.iter().map(|record| read_record(record, 0).1));
        }
        Ok(added)
    }

    /// Whole records only: the rest of one is read again with its end.
    fn read_up_to(&mut self, place: usize, length: usize) {
        if let Some(known) = self.read_to.get_mut(place) {
            *known = u64::try_from(length - length % RECORD).unwrap_or_default();
        }
    }

    /// False once it could not be written.
    pub(super) fn is_sound(&self) -> bool {
        !self.broken
    }

    /// Adds one; whoever asked goes on whatever becomes of it.
    pub(super) fn write(&mut self, nonce: Nonce, now_ms: u64) {
        if self.broken {
            return;
        }
        if let Err(error) = self.try_write(nonce, now_ms) {
            self.broken = true;
            self.writing = None;
            let gone = self.paths().iter().all(|path| fs::remove_file(path).is_ok() || !path.exists());
            let folder = self.folder.display();
            tracing::error!(%error, %folder, gone, "used nonces cannot be written: the next start refuses what was signed before it");
        }
    }

    fn try_write(&mut self, nonce: Nonce, now_ms: u64) -> io::Result<()> {
        let life_ms = u64::try_from(LIFE.as_millis()).unwrap_or(u64::MAX);
        // A clock that was set back must not empty a file early.
        let full = self.writing.as_ref().is_none_or(|writing| now_ms.saturating_sub(writing.since_ms) >= life_ms);
        if full {
            self.writing = Some(self.turn(now_ms)?);
        }
        let mut record = [0; RECORD];
        let bytes = now_ms.to_le_bytes().into_iter().chain(nonce.0);
        record.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        self.writing.as_mut().map_or(Ok(()), |writing| writing.file.write_all(&record))
    }

    /// Empties the file whose records are the older ones and goes on with it.
    fn turn(&mut self, now_ms: u64) -> io::Result<Writing> {
        fs::create_dir_all(&self.folder)?;
        let first = self.writing.is_none();
        let path = if first { self.older() } else { self.paths().swap_remove(self.next) };
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o600);
        // After a start the older file may still hold what matters: it is added to, and emptied at its next turn.
        let file = options.open(&path)?;
        if !first {
            file.set_len(0)?;
        }
        self.next = usize::from(path.ends_with(NAMES[0]));
        Ok(Writing { file, since_ms: now_ms })
    }

    fn older(&self) -> PathBuf {
        let written = |path: &PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        self.paths().into_iter().min_by_key(written).unwrap_or_else(|| self.folder.join("nonces.0"))
    }

    fn paths(&self) -> Vec<PathBuf> {
        NAMES.iter().map(|name| self.folder.join(name)).collect()
    }
}

fn read_record(record: &[u8; RECORD], now_ms: u64) -> (Duration, Nonce) {
    let (mut time, mut nonce) = ([0; 8], [0; 16]);
    time.iter_mut().chain(&mut nonce).zip(record).for_each(|(to, from)| *to = *from);
    (Duration::from_millis(now_ms.saturating_sub(u64::from_le_bytes(time))), Nonce(nonce))
}
