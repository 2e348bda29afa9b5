"""The pages that users read, and how what stands in them is taken out to be run.

A block that opens with ```sh test is run as it stands by bash; comments in it, on lines of their own or after two spaces, are
what it prints, line by line.
"""

import os
import re
import subprocess
from pathlib import Path

from harness import BINARY, ROOT

ENOUGH_SECONDS = 180

# README is for everybody; what only some need in full stands in docs/.
REFERENCE = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATIONS = ROOT / "OPERATIONS.md"


def text_of(*pages: Path) -> str:
    return "\n".join(page.read_text() for page in pages)


def blocks(text: str, opening: str) -> list:
    return re.findall(rf"^```{re.escape(opening)}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def printed(block: str) -> list:
    """What a block says that it prints: its comments."""
    return re.findall(r"(?:^|  )# (.*)$", block, re.MULTILINE)


def name_of(block: str) -> str:
    """A block's beginning, as the name of its test."""
    return re.sub(r"\W+", " ", block)[:60].strip()


def run(told: dict, *command, folder=ROOT, within=ENOUGH_SECONDS) -> str:
    """What a command prints that ends well, with the program on its path and the variables that its reader was told to set."""
    path = f"{BINARY.parent.resolve()}:{os.environ['PATH']}"
    ended = subprocess.run(
        command, cwd=folder, env={**os.environ, **told, "PATH": path}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=within
    )
    assert ended.returncode == 0, f"exit {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def variables(sandbox) -> dict:
    """What the sandbox tells its reader to export."""
    return {"WB_URL": sandbox.data, "WB_ADMIN": sandbox.admin, "WB_KEY": sandbox.key, "WB_SIGNING_SECRET": sandbox.said["signing_secret"]}
