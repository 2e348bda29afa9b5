"""OPERATIONS.md is followed from top to bottom by CI as by a new SRE: one shell, a folder of its own, the real program, and
providers played by `weighbridge sandbox`. What the page shows of outputs is what they are. Blocks that need root are run by
tests/sdk/service in a systemd of its own, where the machine allows that; here their syntax, the flags and files they name and
the units are checked.
"""

import re
import shutil
import subprocess

import pytest

from harness import BINARY, ROOT, free_port
from pages import OPERATIONS
from story import Shell, pattern, story_of, tool

PAGE = OPERATIONS.read_text()
STORY = story_of(PAGE)
RUN = [block for block in STORY if block.kind == "sh test"]
AS_ROOT = [block for block in STORY if block.kind == "sh root"]
UNITS = ROOT / "ops/systemd"
BLOCK_WITHIN = 180


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    for name in ("curl", "jq", "openssl", "prlimit", "sqlite3"):
        tool(name)
    env = {f"WEIGHBRIDGE_{which}LISTEN": f"127.0.0.1:{free_port()}" for which in ("", "ADMIN_")}
    bash = Shell(tmp_path_factory.mktemp("ops"), env)
    yield bash
    bash.stop()


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name())
def test_the_page_is_followed_step_by_step(shell, block):
    if shell.ended():
        pytest.fail("a step before this one did not end well")
    out = shell.run(block.text, BLOCK_WITHIN).rstrip() + "\n"
    if block.shown:
        assert re.fullmatch(pattern(block.shown), out), f"the page shows\n{block.shown}\nand it prints\n{out}"


def test_every_block_is_run_or_says_that_it_is_for_root():
    assert len(RUN) > 30 and len(AS_ROOT) > 5
    assert {block.kind for block in STORY} == {"sh test", "sh root"}, "a text block shows what the block before it prints"
    for block in STORY:
        assert block.text.startswith("# as root\n") == (block.kind == "sh root"), block.text
    assert sum(bool(block.shown) for block in RUN) > 25


def test_the_page_tells_the_whole_story():
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    contents = re.findall(r"\]\(#([\w-]+)\)", PAGE.partition("Contents:")[2].partition("\n\n")[0])
    assert contents == [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    commands = "".join(block.text for block in RUN)
    for told in ("check", "explain", "diff", "doctor", "tail", "digest", "audit verify", "audit export", "audit erase", "--takeover", "--request-id"):
        assert f"weighbridge {told}" in commands or told in commands, told


@pytest.mark.parametrize("block", AS_ROOT, ids=lambda block: block.name())
def test_what_is_for_root_is_sound(block):
    ended = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, timeout=180)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    for command, told in re.findall(r"^weighbridge ([a-z]+)(.*)$", block.text, re.MULTILINE):
        assert set(re.findall(r"--[a-z-]+", told)) <= flags(command), told
    for copied in re.findall(r"^install (?:-D )?-m 0644 (.*) \S+$", block.text, re.MULTILINE):
        for path in copied.split():
            assert (ROOT / path).exists(), path
    for unit in re.findall(r"systemctl [a-z -]* ?(weighbridge[\w@.]*)", block.text):
        name = re.sub(r"@\w+", "@", unit)
        assert (UNITS / (name if "." in name else f"{name}.service")).exists(), unit


def flags(command: str) -> set:
    told = subprocess.run([BINARY, command, "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--[a-z-]+", told))


def verified(folder) -> str:
    """What systemd finds wrong with the units of a folder and what is added to them there."""
    units = [folder / name for name in ("weighbridge.service", "weighbridge.socket", "weighbridge@a.service")]
    ended = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=180)
    return "\n".join(line for line in ended.stderr.splitlines() if "weighbridge" in line)


def test_the_units_and_what_the_page_adds_to_them_are_what_systemd_reads(tmp_path):
    tool("systemd-analyze")
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/usr/local/bin/weighbridge", str(BINARY.resolve()))
        (tmp_path / unit.name).write_text(text)
    shutil.copy(tmp_path / "weighbridge@.service", tmp_path / "weighbridge@a.service")
    added = tmp_path / "weighbridge.service.d"
    added.mkdir()
    secrets = re.search(r"secrets\.conf <<'END'\n(.*?)^END$", PAGE, re.MULTILINE | re.DOTALL)[1]
    (added / "secrets.conf").write_text(secrets)
    assert verified(tmp_path) == ""
    named = set(re.findall(r"^LoadCredential=(\w+):(\S+)$", secrets, re.MULTILINE))
    assert {path for _, path in named} == set(re.findall(r"/dev/stdin (/etc/weighbridge/secrets/\w+)$", PAGE, re.MULTILINE))
    (added / "secrets.conf").write_text(secrets.replace("LoadCredential", "LoudCredential"))
    assert "LoudCredential" in verified(tmp_path), "what is added is looked at"


def test_the_units_start_it_with_flags_that_there_are():
    for unit in UNITS.glob("*.service"):
        command = re.search(r"^ExecStart=\S+ (\w+) (.*)$", unit.read_text(), re.MULTILINE)
        assert set(re.findall(r"--[a-z-]+", command[2])) <= flags(command[1])
