"""A real systemd in namespaces of its own (`scripts/systemd`), what is typed there, and calls over its network."""

import ctypes
import http.client
import json
import os
import ssl
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

from harness import BINARY, ROOT
from story import Shell

SCRIPT = ROOT / "scripts/systemd"
UP_WITHIN = 40
NETWORK = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


class Machine:
    """Boots, and takes this process's network along: its loopback is the machine's from then on."""

    def __init__(self, folder: Path):
        self.folder = folder
        # It ends with us, however we end, and holds nothing of ours open.
        self.system = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", SCRIPT, "--boot", folder],
            env={**os.environ, "WEIGHBRIDGE_BIN": str(BINARY.resolve())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.before = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            self._wait()
            self._enter(os.open(f"/proc/{self.init()}/ns/net", os.O_RDONLY))
        except BaseException:
            self.stop()
            raise
        self.shell = Shell(folder, {}, entering=self.entering())

    def entering(self) -> list:
        return [SCRIPT, "--in", self.folder]

    def init(self) -> int:
        return int((self.folder / "init").read_text())

    def _wait(self):
        until = time.monotonic() + UP_WITHIN
        while True:
            state = (self.folder / "init").exists() and self.says("systemctl is-system-running || true").strip()
            if state in ("running", "degraded"):
                return
            console = self.folder / "console"
            told = console.read_text() if console.exists() else ""
            assert self.system.poll() is None and time.monotonic() < until, f"systemd does not come up ({state}):\n{told}"
            time.sleep(0.1)

    def _enter(self, network: int):
        # For this thread and those it starts: all that a test does.
        ended = LIBC.setns(network, NETWORK)
        os.close(network)
        assert ended == 0, os.strerror(ctypes.get_errno())

    def says(self, command: str, within=60) -> str:
        """What a command prints, whether it ends well or not."""
        ended = subprocess.run([*self.entering(), "bash", "-c", command], capture_output=True, text=True, timeout=within)
        return ended.stdout + ended.stderr

    def show(self, unit: str, *names: str) -> dict:
        asked = " ".join(f"-p {name}" for name in names)
        return dict(line.split("=", 1) for line in self.says(f"systemctl show {unit} {asked}").splitlines() if "=" in line)

    def pid(self, unit="weighbridge.service") -> int:
        return int(self.show(unit, "MainPID")["MainPID"])

    def lines(self, unit="weighbridge.service") -> list:
        """What a unit wrote into the journal."""
        return self.says(f"journalctl --quiet -o cat -u {unit}").splitlines()

    def until(self, holds, within=15, saying="it never came to that"):
        end = time.monotonic() + within
        while not (seen := holds()):
            assert time.monotonic() < end, f"{saying}\n{self.says('systemctl status --no-pager weighbridge.service')}"
            time.sleep(0.05)
        return seen

    def stop(self):
        """Of whatever is left of it."""
        self._enter(self.before)
        self.system.terminate()
        self.system.wait(20)
        with suppress(OSError, AttributeError):
            self.shell.stop()


class Load:
    """Callers that ask all the time, each over a connection of its own for each call; what became of every call."""

    def __init__(self, port: int, ca: Path, key: str, callers=4):
        self.port, self.key, self.over = port, key, threading.Event()
        self.trust = ssl.create_default_context(cafile=str(ca))
        self.seen = Counter()
        self.threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(callers)]
        for thread in self.threads:
            thread.start()

    def _ask(self):
        while not self.over.is_set():
            try:
                outcome = self.once()
            except (OSError, http.client.HTTPException) as error:
                outcome = repr(error)
            self.seen[outcome] += 1
            # Less than the page's caller may ask in a second, however fast the machine is.
            self.over.wait(0.06)

    def once(self) -> int:
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self.trust)
        try:
            connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {self.key}"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def stop(self) -> Counter:
        self.over.set()
        for thread in self.threads:
            thread.join()
        return self.seen


@contextmanager
def load(*arguments):
    running = Load(*arguments)
    try:
        yield running
    finally:
        running.stop()


def told(line: str):
    """A line of the log, if it is one."""
    try:
        return json.loads(line)
    except ValueError:
        return None
