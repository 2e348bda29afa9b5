"""README and the pages behind it say what the product does, so they are held to it: their commands run, their tables are
complete, their examples work. pages.py says which blocks are run, and how.
"""

import os
import re
import subprocess
import sys

import pytest

from harness import BINARY, ROOT, Sandbox, exchange, payment
from pages import OPERATIONS, REFERENCE, blocks, name_of, printed, run, text_of, variables

README = text_of(ROOT / "README.md")
TOLD = text_of(*REFERENCE, OPERATIONS)
MOST_LINES = 950


# Of a merchant that no example names, and a counter that stops nobody: both have metrics of their own.
MORE_RISK = """
[[risk.budget]]
merchant = "m-poor"
amount = "0.05 CNY"
per = "month"

[[risk.velocity]]
name = "seen"
by = "user"
measure = "count"
window = "1h"
"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A sandbox of README's own: its examples make a provider fail, and the other suites share theirs."""
    running = Sandbox(tmp_path_factory.mktemp("readme"), more_risk=MORE_RISK)
    yield running
    running.stop()


@pytest.mark.parametrize("block", blocks(text_of(*REFERENCE), "sh test"), ids=name_of)
def test_a_command_of_readme_does_what_it_says(reader, block):
    out = run(variables(reader), "bash", "-euo", "pipefail", "-c", block)
    assert out.strip(), "a command that is shown has something to show"
    expected = printed(block)
    if expected:
        assert out.splitlines() == expected


def test_readme_has_commands_for_everybody():
    commands = "".join(blocks(README, "sh test"))
    for path in ("/v1/chat/completions", "/v1/models", "/v1/risk/assessments", "/readyz", "/status.json"):
        assert path in commands
    assert sum(map(len, map(printed, blocks(README, "sh test")))) >= 3, "some commands say what they print"


def test_the_first_two_commands_are_the_product_and_its_tests():
    assert [block.strip() for block in re.findall(r"^```sh.*?\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[:2]] == [
        "cargo run --release -- sandbox",
        "scripts/test",
    ]
    assert os.access(ROOT / "scripts/test", os.X_OK)


def test_the_python_example_runs(reader):
    out = run(variables(reader), sys.executable, "examples/openai_sdk.py")
    assert "failover: openrouter answered after 2 attempts" in out
    assert "is not complete: upstream_truncated" in out
    assert "mistake: model_not_found req_" in out


def test_the_shell_example_runs(reader):
    out = run(variables(reader), "bash", "examples/risk_call.sh")
    assert re.findall(r'"source": ?"(\w+)"', out) == ["live", "replayed", "fallback", "late"]
    assert re.findall(r"^(\d+) in ", out, re.MULTILINE) == ["200", "200", "409", "200", "200"]
    first, again = re.findall(r'"id": ?"(ra_[^"]*)"', out)[:2]
    assert first == again


def test_the_python_of_readme_is_python():
    for number, block in enumerate(blocks(TOLD, "python")):
        compile(block, f"Python block {number + 1}", "exec")


def test_readme_is_short_enough_to_be_read():
    assert len(README.splitlines()) <= MOST_LINES, "what only some need in full goes to docs/"


def catalog() -> dict:
    """Every row of the catalog: name to kind, labels and help."""
    text = (ROOT / "src/telemetry/catalog.rs").read_text()
    row = r'[A-Z_]+: (\w+)(?:\(&\w+\))?, \w+, "(\w+)"\s*\[([^\]]*)\]\s*"([^"]*)";'
    return {name: (kind.lower(), re.findall(r"\w+", labels), told) for kind, name, labels, told in re.findall(row, text)}


def metric_rows() -> dict:
    rows = re.findall(r"^\| `((?:weighbridge|gen_ai)_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", TOLD, re.MULTILINE)
    return {name: (kind, re.findall(r"`(\w+)`", labels), told) for name, kind, labels, told in rows}


def test_every_metric_is_in_readme_as_it_is_in_the_catalog():
    known = catalog()
    assert len(known) > 20
    assert metric_rows() == known


def test_every_metric_of_readme_is_exported(reader):
    poor = payment(features=["fx", "receipt_ocr"], merchant={"id": "m-poor"})
    assert reader.assess(poor).json()["features_dropped"] == ["receipt_ocr"]
    named = set(metric_rows()) | set(re.findall(r"\bweighbridge_\w+", TOLD))
    text = exchange(reader.admin, "GET", "/metrics").body.decode()
    exported = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    # This one has a series only with TLS; test_listener.py sees it there.
    assert named - exported == {"weighbridge_tls_certificate_expiry_timestamp_seconds"}
    assert exported - named == set(), "what is exported is in README"


def flags(command: str) -> set:
    told = subprocess.run([BINARY, *command.split(), "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", told, re.MULTILINE)) - {"--help"}


@pytest.mark.parametrize("command", ["serve", "sandbox", "check", "explain", "diff", "fmt", "import litellm", "providers", "doctor", "digest", "simulate", "tail"])
def test_every_flag_is_in_readme(command):
    known = flags(command)
    assert known
    assert {flag for flag in known if not re.search(rf"`[^`\n]*{flag}\b", TOLD)} == set()


def test_every_command_is_in_readme():
    told = subprocess.run([BINARY, "--help"], capture_output=True, text=True, check=True).stdout
    commands = set(re.findall(r"^  (\w+)  +\w", told.partition("Commands:")[2].partition("Options:")[0], re.MULTILINE)) - {"help"}
    assert len(commands) > 8
    assert {command for command in commands if f"| `weighbridge {command}" not in README} == set()


def test_every_warning_is_in_readme():
    rules = (ROOT / "src/config/rule.rs").read_text()
    codes = re.findall(r'=> "(W\d{3})"', rules)
    assert re.findall(r"^\| (W\d{3}) \|", TOLD, re.MULTILINE) == codes
    tests = (ROOT / "src/config/lint/tests.rs").read_text() + (ROOT / "src/config/format/tests.rs").read_text()
    assert {code for code in codes if f"fn {code.lower()}_" not in tests} == set(), "each is shown by a test of its name"


def test_every_flag_of_the_table_exists():
    listed = set(re.findall(r"^\| `(--[a-z-]+)", TOLD, re.MULTILINE))
    common, simulate = flags("serve") | flags("check"), flags("simulate")
    assert listed - simulate == common
    assert listed <= common | simulate


def rust_tests() -> dict:
    """A file, as SECURITY.md names it, to the names of its functions."""
    files = [*(ROOT / "src").rglob("*.rs"), *(ROOT / "tests/it").rglob("*.rs")]
    short = (path.relative_to(ROOT).as_posix().removeprefix("src/") for path in files)
    return {name: re.findall(r"\bfn (\w+)", path.read_text()) for name, path in zip(short, files)}


def test_every_threat_names_its_tests_and_none_is_left_out():
    tests = rust_tests()
    threats_of = lambda test: re.match(r"((?:[gsptc][0-9]+_)*)", test)[1].upper().split("_")[:-1]
    present = {(threat, file) for file, names in tests.items() for test in names for threat in threats_of(test)}
    listed = set()
    for threat, cell in re.findall(r"^\| ([A-Z][0-9]+) \| .* \| (.*) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE):
        for file, named in re.findall(r"`([\w/]+\.rs)`((?:,? `\w+`)*)", cell):
            if named:
                assert set(re.findall(r"\w+", named)) <= set(tests[file]), f"{threat}: {file}"
            else:
                listed.add((threat, file))
    assert listed - present == set(), "these files have no test of that row"
    assert {threat for threat, _ in present} - {threat for threat, _ in listed} == set(), "these rows are missing"


def test_every_dependency_has_its_reason_in_the_changelog():
    manifest = (ROOT / "Cargo.toml").read_text()
    used = re.findall(r"^([\w-]+) = ", re.search(r"^\[dependencies\]\n(.*?)^\[", manifest, re.MULTILINE | re.DOTALL)[1], re.MULTILINE)
    reasons = (ROOT / "CHANGELOG.md").read_text().partition("### Dependencies")[2]
    given = [name for names in re.findall(r"^- (`.*?`):", reasons, re.MULTILINE) for name in re.findall(r"[\w-]+", names)]
    assert sorted(given) == sorted(used)


def test_links_to_files_and_headings_lead_somewhere():
    others = [ROOT / path for path in ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "providers/README.md")]
    for path in (*REFERENCE, OPERATIONS, *others, *(ROOT / "ops/runbook").glob("*.md")):
        text = path.read_text()
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            file, _, heading = target.partition("#")
            assert not file or (path.parent / file).exists(), f"{path}: {target}"
            if heading:
                there = (path.parent / file if file else path).read_text()
                slugs = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", there, re.MULTILINE)}
                assert heading in slugs, f"{path}: {target}"
