"""Spans as a real OpenTelemetry collector reads them: Rotel, of another make than the crates that write them.

It prints each span it takes, and that is what is held against what was asked.
"""

import importlib.util
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import Sandbox, free_port, payment

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
CANARY = "canary-5f3a-nobody-may-read-this"
READY_WITHIN = 90


def agent() -> Path:
    found = importlib.util.find_spec("rotel")
    if not found:
        told = "rotel is not installed: it is in requirements.txt, for CPython 3.10 to 3.13"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(told)
    agent = Path(found.origin).parent / "rotel-agent"
    agent.chmod(0o755)
    return agent


class Collector:
    """Rotel on loopback, which hands nothing on."""

    def __init__(self, folder: Path):
        self.port, self.log = free_port(), folder / "rotel"
        places = ["--otlp-http-endpoint", f"127.0.0.1:{self.port}", "--otlp-grpc-endpoint", f"127.0.0.1:{free_port()}"]
        files = ["--pid-file", str(folder / "rotel.pid"), "--log-file", str(folder / "rotel.log")]
        quiet = ["--exporter", "blackhole", "--debug-log", "traces", "--debug-log-verbosity", "detailed"]
        self.output = open(self.log, "wb")
        self.process = subprocess.Popen(
            [agent(), "start", *places, *files, *quiet],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NO_COLOR": "1"},
        )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def spans(self) -> list:
        """Each span as a dictionary: what heads it, and its attributes."""
        told = []
        for block in re.split(r"^Span #\d+$", self.said(), flags=re.MULTILINE)[1:]:
            span = {name: value.strip() for name, value in re.findall(r"^ {4}([A-Z][\w ]*?) *: (.*)$", block, re.MULTILINE)}
            pairs = re.findall(r"^ +-> ([\w.]+): (?:Str|Int|Double|Bool)\((.*)\)$", block, re.MULTILINE)
            told.append({**span, "times": [int(at) for at in re.findall(r"(?:Start|End) time: (\d+)", block)], **dict(pairs)})
        return told

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(READY_WITHIN)
        finally:
            self.process.kill()
            self.output.close()


@contextmanager
def watched(tmp_path, edit=lambda text: text):
    """A sandbox that tells a collector everything."""
    collector = Collector(tmp_path)
    table = f'\n[traces]\notlp = "http://127.0.0.1:{collector.port}"\nsample = 1\n'
    try:
        sandbox = Sandbox(tmp_path, edit=lambda text: edit(text) + table)
        try:
            until = time.monotonic() + READY_WITHIN
            while "Starting Rotel" not in collector.said():
                assert collector.process.poll() is None and time.monotonic() < until, collector.said()
                time.sleep(0.05)
            yield sandbox, collector
        finally:
            if sandbox.process.process.poll() is None:
                sandbox.stop()
    finally:
        collector.stop()


@pytest.fixture
def traced(tmp_path):
    with watched(tmp_path) as both:
        yield both


def failing_over() -> dict:
    """A call to a model whose first provider fails."""
    said = [{"role": "user", "content": CANARY}]
    return {"model": "summary", "messages": said, "sandbox_fault": {"tokenmix": "status:503"}}


def test_a_failover_and_a_decision_are_read_by_a_real_collector(traced):
    sandbox, collector = traced
    context = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "shop=1"}
    answer = sandbox.call("POST", "/v1/chat/completions", failing_over(), headers=context)
    assert answer.status == 200 and answer.headers["wb-trace-id"] == TRACE
    decision = sandbox.assess(payment("88.00", subject=CANARY))
    assert decision.status == 200
    sandbox.eventually(lambda: sandbox.metric("weighbridge_traces_exported_total") >= 2, within=10)
    sandbox.eventually(lambda: len(collector.spans()) >= 5, within=10)

    of_chat = [span for span in collector.spans() if span["Trace ID"] == TRACE]
    request, failed, served = sorted(of_chat, key=lambda span: span.get("weighbridge.attempt", "0"))
    assert (request["Name"], request["Kind"]) == ("POST /v1/chat/completions", "SPAN_KIND_SERVER")
    assert request["Parent ID"] == PARENT
    assert {span["TraceState"] for span in of_chat} == {"shop=1"}
    assert request["weighbridge.request_id"] == answer.headers["x-request-id"]
    assert (request["weighbridge.route"], request["http.response.status_code"]) == ("summary", "200")
    for span in (failed, served):
        assert (span["Parent ID"], span["Kind"]) == (request["ID"], "SPAN_KIND_CLIENT")
        assert span["Name"] == f"chat {span['gen_ai.request.model']}" and span["gen_ai.operation.name"] == "chat"
        assert request["times"][0] <= span["times"][0] <= span["times"][1] <= request["times"][1]
    assert (failed["gen_ai.provider.name"], failed["error.type"]) == ("tokenmix", "overloaded")
    assert (failed["http.response.status_code"], "gen_ai.usage.input_tokens" in failed) == ("503", False)
    usage = answer.json()["usage"]
    assert served["gen_ai.provider.name"] == answer.headers["wb-provider"]
    assert served["gen_ai.usage.input_tokens"] == str(usage["prompt_tokens"])
    assert served["gen_ai.usage.output_tokens"] == str(usage["completion_tokens"])

    assert served["gen_ai.response.model"] == answer.json()["model"]
    assert "gen_ai.response.model" not in failed

    of_risk = [span for span in collector.spans() if span["Trace ID"] == decision.headers["wb-trace-id"]]
    request, attempt = sorted(of_risk, key=lambda span: span["Kind"], reverse=True)
    assert request["weighbridge.decision.action"] == decision.json()["action"]
    assert request["weighbridge.decision.source"] == decision.json()["source"]
    assert (attempt["Name"], attempt["Parent ID"]) == ("risk.assess alipay", request["ID"])
    assert CANARY not in collector.said() and sandbox.key not in collector.said()


def on_trial(text: str) -> str:
    """Copies of each call to `narrative`, for a model that it does not ask."""
    route = "[model.narrative]"
    assert text.count(route) == 1
    lines = [line + "\n" for line in text.splitlines()]
    at = next(number for number, line in enumerate(lines) if line.startswith(route))
    lines.insert(at + 1, 'shadow = { use = "openrouter/deepseek-chat", percent = 100 }\n')
    return "".join(lines)


@pytest.mark.parametrize("fault", [None, "status:503"])
def test_a_copy_for_a_candidate_on_trial_is_a_marked_span_of_its_own_to_a_real_collector(tmp_path, fault):
    with watched(tmp_path, on_trial) as (sandbox, collector):
        body = {"model": "narrative", "messages": [{"role": "user", "content": CANARY}]}
        body |= {"sandbox_fault": {"openrouter": fault}} if fault else {}
        context = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        answer = sandbox.call("POST", "/v1/chat/completions", body, headers=context)
        assert (answer.status, answer.headers["wb-provider"]) == (200, "tokenmix")
        sandbox.eventually(lambda: len(collector.spans()) >= 3, within=20)
        # The request and its copy are two of what the help text counts.
        sandbox.eventually(lambda: sandbox.metric("weighbridge_traces_exported_total") == 2, within=20)
        assert sandbox.metric("weighbridge_traces_dropped_total") == 0

        spans = collector.spans()
        assert {span["Trace ID"] for span in spans} == {TRACE} and len(spans) == 3
        [copy] = [span for span in spans if span.get("weighbridge.shadow") == "true"]
        [request] = [span for span in spans if span["Kind"] == "SPAN_KIND_SERVER"]
        [served] = [span for span in spans if "weighbridge.attempt" in span]
        assert len({copy["ID"], request["ID"], served["ID"]}) == 3
        assert copy["Parent ID"] == served["Parent ID"] == request["ID"] and copy["Kind"] == "SPAN_KIND_CLIENT"
        assert (copy["gen_ai.provider.name"], copy["weighbridge.route"]) == ("openrouter", "narrative")
        assert copy["weighbridge.upstream"] == "openrouter/deepseek-chat"
        assert copy["Name"] == f"chat {copy['gen_ai.request.model']}" != served["Name"]
        assert copy["weighbridge.request_id"] == request["weighbridge.request_id"] == answer.headers["x-request-id"]
        assert request["times"][0] <= copy["times"][0] <= copy["times"][1]
        if fault:
            assert (copy["error.type"], copy["http.response.status_code"]) == ("provider_fault", "503")
        else:
            assert "error.type" not in copy and int(copy["gen_ai.usage.output_tokens"]) > 0
        # Whatever became of the copy, the call's own outcome is its own.
        assert (request["weighbridge.attempts"], request["http.response.status_code"]) == ("1", "200")
        assert "error.type" not in request and "weighbridge.shadow" not in served
        assert CANARY not in collector.said() and sandbox.key not in collector.said()


def test_a_process_that_ends_tells_what_it_still_knows(traced):
    sandbox, collector = traced
    assert sandbox.call("POST", "/v1/chat/completions", failing_over()).status == 200
    sandbox.stop()
    until = time.monotonic() + READY_WITHIN
    while len(collector.spans()) < 3:
        assert time.monotonic() < until, collector.said()
        time.sleep(0.05)


def test_a_collector_that_is_gone_harms_nobody(traced):
    sandbox, collector = traced
    collector.process.kill()
    collector.process.wait()
    for _ in range(5):
        assert sandbox.call("POST", "/v1/chat/completions", failing_over()).status == 200
    sandbox.eventually(lambda: sandbox.metric("weighbridge_traces_dropped_total", reason="unreachable") >= 5, within=20)
    assert sandbox.process.said().count("traces are not taken by the collector") == 1
