"""What a page of ops/runbook tells somebody to type at night works: every command of every page is run, against a sandbox with
the fault that the page is about, ends well and shows something. Commands of the machine itself (```sh host) are read by bash
only. Addresses and folders of an installation are replaced by those of the sandbox; `tail` is ended after some seconds.
"""

import re
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest

from harness import BINARY, ROOT, Sandbox, exchange, payment
from pages import blocks, run
from story import tool

PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "ops/runbook").glob("*.md"))}
TOOLS_OF_THE_MACHINE = {"chronyc", "timedatectl", "journalctl", "systemctl", "iostat", "grep"}
TAILED_SECONDS = 3
CHECKOUT_KEY = "wb-demo-checkout-0123456789abcdef"
# As its reader has it: the proxy at its usual addresses.
PRELUDE = """
weighbridge() {
  case $1 in
    tail) timeout --preserve-status --signal=INT "$TAILED_SECONDS" weighbridge "$@" --admin "$WB_ADMIN" || (($? == 130)) ;;
    *) command weighbridge "$@" ;;
  esac
}
"""
WEBHOOK = """
[[webhook]]
tenant = "shop"
url = "http://127.0.0.1:9/hook"
allow_private = true
auth = { kind = "di-hmac", key_id = "hook-1", secret_env = "SHOP_HOOK_SECRET", secret_encoding = "hex" }
"""
BROKEN = "\n[model.broken]\ncandidates = []\n"


class Night:
    """A sandbox in which much goes wrong, and calls that go on."""

    def __init__(self, folder):
        for name in ("curl", "jq"):
            tool(name)
        self.folder, self.over = folder, threading.Event()
        self.sandbox = Sandbox(folder, edit=lambda text: text + WEBHOOK, env={"WEIGHBRIDGE_DATA_DIR": str(folder / "data")})
        self.traffic = threading.Thread(target=self._calls, daemon=True)
        late = payment("88.91", metadata={"sandbox_fault": "delay:1500ms"})
        assert self.sandbox.assess(late, key=CHECKOUT_KEY).json()["source"] == "fallback"
        for _ in range(6):
            self._chat("sandbox/fail-503")
        self.sandbox.eventually(lambda: self.sandbox.metric("weighbridge_webhook_notices_total") > 0, within=10)
        self.traffic.start()

    def _chat(self, model, fault=None):
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        body |= {"sandbox_fault": fault} if fault else {}
        return self.sandbox.call("POST", "/v1/chat/completions", body, headers={"wb-cache": "no-store"})

    def _calls(self):
        while not self.over.wait(0.2):
            self._chat("sandbox/steady")
            self._chat("sandbox/hedged")
            self._chat("narrative", "status:503")
            self.sandbox.assess(payment("88.54"))
            self.sandbox.call("GET", "/v1/models", key="wb-nobody")

    @contextmanager
    def refused(self, broken: bool):
        """A configuration that is refused, if it is to be."""
        routes = self.folder / "routes.toml"
        good = routes.read_text()
        if broken:
            routes.write_text(good + BROKEN)
            assert exchange(self.sandbox.admin, "POST", "/-/reload").status == 422
        yield
        if broken:
            routes.write_text(good)
            assert exchange(self.sandbox.admin, "POST", "/-/reload").status == 200

    def types(self, command: str) -> str:
        for usual, here in {
            "http://127.0.0.1:9090": self.sandbox.admin,
            "/var/lib/weighbridge": f"{self.folder}/data",
            "/etc/weighbridge/providers": f"{ROOT}/providers",
            "/etc/weighbridge": str(self.folder),
            "--caller NAME": "--caller sandbox",
        }.items():
            command = command.replace(usual, here)
        told = {"WB_ADMIN": self.sandbox.admin, "TAILED_SECONDS": str(TAILED_SECONDS)}
        return run(told, "bash", "-euo", "pipefail", "-c", PRELUDE + command)

    def stop(self):
        self.over.set()
        self.traffic.join()
        self.sandbox.stop()


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    much = Night(tmp_path_factory.mktemp("night"))
    time.sleep(1)
    yield much
    much.stop()


@pytest.mark.parametrize("alert", PAGES)
def test_what_to_look_at_first_shows_something(night, alert):
    commands = blocks(PAGES[alert], "sh test")
    assert commands, "each page has something to look at in the proxy itself"
    with night.refused("Config" in alert):
        for command in commands:
            assert night.types(command).strip(), command


INLINE = [(alert, told) for alert, page in PAGES.items() for told in re.findall(r"`((?:weighbridge|curl) [^`]+)`", page)]


@pytest.mark.parametrize("alert, command", INLINE)
def test_what_to_do_can_be_typed(night, alert, command):
    assert night.types(command) is not None


def test_every_block_is_run_or_is_of_the_machine():
    units = {path.name for path in (ROOT / "ops/systemd").iterdir()}
    for alert, page in PAGES.items():
        assert set(re.findall(r"^```(\S.*)$", page, re.MULTILINE)) <= {"sh test", "sh host"}, alert
        for block in blocks(page, "sh host"):
            ended = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, timeout=180)
            assert ended.returncode == 0, f"{alert}: {ended.stderr}"
            words = {command.split()[0] for command in re.split(r"\n|\|\|?|;|&&", block) if command.strip()}
            assert words <= TOOLS_OF_THE_MACHINE, f"{alert}: {words}"
            for unit in re.findall(r"(?:-u|status) (\w+)", block):
                assert f"{unit}.service" in units


def test_every_flag_and_path_of_a_page_exists():
    """Also those that stand alone in a sentence."""
    told = "".join(
        subprocess.run([BINARY, *command.split(), "--help"], capture_output=True, text=True, check=True).stdout
        for command in ("serve", "check", "tail", "audit notices", "audit verify", "explain", "doctor")
    )
    admin = "".join(path.read_text() for path in (ROOT / "src/admin").glob("*.rs"))
    for alert, page in PAGES.items():
        for span in re.findall(r"`([^`\n]+)`", page):
            for flag in re.findall(r"(?<!\S)--[a-z-]+", span):
                assert flag in told, f"{alert}: {flag}"
        for path in re.findall(r"127\.0\.0\.1:9090(/[\w./-]+)", page):
            assert f'"{path}"' in admin, f"{alert}: {path}"
