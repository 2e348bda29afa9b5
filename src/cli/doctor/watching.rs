//! Whether a change of the configuration is noticed at once: a real swap in a folder of its own, watched as `serve`
//! watches. Network file systems and some container mounts tell of nothing.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use tokio::time::Instant;

use super::report::Finding;
use crate::config::load::content_hash;
use crate::gateway::reload::watching;

/// Events come within milliseconds or never.
const PATIENCE: Duration = Duration::from_secs(2);
const CHECK: &str = "file watching";

/// Swaps a file beside the routes file, or in the system's temporary folder where nothing may be written there.
pub(super) fn probe(routes: &Path) -> Finding {
    let beside = routes.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = std::env::temp_dir();
    let folder = Folder::new(beside).map(|folder| (folder, "")).or_else(|_| {
        let elsewhere = ", tried in the temporary folder because the configuration's is read-only";
        Folder::new(&temporary).map(|folder| (folder, elsewhere))
    });
    let told = folder.and_then(|(folder, place)| Ok((swap(&folder.0)?, place)));
    match told {
        Ok((Some(took), place)) => {
            let micros = took.as_micros();
            Finding::new(
                CHECK,
                format!("a swapped file was noticed after {micros} µs{place}; it is loaded 200 ms later"),
            )
            .ok()
        }
        Ok((None, place)) => Finding::new(CHECK, format!("a swapped file was not noticed{place}"))
            .warn("changes are seen by polling, up to 2 s later; POST /-/reload or SIGHUP loads at once"),
        Err(error) => Finding::new(CHECK, format!("no file can be swapped: {error}"))
            .warn("make a temporary folder writable to have this checked"),
    }
}

/// How long it took to be noticed, `None` if it was not.
fn swap(folder: &Path) -> io::Result<Option<Duration>> {
    let (file, fresh) = (folder.join("routes.toml"), folder.join("routes.toml.new"));
    fs::write(&file, "version = 1\n")?;
    fs::write(&fresh, "version = 1\n# swapped\n")?;
    let before = content_hash(&file, None);
    let (tell, told) = mpsc::sync_channel(1);
    let Some(watcher) = watching(&[folder.to_owned()], move || {
        let _ = tell.try_send(());
    }) else {
        return Ok(None);
    };
    let started = Instant::now();
    fs::rename(&fresh, &file)?;
    let mut noticed = None;
    while noticed.is_none() {
        let left = PATIENCE.saturating_sub(started.elapsed());
        if told.recv_timeout(left).is_err() {
            break;
        }
        // As the reloading thread: an event is a hint, the hash is the truth.
        noticed = (content_hash(&file, None) != before).then(|| started.elapsed());
    }
    drop(watcher);
    Ok(noticed)
}

/// A folder that is gone when the probe is.
struct Folder(PathBuf);

impl Folder {
    fn new(within: &Path) -> io::Result<Self> {
        let folder = within.join(format!(".weighbridge-doctor-watch-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&folder).map(|()| Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;

    #[test]
    fn a_swap_is_noticed_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let told = probe(&folder.path().join("routes.toml"));
        assert_eq!(told.verdict, Verdict::Ok, "{told:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
