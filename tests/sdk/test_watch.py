"""What ops/ ships is held to what the product exports: rules and dashboard name only metrics there are, each alert has its
page and fires on its fault, and every query of the dashboard, run by a real Prometheus that scrapes a sandbox under
traffic, returns data.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import ROOT, SLOW_KEY, Sandbox, exchange, free_port, payment

PROMETHEUS = ROOT / "ops/prometheus"
RULES = (PROMETHEUS / "weighbridge.rules.yml").read_text()
DASHBOARD = json.loads((ROOT / "ops/grafana/weighbridge.json").read_text())
CHECKOUT_KEY = "wb-demo-checkout-0123456789abcdef"
READY_WITHIN = 90
TRAFFIC_SECONDS = 8

# What is 0 where all is well.
QUIET = {
    "audit_backlog",
    "audit_unrecorded_total",
    "connections_refused_total",
    "log_dropped_total",
    "outcomes_total",
    "panics_total",
    "pressure_stage",
    "provider_clock_skew_seconds",
    "quota_refused_total",
    "retry_budget_exhausted_total",
    "reuse_disagreement_bound_ppm",
    "reuse_merchants_off",
    "shed_total",
    "traces_dropped_total",
    "traces_exported_total",
    "webhook_notices_total",
}


def tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        told = f"{name} is not installed: apt-get install --no-install-recommends prometheus"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(told)
    return found


def promtool(*arguments) -> str:
    ended = subprocess.run(
        [tool("promtool"), *arguments], cwd=PROMETHEUS, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def alerts() -> set:
    return set(re.findall(r"^ +- alert: (\w+)$", RULES, re.MULTILINE))


def recorded() -> set:
    return set(re.findall(r"^ +- record: (\S+)$", RULES, re.MULTILINE))


def queries() -> list:
    """Panel and expression, of the panels and of what is drawn across them."""
    of_panels = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return of_panels + [(drawn["name"], drawn["expr"]) for drawn in DASHBOARD["annotations"]["list"]]


def test_the_rules_and_the_configuration_are_sound():
    promtool("check", "rules", "weighbridge.rules.yml")
    promtool("check", "config", "prometheus.yml")


def test_every_alert_fires_on_its_fault_and_only_then():
    promtool("test", "rules", "weighbridge.test.yml")
    text = (PROMETHEUS / "weighbridge.test.yml").read_text()
    for kind, expected in (("the fault", r"\n +- exp_labels"), ("healthy", r" \[\]")):
        told = re.findall(rf"- name: (\w+) - {kind}\n(?:(?!- name:).)*?alertname: (\w+)\n +exp_alerts:{expected}", text, re.DOTALL)
        assert {name for name, alert in told if name == alert} == alerts(), kind


def test_every_alert_has_its_page_and_every_page_its_alert():
    assert len(alerts()) > 15
    assert {page.stem for page in (ROOT / "ops/runbook").glob("*.md")} == alerts()
    for one in re.split(r"^ +- alert: ", RULES, flags=re.MULTILINE)[1:]:
        name = one.split("\n", 1)[0]
        assert re.search(r"^ +for: \d+m$", one, re.MULTILINE), name
        assert re.search(r"severity: (page|ticket) ", one), name
        assert f"runbook: ops/runbook/{name}.md" in one
        page = (ROOT / f"ops/runbook/{name}.md").read_text()
        for part in (f"# {name}\n", "| application developers |", "| payments engineers |", "| SREs |", "**Look first**", "**What to do**", "**It ends**"):
            assert part in page, f"{name}: {part}"
        for other in re.findall(r"\(?(Weighbridge[A-Z]\w+)", page):
            assert other in alerts(), f"{name} sends its reader to {other}"


def test_whatever_ops_names_is_exported():
    exported = set(re.findall(r"^# TYPE (\w+) ", (ROOT / "tests/golden/metrics.txt").read_text(), re.MULTILINE))
    texts = {path.relative_to(ROOT): path.read_text() for path in (ROOT / "ops").rglob("*") if path.is_file()}
    assert len(texts) > 20
    for path, text in texts.items():
        for name in re.findall(r"\b(?:weighbridge|gen_ai)_\w+", text):
            of_histogram = re.sub(r"_(bucket|sum|count)$", "", name)
            begins = name.endswith("_") and any(metric.startswith(name) for metric in exported)
            assert name in exported or of_histogram in exported or begins, f"{path}: {name}"
        for name in re.findall(r"\bweighbridge:[a-z0-9_:]+", text):
            assert name in recorded(), f"{path}: {name}"


def test_a_dashboard_is_what_grafana_reads():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"] and panel["targets"], panel["title"]


class Prometheus:
    """A server of its own that looks every second."""

    def __init__(self, folder, admin: str):
        binary = tool("prometheus")
        self.base = f"http://127.0.0.1:{free_port()}"
        config = folder / "prometheus.yml"
        target = urllib.parse.urlsplit(admin).netloc
        config.write_text(
            (PROMETHEUS / "prometheus.yml").read_text()
            .replace("15s", "1s").replace("127.0.0.1:9090", target)
            .replace("[weighbridge.rules.yml]", f"[{PROMETHEUS / 'weighbridge.rules.yml'}]")
        )
        arguments = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"]
        arguments.append(f"--web.listen-address={urllib.parse.urlsplit(self.base).netloc}")
        self.log = folder / "prometheus.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([binary, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_until(self, truth, what: str):
        until = time.monotonic() + READY_WITHIN
        while True:
            try:
                if truth():
                    return
            except OSError:
                pass
            assert self.process.poll() is None and time.monotonic() < until, f"no {what}:\n{self.log.read_text()[-2000:]}"
            time.sleep(0.1)

    def range(self, query: str) -> list:
        """Every value of every series of the last minute."""
        now = time.time()
        asked = urllib.parse.urlencode({"query": query, "start": now - 60, "end": now, "step": "1"})
        answer = exchange(self.base, "POST", "/api/v1/query_range", asked.encode(), {"Content-Type": "application/x-www-form-urlencoded"})
        assert answer.status == 200, f"{query}: {answer.body.decode()}"
        return [float(value) for series in answer.json()["data"]["result"] for _, value in series["values"]]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def chat(sandbox, model, **more):
    headers = {"wb-cache": "no-store"} if more.pop("fresh", True) else {}
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
    return sandbox.call("POST", "/v1/chat/completions", body, headers=headers, key=more.pop("key", None))


def one_round(sandbox, number: int):
    """Something of everything."""
    chat(sandbox, "summary", fresh=False)
    chat(sandbox, "summary", stream=True)
    for model in ("sandbox/steady", "sandbox/fail-503", "sandbox/fail-503", "narrative"):
        chat(sandbox, model)
    chat(sandbox, "sandbox/fail-cut", stream=True)
    for amount in ("88.00", "88.30", "88.70", "88.91"):
        sandbox.assess(payment(amount, merchant={"id": "m1", "category": "food", "country": "CN"}))
    sandbox.assess(payment(), key=CHECKOUT_KEY)
    once = payment("88.00")
    sandbox.assess(once)
    sandbox.assess(once)
    body = {"model": "summary", "messages": [{"role": "user", "content": f"round {number}"}]}
    assert sandbox.call("POST", "/v1/chat/completions", body, key=CHECKOUT_KEY).status == 200
    sandbox.call("POST", "/v1/chat/completions", body, key=SLOW_KEY)
    unsigned = exchange(sandbox.data, "POST", "/v1/risk/assessments", payment(), {"Authorization": f"Bearer {sandbox.said['signed_api_key']}"})
    assert unsigned.status == 401


def reload_badly_and_well(sandbox, routes):
    good = routes.read_text()
    routes.write_text(good + "\n[model.broken]\ncandidates = []\n")
    assert exchange(sandbox.admin, "POST", "/-/reload").status == 422
    routes.write_text(good)
    assert exchange(sandbox.admin, "POST", "/-/reload").status == 200


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A Prometheus that has seen some seconds of everything."""
    folder = tmp_path_factory.mktemp("watch")
    tool("prometheus")
    sandbox = Sandbox(folder)
    prometheus = None
    try:
        prometheus = Prometheus(folder, sandbox.admin)
        prometheus.wait_until(lambda: exchange(prometheus.base, "GET", "/-/ready").status == 200, "start")
        prometheus.wait_until(lambda: prometheus.range("weighbridge_config_info"), "first scrape")
        with ThreadPoolExecutor(1) as beside:
            hedged = beside.submit(chat, sandbox, "sandbox/hedged")
            started, number = time.monotonic(), 0
            while time.monotonic() < started + TRAFFIC_SECONDS:
                one_round(sandbox, number)
                if number % 3 == 0:
                    # Not so often that the breaker opens.
                    sandbox.assess(payment("88.54"))
                if number == 1:
                    reload_badly_and_well(sandbox, folder / "routes.toml")
                number += 1
                time.sleep(0.3)
            assert hedged.result().status == 200
        # The last scrape and the evaluation after it.
        time.sleep(2.5)
        yield prometheus
    finally:
        if prometheus:
            prometheus.stop()
        sandbox.stop()


@pytest.mark.parametrize("panel, query", queries(), ids=lambda text: re.sub(r"\W+", " ", text)[:40].strip())
def test_every_query_of_the_dashboard_returns_data(watched, panel, query):
    asked = query.replace("$__rate_interval", "10s").replace("$job", ".+")
    assert "$" not in asked, "what Grafana fills in is filled in here"
    values = [value for value in watched.range(asked) if not math.isnan(value)]
    assert values, f"{panel} is empty: {asked}"
    quiet = set(re.findall(r"weighbridge_(\w+)", query)) & QUIET
    assert quiet or any(values), f"{panel} shows nothing but 0: {asked}"


@pytest.mark.parametrize("rule", sorted(recorded()))
def test_every_recorded_series_has_data(watched, rule):
    assert any(not math.isnan(value) for value in watched.range(rule))


def test_prometheus_evaluates_every_rule_without_an_error(watched):
    groups = exchange(watched.base, "GET", "/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == alerts() | recorded()
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


def test_promtool_finds_nothing_wrong_with_the_exposition(fresh):
    exposition = exchange(fresh.admin, "GET", "/metrics").body
    ended = subprocess.run([tool("promtool"), "check", "metrics"], input=exposition, capture_output=True, timeout=180)
    assert ended.returncode in (0, 3), ended.stderr.decode()
    # It warns of names that are OpenTelemetry's, not ours; anything else is a finding.
    assert [line for line in ended.stderr.decode().splitlines() if "weighbridge_" in line] == []
