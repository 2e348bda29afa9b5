"""What all suites of the matrix share: which surfaces are switched on, the one sandbox, and what the proxy says of a call.

`python3 shared.py FOLDER` runs the sandbox until it is told to stop, and writes what suites need to FOLDER/matrix.json.
Standard library only, because every client's environment is its own."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from harness import ROOT, Process, Sandbox, exchange  # noqa: E402

# Surfaces the proxy has now; a case of any other is not collected. Extend this line when a surface arrives.
DEFAULT_SURFACES = "chat,responses,messages,embeddings,completions"
SURFACES = frozenset(os.environ.get("WEIGHBRIDGE_MATRIX_SURFACES", DEFAULT_SURFACES).replace(",", " ").split())

# The word of the access log for a call on each surface.
OPERATIONS = {
    "chat": "chat.completions",
    "responses": "responses",
    "messages": "messages",
    "embeddings": "embeddings",
    "completions": "completions",
}
assert SURFACES <= OPERATIONS.keys(), f"WEIGHBRIDGE_MATRIX_SURFACES knows {', '.join(OPERATIONS)}"

# A route of two providers, as an application would call it.
MODEL = "summary"
# Routes of the sandbox that break after three words: the connection ends, or nothing more comes.
CUT, STALL = "sandbox/fail-cut", "sandbox/fail-stall"
# A route whose provider offers everything.
STEADY = "sandbox/steady"

# A caller over its rate is told to come back after this; no SDK would by itself choose the same time.
PER_MINUTE = 40
HINT = 60 / PER_MINUTE

WRONG_KEY = "wb-wrong-CANARY-0123456789abcdef"


def clients() -> list:
    return sorted(folder.name for folder in (HERE / "clients").iterdir() if folder.is_dir())


def key_of(caller: str) -> str:
    return f"wb-matrix-{hashlib.sha256(caller.encode()).hexdigest()[:40]}"


def slow_caller(client: str, surface: str) -> str:
    return f"{client}-{surface}-slow"


def callers() -> str:
    """A caller for each client, by which its access lines are known, and one for each rate limit it runs into."""
    text = ""
    for client in clients():
        limits = {client: ""} | {
            slow_caller(client, surface): f"limits = {{ requests_per_minute = {PER_MINUTE} }}\n"
            for surface in OPERATIONS
        }
        for caller, limit in limits.items():
            digest = hashlib.sha256(key_of(caller).encode()).hexdigest()
            text += f'\n[[caller]]\nid = "{caller}"\ntenant = "matrix"\nkey_digest = "sha256:{digest}"\nallow = ["*"]\n{limit}'
    return text


class MatrixSandbox(Sandbox):
    """The sandbox with our callers, and with access lines a program can read."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        routes, log = folder / "routes.toml", folder / "log"
        routes.write_text((ROOT / "routes.toml").read_text() + callers())
        arguments = ["sandbox", "--json", "--routes", str(routes), "--providers", str(ROOT / "providers")]
        arguments += ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log-format", "json"]
        self.process = Process(arguments, log, stdout=subprocess.PIPE)
        self.said = json.loads(self.process.first_line())
        self.description = {
            **{name: self.said[name] for name in ("data", "base_url", "admin", "api_key")},
            "log": str(log),
            "surfaces": sorted(SURFACES),
            "operations": OPERATIONS,
            "model": MODEL,
            "cut": CUT,
            "stall": STALL,
            "steady": STEADY,
            "hint": HINT,
            "wrong_key": WRONG_KEY,
            "keys": {
                caller: key_of(caller)
                for client in clients()
                for caller in [client, *(slow_caller(client, surface) for surface in OPERATIONS)]
            },
        }


class Proxy:
    """The proxy as one client's suite sees it. Calls are counted from `mark()` on."""

    def __init__(self, description: dict, client: str):
        self.client = client
        self.data, self.base_url, self.admin = (description[name] for name in ("data", "base_url", "admin"))
        self.log, self.operations = Path(description["log"]), description["operations"]
        self.key = key_of(client)
        self.sandbox_key = description["api_key"]
        self.mark()

    def slow_key(self, surface: str) -> str:
        """The key of a caller that may ask once in HINT seconds."""
        return key_of(slow_caller(self.client, surface))

    def metrics(self) -> dict:
        """Every series by its whole name."""
        lines = exchange(self.admin, "GET", "/metrics").body.decode().splitlines()
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines)
            if not name.startswith("#")
        }

    def total(self, metrics: dict, name: str, label: str = "") -> float:
        return sum(value for series, value in metrics.items() if series.startswith(name + "{") and label in series)

    def access_lines(self) -> list:
        whole = self.log.read_bytes().rpartition(b"\n")[0].splitlines()
        return [
            line
            for line in map(json.loads, (text for text in whole if b'"access"' in text))
            if line["target"] == "access"
        ]

    def mark(self):
        self.seen = len(self.settled())

    def settled(self) -> list:
        """The access lines, once there is one for each call that the metrics count."""
        until = time.monotonic() + 5
        while True:
            ended = self.total(self.metrics(), "weighbridge_requests_total")
            lines = self.access_lines()
            if len(lines) == ended:
                return lines
            assert time.monotonic() < until, f"{ended:.0f} calls have ended and {len(lines)} are in the access log"
            time.sleep(0.01)

    def calls(self) -> list:
        """What the proxy noted of our calls since the mark, in order. A call with a wrong key has no caller."""
        ours = (self.client, None)
        lines = self.settled()[self.seen :]
        lines = [
            line for line in lines if line.get("caller.id") in ours or str(line["caller.id"]).startswith(self.client)
        ]
        return sorted(lines, key=lambda line: line["timestamp"])

    def one_call(self, surface: str = "chat", status: int = 200, outcome: str = "ok") -> dict:
        """The only call since the mark, which was on that surface and ended so."""
        calls = self.calls()
        assert len(calls) == 1, calls
        self.was(calls[0], surface, status, outcome)
        return calls[0]

    def was(self, call: dict, surface: str = "chat", status: int = 200, outcome: str = "ok"):
        assert (call["operation"], call["status"], call["outcome"]) == (self.operations[surface], status, outcome), call
        if outcome == "ok":
            assert call["attempts"].endswith(":ok"), call

    def metered(self, call: dict):
        """Tokens are counted, whether or not the client asked to see them."""
        assert call["tokens_in"] > 0 and call["tokens_out"] > 10, call

    def streamed(self, surface: str = "chat") -> dict:
        """The only call since the mark was a stream that came to its end, and its tokens are counted."""
        call = self.one_call(surface)
        assert call["stream.end"] == "complete", call
        self.metered(call)
        return call

    def turns(self, count: int, surface: str = "chat"):
        """So many calls since the mark, all answered and metered."""
        calls = self.calls()
        assert len(calls) == count, calls
        for call in calls:
            self.was(call, surface)
            assert call["tokens_in"] > 0 and call["tokens_out"] > 0, call

    def refused(self, status: int, outcome: str, surface: str = "chat"):
        """One call, refused, and no retry: it could not have ended otherwise."""
        call = self.one_call(surface, status, outcome)
        assert "attempts" not in call, "no provider was asked"

    def waits_as_told(self, call, surface: str = "chat", whole_seconds: bool = False):
        """Of two calls in a row by a caller that may ask once in HINT seconds, the second is refused once, waits as long as
        it is told, and is then answered. A machine too busy for two calls in that time may try again."""
        hint = math.ceil(HINT) if whole_seconds else HINT
        for _ in range(5):
            self.mark()
            call()
            began = time.monotonic()
            call()
            took = time.monotonic() - began
            calls = self.calls()
            if 429 in [call["status"] for call in calls] and took < hint + 1:
                break
            time.sleep(HINT)
        assert [call["status"] for call in calls] == [200, 429, 200], calls
        assert calls[1]["outcome"] == "rate_limited" and calls[1]["operation"] == self.operations[surface]
        assert HINT - 0.4 <= took < hint + 1, f"it took {took:.2f} s and was told {hint} s"

    def truncated(self, surface: str = "chat"):
        call = self.one_call(surface, outcome="upstream_error")
        assert call["stream.end"] == "truncated", call

    def let_go(self, surface: str = "chat", model: str = STALL):
        """The client left a stream, and nothing of it is held any longer."""
        self.eventually(lambda: self.in_flight(model) == 0)
        call = self.one_call(surface, outcome="client_gone")
        assert call["stream.end"] == "client_gone" and call["route.id"] == model, call
        assert call["duration_ms"] < 3000, "sooner than the route's idle limit would have ended it"

    def in_flight(self, model: str) -> float:
        return self.total(self.metrics(), "weighbridge_in_flight", f'route="{model}"')

    def eventually(self, truth, within=2.5):
        until = time.monotonic() + within
        while not truth():
            assert time.monotonic() < until, f"still not so after {within} s"
            time.sleep(0.02)

    def heal(self, model: str):
        """One good answer of a model that fails by its name, so that its breaker never sees five failures in a row."""
        provider = model.partition("/")[0]
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "heal"}],
            "sandbox_fault": {provider: "delay:0ms"},
        }
        headers = {"Authorization": f"Bearer {self.sandbox_key}"}
        until = time.monotonic() + 5
        while exchange(self.data, "POST", "/v1/chat/completions", body, headers).headers.get("wb-provider") != provider:
            assert time.monotonic() < until, f"{model} is still answered by the provider behind it"
            time.sleep(0.2)
        self.mark()


class Question:
    """One that nobody asked before, since the summary route answers repeated ones from its cache; the simulated provider
    repeats it in its answer."""

    def __init__(self):
        self.nonce = uuid.uuid4().hex
        self.text = f"Say hello to order {self.nonce} in three words."

    def messages(self) -> list:
        return [{"role": "user", "content": self.text}]

    def answered(self, text: str):
        """`text` is all of the answer to this question, from its first word to its last."""
        assert text.startswith("This is "), text
        assert self.nonce in text, text
        assert text.endswith("so that streaming can be seen."), text
        return True


def said_after(text: str):
    """`text` is all of an answer, whichever question it was to."""
    assert text.startswith("This is ") and text.endswith("so that streaming can be seen."), text


def broken_off(text: str):
    """`text` is the three words that come before the fault."""
    assert text.split() and "This is sandbox,".startswith(text.strip()), text


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    folder = Path(sys.argv[1])
    sandbox = MatrixSandbox(folder)
    try:
        waiting = folder / "matrix.json.new"
        waiting.write_text(json.dumps(sandbox.description))
        waiting.rename(folder / "matrix.json")
        while True:
            signal.pause()
    finally:
        sandbox.stop()


if __name__ == "__main__":
    main()
