"""litellm, the client: every provider's API as one. It has our chat as `openai/NAME`, our messages as `anthropic/NAME`."""

import os

# Else it asks a public server for a list of prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import json  # noqa: E402

import litellm  # noqa: E402
import pytest  # noqa: E402
from shared import CUT, MODEL, STALL, STEADY, WRONG_KEY, Question, broken_off, said_after  # noqa: E402

CHAT = pytest.param("chat", marks=pytest.mark.surface("chat"))
MESSAGES = pytest.param("messages", marks=pytest.mark.surface("messages"))
both = pytest.mark.parametrize("surface", [CHAT, MESSAGES])

TOOL = {
    "type": "function",
    "function": {
        "name": "order_status",
        "description": "Where an order is.",
        "parameters": {"type": "object", "properties": {"order_id": {"type": "string"}}, "required": ["order_id"]},
    },
}


def ask(proxy, surface, question, name=MODEL, **options):
    # Anthropic's form has its own base, without /v1.
    where = {"chat": (f"openai/{name}", proxy.base_url), "messages": (f"anthropic/{name}", proxy.data)}
    model, base = where[surface]
    options = {"api_key": proxy.key, "timeout": 30, "max_retries": 2, **options}
    messages = question if isinstance(question, list) else [{"role": "user", "content": question}]
    return litellm.completion(model=model, api_base=base, messages=messages, **options)


def text_of(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@both
def test_an_answer_and_its_usage(proxy, surface):
    question = Question()
    answer = ask(proxy, surface, question.text)
    assert question.answered(answer.choices[0].message.content)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 20
    proxy.metered(proxy.one_call(surface))


@both
def test_a_stream_comes_in_pieces(proxy, surface):
    question = Question()
    chunks = list(ask(proxy, surface, question.text, stream=True))
    assert len(chunks) > 10
    assert question.answered(text_of(chunks))
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    proxy.streamed(surface)


@both
def test_a_tool_is_called_and_its_result_taken(proxy, surface):
    question = Question()
    history = [{"role": "user", "content": question.text}]
    message = ask(proxy, surface, history, tools=[TOOL]).choices[0].message
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("order_status", {"order_id": "sandbox"})
    history += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "it is on its way"}]
    answer = ask(proxy, surface, history, tools=[TOOL]).choices[0].message
    assert not answer.tool_calls
    assert question.answered(answer.content)
    proxy.turns(2, surface)


@both
def test_a_tool_call_comes_whole_out_of_a_stream(proxy, surface):
    chunks = list(ask(proxy, surface, Question().text, tools=[TOOL], stream=True))
    whole = litellm.stream_chunk_builder(chunks)
    (call,) = whole.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("order_status", {"order_id": "sandbox"})
    proxy.turns(1, surface)


@both
def test_a_wrong_key_is_an_authentication_error(proxy, surface):
    # In OpenAI's form it knows one by the words of OpenAI's own message alone; any other 401 is a bad request to it.
    with pytest.raises(litellm.AuthenticationError) as caught:
        ask(proxy, surface, "hello", api_key=WRONG_KEY)
    assert "the key is missing or not known" in str(caught.value)
    assert "CANARY" not in str(caught.value)
    proxy.refused(401, "unauthorised", surface)


@both
def test_an_unknown_model_is_not_found(proxy, surface):
    with pytest.raises(litellm.NotFoundError):
        ask(proxy, surface, "hello", name="no-such-model")
    proxy.refused(404, "client_error", surface)


@pytest.mark.surface("chat")
def test_it_waits_as_long_as_it_is_told(proxy):
    key = proxy.slow_key("chat")

    def once():
        return said_after(ask(proxy, "chat", Question().text, api_key=key).choices[0].message.content)

    proxy.waits_as_told(once, "chat")


@pytest.mark.surface("chat")
def test_a_stream_that_is_closed_is_let_go(proxy):
    stream = ask(proxy, "chat", Question().text, STALL, stream=True)
    text = ""
    while not text.strip():
        text += text_of([next(stream)])
    assert proxy.in_flight(STALL) == 1
    # Its own object has no way to be closed; the SDK's below it has.
    stream.completion_stream.close()
    proxy.let_go("chat")


@both
def test_a_stream_that_is_cut_never_looks_complete(proxy, surface):
    proxy.heal(CUT)
    chunks = []
    with pytest.raises(Exception) as caught:
        for chunk in ask(proxy, surface, Question().text, CUT, stream=True):
            chunks.append(chunk)
    assert "before its answer was complete" in str(caught.value)
    broken_off(text_of(chunks))
    assert not any(chunk.choices[0].finish_reason for chunk in chunks if chunk.choices)
    proxy.truncated(surface)


@pytest.mark.surface("embeddings")
def test_embeddings_are_vectors_in_order(proxy):
    texts = [Question().text, Question().text]
    options = {"api_base": proxy.base_url, "api_key": proxy.key}
    answer = litellm.embedding(model=f"openai/{STEADY}", input=texts, **options)
    first, second = (row["embedding"] for row in answer.data)
    assert len(first) == len(second) > 1 and first != second
    proxy.one_call("embeddings")
