//! Log lines on their way out: written by requests without waiting, handed to the operating system by one thread.
//!
//! A pipe that nobody reads must not stop a payment, so a request only appends to a buffer of its own core; a writer
//! thread empties all buffers a few milliseconds later in one write each. A buffer that is full drops the line and counts
//! it. Lines of one core stay in order, lines of different cores may swap places within a batch: they carry their time.
//!
//! It deliberately does not know what a line says.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use super::cells::Counter;
use crate::domain::worker;

/// Most bytes waiting on one core: about eight hundred access lines, or 40 ms of them at 20,000 calls a second.
const LANE_BYTES: usize = 512 * 1024;
/// Room a lane keeps between batches.
const LANE_KEEPS: usize = 64 * 1024;
/// Longest line: an access line whose every field is cut and fully escaped still fits.
const LINE_BYTES: usize = 128 * 1024;
/// How long the writer lets lines gather after the first.
const BATCH: Duration = Duration::from_millis(5);

/// A clone of this is all a request needs to write lines.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

struct Shared {
    lanes: Box<[Lane]>,
    /// True from the first line of a batch until the writer starts to collect it.
    waiting: AtomicBool,
    stopping: AtomicBool,
    dropped: Counter,
    writer: Thread,
}

/// The lines of one core. The lock is taken by that core for one append and by the writer for one swap, so nobody ever
/// waits longer than a copy of one line.
#[derive(Default)]
#[repr(align(128))]
struct Lane(Mutex<Vec<u8>>);

/// Keeps the writer thread. Dropping it writes what is left and ends the thread; later lines are dropped and counted.
pub struct LineWriter {
    lines: Lines,
    thread: Option<JoinHandle<()>>,
}

impl LineWriter {
    /// Starts the thread that writes to `out`. Lines given up are counted in `dropped`.
    ///
    /// # Errors
    /// The operating system's, if it has no thread left.
    pub fn start(out: impl Write + Send + 'static, dropped: Counter) -> io::Result<Self> {
        let lanes = thread::available_parallelism().map_or(1, usize::from).clamp(1, worker::MOST_WORKERS);
        let (send, receive) = std::sync::mpsc::sync_channel::<Lines>(1);
        let thread = thread::Builder::new().name("log-writer".to_owned()).spawn(move || {
            if let Ok(lines) = receive.recv() {
                lines.0.write_until_stopped(out);
            }
        })?;
        let lines = Lines(Arc::new(Shared {
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
            waiting: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            dropped,
            writer: thread.thread().clone(),
        }));
        // The channel is fresh and the receiver alive, so this cannot fail; were it to, lines would be dropped and counted.
        let _ = send.send(lines.clone());
        Ok(Self { lines, thread: Some(thread) })
    }

    /// Where to write lines.
    pub fn lines(&self) -> Lines {
        self.lines.clone()
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        self.lines.0.stopping.store(true, Ordering::Release);
        self.lines.0.writer.unpark();
        if let Some(thread) = self.thread.take() {
            // A writer that panicked has nothing left to write.
            let _ = thread.join();
        }
    }
}

impl Lines {
    /// Lets `write` append one line, newline included, to the buffer of the current core. `write` is not called when the
    /// buffer is full; it must not write lines itself.
    pub fn append(&self, write: impl FnOnce(&mut Vec<u8>)) {
        if !self.0.append(write) {
            self.0.dropped.inc();
        } else if !self.0.waiting.load(Ordering::Relaxed) && !self.0.waiting.swap(true, Ordering::AcqRel) {
            self.0.writer.unpark();
        }
    }
}

/// Each call is one whole line, which is how `tracing-subscriber` writes.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.append(|out| out.extend_from_slice(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn append(&self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let Some(lane) = self.lanes.get(worker::index() % self.lanes.len()) else { return false };
        let mut lane = lane.lock();
        if lane.len() >= LANE_BYTES || self.stopping.load(Ordering::Acquire) {
            return false;
        }
        let before = lane.len();
        write(&mut lane);
        let fits = lane.len() - before <= LINE_BYTES;
        if !fits {
            lane.truncate(before);
        }
        fits
    }

    fn write_until_stopped(&self, mut out: impl Write) {
        let mut batch = Vec::new();
        loop {
            let stopping = self.stopping.load(Ordering::Acquire);
            // Cleared before collecting: a line that comes during the collection wakes us again.
            if self.waiting.swap(false, Ordering::AcqRel) || stopping {
                if !stopping {
                    thread::sleep(BATCH);
                }
                self.collect(&mut batch, &mut out);
            } else {
                thread::park();
            }
            if stopping {
                return;
            }
        }
    }

    fn collect(&self, batch: &mut Vec<u8>, out: &mut impl Write) {
        for lane in &self.lanes {
            std::mem::swap(&mut *lane.lock(), batch);
            // Nobody is left to tell when the log itself cannot be written; the counter says it.
            if out.write_all(batch).and_then(|()| out.flush()).is_err() {
                self.dropped.add(batch.split(|byte| *byte == b'\n').skip(1).count() as u64);
            }
            batch.clear();
            batch.shrink_to(LANE_KEEPS);
        }
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::telemetry::cells::Arena;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Takes nothing until it is told to, like a pipe nobody reads.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_whole_before_the_writer_ends() {
        let memory = Memory::default();
        let dropped = Arena::new(1).counter();
        let writer = LineWriter::start(memory.clone(), dropped.clone()).unwrap();
        thread::scope(|scope| {
            for index in 0..3 {
                let lines = writer.lines();
                scope.spawn(move || {
                    worker::enter(index);
                    (0..500).for_each(|n| lines.append(|out| writeln!(out, "worker {index} line {n}").unwrap()));
                });
            }
        });
        drop(writer);
        let text = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        assert_eq!((text.lines().count(), dropped.value()), (1_500, 0));
        let of_one: Vec<_> = text.lines().filter(|line| line.starts_with("worker 1")).collect();
        assert!(of_one.iter().enumerate().all(|(n, line)| line.ends_with(&format!(" line {n}"))));
    }

    #[test]
    fn a_log_that_nobody_reads_drops_lines_and_counts_them() {
        let (release, stuck) = mpsc::channel();
        let dropped = Arena::new(1).counter();
        let writer = LineWriter::start(Stuck(stuck), dropped.clone()).unwrap();
        let lines = writer.lines();
        let line = [b'x'; 1_024];
        (0..4 * LANE_BYTES / line.len()).for_each(|_| lines.append(|out| out.extend_from_slice(&line)));
        assert!(dropped.value() > 0);
        drop(release);
        drop(writer);
        let before = dropped.value();
        lines.append(|out| out.push(b'\n'));
        assert_eq!(dropped.value(), before + 1, "a line after the end is counted, not kept");
    }

    #[test]
    fn an_oversized_line_is_dropped_alone() {
        let memory = Memory::default();
        let dropped = Arena::new(1).counter();
        let writer = LineWriter::start(memory.clone(), dropped.clone()).unwrap();
        writer.lines().append(|out| out.extend_from_slice(b"before\n"));
        writer.lines().append(|out| out.resize(out.len() + LINE_BYTES + 1, b'x'));
        writer.lines().append(|out| out.extend_from_slice(b"after\n"));
        drop(writer);
        assert_eq!((&**memory.0.lock().unwrap(), dropped.value()), (&b"before\nafter\n"[..], 1));
    }
}
