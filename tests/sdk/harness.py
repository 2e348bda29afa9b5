"""Starts the product as its users do, and speaks plain HTTP to it with the standard library only."""

import hashlib
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("WEIGHBRIDGE_BIN", ROOT / "target/release/weighbridge"))
# Far more than it takes on a machine that others use too.
PATIENCE = 90
READY_WITHIN = PATIENCE
STOP_WITHIN = PATIENCE

NARROW_KEY = "wb-sdk-narrow-key-0123456789abcdef0123456789abcdef"
SLOW_KEY = "wb-sdk-slow-key-0123456789abcdef0123456789abcdef01"

# Callers of our own beside those of the repository's routes.toml, to show what a key may not do.
EXTRA_CALLERS = f"""
[[caller]]
id = "sdk-narrow"
tenant = "sdk-tests"
key_digest = "sha256:{hashlib.sha256(NARROW_KEY.encode()).hexdigest()}"
allow = ["summary"]

[[caller]]
id = "sdk-slow"
tenant = "sdk-tests"
key_digest = "sha256:{hashlib.sha256(SLOW_KEY.encode()).hexdigest()}"
allow = ["summary"]
limits = {{ requests_per_minute = 1 }}
"""


@dataclass
class Answer:
    """One whole HTTP answer; header names in lower case."""

    status: int
    headers: dict
    body: bytes
    took: float

    def json(self):
        return json.loads(self.body)


def exchange(base: str, method: str, path: str, body=None, headers=None, timeout=PATIENCE) -> Answer:
    """One request on a connection of its own. `body` is bytes, or anything JSON can say."""
    address = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=timeout)
    headers = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body, ensure_ascii=False).encode()
        headers.setdefault("Content-Type", "application/json")
    started = time.monotonic()
    try:
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        whole = response.read()
        lower = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, lower, whole, time.monotonic() - started)
    finally:
        connection.close()


class Stopwatch:
    """A clock that stands still while there is no core for the product or for who asks it.

    A limit that a test sets is a limit of the time the machine leaves to the product: what its threads spent ready to run,
    waiting for a core that somebody else had, is no slowness of theirs. Where nobody else computes, that is nothing.
    """

    def __init__(self, process: int):
        self.process, self.started = process, time.monotonic()
        self.product, self.own = waited(process), waited("self")

    def elapsed(self) -> float:
        return time.monotonic() - self.started - self.withheld()

    def withheld(self) -> float:
        # Threads wait at the same time: all their waits together would excuse more than the clock shows.
        product = max((wait - self.product.get(thread, 0) for thread, wait in waited(self.process).items()), default=0)
        own = max((wait - self.own.get(thread, 0) for thread, wait in waited("self").items()), default=0)
        return (product + own) / 1e9


def waited(process) -> dict:
    """Nanoseconds in the queue for a core, by thread; nothing where there is no /proc."""
    told = {}
    for file in Path(f"/proc/{process}/task").glob("*/schedstat"):
        with suppress(OSError):
            told[file.parent.name] = int(file.read_text().split()[1])
    return told


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Process:
    """The product, running; stopped with SIGTERM and expected to leave with 0."""

    def __init__(self, arguments, log: Path, env=None, stdout=None):
        self.log, self.draining = log, None
        self.output = open(log, "wb")
        self.process = subprocess.Popen(
            [str(BINARY), *arguments],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout or self.output,
            stderr=self.output,
        )

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def wait_for_port(self, port: int):
        with self.or_gone():
            self._wait_for_port(port)

    def first_line(self) -> str:
        with self.or_gone():
            line = self._first_line()
        # What else it prints goes to the log: an unread pipe would stop it.
        self.draining = threading.Thread(target=shutil.copyfileobj, args=(self.process.stdout, self.output), daemon=True)
        self.draining.start()
        return line

    @contextmanager
    def or_gone(self):
        """A process that does not get ready is not left behind."""
        try:
            yield
        except BaseException:
            self.process.kill()
            self.process.wait()
            self.output.close()
            raise

    def _wait_for_port(self, port: int):
        until = time.monotonic() + READY_WITHIN
        while time.monotonic() < until:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.said()}"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError(f"port {port} is not open after {READY_WITHIN} s:\n{self.said()}")

    def _first_line(self) -> str:
        until = time.monotonic() + READY_WITHIN
        line = b""
        stream = self.process.stdout.fileno()
        while not line.endswith(b"\n"):
            left = until - time.monotonic()
            ready = left > 0 and select.select([stream], [], [], left)[0]
            byte = os.read(stream, 1) if ready else b""
            assert byte, f"no line on its output ({self.process.poll()}):\n{self.said()}"
            line += byte
        return line.decode()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"it still runs {STOP_WITHIN} s after SIGTERM:\n{self.said()}") from None
        finally:
            if self.draining:
                self.draining.join(STOP_WITHIN)
            self.output.close()
        assert code == 0, f"it ended with {code}:\n{self.said()}"


class Sandbox:
    """`weighbridge sandbox --json`: the proxy in front of simulated providers."""

    def __init__(self, folder: Path, more_risk="", edit=lambda text: text, env=None):
        routes = folder / "routes.toml"
        text = (ROOT / "routes.toml").read_text()
        # The file shows its ladder as a comment: without a budget it would be refused.
        text = text.replace("\n# ladder =", "\nladder =") if more_risk else text
        routes.write_text(edit(text) + EXTRA_CALLERS + more_risk)
        arguments = ["sandbox", "--json", "--routes", str(routes), "--providers", str(ROOT / "providers")]
        arguments += ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        self.process = Process(arguments, folder / "log", env=env, stdout=subprocess.PIPE)
        self.said = json.loads(self.process.first_line())
        self.data = self.said["data"]
        self.base_url = self.said["base_url"]
        self.admin = self.said["admin"]
        self.key = self.said["api_key"]

    def stop(self):
        self.process.stop()

    def call(self, method, path, body=None, key=None, headers=None, timeout=PATIENCE) -> Answer:
        """A request to the data port with the sandbox's key, or `key`."""
        headers = {"Authorization": f"Bearer {key or self.key}", **(headers or {})}
        return exchange(self.data, method, path, body, headers, timeout)

    def assess(self, body, **options) -> Answer:
        return self.call("POST", "/v1/risk/assessments", body, **options)

    def metric(self, name: str, **labels) -> float:
        """The sum of a metric over all series that have these labels."""
        text = exchange(self.admin, "GET", "/metrics").body.decode()
        total = 0.0
        for line in text.splitlines():
            match = re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)", line)
            if match:
                have = dict(re.findall(r'(\w+)="([^"]*)"', match[1] or ""))
                if all(have.get(label) == value for label, value in labels.items()):
                    total += float(match[2])
        return total

    def stopwatch(self) -> Stopwatch:
        return Stopwatch(self.process.process.pid)

    def eventually(self, truth, within=3.0):
        """Waits until `truth()` holds, `within` so many seconds of the product's own."""
        watch = self.stopwatch()
        while not truth():
            assert watch.elapsed() < within, f"still not so after {within} s, and {watch.withheld()} s without a core"
            time.sleep(0.02)


def payment(amount="88.00", **changes) -> dict:
    """A valid assessment request with an order number of its own."""
    body = {
        "out_trade_no": f"T{uuid.uuid4().hex}",
        "total_amount": amount,
        "currency": "CNY",
        "subject": "demo",
        "merchant": {"id": "m1", "category": "groceries", "country": "CN"},
        "user": {"id": f"u-{uuid.uuid4().hex[:12]}", "country": "CN"},
        "device": {"id": "d1", "ip": "203.0.113.7"},
    }
    body.update(changes)
    return body
