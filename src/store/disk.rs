//! How full the disk of the record is, for those who watch it: a full one is the fault that stops payments.
//!
//! It only looks. What is done when a write fails is the writer's, and nothing is refused because little is left.

use std::path::Path;

/// A file system, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disk {
    /// What cannot be written to any more, what is reserved for others included.
    pub used: u64,
    /// All of it.
    pub limit: u64,
}

/// The file system that `folder` is on; `None` where it does not tell. It asks the kernel, not the disk.
pub(super) fn disk(folder: &Path) -> Option<Disk> {
    let told = rustix::fs::statvfs(folder).ok()?;
    let limit = told.f_blocks.saturating_mul(told.f_frsize);
    Some(Disk { used: limit.saturating_sub(told.f_bavail.saturating_mul(told.f_frsize)), limit }).filter(|_| limit > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_never_fuller_than_full() {
        let told = disk(&std::env::temp_dir()).unwrap();
        assert!(told.used <= told.limit);
        assert_eq!(disk(Path::new("/no/such/folder")), None);
    }
}
