"""openai-agents: an agent's run is a loop of turns. Left alone it calls /v1/responses; the chat form must be asked for."""

import asyncio

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from agents.exceptions import AgentsException
from agents.items import ToolCallItem, ToolCallOutputItem
from shared import CUT, MODEL, STALL, WRONG_KEY, Question, broken_off, said_after

# Otherwise every run is also reported to the vendor.
set_tracing_disabled(True)

MODELS = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}
CHAT = pytest.param("chat", marks=pytest.mark.surface("chat"))
RESPONSES = pytest.param("responses", marks=pytest.mark.surface("responses"))
both = pytest.mark.parametrize("surface", [CHAT, RESPONSES])


@function_tool
def order_status(order_id: str) -> str:
    """Where an order is."""
    ASKED.append(order_id)
    return f"order {order_id} is on its way"


ASKED = []


def agent(proxy, surface, name=MODEL, key=None, **options):
    client = openai.AsyncOpenAI(base_url=proxy.base_url, api_key=key or proxy.key, timeout=30)
    return Agent("clerk", instructions="Be brief.", model=MODELS[surface](name, openai_client=client), **options)


async def text_deltas(events, texts):
    async for event in events:
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            texts.append(event.data.delta)


@both
def test_a_run_answers_with_usage(proxy, surface):
    question = Question()
    result = Runner.run_sync(agent(proxy, surface), question.text)
    assert question.answered(result.final_output)
    usage = result.context_wrapper.usage
    assert usage.requests == 1 and usage.output_tokens > 20
    call = proxy.one_call(surface)
    assert call["tokens_out"] == usage.output_tokens


@both
def test_a_streamed_run_comes_in_pieces(proxy, surface):
    question, texts = Question(), []

    async def run():
        result = Runner.run_streamed(agent(proxy, surface), question.text)
        await text_deltas(result.stream_events(), texts)
        return result.final_output

    final = asyncio.run(run())
    assert len(texts) > 10
    assert question.answered(final) and final == "".join(texts)
    proxy.streamed(surface)


@both
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_tool_is_called_and_its_result_taken(proxy, surface, streamed):
    ASKED.clear()
    question = Question()

    async def run():
        if not streamed:
            return await Runner.run(agent(proxy, surface, tools=[order_status]), question.text)
        result = Runner.run_streamed(agent(proxy, surface, tools=[order_status]), question.text)
        await text_deltas(result.stream_events(), [])
        return result

    result = asyncio.run(run())
    assert ASKED == ["sandbox"]
    assert [type(item) for item in result.new_items][:2] == [ToolCallItem, ToolCallOutputItem]
    assert result.new_items[1].output == "order sandbox is on its way"
    assert question.answered(result.final_output)
    proxy.turns(2, surface)


@both
def test_a_second_run_goes_on_from_the_first(proxy, surface):
    first = Runner.run_sync(agent(proxy, surface), Question().text)
    question = Question()
    second = Runner.run_sync(agent(proxy, surface), first.to_input_list() + question.messages())
    assert question.answered(second.final_output)
    one, two = proxy.calls()
    assert two["tokens_in"] > one["tokens_in"] + 30, "the first answer was sent back"


@both
def test_settings_reach_the_model(proxy, surface):
    result = Runner.run_sync(agent(proxy, surface, model_settings=ModelSettings(max_tokens=5)), Question().text)
    assert result.final_output == "This is tokenmix, a ", "five pieces, of which one is a space"
    assert proxy.one_call(surface)["tokens_out"] == 5


@both
def test_a_wrong_key_is_an_authentication_error(proxy, surface):
    with pytest.raises(openai.AuthenticationError) as caught:
        Runner.run_sync(agent(proxy, surface, key=WRONG_KEY), Question().text)
    assert caught.value.code == "invalid_api_key"
    assert "CANARY" not in str(caught.value)
    proxy.refused(401, "unauthorised", surface)


@both
def test_an_unknown_model_is_not_found(proxy, surface):
    with pytest.raises(openai.NotFoundError) as caught:
        Runner.run_sync(agent(proxy, surface, "no-such-model"), Question().text)
    assert caught.value.code == "model_not_found"
    proxy.refused(404, "client_error", surface)


@both
def test_it_waits_as_long_as_it_is_told(proxy, surface):
    run = lambda: Runner.run_sync(agent(proxy, surface, key=proxy.slow_key(surface)), Question().text)  # noqa: E731
    proxy.waits_as_told(lambda: said_after(run().final_output), surface)


@both
def test_a_cancelled_run_is_let_go(proxy, surface):
    texts = []

    async def run():
        result = Runner.run_streamed(agent(proxy, surface, STALL), Question().text)
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                texts.append(event.data.delta)
                assert proxy.in_flight(STALL) == 1
                result.cancel()
                # The loop stays alive for a while, as an application's does.
        await asyncio.sleep(0.5)

    asyncio.run(run())
    broken_off("".join(texts))
    proxy.let_go(surface)


@both
def test_a_run_that_is_cut_raises(proxy, surface):
    proxy.heal(CUT)
    texts = []

    async def run():
        result = Runner.run_streamed(agent(proxy, surface, CUT), Question().text)
        await text_deltas(result.stream_events(), texts)

    with pytest.raises((openai.APIError, AgentsException)) as caught:
        asyncio.run(run())
    assert "before its answer was complete" in str(caught.value)
    broken_off("".join(texts))
    proxy.truncated(surface)
