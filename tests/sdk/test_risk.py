"""The risk route with nothing but HTTP: what payment code gets, on time and never a PASS that nobody gave."""

import re
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import NARROW_KEY, exchange, payment

# The route promises 800 ms; the rest is for a busy machine.
ON_TIME = 1.2

FIELDS = {
    "id",
    "out_trade_no",
    "action",
    "recommendation",
    "risk_score",
    "source",
    "degraded",
    "late_verdict_expected",
    "reasons",
    "explanation",
    "step_up",
    "policy",
    "provider",
    "cost",
    "created_at",
}


# So much of a deadline, in seconds, leaves too little of it for the record.
MUCH = 0.2


def assessed(sandbox, amount, **changes):
    """The answer to a payment, on time. One that could not be recorded in time is withheld, as it has to be: where that is
    the doing of a machine without a core to spare, the next payment is asked about instead."""
    for _ in range(10):
        watch = sandbox.stopwatch()
        answer = sandbox.assess(payment(amount, **changes))
        withheld = watch.withheld()
        assert answer.took < ON_TIME + withheld
        if not (without_record(answer) and withheld > MUCH):
            break
    return answer


def without_record(answer) -> bool:
    return answer.status == 503 and answer.json()["detail"].startswith("audit_unavailable")


def decided(answer) -> dict:
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"].startswith("application/json")
    return answer.json()


def test_a_harmless_payment_passes(sandbox):
    body = payment("88.00")
    answer = sandbox.assess(body)
    decision = decided(answer)
    assert decision.keys() >= FIELDS
    assert decision["action"] == decision["recommendation"] == "PASS"
    assert decision["source"] == "live" and decision["degraded"] is False
    assert decision["out_trade_no"] == body["out_trade_no"]
    assert decision["id"].startswith("ra_")
    assert 0 <= decision["risk_score"] < 0.3
    assert decision["provider"]["id"] == "alipay"
    assert decision["provider"]["trace_id"] and decision["provider"]["model_version"]
    assert decision["cost"] == {"amount": "0.02", "currency": "CNY"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", decision["created_at"])


def test_every_decision_has_the_headers(sandbox):
    headers = sandbox.assess(payment()).headers
    assert headers["x-request-id"]
    assert (headers["wb-route"], headers["wb-provider"], headers["wb-attempts"]) == ("risk", "alipay", "1")
    assert headers["wb-cost"] == "0.02 CNY"
    assert re.fullmatch(r"[0-9a-f]{12}", headers["wb-config"])
    assert int(headers["wb-overhead-us"]) >= 0
    assert headers["server-timing"]
    assert headers["cache-control"] == "private, no-store"


def test_the_cross_border_analysis_has_its_price(sandbox):
    assert decided(sandbox.assess(payment(features=["fx"])))["cost"] == {"amount": "0.05", "currency": "CNY"}


def test_a_doubtful_payment_is_reviewed(sandbox):
    decision = decided(sandbox.assess(payment("88.13")))
    assert (decision["action"], decision["recommendation"]) == ("REVIEW", "REVIEW")
    assert decision["risk_score"] == 0.42
    assert decision["explanation"]["staff"] and decision["explanation"]["customer"]
    assert decision["reasons"]


def test_a_bad_payment_does_not_pass(sandbox):
    decision = decided(sandbox.assess(payment("88.91")))
    assert decision["risk_score"] == 0.91
    assert decision["action"] in ("REVIEW", "REJECT")


# --- providers that fail ---


def test_a_slow_provider_is_answered_for_on_time(fresh):
    answer = assessed(fresh, "188.50")
    decision = decided(answer)
    assert decision["source"] == "fallback" and decision["degraded"] is True
    assert decision["late_verdict_expected"] is True
    assert decision["action"] != "PASS"
    assert decision["recommendation"] is None and decision["risk_score"] is None


FAULTS = {
    "51": "unsigned",
    "52": "wrong signature",
    "53": "score 1.5",
    "54": "not JSON",
    "55": "status 503",
    "56": "connection closed",
    "57": "no score",
    "58": "unknown word",
    "59": "stall in the body",
}


@pytest.mark.parametrize("cents", FAULTS, ids=list(FAULTS.values()))
def test_a_verdict_that_nobody_gave_never_passes(fresh, cents):
    answer = assessed(fresh, f"188.{cents}")
    decision = decided(answer)
    assert decision["action"] in ("CHALLENGE", "REVIEW", "REJECT")
    if cents in ("53", "57"):
        assert decision["risk_score"] is None
    if cents in ("51", "52", "54", "55", "56", "59"):
        assert decision["source"] == "fallback" and decision["degraded"] is True


@pytest.mark.parametrize("fault", ["refuse", "reset", "status:503", "status:429;retry-after=2", "unsigned", "bad-signature"])
def test_faults_by_metadata_never_pass(fresh, fault):
    answer = assessed(fresh, "188.00", metadata={"sandbox_fault": fault})
    decision = decided(answer)
    assert decision["source"] == "fallback"
    assert decision["action"] != "PASS"


def test_an_outage_is_answered_on_time_for_everyone(fresh):
    def one(_):
        return fresh.assess(payment("188.50"))

    watch = fresh.stopwatch()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(one, range(40)))
        withheld = watch.withheld()
    assert max(answer.took for answer in answers) < ON_TIME + 0.3 + withheld
    if withheld > MUCH:
        answers = [answer for answer in answers if not without_record(answer)]
        assert len(answers) >= 20, "half of them were withheld"
    assert all(decided(answer)["action"] != "PASS" for answer in answers)


# --- the same payment again ---


def test_the_same_payment_gets_the_same_decision(sandbox):
    body = payment("88.13")
    first, again = decided(sandbox.assess(body)), decided(sandbox.assess(body))
    assert again["source"] == "replayed"
    assert {**again, "source": "live"} == first


def test_twenty_at_once_are_one_decision(sandbox):
    body = payment("88.13")
    calls = lambda: sandbox.metric("weighbridge_upstream_attempts_total", provider="alipay")  # noqa: E731
    before = calls()
    with ThreadPoolExecutor(20) as pool:
        decisions = list(pool.map(lambda _: decided(sandbox.assess(body)), range(20)))
    assert len({decision["id"] for decision in decisions}) == 1
    assert {decision["action"] for decision in decisions} == {"REVIEW"}
    assert calls() - before == 1


def test_an_order_number_is_not_reused_for_another_payment(sandbox):
    body = payment("88.00")
    decided(sandbox.assess(body))
    answer = sandbox.assess({**body, "total_amount": "99.00"})
    assert answer.status == 409
    assert answer.headers["content-type"] == "application/problem+json"


# --- refusals ---


def problem(answer, status) -> dict:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["type"] and body["title"] and body["detail"]
    assert body["instance"] == answer.headers["x-request-id"]
    return body


def test_a_bad_request_names_every_bad_field(sandbox):
    body = payment(out_trade_no="has a space!", total_amount="1e3", merchant={}, user={"id": 7}, nonsense=1)
    del body["subject"]
    errors = problem(sandbox.assess(body), 400)["errors"]
    expected = {"/out_trade_no", "/total_amount", "/subject", "/merchant/id", "/user/id", "/nonsense"}
    assert {error["pointer"] for error in errors} >= expected
    assert all(error["message"] for error in errors)


@pytest.mark.parametrize("amount", ["0", "0.00", "-1", "+1", "01.00", "1,000.00", "1.001", " 1", "1e3", "NaN", "9" * 17, 88.0])
def test_money_is_a_plain_decimal_string(sandbox, amount):
    errors = problem(sandbox.assess(payment(amount)), 400)["errors"]
    assert [error["pointer"] for error in errors] == ["/total_amount"]


def test_decimals_follow_the_currency(sandbox):
    decided(sandbox.assess(payment("88.8")))
    decided(sandbox.assess(payment("88", currency="JPY")))
    problem(sandbox.assess(payment("1.0", currency="JPY")), 400)


def test_an_unknown_currency_is_422(sandbox):
    problem(sandbox.assess(payment(currency="QQQ")), 422)


def test_other_refusals_are_problems_too(sandbox):
    json_type = {"Content-Type": "application/json"}
    problem(sandbox.assess(b'{"out_trade_no": ', headers=json_type), 400)
    problem(sandbox.assess(b'{"out_trade_no":"a","out_trade_no":"b"}', headers=json_type), 400)
    problem(sandbox.assess(b"out_trade_no=1", headers={"Content-Type": "application/x-www-form-urlencoded"}), 415)
    problem(sandbox.assess(payment(metadata={"x": "y" * (65 << 10)})), 413)
    problem(sandbox.assess(payment(), key="wb-wrong"), 401)
    problem(sandbox.assess(payment(), key=NARROW_KEY), 403)
    problem(exchange(sandbox.data, "POST", "/v1/risk/assessments", payment()), 401)
    problem(sandbox.call("GET", f"/v1/risk/assessments/ra_{uuid.uuid4().hex}"), 404)
