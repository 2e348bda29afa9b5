//! The bridge between cells and the one [`Registry`]: a family for each row of the catalogue, a series for each set of
//! label values.
//!
//! Series are added at configuration time and never removed: a counter that vanishes and comes back would look like a
//! restart. Whoever adds them bounds how many there are.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};
use prometheus::{Registry, TextEncoder};

use super::catalog::{Kind, Row, TABLE};
use super::cells::{Arena, Counter, Gauge, Histogram, Level};
use super::samples::{Reading, Sample};

/// Where a series' number is read.
enum Source {
    Counter(Counter),
    Gauge(Gauge),
    Level(Level),
    /// Kept as thousandths.
    Millis(Level),
    Histogram(Histogram),
}

/// All series of one metric.
struct Family {
    row: &'static Row,
    desc: Desc,
    /// Locked while a series is added and while a scrape reads, never while something is counted.
    series: Mutex<Vec<(Vec<LabelPair>, Source)>>,
}

#[derive(Clone)]
struct Registered(Arc<Family>);

/// Every family, by its place in the catalogue.
pub(super) struct Families {
    arena: Arena,
    registry: Registry,
    all: Vec<Registered>,
}

impl Families {
    pub(super) fn new(lanes: usize) -> Self {
        let registry = Registry::new();
        let all = TABLE.iter().filter_map(|row| register(&registry, row)).collect();
        Self { arena: Arena::new(lanes), registry, all }
    }

    pub(super) fn counter(&self, row: &'static Row, values: &[&str]) -> Counter {
        let counter = self.arena.counter();
        self.add(row, values, Source::Counter(counter.clone()));
        counter
    }

    pub(super) fn gauge(&self, row: &'static Row, values: &[&str]) -> Gauge {
        let gauge = self.arena.gauge();
        self.add(row, values, Source::Gauge(gauge.clone()));
        gauge
    }

    pub(super) fn level(&self, row: &'static Row, values: &[&str]) -> Level {
        let level = Level::default();
        self.add(row, values, Source::Level(level.clone()));
        level
    }

    /// A level that is set in thousandths of what is shown.
    pub(super) fn millis(&self, row: &'static Row, values: &[&str]) -> Level {
        let level = Level::default();
        self.add(row, values, Source::Millis(level.clone()));
        level
    }

    /// A histogram; a row of another kind gives one without buckets.
    pub(super) fn histogram(&self, row: &'static Row, values: &[&str]) -> Histogram {
        static NONE: super::catalog::Buckets = super::catalog::Buckets { bounds: &[], scale: 1 };
        let buckets = match row.kind {
            Kind::Histogram(buckets) => buckets,
            Kind::Counter | Kind::Gauge => &NONE,
        };
        let histogram = self.arena.histogram(buckets);
        self.add(row, values, Source::Histogram(histogram.clone()));
        histogram
    }

    /// Replaces all series of a row by one that is 1.
    pub(super) fn info(&self, row: &'static Row, values: &[&str]) {
        let level = Level::default();
        level.set(1);
        if let Some(family) = self.family(row) {
            *family.lock() = vec![(pairs(row, values), Source::Level(level))];
        }
    }

    /// The text exposition.
    pub(super) fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// What the series of these metrics hold, those left out that never counted anything.
    pub(super) fn samples(&self, wanted: &[&'static Row]) -> Vec<Sample> {
        let of = |family: &Family| -> Vec<Sample> {
            let series = family.lock();
            let sample = |(labels, source): &(Vec<LabelPair>, Source)| Sample {
                row: family.row,
                labels: labels.iter().map(|pair| pair.value().to_owned()).collect(),
                reading: source.reading(),
            };
            series.iter().map(sample).filter(|sample| !sample.reading.is_nothing()).collect()
        };
        wanted.iter().filter_map(|row| self.family(row)).flat_map(of).collect()
    }

    fn family(&self, row: &'static Row) -> Option<&Family> {
        self.all.iter().map(|registered| &*registered.0).find(|family| std::ptr::eq(family.row, row))
    }

    fn add(&self, row: &'static Row, values: &[&str], source: Source) {
        if let Some(family) = self.family(row) {
            family.lock().push((pairs(row, values), source));
        }
    }
}

fn register(registry: &Registry, row: &'static Row) -> Option<Registered> {
    let labels = row.labels.iter().map(|&label| label.to_owned()).collect();
    let desc = Desc::new(row.name.to_owned(), row.help.to_owned(), labels, std::collections::HashMap::new());
    let registered = desc.and_then(|desc| {
        let family = Registered(Arc::new(Family { row, desc, series: Mutex::default() }));
        registry.register(Box::new(family.clone())).map(|()| family)
    });
    registered.inspect_err(|err| tracing::error!(metric = row.name, %err, "the metric cannot be registered")).ok()
}

fn pairs(row: &Row, values: &[&str]) -> Vec<LabelPair> {
    debug_assert_eq!(row.labels.len(), values.len(), "{}", row.name);
    let pair = |(&name, &value): (&&str, &&str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    };
    row.labels.iter().zip(values).map(pair).collect()
}

impl Family {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Vec<LabelPair>, Source)>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Registered {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let metrics: Vec<_> = self.0.lock().iter().map(|(labels, source)| source.read(labels)).collect();
        let mut family = MetricFamily::default();
        family.set_name(self.0.row.name.to_owned());
        family.set_help(self.0.row.help.to_owned());
        family.set_field_type(match self.0.row.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram(_) => MetricType::HISTOGRAM,
        });
        family.set_metric(metrics);
        vec![family]
    }
}

impl Source {
    #[expect(clippy::cast_precision_loss, reason = "shown to people; nothing is decided by it")]
    fn reading(&self) -> Reading {
        match self {
            Self::Counter(counter) => Reading::Number(counter.value() as f64),
            Self::Gauge(gauge) => Reading::Number(gauge.value() as f64),
            Self::Level(level) => Reading::Number(level.value() as f64),
            Self::Millis(level) => Reading::Number(level.value() as f64 / 1e3),
            Self::Histogram(histogram) => Reading::Observed(histogram.value()),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus numbers are floats; nothing is decided by them")]
    fn read(&self, labels: &[LabelPair]) -> proto::Metric {
        let mut metric = proto::Metric::from_label(labels.to_vec());
        match self {
            Self::Counter(counter) => {
                let mut value = proto::Counter::default();
                value.set_value(counter.value() as f64);
                metric.set_counter(value);
            }
            Self::Gauge(gauge) => metric.set_gauge(gauge_of(gauge.value() as f64)),
            Self::Level(level) => metric.set_gauge(gauge_of(level.value() as f64)),
            Self::Millis(level) => metric.set_gauge(gauge_of(level.value() as f64 / 1e3)),
            Self::Histogram(histogram) => metric.set_histogram(histogram_of(histogram)),
        }
        metric
    }
}

fn gauge_of(value: f64) -> proto::Gauge {
    let mut gauge = proto::Gauge::default();
    gauge.set_value(value);
    gauge
}

fn histogram_of(histogram: &Histogram) -> proto::Histogram {
    let observed = histogram.value();
    let bucket = |&(bound, count): &(f64, u64)| {
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(count);
        bucket
    };
    let mut out = proto::Histogram::default();
    out.set_bucket(observed.cumulative.iter().map(bucket).collect());
    out.set_sample_count(observed.count);
    out.set_sample_sum(observed.sum);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_the_catalogue_is_registered_exactly_once() {
        let families = Families::new(1);
        assert_eq!(families.all.len(), TABLE.len());
        for row in TABLE {
            let again = Registered(Arc::clone(&families.all.iter().find(|f| f.0.row == *row).unwrap().0));
            assert!(families.registry.register(Box::new(again)).is_err(), "{}", row.name);
        }
    }
}
