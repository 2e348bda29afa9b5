"""OPERATIONS.md's commands for root, typed in their order and as they stand into a real systemd; between them it is looked
whether what the page and the units promise holds: ready means ready, secrets arrive, reloads, restarts without loss, crashes,
a process that hangs, and that it is confined.

The providers are simulated, so their addresses are put in after the page's own files are written; nothing else is changed.
"""

import json
import re
import subprocess
import time

import pytest

import harness
from harness import Sandbox, exchange, payment
from machine import Machine, load, told
from pages import OPERATIONS, blocks
from story import story_of, tool

PAGE = OPERATIONS.read_text()
AS_ROOT = [block.text for block in story_of(PAGE) if block.kind == "sh root"]
ADMIN, PORT = "http://127.0.0.1:9090", 8443
BLOCK_WITHIN = 60
RESTARTS, CALLS_BETWEEN = 10, 50
ROUTES = "/etc/weighbridge/routes.toml"
SERVICE = "weighbridge.service"
PAID = payment("88.00")


class Reader:
    """Follows the page: each block is typed once, none is left out."""

    def __init__(self, machine, left):
        self.machine, self.left = machine, left

    def types(self, *words: str) -> str:
        """The next block, which must be the one with these words."""
        block = self.left.pop(0)
        assert all(word in block for word in words), block
        return self.machine.shell.run(block, BLOCK_WITHIN)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    for name in ("curl", "openssl"):
        tool(name)
    machine = Machine(tmp_path_factory.mktemp("machine"))
    try:
        yield Reader(machine, list(AS_ROOT))
    finally:
        machine.stop()


@pytest.fixture(scope="module")
def machine(reader):
    return reader.machine


@pytest.fixture(scope="module")
def simulated(machine, tmp_path_factory):
    providers = Sandbox(tmp_path_factory.mktemp("providers"))
    yield providers
    providers.stop()


@pytest.fixture(scope="module")
def trust(machine, tmp_path_factory):
    """The authority of the certificate, which the page takes as given."""
    folder = tmp_path_factory.mktemp("tls")
    machine.shell.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout privkey.pem -out fullchain.pem"
        " -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 2> /dev/null",
        30,
    )
    (folder / "ca.pem").write_text(machine.says("cat fullchain.pem"))
    return folder / "ca.pem"


@pytest.fixture(scope="module")
def key(machine):
    return re.search(r"^key +(\S+)$", machine.says("cat /etc/weighbridge/secrets/caller-checkout"), re.MULTILINE)[1]


def status() -> dict:
    return exchange(ADMIN, "GET", "/status.json").json()


def edit(machine, program: str):
    """As somebody edits: a copy, renamed over the file; then `systemctl reload`."""
    machine.shell.run(f"sed '{program}' {ROUTES} > {ROUTES}.new && mv {ROUTES}.new {ROUTES} && systemctl reload weighbridge", 30)


def curl(machine, key: str, path: str, body=None, more="") -> str:
    data = f"-d '{json.dumps(body)}' -H 'content-type: application/json'" if body else ""
    return machine.says(f"curl -sS --cacert fullchain.pem https://127.0.0.1:{PORT}{path} -H 'authorization: Bearer {key}' {data} {more}")


def test_it_is_installed(reader, machine):
    reader.types("install -m 0755", "systemctl daemon-reload")
    assert machine.says("stat -c '%a %U' /etc/weighbridge/secrets /usr/local/bin/weighbridge").split() == ["700", "root", "755", "root"]


def test_its_secrets_are_named_by_the_units_and_the_providers_and_the_demo_keys_are_gone(reader, machine, simulated):
    aggregated, signed = simulated.said["alipay_secret"], simulated.said["alipay_secret"]
    machine.shell.run(f"export TOKENMIX_API_KEY={aggregated} OPENROUTER_API_KEY={aggregated} ALIPAY_SECRET={signed}", 5)
    reader.types("LoadCredential=", "/dev/stdin")
    reader.types("secret_file")
    out = reader.types("digest --new", "weighbridge check --strict")
    assert "\nok, version" in out and "warning" not in out.replace("0 warnings", ""), out
    for provider in ("tokenmix", "openrouter"):
        to_simulated(machine, provider, f"{simulated.said['aggregator']}/{provider}/v1")
    to_simulated(machine, "alipay", simulated.said["alipay"])
    machine.shell.run("sed -i 's/key_id = \"k1\"/key_id = \"sandbox-1\"/' /etc/weighbridge/providers/alipay.toml", 5)


def to_simulated(machine, provider: str, url: str):
    file = f"/etc/weighbridge/providers/{provider}.toml"
    machine.shell.run(f"grep -q '^base_url' {file} && sed -i 's|^base_url = .*|base_url = \"{url}\"\\nallow_private = true|' {file}", 5)


def test_it_has_an_address_and_a_certificate_of_its_own(reader, machine, trust):
    reader.types("weighbridge-tls", "ListenStream=0.0.0.0:8443")
    assert machine.says("stat -c '%a %G' /etc/weighbridge/tls/privkey.pem").split() == ["640", "weighbridge-tls"]


def test_enable_comes_back_when_it_serves(reader, machine):
    out = reader.types("systemctl enable --now", "journalctl", "readyz")
    assert "Active: active (running)" in out and out.rstrip().endswith("ready"), out
    shown = machine.show(SERVICE, "Type", "Result", "StatusText", "NRestarts")
    assert shown["Type"] == "notify" and shown["Result"] == "success" and shown["NRestarts"] == "0"
    assert shown["StatusText"].startswith("serving"), shown


def test_it_reads_its_secrets_and_nobody_else_does(machine, key, trust):
    answer = curl(machine, key, "/v1/chat/completions", {"model": "summary", "messages": [{"role": "user", "content": "hi"}]})
    assert json.loads(answer)["choices"], answer
    for place in ("/run/credentials/weighbridge.service/alipay", "/etc/weighbridge/secrets/alipay"):
        assert "ermission denied" in machine.says(f"setpriv --reuid 65534 --regid 65534 --clear-groups cat {place}"), place
    environment = machine.says(f"tr '\\0' '\\n' < /proc/{machine.pid()}/environ")
    assert "CREDENTIALS_DIRECTORY=" in environment and "API_KEY" not in environment and "ALIPAY_SECRET" not in environment


def test_a_decision_is_on_record_where_only_the_service_reads_it(machine, key):
    decided = json.loads(curl(machine, key, "/v1/risk/assessments", PAID))
    assert decided["source"] == "live", decided
    assert machine.says("stat -L -c %a /var/lib/weighbridge /var/lib/weighbridge/decisions.db").split() == ["700", "600"]
    assert "all as they were written" in machine.says("weighbridge audit verify --data-dir /var/lib/weighbridge")


def test_the_journal_has_lines_that_people_and_programs_read(machine):
    lines = [told(line) for line in machine.lines()]
    assert any(line and line.get("target") == "access" and line["outcome"] == "ok" for line in lines)
    assert not [line for line in lines if line and line["level"] in ("WARN", "ERROR")], "nothing to complain about as it comes"
    assert "https://0.0.0.0:8443" in "\n".join(machine.lines())


def test_the_sandbox_around_it_is_in_force(machine):
    pid = machine.pid()
    state = machine.says(f"cat /proc/{pid}/status")
    for line in ("CapBnd:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in state, line
    assert re.search(r"^Uid:\t(\d+)", state, re.MULTILINE)[1] not in ("0", "65534")
    within = f"nsenter --target {pid} --mount --root --wd=/ bash -c"
    for place in ("/usr", "/etc/weighbridge", "/var/log", "/sys/fs"):
        assert "Read-only" in machine.says(f"{within} 'touch {place}/x'"), place
    assert machine.says(f"{within} 'ls -A /root /home; ls /dev | grep -c -e kmsg -e vda -e mem'").split()[-1] == "0"
    assert machine.says(f"{within} 'touch /var/lib/weighbridge/x && rm /var/lib/weighbridge/x && echo written'").strip() == "written"
    score = re.search(r"exposure level for \S+: ([\d.]+)", machine.says("systemd-analyze security --no-pager weighbridge.service"))
    assert float(score[1]) <= 2.0, score[0]


def test_the_limits_are_those_of_the_unit_where_the_machine_has_them(machine):
    group = machine.says(f"grep -h -e ^0: -e :memory: -e :pids: /proc/{machine.pid()}/cgroup")
    assert "/system.slice/weighbridge.service" in group
    path = "{,/memory,/pids,/unified}/system.slice/weighbridge.service/"
    memory = machine.says(f"cat /sys/fs/cgroup{path}memory.{{max,limit_in_bytes}} 2> /dev/null").split()
    print("limit of memory in force:", *(memory or ["none: this machine has no such controller for us"]))
    assert memory in ([], [str(2 * 1024**3)])
    if memory:
        assert machine.until(lambda: status()["overload"].get("memory_bytes"))["limit"] == 2 * 1024**3, "it sheds by the unit's limit"


def test_a_good_edit_is_in_force_after_a_reload_and_a_broken_one_changes_nothing_and_says_so(machine, key):
    before = status()["config_hash"]
    edit(machine, 's/total = "30s"/total = "31s"/')
    after = machine.until(lambda: status()["config_hash"] != before and status()["config_hash"])
    refused = machine.says(f"sed -i 's/total = \"31s\"/total = \"31 parsecs\"/' {ROUTES}; systemctl reload weighbridge; echo ended $?")
    assert "ended 1" in refused.splitlines(), refused
    assert "model.summary.timeouts.total" in machine.says("systemctl status --no-pager weighbridge || true") + "".join(machine.lines())
    machine.until(lambda: "refused" in machine.show(SERVICE, "StatusText")["StatusText"])
    machine.until(lambda: machine.show(SERVICE, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"})
    assert status()["config_hash"] == after
    assert "31 parsecs" not in "".join(machine.lines()) and "model.summary.timeouts.total" in "".join(machine.lines())
    assert '"data"' in curl(machine, key, "/v1/models")
    edit(machine, 's/total = "31 parsecs"/total = "30s"/')
    machine.until(lambda: machine.show(SERVICE, "StatusText")["StatusText"].startswith("serving") and status()["config_hash"] == before)


def test_prometheus_has_the_rules_and_the_address(reader, machine):
    tool("prometheus")
    machine.shell.run("echo 'ARGS=\"--web.listen-address=127.0.0.1:9191\"' > /etc/default/prometheus && systemctl start prometheus", 30)
    machine.until(lambda: machine.says("curl -sS http://127.0.0.1:9191/-/ready").startswith("Prometheus Server is Ready"), 30)
    out = reader.types("promtool check config", "systemctl reload prometheus")
    assert "SUCCESS" in out, out
    loaded = "curl -sS http://127.0.0.1:9191/api/v1/rules"
    machine.until(lambda: "WeighbridgeDown" in machine.says(loaded), 15)
    machine.until(lambda: f'"scrapeUrl":"{ADMIN}/metrics"' in machine.says("curl -sS http://127.0.0.1:9191/api/v1/targets"), 20)
    machine.shell.run("systemctl stop prometheus", 30)


def test_ten_restarts_under_load_refuse_nobody_and_reset_nobody(reader, machine, key, trust):
    with load(PORT, trust, key) as calls:
        reader.types("systemctl restart weighbridge.service")
        for done in range(1, RESTARTS):
            machine.until(lambda: calls.seen.total() >= done * CALLS_BETWEEN, 30, "nobody is answered")
            machine.shell.run("systemctl restart weighbridge.service", 60)
        seen = calls.stop()
    assert set(seen) == {200} and seen[200] > (RESTARTS - 1) * CALLS_BETWEEN, seen
    print(f"{RESTARTS} restarts, {seen[200]} calls, all answered")


def test_a_call_in_flight_is_finished_before_the_service_ends(machine, key, trust):
    body = {"model": "summary", "stream": True, "messages": [{"role": "user", "content": "hi"}], "sandbox_fault": "delay:1500ms"}
    shell = f"curl -sSN --cacert fullchain.pem https://127.0.0.1:{PORT}/v1/chat/completions -H 'authorization: Bearer {key}'"
    machine.shell.run(f"{shell} -H 'content-type: application/json' -d '{json.dumps(body)}' > streamed & call=$!; sleep 0.5", 10)
    began = time.monotonic()
    machine.shell.run("systemctl restart weighbridge.service; wait $call; grep -q '\\[DONE\\]' streamed", 60)
    assert time.monotonic() - began < 30
    assert machine.show(SERVICE, "Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}


def test_a_crash_is_followed_by_a_start_and_callers_wait_for_it(machine, key, trust):
    killed, restarts = machine.pid(), int(machine.show(SERVICE, "NRestarts")["NRestarts"])
    machine.shell.run(f"kill -KILL {killed}", 5)
    assert '"data"' in curl(machine, key, "/v1/models"), "systemd still holds the socket"
    assert machine.pid() != killed and int(machine.show(SERVICE, "NRestarts")["NRestarts"]) == restarts + 1
    assert "all as they were written" in machine.says("weighbridge audit verify --data-dir /var/lib/weighbridge")


def test_one_that_crashes_at_every_start_is_not_given_up(machine, key):
    """Seven failures within ten seconds are more than systemd's own patience."""
    machine.shell.run(f"cp -p {ROUTES} {ROUTES}.kept && echo 'version =' > {ROUTES} && mv /var/lib/weighbridge/last-good.json .", 5)
    machine.shell.run("mkdir -p /run/systemd/system/weighbridge.service.d", 5)
    machine.shell.run("printf '[Service]\\nRestartSec=100ms\\n' > /run/systemd/system/weighbridge.service.d/quick.conf && systemctl daemon-reload", 30)
    machine.shell.run("systemctl restart weighbridge.service && echo started || echo refused", 30)
    machine.until(lambda: int(machine.show(SERVICE, "NRestarts")["NRestarts"]) >= 7, 30)
    assert machine.show(SERVICE, "ActiveState")["ActiveState"] == "activating", "it was never ready, and never said so"
    assert any("the configuration has 1 mistake" in line for line in machine.lines())
    machine.shell.run(f"mv {ROUTES}.kept {ROUTES}", 5)
    machine.until(lambda: machine.show(SERVICE, "ActiveState")["ActiveState"] == "active", 30)
    assert '"data"' in curl(machine, key, "/v1/models")
    machine.shell.run("rm /run/systemd/system/weighbridge.service.d/quick.conf && systemctl daemon-reload", 30)


def test_one_that_hangs_is_ended_and_started_anew(machine, key):
    machine.shell.run("printf '[Service]\\nWatchdogSec=2s\\n' > /run/systemd/system/weighbridge.service.d/short.conf && systemctl daemon-reload", 30)
    machine.shell.run("systemctl restart weighbridge.service", 30)
    time.sleep(3)
    assert machine.show(SERVICE, "Result")["Result"] == "success", "it says in time that it is alive"
    hung = machine.pid()
    machine.shell.run(f"kill -STOP {hung}", 5)
    machine.until(lambda: machine.pid() not in (0, hung), 20)
    assert '"data"' in curl(machine, key, "/v1/models")
    assert "watchdog" in machine.says("journalctl --quiet -o cat -u weighbridge.service -u init.scope").lower()
    machine.shell.run("rm /run/systemd/system/weighbridge.service.d/short.conf && systemctl daemon-reload && systemctl restart weighbridge.service", 30)


def test_what_root_does_with_the_record_leaves_it_to_the_service(machine, key):
    """Also while the service is stopped, when SQLite makes its side files anew."""
    states = ("running", "stopped")
    for state in states:
        curl(machine, key, "/v1/risk/assessments", payment(user={"id": f"gone-{state}", "country": "CN"}))
    for state in states:
        if state == "stopped":
            machine.shell.run("systemctl stop weighbridge.socket weighbridge.service", 60)
        for command in ("verify", "export --format csv", f"erase --tenant shop --user gone-{state}", "notices", "verify"):
            machine.shell.run(f"weighbridge audit {command} --data-dir /var/lib/weighbridge", 30)
        assert machine.says("find /var/lib/weighbridge/ -uid 0").strip() == "", f"it cannot read these when it was {state}"
    machine.shell.run("systemctl start weighbridge.socket weighbridge.service", 60)
    assert json.loads(curl(machine, key, "/v1/risk/assessments", PAID))["source"] == "replayed"


def test_what_the_alerts_pages_ask_the_machine_shows_something(machine):
    pages = "".join(page.read_text() for page in sorted((OPERATIONS.parent / "ops/runbook").glob("*.md")))
    asked = {command for block in blocks(pages, "sh host") for command in re.split(r" \| .*|\n", block)}
    asked = [command for command in asked if command.startswith(("systemctl", "journalctl"))]
    assert len(asked) >= 3
    for command in asked:
        assert "weighbridge" in machine.says(command), command


def test_a_pair_hands_over_under_load_and_goes_back_to_one(reader, machine, key, trust):
    block = reader.left[0]
    cut = block.index("systemctl start weighbridge@b")
    reader.left[0:1] = [block[:cut], block[cut:]]
    reader.types("useradd", "enable --now weighbridge@a")
    assert machine.show("weighbridge@a", "ActiveState")["ActiveState"] == "active"
    assert machine.show(SERVICE, "ActiveState")["ActiveState"] == "inactive"
    with load(PORT, trust, key) as calls:
        machine.until(lambda: calls.seen.total() >= CALLS_BETWEEN, 30, "nobody is answered")
        reader.types("systemctl start weighbridge@b")
        handovers = [("a", "b"), ("b", "a")] * 2
        for done, (heir, before) in enumerate(handovers, 1):
            machine.until(lambda: calls.seen.total() >= (done + 1) * CALLS_BETWEEN, 30, "nobody is answered")
            machine.until(lambda: machine.show(f"weighbridge@{heir}", "ActiveState")["ActiveState"] == "inactive")
            machine.shell.run(f"systemctl start weighbridge@{heir}", 60)
            assert machine.show(f"weighbridge@{heir}", "ActiveState")["ActiveState"] == "active"
        seen = calls.stop()
    assert set(seen) == {200} and seen[200] > len(handovers) * CALLS_BETWEEN, seen
    repeated = json.loads(curl(machine, key, "/v1/risk/assessments", PAID))
    assert repeated["source"] == "replayed", "the record went from the service to the pair"
    reader.types("systemctl stop weighbridge@a weighbridge@b", "enable --now weighbridge.socket")
    assert '"data"' in curl(machine, key, "/v1/models")
    repeated = json.loads(curl(machine, key, "/v1/risk/assessments", PAID))
    assert repeated["source"] == "replayed", "and back"


def test_doctor_finds_it_well(reader):
    out = reader.types("weighbridge doctor")
    assert "0 failures" in out, out


def test_it_is_upgraded_and_goes_back(reader):
    version = subprocess.run([harness.BINARY, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    out = reader.types("weighbridge.before", "systemctl restart")
    assert "\nok, version" in out and out.split()[-1] == version, out
    reader.types("mv /usr/local/bin/weighbridge.before")


def test_it_stops_and_stays_stopped(reader, machine):
    reader.types("systemctl stop weighbridge.socket weighbridge.service")
    assert machine.show(SERVICE, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert "Failed to connect" in machine.says(f"curl -sS https://127.0.0.1:{PORT}/")
    assert "all as they were written" in machine.says("weighbridge audit verify --data-dir /var/lib/weighbridge")


def test_no_block_of_the_page_was_left_out(reader):
    assert reader.left == []
