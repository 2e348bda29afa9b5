"""OPERATIONS.md is followed from top to bottom by CI as by a new SRE: one shell, a folder of its own, the real program, and
providers played by `weighbridge sandbox`. What the page shows of outputs is what they are. Blocks that need root or systemd
are not run: their syntax, the flags and files they name and the units are checked.
"""

import re
import shutil
import subprocess

import pytest

from harness import BINARY, ROOT, free_port
from pages import OPERATIONS
from story import Shell, pattern, story_of

PAGE = OPERATIONS.read_text()
STORY = story_of(PAGE)
RUN = [block for block in STORY if block.kind == "sh test"]
AS_ROOT = [block for block in STORY if block.kind == "sh root"]
BLOCK_WITHIN = 60


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    env = {f"WEIGHBRIDGE_{which}LISTEN": f"127.0.0.1:{free_port()}" for which in ("", "ADMIN_")}
    bash = Shell(tmp_path_factory.mktemp("ops"), env)
    yield bash
    bash.stop()


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name())
def test_the_page_is_followed_step_by_step(shell, block):
    if shell.process.poll() is not None:
        pytest.fail("a step before this one failed")
    out = shell.run(block.text, BLOCK_WITHIN).rstrip() + "\n"
    if block.shown:
        assert re.fullmatch(pattern(block.shown), out), f"the page shows\n{block.shown}\nand it prints\n{out}"
