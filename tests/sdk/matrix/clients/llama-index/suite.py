"""llama-index-llms-openai-like: LlamaIndex's class for OpenAI-compatible addresses, which are chat models only if told."""

import asyncio
import gc

import openai
import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from shared import CUT, MODEL, STALL, STEADY, WRONG_KEY, Question, broken_off, said_after

chat = pytest.mark.surface("chat")


def model(proxy, name=MODEL, **options):
    options = {"api_key": proxy.key, "is_chat_model": True, "is_function_calling_model": True, **options}
    return OpenAILike(model=name, api_base=proxy.base_url, timeout=30, **options)


def messages(question):
    return [ChatMessage(role="user", content=question.text)]


def order_status(order_id: str) -> str:
    """Where an order is."""
    ASKED.append(order_id)
    return f"order {order_id} is on its way"


ASKED = []


@chat
def test_a_chat_answers_with_usage(proxy):
    question = Question()
    answer = model(proxy).chat(messages(question))
    assert question.answered(answer.message.content)
    assert answer.raw.usage.completion_tokens > 20
    assert proxy.one_call()["tokens_out"] == answer.raw.usage.completion_tokens


@chat
def test_a_completion_is_a_chat_of_one_message(proxy):
    question = Question()
    assert question.answered(model(proxy).complete(question.text).text)
    proxy.metered(proxy.one_call())


@chat
def test_an_asynchronous_chat_answers(proxy):
    question = Question()
    answer = asyncio.run(model(proxy).achat(messages(question)))
    assert question.answered(answer.message.content)
    proxy.metered(proxy.one_call())


@chat
def test_a_stream_comes_in_pieces(proxy):
    question = Question()
    pieces = list(model(proxy).stream_chat(messages(question)))
    assert len([piece for piece in pieces if piece.delta]) > 10
    assert "".join(piece.delta or "" for piece in pieces) == pieces[-1].message.content
    assert question.answered(pieces[-1].message.content)
    proxy.streamed()


@chat
def test_an_agent_calls_a_tool_and_takes_its_result(proxy):
    ASKED.clear()
    question = Question()

    async def run():
        clerk = FunctionAgent(tools=[FunctionTool.from_defaults(order_status)], llm=model(proxy))
        return await clerk.run(question.text)

    result = asyncio.run(run())
    assert ASKED == ["sandbox"]
    assert [call.tool_output.content for call in result.tool_calls] == ["order sandbox is on its way"]
    assert question.answered(result.response.content)
    proxy.turns(2)


@chat
def test_a_tool_is_called_and_its_result_taken_without_an_agent(proxy):
    ASKED.clear()
    question = Question()
    result = model(proxy).predict_and_call([FunctionTool.from_defaults(order_status)], user_msg=question.text)
    assert ASKED == ["sandbox"]
    assert str(result) == "order sandbox is on its way"
    proxy.turns(1)


@chat
def test_a_wrong_key_is_an_authentication_error(proxy):
    with pytest.raises(openai.AuthenticationError) as caught:
        model(proxy, api_key=WRONG_KEY).chat(messages(Question()))
    assert caught.value.code == "invalid_api_key"
    assert "CANARY" not in str(caught.value)
    proxy.refused(401, "unauthorised")


@chat
def test_an_unknown_model_is_not_found(proxy):
    with pytest.raises(openai.NotFoundError) as caught:
        model(proxy, "no-such-model").chat(messages(Question()))
    assert caught.value.code == "model_not_found"
    proxy.refused(404, "client_error")


@chat
def test_it_waits_as_long_as_it_is_told(proxy):
    slow = model(proxy, api_key=proxy.slow_key("chat"))
    proxy.waits_as_told(lambda: said_after(slow.chat(messages(Question())).message.content))


@chat
def test_a_stream_that_is_closed_is_let_go(proxy):
    pieces = model(proxy, STALL).stream_chat(messages(Question()))
    text = ""
    while not text:
        text += next(pieces).delta or ""
    broken_off(text)
    assert proxy.in_flight(STALL) == 1
    pieces.close()
    # It does not close what it reads from; the SDK's stream refers to itself and ends when Python collects it.
    del pieces
    gc.collect()
    proxy.let_go()


@chat
def test_a_cancelled_task_lets_its_stream_go(proxy):
    texts = []

    async def read():
        async for piece in await model(proxy, STALL).astream_chat(messages(Question())):
            texts.append(piece.delta or "")

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
    proxy.let_go()


@chat
def test_a_stream_that_is_cut_raises(proxy):
    proxy.heal(CUT)
    texts = []
    with pytest.raises(openai.APIError) as caught:
        for piece in model(proxy, CUT).stream_chat(messages(Question())):
            texts.append(piece.delta or "")
    assert caught.value.code == "upstream_truncated"
    broken_off("".join(texts))
    proxy.truncated()


# --- completions: its default, which few providers of today's models offer ---

completions = pytest.mark.surface("completions")


@completions
def test_without_being_told_it_asks_for_a_completion(proxy):
    answer = model(proxy, STEADY, is_chat_model=False).complete("the order is")
    assert answer.text == "This continues: the order is"
    proxy.one_call("completions")


@completions
def test_a_completion_comes_in_pieces(proxy):
    pieces = list(model(proxy, STEADY, is_chat_model=False).stream_complete("the order is"))
    assert len(pieces) > 3 and pieces[-1].text == "This continues: the order is"
    assert proxy.one_call("completions")["stream.end"] == "complete"


@completions
def test_a_model_that_only_chats_says_so_at_once(proxy):
    with pytest.raises(openai.BadRequestError) as caught:
        model(proxy, is_chat_model=False).complete("hello")
    assert caught.value.code == "unsupported_operation" and "completions" in caught.value.message
    proxy.refused(400, "client_error", "completions")
