//! `GET /-/tail`: the access log as it is written, filtered, as one JSON object a line.
//!
//! The lines are those of the log: names, numbers and closed words, no body, no header, no key. An empty line every few
//! seconds shows both sides that the other is there; a reader that takes nothing at all is cut off by the listener's
//! write stall.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep, sleep};

use crate::admin::Admin;
use crate::telemetry::labels::RequestOutcome;
use crate::telemetry::logs::field;
use crate::telemetry::tail::{Filter, Reader};

/// Where it is asked for.
pub const PATH: &str = "/-/tail";
/// How often an idle stream shows that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// Stands for every outcome but `ok`.
const FAILED: &str = "failed";
/// Lines are sent together up to so many bytes.
const FRAME: usize = 16 * 1024;
/// Longest query that is read.
const LONGEST_QUERY: usize = 2 * 1024;

/// Why nothing is shown.
pub type Refusal = (StatusCode, String);

/// Takes a seat for whoever asked with `query`.
///
/// # Errors
/// The status and the sentence to answer with.
pub fn follow(admin: &Admin, query: &str) -> Result<Reader, Refusal> {
    let filter = filter(query).map_err(|told| (StatusCode::BAD_REQUEST, told))?;
    known(admin, &filter).map_err(|told| (StatusCode::NOT_FOUND, told))?;
    admin.shared.log.tail().follow(filter).map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")))
}

/// A name that is not configured would show nothing for ever.
fn known(admin: &Admin, filter: &Filter) -> Result<(), String> {
    let snapshot = admin.live.load();
    let table = snapshot.table();
    let is_route = |name: &String| {
        table.llm_routes().keys().any(|route| route.as_str() == name)
            || table.risk_route().is_some_and(|route| route.id.as_str() == name)
    };
    if filter.route.as_ref().is_some_and(|route| !is_route(route)) {
        return Err("no route has this name, /status.json lists them\n".to_owned());
    }
    if filter.caller.as_ref().is_some_and(|name| !snapshot.live_callers().any(|live| live.caller.id.as_str() == name)) {
        return Err("no caller has this name, /status.json lists them\n".to_owned());
    }
    Ok(())
}

fn filter(query: &str) -> Result<Filter, String> {
    let mut filter = Filter::default();
    if query.len() > LONGEST_QUERY {
        return Err("the filter is too long\n".to_owned());
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(value).ok_or("a filter's value is not percent-encoded UTF-8\n")?;
        match name {
            "route" if filter.route.is_none() => filter.route = Some(value),
            "caller" if filter.caller.is_none() => filter.caller = Some(value),
            "outcome" => filter.outcomes.extend(outcomes(&value)?),
            "route" | "caller" => return Err(format!("{name} is given twice, give it once\n")),
            _ => return Err("filter by route, caller or outcome\n".to_owned()),
        }
    }
    Ok(filter)
}

fn outcomes(words: &str) -> Result<Vec<RequestOutcome>, String> {
    let mut wanted = Vec::new();
    for word in words.split(',') {
        let before = wanted.len();
        let is = |outcome: &RequestOutcome| match word {
            FAILED => *outcome != RequestOutcome::Ok,
            _ => outcome.label() == word,
        };
        wanted.extend(RequestOutcome::ALL.iter().copied().filter(is));
        if wanted.len() == before {
            return Err(format!("outcome is one of {}, or {FAILED}\n", RequestOutcome::labels().join(", ")));
        }
    }
    Ok(wanted)
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The stream. `ended` is told once how many lines were missed in all.
pub struct Following<F: FnMut(u64) + Unpin> {
    reader: Reader,
    heartbeat: Pin<Box<Sleep>>,
    missed: u64,
    ended: F,
}

impl<F: FnMut(u64) + Unpin> Following<F> {
    /// What `reader` is shown.
    pub fn new(reader: Reader, ended: F) -> Self {
        Self { reader, heartbeat: Box::pin(sleep(Duration::ZERO)), missed: 0, ended }
    }

    fn told_missed(&mut self, out: &mut BytesMut) {
        let missed = self.reader.take_missed();
        if missed > 0 {
            self.missed = self.missed.saturating_add(missed);
            let line = format!("{{\"target\":\"tail\",\"{}\":{missed}}}\n", field::MISSED);
            out.extend_from_slice(line.as_bytes());
        }
    }
}

impl<F: FnMut(u64) + Unpin> Body for Following<F> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let mut out = BytesMut::new();
        if let Poll::Ready(line) = this.reader.poll_line(cx) {
            out.extend_from_slice(&line);
            while out.len() < FRAME
                && let Some(line) = this.reader.ready_line()
            {
                out.extend_from_slice(&line);
            }
        } else {
            ready!(this.heartbeat.as_mut().poll(cx));
            out.extend_from_slice(b"\n");
        }
        // Also at the very first poll, so that a reader knows at once that it is heard.
        this.heartbeat.as_mut().reset(Instant::now() + HEARTBEAT);
        this.told_missed(&mut out);
        Poll::Ready(Some(Ok(Frame::data(out.freeze()))))
    }
}

impl<F: FnMut(u64) + Unpin> Drop for Following<F> {
    fn drop(&mut self) {
        let missed = self.missed.saturating_add(self.reader.take_missed());
        (self.ended)(missed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::tail::Traits;

    #[test]
    fn a_filter_is_read_from_the_query() {
        let wanted = Filter {
            route: Some("risk a/b".to_owned()),
            caller: Some("shop".to_owned()),
            outcomes: vec![RequestOutcome::Shed, RequestOutcome::Timeout],
        };
        assert_eq!(filter("route=risk+a%2fb&caller=shop&outcome=shed,timeout"), Ok(wanted));
        assert_eq!(filter(""), Ok(Filter::default()));
        assert_eq!(filter("outcome=failed").unwrap().outcomes.len(), RequestOutcome::ALL.len() - 1);
        for (bad, told) in [
            ("path=x", "filter by route, caller or outcome"),
            ("route=a&route=b", "route is given twice"),
            ("route=%f", "percent-encoded"),
            ("route=%ff", "percent-encoded"),
            ("outcome=", "outcome is one of ok, client_error"),
            ("outcome=ok,none", "outcome is one of ok, client_error"),
            (&"x".repeat(LONGEST_QUERY + 1), "too long"),
        ] {
            let refused = filter(bad).unwrap_err();
            assert!(refused.contains(told), "{bad}: {refused}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_begins_with_a_heartbeat_and_tells_what_was_missed_up_to_its_end() {
        use http_body_util::BodyExt;

        let tail = std::sync::Arc::new(crate::telemetry::tail::Tail::default());
        let (send, told) = std::sync::mpsc::channel();
        let ended = move |missed| send.send(missed).unwrap_or_default();
        let mut body = Following::new(tail.follow(Filter::default()).unwrap(), ended);
        let call = Traits { route: None, caller: None, outcome: RequestOutcome::Ok };
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "\n");
        let asleep = Instant::now();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "\n");
        assert_eq!(asleep.elapsed(), HEARTBEAT);
        (0..300).for_each(|_| tail.offer(call, |out| out.extend_from_slice(b"{}\n")));
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let text = std::str::from_utf8(&frame).unwrap();
        assert_eq!((text.lines().count(), text.lines().last()), (257, Some("{\"target\":\"tail\",\"missed\":44}")));
        (0..260).for_each(|_| tail.offer(call, |out| out.extend_from_slice(b"{}\n")));
        drop(body);
        assert_eq!(told.recv(), Ok(48));
        assert!(!tail.is_read());
    }
}
