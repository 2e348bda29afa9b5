"""The official OpenAI SDK for Python, pointed at the sandbox: what an application developer gets."""

import asyncio
import json
import re
import time
import uuid

import openai
import pytest
from harness import NARROW_KEY, PATIENCE, SLOW_KEY, exchange

ROUTES = ["summary", "narrative"]


def ask() -> list:
    """A question nobody asked before: the summary route answers repeated ones from its cache."""
    return [{"role": "user", "content": f"Say hello to order {uuid.uuid4()} in three words."}]


def client(sandbox, key=None, **options) -> openai.OpenAI:
    options = {"max_retries": 0, "timeout": PATIENCE, **options}
    return openai.OpenAI(base_url=sandbox.base_url, api_key=key or sandbox.key, **options)


def fail(**faults) -> dict:
    """The named providers misbehave for this one request."""
    return {"sandbox_fault": faults}


def chat(sandbox, model="summary", **options):
    """(the parsed answer, its headers)"""
    raw = client(sandbox).chat.completions.with_raw_response.create(model=model, messages=ask(), **options)
    return raw.parse(), raw.headers


def stream(sandbox, model="summary", **options):
    return client(sandbox).chat.completions.create(model=model, messages=ask(), stream=True, **options)


def text_of(chunks) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# --- answers ---


@pytest.mark.parametrize("model", ROUTES)
def test_a_chat_completion_answers_with_usage(sandbox, model):
    answer, headers = chat(sandbox, model)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert headers["wb-route"] == model


def test_every_answer_says_where_it_came_from(sandbox):
    answer, headers = chat(sandbox)
    provider, _, upstream_model = sandbox.said["routes"]["summary"][0].partition("/")
    assert headers["wb-provider"] == provider
    assert headers["wb-model"] and upstream_model
    assert headers["wb-attempts"] == "1"
    assert re.fullmatch(r"[0-9a-f]{12}", headers["wb-config"])
    assert int(headers["wb-overhead-us"]) >= 0
    assert headers["wb-cost"]
    assert headers["cache-control"] == "private, no-store"
    assert "set-cookie" not in headers
    assert answer.model in {"summary", upstream_model, headers["wb-model"]}


def test_the_request_id_of_the_sdk_is_the_header(sandbox):
    answer, headers = chat(sandbox)
    assert answer._request_id == headers["x-request-id"]
    assert answer._request_id


def test_two_calls_have_two_request_ids(sandbox):
    assert chat(sandbox)[0]._request_id != chat(sandbox)[0]._request_id


def test_models_lists_what_the_key_may_call(sandbox):
    listed = {model.id for model in client(sandbox).models.list()}
    assert set(ROUTES) <= listed
    assert {model.id for model in client(sandbox, NARROW_KEY).models.list()} == {"summary"}


def test_one_model_can_be_looked_up(sandbox):
    model = client(sandbox).models.retrieve("summary")
    assert (model.id, model.object) == ("summary", "model")
    with pytest.raises(openai.NotFoundError):
        client(sandbox).models.retrieve("no-such-model")


def test_twenty_parallel_calls_are_all_answered(sandbox):
    async def run():
        async with openai.AsyncOpenAI(base_url=sandbox.base_url, api_key=sandbox.key, max_retries=0, timeout=PATIENCE) as many:
            calls = [many.chat.completions.create(model="summary", messages=ask()) for _ in range(20)]
            return await asyncio.gather(*calls)

    answers = asyncio.run(run())
    assert len({answer._request_id for answer in answers}) == 20
    assert all(answer.choices[0].message.content for answer in answers)


def test_the_same_question_is_answered_from_memory_where_the_route_caches(sandbox):
    calls = lambda: sandbox.metric("weighbridge_upstream_attempts_total")  # noqa: E731
    for model, source in [("summary", "hit"), ("narrative", None)]:
        before, messages = calls(), ask()
        raw = [
            client(sandbox).chat.completions.with_raw_response.create(model=model, messages=messages) for _ in range(2)
        ]
        first, again = [answer.parse() for answer in raw]
        assert again._request_id != first._request_id
        if source:
            assert raw[1].headers["wb-cache"] == source and int(raw[1].headers["age"]) >= 0
            assert again.choices[0].message.content == first.choices[0].message.content
        else:
            assert raw[1].headers.get("wb-cache") not in ("hit", "coalesced")
        assert calls() - before == (1 if source else 2)


# --- streams ---


@pytest.mark.parametrize("model", ROUTES)
def test_a_stream_brings_content_and_ends(sandbox, model):
    chunks = list(stream(sandbox, model))
    assert text_of(chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    roles = [chunk.choices[0].delta.role for chunk in chunks if chunk.choices and chunk.choices[0].delta.role]
    assert roles == ["assistant"]


def test_a_client_that_did_not_ask_for_usage_sees_none(sandbox):
    for chunk in stream(sandbox):
        assert chunk.choices, "a chunk without choices breaks clients that index choices[0]"
        assert "usage" not in chunk.model_dump(exclude_unset=True)


def test_a_client_that_asked_for_usage_gets_it_last(sandbox):
    *chunks, last = stream(sandbox, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.total_tokens > 0
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_a_stream_is_framed_as_clients_that_parse_by_hand_expect(sandbox):
    answer = sandbox.call("POST", "/v1/chat/completions", {"model": "summary", "messages": ask(), "stream": True})
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"].startswith(("no-cache", "private, no-store"))
    assert "content-length" not in answer.headers and "content-encoding" not in answer.headers
    frames = answer.body.decode().split("\n\n")
    assert frames.pop() == "" and frames.pop() == "data: [DONE]"
    for frame in frames:
        assert frame.startswith("data: {") and "\n" not in frame
        json.loads(frame.removeprefix("data: "))


def test_a_tool_call_arrives_in_pieces_and_whole(sandbox):
    function = {"name": "lookup", "parameters": {"type": "object", "properties": {"id": {"type": "string"}}}}
    options = {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "lookup"}},
    }
    whole = chat(sandbox, **options)[0].choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.tool_calls[0].function.name == "lookup"

    name, arguments, finish = "", "", None
    for chunk in stream(sandbox, **options):
        finish = chunk.choices[0].finish_reason or finish
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.index == 0
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert (name, finish) == ("lookup", "tool_calls")
    assert json.loads(arguments) == json.loads(whole.message.tool_calls[0].function.arguments)


# --- refusals ---


def refused(error_class, sandbox, key=None, model="summary", **options):
    with pytest.raises(error_class) as caught:
        client(sandbox, key).chat.completions.create(model=model, messages=ask(), **options)
    error = caught.value
    assert error.request_id and error.request_id == error.response.headers["x-request-id"]
    assert isinstance(error.body["message"], str) and isinstance(error.body["type"], str)
    assert error.body.get("code") is None or isinstance(error.body["code"], str)
    return error


def test_an_unknown_model_is_not_found(sandbox):
    error = refused(openai.NotFoundError, sandbox, model="no-such-model")
    assert (error.code, error.type) == ("model_not_found", "invalid_request_error")
    assert "summary" in error.message or "/v1/models" in error.message, "the message says how to find the right name"


def test_a_wrong_key_is_an_authentication_error(sandbox):
    wrong = "wb-wrong-CANARY-0123456789abcdef"
    error = refused(openai.AuthenticationError, sandbox, key=wrong)
    assert error.code == "invalid_api_key"
    assert "CANARY" not in error.response.text
    assert error.response.headers.get("x-should-retry") != "true"


def test_a_key_may_not_call_what_it_is_not_allowed(sandbox):
    error = refused(openai.PermissionDeniedError, sandbox, key=NARROW_KEY, model="narrative")
    assert error.response.headers.get("x-should-retry") != "true"


def test_a_body_over_the_limit_is_413(sandbox):
    with pytest.raises(openai.APIStatusError) as caught:
        big = [{"role": "user", "content": "x" * (33 << 20)}]
        client(sandbox).chat.completions.create(model="summary", messages=big)
    assert caught.value.status_code == 413


@pytest.mark.parametrize(
    "body",
    [b'{"model": "summary", "messages": [', b"", b"[]", b'"summary"', b'{"messages": []}', b"\xff\xfe{}"],
    ids=["cut", "empty", "list", "string", "no model", "not UTF-8"],
)
def test_malformed_json_is_a_bad_request(sandbox, body):
    answer = sandbox.call("POST", "/v1/chat/completions", body, headers={"Content-Type": "application/json"})
    assert answer.status == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"]


def test_a_second_model_in_the_body_is_refused(sandbox):
    body = b'{"model": "summary", "messages": [], "model": "narrative"}'
    answer = sandbox.call("POST", "/v1/chat/completions", body, headers={"Content-Type": "application/json"})
    assert answer.status == 400


def test_an_unknown_path_and_a_wrong_method_are_told_apart(sandbox):
    assert sandbox.call("POST", "/v1/nothing", {}).status == 404
    assert sandbox.call("GET", "/v1/chat/completions").status == 405
    assert sandbox.call("GET", "/metrics").status == 404, "no admin function on the data port"


# --- failover ---

INVISIBLE = [
    "status:500",
    "status:503",
    "status:529",
    "status:429;retry-after=2",
    "status:401",
    "status:302",
    "refuse",
    "reset",
    "empty",
    "garbage",
    "error-in-200:429",
    "error-in-200:503",
]


@pytest.mark.parametrize("fault", INVISIBLE)
def test_a_failing_provider_is_invisible(fresh, fault):
    answer, headers = chat(fresh, extra_body=fail(tokenmix=fault))
    assert answer.choices[0].message.content
    assert headers["wb-attempts"] == "2"
    assert headers["wb-provider"] == "openrouter"


@pytest.mark.parametrize("fault", [*INVISIBLE, "cut:0", "stall:0"])
def test_a_failing_provider_is_invisible_in_a_stream(fresh, fault):
    raw = client(fresh).chat.completions.with_raw_response.create(
        model="summary", messages=ask(), stream=True, extra_body=fail(tokenmix=fault)
    )
    chunks = list(raw.parse())
    assert text_of(chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert raw.headers["wb-attempts"] == "2"
    assert raw.headers["wb-provider"] == "openrouter"


def test_a_provider_that_hangs_is_left_after_its_first_content_timeout(fresh):
    watch = fresh.stopwatch()
    raw = client(fresh).chat.completions.with_raw_response.create(
        model="summary", messages=ask(), stream=True, extra_body=fail(tokenmix="stall")
    )
    assert text_of(list(raw.parse()))
    assert raw.headers["wb-provider"] == "openrouter"
    assert watch.elapsed() < 8, "the example's first_content is 5 s"


def test_a_whole_answer_that_hangs_is_left_at_its_share_of_the_total(fresh):
    """A whole answer shows nothing until it is done, so it gets half of the 30 s that two candidates share."""
    started, watch = time.monotonic(), fresh.stopwatch()
    answer, headers = chat(fresh, extra_body=fail(tokenmix="stall"))
    assert answer.choices[0].message.content
    assert headers["wb-provider"] == "openrouter"
    assert 14 < time.monotonic() - started < 18 + watch.withheld()


def test_an_open_breaker_saves_the_next_calls_the_detour(fresh):
    for _ in range(12):
        chat(fresh, extra_body=fail(tokenmix="status:503"))
    _, headers = chat(fresh)
    assert (headers["wb-attempts"], headers["wb-provider"]) == ("1", "openrouter")


def test_a_slow_provider_is_still_the_first_choice(fresh):
    _, headers = chat(fresh, extra_body=fail(tokenmix="delay:800ms"))
    assert (headers["wb-attempts"], headers["wb-provider"]) == ("1", "tokenmix")


def test_the_callers_own_mistake_is_not_retried_elsewhere(fresh):
    error = refused(openai.BadRequestError, fresh, extra_body=fail(tokenmix="status:400", openrouter="status:400"))
    assert error.response.headers["wb-attempts"] == "1"


def test_magic_model_shows_a_failover(fresh):
    answer, headers = chat(fresh, "sandbox/fail-503-once")
    assert answer.choices[0].message.content
    assert int(headers["wb-attempts"]) == 2


def test_all_providers_out_is_one_honest_error(fresh):
    everyone = {route.partition("/")[0]: "status:503" for route in fresh.said["routes"]["summary"]}
    error = refused(openai.InternalServerError, fresh, extra_body=fail(**everyone))
    assert error.status_code in (502, 503)
    assert (error.type, error.code) == ("api_error", "upstream_unavailable")
    assert int(error.response.headers["retry-after"]) >= 0
    assert error.response.headers["x-should-retry"] in ("true", "false")


# --- broken streams ---


def broken(chunks):
    """(what arrived, the error that ended it); a clean end is a failure."""
    pieces = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in chunks:
            pieces.append(chunk)
    finished = [piece for piece in pieces if piece.choices and piece.choices[0].finish_reason]
    assert not finished, "a broken stream never looks finished"
    return text_of(pieces), caught.value


def test_a_cut_stream_raises_and_never_looks_complete(fresh):
    text, error = broken(stream(fresh, extra_body=fail(tokenmix="cut:3")))
    assert text
    assert error.code == "upstream_truncated"
    assert error.body["request_id"]


def test_a_cut_stream_has_one_error_event_and_no_done(fresh):
    body = {"model": "summary", "messages": ask(), "stream": True, **fail(tokenmix="cut:3")}
    answer = fresh.call("POST", "/v1/chat/completions", body)
    assert answer.body.count(b'"error"') == 1
    assert b"[DONE]" not in answer.body


def test_a_stalled_stream_raises_when_the_callers_time_is_up(fresh):
    watch = fresh.stopwatch()
    chunks = stream(fresh, extra_body=fail(tokenmix="stall:2"), extra_headers={"wb-timeout-ms": "1500"})
    text, error = broken(chunks)
    assert text
    assert error.code in ("deadline_exceeded", "upstream_stalled")
    assert watch.elapsed() < 3


def test_a_cancelled_stream_frees_what_it_held(fresh):
    chunks = stream(fresh, extra_body=fail(tokenmix="stall:2"))
    next(iter(chunks))
    in_flight = lambda: fresh.metric("weighbridge_in_flight", route="summary")  # noqa: E731
    assert in_flight() == 1
    chunks.close()
    fresh.eventually(lambda: in_flight() == 0)
    status = exchange(fresh.admin, "GET", "/status.json")
    assert status.status == 200 and status.json()["config_hash"]


# --- retries ---


def served(sandbox) -> float:
    return sandbox.metric("weighbridge_requests_total", route="summary")


def test_the_sdk_asks_again_exactly_when_told_to(fresh):
    everyone = {route.partition("/")[0]: "status:503" for route in fresh.said["routes"]["summary"]}
    error = refused(openai.InternalServerError, fresh, extra_body=fail(**everyone))
    told_to = error.response.headers["x-should-retry"] == "true"
    before = served(fresh)
    with pytest.raises(openai.InternalServerError):
        client(fresh, max_retries=1).chat.completions.create(
            model="summary", messages=ask(), extra_body=fail(**everyone)
        )
    assert served(fresh) - before == (2 if told_to else 1)


@pytest.mark.parametrize(("key", "model"), [(None, "no-such-model"), (NARROW_KEY, "narrative"), ("wrong", "summary")])
def test_the_sdk_does_not_repeat_what_cannot_succeed(sandbox, key, model):
    total = lambda: sandbox.metric("weighbridge_requests_total")  # noqa: E731
    before = total()
    with pytest.raises(openai.APIStatusError):
        client(sandbox, key, max_retries=2).chat.completions.create(model=model, messages=ask())
    assert total() - before == 1


def test_a_caller_over_its_rate_is_told_when_to_come_back(fresh):
    client(fresh, SLOW_KEY).chat.completions.create(model="summary", messages=ask())
    error = refused(openai.RateLimitError, fresh, key=SLOW_KEY)
    assert (error.type, error.code) == ("rate_limit_error", "rate_limit_exceeded")
    headers = error.response.headers
    assert int(headers["retry-after"]) >= 1
    assert int(headers["retry-after-ms"]) <= int(headers["retry-after"]) * 1000
    assert headers["x-ratelimit-limit-requests"] == "1"
    assert headers["x-ratelimit-remaining-requests"] == "0"
