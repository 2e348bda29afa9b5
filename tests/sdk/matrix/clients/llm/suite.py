"""llm: the command line tool. Its models are lines of a YAML file; without a key of its own it sends a dummy one."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from shared import CUT, MODEL, STALL, WRONG_KEY, Question, broken_off, said_after

CHAT = pytest.param("chat", marks=pytest.mark.surface("chat"))
RESPONSES = pytest.param("responses", marks=pytest.mark.surface("responses"))
both = pytest.mark.parametrize("surface", [CHAT, RESPONSES])

TOOL = """
def order_status(order_id: str) -> str:
    "Where an order is."
    return f"order {order_id} is on its way"
"""


class Tool:
    """`llm` with a home of its own, whose only models are routes of the proxy."""

    def __init__(self, proxy, surface, home):
        self.home, self.proxy, self.surface = home, proxy, surface
        models = [MODEL, STALL, CUT, "no-such-model"]
        entries = [self.entry(name, needs_key=True) for name in models] + [self.entry("keyless", needs_key=False)]
        # JSON is YAML.
        (home / "extra-openai-models.yaml").write_text(json.dumps(entries))
        (home / "keys.json").write_text(json.dumps({"weighbridge": proxy.key}))

    def entry(self, name, needs_key):
        entry = {"model_id": f"wb/{name}", "model_name": MODEL if name == "keyless" else name}
        entry |= {"api_base": self.proxy.base_url, "supports_tools": True, "responses": self.surface == "responses"}
        return entry | ({"api_key_name": "weighbridge"} if needs_key else {})

    def start(self, question, *options, model=MODEL):
        command = [sys.executable, "-m", "llm", "-m", f"wb/{model}", *options, question.text]
        quiet = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "LLM_"))}
        environment = {**quiet, "LLM_USER_PATH": str(self.home), "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, question, *options, model=MODEL):
        """(exit code, standard output, standard error)"""
        process = self.start(question, *options, model=model)
        out, err = finish(process)
        return process.returncode, out.removesuffix("\n"), err


def finish(process):
    """What it printed. A process that does not end is not left behind: its call would be counted to the next case."""
    try:
        # It loads for seconds, and for many of them on a machine whose disk is busy.
        return process.communicate(timeout=180)
    finally:
        process.kill()


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """One for all cases: filling a fresh one's database takes longer than a call."""
    return tmp_path_factory.mktemp("llm")


@pytest.fixture
def tool(proxy, surface, home):
    return Tool(proxy, surface, home)


@both
@pytest.mark.parametrize("options", [["--no-stream"], []], ids=["whole", "streamed"])
def test_an_answer_is_printed_with_its_usage(tool, proxy, surface, options):
    question = Question()
    code, out, err = tool.run(question, "--usage", *options)
    assert code == 0, err
    assert question.answered(out)
    call = proxy.one_call(surface)
    assert f"{call['tokens_in']} input, {call['tokens_out']} output" in err
    assert call.get("stream.end") == (None if options else "complete")
    proxy.metered(call)


@both
def test_a_stream_is_printed_piece_by_piece(tool, proxy, surface):
    question = Question()
    process = tool.start(question)
    times = []
    while process.stdout.read(40):
        times.append(time.monotonic())
    assert process.wait(30) == 0
    assert times[-1] - times[0] > 0.3, "forty words at twenty milliseconds each"
    proxy.metered(proxy.one_call(surface))


@both
def test_a_tool_is_called_and_its_result_taken(tool, proxy, surface):
    question = Question()
    code, out, err = tool.run(question, "--functions", TOOL, "--tools-debug")
    assert code == 0, err
    assert "order sandbox is on its way" in err
    assert question.answered(out.strip())
    proxy.turns(2, surface)


@both
def test_a_conversation_goes_on(tool, proxy, surface):
    assert tool.run(Question())[0] == 0
    question = Question()
    code, out, err = tool.run(question, "--continue")
    assert code == 0, err
    assert question.answered(out)
    one, two = proxy.calls()
    assert two["tokens_in"] > one["tokens_in"] + 30, "the first answer was sent back"


@both
def test_a_wrong_key_is_told(tool, proxy, surface):
    code, out, err = tool.run(Question(), "--key", WRONG_KEY)
    assert code == 1 and not out
    assert "401" in err and "invalid_api_key" in err and "CANARY" not in err
    proxy.refused(401, "unauthorised", surface)


@both
def test_the_dummy_key_it_sends_without_one_is_refused(tool, proxy, surface):
    code, _, err = tool.run(Question(), model="keyless")
    assert code == 1 and "401" in err
    proxy.refused(401, "unauthorised", surface)


@both
def test_an_unknown_model_is_told(tool, proxy, surface):
    code, out, err = tool.run(Question(), model="no-such-model")
    assert code == 1 and not out
    assert "404" in err and "model_not_found" in err
    proxy.refused(404, "client_error", surface)


@both
def test_it_waits_as_long_as_it_is_told(tool, proxy, surface):
    """Two at once, since one alone takes longer to start than a caller has to wait."""
    slow = ["--no-stream", "--key", proxy.slow_key(surface)]
    began = time.monotonic()
    processes = [tool.start(Question(), *slow) for _ in range(2)]
    ended = [(*finish(process), process.returncode) for process in processes]
    took = time.monotonic() - began
    for out, err, code in ended:
        assert code == 0, err
        said_after(out.removesuffix("\n"))
    calls = proxy.calls()
    assert sorted(call["status"] for call in calls) == [200, 200, 429], calls
    assert calls[-1]["client.retries"] == 1 and took > 1


@both
def test_an_interrupted_stream_is_let_go(tool, proxy, surface):
    process = tool.start(Question(), model=STALL)
    text = process.stdout.read(5)
    broken_off(text)
    assert proxy.in_flight(STALL) == 1
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    proxy.let_go(surface)
    finish(process)


@both
def test_a_stream_that_is_cut_is_an_error(tool, proxy, surface):
    proxy.heal(CUT)
    code, out, err = tool.run(Question(), model=CUT)
    assert code == 1
    assert "before its answer was complete" in err
    broken_off(out)
    proxy.truncated(surface)
