//! Records to test with.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::record::{Entry, Told};
use super::writer::{Faults, Records, RecordsConfig, Watch};
use crate::domain::decision::{
    Action, Decision, DecisionSource, FallbackReason, Priced, ProviderReference, Reason, Score, Verdict,
};
use crate::domain::id::{DecisionId, ProviderId};
use crate::domain::policy::Applied;
use crate::domain::retention::Keeping;
use crate::wire::risk::{Assessment, decode};

pub(super) struct Deaf;

impl Watch for Deaf {
    fn waiting(&self, _: i64) {}
    fn committed(&self, _: Duration) {}
}

pub(super) fn open(folder: &Path) -> (Records, Faults) {
    let faults = Faults::default();
    let config =
        RecordsConfig { folder: folder.to_owned(), checkpoints: None, watch: Arc::new(Deaf), faults: faults.clone() };
    (Records::open(config).unwrap(), faults)
}

pub(super) fn assessment(user: &str, number: usize) -> Assessment {
    let body = format!(
        r#"{{"out_trade_no":"T-{number}","total_amount":"88.88","currency":"CNY","subject":"CANARY-subject",
            "merchant":{{"id":"m-1","category":"electronics","country":"CN"}},
            "user":{{"id":"{user}","country":"TH","email":"CANARY-mail","phone":"CANARY-phone"}},
            "instrument":{{"type":"card","fingerprint":"CANARY-print","bin":"621234","last4":"1234"}},
            "device":{{"id":"CANARY-device","ip":"203.0.113.7"}},"features":["fx"],"metadata":{{"k":"CANARY-meta"}}}}"#
    );
    decode(body.as_bytes()).unwrap_or_else(|errors| panic!("{errors:?}"))
}

pub(super) fn decision(number: usize) -> Decision {
    Decision {
        id: DecisionId::new(format!("ra_{number:04}")),
        action: Action::Review,
        source: DecisionSource::Live,
        verdict: Some(Verdict {
            score: Score::parse("0.42"),
            recommendation: Some("REVIEW".to_owned()),
            explanation: Some("CANARY-explanation".to_owned()),
            provider: ProviderReference {
                id: ProviderId::new("alipay"),
                trace_id: Some("tr-1".to_owned()),
                model_version: Some("di-1".to_owned()),
                latency_ms: 41,
            },
            cost: None,
            priced: Some(Priced { version: "2026-11".into(), features: vec!["fx".to_owned()] }),
            features_dropped: vec!["receipt_ocr".to_owned()],
        }),
        reasons: vec![Reason { code: "provider".to_owned(), text: "CANARY-explanation".to_owned() }],
        applied: Applied::sample(),
        late_verdict_expected: false,
        created_at_ms: 1_796_083_140_000 + number as u64,
        reused: None,
    }
}

pub(super) fn fallback(number: usize) -> Decision {
    let reason = FallbackReason::Deadline;
    Decision {
        source: DecisionSource::Fallback(reason),
        verdict: None,
        reasons: vec![Reason { code: reason.code().to_owned(), text: reason.text().to_owned() }],
        late_verdict_expected: true,
        ..decision(number)
    }
}

pub(super) fn told(user: &str, number: usize) -> Entry {
    entry(&assessment(user, number), &decision(number))
}

pub(super) fn entry(assessment: &Assessment, decision: &Decision) -> Entry {
    kept(assessment, decision, Keeping::default())
}

pub(super) fn kept(assessment: &Assessment, decision: &Decision, keeping: Keeping) -> Entry {
    Entry::decision(&Told {
        tenant: "shop-eu",
        caller: "shop",
        request_id: "req_1",
        assessment,
        digest: [7; 32],
        decision,
        attempts: Vec::new(),
        took_ms: 50,
        instead_of: None,
        keeping,
        notice: None,
    })
}
