//! What the process uses of what it may, as gauges.

use super::catalog;
use super::cells::Level;
use super::families::Families;
use super::process::{Reading, Used};
use crate::domain::overload::Stage;

/// Set once a second, and once more when they are read.
pub struct PressureLevels {
    in_flight_bytes: Level,
    stage: Level,
    memory: [Level; 2],
    descriptors: [Level; 2],
}

impl PressureLevels {
    pub(super) fn new(f: &Families) -> Self {
        Self {
            in_flight_bytes: f.level(&catalog::IN_FLIGHT_BYTES, &[]),
            stage: f.level(&catalog::PRESSURE_STAGE, &[]),
            memory: [&catalog::MEMORY_USED, &catalog::MEMORY_LIMIT].map(|row| f.level(row, &[])),
            descriptors: [&catalog::DESCRIPTORS_OPEN, &catalog::DESCRIPTORS_LIMIT].map(|row| f.level(row, &[])),
        }
    }

    /// Tells what bodies in flight hold.
    pub fn in_flight(&self, bytes: u64) {
        self.in_flight_bytes.set(whole(bytes));
    }

    /// Tells what was measured, and the stage it came to.
    pub fn measured(&self, reading: &Reading, stage: Stage) {
        self.stage.set(stage as i64);
        set(&self.memory, reading.memory);
        set(&self.descriptors, reading.descriptors);
    }

    /// What was measured last.
    pub fn reading(&self) -> Reading {
        Reading { memory: get(&self.memory), descriptors: get(&self.descriptors) }
    }
}

fn set([used, limit]: &[Level; 2], now: Option<Used>) {
    used.set(whole(now.map_or(0, |now| now.used)));
    limit.set(whole(now.map_or(0, |now| now.limit)));
}

fn get([used, limit]: &[Level; 2]) -> Option<Used> {
    let number = |level: &Level| u64::try_from(level.value()).unwrap_or(0);
    Some(Used { used: number(used), limit: number(limit) }).filter(|used| used.limit > 0)
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
