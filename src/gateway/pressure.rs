//! Watches memory and descriptors, and says how far gone they are.
//!
//! Once a second from a thread of its own: a look, a stage ([`Stage::after`]), and what the stage asks for that no request
//! does itself: room for bodies to come is given back, cached answers are dropped and idle connections closed. What calls
//! are turned away, and what is not begun, is decided where it happens, by the stage that [`Gate`] holds. How many bytes
//! bodies may take is told it too: no more than a quarter of the memory there is, since each is held about twice and is not
//! all there is.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::domain::overload::Stage;
use crate::flight::gate::{Gate, Scarce};
use crate::gateway::snapshot::{Live, Shared};
use crate::layer::cache::Store;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::process::{Reading, Used};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// What share of the memory bodies may take.
const BODIES: u64 = 4;

/// How memory and descriptors are measured; told the limit of our own.
pub type Measure = Box<dyn FnMut(Option<u64>) -> Reading + Send>;

/// What the process holds for its comfort.
pub struct Comforts {
    /// Closes some idle connections each time it is called.
    pub close_idle: Box<dyn Fn() + Send>,
    /// Says whether room may be kept for bodies to come.
    pub keep_spare: Box<dyn Fn(bool) + Send>,
}

/// Looks and tells.
pub struct Watch {
    live: Live,
    gate: Arc<Gate>,
    answers: Store,
    metrics: Arc<Metrics>,
    measure: Measure,
    comforts: Comforts,
    narrowed: bool,
}

impl Watch {
    /// Watches by `measure`.
    pub fn new(live: Live, shared: &Shared, measure: Measure, comforts: Comforts) -> Self {
        let (gate, answers) = (Arc::clone(&shared.gate), shared.store.clone());
        Self { live, gate, answers, metrics: Arc::clone(&shared.metrics), measure, comforts, narrowed: false }
    }

    /// Looks once a second until `stop` says so or is gone.
    pub fn run(mut self, stop: &Receiver<()>) {
        while matches!(stop.recv_timeout(INTERVAL), Err(RecvTimeoutError::Timeout)) {
            self.look();
        }
    }

    /// Looks once.
    pub fn look(&mut self) {
        let snapshot = self.live.load();
        let limits = snapshot.table().limits();
        let now = (self.measure)(limits.memory);
        // Who is out of descriptors cannot read what memory there is: it is taken to be as it was.
        let last = self.metrics.pressure.reading();
        let reading = Reading { memory: now.memory.or(last.memory), descriptors: now.descriptors.or(last.descriptors) };
        let gate = &self.gate;
        if let Some(memory) = reading.memory {
            let most = memory.limit / BODIES;
            gate.limit_bytes(most);
            let narrow = most < limits.in_flight_bytes as u64;
            if narrow && !self.narrowed {
                let (asked, memory) = (limits.in_flight_bytes, memory.limit);
                tracing::warn!(
                    asked,
                    used = gate.most_bytes(limits),
                    memory,
                    "in_flight_bytes is more than the memory there is allows, less is used"
                );
            }
            self.narrowed = narrow;
        }
        let level = |used: Option<Used>| used.map_or(0, Used::thousandths);
        let (memory, descriptors) = (level(reading.memory), level(reading.descriptors));
        let scarce = if memory >= descriptors { Scarce::Memory } else { Scarce::Descriptors };
        let (before, stage) = (gate.stage(), gate.stage().after(memory.max(descriptors)));
        gate.enter_stage(stage, scarce);
        if stage != before {
            tell(before, stage, scarce, &reading);
        }
        (self.comforts.keep_spare)(stage == Stage::Normal);
        if stage >= Stage::Tight {
            if before < Stage::Tight {
                self.answers.clear();
            }
            (self.comforts.close_idle)();
        }
        self.metrics.pressure.measured(&reading, stage);
        self.metrics.pressure.in_flight(gate.held_bytes());
    }
}

/// One line a change.
fn tell(from: Stage, to: Stage, scarce: Scarce, reading: &Reading) {
    let Reading { memory, descriptors } = reading;
    let number = |used: &Option<Used>| used.map_or((0, 0), |used| (used.used, used.limit));
    let ((memory_bytes, memory_limit), (open, open_limit)) = (number(memory), number(descriptors));
    let (rises, from, stage, scarce) = (to > from, from.label(), to.label(), scarce.label());
    if rises {
        tracing::warn!(stage, from, scarce, memory_bytes, memory_limit, open, open_limit, "pressure rises");
    } else {
        tracing::info!(stage, from, memory_bytes, memory_limit, open, open_limit, "pressure falls");
    }
}
