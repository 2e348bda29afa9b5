"""The `di-hmac` dialect written a second time, from its description alone, with the standard library.

It shares nothing with src/sign/: where both agree, an implementation mistake would have to be made twice.
"""

import base64
import hashlib
import hmac
import os
import re
import time
from urllib.parse import quote, unquote_to_bytes

REQUEST_HEADER = "di-signature"
RESPONSE_HEADER = "di-response-signature"


def hex_sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def canonical_host(host: str, tls: bool) -> str:
    suffix = ":443" if tls else ":80"
    host = host.lower()
    return host[: -len(suffix)] if host.endswith(suffix) else host


def canonical_query(query: str) -> str:
    pairs = []
    for piece in query.split("&"):
        if piece:
            name, _, value = piece.partition("=")
            pairs.append(tuple(quote(unquote_to_bytes(part), safe="-._~") for part in (name, value)))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def request_string(*, kid, ts, nonce, method, host, path, query, token, body, tls=False) -> str:
    return "\n".join(
        [
            "DI1-HMAC-SHA256",
            kid,
            str(ts),
            nonce,
            method.upper(),
            canonical_host(host, tls),
            path,
            canonical_query(query),
            hex_sha256(token.encode()),
            hex_sha256(body),
        ]
    )


def response_string(*, kid, ts, nonce, status, trace_id, model_version, body) -> str:
    return "\n".join(
        ["DI1-HMAC-SHA256-RESPONSE", kid, str(ts), nonce, str(status), trace_id, model_version, hex_sha256(body)]
    )


def signature(secret: bytes, string: str) -> str:
    return base64.b64encode(hmac.new(secret, string.encode(), hashlib.sha256).digest()).decode()


def fresh_nonce() -> str:
    return base64.urlsafe_b64encode(os.urandom(16)).rstrip(b"=").decode()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def parse_header(header: str) -> dict:
    """`v=1,kid=..,ts=..,sig=..` as a dict; an error if anything stands twice."""
    parts = {}
    for piece in header.split(","):
        name, equals, value = piece.strip().partition("=")
        assert equals and name not in parts, f"malformed signature header: {header}"
        parts[name] = value
    return parts


class Signer:
    """A client that may call one Alipay: knows the key, gets a token, signs, verifies the answer."""

    def __init__(self, kid: str, secret: bytes):
        self.kid, self.secret = kid, secret

    def headers(self, *, method, host, path, query="", token="", body=b"", ts=None, nonce=None) -> dict:
        ts, nonce = ts or now_ms(), nonce or fresh_nonce()
        string = request_string(
            kid=self.kid, ts=ts, nonce=nonce, method=method, host=host, path=path, query=query, token=token, body=body
        )
        headers = {
            "Di-Signature": f"v=1,kid={self.kid},ts={ts},nonce={nonce},sig={signature(self.secret, string)}",
            "Di-Content-SHA256": hex_sha256(body),
        }
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def verify_request(self, *, method, host, path, query, headers, body) -> str:
        """The request's nonce. Raises AssertionError saying what is wrong."""
        parts = parse_header(headers[REQUEST_HEADER])
        assert parts.keys() == {"v", "kid", "ts", "nonce", "sig"}, parts.keys()
        assert parts["v"] == "1" and parts["kid"] == self.kid
        assert re.fullmatch(r"[A-Za-z0-9_-]{22}", parts["nonce"]), "a nonce is 16 bytes in base64url"
        assert abs(now_ms() - int(parts["ts"])) < 300_000, "the timestamp is now"
        declared = headers.get("di-content-sha256")
        assert declared is None or declared == hex_sha256(body), "the body's hash is of this body"
        authorization = headers.get("authorization", "")
        token = authorization.removeprefix("Bearer ") if authorization.startswith("Bearer ") else ""
        string = request_string(
            kid=self.kid,
            ts=parts["ts"],
            nonce=parts["nonce"],
            method=method,
            host=host,
            path=path,
            query=query,
            token=token,
            body=body,
        )
        assert hmac.compare_digest(signature(self.secret, string), parts["sig"]), f"signed another string than\n{string}"
        return parts["nonce"]

    def response_headers(self, *, nonce, status, body, trace_id, model_version) -> dict:
        ts = now_ms()
        string = response_string(
            kid=self.kid, ts=ts, nonce=nonce, status=status, trace_id=trace_id, model_version=model_version, body=body
        )
        return {
            "Di-Trace-Id": trace_id,
            "Di-Model-Version": model_version,
            "Di-Response-Signature": f"v=1,kid={self.kid},ts={ts},sig={signature(self.secret, string)}",
        }

    def verify_response(self, *, nonce, status, headers, body) -> None:
        parts = parse_header(headers[RESPONSE_HEADER])
        string = response_string(
            kid=parts["kid"],
            ts=parts["ts"],
            nonce=nonce,
            status=status,
            trace_id=headers["di-trace-id"],
            model_version=headers["di-model-version"],
            body=body,
        )
        assert hmac.compare_digest(signature(self.secret, string), parts["sig"]), f"signed another string than\n{string}"
