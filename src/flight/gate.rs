//! The process's means, and who may take of them: requests in flight, the bytes of their bodies, and the stage of
//! pressure that memory and descriptors have come to.
//!
//! Each class of calls may fill its share of the room ([`Class::share`]), so that the least is shed first and payments find
//! a place that nobody else can take. Every question is answered at once: there is no queue, because a request that waited
//! would be answered later and no more of them would be served. Bytes are counted before they are read, as they are
//! declared, or as they come where they are not; what was counted is given back when the reply has ended.
//!
//! It deliberately measures nothing: what memory there is, and when a stage changes, it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use tokio::time::Instant;

use crate::config::table::Limits;
use crate::domain::overload::{Class, Stage};
use crate::flight::error::CallError;
use crate::flight::shares::{Asking, Shares, Standing};
use crate::telemetry::labels::ShedReason;
use crate::telemetry::metrics::Metrics;

/// What a body of unknown length is taken to weigh at first, and by how much more at a time.
const STEP_KIB: u32 = 64;

/// What is taken now, process-wide.
#[derive(Debug)]
pub struct Gate {
    in_flight: AtomicU32,
    kib: AtomicU32,
    /// What each caller's calls hold, those to the risk route left out.
    places: Shares,
    weights: Shares,
    /// Most KiB of bodies, by the memory there is.
    most_kib: AtomicU32,
    stage: AtomicU8,
    /// What the stage is for: a [`Scarce`].
    scarce: AtomicU8,
}

/// What a stage of pressure is for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(u8)]
pub enum Scarce {
    /// Memory.
    #[default]
    Memory,
    /// File descriptors.
    Descriptors,
}

impl Scarce {
    /// The word in logs and on the status page.
    pub fn label(self) -> &'static str {
        self.reason().label()
    }

    fn reason(self) -> ShedReason {
        match self {
            Self::Memory => ShedReason::Memory,
            Self::Descriptors => ShedReason::Descriptors,
        }
    }
}

/// How much of everything a class may fill.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Room {
    places: u32,
    kib: u32,
}

/// What a call wants.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Its class, and whose it is.
    pub standing: Standing,
    /// Bytes of its body; `None` if that was not declared.
    pub bytes: Option<u64>,
    /// When it arrived.
    pub now: Instant,
}

/// One admitted request; gives back what it took when dropped.
pub struct Admitted {
    gate: Arc<Gate>,
    kib: u32,
    standing: Standing,
    growth: Option<Arc<Growth>>,
}

/// What a body of unknown length has come to weigh; gives it back when the last who knows of it is gone.
pub struct Growth {
    gate: Arc<Gate>,
    room: u32,
    standing: Standing,
    kib: AtomicU32,
    metrics: Arc<Metrics>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            kib: AtomicU32::new(0),
            places: Shares::default(),
            weights: Shares::default(),
            most_kib: AtomicU32::new(u32::MAX),
            stage: AtomicU8::new(Stage::Normal as u8),
            scarce: AtomicU8::new(Scarce::Memory as u8),
        }
    }
}

impl Gate {
    /// Requests in flight now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Body bytes held now, or declared and awaited; in steps of a kilobyte.
    pub fn held_bytes(&self) -> u64 {
        u64::from(self.kib.load(Relaxed)) * 1024
    }

    /// Most body bytes at a time under these limits and with the memory there is.
    pub fn most_bytes(&self, limits: &Limits) -> u64 {
        u64::from(self.room(limits, Class::Risk).kib) * 1024
    }

    /// Tells how many bytes bodies may take by the memory there is.
    pub fn limit_bytes(&self, most: u64) {
        self.most_kib.store(u32::try_from(most / 1024).unwrap_or(u32::MAX), Relaxed);
    }

    /// The stage of pressure.
    pub fn stage(&self) -> Stage {
        Stage::from_number(self.stage.load(Relaxed))
    }

    /// What it is for.
    pub fn scarce(&self) -> Scarce {
        if self.scarce.load(Relaxed) == Scarce::Memory as u8 { Scarce::Memory } else { Scarce::Descriptors }
    }

    /// True if what is only nice to have is given up: cache fills, shadows, hedges.
    pub fn is_lean(&self) -> bool {
        self.stage.load(Relaxed) >= Stage::Lean as u8
    }

    /// Enters a stage.
    pub fn enter_stage(&self, stage: Stage, scarce: Scarce) {
        self.scarce.store(scarce as u8, Relaxed);
        self.stage.store(stage as u8, Relaxed);
    }

    /// Takes a place, and room for the body.
    ///
    /// # Errors
    /// What there is not enough of.
    pub fn enter(self: &Arc<Self>, wish: &Wish, limits: &Limits) -> Result<Admitted, ShedReason> {
        let class = wish.standing.class;
        self.weather(class)?;
        let room = self.room(limits, class);
        let largest = if class == Class::Risk { limits.risk_body_bytes } else { limits.body_bytes };
        // More than this is refused for its size, and until then only so much of it would be read.
        let kib = wish.bytes.map_or(STEP_KIB, |bytes| kib(bytes.min(largest as u64)));
        let Some(taken) = take(&self.in_flight, 1, room.places) else {
            if class != Class::Risk {
                // Asked all the same: that somebody with less was refused is to be remembered.
                self.places.may_have(&wish.asking(&self.places, room.places, room.places));
            }
            return Err(ShedReason::InFlight);
        };
        let Some(weighed) = take(&self.kib, kib, room.kib) else {
            self.in_flight.fetch_sub(1, Relaxed);
            if class != Class::Risk {
                self.weights.has_its_part(&wish.asking(&self.weights, room.kib, room.kib));
            }
            return Err(ShedReason::Bytes);
        };
        let admitted = Admitted { gate: Arc::clone(self), kib, standing: wish.standing, growth: None };
        if class != Class::Risk {
            let (places, weight) = (self.places.add(wish.standing.seat, 1), self.weights.add(wish.standing.seat, kib));
            let seat = wish.standing.seat;
            let asking = |held, taken, room| Asking { seat, held, taken, room, now: wish.now };
            let fair = |fair: bool| if fair { Ok(()) } else { Err(ShedReason::CallerShare) };
            if taken >= Shares::crowded(room.places) {
                fair(self.places.may_have(&asking(places, taken, room.places)))?;
            }
            // Bodies differ in size: what one of them found free says little of the next.
            if weighed + kib > Shares::crowded(room.kib) {
                fair(!self.weights.has_its_part(&asking(weight, weighed, room.kib)))?;
            }
        }
        Ok(admitted)
    }

    /// Whether an admitted call, counted already, would have been admitted as one of another class: what a route is worth
    /// is known once its name was read.
    ///
    /// # Errors
    /// What there is not enough of.
    pub fn remains(&self, class: Class, limits: &Limits) -> Result<(), ShedReason> {
        self.weather(class)?;
        let room = self.room(limits, class);
        if self.in_flight.load(Relaxed) > room.places {
            return Err(ShedReason::InFlight);
        }
        if self.kib.load(Relaxed) > room.kib { Err(ShedReason::Bytes) } else { Ok(()) }
    }

    fn weather(&self, class: Class) -> Result<(), ShedReason> {
        if self.is_lean() && self.stage().sheds(class) { Err(self.scarce().reason()) } else { Ok(()) }
    }

    /// One body always fits, however small the class's share: else it would never be read. And beside the largest of them
    /// payments do: room for them is kept even where a single body may be nearly all there is.
    fn room(&self, limits: &Limits, class: Class) -> Room {
        let small = |whole: usize| u32::try_from(whole).unwrap_or(u32::MAX);
        let (all, one) = (small(limits.in_flight_bytes / 1024), kib(limits.body_bytes as u64));
        let all = all.min(self.most_kib.load(Relaxed));
        let beside = if class == Class::Risk { one / 10 + kib(limits.risk_body_bytes as u64) } else { 0 };
        Room { places: class.share(small(limits.in_flight)), kib: class.share(all).max(one.saturating_add(beside)) }
    }
}

impl Wish {
    fn asking(&self, of: &Shares, taken: u32, room: u32) -> Asking {
        let Standing { seat, .. } = self.standing;
        Asking { seat, held: of.held(seat), taken, room, now: self.now }
    }
}

impl Admitted {
    /// Where a body of unknown length is to be counted as it comes.
    pub fn grow(&mut self, limits: &Limits, metrics: &Arc<Metrics>) -> Arc<Growth> {
        let (gate, standing) = (Arc::clone(&self.gate), self.standing);
        let room = gate.room(limits, standing.class).kib;
        let growth = Arc::new(Growth { gate, room, standing, kib: AtomicU32::new(0), metrics: Arc::clone(metrics) });
        self.growth = Some(Arc::clone(&growth));
        growth
    }
}

impl Growth {
    /// Counts a body that has come to this many bytes.
    ///
    /// # Errors
    /// [`CallError::Shed`]: there is no room for it.
    pub fn reach(&self, bytes: usize) -> Result<(), CallError> {
        let (counted, wanted) = (self.kib.load(Relaxed) + STEP_KIB, kib(bytes as u64).next_multiple_of(STEP_KIB));
        let more = wanted.saturating_sub(counted);
        if more == 0 {
            return Ok(());
        }
        if take(&self.gate.kib, more, self.room).is_none() {
            self.metrics.shed(self.standing.class, ShedReason::Bytes);
            return Err(CallError::shed(ShedReason::Bytes));
        }
        if self.standing.class != Class::Risk {
            self.gate.weights.add(self.standing.seat, more);
        }
        self.kib.fetch_add(more, Relaxed);
        Ok(())
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.gate.in_flight.fetch_sub(1, Relaxed);
        self.gate.kib.fetch_sub(self.kib, Relaxed);
        if self.standing.class != Class::Risk {
            self.gate.places.sub(self.standing.seat, 1);
            self.gate.weights.sub(self.standing.seat, self.kib);
        }
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        let kib = self.kib.load(Relaxed);
        self.gate.kib.fetch_sub(kib, Relaxed);
        if self.standing.class != Class::Risk {
            self.gate.weights.sub(self.standing.seat, kib);
        }
    }
}

/// Adds to a counter unless it would come to more than `most`: no other ever sees a number beyond it. What it was before.
fn take(counter: &AtomicU32, amount: u32, most: u32) -> Option<u32> {
    let add = |before: u32| before.checked_add(amount).filter(|after| *after <= most);
    counter.fetch_update(Relaxed, Relaxed, add).ok()
}

/// Every body that has a byte weighs at least one.
fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
