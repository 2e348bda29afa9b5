//! What the process uses of what it may: memory and file descriptors, as Linux tells it.
//!
//! Read from a thread of its own, about once a second; nothing here is on a request's path. What cannot be read is absent
//! and stops nothing: elsewhere there is no `/proc`. A control group's memory is counted without what the kernel would
//! drop before it kills (inactive file pages), and a group's limit is the least on the way up to the root.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Control groups are nested no deeper than this.
const MOST_LEVELS: usize = 32;
/// Version 1 says "no limit" with a number near the largest.
const NO_LIMIT: u64 = 1 << 60;

/// Some of so much.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Used {
    /// In use.
    pub used: u64,
    /// Most there may be.
    pub limit: u64,
}

impl Used {
    /// How much of it, in thousandths.
    pub fn thousandths(self) -> u32 {
        u32::try_from(self.used.saturating_mul(1000) / self.limit.max(1)).unwrap_or(u32::MAX)
    }
}

/// One look.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Reading {
    /// Bytes of memory.
    pub memory: Option<Used>,
    /// File descriptors.
    pub descriptors: Option<Used>,
}

/// Where memory is read.
pub struct Meter {
    group: Option<Group>,
    machine: Option<u64>,
}

/// The control group that has the least limit.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Group {
    limit: PathBuf,
    usage: PathBuf,
    stat: PathBuf,
    /// What its `stat` calls the pages that can be dropped.
    droppable: &'static str,
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Meter {
    /// Finds the process's control group, if it has one with a limit.
    pub fn new() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| kilobytes(&text, "MemTotal:"));
        Self { group: group(&own, Path::new("/sys/fs/cgroup")), machine }
    }

    /// Looks; `memory` is a limit of our own in bytes.
    pub fn read(&self, memory: Option<u64>) -> Reading {
        Reading { memory: self.memory(memory), descriptors: descriptors() }
    }

    /// The limit that is nearest, with what counts towards it.
    fn memory(&self, ours: Option<u64>) -> Option<Used> {
        let resident = fs::read_to_string("/proc/self/status").ok().and_then(|text| kilobytes(&text, "VmRSS:"))?;
        let group = self.group.as_ref().and_then(Group::used);
        let group = group.map(|group| Used { used: group.used.max(resident), ..group });
        let of = |limit: Option<u64>| limit.map(|limit| Used { used: resident, limit });
        [of(ours), group, of(self.machine)].into_iter().flatten().max_by_key(|used| used.thousandths())
    }
}

impl Group {
    fn used(&self) -> Option<Used> {
        let limit = number(&self.limit)?;
        let stat = fs::read_to_string(&self.stat).unwrap_or_default();
        let droppable = stat.lines().find_map(|line| line.strip_prefix(self.droppable)?.trim().parse::<u64>().ok());
        Some(Used { used: number(&self.usage)?.saturating_sub(droppable.unwrap_or(0)), limit })
    }
}

/// The group among the process's own and those above it that has the least limit; `own` is `/proc/self/cgroup`.
fn group(own: &str, mount: &Path) -> Option<Group> {
    let found = own.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let second = controllers.is_empty();
        let first = controllers.split(',').any(|controller| controller == "memory");
        let root = if first { mount.join("memory") } else { mount.to_path_buf() };
        (first || second).then(|| (root, path.trim_start_matches('/').to_owned(), second))
    });
    let groups = found.flat_map(|(root, path, second)| {
        let own = Path::new(&path).ancestors().map(|path| root.join(path)).take(MOST_LEVELS).collect::<Vec<_>>();
        own.into_iter().map(move |folder| Group::at(&folder, second))
    });
    let limited = groups.filter_map(|group| Some((number(&group.limit).filter(|limit| *limit < NO_LIMIT)?, group)));
    limited.min_by_key(|(limit, _)| *limit).map(|(_, group)| group)
}

impl Group {
    fn at(folder: &Path, second: bool) -> Self {
        let [limit, usage, droppable] = if second {
            ["memory.max", "memory.current", "inactive_file "]
        } else {
            ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "]
        };
        Self { limit: folder.join(limit), usage: folder.join(usage), stat: folder.join("memory.stat"), droppable }
    }
}

/// A file that holds one number; `max` is none.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// A line of `/proc` in kilobytes, as bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Newer kernels tell how many there are without listing them; listing takes one, so that if it fails there is none left.
fn descriptors() -> Option<Used> {
    let folder = Path::new("/proc/self/fd");
    let told = fs::metadata(folder).ok()?.len();
    let limit = getrlimit(Resource::Nofile).current?;
    let used = if told > 0 { told } else { fs::read_dir(folder).map_or(limit, |files| files.count() as u64) };
    Some(Used { used, limit })
}

/// Raises the limit of open files as far as the system allows without asking anybody; what it is then, `None` if there is
/// none.
pub fn raise_descriptors() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum || setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err() {
        return current;
    }
    maximum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(name), text).unwrap();
    }

    #[test]
    fn row_32_the_least_limit_on_the_way_to_the_root_is_the_one_that_kills() {
        let mount = tempfile::TempDir::new().unwrap();
        let pod = mount.path().join("pod");
        write(mount.path(), "memory.max", "max\n");
        write(&pod, "memory.max", "1000\n");
        write(&pod, "memory.current", "700\n");
        write(&pod, "memory.stat", "anon 300\ninactive_file 250\nactive_file 1\n");
        write(&pod.join("box"), "memory.max", "2000\n");
        let found = group("0::/pod/box\n", mount.path()).unwrap();
        assert_eq!(found.used(), Some(Used { used: 450, limit: 1000 }));
        assert_eq!(found.used().unwrap().thousandths(), 450);
    }

    #[test]
    fn row_32_a_container_that_sees_its_own_group_as_the_root_finds_its_limit_and_without_one_has_none() {
        let mount = tempfile::TempDir::new().unwrap();
        write(mount.path(), "memory.max", "2147483648\n");
        write(mount.path(), "memory.current", "1610612736\n");
        write(mount.path(), "memory.stat", "anon 1\nactive_file 7\ninactive_file 536870912\n");
        let found = group("0::/\n", mount.path()).unwrap();
        assert_eq!(found.used(), Some(Used { used: 1 << 30, limit: 2 << 30 }));
        // As systemd changes it while the process runs.
        write(mount.path(), "memory.max", "1073741824\n");
        assert_eq!(found.used().unwrap().thousandths(), 1_000);
        write(mount.path(), "memory.max", "max\n");
        assert_eq!((found.used(), group("0::/\n", mount.path())), (None, None));
    }

    #[test]
    fn row_32_the_older_kind_of_group_is_understood_too() {
        let mount = tempfile::TempDir::new().unwrap();
        let own = mount.path().join("memory/a");
        write(&mount.path().join("memory"), "memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(group("4:memory:/a\n0::/\n", mount.path()), None, "nobody limits it");
        write(&own, "memory.limit_in_bytes", "4096\n");
        write(&own, "memory.usage_in_bytes", "4000\n");
        let found = group("9:name=systemd:/\n4:memory:/a\n0::/\n", mount.path()).unwrap();
        assert_eq!(found.used(), Some(Used { used: 4000, limit: 4096 }));
    }

    #[test]
    fn this_process_uses_some_of_both() {
        let reading = Meter::new().read(Some(1 << 40));
        let (memory, descriptors) = (reading.memory.unwrap(), reading.descriptors.unwrap());
        assert!(memory.used > 1 << 20 && memory.used < memory.limit, "{memory:?}");
        assert!(descriptors.used > 2 && descriptors.used < descriptors.limit, "{descriptors:?}");
    }

    #[test]
    fn row_31_the_limit_of_open_files_is_raised_as_far_as_it_may_be() {
        let raised = raise_descriptors();
        assert_eq!(raised, getrlimit(Resource::Nofile).maximum);
        assert_eq!(raised, raise_descriptors());
    }
}
