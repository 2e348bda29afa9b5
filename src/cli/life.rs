//! How a process is started, watched and followed: flags, sockets that were open before it, and what a supervisor is told.
//!
//! systemd's two protocols are simple enough to speak: `LISTEN_FDS` for sockets, datagrams to `NOTIFY_SOCKET` for states
//! (sd_listen_fds(3), sd_notify(3)). Where nobody asks for them nothing is said.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use listenfd::ListenFd;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::disable_transparent_huge_pages;
use rustix::time::{ClockId, clock_gettime};

use crate::app::{Inherited, Life};
use crate::gateway::reload::{Fate, Moment};

/// Descriptors beside those of connections: files, the record, workers.
const OWN_DESCRIPTORS: u64 = 256;

/// Descriptors there is a place for from the start; their table takes 130 KiB in the kernel.
const PLACES: u64 = 16_384;

/// Flags of `serve` alone.
#[derive(Args, Clone)]
pub struct LifeArgs {
    /// The Unix socket over which a process of the same command takes the listening sockets over from this one, without
    /// losing a connection; if a process is there already, this one takes over from it
    #[arg(long, env = "WEIGHBRIDGE_TAKEOVER", value_name = "SOCKET")]
    takeover: Option<PathBuf>,
    /// Refuse to start with a broken configuration, instead of serving the last good one kept in the data folder
    #[arg(long, env = "WEIGHBRIDGE_NO_LAST_GOOD")]
    no_last_good: bool,
}

impl LifeArgs {
    /// What the application needs of it.
    ///
    /// # Errors
    /// The sockets that were open before the process are not listening ones, or more than there is a use for.
    pub fn life(&self, supervisor: &Arc<Supervisor>) -> io::Result<Life> {
        let told = Arc::clone(supervisor);
        Ok(Life {
            inherited: inherited()?,
            takeover: self.takeover.clone(),
            last_good: !self.no_last_good,
            watch: Some(Arc::new(move |moment| told.reload(moment))),
        })
    }
}

/// The sockets a supervisor opened: by the names `data` and `admin`, or in that order where they have other names.
fn inherited() -> io::Result<Inherited> {
    let names = variable("LISTEN_FDNAMES").map(|names| names.to_string_lossy().into_owned()).unwrap_or_default();
    let mut sockets = ListenFd::from_env();
    let names: Vec<&str> = names.split(':').collect();
    let named = names.contains(&"data") || names.contains(&"admin");
    let mut inherited = Inherited::default();
    for place in 0..sockets.len() {
        let name = names.get(place).copied().filter(|_| named);
        let to = match (name, place) {
            (Some("data"), _) | (None, 0) if inherited.data.is_none() => &mut inherited.data,
            (Some("admin"), _) | (None, 1) if inherited.admin.is_none() => &mut inherited.admin,
            _ => {
                return Err(io::Error::other(
                    "LISTEN_FDS has sockets there is no use for, give one data and one admin",
                ));
            }
        };
        *to = sockets.take_tcp_listener(place)?;
    }
    Ok(inherited)
}

/// Whoever started this process, if they want to know how it is.
#[derive(Default)]
pub struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants to hear that the process is alive.
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// The one the environment names.
    pub fn from_environment() -> Arc<Self> {
        let address = variable("NOTIFY_SOCKET").and_then(|name| {
            let name = name.as_bytes();
            name.strip_prefix(b"@").map_or_else(
                || SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)).ok(),
                |name| SocketAddr::from_abstract_name(name).ok(),
            )
        });
        let socket = UnixDatagram::unbound().ok().zip(address);
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|_| for_us).filter(|micros| *micros > 0);
        Arc::new(Self { socket, watchdog: watchdog.map(Duration::from_micros) })
    }

    /// How often to call [`Self::alive`], if at all.
    pub fn pulse(&self) -> Option<Duration> {
        self.watchdog.map(|every| every / 2)
    }

    /// It serves. A process that took over says which one it is, because the supervisor started another one.
    pub fn ready(&self, took_over: bool, on_disk: Fate) {
        let main = if took_over { format!("\nMAINPID={}", std::process::id()) } else { String::new() };
        self.say(&format!("READY=1\nSTATUS={}{main}", standing(on_disk)));
    }

    /// It is on its way out.
    pub fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=finishing what is in flight");
    }

    /// It works.
    pub fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    fn reload(&self, moment: Moment) {
        match moment {
            Moment::Begins => {
                let now = clock_gettime(ClockId::Monotonic);
                let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000);
                self.say(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
            }
            // A reload cannot fail for a supervisor, so how it went is for whoever asks it how the service is.
            Moment::Ended(on_disk) => self.say(&format!("READY=1\nSTATUS={}", standing(on_disk))),
        }
    }

    fn say(&self, state: &str) {
        if let Some((socket, address)) = &self.socket {
            // A supervisor that does not listen is no reason to stop.
            let _ = socket.send_to_addr(state.as_bytes(), address);
        }
    }
}

/// One line for people.
fn standing(on_disk: Fate) -> &'static str {
    match on_disk {
        Fate::Taken => "serving the configuration on disk",
        Fate::Refused => "serving an earlier configuration, the one on disk is refused: weighbridge check says why",
        Fate::RolledBack => {
            "serving the configuration from before, the one on disk was rolled back: /status.json says why"
        }
    }
}

/// No memory of this process goes to disk, descriptors suffice where the system allows it, and memory is taken by the page:
/// in pages of 2 MiB (the allocator asks for such) every buffer's untouched part would count, which is a third of what an
/// open stream takes.
pub fn set_limits() {
    // Where the kernel knows no such pages there are none.
    let _ = disable_transparent_huge_pages(true);
    let core = getrlimit(Resource::Core);
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), ..core });
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
    make_places();
}

/// Makes the table of descriptors large while the process has one thread. It doubles when it is full, and with more than one
/// thread the kernel then waits until no processor reads the old one: 8 to 28 ms, measured, in which whoever wanted the
/// 257th, 513th or 1,025th descriptor serves nobody.
fn make_places() {
    let places = getrlimit(Resource::Nofile).current.unwrap_or(PLACES).min(PLACES);
    if let Ok(highest) = i32::try_from(places.saturating_sub(1)) {
        // Where it is refused the table grows as it would have.
        let _ = fcntl_dupfd_cloexec(io::stderr(), highest);
    }
}

/// Says so where more connections are allowed than there are descriptors for.
pub fn check_limits(connections: usize) {
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OWN_DESCRIPTORS);
    if let Some(nofile) = getrlimit(Resource::Nofile).current.filter(|nofile| *nofile < wanted) {
        tracing::warn!(
            nofile,
            connections,
            "fewer file descriptors than connections are allowed: raise LimitNOFILE or ulimit -n, or lower limits.connections"
        );
    }
}

fn variable(name: &str) -> Option<OsString> {
    #[expect(clippy::disallowed_methods, reason = "how the process was started is told in the environment only")]
    std::env::var_os(name)
}
