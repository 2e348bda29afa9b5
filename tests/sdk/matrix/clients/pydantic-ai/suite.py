"""pydantic-ai: `openai-chat:` calls chat completions, `openai:` calls /v1/responses. One variable changes the address."""

import asyncio

import openai
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelAPIError, ModelHTTPError, ToolOutput
from shared import CUT, MODEL, STALL, STEADY, WRONG_KEY, Question, broken_off, said_after

PREFIXES = {"chat": "openai-chat", "responses": "openai"}
CHAT = pytest.param("chat", marks=pytest.mark.surface("chat"))
RESPONSES = pytest.param("responses", marks=pytest.mark.surface("responses"))
both = pytest.mark.parametrize("surface", [CHAT, RESPONSES])


@pytest.fixture(autouse=True)
def environment(proxy, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", proxy.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", proxy.key)


def agent(surface, name=MODEL, **options):
    return Agent(f"{PREFIXES[surface]}:{name}", **options)


@both
def test_a_run_answers_with_usage(proxy, surface):
    question = Question()
    result = agent(surface, instructions="Be brief.").run_sync(question.text)
    assert question.answered(result.output)
    assert result.usage.requests == 1 and result.usage.output_tokens > 20
    call = proxy.one_call(surface)
    assert call["tokens_out"] == result.usage.output_tokens


@both
def test_a_stream_comes_in_pieces(proxy, surface):
    question = Question()

    async def run():
        async with agent(surface).run_stream(question.text) as result:
            return [text async for text in result.stream_text(delta=True, debounce_by=None)], result.usage

    texts, usage = asyncio.run(run())
    assert len(texts) > 10
    assert question.answered("".join(texts))
    call = proxy.streamed(surface)
    assert call["tokens_out"] == usage.output_tokens > 20, "this client asks for usage and must get it"


@both
def test_a_tool_is_called_and_its_result_taken(proxy, surface):
    clerk, asked = agent(surface), []

    @clerk.tool_plain
    def order_status(order_id: str) -> str:
        """Where an order is."""
        asked.append(order_id)
        return f"order {order_id} is on its way"

    question = Question()
    result = clerk.run_sync(question.text)
    assert asked == ["sandbox"]
    assert question.answered(result.output)
    proxy.turns(2, surface)


@both
def test_a_tool_is_called_in_a_streamed_run(proxy, surface):
    clerk, asked = agent(surface), []

    @clerk.tool_plain
    def order_status(order_id: str) -> str:
        """Where an order is."""
        asked.append(order_id)
        return f"order {order_id} is on its way"

    question = Question()

    async def run():
        async with clerk.run_stream(question.text) as result:
            return await result.get_output()

    assert question.answered(asyncio.run(run()))
    assert asked == ["sandbox"]
    proxy.turns(2, surface)


class Order(BaseModel):
    """An order."""

    number: str
    pieces: int
    urgent: bool


@both
def test_a_typed_output_is_validated(proxy, surface):
    result = agent(surface, output_type=ToolOutput(Order)).run_sync(Question().text)
    assert result.output == Order(number="sandbox", pieces=1, urgent=True)
    proxy.turns(1, surface)


@both
def test_a_wrong_key_is_a_401(proxy, surface, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", WRONG_KEY)
    with pytest.raises(ModelHTTPError) as caught:
        agent(surface).run_sync(Question().text)
    assert caught.value.status_code == 401 and caught.value.body["code"] == "invalid_api_key"
    assert isinstance(caught.value.__cause__, openai.AuthenticationError)
    assert "CANARY" not in str(caught.value)
    proxy.refused(401, "unauthorised", surface)


@both
def test_an_unknown_model_is_a_404(proxy, surface):
    with pytest.raises(ModelHTTPError) as caught:
        agent(surface, "no-such-model").run_sync(Question().text)
    assert caught.value.status_code == 404 and caught.value.body["code"] == "model_not_found"
    assert isinstance(caught.value.__cause__, openai.NotFoundError)
    proxy.refused(404, "client_error", surface)


@both
def test_it_waits_as_long_as_it_is_told(proxy, surface, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", proxy.slow_key(surface))
    clerk = agent(surface)
    proxy.waits_as_told(lambda: said_after(clerk.run_sync(Question().text).output), surface)


@both
def test_a_stream_that_is_left_is_let_go(proxy, surface):
    async def run():
        async with agent(surface, STALL).run_stream(Question().text) as result:
            async for text in result.stream_text(delta=True, debounce_by=None):
                assert proxy.in_flight(STALL) == 1
                broken_off(text)
                break
        # The loop stays alive for a while, as an application's does.
        await asyncio.sleep(0.5)

    asyncio.run(run())
    proxy.let_go(surface)


@both
def test_a_cancelled_task_lets_its_stream_go(proxy, surface):
    texts = []

    async def read():
        async with agent(surface, STALL).run_stream(Question().text) as result:
            async for text in result.stream_text(delta=True, debounce_by=None):
                texts.append(text)

    async def run():
        task = asyncio.create_task(read())
        while not texts:
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.5)

    asyncio.run(run())
    broken_off("".join(texts))
    proxy.let_go(surface)


@both
def test_a_stream_that_is_cut_raises(proxy, surface):
    proxy.heal(CUT)
    texts = []

    async def run():
        async with agent(surface, CUT).run_stream(Question().text) as result:
            async for text in result.stream_text(delta=True, debounce_by=None):
                texts.append(text)

    with pytest.raises((openai.APIError, ModelAPIError)) as caught:
        asyncio.run(run())
    assert "before its answer was complete" in str(caught.value)
    broken_off("".join(texts))
    proxy.truncated(surface)


@pytest.mark.surface("embeddings")
def test_embeddings_are_vectors_in_order(proxy):
    from pydantic_ai import Embedder

    embedder = Embedder(f"openai:{STEADY}")
    result = embedder.embed_documents_sync([Question().text, Question().text])
    assert len(result.embeddings) == 2 and len(result.embeddings[0]) == len(result.embeddings[1]) > 1
    assert result.embeddings[0] != result.embeddings[1]
    proxy.one_call("embeddings")
