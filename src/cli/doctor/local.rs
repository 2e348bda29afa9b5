//! What this machine must give: descriptors, a folder that is durable, a clock, files that can be watched.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::report::Finding;
use super::{DoctorArgs, used, watching};
use crate::config::table::RoutingTable;
use crate::domain::clock;

/// Descriptors for files, the record, timers and the admin listener's connections.
const OWN_DESCRIPTORS: usize = 128;
/// A decision waits for this: more is a good part of its deadline.
const SLOW_SYNC: Duration = Duration::from_millis(50);
const SYNCS: u32 = 5;
/// This program is younger than 2026-01-01 and its clock arithmetic ends long after 2100.
const OLDEST_CLOCK: u64 = 1_767_225_600;
const NEWEST_CLOCK: u64 = 4_102_444_800;

/// Most connections that the configuration allows at the same time, and what else is open.
pub(super) fn descriptors_needed(table: &RoutingTable) -> usize {
    let upstream: usize = used(table).values().map(|provider| usize::try_from(provider.in_flight).unwrap_or(0)).sum();
    table.limits().connections + upstream + OWN_DESCRIPTORS
}

/// Everything that can be seen without the network. Blocks for a few seconds at most.
pub(super) fn probe(args: &DoctorArgs, needed: Option<usize>) -> Vec<Finding> {
    let mut findings = vec![clock_sanity(clock::unix_seconds())];
    findings.extend(needed.and_then(descriptors));
    findings.push(data_folder(&args.data_dir));
    findings.push(watching::probe(&args.paths.routes));
    findings
}

fn clock_sanity(now: u64) -> Finding {
    let finding = Finding::new("clock", clock::rfc3339(now.saturating_mul(1000)));
    if (OLDEST_CLOCK..NEWEST_CLOCK).contains(&now) {
        return finding.ok();
    }
    finding.fail("set this machine's clock: signatures and certificates go by it")
}

/// `None` where the system does not say.
fn descriptors(needed: usize) -> Option<Finding> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    Some(judged_descriptors(soft.parse().unwrap_or(usize::MAX), needed))
}

fn judged_descriptors(limit: usize, needed: usize) -> Finding {
    let finding = Finding::new("descriptors", format!("{limit} may be open, the configuration can use {needed}"));
    if limit >= needed {
        return finding.ok();
    }
    finding.warn(&format!("start with ulimit -n {needed} (systemd: LimitNOFILE={needed}), or lower limits.connections"))
}

/// Writes and syncs where the proxy would; a folder that is not there yet is judged by the one it would be made in.
fn data_folder(folder: &Path) -> Finding {
    let there = folder.ancestors().map(or_here).find(|folder| folder.is_dir()).unwrap_or_else(|| PathBuf::from("."));
    let name = folder.display();
    match sync_time(&there) {
        Ok(took) => {
            let yet = if there == or_here(folder) { "" } else { " is not there yet, and can be made;" };
            let micros = took.as_micros();
            let finding =
                Finding::new("data folder", format!("{name}{yet} writable, a durable write takes {micros} µs"));
            if took <= SLOW_SYNC {
                return finding.ok();
            }
            finding.warn("use a faster disk: each decision waits for one such write")
        }
        Err(error) => Finding::new("data folder", format!("{name} cannot be written: {error}"))
            .fail("make it writable for this user, or choose another with --data-dir"),
    }
}

fn or_here(path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() }
}

/// The middle one of a few.
fn sync_time(folder: &Path) -> io::Result<Duration> {
    let scratch = Scratch(folder.join(format!(".weighbridge-doctor-{}", std::process::id())));
    let mut file = File::options().write(true).create_new(true).open(&scratch.0)?;
    let mut took = Vec::new();
    for _ in 0..SYNCS {
        let started = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        took.push(started.elapsed());
    }
    took.sort();
    Ok(took.get(took.len() / 2).copied().unwrap_or_default())
}

/// A file that is gone when the probe is.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;

    #[test]
    fn a_clock_that_cannot_be_right_is_a_failure() {
        assert_eq!(clock_sanity(0).verdict, Verdict::Fail);
        assert_eq!(clock_sanity(u64::MAX).verdict, Verdict::Fail);
        assert_eq!(clock_sanity(clock::unix_seconds()).verdict, Verdict::Ok);
    }

    #[test]
    fn too_few_descriptors_are_told_with_the_number_that_would_do() {
        let told = judged_descriptors(1024, 4000);
        assert_eq!(told.verdict, Verdict::Warn);
        assert!(told.advice.unwrap().contains("ulimit -n 4000"));
        assert_eq!(judged_descriptors(4000, 4000).verdict, Verdict::Ok);
    }

    #[test]
    fn a_folder_that_can_be_made_is_fine_and_nothing_is_left_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let told = data_folder(&folder.path().join("a/b"));
        assert_ne!(told.verdict, Verdict::Fail, "{told:?}");
        assert!(told.said.contains("not there yet"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        fs::write(folder.path().join("file"), "").unwrap();
        assert_eq!(data_folder(Path::new("/proc/nowhere")).verdict, Verdict::Fail);
    }
}
