"""anthropic: the vendor's SDK for /v1/messages. It sends its key as a bearer token and reads `request-id`."""

import asyncio
import json

import anthropic
import pytest
from shared import CUT, MODEL, STALL, STEADY, WRONG_KEY, Question, broken_off, said_after

pytestmark = pytest.mark.surface("messages")

TOOL = {
    "name": "order_status",
    "description": "Where an order is.",
    "input_schema": {"type": "object", "properties": {"order_id": {"type": "string"}}, "required": ["order_id"]},
}


def client(proxy, key=None, kind=anthropic.Anthropic):
    """The SDK adds /v1/messages itself, so it gets the address without /v1."""
    return kind(base_url=proxy.data, api_key=key or proxy.key, timeout=30)


def create(proxy, messages, model=MODEL, key=None, **options):
    return client(proxy, key).messages.create(model=model, max_tokens=200, messages=messages, **options)


def text_of(message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message_answers_with_usage(proxy):
    question = Question()
    answer = create(proxy, question.messages())
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "end_turn")
    assert [block.type for block in answer.content] == ["text"]
    assert question.answered(text_of(answer))
    call = proxy.one_call("messages")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (call["tokens_in"], call["tokens_out"])
    assert answer._request_id == call["call.id"]
    proxy.metered(call)


def test_the_system_prompt_and_the_limit_reach_the_model(proxy):
    answer = client(proxy).messages.create(
        model=MODEL, max_tokens=5, system="Be very brief and count these words.", messages=Question().messages()
    )
    assert answer.stop_reason == "max_tokens" and text_of(answer) == "This is tokenmix, a "
    call = proxy.one_call("messages")
    assert call["tokens_out"] == 5 and call["tokens_in"] > 12


def test_a_key_in_either_header_is_taken(proxy):
    """Older releases of the SDK, and people with curl, send `x-api-key`."""
    question = Question()
    headers = {"x-api-key": proxy.key, "Authorization": anthropic.Omit()}
    answer = create(proxy, question.messages(), extra_headers=headers)
    assert question.answered(text_of(answer))
    bearer = anthropic.Anthropic(base_url=proxy.data, auth_token=proxy.key)
    assert text_of(bearer.messages.create(model=MODEL, max_tokens=200, messages=Question().messages()))
    proxy.turns(2, "messages")


def test_a_stream_comes_in_pieces(proxy):
    question = Question()
    with client(proxy).messages.stream(model=MODEL, max_tokens=200, messages=question.messages()) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 10
    assert question.answered("".join(pieces)) and text_of(final) == "".join(pieces)
    assert final.stop_reason == "end_turn"
    call = proxy.streamed("messages")
    assert final.usage.output_tokens == call["tokens_out"] > 20


def test_the_events_of_a_stream_come_in_their_order(proxy):
    events = [event.type for event in create(proxy, Question().messages(), stream=True) if event.type != "ping"]
    assert events[:2] == ["message_start", "content_block_start"]
    assert set(events[2:-3]) == {"content_block_delta"}
    assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_tool_is_used_and_its_result_taken(proxy, streamed):
    question = Question()
    turns = question.messages()
    if streamed:
        with client(proxy).messages.stream(model=MODEL, max_tokens=200, messages=turns, tools=[TOOL]) as stream:
            answer = stream.get_final_message()
    else:
        answer = create(proxy, turns, tools=[TOOL])
    assert answer.stop_reason == "tool_use"
    (use,) = [block for block in answer.content if block.type == "tool_use"]
    assert (use.name, use.input) == ("order_status", {"order_id": "sandbox"})
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "order sandbox is on its way"}
    turns += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    answer = create(proxy, turns, tools=[TOOL])
    assert answer.stop_reason == "end_turn"
    # The result is the last user message, so the answer need not repeat the question.
    said_after(text_of(answer))
    proxy.turns(2, "messages")


def test_the_tool_runner_of_the_sdk_loops_by_itself(proxy):
    asked = []

    @anthropic.beta_tool
    def order_status(order_id: str) -> str:
        """Where an order is."""
        asked.append(order_id)
        return f"order {order_id} is on its way"

    runner = client(proxy).beta.messages.tool_runner(
        model=MODEL, max_tokens=200, tools=[order_status], messages=Question().messages()
    )
    said_after(text_of(runner.until_done()))
    assert asked == ["sandbox"]
    proxy.turns(2, "messages")


def refused(error_class, word, status, outcome, proxy, **options):
    with pytest.raises(error_class) as caught:
        create(proxy, Question().messages(), **options)
    error = caught.value
    assert (error.body["type"], error.body["error"]["type"]) == ("error", word)
    assert isinstance(error.body["error"]["message"], str) and "CANARY" not in json.dumps(error.body)
    proxy.refused(status, outcome, "messages")
    assert error.request_id == proxy.calls()[0]["call.id"]


def test_a_wrong_key_is_an_authentication_error(proxy):
    refused(anthropic.AuthenticationError, "authentication_error", 401, "unauthorised", proxy, key=WRONG_KEY)


def test_an_unknown_model_is_not_found(proxy):
    refused(anthropic.NotFoundError, "not_found_error", 404, "client_error", proxy, model="no-such-model")


def test_it_waits_as_long_as_it_is_told(proxy):
    slow = proxy.slow_key("messages")
    proxy.waits_as_told(lambda: said_after(text_of(create(proxy, Question().messages(), key=slow))), "messages")


def test_a_stream_that_is_closed_is_let_go(proxy):
    with client(proxy).messages.stream(model=STALL, max_tokens=200, messages=Question().messages()) as stream:
        broken_off(next(piece for piece in stream.text_stream if piece))
        assert proxy.in_flight(STALL) == 1
    proxy.let_go("messages")


def test_a_cancelled_task_lets_its_stream_go(proxy):
    texts = []

    async def read():
        asynchronous = client(proxy, kind=anthropic.AsyncAnthropic)
        async with asynchronous.messages.stream(model=STALL, max_tokens=200, messages=Question().messages()) as stream:
            async for piece in stream.text_stream:
                texts.append(piece)

    async def run():
        task = asyncio.create_task(read())
        while not any(texts):
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.5)

    asyncio.run(run())
    broken_off("".join(texts))
    proxy.let_go("messages")


def test_a_stream_that_is_cut_raises(proxy):
    proxy.heal(CUT)
    texts = []
    with pytest.raises(anthropic.APIError) as caught:
        with client(proxy).messages.stream(model=CUT, max_tokens=200, messages=Question().messages()) as stream:
            for piece in stream.text_stream:
                texts.append(piece)
    assert "before its answer was complete" in str(caught.value)
    broken_off("".join(texts))
    proxy.truncated("messages")


def test_tokens_are_counted_without_an_answer(proxy):
    counted = client(proxy).messages.count_tokens(model=STEADY, messages=Question().messages())
    assert counted.input_tokens > 5
    (call,) = proxy.calls()
    assert (call["operation"], call["status"], call["outcome"]) == ("messages.count_tokens", 200, "ok")
