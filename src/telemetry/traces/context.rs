//! W3C Trace Context (<https://www.w3.org/TR/trace-context-2/>, read Nov 2026): which trace a request belongs to.
//!
//! A caller's `traceparent` is continued and its decision whether the trace is recorded is kept. What cannot be read is
//! as if it were not there: the request begins a trace of its own, and is never refused for it.

use std::cell::RefCell;
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use http::{HeaderMap, HeaderName, HeaderValue};

/// The trace, the caller's span and flags.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What other systems want to be told along the way.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The trace is recorded.
const SAMPLED: u8 = 1;
/// The trace's id is random.
const RANDOM: u8 = 2;
/// All of a share.
const WHOLE: u64 = 1_000_000;
/// Bytes of `tracestate` that are kept, as many as the standard asks for; more is dropped as a whole.
const MOST_STATE: usize = 512;
const MOST_MEMBERS: usize = 32;

/// A trace's name, never zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceId(pub [u8; 16]);

/// A span's name within its trace, never zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpanId(pub [u8; 8]);

impl TraceId {
    /// The id as logs and headers have it.
    pub fn text(self) -> [u8; 32] {
        let mut text = [0; 32];
        for (pair, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            *pair = [digit(byte >> 4), digit(byte & 15)];
        }
        text
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn digit(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'a' + value - 10 }
}

/// Where one request stands in its trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The request's own span.
    pub span: SpanId,
    /// The caller's span, if the caller began the trace.
    pub parent: Option<SpanId>,
    /// W3C trace flags.
    pub flags: u8,
    /// `tracestate`, as it came; empty for none.
    pub state: Box<str>,
    /// Our own draw: what becomes of the request where nobody else has decided it.
    drawn: bool,
}

impl TraceContext {
    /// Continues the caller's trace, or begins one, of which `share` millionths are recorded.
    pub fn begin(headers: &HeaderMap, share: u32) -> Self {
        let (trace, span) = fresh();
        let [.., a, b, c, d] = span.0;
        let drawn = (u64::from(u32::from_be_bytes([a, b, c, d])) * WHOLE) >> 32 < u64::from(share);
        let Some((trace, parent, flags)) = only(headers, &TRACEPARENT).and_then(parse) else {
            let flags = if drawn { RANDOM | SAMPLED } else { RANDOM };
            return Self { trace, span, parent: None, flags, state: Box::default(), drawn };
        };
        Self { trace, span, parent: Some(parent), flags, state: state(headers).unwrap_or_default(), drawn }
    }

    /// True if its spans are sent. Whoever is not known may continue a trace, but not have all of them recorded.
    pub fn is_taken(&self, caller_is_known: bool) -> bool {
        self.flags & SAMPLED != 0 && (caller_is_known || self.drawn)
    }

    /// The span of the request's attempt of this number, always the same.
    pub fn attempt(&self, number: u32) -> SpanId {
        // Steele, Lea, Flood: "Fast splittable pseudorandom number generators" (2014): each number another one.
        let mut mixed =
            u64::from_be_bytes(self.span.0).wrapping_add(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        SpanId(if mixed == 0 { self.span.0 } else { mixed.to_be_bytes() })
    }

    /// `traceparent` and `tracestate` for whoever is asked by the attempt of this number.
    pub fn forwarded(&self, number: u32) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        // Of the flags only those whose meaning is known, as the standard asks for.
        let flags = self.flags & (SAMPLED | RANDOM);
        let parent = format!("00-{}-{}-{flags:02x}", self.trace, self.attempt(number));
        let parent = HeaderValue::from_str(&parent).ok().map(|value| (TRACEPARENT, value));
        let state = Some(&self.state).filter(|state| !state.is_empty());
        let state = state.and_then(|state| Some((TRACESTATE, HeaderValue::from_str(state).ok()?)));
        parent.into_iter().chain(state)
    }
}

fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut all = headers.get_all(name).iter();
    all.next().filter(|_| all.next().is_none()).map(HeaderValue::as_bytes)
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; a later version may have more behind another hyphen.
fn parse(text: &[u8]) -> Option<(TraceId, SpanId, u8)> {
    let (known, rest) = text.split_at_checked(55)?;
    let [version] = hex::<1>(known.get(..2)?)?;
    let well_formed = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || rest.first() == Some(&b'-'),
    };
    let hyphens = [2, 35, 52].iter().all(|&at| known.get(at) == Some(&b'-'));
    if !well_formed || !hyphens {
        return None;
    }
    let (trace, span) = (hex(known.get(3..35)?)?, hex(known.get(36..52)?)?);
    let [flags] = hex::<1>(known.get(53..)?)?;
    (trace != [0; 16] && span != [0; 8]).then_some((TraceId(trace), SpanId(span), flags))
}

/// Lower-case digits only: the standard has no others.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_chunks::<2>();
    let mut bytes = [0; N];
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = value(high)? << 4 | value(low)?;
    }
    Some(bytes)
}

/// All of `tracestate` on one line, `None` if it is too long or not made of visible characters.
fn state(headers: &HeaderMap) -> Option<Box<str>> {
    let mut all = String::new();
    for value in headers.get_all(TRACESTATE) {
        // `to_str` refuses whatever is not visible ASCII, a space or a tab.
        let value = value.to_str().ok()?.trim_matches([' ', '\t', ',']);
        if !value.is_empty() {
            all.extend([if all.is_empty() { "" } else { "," }, value]);
        }
        if all.len() > MOST_STATE {
            return None;
        }
    }
    (all.split(',').count() <= MOST_MEMBERS).then(|| all.into())
}

/// A trace's id and a span's.
pub(super) fn fresh() -> (TraceId, SpanId) {
    const EACH: usize = 24;
    /// One system call serves this many requests.
    const AT_ONCE: usize = 32;
    thread_local! {
        static RANDOM_BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    RANDOM_BYTES.with_borrow_mut(|bytes| {
        if bytes.len() < EACH {
            bytes.resize(EACH * AT_ONCE, 0);
            if getrandom::fill(bytes).is_err() {
                // Unique is enough here, and nothing secret hangs on it.
                let words = (0u64..).flat_map(|number| RandomState::new().hash_one(number).to_be_bytes());
                bytes.iter_mut().zip(words).for_each(|(byte, word)| *byte = word);
            }
        }
        let (mut trace, mut span) = ([0; 16], [0; 8]);
        let from = bytes.len().saturating_sub(EACH);
        trace.iter_mut().chain(&mut span).zip(bytes.drain(from..)).for_each(|(to, byte)| *to = byte);
        if trace == [0; 16] || span == [0; 8] {
            // Once in 2^64, and the standard forbids it.
            (trace, span) = ([1; 16], [1; 8]);
        }
        (TraceId(trace), SpanId(span))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        let mut headers = HeaderMap::new();
        for (name, value) in fields.iter().map(field) {
            headers.append(name, value);
        }
        headers
    }

    fn begin(parent: &str) -> TraceContext {
        TraceContext::begin(&headers(&[("traceparent", parent)]), 0)
    }

    #[test]
    fn a_callers_trace_is_continued_and_its_decision_kept() {
        let taken = begin(PARENT);
        assert_eq!(taken.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(taken.trace.text().as_slice(), b"4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(taken.parent.unwrap().to_string(), "00f067aa0ba902b7");
        assert!(taken.is_taken(true), "though we would not have taken it");
        assert!(!taken.is_taken(false), "nobody we do not know has all of its traces recorded");
        let not_taken = TraceContext::begin(&headers(&[("traceparent", &PARENT.replace("-01", "-00"))]), 1_000_000);
        assert!(not_taken.parent.is_some() && !not_taken.is_taken(true));
        assert!(begin(&format!("01{}-more", &PARENT[2..])).parent.is_some(), "of a later version");
    }

    #[test]
    fn what_cannot_be_read_begins_a_trace_of_our_own() {
        let upper = PARENT.to_uppercase();
        let bad = [
            "",
            "00",
            &PARENT[..54],
            &format!("{PARENT}-x"),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.replacen('-', "_", 1),
            &upper,
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
        ];
        for text in bad {
            let begun = begin(text);
            assert!(begun.parent.is_none() && begun.trace.to_string() != PARENT[3..35], "{text}");
        }
        let two = TraceContext::begin(&headers(&[("traceparent", PARENT), ("traceparent", PARENT)]), 0);
        assert_eq!(two.parent, None);
    }

    #[test]
    fn our_own_share_is_taken_of_what_begins_here() {
        let taken =
            |share| (0..10_000).filter(|_| TraceContext::begin(&HeaderMap::new(), share).is_taken(true)).count();
        assert_eq!((taken(0), taken(1_000_000)), (0, 10_000));
        assert!((700..1_300).contains(&taken(100_000)));
    }

    #[test]
    fn what_others_want_to_be_told_is_handed_on_as_it_came() {
        let fields = [("traceparent", PARENT), ("tracestate", "a=1, b=2"), ("tracestate", "c=3")];
        let context = TraceContext::begin(&headers(&fields), 0);
        assert_eq!(&*context.state, "a=1, b=2,c=3");
        let forwarded: Vec<_> = context.forwarded(1).collect();
        let parent = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", context.attempt(1));
        assert_eq!(forwarded, [(TRACEPARENT, parent.parse().unwrap()), (TRACESTATE, context.state.parse().unwrap())]);
        let long = "x".repeat(513);
        for state in [long.as_str(), &"a=1,".repeat(33)] {
            let context = TraceContext::begin(&headers(&[("traceparent", PARENT), ("tracestate", state)]), 0);
            assert_eq!((&*context.state, context.forwarded(1).count()), ("", 1));
        }
        let alone = TraceContext::begin(&headers(&[("tracestate", "a=1")]), 0);
        assert_eq!(&*alone.state, "", "of a trace that is not there");
    }

    #[test]
    fn no_two_spans_have_the_same_name() {
        let contexts: Vec<_> = (0..1_000).map(|_| TraceContext::begin(&HeaderMap::new(), 0)).collect();
        let spans = contexts.iter().flat_map(|context| (1..4).map(|n| context.attempt(n)).chain([context.span]));
        let names: std::collections::HashSet<_> = spans.map(|span| span.0).collect();
        assert_eq!(names.len(), 4_000);
        let traces: std::collections::HashSet<_> = contexts.iter().map(|context| context.trace.0).collect();
        assert_eq!(traces.len(), 1_000);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[ -~]{0,70}", state in "[ -~]{0,600}") {
            let context = TraceContext::begin(&headers(&[("traceparent", &text), ("tracestate", &state)]), 0);
            prop_assert!(context.state.len() <= MOST_STATE);
        }

        #[test]
        fn what_is_forwarded_is_read_again(trace in 1u128.., span in 1u64.., flags in 0u8..4, number in 1u32..9) {
            let context = begin(&format!("00-{trace:032x}-{span:016x}-{flags:02x}"));
            let (_, parent) = context.forwarded(number).next().unwrap();
            let read = begin(parent.to_str().unwrap());
            prop_assert_eq!((read.trace, read.parent, read.flags), (context.trace, Some(context.attempt(number)), flags));
        }
    }
}
