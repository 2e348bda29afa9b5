"""The listener from outside: the official SDK over TLS and HTTP/2, and clients that abuse either.

What an attack must not do is judged by what an operator sees: the process's memory and processor time, how many calls
reached a provider, and whether somebody else is served meanwhile (RELIABILITY T1 to T5, P5)."""

import asyncio
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import uuid
from contextlib import contextmanager

import httpx2
import openai
import pytest
from harness import BINARY, ROOT, Sandbox
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CALM = 0xB
MIB = 1 << 20


def ask() -> list:
    return [{"role": "user", "content": f"Say hello to order {uuid.uuid4()} in three words."}]


# --- TLS ---


def openssl(folder, *arguments):
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def issue(folder, name, days=10):
    """A key and a certificate for localhost, signed by the folder's authority."""
    (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]
    openssl(folder, "req", *key, "-out", f"{name}.csr", "-subj", f"/CN={name}")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "san", "-days", str(days)]
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")


class Secure(Sandbox):
    """A sandbox with TLS on both listeners, whose clients may show a certificate."""

    def __init__(self, folder):
        self.folder = folder
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key"]
        openssl(folder, "req", "-x509", *key, "-out", "ca.pem", "-days", "10", "-subj", "/CN=private authority")
        for name in ("server", "client"):
            issue(folder, name)
        files = {"WEIGHBRIDGE_TLS_CERT": "server.pem", "WEIGHBRIDGE_TLS_KEY": "server.key", "WEIGHBRIDGE_TLS_CLIENT_CA": "ca.pem"}
        told = {name: str(folder / file) for name, file in files.items()}
        super().__init__(folder, env=told | {"WEIGHBRIDGE_ADMIN_TLS": "true"})

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.folder / "ca.pem")

    def client(self, **options) -> openai.OpenAI:
        transport = httpx2.Client(verify=self.context, **options)
        return openai.OpenAI(base_url=self.base_url, api_key=self.key, max_retries=0, timeout=90, http_client=transport)

    def admin_get(self, path) -> str:
        with httpx2.Client(verify=self.context) as client:
            return client.get(self.admin + path).raise_for_status().text


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    running = Secure(tmp_path_factory.mktemp("secure"))
    yield running
    running.stop()


@pytest.mark.parametrize("http2", [False, True])
def test_the_sdk_speaks_to_it_over_tls_with_a_private_authority(secure, http2):
    versions = []
    client = secure.client(http2=http2, event_hooks={"response": [lambda answer: versions.append(answer.http_version)]})
    answer = client.chat.completions.create(model="summary", messages=ask())
    assert answer.choices[0].message.content
    chunks = list(client.chat.completions.create(model="narrative", messages=ask(), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert versions == ["HTTP/2" if http2 else "HTTP/1.1"] * 2


def test_forty_streams_share_one_connection(secure):
    async def all_of_them():
        transport = httpx2.AsyncClient(verify=secure.context, http2=True, limits=httpx2.Limits(max_connections=1))
        async with openai.AsyncOpenAI(base_url=secure.base_url, api_key=secure.key, max_retries=0, timeout=90, http_client=transport) as client:

            async def one():
                stream = await client.chat.completions.create(model="narrative", messages=ask(), stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

            return await asyncio.gather(*(one() for _ in range(40)))

    texts = asyncio.run(all_of_them())
    assert len(texts) == 40 and all(texts)


def test_whoever_does_not_trust_the_authority_is_not_served(secure):
    client = openai.OpenAI(base_url=secure.base_url, api_key=secure.key, max_retries=0, timeout=90)
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model="summary", messages=ask())


def test_curl_and_node_speak_to_it(secure):
    body = json.dumps({"model": "summary", "messages": ask()})
    common = ["-sS", "--fail-with-body", "-H", f"authorization: Bearer {secure.key}", "-H", "content-type: application/json", "-d", body]
    for version, told in (("--http1.1", "1.1"), ("--http2", "2")):
        curl = ["curl", "--cacert", secure.folder / "ca.pem", version, "-w", "\n%{http_version}", *common, f"{secure.base_url}/chat/completions"]
        out = subprocess.run(curl, check=True, capture_output=True, text=True, timeout=90).stdout
        assert out.splitlines()[-1] == told and "choices" in out
    script = """
      const [url, key, body] = process.argv.slice(1);
      const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
      const answer = await fetch(url, { method: "POST", headers, body });
      console.log(answer.status, (await answer.json()).choices.length);
    """
    node = [shutil.which("node"), "--input-type=module", "-e", script, "--", f"{secure.base_url}/chat/completions", secure.key, body]
    trust = {**os.environ, "NODE_EXTRA_CA_CERTS": str(secure.folder / "ca.pem")}
    out = subprocess.run(node, check=True, capture_output=True, text=True, timeout=90, env=trust).stdout
    assert out == "200 1\n"


def test_plain_http_is_told_what_is_wrong(secure):
    address = secure.data.removeprefix("https://")
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", "/v1/models")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (400, b"this port speaks TLS, use https://\n")


def test_a_renewed_certificate_is_in_use_without_a_restart(secure):
    def shown():
        host, port = secure.data.removeprefix("https://").split(":")
        with socket.create_connection((host, int(port))) as plain, secure.context.wrap_socket(plain, server_hostname="localhost") as tls:
            return tls.getpeercert(binary_form=True)

    def status():
        return json.loads(secure.admin_get("/status.json"))["tls"]

    first, was = shown(), status()
    assert was["client_auth"] == "optional" and was["expires_in_seconds"] > 9 * 86400 and "error" not in was
    assert "localhost" in was["names"]
    issue(secure.folder, "next", days=20)
    # First the certificate alone: half a renewal is no pair, and the old one stays.
    shutil.copy(secure.folder / "next.pem", secure.folder / "server.pem")
    secure.eventually(lambda: "not the key of the certificate" in status().get("error", ""), within=8)
    assert shown() == first
    shutil.copy(secure.folder / "next.key", secure.folder / "server.key")
    secure.eventually(lambda: shown() != first, within=8)
    now = status()
    assert "error" not in now and now["expires_in_seconds"] > 19 * 86400
    metrics = secure.admin_get("/metrics")
    assert 'weighbridge_tls_reloads_total{result="mismatch"} 1' in metrics
    assert 'weighbridge_tls_reloads_total{result="success"} 1' in metrics
    expires = re.search(r"^weighbridge_tls_certificate_expiry_timestamp_seconds (\d+)$", metrics, re.MULTILINE)
    assert abs(int(expires[1]) - time.time() - now["expires_in_seconds"]) < 30


def test_a_start_with_a_pair_that_does_not_fit_is_refused(secure):
    command = [BINARY, "sandbox", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
    pair = ["--tls-cert", secure.folder / "client.pem", "--tls-key", secure.folder / "ca.key"]
    ended = subprocess.run([*command, *pair], cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert ended.returncode == 2 and "not the key of the certificate in" in ended.stderr
    ended = subprocess.run([*command, *pair[:2]], cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert ended.returncode == 2 and "--tls-key" in ended.stderr


def test_t6_old_versions_and_weak_suites_are_refused(secure):
    address = secure.data.removeprefix("https://")
    for options in (["-tls1"], ["-tls1_1"], ["-tls1_2", "-cipher", "AES128-SHA:ECDHE-RSA-AES128-SHA:@SECLEVEL=0"]):
        ended = subprocess.run(["openssl", "s_client", "-connect", address, *options], stdin=subprocess.DEVNULL, capture_output=True, timeout=90)
        assert ended.returncode != 0, options
    for options in (["-tls1_2"], ["-tls1_3"]):
        ended = subprocess.run(["openssl", "s_client", "-connect", address, *options], stdin=subprocess.DEVNULL, capture_output=True, timeout=90)
        assert ended.returncode == 0


# --- HTTP/2 in the clear, frame by frame ---


class Peer:
    """One HTTP/2 connection written by hand. `send` gives up quietly when the other side has hung up."""

    def __init__(self, sandbox, settings=None):
        host, port = sandbox.data.split("://")[1].split(":")
        self.sandbox, self.hpack = sandbox, Encoder()
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.gone, self.calm, self.received, self.buffer = False, None, 0, b""
        self.send(PREFACE + SettingsFrame(0, settings=settings or {}).serialize())

    def send(self, data: bytes) -> bool:
        try:
            self.socket.sendall(data)
        except OSError:
            self.gone = True
        return not self.gone

    def fields(self, length=0):
        return [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", "/v1/chat/completions"),
            ("authorization", f"Bearer {self.sandbox.key}"),
            ("content-type", "application/json"),
        ] + ([("content-length", str(length))] if length else [])

    def headers(self, stream, *flags, more=()) -> bytes:
        frame = HeadersFrame(stream, self.hpack.encode([*self.fields(), *more], huffman=False))
        frame.flags |= set(flags)
        return frame.serialize()

    def hear(self, timeout=0.0):
        """Reads what has come; notes a GOAWAY and the end."""
        self.socket.settimeout(max(timeout, 0.001))
        try:
            while not self.gone:
                data = self.socket.recv(1 << 16)
                self.gone = not data
                self.received += len(data)
                self.buffer += data
                while len(self.buffer) >= 9:
                    frame, length = Frame.parse_frame_header(memoryview(self.buffer[:9]))
                    if len(self.buffer) < 9 + length:
                        break
                    frame.parse_body(memoryview(self.buffer[9 : 9 + length]))
                    self.buffer = self.buffer[9 + length :]
                    if isinstance(frame, GoAwayFrame):
                        self.calm = frame.error_code
        except TimeoutError:
            pass
        except OSError:
            self.gone = True
        finally:
            self.socket.settimeout(60)

    def flood(self, chunk, within=20.0) -> int:
        """Sends what `chunk(number)` gives until the other side hangs up; tells how many it took."""
        watch, sent = self.sandbox.stopwatch(), 0
        while watch.elapsed() < within and not self.gone and self.calm is None:
            if not self.send(chunk(sent)):
                break
            sent += 1
            if sent % 8 == 0:
                self.hear()
        self.hear(1.0)
        return sent

    def close(self):
        self.socket.close()


def chat(stream=False, model="sandbox/steady") -> bytes:
    return json.dumps({"model": model, "messages": ask(), "stream": stream}).encode()


def usage(sandbox):
    """Resident bytes and processor seconds of the process."""
    pid = sandbox.process.process.pid
    with open(f"/proc/{pid}/statm") as statm, open(f"/proc/{pid}/stat") as stat:
        resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        times = stat.read().rsplit(")", 1)[1].split()[11:13]
    return resident, sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def somebody_else(sandbox):
    """Calls all the while on connections of their own; every call must be answered, and soon."""
    stop, worst, failures = threading.Event(), [0.0], []

    def run():
        while not stop.is_set():
            try:
                watch = sandbox.stopwatch()
                answer = sandbox.call("POST", "/v1/chat/completions", json.loads(chat()))
                worst[0] = max(worst[0], answer.took - watch.withheld())
                if answer.status != 200:
                    failures.append(answer.status)
            except OSError as error:
                failures.append(error)
            time.sleep(0.05)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures, failures[:5]
    assert worst[0] < 5.0


@pytest.fixture
def attacked(sandbox):
    """The sandbox, with a look at its memory before and after."""
    sandbox.call("GET", "/v1/models")
    before, _ = usage(sandbox)
    with somebody_else(sandbox):
        yield sandbox
    after, _ = usage(sandbox)
    assert after - before < 64 * MIB, f"{(after - before) / MIB:.0f} MiB more"
    sandbox.eventually(lambda: sandbox.metric("weighbridge_in_flight") == 0, within=10)


def attempts(sandbox) -> float:
    return sandbox.metric("weighbridge_upstream_attempts_total")


def test_t1_rapid_reset_ends_in_enhance_your_calm(attacked):
    body, peer = chat(), Peer(attacked)

    def burst(number):
        frames = b""
        for at in range(100):
            stream = (number * 100 + at) * 2 + 1
            data = DataFrame(stream, body, flags=["END_STREAM"])
            frames += peer.headers(stream, "END_HEADERS") + data.serialize() + RstStreamFrame(stream, error_code=8).serialize()
        return frames

    before, watch = attempts(attacked), attacked.stopwatch()
    bursts = peer.flood(burst)
    assert (peer.gone or peer.calm is not None) and bursts < 1000 and watch.elapsed() < 15
    assert peer.calm in (CALM, None)
    # Somebody else called meanwhile, too.
    assert attempts(attacked) - before < 2000


def test_t1_slow_reset_never_has_more_calls_than_streams(attacked):
    body, peer = json.loads(chat()), Peer(attacked)
    body["model"] = "sandbox/slow"
    body = json.dumps(body).encode()
    for stream in range(1, 400, 2):
        data = DataFrame(stream, body, flags=["END_STREAM"])
        if not peer.send(peer.headers(stream, "END_HEADERS") + data.serialize()):
            break
        time.sleep(0.002)
        peer.send(RstStreamFrame(stream, error_code=8).serialize())
    attacked.eventually(lambda: attacked.metric("weighbridge_in_flight") <= 2, within=3)
    peer.close()


def test_t2_continuation_without_end_is_cut(attacked):
    peer = Peer(attacked)
    peer.send(peer.headers(1))
    piece = peer.hpack.encode([("x-a", "b" * 4000)], huffman=False)
    sent = peer.flood(lambda _: ContinuationFrame(1, piece).serialize())
    assert (peer.gone or peer.calm is not None) and sent * len(piece) < 2 * MIB


def test_t3_crumbs_and_a_closed_window_hold_no_memory(attacked):
    peers = [Peer(attacked, {SettingsFrame.INITIAL_WINDOW_SIZE: 0}) for _ in range(5)]
    before, _ = usage(attacked)
    crumbs = [("cookie", "a=b")] * 40
    for peer in peers:
        for at in range(100):
            # Of other providers than the one beside: 500 streams fill a bulkhead, and that is what it is for.
            body = chat(stream=True, model="narrative")
            data = DataFrame(at * 2 + 1, body, flags=["END_STREAM"])
            if not peer.send(peer.headers(at * 2 + 1, "END_HEADERS", more=crumbs) + data.serialize()):
                break
        peer.hear(0.2)
    time.sleep(2)
    after, _ = usage(attacked)
    assert after - before < 5 * 20 * MIB, f"{(after - before) / MIB:.0f} MiB for five connections"
    for peer in peers:
        peer.close()


def test_t4_empty_data_is_cut(attacked):
    peer = Peer(attacked)
    peer.send(peer.headers(1, "END_HEADERS"))
    empty = DataFrame(1, b"").serialize() * 1000
    sent = peer.flood(lambda _: empty)
    assert (peer.gone or peer.calm is not None) and sent < 1000, f"{sent * 1000} empty frames were taken"


FLOODS = {
    "settings": SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65535}).serialize() * 200,
    "ping": PingFrame(0, b"\0" * 8).serialize() * 200,
    "priority": PriorityFrame(3, depends_on=1, stream_weight=7).serialize() * 200,
    "unknown": (struct.pack(">I", 8)[1:] + b"\xfa\0\0\0\0\0" + b"\0" * 8) * 200,
}


@pytest.mark.parametrize("kind", FLOODS)
def test_t5_floods_of_what_needs_no_stream_do_not_starve_others(attacked, kind):
    """They are legal, and answered or ignored; what counts is that nothing grows and nobody waits."""
    peer = Peer(attacked)
    before, _ = usage(attacked)
    # Never reading: whoever has to answer must not collect the answers.
    until = time.monotonic() + 2
    peer.socket.settimeout(2)
    while time.monotonic() < until and peer.send(FLOODS[kind]):
        pass
    after, busy = usage(attacked)
    assert after - before < 20 * MIB
    peer.close()
    time.sleep(1)
    _, later = usage(attacked)
    assert later - busy < 0.8, "it goes on computing for a client that has left"


ODD = {
    "an even stream": lambda peer: peer.headers(2, "END_HEADERS"),
    "data on stream 0": lambda _: struct.pack(">I", 1)[1:] + b"\0\0\0\0\0\0" + b"x",
    "a window beyond its size": lambda _: WindowUpdateFrame(0, window_increment=0x7FFFFFFF).serialize(),
    "data on an idle stream": lambda _: DataFrame(9, b"x").serialize(),
    "a frame beyond its size": lambda peer: peer.headers(1, "END_HEADERS") + DataFrame(1, b"x" * 70_000).serialize(),
}


@pytest.mark.parametrize("kind", ODD)
def test_t5_frames_that_cannot_be_end_the_connection(attacked, kind):
    peer = Peer(attacked)
    peer.send(ODD[kind](peer))
    watch = attacked.stopwatch()
    while not peer.gone and peer.calm in (None, 0) and watch.elapsed() < 3:
        peer.hear(0.5)
    assert peer.gone or peer.calm not in (None, 0), "it goes on"


def test_http2_by_prior_knowledge_in_the_clear(sandbox):
    curl = ["curl", "-sS", "--fail-with-body", "--http2-prior-knowledge", "-w", "\n%{http_version}", "-H", f"authorization: Bearer {sandbox.key}"]
    out = subprocess.run([*curl, f"{sandbox.base_url}/models"], check=True, capture_output=True, text=True, timeout=90).stdout
    assert out.splitlines()[-1] == "2"


# --- slow clients ---

SHORT = """
[limits]
head_timeout = "2s"
body_idle = "2s"
write_stall = "3s"
keep_alive = "4s"
"""


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    def edit(text):
        text, count = re.subn(r"(?ms)^\[limits\]\n.*?(?=^\[|\Z)", SHORT.lstrip() + "\n", text)
        assert count == 1
        return text

    running = Sandbox(tmp_path_factory.mktemp("impatient"), edit=edit)
    yield running
    running.stop()


@pytest.mark.skipif(not shutil.which("slowhttptest"), reason="slowhttptest is not installed")
@pytest.mark.parametrize("kind, options", [("slow head", ["-H"]), ("slow body", ["-B", "-s", "8192"]), ("slow read", ["-X", "-w", "1", "-y", "2", "-n", "5", "-z", "1"])])
def test_p5_slowhttptest_is_reaped_while_somebody_else_is_served(impatient, kind, options):
    common = ["-c", "200", "-r", "200", "-i", "1", "-x", "4", "-l", "8", "-p", "3", "-u", f"{impatient.data}/v1/chat/completions"]
    headers = ["-t", "POST", "-f", "application/json"]
    with somebody_else(impatient):
        told = subprocess.run(["slowhttptest", *options, *common, *headers], capture_output=True, text=True, timeout=180)
    assert told.returncode == 0, told.stdout[-800:]
    impatient.eventually(lambda: impatient.metric("weighbridge_connections_open") <= 2, within=8)
    assert impatient.metric("weighbridge_in_flight") == 0
