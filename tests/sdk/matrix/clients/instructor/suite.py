"""instructor: typed answers, through a tool call or a JSON answer that is asked for again until it fits. Such a repeat is
a new request that carries the whole conversation, not a retry of the old one."""

import asyncio
from typing import Literal

import instructor
import openai
import pytest
from instructor.core import InstructorRetryException
from pydantic import BaseModel, field_validator
from shared import CUT, MODEL, STALL, WRONG_KEY, Question

MODES = {"chat": instructor.Mode.TOOLS, "responses": instructor.Mode.RESPONSES_TOOLS}
CHAT = pytest.param("chat", marks=pytest.mark.surface("chat"))
RESPONSES = pytest.param("responses", marks=pytest.mark.surface("responses"))
both = pytest.mark.parametrize("surface", [CHAT, RESPONSES])


class Order(BaseModel):
    """An order."""

    number: str
    pieces: int
    kind: Literal["parcel", "letter"]


EXPECTED = {"number": "sandbox", "pieces": 1, "kind": "parcel"}


def client(proxy, surface, key=None, mode=None, kind=openai.OpenAI):
    plain = kind(base_url=proxy.base_url, api_key=key or proxy.key, timeout=30)
    return instructor.from_openai(plain, mode=mode or MODES[surface])


def extract(proxy, surface, name=MODEL, key=None, **options):
    options = {"response_model": Order, **options}
    return client(proxy, surface, key).create(model=name, messages=Question().messages(), **options)


def partial(proxy, surface, name, response_model=Order):
    """The stages of an answer. Only the asynchronous client shows each when it comes; the other waits for them all."""
    asynchronous = client(proxy, surface, kind=openai.AsyncOpenAI)
    return asynchronous.create_partial(model=name, messages=Question().messages(), response_model=response_model)


def inner(error: BaseException) -> BaseException:
    """What the SDK raised, below what instructor made of it."""
    while not isinstance(error, openai.APIError):
        error = error.__cause__ or error.__context__
        assert error is not None, "no error of the SDK is below it"
    return error


@both
def test_an_answer_is_typed(proxy, surface):
    assert extract(proxy, surface).model_dump() == EXPECTED
    proxy.turns(1, surface)


@both
def test_the_plain_answer_is_there_too(proxy, surface):
    order, whole = client(proxy, surface).create_with_completion(
        model=MODEL, messages=Question().messages(), response_model=Order
    )
    assert order.model_dump() == EXPECTED and whole.usage.total_tokens > 0
    proxy.turns(1, surface)


@both
def test_a_stream_fills_in_the_fields(proxy, surface):
    async def run():
        return [stage async for stage in partial(proxy, surface, MODEL)]

    stages = asyncio.run(run())
    assert len(stages) > 1
    assert stages[-1].model_dump() == EXPECTED
    call = proxy.one_call(surface)
    assert call["stream.end"] == "complete" and call["tokens_out"] > 0


class Long(BaseModel):
    """An answer that is cut before its end."""

    field_0: str
    field_1: str
    field_2: str
    field_3: str
    field_4: str
    field_5: str
    field_6: str
    field_7: str
    field_8: str


class Picky(Order):
    """An order that the simulated provider gets wrong every time."""

    @field_validator("number")
    @classmethod
    def is_a_number(cls, number):
        if not number.isdigit():
            raise ValueError("an order number has digits only")
        return number


@both
def test_an_answer_that_does_not_fit_is_asked_for_again(proxy, surface):
    with pytest.raises(InstructorRetryException) as caught:
        extract(proxy, surface, response_model=Picky, max_retries=2)
    assert caught.value.n_attempts == 3
    assert "digits only" in str(caught.value)
    calls = asked_again(proxy, surface, 3)
    # Each holds the answer before it and what is wrong with that.
    assert calls[0]["tokens_in"] < calls[1]["tokens_in"] < calls[2]["tokens_in"]


def asked_again(proxy, surface, count):
    calls = proxy.calls()
    assert len(calls) == count, calls
    for call in calls:
        proxy.was(call, surface)
        assert call.get("client.retries", 0) == 0, "each is a request of its own"
    sizes = [call["bytes_in"] for call in calls]
    assert all(after > before + 100 for before, after in zip(sizes, sizes[1:])), sizes
    return calls


@pytest.mark.surface("chat")
def test_json_mode_asks_again_too(proxy):
    plain = client(proxy, "chat", mode=instructor.Mode.JSON)
    with pytest.raises(InstructorRetryException):
        plain.create(model=MODEL, messages=Question().messages(), response_model=Order, max_retries=1)
    asked_again(proxy, "chat", 2)


@both
def test_a_wrong_key_is_an_authentication_error(proxy, surface):
    with pytest.raises((openai.AuthenticationError, InstructorRetryException)) as caught:
        extract(proxy, surface, key=WRONG_KEY)
    error = inner(caught.value)
    assert isinstance(error, openai.AuthenticationError) and error.code == "invalid_api_key"
    assert "CANARY" not in str(caught.value)
    proxy.refused(401, "unauthorised", surface)


@both
def test_an_unknown_model_is_not_found(proxy, surface):
    with pytest.raises((openai.NotFoundError, InstructorRetryException)) as caught:
        extract(proxy, surface, "no-such-model")
    error = inner(caught.value)
    assert isinstance(error, openai.NotFoundError) and error.code == "model_not_found"
    proxy.refused(404, "client_error", surface)


@both
def test_it_waits_as_long_as_it_is_told(proxy, surface):
    def once():
        assert extract(proxy, surface, key=proxy.slow_key(surface)).model_dump() == EXPECTED

    proxy.waits_as_told(once, surface)


@both
def test_a_cancelled_task_lets_its_stream_go(proxy, surface):
    stages = []

    async def read():
        async for stage in partial(proxy, surface, STALL, Long):
            stages.append(stage)

    async def run():
        task = asyncio.create_task(read())
        while not stages:
            await asyncio.sleep(0.02)
        assert proxy.in_flight(STALL) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.5)

    asyncio.run(run())
    assert not any(stage.field_8 for stage in stages)
    proxy.let_go(surface)


@both
def test_a_stream_that_is_cut_raises(proxy, surface):
    proxy.heal(CUT)
    stages = []

    async def read():
        async for stage in partial(proxy, surface, CUT, Long):
            stages.append(stage)

    with pytest.raises((openai.APIError, InstructorRetryException)) as caught:
        asyncio.run(read())
    assert "before its answer was complete" in str(inner(caught.value))
    assert not any(stage.field_8 for stage in stages)
    proxy.truncated(surface)
