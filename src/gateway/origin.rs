//! Where a configuration comes from: files, and what the program adds to them.
//!
//! Reading and compiling are apart, because a start may have to compile what was read on another day.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::compile::compile;
use crate::config::error::ConfigError;
use crate::config::load;
use crate::config::options::CompileOptions;
use crate::config::remarks::remarks;
use crate::config::source::{SourceFile, Sources};
use crate::config::table::{BaseUrl, Protocol, RoutingTable};
use crate::config::{SecretPolicy, Secrets};
use crate::domain::clock;
use crate::domain::id::ProviderId;
use crate::domain::secret::{Secret, SecretSource};
use crate::routing::rehearsal::rehearsed;

/// Mistakes told in the log; the status page and `weighbridge check` have all.
pub(super) const MOST_TOLD: usize = 20;

/// Replaces provider addresses; how the sandbox puts its simulators in.
pub type Rewiring = Arc<dyn Fn(&ProviderId, Protocol) -> BaseUrl + Send + Sync>;

/// Where configuration comes from.
#[derive(Clone)]
pub struct Origin {
    /// `routes.toml`.
    pub routes: PathBuf,
    /// What takes the place of `routes.toml` for as long as there is none.
    pub without_routes: Option<SourceFile>,
    /// The folder of provider files; what is not in it comes from the binary.
    pub providers: PathBuf,
    /// Texts added to the files.
    pub overlays: Overlays,
    /// Where secrets come from.
    pub secrets: Arc<dyn SecretSource>,
    /// What a missing secret means.
    pub policy: SecretPolicy,
    /// Other addresses than the files say.
    pub rewiring: Option<Rewiring>,
}

/// Texts added to the files by the program itself.
#[derive(Clone, Default)]
pub struct Overlays {
    /// As if they stood in `routes.toml`.
    pub routes: Vec<SourceFile>,
    /// As if they lay in the folder.
    pub providers: Vec<SourceFile>,
}

impl Origin {
    /// Reads and compiles everything, and runs its tests.
    ///
    /// # Errors
    /// Every mistake; once there is none, every test that fails.
    pub fn load(&self) -> Result<RoutingTable, Vec<ConfigError>> {
        self.read().and_then(|files| self.compile(files))
    }

    /// As [`Origin::load`], with the text the table was made of.
    ///
    /// # Errors
    /// Every mistake.
    pub fn load_with_sources(&self) -> Result<(RoutingTable, Sources), Vec<ConfigError>> {
        let secrets = Secrets { source: &*self.secrets, policy: self.policy };
        let (table, sources) = self.read().and_then(|files| self.compiled(files, secrets))?;
        Ok((rehearsed(table)?, sources))
    }

    /// Reads what the operator wrote.
    ///
    /// # Errors
    /// One for each file that cannot be read.
    pub fn read(&self) -> Result<Sources, Vec<ConfigError>> {
        // One that cannot be seen is none that is not there.
        let stands_in = self.without_routes.is_some() && matches!(self.routes.try_exists(), Ok(false));
        load::read_files((!stands_in).then_some(&*self.routes), Some(&self.providers))
    }

    /// Compiles what was read, now or at another time, and runs its tests.
    ///
    /// # Errors
    /// As [`Origin::load`].
    pub fn compile(&self, files: Sources) -> Result<RoutingTable, Vec<ConfigError>> {
        let secrets = Secrets { source: &*self.secrets, policy: self.policy };
        self.compiled(files, secrets).and_then(|(table, _)| rehearsed(table))
    }

    /// Reads and compiles everything. For who wants to know why a test fails.
    ///
    /// # Errors
    /// Every mistake.
    pub fn untried(&self) -> Result<RoutingTable, Vec<ConfigError>> {
        let secrets = Secrets { source: &*self.secrets, policy: self.policy };
        self.read().and_then(|files| self.compiled(files, secrets)).map(|(table, _)| table)
    }

    /// Compiles somebody's texts as if they were the files, and runs their tests. No secret is asked for, so that whoever
    /// brings a text learns nothing of one.
    ///
    /// # Errors
    /// As [`Origin::load`].
    pub fn would(&self, files: Sources) -> Result<RoutingTable, Vec<ConfigError>> {
        let secrets = Secrets { source: &NoSecrets, policy: SecretPolicy::AllowMissing };
        self.compiled(files, secrets).and_then(|(table, _)| rehearsed(table))
    }

    fn compiled(&self, files: Sources, secrets: Secrets<'_>) -> Result<(RoutingTable, Sources), Vec<ConfigError>> {
        let stand_in = self.without_routes.clone().filter(|_| files.routes.is_empty());
        let texts = stand_in.into_iter().chain(self.overlays.routes.iter().cloned());
        let mut sources = load::complete(files, texts.collect());
        sources.providers.extend(self.overlays.providers.iter().cloned());
        let rewire = self.rewiring.as_ref().map(|rewiring| &**rewiring as _);
        compile(&sources, &CompileOptions { secrets, rewire }).map(|table| (table, sources))
    }

    /// The hash of all that [`Origin::load`] reads.
    pub fn hash(&self) -> [u8; 32] {
        load::content_hash_with(&self.routes, Some(&self.providers), &|path| {
            self.secrets.pem(path).map(|file| file.content)
        })
    }

    pub(super) fn folders(&self) -> [&Path; 2] {
        let parent = self.routes.parent().filter(|parent| !parent.as_os_str().is_empty());
        [parent.unwrap_or(Path::new(".")), &self.providers]
    }
}

/// For texts of somebody else's.
struct NoSecrets;

impl SecretSource for NoSecrets {
    fn env(&self, _: &str) -> Option<Secret> {
        None
    }

    fn file(&self, _: &str) -> Option<Secret> {
        None
    }
}

/// Says what may mean something else than its writer thinks.
pub fn remark(table: &RoutingTable) {
    let now = i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX);
    let shown =
        table.providers().values().filter_map(|provider| Some((provider, provider.tls.as_ref()?.client.as_ref()?)));
    for (provider, _) in shown.filter(|(_, client)| client.validity().not_after <= now).take(MOST_TOLD) {
        tracing::warn!(provider = %provider.id, "the client certificate we show to this provider has expired");
    }
    for remark in remarks(table).iter().take(MOST_TOLD) {
        tracing::warn!("worth a look: {remark}");
    }
}

/// One line a mistake: logs are searched and cut by lines. The status page and `weighbridge check` have the carets.
pub(super) fn tell(errors: &[ConfigError], what_then: &'static str) {
    let mistakes = errors.len();
    tracing::error!(mistakes, "{what_then}");
    for error in errors.iter().take(MOST_TOLD) {
        tracing::error!("{error}");
    }
    if mistakes > MOST_TOLD {
        tracing::error!("and {} more, see weighbridge check", mistakes - MOST_TOLD);
    }
}
