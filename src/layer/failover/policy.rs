//! What follows a failed attempt: a pure function, one row per failure class.
//!
//! | class | next candidate | same again |
//! |---|---|---|
//! | connect | yes, any safety | once, budget |
//! | headers timeout, no content, provider fault, bad reply, overloaded | yes, unless a repeat could be a second decision | provider fault only, once, budget |
//! | rate limited, quota exhausted, unauthorised | yes, unless a repeat could be a second decision | no |
//! | open, full, paced | yes | no |
//! | refused | only if the route lists the reason | no |
//! | bad signature, stream cut, deadline passed | no | no |
//!
//! "Could be a second decision" is `AtMostOnce` with anything but [`Sent::No`]. A refusal that a provider signs off before
//! processing (401, 402, 429, 503) still says [`Sent::Yes`] here: unless a descriptor's source says otherwise, nobody
//! promised that nothing was decided.

use std::time::Duration;

use crate::domain::operation::Safety;
use crate::domain::outcome::{FailureClass, Sent};

/// Before trying the same upstream again.
const BACKOFF: Duration = Duration::from_millis(50);
/// No attempt is worth starting with less.
pub(super) const LEAST_TIME: Duration = Duration::from_millis(50);

/// Everything the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// Whether a repeat can do harm.
    pub safety: Safety,
    /// How the attempt failed.
    pub class: FailureClass,
    /// What may have reached the provider.
    pub sent: Sent,
    /// How many more attempts a provider may see.
    pub attempts_left: u32,
    /// Until the call's deadline.
    pub time_left: Duration,
    /// True if there is another candidate to move to.
    pub others: bool,
    /// True if this candidate was tried again already.
    pub repeated: bool,
    /// True if the route lists what the request was refused for.
    pub listed: bool,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Give up with this failure.
    Stop,
    /// Try the next candidate now.
    Move,
    /// Try the same one again after this long, if its retry budget allows.
    Again(Duration),
}

/// Decides.
pub fn next(situation: &Situation) -> Next {
    let Situation { safety, class, sent, attempts_left, time_left, others, repeated, listed } = *situation;
    let harmless = safety != Safety::AtMostOnce || sent == Sent::No;
    if !harmless || attempts_left == 0 || time_left < LEAST_TIME || is_final(class, listed) {
        return Next::Stop;
    }
    if others {
        return Next::Move;
    }
    let again = matches!(class, FailureClass::Connect | FailureClass::ProviderFault);
    let time = time_left >= LEAST_TIME + BACKOFF;
    if again && !repeated && time { Next::Again(BACKOFF) } else { Next::Stop }
}

/// True if no other candidate would fare better, or none may be asked.
pub fn is_final(class: FailureClass, listed: bool) -> bool {
    match class {
        FailureClass::Refused => !listed,
        FailureClass::BadSignature | FailureClass::StreamCut | FailureClass::DeadlinePassed => true,
        _ => false,
    }
}

/// Which of several failures is told to the caller: the one with the highest number, the later one of equals.
///
/// What a caller can do something about comes first: a word about its request. Then what providers really did, then what
/// passes by itself, and last what only the operator can change, since waiting for the others may still help.
pub fn weight(class: FailureClass) -> u8 {
    match class {
        FailureClass::Refused => 6,
        FailureClass::DeadlinePassed | FailureClass::BadSignature => 5,
        FailureClass::Connect
        | FailureClass::HeadersTimeout
        | FailureClass::NoContent
        | FailureClass::ProviderFault
        | FailureClass::BadReply
        | FailureClass::StreamCut
        | FailureClass::Overloaded => 4,
        FailureClass::RateLimited | FailureClass::Paced => 3,
        FailureClass::Open | FailureClass::Full => 2,
        FailureClass::Unauthorised | FailureClass::QuotaExhausted => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLENTY: Situation = Situation {
        safety: Safety::Repeatable,
        class: FailureClass::Connect,
        sent: Sent::Yes,
        attempts_left: 2,
        time_left: Duration::from_secs(10),
        others: true,
        repeated: false,
        listed: false,
    };

    #[test]
    fn every_class_has_its_row() {
        use FailureClass as C;
        let again = Next::Again(BACKOFF);
        let table = [
            (C::Connect, Next::Move, again),
            (C::HeadersTimeout, Next::Move, Next::Stop),
            (C::NoContent, Next::Move, Next::Stop),
            (C::Overloaded, Next::Move, Next::Stop),
            (C::RateLimited, Next::Move, Next::Stop),
            (C::QuotaExhausted, Next::Move, Next::Stop),
            (C::ProviderFault, Next::Move, again),
            (C::BadReply, Next::Move, Next::Stop),
            (C::BadSignature, Next::Stop, Next::Stop),
            (C::Unauthorised, Next::Move, Next::Stop),
            (C::Refused, Next::Stop, Next::Stop),
            (C::Open, Next::Move, Next::Stop),
            (C::Full, Next::Move, Next::Stop),
            (C::Paced, Next::Move, Next::Stop),
            (C::StreamCut, Next::Stop, Next::Stop),
            (C::DeadlinePassed, Next::Stop, Next::Stop),
        ];
        assert_eq!(table.map(|(class, ..)| class), FailureClass::ALL);
        for (class, with_others, alone) in table {
            assert_eq!(next(&Situation { class, ..PLENTY }), with_others, "{class:?} with others");
            assert_eq!(next(&Situation { class, others: false, ..PLENTY }), alone, "{class:?} alone");
            assert_eq!(
                next(&Situation { class, others: false, repeated: true, ..PLENTY }),
                Next::Stop,
                "{class:?} twice"
            );
        }
    }

    #[test]
    fn a_refusal_moves_on_only_where_the_route_lists_it() {
        let refused = Situation { class: FailureClass::Refused, listed: true, ..PLENTY };
        assert_eq!(next(&refused), Next::Move);
        assert_eq!(next(&Situation { others: false, ..refused }), Next::Stop);
        assert_eq!(next(&Situation { attempts_left: 0, ..refused }), Next::Stop);
    }

    #[test]
    fn what_the_caller_can_act_on_speaks_before_what_passes_by_itself() {
        let telling = |a, b| if weight(b) >= weight(a) { b } else { a };
        use FailureClass as C;
        assert_eq!(telling(C::Refused, C::Open), C::Refused);
        assert_eq!(telling(C::Refused, C::DeadlinePassed), C::Refused);
        assert_eq!(telling(C::ProviderFault, C::Full), C::ProviderFault);
        assert_eq!(telling(C::RateLimited, C::Paced), C::Paced);
        assert_eq!(telling(C::Unauthorised, C::Open), C::Open);
    }

    #[test]
    fn without_attempts_or_time_nothing_follows() {
        assert_eq!(next(&Situation { attempts_left: 0, ..PLENTY }), Next::Stop);
        assert_eq!(next(&Situation { time_left: Duration::from_millis(49), ..PLENTY }), Next::Stop);
    }

    fn situations() -> impl Strategy<Value = Situation> {
        let safety = prop::sample::select(vec![Safety::ReadOnly, Safety::Repeatable, Safety::AtMostOnce]);
        let class = prop::sample::select(FailureClass::ALL.to_vec());
        let sent = prop::sample::select(vec![Sent::No, Sent::Maybe, Sent::Yes]);
        (safety, class, sent, 0u32..4, 0u64..100_000, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(safety, class, sent, attempts_left, time_ms, others, repeated, listed)| Situation {
                safety,
                class,
                sent,
                attempts_left,
                time_left: Duration::from_millis(time_ms),
                others,
                repeated,
                listed,
            },
        )
    }

    proptest! {
        #[test]
        fn an_at_most_once_call_is_never_repeated_once_bytes_may_have_been_sent(situation in situations()) {
            let situation = Situation { safety: Safety::AtMostOnce, ..situation };
            if situation.sent != Sent::No {
                prop_assert_eq!(next(&situation), Next::Stop);
            }
        }

        #[test]
        fn nothing_follows_past_the_cap_or_the_deadline_and_nobody_is_moved_to_who_is_not_there(situation in situations()) {
            let next = next(&situation);
            if situation.attempts_left == 0 || situation.time_left < LEAST_TIME {
                prop_assert_eq!(next, Next::Stop);
            }
            if next == Next::Move {
                prop_assert!(situation.others);
            }
            if situation.repeated {
                prop_assert!(!matches!(next, Next::Again(_)));
            }
        }
    }
}
