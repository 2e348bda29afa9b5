"""`di-hmac` against a second implementation (di_hmac.py): published vectors, the simulated Alipay, and the proxy itself."""

import base64
import hashlib
import json
import threading
import urllib.parse
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from di_hmac import Signer, fresh_nonce, now_ms, request_string, response_string, signature
from harness import ROOT, Process, exchange, free_port, payment

# --- vectors ---

SECRET = bytes(range(32))
BODY = b'{"out_trade_no":"T0001","total_amount":"88.88","subject":"demo"}'
ANSWER = b'{"risk_score":0.42,"recommendation":"REVIEW","explanation":"suspicious device fingerprint mismatch"}'
NONCE = "AAECAwQFBgcICQoLDA0ODw"


def test_our_signatures_are_the_published_ones():
    request = request_string(
        kid="k1",
        ts=1767323045000,
        nonce=NONCE,
        method="POST",
        host="sandbox.local",
        path="/gateway.do",
        query="",
        token="tok_test_0001",
        body=BODY,
    )
    assert signature(SECRET, request) == "eHFEh05D9ZMsDCPMfViVVX+9ktuzmjNvOvrrI5RR35Y="
    response = response_string(
        kid="k1",
        ts=1767323045123,
        nonce=NONCE,
        status=200,
        trace_id="tr-0001",
        model_version="di-2026.01.0",
        body=ANSWER,
    )
    assert signature(SECRET, response) == "ly/AqPcZyWh32NxgTGSQE9lT9Rw3BbKE2cGmXsl6yxg="


def golden() -> list:
    path = ROOT / "tests/golden/sign/di.json"
    if not path.exists():
        return []
    cases = json.loads(path.read_text())
    both = [("request", case) for case in cases["requests"]] + [("response", case) for case in cases["responses"]]
    return [pytest.param(kind, bytes.fromhex(cases["secret_hex"]), case, id=f"{kind}: {case['name']}") for kind, case in both]


@pytest.mark.parametrize(("kind", "secret", "case"), golden())
def test_our_signatures_are_those_of_the_rust_side(kind, secret, case):
    common = {"kid": case["key_id"], "ts": case["timestamp_ms"], "body": case["body"].encode()}
    if kind == "request":
        parts = {name: case[name] for name in ("nonce", "method", "host", "path", "query", "token")}
        string = request_string(**common, **parts)
    else:
        parts = {name: case[name] for name in ("status", "trace_id", "model_version")}
        string = response_string(**common, **parts, nonce=case["request_nonce"])
    assert string == case["string_to_sign"]
    assert signature(secret, string) == case["sig"]


# --- the simulated Alipay, called directly ---


class Client:
    """A merchant's own client of the simulated Alipay."""

    def __init__(self, sandbox):
        self.base = sandbox.said["alipay"]
        self.host = urllib.parse.urlsplit(self.base).netloc
        self.signer = Signer(sandbox.said["alipay_key_id"], bytes.fromhex(sandbox.said["alipay_secret"]))

    def token(self) -> str:
        form = b"grant_type=client_credentials&scope=risk%3Ascore%20risk%3Areport"
        headers = self.signer.headers(method="POST", host=self.host, path="/oauth2/token", body=form)
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        answer = exchange(self.base, "POST", "/oauth2/token", form, headers)
        assert answer.status == 200, answer.body
        granted = answer.json()
        assert granted["token_type"] == "Bearer" and granted["expires_in"] > 0
        return granted["access_token"]

    def score(self, token, body=None, signed_body=None, **signing):
        body = body or json.dumps(vendor_request()).encode()
        nonce = signing.setdefault("nonce", fresh_nonce())
        headers = self.signer.headers(
            method="POST", host=self.host, path="/gateway.do", token=token, body=signed_body or body, **signing
        )
        headers["Content-Type"] = "application/json"
        return nonce, exchange(self.base, "POST", "/gateway.do", body, headers)


def vendor_request() -> dict:
    return {
        "out_trade_no": f"T{fresh_nonce()}",
        "total_amount": "88.13",
        "currency": "CNY",
        "subject": "demo",
        "merchant_id": "m1",
        "user_id": "u1",
        "features": [],
    }


@pytest.fixture
def alipay(sandbox):
    return Client(sandbox)


def test_a_signed_call_is_answered_and_the_answer_is_signed(alipay):
    nonce, answer = alipay.score(alipay.token())
    assert answer.status == 200, answer.body
    assert answer.json()["risk_score"] == 0.42
    alipay.signer.verify_response(nonce=nonce, status=200, headers=answer.headers, body=answer.body)


def test_the_answers_signature_is_bound_to_the_request(alipay):
    _, answer = alipay.score(alipay.token())
    with pytest.raises(AssertionError):
        alipay.signer.verify_response(nonce=fresh_nonce(), status=200, headers=answer.headers, body=answer.body)


def test_a_replayed_nonce_is_refused(alipay):
    token, nonce = alipay.token(), fresh_nonce()
    assert alipay.score(token, nonce=nonce)[1].status == 200
    assert alipay.score(token, nonce=nonce)[1].status == 409


def test_a_stale_or_altered_or_foreign_request_is_refused_alike(alipay):
    token = alipay.token()
    stale = alipay.score(token, ts=now_ms() - 301_000)[1]
    altered = alipay.score(token, signed_body=b"{}")[1]
    alipay.signer = Signer(alipay.signer.kid, bytes(32))
    foreign = alipay.score(token)[1]
    assert [answer.status for answer in (stale, altered, foreign)] == [401, 401, 401]
    assert stale.body == altered.body == foreign.body, "the refusal does not say which check failed"


def test_a_call_without_a_token_is_refused(alipay):
    assert alipay.score("")[1].status == 401


# --- the proxy, seen by an Alipay of our own ---

KEY_ID, ALIPAY_SECRET = "k1", bytes(range(100, 132))
CALLER_KEY = "wb-peer-key-0123456789abcdef0123456789abcdef0123"

ROUTES = f"""
version = 1

[[caller]]
id = "checkout"
tenant = "t"
key_digest = "sha256:{hashlib.sha256(CALLER_KEY.encode()).hexdigest()}"
allow = ["risk"]

[risk]
candidates = ["alipay"]
deadline = "800ms"
hard_limit = "3s"
bands = {{ pass_below = 0.3, review_from = 0.7 }}
on_exhausted = "review"
"""

PROVIDER = """
id = "alipay"
protocol = "di-hmac"
base_url = "http://127.0.0.1:{port}"
source = {{ url = "https://example.org/", checked = "2026-11-22" }}
auth = {{ kind = "di-hmac", key_id = "k1", secret_env = "ALIPAY_SECRET", secret_encoding = "hex" }}
operations = ["risk.assess"]
price = {{ standard = "0.02 CNY", cross_border = "0.05 CNY", source = "https://example.org/", checked = "2026-11-22" }}
limits = {{ in_flight = 200 }}
allow_private = true
"""


class FakeAlipay(BaseHTTPRequestHandler):
    """Verifies whatever comes and answers PASS, signed as the server's `answers` says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        path, _, query = self.path.partition("?")
        seen = self.server.seen
        try:
            nonce = self.server.signer.verify_request(
                method="POST", host=headers["host"], path=path, query=query, headers=headers, body=body
            )
        except (AssertionError, KeyError) as wrong:
            seen.complaints.append(f"{self.path}: {wrong!r}")
            return self.answer(401, b"{}", {})
        seen.nonces[nonce] += 1
        return self.token(headers, body) if path == "/oauth2/token" else self.score(headers, body, nonce)

    def token(self, headers, body):
        seen = self.server.seen
        seen.tokens += 1
        form = urllib.parse.parse_qs(body.decode())
        if form.get("grant_type") != ["client_credentials"] or "authorization" in headers:
            seen.complaints.append(f"token asked for with {form} and {sorted(headers)}")
        granted = {"access_token": f"tok-{seen.tokens}", "token_type": "Bearer", "expires_in": 3600, "scope": "risk:score"}
        self.answer(200, json.dumps(granted).encode(), {})

    def score(self, headers, body, nonce):
        seen, behaviour = self.server.seen, self.server.behaviour
        asked = json.loads(body)
        seen.scored.append((asked, headers))
        signer = self.server.signer
        if behaviour == "forget-token" and headers["authorization"] == "Bearer tok-1":
            refusal = b'{"error":"invalid_token"}'
            signed = signer.response_headers(nonce=nonce, status=401, body=refusal, trace_id="tr", model_version="di-1")
            return self.answer(401, refusal, signed)
        verdict = b'{"risk_score":0.01,"recommendation":"PASS","explanation":"known device"}'
        signed_nonce = fresh_nonce() if behaviour == "other-nonce" else nonce
        signed_status = 201 if behaviour == "other-status" else 200
        signed_body = verdict.replace(b"0.01", b"0.02") if behaviour == "other-body" else verdict
        if behaviour == "other-key":
            signer = Signer(KEY_ID, bytes(32))
        signed = signer.response_headers(
            nonce=signed_nonce, status=signed_status, body=signed_body, trace_id="tr-0001", model_version="di-1"
        )
        if behaviour == "other-model":
            signed["Di-Model-Version"] = "di-2"
        if behaviour == "unsigned":
            signed = {}
        return self.answer(200, verdict, signed)

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Seen:
    """What reached the fake Alipay."""

    def __init__(self):
        self.nonces, self.scored, self.complaints, self.tokens = Counter(), [], [], 0


class Peer:
    """`weighbridge serve` in front of a fake Alipay."""

    def __init__(self, folder):
        self.alipay = ThreadingHTTPServer(("127.0.0.1", 0), FakeAlipay)
        self.alipay.signer, self.alipay.seen, self.alipay.behaviour = Signer(KEY_ID, ALIPAY_SECRET), Seen(), "honest"
        threading.Thread(target=self.alipay.serve_forever, daemon=True).start()
        providers = folder / "providers"
        providers.mkdir()
        (providers / "alipay.toml").write_text(PROVIDER.format(port=self.alipay.server_port))
        (folder / "routes.toml").write_text(ROUTES)
        port, admin = free_port(), free_port()
        arguments = ["serve", "--routes", str(folder / "routes.toml"), "--providers", str(providers)]
        arguments += ["--listen", f"127.0.0.1:{port}", "--admin-listen", f"127.0.0.1:{admin}"]
        self.process = Process(arguments, folder / "log", env={"ALIPAY_SECRET": ALIPAY_SECRET.hex()})
        self.process.wait_for_port(port)
        self.data = f"http://127.0.0.1:{port}"

    @property
    def seen(self) -> Seen:
        return self.alipay.seen

    def assess(self, body) -> dict:
        headers = {"Authorization": f"Bearer {CALLER_KEY}"}
        answer = exchange(self.data, "POST", "/v1/risk/assessments", body, headers)
        assert answer.status == 200, answer.body
        return answer.json()

    def stop(self):
        self.process.stop()
        self.alipay.shutdown()
        self.alipay.server_close()


@pytest.fixture
def peer(tmp_path):
    running = Peer(tmp_path)
    yield running
    running.stop()


def test_the_proxy_signs_what_a_stranger_can_verify(peer):
    body = payment("88.88", subject='Café "ÉLAN" 咖啡 🧾 \\/')
    decision = peer.assess(body)
    assert peer.seen.complaints == []
    assert (decision["action"], decision["source"]) == ("PASS", "live")
    assert decision["provider"]["trace_id"] == "tr-0001" and decision["provider"]["model_version"] == "di-1"
    [(asked, headers)] = peer.seen.scored
    assert asked["out_trade_no"] == headers["idempotency-key"] == body["out_trade_no"]
    assert (asked["total_amount"], asked["currency"], asked["subject"]) == ("88.88", "CNY", body["subject"])
    assert (asked["merchant_id"], asked["user_id"]) == ("m1", body["user"]["id"])
    assert CALLER_KEY not in str(headers), "the caller's key stays here"


def test_every_request_has_a_nonce_of_its_own_and_all_share_one_token(peer):
    with ThreadPoolExecutor(20) as pool:
        decisions = list(pool.map(lambda _: peer.assess(payment()), range(60)))
    assert peer.seen.complaints == []
    assert {decision["source"] for decision in decisions} == {"live"}
    assert set(peer.seen.nonces.values()) == {1}
    assert len(peer.seen.scored) == 60
    assert peer.seen.tokens <= 2, "one flight for everybody; one a worker core is tolerated"


def test_a_forgotten_token_is_fetched_anew(peer):
    peer.alipay.behaviour = "forget-token"
    assert peer.assess(payment())["source"] == "live"
    assert peer.seen.complaints == []
    assert peer.seen.tokens == 2


@pytest.mark.parametrize(
    "behaviour", ["unsigned", "other-nonce", "other-status", "other-body", "other-key", "other-model"]
)
def test_an_answer_that_is_not_authentic_never_passes(peer, behaviour):
    peer.alipay.behaviour = behaviour
    decision = peer.assess(payment())
    assert len(peer.seen.scored) >= 1 and peer.seen.complaints == []
    assert (decision["action"], decision["source"]) == ("REVIEW", "fallback")


def test_the_header_names_and_base64_are_exactly_as_written_down(peer):
    peer.assess(payment())
    [(_, headers)] = peer.seen.scored
    signed = dict(part.split("=", 1) for part in headers["di-signature"].split(","))
    assert list(signed) == ["v", "kid", "ts", "nonce", "sig"]
    assert len(base64.b64decode(signed["sig"], validate=True)) == 32
    assert len(base64.urlsafe_b64decode(signed["nonce"] + "==")) == 16
