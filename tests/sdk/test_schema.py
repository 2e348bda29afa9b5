"""The schemas as editors use them: Tombi, a TOML language server and linter, must accept what the product accepts."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import BINARY, ROOT, Sandbox, exchange

GOOD = sorted((ROOT / "tests/golden/config/good").glob("*.toml"))
SCHEMAS = ("routes", "provider")


def tombi() -> list:
    """The command, from the environment of these tests or from the path."""
    beside = Path(sys.executable).parent / "tombi"
    pointed = [Path(folder).parent / "bin/tombi" for folder in sys.path if folder]
    inside = [Path(folder) / "bin/tombi" for folder in sys.path if folder]
    for path in (beside, *inside, *pointed):
        if path.is_file() and os.access(path, os.X_OK):
            return [str(path)]
    found = shutil.which("tombi")
    if found is None:
        pytest.skip("tombi is not installed")
    return [found]


def lint(*files, cwd=ROOT):
    env = {**os.environ, "NO_COLOR": "1"}
    ended = subprocess.run([*tombi(), "lint", "--offline", *map(str, files)], cwd=cwd, env=env, capture_output=True, text=True, timeout=180)
    return ended.returncode, re.sub(r"\x1b\[[0-9;]*m", "", ended.stdout + ended.stderr)


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(ROOT / "schema", tmp_path / "schema")
    return tmp_path


def of(kind: str, text: str, folder: Path) -> Path:
    """A file that names its schema, as an editor is told."""
    path = folder / f"{kind}-under-test.toml"
    path.write_text(f"#:schema ./schema/{kind}.json\n{text}")
    (folder / "tombi.toml").write_text('toml-version = "v1.1.0"\n')
    return path


def test_the_files_of_the_repository_are_accepted():
    providers = sorted((ROOT / "providers").glob("*.toml"))
    code, said = lint(ROOT / "routes.toml", *providers)
    assert code == 0, said
    assert f"{len(providers) + 1} files linted successfully" in said


def test_the_routes_of_the_repository_name_their_schema():
    assert (ROOT / "routes.toml").read_text().startswith("#:schema ./schema/routes.json\n")


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_what_the_product_accepts_is_accepted(path, folder):
    kind = "provider" if path.name.startswith("provider-") else "routes"
    code, said = lint(of(kind, path.read_text(), folder), cwd=folder)
    assert code == 0, said


PLANTED = [
    ("routes", "version = 1", 'version = "1"', "expected a value of type Integer"),
    ("routes", "max_attempts = 3", "max_atempts = 3", '"max_atempts" is not allowed'),
    ("routes", 'order = "as-listed"', 'order = "as_listed"', "must be one of"),
    ("routes", 'total = "30s"', "total = 30", "expected a value of type String"),
    ("routes", 'total = "30s"', 'total = "30sec"', "does not match the pattern"),
    ("routes", 'id = "backoffice"\n', "", '"id" is required'),
    ("routes", "pass_below = 0.3", "pass_below = 3", "must be"),
    ("provider", 'protocol = "openai"', 'protocol = "opanai"', "must be one of"),
    ("provider", "[[model]]", "[[models]]", '"models" is not allowed'),
    ("provider", "allow_fallbacks = false", "allow_fallbacks = {}", None),
]


@pytest.mark.parametrize("kind, old, new, told", PLANTED, ids=lambda part: re.sub(r"\W+", " ", str(part))[:30].strip())
def test_a_planted_mistake_is_found(kind, old, new, told, folder):
    text = (ROOT / ("routes.toml" if kind == "routes" else "providers/openrouter.toml")).read_text()
    assert old in text
    code, said = lint(of(kind, text.replace(old, new), folder), cwd=folder)
    if told is None:
        assert code == 0, said
    else:
        assert (code != 0, told in said) == (True, True), said


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_command_prints_the_committed_schema(kind):
    printed = subprocess.run([BINARY, "schema", kind], capture_output=True, text=True, check=True).stdout
    assert printed == (ROOT / f"schema/{kind}.json").read_text()


def test_the_admin_listener_serves_them(tmp_path):
    running = Sandbox(tmp_path)
    try:
        for kind in SCHEMAS:
            answer = exchange(running.admin, "GET", f"/schema/{kind}.json")
            assert answer.status == 200
            assert answer.body.decode() == (ROOT / f"schema/{kind}.json").read_text()
    finally:
        running.stop()


def test_bash_completes_commands_flags_and_words(tmp_path):
    script = tmp_path / "weighbridge.bash"
    script.write_text(subprocess.run([BINARY, "completions", "bash"], capture_output=True, text=True, check=True).stdout)
    asked = {
        ("weighbridge", "pro"): {"providers"},
        ("weighbridge", "check", "--form"): {"--format"},
        ("weighbridge", "check", "--format", ""): {"text", "json", "github"},
        ("weighbridge", "import", "lite"): {"litellm"},
        ("weighbridge", "completions", "z"): {"zsh"},
    }
    for words, expected in asked.items():
        quoted = " ".join(f"'{word}'" for word in words)
        program = f"""
            source '{script}'
            COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}
            _weighbridge weighbridge "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        ended = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=180)
        assert set(ended.stdout.split()) == expected, f"{words}: {ended.stdout} {ended.stderr}"
