#!/usr/bin/env python3
"""Writes di.json, the vectors of the di-hmac dialect, from the written rules and Python's own library alone.

It exists so that src/sign/di.rs is checked by something that does not share a line with it. Run it only when the
rules change: python3 tests/golden/sign/make_di.py > tests/golden/sign/di.json
"""
import base64
import hashlib
import hmac
import json
import re
from urllib.parse import quote, unquote_to_bytes

SECRET = bytes(range(32))
NONCE = "AAECAwQFBgcICQoLDA0ODw"
TS = 1767323045000
DEMO = '{"out_trade_no":"T0001","total_amount":"88.88","subject":"demo"}'
SCORED = '{"risk_score":0.42,"recommendation":"REVIEW","explanation":"suspicious device fingerprint mismatch"}'


def sha(data):
    return hashlib.sha256(data).hexdigest()


def recode(text):
    return quote(unquote_to_bytes(text), safe="")


def query_line(raw):
    pairs = []
    for piece in raw.split("&"):
        if piece:
            name, _, value = piece.partition("=")
            pairs.append((recode(name), recode(value)))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def tag(text):
    return base64.b64encode(hmac.new(SECRET, text.encode(), hashlib.sha256).digest()).decode()


def request(name, **changes):
    parts = dict(key_id="k1", timestamp_ms=TS, nonce=NONCE, method="POST", host="sandbox.local", path="/gateway.do",
                 query="", token="tok_test_0001", body=DEMO)
    assert set(changes) <= set(parts)
    parts.update(changes)
    text = "\n".join(["DI1-HMAC-SHA256", parts["key_id"], str(parts["timestamp_ms"]), parts["nonce"],
                      parts["method"].upper(), parts["host"].lower(), parts["path"], query_line(parts["query"]),
                      sha(parts["token"].encode()), sha(parts["body"].encode())])
    sig = tag(text)
    header = f"v=1,kid={parts['key_id']},ts={parts['timestamp_ms']},nonce={parts['nonce']},sig={sig}"
    return {"name": name, **parts, "string_to_sign": text, "sig": sig, "header": header}


def response(name, **changes):
    parts = dict(key_id="k1", timestamp_ms=TS + 123, request_nonce=NONCE, status=200, trace_id="tr-0001",
                 model_version="di-2026.01.0", body=SCORED)
    assert set(changes) <= set(parts)
    parts.update(changes)
    text = "\n".join(["DI1-HMAC-SHA256-RESPONSE", parts["key_id"], str(parts["timestamp_ms"]),
                      parts["request_nonce"], str(parts["status"]), parts["trace_id"], parts["model_version"],
                      sha(parts["body"].encode())])
    sig = tag(text)
    header = f"v=1,kid={parts['key_id']},ts={parts['timestamp_ms']},sig={sig}"
    return {"name": name, **parts, "string_to_sign": text, "sig": sig, "header": header}


requests = [
    request("the published example"),
    request("asking for a token: no bearer token yet", path="/oauth2/token", token="",
            body="grant_type=client_credentials&scope=risk:score risk:report"),
    request("no token and no body", token="", body=""),
    request("method and host are normalised", method="post", host="SandBox.LOCAL:8443"),
    request("path keeps its percent-encoding", path="/a%2fb/%7Egateway.do"),
    request("query pairs are sorted by name, then value", query="b=2&a=2&a=1"),
    request("query pieces may be empty or lack an equals sign", query="&flag&&a=&=v&"),
    request("a plus stays a plus, hex becomes upper case, unreserved is decoded", query="q=a+b&r=%2f%7e%41"),
    request("a second equals sign belongs to the value", query="a=b=c"),
    request("a broken percent sequence is a percent sign", query="a=%zz&b=%4&c=100%"),
    request("names are sorted by their encoded form, before the equals sign", query="a-b=1&a=1&[=1"),
    request("query in UTF-8, encoded or not", query="q=%E6%94%AF%e4%bb%98&q=支付"),
    request("query bytes that are not UTF-8", query="q=%ff%FE"),
    request("a line break inside the query stays encoded", query="q=%0a%0D"),
    request("body in Chinese, Arabic and emoji", body='{"subject":"支付 دفع 🛒"}'),
    request("body with a composed letter", body='{"subject":"caf\u00e9"}'),
    request("body with the decomposed letter is another body", body='{"subject":"cafe\u0301"}'),
    request("body with an escaped slash is another body", body='{"subject":"a\\/b"}'),
    request("body that is not JSON", body="\x00\n\r\t"),
    request("another key, time and nonce", key_id="shop-eu.2026_01", timestamp_ms=1, nonce="zzzzzzzzzzzzzzzzzzzz-_"),
    request("token in UTF-8", token="tök"),
]
responses = [
    response("the published example"),
    response("an error is signed with its status", status=503, body='{"error":"unavailable"}'),
    response("no trace id and no model version", trace_id="", model_version=""),
    response("empty body", status=204, body=""),
    response("explanation in Chinese", body='{"risk_score":0.91,"recommendation":"REJECT","explanation":"设备指纹不符"}'),
]
assert requests[0]["sig"] == "eHFEh05D9ZMsDCPMfViVVX+9ktuzmjNvOvrrI5RR35Y="
assert responses[0]["sig"] == "ly/AqPcZyWh32NxgTGSQE9lT9Rw3BbKE2cGmXsl6yxg="
assert all(re.fullmatch(r"[\w-]{22}", case["nonce"]) for case in requests)
print(json.dumps({"secret_hex": SECRET.hex(), "requests": requests, "responses": responses}, indent=1, ensure_ascii=False))
