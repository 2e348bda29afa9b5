"""Many callers at once, more than the real model has room for."""

import asyncio
import time

import openai
import pytest
from asking import ask, tokens
from upstreams import SLOTS, resident_mib


@pytest.mark.parametrize("route", ["real", "aggregated", "through"])
def test_twenty_parallel_streams_all_finish_and_leave_nothing(proxy, llama, fact, route):
    seen = {"in_flight": 0, "busy": 0}
    rest, asked = proxy.descriptors(), tokens(24, cache_prompt=True)

    async def one(client):
        started, first, pieces, usage, finish = time.monotonic(), None, 0, None, None
        stream = await client.chat.completions.create(
            model=route, messages=ask(), stream=True, stream_options={"include_usage": True}, **asked
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.monotonic() - started
                pieces += 1
            finish = (chunk.choices and chunk.choices[0].finish_reason) or finish
            usage = chunk.usage or usage
        return first, time.monotonic() - started, pieces, usage.completion_tokens, finish

    async def watch(over):
        while not over.is_set():
            look = lambda: (int(proxy.metric("weighbridge_in_flight", route=route)), llama.busy())  # noqa: E731
            for name, now in zip(seen, await asyncio.to_thread(look)):
                seen[name] = max(seen[name], now)
            await asyncio.sleep(0.1)

    async def run():
        over = asyncio.Event()
        async with openai.AsyncOpenAI(base_url=proxy.base_url, api_key=proxy.key, max_retries=0, timeout=120) as client:
            watching = asyncio.create_task(watch(over))
            results = await asyncio.gather(*(one(client) for _ in range(20)), return_exceptions=True)
            over.set()
            await watching
        return results

    started = time.monotonic()
    results = asyncio.run(run())
    took = time.monotonic() - started
    assert [result for result in results if isinstance(result, BaseException)] == []
    firsts, _, pieces, completion, finishes = zip(*results)
    real = route != "aggregated"
    assert set(finishes) == {"length" if real else "stop"}
    assert min(pieces) >= 20
    assert not real or set(completion) == {24}
    waits = f"first content {min(firsts):.2f} to {max(firsts):.2f} s"
    fact(f"20 streams, {route}", f"{took:.1f} s; {waits}; in flight {seen['in_flight']}, in the model {seen['busy']}")
    if route == "real":
        assert seen["in_flight"] == 20
        assert seen["busy"] == SLOTS, "most had to wait for the model"
    proxy.eventually(lambda: proxy.metric("weighbridge_in_flight") == 0)
    proxy.eventually(lambda: proxy.metric("weighbridge_stream_outcomes_total", route=route, outcome="complete") == 20)
    assert proxy.metric("weighbridge_requests_total", route=route, outcome="ok") == 20
    assert proxy.metric("weighbridge_breaker_state") == 0
    assert proxy.metric("weighbridge_panics_total") == 0
    assert llama.busy() == 0
    proxy.eventually(lambda: proxy.metric("weighbridge_connections_open") == 0)
    # What remains open are idle connections, which llama.cpp itself ends after five seconds.
    if route == "real":
        proxy.eventually(lambda: proxy.connections_to(llama) == 0 and proxy.descriptors() <= rest + 2, within=8)


def test_two_hundred_streams_one_after_another_grow_nothing(proxy, fact):
    client = proxy.client()

    def some(count):
        for _ in range(count):
            list(client.chat.completions.create(model="aggregated", messages=ask(), stream=True))

    some(40)
    before, descriptors = resident_mib(proxy.pid), proxy.descriptors()
    started = time.monotonic()
    some(160)
    fact(
        "160 streams through LiteLLM",
        f"{time.monotonic() - started:.1f} s; proxy {before} to {resident_mib(proxy.pid)} MiB",
    )
    assert resident_mib(proxy.pid) <= before + 8
    assert proxy.descriptors() <= descriptors + 2
    assert proxy.metric("weighbridge_in_flight") == 0
