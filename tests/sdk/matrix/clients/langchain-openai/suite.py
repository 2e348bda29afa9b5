"""langchain-openai: the chat model and embeddings class of LangChain. It streams without asking for usage."""

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from shared import CUT, MODEL, STALL, STEADY, WRONG_KEY, Question, broken_off, said_after

CHAT = pytest.param("chat", marks=pytest.mark.surface("chat"))
RESPONSES = pytest.param("responses", marks=pytest.mark.surface("responses"))
both = pytest.mark.parametrize("surface", [CHAT, RESPONSES])


def model(proxy, surface, name=MODEL, **options):
    options = {"api_key": proxy.key, "timeout": 30, **options}
    return ChatOpenAI(model=name, base_url=proxy.base_url, use_responses_api=surface == "responses", **options)


@tool
def order_status(order_id: str) -> str:
    """Where an order is."""
    return f"order {order_id} is on its way"


@both
def test_an_answer_and_its_usage(proxy, surface):
    question = Question()
    answer = model(proxy, surface).invoke(question.text)
    assert question.answered(answer.text)
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 20
    proxy.metered(proxy.one_call(surface))


@both
def test_a_stream_comes_in_pieces(proxy, surface):
    question = Question()
    pieces = [chunk.text for chunk in model(proxy, surface).stream(question.text)]
    assert len([piece for piece in pieces if piece]) > 10
    assert question.answered("".join(pieces))
    proxy.streamed(surface)


@both
def test_a_stream_with_usage_ends_with_it(proxy, surface):
    question = Question()
    whole = None
    for chunk in model(proxy, surface, stream_usage=True).stream(question.text):
        whole = chunk if whole is None else whole + chunk
    assert question.answered(whole.text)
    assert whole.usage_metadata["output_tokens"] > 20
    assert whole.usage_metadata["output_tokens"] == proxy.one_call(surface)["tokens_out"]


@both
def test_a_tool_is_called_and_its_result_taken(proxy, surface):
    question = Question()
    armed = model(proxy, surface).bind_tools([order_status])
    history = [HumanMessage(question.text)]
    history.append(armed.invoke(history))
    (call,) = history[-1].tool_calls
    assert (call["name"], call["args"]) == ("order_status", {"order_id": "sandbox"})
    history.append(ToolMessage(order_status.invoke(call["args"]), tool_call_id=call["id"]))
    answer = armed.invoke(history)
    assert isinstance(answer, AIMessage) and not answer.tool_calls
    assert question.answered(answer.text)
    proxy.turns(2, surface)


@both
def test_a_tool_call_comes_whole_out_of_a_stream(proxy, surface):
    whole = None
    for chunk in model(proxy, surface).bind_tools([order_status]).stream(Question().text):
        whole = chunk if whole is None else whole + chunk
    (call,) = whole.tool_calls
    assert (call["name"], call["args"]) == ("order_status", {"order_id": "sandbox"})
    proxy.turns(1, surface)


@both
def test_a_wrong_key_is_an_authentication_error(proxy, surface):
    with pytest.raises(openai.AuthenticationError) as caught:
        model(proxy, surface, api_key=WRONG_KEY).invoke(Question().text)
    assert caught.value.code == "invalid_api_key"
    assert "CANARY" not in str(caught.value)
    proxy.refused(401, "unauthorised", surface)


@both
def test_an_unknown_model_is_not_found(proxy, surface):
    with pytest.raises(openai.NotFoundError) as caught:
        model(proxy, surface, "no-such-model").invoke(Question().text)
    assert caught.value.code == "model_not_found"
    proxy.refused(404, "client_error", surface)


@both
def test_it_waits_as_long_as_it_is_told(proxy, surface):
    slow = model(proxy, surface, api_key=proxy.slow_key(surface))
    proxy.waits_as_told(lambda: said_after(slow.invoke(Question().text).text), surface)


@both
def test_a_stream_that_is_closed_is_let_go(proxy, surface):
    pieces = model(proxy, surface, STALL).stream(Question().text)
    text = ""
    while not text:
        text += next(pieces).text
    broken_off(text)
    assert proxy.in_flight(STALL) == 1
    pieces.close()
    proxy.let_go(surface)


@both
def test_a_stream_that_is_cut_never_looks_complete(proxy, surface):
    proxy.heal(CUT)
    pieces = []
    # What the SDK does not take for an error on the way is one to LangChain, of a class of its own choice.
    with pytest.raises((openai.APIError, ValueError)) as caught:
        for chunk in model(proxy, surface, CUT).stream(Question().text):
            pieces.append(chunk)
    assert "before its answer was complete" in str(caught.value)
    broken_off("".join(piece.text for piece in pieces))
    assert not any(piece.response_metadata.get("finish_reason") for piece in pieces)
    proxy.truncated(surface)


@pytest.mark.surface("embeddings")
def test_embeddings_are_vectors_in_order(proxy):
    # Without this it counts tokens first, with a table that it fetches from a public server.
    options = {"check_embedding_ctx_length": False, "api_key": proxy.key}
    embedder = OpenAIEmbeddings(model=STEADY, base_url=proxy.base_url, **options)
    first, second = Question().text, Question().text
    vectors = embedder.embed_documents([first, second])
    assert len(vectors) == 2 and len(vectors[0]) == len(vectors[1]) > 1
    assert all(isinstance(number, float) for number in vectors[0])
    assert vectors[0] != vectors[1]
    proxy.one_call("embeddings")
    assert embedder.embed_query(first) == pytest.approx(vectors[0], abs=1e-5)


@pytest.mark.surface("embeddings")
def test_a_wrong_key_gets_no_embeddings(proxy):
    embedder = OpenAIEmbeddings(
        model=STEADY, base_url=proxy.base_url, api_key=WRONG_KEY, check_embedding_ctx_length=False
    )
    with pytest.raises(openai.AuthenticationError):
        embedder.embed_query("hello")
    proxy.refused(401, "unauthorised", "embeddings")
