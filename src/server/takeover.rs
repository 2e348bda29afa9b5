//! A restart that nobody notices: the old process hands its listening sockets to the new one, over a Unix socket.
//!
//! Passing the sockets themselves, because two listeners on one port have two queues, and the kernel resets the one that
//! closes. The order is fixed: the new process asks and gets the sockets, opens all it needs, says `ready`; the old one
//! stops accepting, puts on disk what the new one must know, says `released`; the new one accepts. Until `ready` the old
//! process serves as if nobody had asked. Whoever connects in between waits in the kernel's queue.
//!
//! It moves sockets and words. What has to be on disk at `released`, and what both do until the old one is gone, is
//! `gateway/handover.rs`. Only processes of the same user are spoken to, whatever the socket's permissions say.

use std::fs;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg, sockopt,
};
use tokio::sync::mpsc;

/// What the new process says first; the number is the form of all that follows.
const HELLO: &str = "weighbridge takeover 1";
/// The old process's answer, with the sockets.
const HERE: &str = "here";
/// The old process's answer while the one before it is not gone.
const BUSY: &str = "busy";
/// The new process has opened all it needs.
const READY: &str = "ready";
/// The old process accepts no more. Since when it remembers nonces may follow.
const RELEASED: &str = "released";
/// Longest word.
const LONGEST: usize = 64;
/// How long the other side may take to say a word that costs it nothing.
const MOMENT: Duration = Duration::from_secs(5);
/// How long the old process may take to put on disk what the new one must know.
const RELEASE: Duration = Duration::from_secs(15);
/// How long the new process may take to open all it needs.
const PREPARATION: Duration = Duration::from_secs(120);
/// How long a new process waits for the restart before its own to be over.
const PATIENCE: Duration = Duration::from_secs(60);
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// The data listener and the admin listener.
const SOCKETS: usize = 2;

/// Why sockets cannot be taken over or offered.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// The Unix socket cannot be used.
    #[error("cannot use the takeover socket {}", path.display())]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another user's process is on the other side.
    #[error("the process behind {} is another user's, run both as the same user", .0.display())]
    Stranger(PathBuf),
    /// Something else is on the other side, or another release.
    #[error("the process behind {} does not hand over as this release does, stop it first", .0.display())]
    Unknown(PathBuf),
    /// The process there is still taking over itself.
    #[error("the process behind {} still takes over from the one before it, try again when that has ended", .0.display())]
    Busy(PathBuf),
}

/// The two listening sockets of a process.
pub struct Listeners {
    /// Where applications connect.
    pub data: TcpListener,
    /// Where operators connect.
    pub admin: TcpListener,
}

impl Listeners {
    /// The same sockets once more.
    ///
    /// # Errors
    /// The operating system's, if it has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { data: self.data.try_clone()?, admin: self.admin.try_clone()? })
    }
}

/// The process that serves now, seen by the one that will.
pub struct Predecessor {
    path: PathBuf,
    stream: UnixStream,
}

impl Predecessor {
    /// Asks whoever listens at `path` for its sockets; `None` if nobody does. Blocks for as long as a restart before this one
    /// is going on, at most a minute.
    ///
    /// # Errors
    /// [`TakeoverError`]; the process there goes on serving.
    pub fn find(path: &Path) -> Result<Option<(Self, Listeners)>, TakeoverError> {
        for _ in 0..PATIENCE.as_millis() / TRY_AGAIN.as_millis() {
            match Self::ask(path) {
                Err(TakeoverError::Busy(_)) => thread::sleep(TRY_AGAIN),
                asked => return asked,
            }
        }
        Err(TakeoverError::Busy(path.to_owned()))
    }

    fn ask(path: &Path) -> Result<Option<(Self, Listeners)>, TakeoverError> {
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            // Nobody, or nobody any more.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(source) => return Err(TakeoverError::Socket { path: path.to_owned(), source }),
        };
        if !is_ours(&stream) {
            return Err(TakeoverError::Stranger(path.to_owned()));
        }
        let mut one = Self { path: path.to_owned(), stream };
        let (word, sockets) =
            one.exchange().map_err(|source| TakeoverError::Socket { path: path.to_owned(), source })?;
        match (word.as_str(), <[OwnedFd; SOCKETS]>::try_from(sockets)) {
            (HERE, Ok([data, admin])) if listens(&data) && listens(&admin) => {
                Ok(Some((one, Listeners { data: data.into(), admin: admin.into() })))
            }
            (BUSY, _) => Err(TakeoverError::Busy(path.to_owned())),
            // It ended between two words.
            ("", _) => Ok(None),
            _ => Err(TakeoverError::Unknown(path.to_owned())),
        }
    }

    fn exchange(&mut self) -> io::Result<(String, Vec<OwnedFd>)> {
        self.stream.set_read_timeout(Some(MOMENT))?;
        self.stream.set_write_timeout(Some(MOMENT))?;
        say(&mut self.stream, HELLO)?;
        let (mut text, mut space) = ([0; LONGEST], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))]);
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(&self.stream, &mut [IoSliceMut::new(&mut text)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
        let sockets = beside.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        });
        let sockets = sockets.flatten().collect();
        let word = text.get(..got.bytes).unwrap_or_default();
        Ok((String::from_utf8_lossy(word).trim_end().to_owned(), sockets))
    }

    /// Says that everything is open here, and waits until the old process accepts no more. Tells since when it remembers
    /// nonces, if it does. A process that ended or hangs has released what it had: then there is nothing more to learn.
    pub fn release(&mut self) -> Option<u64> {
        let patient = self.stream.set_read_timeout(Some(RELEASE));
        let said = patient.and_then(|()| say(&mut self.stream, READY)).and_then(|()| hear(&mut self.stream));
        let word = said.unwrap_or_else(|error| {
            tracing::warn!(%error, path = %self.path.display(), "the process before this one said nothing at its end");
            String::new()
        });
        word.strip_prefix(RELEASED)?.trim().parse().ok()
    }

    /// Blocks until the old process has ended.
    pub fn gone(mut self) {
        // A write error or a timeout cannot be told from the end, and mean the same.
        let _ = self.stream.set_read_timeout(None);
        let mut byte = [0];
        while self.stream.read(&mut byte).is_ok_and(|length| length > 0) {}
    }
}

/// The process that will serve, seen by the one that does. Its end of the line closes with this process.
pub struct Heir {
    stream: UnixStream,
}

impl Heir {
    /// Says that this process accepts no more, and since when (milliseconds since 1970) all nonces it accepted are on disk.
    ///
    /// # Errors
    /// The other process is gone.
    pub fn release(&mut self, nonces_since_ms: Option<u64>) -> io::Result<()> {
        let since = nonces_since_ms.map(|ms| format!(" {ms}")).unwrap_or_default();
        say(&mut self.stream, &format!("{RELEASED}{since}"))
    }
}

/// Offers this process's sockets to the next one. Dropped, it offers no longer: the sockets here close, and the file goes
/// unless it is another process's by now.
pub struct Succession {
    path: PathBuf,
    /// The socket file's device and number: a file that took its place is somebody else's.
    file: Option<(u64, u64)>,
    offered: Arc<Mutex<Option<Listeners>>>,
    heirs: mpsc::Receiver<Heir>,
}

impl Succession {
    /// Begins to listen at `path`, in the place of whoever did before. While `busy` is true the next process has to wait.
    ///
    /// # Errors
    /// [`TakeoverError::Socket`].
    pub fn open(path: &Path, listeners: Listeners, busy: Arc<AtomicBool>) -> Result<Self, TakeoverError> {
        let failed = |source| TakeoverError::Socket { path: path.to_owned(), source };
        let (listener, file) = bind(path).map_err(failed)?;
        let offered = Arc::new(Mutex::new(Some(listeners)));
        let (tell, heirs) = mpsc::channel(1);
        let offering = Arc::clone(&offered);
        let listen = move || {
            // Ends with the first heir, or with the process.
            for stream in listener.incoming() {
                let heir = stream.and_then(|stream| serve(stream, &offering, &busy));
                if let Some(heir) = heir.ok().flatten() {
                    let _ = tell.blocking_send(heir);
                    return;
                }
            }
        };
        thread::Builder::new().name("takeover".to_owned()).spawn(listen).map_err(failed)?;
        Ok(Self { path: path.to_owned(), file: Some(file), offered, heirs })
    }

    /// The process that is ready to serve in our place; waits for ever if none comes.
    ///
    /// # Cancel safety
    /// Yes: an heir that nobody waited for is told at the next call.
    pub async fn heir(&mut self) -> Heir {
        match self.heirs.recv().await {
            Some(heir) => heir,
            None => std::future::pending().await,
        }
    }

    /// Offers no longer: the sockets here close; the file stays for the heir to replace.
    pub fn leave_to_heir(mut self) {
        self.file = None;
    }
}

impl Drop for Succession {
    fn drop(&mut self) {
        lock(&self.offered).take();
        if self.file.is_some() && file_of(&self.path).ok() == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// One process that asks. Some heir is one that is ready.
fn serve(mut stream: UnixStream, offered: &Mutex<Option<Listeners>>, busy: &AtomicBool) -> io::Result<Option<Heir>> {
    if !is_ours(&stream) {
        tracing::warn!("another user's process asked for the listening sockets and got nothing");
        return Ok(None);
    }
    stream.set_read_timeout(Some(MOMENT))?;
    stream.set_write_timeout(Some(MOMENT))?;
    if hear(&mut stream)? != HELLO {
        return say(&mut stream, "unknown").map(|()| None);
    }
    if busy.load(Ordering::Acquire) {
        return say(&mut stream, BUSY).map(|()| None);
    }
    match &*lock(offered) {
        Some(listeners) => pass(&stream, listeners)?,
        None => return Ok(None),
    }
    stream.set_read_timeout(Some(PREPARATION))?;
    let ready = hear(&mut stream)? == READY && lock(offered).is_some();
    Ok(ready.then_some(Heir { stream }))
}

fn pass(stream: &UnixStream, listeners: &Listeners) -> io::Result<()> {
    let sockets = [listeners.data.as_fd(), listeners.admin.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    beside.push(SendAncillaryMessage::ScmRights(&sockets));
    let word = format!("{HERE}\n");
    sendmsg(stream, &[IoSlice::new(word.as_bytes())], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Binds under a name of its own and moves it into place: at no time is there nobody at `path`, or somebody that others may
/// speak to.
fn bind(path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let _ = fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
    let file = file_of(&beside)?;
    fs::rename(&beside, path)?;
    Ok((listener, file))
}

fn file_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn is_ours(stream: &UnixStream) -> bool {
    sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid == rustix::process::geteuid())
}

fn listens(socket: &OwnedFd) -> bool {
    sockopt::socket_acceptconn(socket).unwrap_or(false)
}

fn say(stream: &mut UnixStream, word: &str) -> io::Result<()> {
    stream.write_all(format!("{word}\n").as_bytes())
}

/// A word; an empty one if the other side has left.
fn hear(stream: &mut UnixStream) -> io::Result<String> {
    let (mut word, mut byte) = (Vec::new(), [0]);
    while word.len() < LONGEST && stream.read(&mut byte)? > 0 && byte != *b"\n" {
        word.extend_from_slice(&byte);
    }
    Ok(String::from_utf8_lossy(&word).into_owned())
}

fn lock(offered: &Mutex<Option<Listeners>>) -> MutexGuard<'_, Option<Listeners>> {
    offered.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
