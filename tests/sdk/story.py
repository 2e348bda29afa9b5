"""Runs a page from top to bottom in one shell, as its reader would, and compares what is printed with what the page shows.

```sh test    is run, in the shell that ran the blocks before it; a command that fails ends the story
```text       what the block before it prints: `…` within a line is any text, a line of it alone any number of lines
```sh root    begins with `# as root`; run in a systemd of its own by tests/sdk/service
"""

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass

import pytest

from harness import BINARY
from pages import name_of

MARK = "-- the end of block"
LEFT_OUT = "…"
PEACE_SECONDS = 5


@dataclass
class Block:
    """One fenced block, and what is shown as its output, if anything is."""

    kind: str
    text: str
    shown: str = ""

    def name(self) -> str:
        return name_of(self.text)


def story_of(page: str) -> list:
    told = []
    for kind, text in re.findall(r"^```([^\n]*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if kind == "text" and told and told[-1].kind == "sh test" and not told[-1].shown:
            told[-1].shown = text
        else:
            told.append(Block(kind, text))
    return told


def pattern(shown: str) -> str:
    """What is shown as a regular expression."""
    lines = []
    for line in shown.splitlines():
        if line.strip() == LEFT_OUT:
            lines.append(r"(?:.*\n)*?")
        else:
            lines.append(re.escape(line.rstrip()).replace(re.escape(LEFT_OUT), ".*?") + r"[ \t]*\n")
    return "".join(lines)


class Shell:
    """A bash that is given one block after the other; what it started ends with it."""

    def __init__(self, folder, env: dict, entering=()):
        """`entering` is a command that runs another one elsewhere."""
        path = f"{BINARY.parent.resolve()}:{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WEIGHBRIDGE_", "WB_"))}
        self.process = subprocess.Popen(
            [*entering, "bash", "--noprofile", "--norc", "-euo", "pipefail"],
            cwd=folder,
            env={**kept, **env, "PATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.number = 0
        self.waiting = selectors.DefaultSelector()
        self.waiting.register(self.process.stdout, selectors.EVENT_READ)

    def run(self, block: str, within: float) -> str:
        """What the block prints, on both outputs."""
        self.number += 1
        mark = f"{MARK} {self.number}"
        # Read whole before any of it runs: a command of it could read the rest from standard input.
        source = f"eval {quoted(block)} < /dev/null\nprintf '\\n%s\\n' {quoted(mark)}\n"
        self.process.stdin.write(source.encode())
        self.process.stdin.flush()
        return self._until(mark, time.monotonic() + within)

    def _until(self, mark: str, until: float) -> str:
        end, out = f"\n{mark}\n".encode(), b""
        while not out.endswith(end):
            left = until - time.monotonic()
            piece = os.read(self.process.stdout.fileno(), 65536) if left > 0 and self.waiting.select(left) else b""
            assert piece, f"it did not end well:\n{out.decode(errors='replace')}"
            out += piece
        return out.removesuffix(end).decode(errors="replace")

    def ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self):
        """Ends the shell and everything of its session, which is nobody else's; in peace, where that is possible."""
        for told in (signal.SIGCONT, signal.SIGTERM):
            self._tell(told)
        until = time.monotonic() + PEACE_SECONDS
        while self._tell(0) and time.monotonic() < until:
            self.process.poll()
            time.sleep(0.05)
        self._tell(signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def _tell(self, told: int) -> bool:
        """Whether anybody is left to be told."""
        try:
            os.killpg(self.process.pid, told)
            return True
        except ProcessLookupError:
            return False


def tool(name: str):
    """Commands of pages need what a machine may lack; in CI nothing is missing."""
    if not shutil.which(name):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{name} is not installed")


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
