//! The file's name, what can go wrong with it, and how a name is made durable. It opens nothing.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::chain::BadCheckpoint;
use super::keys::{KEY_FILE, KeyError};

/// The name of the file.
pub const FILE: &str = "decisions.db";

/// Why there is no record to be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder or a file in it.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// SQLite says no.
    #[error("the record {FILE} cannot be used")]
    Sqlite(#[from] rusqlite::Error),
    /// No keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// There is a record and its key file is gone.
    #[error(
        "{FILE} holds records and {KEY_FILE} is missing; put it back, without it no record can be read or continued"
    )]
    KeyGone,
    /// The key file is another record's.
    #[error("{KEY_FILE} is not the key of this {FILE}; one of the two was replaced")]
    OtherKey,
    /// A later release wrote the file.
    #[error("{FILE} has schema {found} and this release knows {known}; use a newer release")]
    TooNew {
        /// The file's.
        found: i64,
        /// Ours.
        known: usize,
    },
    /// SQLite keeps no write-ahead log for it.
    #[error("{FILE} cannot have a write-ahead log; the data folder must be on a local disk that is well")]
    NoLog,
    /// There is no record.
    #[error("there is no {FILE} in {}", .0.display())]
    None(PathBuf),
    /// A row that this program cannot have written.
    #[error("record {0} is not one of ours; run weighbridge audit verify")]
    Row(i64),
    /// Checkpoints that cannot be believed.
    #[error("the checkpoints cannot be believed")]
    Checkpoint(#[from] BadCheckpoint),
    /// Made to happen by a test.
    #[error("a fault a test asked for")]
    Asked,
}

impl StoreError {
    /// A file that could not be used.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Has the disk keep the name of a file or folder that was just made.
///
/// # Errors
/// [`StoreError::Io`].
pub(super) fn sync_name(path: &Path) -> Result<(), StoreError> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(above).and_then(|above| above.sync_all()).map_err(StoreError::io(above))
}
