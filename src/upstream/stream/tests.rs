//! The commit point, and what is relayed after it.

use futures_util::StreamExt;
use http::Request;

use super::*;
use crate::config::table::BaseUrl;
use crate::upstream::dial::{Dial, Origin};
use crate::upstream::pool::Pool;
use crate::upstream::testing::Piece::{Cut, Hang, Say, Wait};
use crate::upstream::testing::{Piece, events_of};

const IDLE: Duration = Duration::from_secs(5);
const ROLE: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const NULL: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":null}}]}\n\n";
const ONE: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"one\"}}]}\n\n";
const TWO: &str = "data: { \"choices\" : [{\"delta\":{\"content\":\"two\"}}], \"odd\":1.50}\n\n";
const STOP: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

async fn body(pieces: &[Piece]) -> UpstreamBody {
    let url = BaseUrl { tls: false, host: "provider.example".into(), port: 80, path: String::new() };
    let origin = Origin::usual(&url, false);
    let dial: std::sync::Arc<dyn Dial> = events_of(pieces);
    let pool = std::sync::Arc::new(Pool::new(origin, dial));
    let request = Request::builder().method("POST").header("host", "x").body(bytes::Bytes::new().into()).unwrap();
    pool.exchange(Box::new(request), IDLE).await.unwrap().into_body()
}

async fn primed(pieces: &[Piece], usage_event: UsageEvent) -> Result<(Primed, UsageSlot), AttemptError> {
    let usage = UsageSlot::default();
    let reading = Reading { form: Form::Chat, usage_event, telling: Telling::AsItCame, idle: IDLE };
    prime(body(pieces).await, usage.clone(), reading).await.map(|primed| (primed, usage))
}

/// What a client gets, and how the stream ended.
async fn relayed(pieces: &[Piece], usage_event: UsageEvent) -> (String, Option<FailureClass>, UsageSlot) {
    let (mut primed, usage) = primed(pieces, usage_event).await.unwrap();
    let mut text = String::new();
    while let Some(item) = primed.next().await {
        match item {
            Ok(event) => text.push_str(std::str::from_utf8(event.raw()).unwrap()),
            Err(class) => return (text, Some(class), usage),
        }
    }
    (text, None, usage)
}

async fn refused(pieces: &[Piece]) -> AttemptError {
    primed(pieces, UsageEvent::Forward).await.err().unwrap()
}

#[tokio::test(start_paused = true)]
async fn f6_nothing_is_shown_before_the_first_content_and_then_everything_in_order() {
    let second = Wait(Duration::from_secs(1));
    let pieces =
        [Say(": waiting\n\n"), second.clone(), Say(ROLE), second.clone(), Say(NULL), second, Say(ONE), Say(DONE)];
    let started = Instant::now();
    let (mut primed, _) = primed(&pieces, UsageEvent::Forward).await.unwrap();
    assert_eq!(started.elapsed(), Duration::from_secs(3));
    let mut shown = Vec::new();
    while let Some(Ok(event)) = primed.next().await {
        shown.push(std::str::from_utf8(event.raw()).unwrap().to_owned());
    }
    assert_eq!(shown, [ROLE, NULL, ONE, DONE], "comments stay here, the rest leaves as it came");
}

#[tokio::test]
async fn f6_a_stream_that_ends_before_content_is_a_failed_attempt() {
    let endings: [&[Piece]; 7] = [
        &[],
        &[Say(": hello\n\n")],
        &[Say(ROLE)],
        &[Say(ROLE), Say(STOP), Say(DONE)],
        &[Say(DONE)],
        &[Cut],
        &[Say(ROLE), Cut],
    ];
    for pieces in endings {
        let error = refused(pieces).await;
        assert_eq!((error.class, error.sent), (FailureClass::NoContent, Sent::Yes));
    }
}

#[tokio::test]
async fn f17_an_error_before_content_is_what_it_says_it_is() {
    let limited = "data: {\"error\":{\"message\":\"slow down\",\"code\":\"rate_limit_exceeded\"}}\n\n";
    let choice =
        "data: {\"choices\":[{\"delta\":{\"content\":\"\"},\"finish_reason\":\"error\",\"error\":{\"code\":503}}]}\n\n";
    assert_eq!(refused(&[Say(limited)]).await.class, FailureClass::RateLimited);
    assert_eq!(refused(&[Say(ROLE), Say(limited)]).await.class, FailureClass::RateLimited);
    assert_eq!(refused(&[Say(ROLE), Say(choice)]).await.class, FailureClass::Overloaded);
    assert_eq!(refused(&[Say("data: {\"error\":\"no\"}\n\n")]).await.class, FailureClass::NoContent);
    assert_eq!(refused(&[Say(limited.trim_end())]).await.class, FailureClass::RateLimited, "without its blank line");
}

#[tokio::test]
async fn an_answer_cut_on_purpose_before_its_first_word_is_an_answer() {
    let filtered = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"content_filter\"}]}\n\n";
    let (text, end, _) = relayed(&[Say(ROLE), Say(filtered), Say(DONE)], UsageEvent::Forward).await;
    assert_eq!((text.as_str(), end), (&*[ROLE, filtered, DONE].concat(), None));
}

#[tokio::test]
async fn content_behind_a_wall_of_other_events_is_not_waited_for() {
    let wall = vec![Say(ROLE); MOST_HELD_BYTES / ROLE.len() + 2];
    assert_eq!(refused(&wall).await.class, FailureClass::NoContent);
}

#[tokio::test]
async fn f8_what_is_not_understood_is_passed_on_byte_for_byte() {
    let odd = "event: ping\nid: 7\nretry: 10\ndata: not json\n\n";
    let pieces = [Say(ONE), Say("\r\n"), Say(odd), Say(TWO), Say("data: {\"choi"), Say("ces\":[]}\n\n"), Say(DONE)];
    let (text, end, _) = relayed(&pieces, UsageEvent::Strip).await;
    assert_eq!(text, [ONE, odd, TWO, "data: {\"choices\":[]}\n\n", DONE].concat());
    assert_eq!(end, None);
}

#[tokio::test]
async fn the_usage_event_is_for_those_who_asked_and_counted_for_all() {
    let pieces = [Say(ONE), Say(STOP), Say(USAGE), Say(DONE)];
    for (usage_event, shown) in [(UsageEvent::Forward, USAGE), (UsageEvent::Strip, "")] {
        let (text, end, usage) = relayed(&pieces, usage_event).await;
        assert_eq!(text, [ONE, STOP, shown, DONE].concat());
        assert_eq!(end, None);
        assert_eq!((usage.get().input_tokens, usage.get().output_tokens), (Some(3), Some(2)));
    }
}

#[tokio::test]
async fn a_null_usage_goes_only_where_only_we_asked_for_it() {
    let null = "event: chunk\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null,\"x\":1.0}\n\n";
    let without = "event: chunk\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"x\":1.0}\n\n";
    for (usage_event, shown) in [(UsageEvent::Forward, null), (UsageEvent::Strip, without)] {
        // Once before the commit point and once after it.
        let (text, ..) = relayed(&[Say(null), Say(null), Say(DONE)], usage_event).await;
        assert_eq!(text, [shown, shown, DONE].concat());
    }
}

/// LiteLLM sends its counts beside an empty choice.
#[tokio::test]
async fn a_usage_event_with_an_empty_choice_is_for_those_who_asked_too() {
    let counts =
        "data: {\"choices\":[{\"index\":0,\"delta\":{}}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n";
    let pieces = [Say(ONE), Say(STOP), Say(counts), Say(DONE)];
    let (text, _, usage) = relayed(&pieces, UsageEvent::Strip).await;
    assert_eq!(text, [ONE, STOP, DONE].concat());
    assert_eq!(usage.get().output_tokens, Some(2));
    assert_eq!(relayed(&pieces, UsageEvent::Forward).await.0, [ONE, STOP, counts, DONE].concat());
}

#[tokio::test]
async fn an_answer_of_no_words_that_was_paid_for_is_an_answer() {
    let (text, end, _) = relayed(&[Say(ROLE), Say(STOP), Say(USAGE), Say(DONE)], UsageEvent::Forward).await;
    assert_eq!((text, end), ([ROLE, STOP, USAGE, DONE].concat(), None));
}

#[tokio::test]
async fn f6_f7_other_forms_commit_at_their_own_content_and_end_in_their_own_event() {
    let messages = [
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":3}}}\n\n",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"hi\"}}\n\n",
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":2}}\n\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    ];
    let responses = [
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"error\":null,\"usage\":null}}\n\n",
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"hi\"}\n\n",
        "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\",\"usage\":{\"input_tokens\":3,\"output_tokens\":2}}}\n\n",
    ];
    for (form, events) in [(Form::Messages, &messages[..]), (Form::Responses, &responses[..])] {
        let reading = Reading { form, usage_event: UsageEvent::Strip, telling: Telling::AsItCame, idle: IDLE };
        let say = |count: usize| events.iter().take(count).map(|text| Say(text)).collect::<Vec<_>>();
        let early = prime(body(&say(1)).await, UsageSlot::default(), reading).await;
        assert_eq!(early.err().unwrap().class, FailureClass::NoContent, "{form:?}");
        let usage = UsageSlot::default();
        let mut whole = prime(body(&say(events.len())).await, usage.clone(), reading).await.unwrap();
        let mut shown = String::new();
        while let Some(Ok(event)) = whole.next().await {
            shown.push_str(std::str::from_utf8(event.raw()).unwrap());
        }
        assert_eq!(shown, events.concat(), "{form:?} is relayed byte for byte");
        assert!(whole.done, "{form:?}");
        assert_eq!((usage.get().input_tokens, usage.get().output_tokens), (Some(3), Some(2)), "{form:?}");
    }
}

#[tokio::test]
async fn usage_beside_content_stays_and_counts() {
    let both = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\n";
    let (text, _, usage) = relayed(&[Say(both), Say(DONE)], UsageEvent::Strip).await;
    assert_eq!((text, usage.get().input_tokens), ([both, DONE].concat(), Some(1)));
}

#[tokio::test]
async fn f7_a_stream_cut_after_content_says_so_and_never_shows_half_an_event() {
    let half = "data: {\"choices\":[{\"del";
    for pieces in [&[Say(ONE), Cut][..], &[Say(ONE), Say(half), Cut]] {
        let (text, end, _) = relayed(pieces, UsageEvent::Strip).await;
        assert_eq!((text.as_str(), end), (ONE, Some(FailureClass::StreamCut)));
    }
    // The same ended well by the transport: the reply's body finds that the terminal event is missing.
    let (text, end, _) = relayed(&[Say(ONE), Say(half)], UsageEvent::Strip).await;
    assert_eq!((text.as_str(), end), (ONE, None));
}

#[tokio::test]
async fn a_last_event_without_its_blank_line_is_given_one() {
    let (text, end, _) = relayed(&[Say(ONE), Say("data: [DONE]")], UsageEvent::Strip).await;
    assert_eq!(end, None);
    assert_eq!(text, [ONE, DONE].concat());
}

#[tokio::test]
async fn f7_an_error_after_content_ends_the_stream() {
    let error = "data: {\"error\":{\"message\":\"overloaded\",\"code\":529}}\n\n";
    let (text, end, _) = relayed(&[Say(ONE), Say(error), Say(DONE)], UsageEvent::Strip).await;
    assert_eq!((text.as_str(), end), (ONE, Some(FailureClass::ProviderFault)));
    let null = "data: {\"error\":null,\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n";
    let (text, end, _) = relayed(&[Say(ONE), Say(null), Say(DONE)], UsageEvent::Strip).await;
    assert_eq!((text, end), ([ONE, null, DONE].concat(), None));
}

#[tokio::test(start_paused = true)]
async fn f7_silence_after_content_ends_the_stream_at_the_idle_limit() {
    let pieces =
        [Say(ONE), Wait(Duration::from_secs(4)), Say(": still here\n\n"), Wait(Duration::from_secs(4)), Say(TWO), Hang];
    let started = Instant::now();
    let (text, end, _) = relayed(&pieces, UsageEvent::Strip).await;
    assert_eq!((text, end), ([ONE, TWO].concat(), Some(FailureClass::NoContent)));
    assert_eq!(
        started.elapsed(),
        Duration::from_secs(13),
        "comments are signs of life, silence is counted from the last"
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_not_a_silent_provider() {
    let (mut primed, _) =
        primed(&[Say(ONE), Wait(Duration::from_secs(1)), Say(TWO), Say(DONE)], UsageEvent::Strip).await.unwrap();
    for expected in [ONE, TWO, DONE] {
        tokio::time::sleep(IDLE * 3).await;
        assert_eq!(primed.next().await.unwrap().unwrap().raw(), expected);
    }
}
