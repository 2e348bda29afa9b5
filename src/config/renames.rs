//! Keys that have another name than in an earlier version: one row each, for the version that renames and two minor
//! versions after it.
//!
//! A file with a former name works as before. `weighbridge check` tells it (W001) and `weighbridge fmt --upgrade` rewrites
//! it. Nothing else knows former names: the schema, the documentation and every other message have the new one only.

/// One key that was renamed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rename {
    /// The table it stands in, as the schema names places: `routes/caller/[]/limits`, `routes/model/*`.
    pub(super) section: &'static str,
    pub(super) old: &'static str,
    pub(super) new: &'static str,
}

/// None so far: no key that a release or a commit of the main branch has read was ever renamed.
const RENAMED: &[Rename] = &[];

/// All former names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Renames(pub(super) &'static [Rename]);

impl Default for Renames {
    fn default() -> Self {
        Self(RENAMED)
    }
}

impl Renames {
    /// What a former name is called now.
    pub(super) fn new_name(self, section: &str, old: &str) -> Option<&'static str> {
        self.0.iter().find(|rename| rename.section == section && rename.old == old).map(|rename| rename.new)
    }

    /// What a key was called.
    pub(super) fn old_names(self, section: &str, new: &str) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter(move |rename| rename.section == section && rename.new == new).map(|rename| rename.old)
    }
}
