"""Real upstreams on loopback, the proxy in front of them, and ways to look at both from outside."""

import hashlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import openai
from harness import ROOT, Process, Sandbox, exchange, free_port

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = Path(os.environ.get("WEIGHBRIDGE_REAL", ROOT / "target/sdk-real"))
SLOTS = 8  # llama_server.py
MOCKED = "The mocked aggregator answers in pieces of three characters."


def key() -> str:
    """LiteLLM refuses a master key that is easy to guess, and keys that do not begin with `sk-`."""
    return f"sk-{secrets.token_hex(24)}"


class Upstream:
    """A server in a Python environment of its own; killed, not asked, because that is how upstreams go."""

    ready_within = 120

    def __init__(self, folder: Path, name: str):
        self.port, self.key = free_port(), key()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{name}.log"
        self.process = None

    def command(self) -> list:
        raise NotImplementedError

    def environment(self) -> dict:
        return {}

    def is_ready(self) -> bool:
        raise NotImplementedError

    def start(self) -> float:
        """Seconds until it answers."""
        started = time.monotonic()
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                [str(part) for part in self.command()],
                env={**os.environ, **self.environment()},
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            while not self.answers():
                assert self.process.poll() is None, f"{self.log.stem} ended:\n{self.said()}"
                late = time.monotonic() - started > self.ready_within
                assert not late, f"{self.log.stem} does not answer:\n{self.said()}"
                time.sleep(0.1)
        except BaseException:
            self.kill()
            raise
        return time.monotonic() - started

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def answers(self) -> bool:
        try:
            return self.is_ready()
        except OSError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    @contextmanager
    def frozen(self):
        """It still accepts, because the kernel does, and says nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def resident_mib(self) -> int:
        return resident_mib(self.process.pid)


def resident_mib(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) // 1024


class Llama(Upstream):
    def __init__(self, folder: Path):
        super().__init__(folder, "llama")

    def command(self):
        return [ENVIRONMENTS / "llama/bin/python", HERE / "llama_server.py", self.port, self.key]

    def is_ready(self):
        return exchange(self.url, "GET", "/health").status == 200

    def ask(self, path: str):
        return exchange(self.url, "GET", path, headers={"Authorization": f"Bearer {self.key}"})

    def busy(self) -> int:
        """Requests it is reading or generating for, by its log. Its own `/slots` tells as much, but it looks for
        callers that left only after a second without any news, and each look at `/slots` is news."""
        slots = set()
        for begun, id in re.findall(r"slot +(launch_slot_|release): id +(\d+)", self.log.read_text(errors="replace")):
            (slots.add if begun == "launch_slot_" else slots.discard)(id)
        return len(slots)

    def generated(self) -> int:
        """Tokens of the requests it is generating for at this moment."""
        slots = [slot for slot in self.ask("/slots").json() if slot["is_processing"]]
        return sum(part["n_decoded"] for slot in slots for part in slot.get("next_token", []))

    def metric(self, name: str) -> float:
        return float(re.search(rf"^llamacpp:{name} (\S+)$", self.ask("/metrics").body.decode(), re.M)[1])

    def idle_within(self, seconds: float) -> float:
        """Seconds until it generates nothing."""
        started = time.monotonic()
        while self.busy():
            assert time.monotonic() - started < seconds, f"it still generates after {seconds} s"
            time.sleep(0.01)
        return time.monotonic() - started


class LiteLLM(Upstream):
    """The aggregator. Most of its models are its own mocks; some lead to the real model."""

    def __init__(self, folder: Path, llama: Llama):
        super().__init__(folder, "litellm")
        self.config = folder / "litellm.json"
        mock = {
            "summary": {"mock_response": MOCKED},
            "slow": {"mock_response": MOCKED, "mock_delay": 0.3},
            "limited": {"mock_response": "litellm.RateLimitError"},
            "broken": {"mock_response": "litellm.InternalServerError"},
            "too-long": {"mock_response": "litellm.ContextWindowExceededError"},
            "overloaded": {"mock_response": "Exception: mock_streaming_error"},
        }
        real = {"api_base": f"{llama.url}/v1", "api_key": llama.key}
        behind = {
            "real": real,
            "lost": {**real, "api_base": f"{llama.url}/nowhere"},
            "key-refused": {**real, "api_key": "sk-not-the-key-of-the-real-model"},
            "down": {**real, "api_base": f"http://127.0.0.1:{free_port()}/v1"},
        }
        models = {name: {"model": f"openai/{name}", "api_key": "none", **how} for name, how in mock.items()}
        models |= {name: {"model": "openai/smollm2", **how} for name, how in behind.items()}
        config = {
            "model_list": [{"model_name": name, "litellm_params": params} for name, params in models.items()],
            # Retrying and setting aside is the proxy's business.
            "litellm_settings": {"telemetry": False, "num_retries": 0, "request_timeout": 60},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
        }
        self.config.write_text(json.dumps(config))  # JSON is YAML

    def command(self):
        program = ENVIRONMENTS / "litellm/bin/litellm"
        return [program, "--config", self.config, "--host", "127.0.0.1", "--port", self.port, "--num_workers", 1]

    def environment(self):
        return {
            "LITELLM_MASTER_KEY": self.key,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_TELEMETRY": "False",
            "LITELLM_LOG": "ERROR",
            "DISABLE_ADMIN_UI": "True",
            "NO_DOCS": "True",
        }

    def is_ready(self):
        return exchange(self.url, "GET", "/health/liveliness").status == 200


class Tap:
    """A wire between the proxy and an upstream that notes when bytes pass; it changes and delays nothing."""

    def __init__(self, port: int):
        self.far = port
        self.events = []  # (when, text of one SSE event) in the order they left the upstream
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self.listener.close()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.far))
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._carry, args=(near, far, None), daemon=True).start()
            threading.Thread(target=self._carry, args=(far, near, self.events), daemon=True).start()

    @staticmethod
    def _carry(source, sink, events):
        pending = b""
        try:
            while read := source.recv(65536):
                now = time.monotonic()
                if events is not None:
                    pending += read
                    *whole, pending = re.split(rb"\r?\n\r?\n", pending)
                    events += [(now, found[1].decode()) for part in whole if (found := re.search(rb"data: (.*)", part))]
                sink.sendall(read)
        except OSError:
            pass
        finally:
            for one in (source, sink):
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


def provider(id: str, url: str, secret: str, models, more="") -> str:
    listed = "".join(f'\n[[model]]\nid = "{model}"\n' for model in models)
    return f"""
id = "{id}"
protocol = "openai"
base_url = "{url}"
allow_private = true
source = {{ url = "https://example.com/loopback", checked = "2026-11-22" }}
auth = {{ kind = "bearer", secret_env = "{secret}" }}
operations = ["chat.completions"]
{more}{listed}"""


ROUTES = """
version = 1

[[caller]]
id = "real"
key_digest = "{digest}"
allow = ["*", "litellm/*", "limited/*", "stranger/*", "llama/*", "intruder/*"]

# A machine that does other things too may take its time: only where times are the matter are they short.
[model.aggregated]
candidates = ["litellm/summary"]
timeouts = {{ total = "240s", first_content = "120s", idle = "60s" }}

[model.real]
candidates = ["llama/smollm2"]
timeouts = {{ total = "240s", first_content = "120s", idle = "60s" }}

[model.tapped]
candidates = ["tapped/smollm2"]
timeouts = {{ total = "240s", first_content = "120s", idle = "60s" }}

[model.through]
candidates = ["litellm/real"]
timeouts = {{ total = "240s", first_content = "120s", idle = "60s" }}

[model.steady]
candidates = ["litellm/slow", "llama/smollm2"]
timeouts = {{ total = "60s", first_content = "10s", idle = "10s" }}

[model.impatient]
candidates = ["litellm/summary", "llama/smollm2"]
timeouts = {{ total = "24s", first_content = "4s", idle = "10s" }}

[model.alert]
candidates = ["llama/smollm2"]
timeouts = {{ total = "240s", first_content = "120s", idle = "3s" }}

[model.after-limited]
candidates = ["limited/limited", "llama/smollm2"]

[model.after-broken]
candidates = ["litellm/broken", "llama/smollm2"]

[model.after-stranger]
candidates = ["stranger/summary", "llama/smollm2"]

[model.after-intruder]
candidates = ["intruder/smollm2", "litellm/summary"]

[model.after-key-refused]
candidates = ["litellm/key-refused", "llama/smollm2"]

[model.after-down]
candidates = ["litellm/down", "llama/smollm2"]

[model.after-overloaded]
candidates = ["litellm/overloaded", "llama/smollm2"]
"""


class Proxy(Sandbox):
    """`weighbridge serve` in front of the real upstreams; what a sandbox can be asked, it can be asked too."""

    def __init__(self, folder: Path, litellm: LiteLLM, llama: Llama):
        self.key = f"wb-real-{secrets.token_hex(24)}"
        self.tap = Tap(llama.port)
        routes, providers = folder / "routes.toml", folder / "providers"
        providers.mkdir()
        routes.write_text(ROUTES.format(digest=f"sha256:{hashlib.sha256(self.key.encode()).hexdigest()}"))
        named = json.loads(litellm.config.read_text())["model_list"]
        models = [model["model_name"] for model in named] + ["not-configured"]
        once = 'headers = { x-litellm-num-retries = "0" }\n'
        files = {
            "litellm": provider("litellm", litellm.url, "REAL_LITELLM_KEY", models, once),
            "limited": provider("limited", litellm.url, "REAL_LITELLM_KEY", ["limited"], once),
            "stranger": provider("stranger", litellm.url, "REAL_WRONG_KEY", ["summary"], once),
            "llama": provider("llama", f"{llama.url}/v1", "REAL_LLAMA_KEY", ["smollm2"]),
            "intruder": provider("intruder", f"{llama.url}/v1", "REAL_WRONG_KEY", ["smollm2"]),
            "tapped": provider("tapped", f"http://127.0.0.1:{self.tap.port}/v1", "REAL_LLAMA_KEY", ["smollm2"]),
        }
        for name, text in files.items():
            (providers / f"{name}.toml").write_text(text)
        data, admin = free_port(), free_port()
        arguments = ["serve", "--routes", str(routes), "--providers", str(providers), "--log-format", "json"]
        arguments += ["--listen", f"127.0.0.1:{data}", "--admin-listen", f"127.0.0.1:{admin}"]
        secret = {"REAL_LITELLM_KEY": litellm.key, "REAL_LLAMA_KEY": llama.key, "REAL_WRONG_KEY": key()}
        self.process = Process(arguments, folder / "proxy.log", env=secret)
        self.data, self.admin = f"http://127.0.0.1:{data}", f"http://127.0.0.1:{admin}"
        self.base_url = f"{self.data}/v1"
        self.process.wait_for_port(data)
        self.process.wait_for_port(admin)

    def stop(self):
        self.tap.close()
        self.process.stop()

    @property
    def pid(self) -> int:
        return self.process.process.pid

    def client(self, **options) -> openai.OpenAI:
        """The official SDK, without its own retries: what it is told is what the proxy said."""
        usual = {"base_url": self.base_url, "api_key": self.key, "max_retries": 0, "timeout": 120}
        return openai.OpenAI(**{**usual, **options})

    def access_lines(self) -> list:
        """The access log, oldest first."""
        lines = [json.loads(line) for line in self.process.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("target") == "access"]

    def connections_to(self, upstream: Upstream) -> int:
        """Open connections of the proxy's process to an upstream, as the kernel sees them."""
        inodes = set()
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor))
            except OSError:
                continue
            if found:
                inodes.add(found[1])
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        far = f"{upstream.port:04X}"
        return sum(row[2].endswith(f":{far}") and row[3] == "01" and row[9] in inodes for row in rows)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))
