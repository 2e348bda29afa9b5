//! Where the record is, and how commands on it end. It opens nothing.

use std::path::PathBuf;

use clap::Args;

use super::serve::DATA;

/// Where the record is.
#[derive(Args)]
pub(super) struct Place {
    /// The data folder of the proxy
    #[arg(long, env = "WEIGHBRIDGE_DATA_DIR", default_value = DATA, value_name = "DIR")]
    pub(super) data_dir: PathBuf,
}

/// What to say, or what to complain of.
pub(super) type Done = Result<Option<String>, String>;
