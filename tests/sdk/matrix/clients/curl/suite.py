"""curl: what a person tries first, and the corners of HTTP that no SDK shows."""

import json
import signal
import subprocess
import time

import pytest
from shared import CUT, MODEL, STALL, STEADY, WRONG_KEY, Question, broken_off, said_after

chat = pytest.mark.surface("chat")

TOOL = {
    "type": "function",
    "function": {
        "name": "order_status",
        "parameters": {"type": "object", "properties": {"order_id": {"type": "string"}}, "required": ["order_id"]},
    },
}


class Curl:
    """curl with the caller's key; a `-d` makes it a POST, as on a command line."""

    def __init__(self, proxy):
        self.proxy = proxy

    def start(self, path, *options, body=None, key=None, headers=()):
        command = ["curl", "--silent", "--show-error", "--no-buffer", "--include", "--max-time", "30"]
        fields = [f"Authorization: Bearer {key or self.proxy.key}", *headers]
        if body is not None:
            fields.append("Content-Type: application/json")
            command += ["--data-binary", "@-"]
        command += [part for field in fields for part in ("--header", field)]
        process = subprocess.Popen(
            [*command, *options, self.proxy.data + path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            process.stdin.write(b"" if body is None else json.dumps(body).encode())
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.stdin = None
        return process

    def run(self, path, *options, **request):
        """(exit code, the heads of all answers, the body of the last)"""
        process = self.start(path, *options, **request)
        out, err = process.communicate(timeout=40)
        heads = []
        while out.startswith(b"HTTP/"):
            head, _, out = out.partition(b"\r\n\r\n")
            first, *fields = head.decode().split("\r\n")
            names = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
            heads.append((int(first.split()[1]), names, first.split()[0]))
        return process.returncode, heads, out


@pytest.fixture
def curl(proxy):
    return Curl(proxy)


def chat_body(question, model=MODEL, **options):
    return {"model": model, "messages": question.messages(), **options}


def events(body: bytes) -> list:
    """(name, data) of each event; the data as JSON but for the terminal word."""
    found = []
    for frame in body.decode().split("\n\n"):
        fields = [line.partition(": ")[::2] for line in frame.split("\n") if line and not line.startswith(":")]
        data = "\n".join(value for name, value in fields if name == "data")
        if data:
            found.append((dict(fields).get("event"), json.loads(data) if data.startswith("{") else data))
    return found


def text_of(found) -> str:
    choices = [event["choices"][0] for _, event in found if isinstance(event, dict) and event.get("choices")]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


# --- chat ---


@chat
def test_a_chat_completion(curl, proxy):
    question = Question()
    code, [(status, headers, _)], body = curl.run("/v1/chat/completions", body=chat_body(question))
    assert (code, status) == (0, 200)
    answer = json.loads(body)
    assert question.answered(answer["choices"][0]["message"]["content"])
    assert answer["usage"]["total_tokens"] > 20
    call = proxy.one_call()
    assert headers["x-request-id"] == call["call.id"]
    assert headers["wb-provider"] == call["provider.id"]
    proxy.metered(call)


@chat
def test_a_stream_comes_as_it_is_spoken(curl, proxy):
    question = Question()
    process = curl.start("/v1/chat/completions", body=chat_body(question, stream=True))
    times = []
    body = b""
    while piece := process.stdout.read1(65536):
        times.append(time.monotonic())
        body += piece
    assert process.wait(5) == 0
    found = events(body.partition(b"\r\n\r\n")[2])
    assert found[-1] == (None, "[DONE]")
    assert question.answered(text_of(found))
    assert len(times) > 10 and times[-1] - times[0] > 0.3, "not in one piece at the end"
    assert proxy.one_call()["stream.end"] == "complete"


@chat
def test_a_tool_is_called_and_its_result_taken(curl, proxy):
    question = Question()
    messages = question.messages()
    _, _, body = curl.run("/v1/chat/completions", body={"model": MODEL, "messages": messages, "tools": [TOOL]})
    choice = json.loads(body)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert json.loads(call["function"]["arguments"]) == {"order_id": "sandbox"}
    messages += [choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "on its way"}]
    _, _, body = curl.run("/v1/chat/completions", body={"model": MODEL, "messages": messages, "tools": [TOOL]})
    assert question.answered(json.loads(body)["choices"][0]["message"]["content"])
    proxy.turns(2)


@chat
@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_either_version_of_http_is_spoken(curl, proxy, version, stream):
    question = Question()
    code, [(status, _, spoken)], body = curl.run(
        "/v1/chat/completions", version, body=chat_body(question, stream=stream)
    )
    assert (code, status, spoken) == (0, 200, "HTTP/2" if "2" in version else "HTTP/1.1")
    assert question.answered(text_of(events(body)) if stream else json.loads(body)["choices"][0]["message"]["content"])
    proxy.one_call()


@chat
def test_a_body_of_unknown_length_is_taken(curl, proxy):
    question = Question()
    code, [(status, _, _)], body = curl.run(
        "/v1/chat/completions", body=chat_body(question), headers=["Transfer-Encoding: chunked"]
    )
    assert (code, status) == (0, 200)
    assert question.answered(json.loads(body)["choices"][0]["message"]["content"])
    proxy.one_call()


@chat
def test_a_client_that_asks_before_it_sends_is_told_to_go_on(curl, proxy):
    question = Question()
    code, heads, body = curl.run("/v1/chat/completions", body=chat_body(question), headers=["Expect: 100-continue"])
    assert code == 0 and [status for status, _, _ in heads] == [100, 200]
    assert question.answered(json.loads(body)["choices"][0]["message"]["content"])
    proxy.one_call()


@chat
def test_models_are_listed(curl, proxy):
    code, [(status, _, _)], body = curl.run("/v1/models")
    assert (code, status) == (0, 200)
    assert MODEL in [model["id"] for model in json.loads(body)["data"]]


@chat
def test_a_wrong_key_fails_the_command(curl, proxy):
    code, [(status, _, _)], body = curl.run(
        "/v1/chat/completions", "--fail-with-body", body=chat_body(Question()), key=WRONG_KEY
    )
    assert (code, status) == (22, 401)
    assert json.loads(body)["error"]["code"] == "invalid_api_key" and b"CANARY" not in body
    proxy.refused(401, "unauthorised")


@chat
def test_an_unknown_model_fails_the_command(curl, proxy):
    code, [(status, _, _)], body = curl.run(
        "/v1/chat/completions", "--fail-with-body", body=chat_body(Question(), "no-such-model")
    )
    assert (code, status) == (22, 404)
    assert json.loads(body)["error"]["code"] == "model_not_found"
    proxy.refused(404, "client_error")


@chat
def test_it_waits_as_long_as_it_is_told(curl, proxy):
    """curl understands whole seconds only."""

    def once():
        code, _, body = curl.run(
            "/v1/chat/completions", "--retry", "2", body=chat_body(Question()), key=proxy.slow_key("chat")
        )
        assert code == 0
        # A body that was printed before the repeat stays printed.
        said_after(json.loads(body[body.rindex(b'{"id"') :])["choices"][0]["message"]["content"])

    proxy.waits_as_told(once, whole_seconds=True)


@chat
def test_a_command_that_is_stopped_lets_its_stream_go(curl, proxy):
    process = curl.start("/v1/chat/completions", body=chat_body(Question(), STALL, stream=True))
    body = b""
    while not text_of(events(body.partition(b"\r\n\r\n")[2].rpartition(b"\n\n")[0])):
        body += process.stdout.read1(65536)
    assert proxy.in_flight(STALL) == 1
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    proxy.let_go()


@chat
def test_a_stream_that_is_cut_says_so_and_is_not_done(curl, proxy):
    proxy.heal(CUT)
    code, _, body = curl.run("/v1/chat/completions", body=chat_body(Question(), CUT, stream=True))
    *pieces, (_, last) = events(body)
    assert code == 0 and last["error"]["code"] == "upstream_truncated"
    assert b"[DONE]" not in body
    broken_off(text_of(pieces))
    assert not any(piece["choices"][0]["finish_reason"] for _, piece in pieces)
    proxy.truncated()


# --- responses ---

responses = pytest.mark.surface("responses")
RESPONSES_TOOL = {"type": "function", "name": "order_status", **{"parameters": TOOL["function"]["parameters"]}}


def output_text(response: dict) -> str:
    parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts if part["type"] == "output_text")


@responses
def test_a_response(curl, proxy):
    question = Question()
    code, [(status, headers, _)], body = curl.run("/v1/responses", body={"model": MODEL, "input": question.text})
    assert (code, status) == (0, 200)
    answer = json.loads(body)
    assert (answer["object"], answer["status"]) == ("response", "completed")
    assert question.answered(output_text(answer))
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 20
    call = proxy.one_call("responses")
    assert headers["x-request-id"] == call["call.id"]
    proxy.metered(call)


@responses
def test_a_streamed_response_is_named_events_in_order(curl, proxy):
    question = Question()
    _, _, body = curl.run("/v1/responses", body={"model": MODEL, "input": question.text, "stream": True})
    found = events(body)
    names = [name for name, _ in found]
    assert names[0] == "response.created" and names[-1] == "response.completed"
    assert all(event["type"] == name for name, event in found)
    numbers = [event["sequence_number"] for _, event in found]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    deltas = [event["delta"] for name, event in found if name == "response.output_text.delta"]
    assert len(deltas) > 10 and question.answered("".join(deltas))
    assert output_text(found[-1][1]["response"]) == "".join(deltas)
    assert b"[DONE]" not in body
    proxy.streamed("responses")


@responses
def test_a_function_is_called_and_its_output_taken(curl, proxy):
    question = Question()
    items = question.messages()
    _, _, body = curl.run("/v1/responses", body={"model": MODEL, "input": items, "tools": [RESPONSES_TOOL]})
    (call,) = [item for item in json.loads(body)["output"] if item["type"] == "function_call"]
    assert (call["name"], json.loads(call["arguments"])) == ("order_status", {"order_id": "sandbox"})
    items += [call, {"type": "function_call_output", "call_id": call["call_id"], "output": "on its way"}]
    _, _, body = curl.run("/v1/responses", body={"model": MODEL, "input": items, "tools": [RESPONSES_TOOL]})
    assert question.answered(output_text(json.loads(body)))
    proxy.turns(2, "responses")


@responses
@pytest.mark.parametrize(
    ("key", "model", "status", "word", "outcome"),
    [
        (WRONG_KEY, MODEL, 401, "invalid_api_key", "unauthorised"),
        (None, "no-such-model", 404, "model_not_found", "client_error"),
    ],
    ids=["wrong key", "unknown model"],
)
def test_a_refused_response_says_why(curl, proxy, key, model, status, word, outcome):
    code, [(got, _, _)], body = curl.run(
        "/v1/responses", "--fail-with-body", body={"model": model, "input": "hello"}, key=key
    )
    assert (code, got) == (22, status)
    assert json.loads(body)["error"]["code"] == word
    proxy.refused(status, outcome, "responses")


@responses
def test_a_cut_response_never_looks_complete(curl, proxy):
    proxy.heal(CUT)
    _, _, body = curl.run("/v1/responses", body={"model": CUT, "input": "hello", "stream": True})
    found = events(body)
    assert "response.completed" not in [name for name, _ in found]
    # SDKs raise on a top-level `error` only: on `response.failed` alone several clients take what came for the answer.
    assert "before its answer was complete" in found[-1][1]["error"]["message"]
    broken_off("".join(event["delta"] for name, event in found if name == "response.output_text.delta"))
    proxy.truncated("responses")


# --- messages ---

messages_form = pytest.mark.surface("messages")
MESSAGES_TOOL = {"name": "order_status", "input_schema": TOOL["function"]["parameters"]}
VERSION = ["anthropic-version: 2023-06-01"]


def message_body(question, model=MODEL, **options):
    return {"model": model, "max_tokens": 200, "messages": question.messages(), **options}


@messages_form
def test_a_message_with_the_key_in_either_header(curl, proxy):
    for headers, key in [(VERSION, None), ([*VERSION, f"x-api-key: {proxy.key}", "Authorization:"], None)]:
        proxy.mark()
        question = Question()
        fields = [field for field in headers if field != "Authorization:"]
        options = ["--header", "Authorization:"] if len(headers) > 2 else []
        code, [(status, head, _)], body = curl.run(
            "/v1/messages", *options, body=message_body(question), headers=fields, key=key
        )
        assert (code, status) == (0, 200), body
        answer = json.loads(body)
        assert (answer["type"], answer["role"], answer["stop_reason"]) == ("message", "assistant", "end_turn")
        assert question.answered("".join(block["text"] for block in answer["content"]))
        call = proxy.one_call("messages")
        assert head["request-id"] == head["x-request-id"] == call["call.id"]
        assert answer["usage"]["output_tokens"] == call["tokens_out"]


@messages_form
def test_a_streamed_message_is_named_events_in_order(curl, proxy):
    question = Question()
    _, _, body = curl.run("/v1/messages", body=message_body(question, stream=True), headers=VERSION)
    found = [(name, event) for name, event in events(body) if name != "ping"]
    names = [name for name, _ in found]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[2:-3]) == {"content_block_delta"}
    assert all(event["type"] == name for name, event in found)
    assert question.answered("".join(event["delta"]["text"] for name, event in found if name == "content_block_delta"))
    assert found[-2][1]["delta"]["stop_reason"] == "end_turn" and found[-2][1]["usage"]["output_tokens"] > 20
    assert b"[DONE]" not in body
    proxy.metered(proxy.one_call("messages"))


@messages_form
def test_a_tool_is_used_and_its_result_taken_in_messages(curl, proxy):
    question = Question()
    turns = question.messages()
    body = message_body(question, tools=[MESSAGES_TOOL])
    _, _, first = curl.run("/v1/messages", body=body, headers=VERSION)
    answer = json.loads(first)
    assert answer["stop_reason"] == "tool_use"
    (use,) = [block for block in answer["content"] if block["type"] == "tool_use"]
    assert (use["name"], use["input"]) == ("order_status", {"order_id": "sandbox"})
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": "on its way"}
    turns += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": [result]}]
    _, _, second = curl.run("/v1/messages", body={**body, "messages": turns}, headers=VERSION)
    answer = json.loads(second)
    assert answer["stop_reason"] == "end_turn"
    said_after("".join(block["text"] for block in answer["content"]))
    proxy.turns(2, "messages")


@messages_form
@pytest.mark.parametrize(
    ("key", "model", "status", "word", "outcome"),
    [
        (WRONG_KEY, MODEL, 401, "authentication_error", "unauthorised"),
        (None, "no-such-model", 404, "not_found_error", "client_error"),
    ],
    ids=["wrong key", "unknown model"],
)
def test_a_refused_message_says_why(curl, proxy, key, model, status, word, outcome):
    code, [(got, headers, _)], body = curl.run(
        "/v1/messages", "--fail-with-body", body=message_body(Question(), model), headers=VERSION, key=key
    )
    assert (code, got) == (22, status)
    error = json.loads(body)
    assert (error["type"], error["error"]["type"]) == ("error", word)
    assert error.get("request_id", headers["request-id"]) == headers["request-id"]
    proxy.refused(status, outcome, "messages")


@messages_form
def test_a_cut_message_ends_with_an_error_event(curl, proxy):
    proxy.heal(CUT)
    _, _, body = curl.run("/v1/messages", body=message_body(Question(), CUT, stream=True), headers=VERSION)
    found = events(body)
    assert found[-1][0] == "error" and found[-1][1]["type"] == "error" and found[-1][1]["error"]["message"]
    assert "message_stop" not in [name for name, _ in found]
    proxy.truncated("messages")


# --- embeddings ---

embeddings = pytest.mark.surface("embeddings")


@embeddings
def test_embeddings_are_numbers_in_order(curl, proxy):
    body = {"model": STEADY, "input": [Question().text, Question().text]}
    code, [(status, _, _)], answer = curl.run("/v1/embeddings", body=body)
    assert (code, status) == (0, 200)
    answer = json.loads(answer)
    assert answer["object"] == "list" and [item["index"] for item in answer["data"]] == [0, 1]
    first, second = [item["embedding"] for item in answer["data"]]
    assert len(first) == len(second) > 1 and first != second
    assert answer["usage"]["prompt_tokens"] > 0
    assert proxy.one_call("embeddings")["tokens_in"] > 0


@embeddings
def test_embeddings_come_as_base64_when_asked(curl, proxy):
    body = {"model": STEADY, "input": "hello", "encoding_format": "base64"}
    _, _, answer = curl.run("/v1/embeddings", body=body)
    assert isinstance(json.loads(answer)["data"][0]["embedding"], str)
    proxy.one_call("embeddings")


@embeddings
def test_an_unknown_embedder_is_not_found(curl, proxy):
    code, [(status, _, _)], body = curl.run(
        "/v1/embeddings", "--fail-with-body", body={"model": "no-such-model", "input": "hello"}
    )
    assert (code, status) == (22, 404) and json.loads(body)["error"]["code"] == "model_not_found"
    proxy.refused(404, "client_error", "embeddings")
