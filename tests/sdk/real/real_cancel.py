"""A caller that leaves: the real model stops generating for it, and the proxy lets go of its connection."""

import time

import openai
import pytest
from asking import FIXED, ask, long_ask, send, tokens


def let_go(proxy, upstream) -> float:
    """Seconds, from now, until the proxy has no connection to the upstream any more."""
    started = time.monotonic()
    while proxy.connections_to(upstream):
        assert time.monotonic() - started < 5, "the proxy still holds its connection"
        time.sleep(0.002)
    return time.monotonic() - started


def stopped(proxy, llama) -> tuple:
    """(seconds until the proxy's connections are gone, seconds until the model is idle), counted from now."""
    gone = let_go(proxy, llama)
    return gone, gone + llama.idle_within(20)


def accounted(proxy, route="real", whole=False):
    """The call is counted as one that the caller left, and nothing of it remains."""
    proxy.eventually(lambda: proxy.metric("weighbridge_in_flight") == 0)
    proxy.eventually(lambda: proxy.metric("weighbridge_requests_total", route=route, outcome="client_gone") == 1)
    if not whole:
        proxy.eventually(
            lambda: proxy.metric("weighbridge_stream_outcomes_total", route=route, outcome="client_gone") == 1
        )
    assert proxy.metric("weighbridge_breaker_state") == 0


def test_a_stream_closed_early_stops_the_model(proxy, llama, fact):
    stream = proxy.client().chat.completions.create(model="real", messages=ask(), stream=True, **tokens(900))
    for _, chunk in zip(range(8), stream):
        assert chunk.choices
    assert llama.busy() == 1 and proxy.connections_to(llama) == 1
    decoded = llama.generated()
    stream.close()
    gone, idle = stopped(proxy, llama)
    assert llama.metric("requests_processing") == 0
    fact(
        "stream closed: connection gone / model idle",
        f"{1000 * gone:.0f} / {1000 * idle:.0f} ms after {decoded} tokens",
    )
    assert gone < 0.2
    assert idle < 1.0
    accounted(proxy)


def test_a_caller_that_leaves_the_sdk_by_exception_stops_the_model_too(proxy, llama):
    with pytest.raises(ZeroDivisionError):
        with proxy.client().chat.completions.create(model="real", messages=ask(), stream=True, **tokens(900)) as stream:
            for _, _ in zip(range(3), stream):
                pass
            raise ZeroDivisionError
    gone, idle = stopped(proxy, llama)
    assert gone < 0.2 and idle < 1.0
    accounted(proxy)


def leave(base, key, model, llama, count=1, **body):
    """That many callers ask, wait until the model is at work, and go without having read anything."""
    body = {"model": model, "max_tokens": 200, **FIXED, **body}
    callers = [send(base, key, body) for _ in range(count)]
    until = time.monotonic() + 5
    while not llama.busy():
        assert time.monotonic() < until, "the model did not begin"
        time.sleep(0.01)
    time.sleep(0.5)
    assert llama.busy()
    for caller in callers:
        caller.close()


LEFT = {
    "streamed while it reads the prompt": lambda: {"stream": True, "messages": long_ask(550)},
    "whole while it reads the prompt": lambda: {"stream": False, "messages": long_ask(550)},
    "whole while it writes": lambda: {"stream": False, "messages": ask()},
}


@pytest.mark.parametrize("left", LEFT)
def test_a_connection_closed_before_any_answer_stops_the_model_as_soon_as_it_would_without_the_proxy(
    proxy, llama, fact, left
):
    leave(llama.url, llama.key, "smollm2", llama, **LEFT[left]())
    alone = llama.idle_within(20)
    leave(proxy.data, proxy.key, "real", llama, **LEFT[left]())
    gone, idle = stopped(proxy, llama)
    fact(
        f"left, {left}: gone / idle / idle without proxy",
        f"{1000 * gone:.0f} / {1000 * idle:.0f} / {1000 * alone:.0f} ms",
    )
    assert gone < 0.2
    assert idle < alone + 1.5
    accounted(proxy, whole=True)


def test_a_stream_through_the_aggregator_is_let_go_too(proxy, litellm, llama, fact):
    stream = proxy.client().chat.completions.create(model="through", messages=ask(), stream=True, **tokens(900))
    for _ in zip(range(8), stream):
        pass
    assert proxy.connections_to(litellm) == 1
    stream.close()
    gone = let_go(proxy, litellm)
    idle = gone + llama.idle_within(40)
    fact("through LiteLLM closed: connection gone / model idle", f"{1000 * gone:.0f} / {1000 * idle:.0f} ms")
    assert gone < 0.2
    accounted(proxy, "through")


def test_the_callers_own_timeout_stops_the_model(proxy, llama):
    with pytest.raises((openai.APIError, openai.APITimeoutError)):
        proxy.client(timeout=1).chat.completions.create(model="real", messages=ask(), **tokens(300))
    gone, idle = stopped(proxy, llama)
    assert gone < 0.5 and idle < 2.0
    proxy.eventually(lambda: proxy.metric("weighbridge_in_flight") == 0)
    assert proxy.metric("weighbridge_breaker_state") == 0


def test_twenty_callers_that_leave_at_once_leave_nothing_behind(proxy, llama, fact):
    body = {"stream": True, "messages": ask()}
    leave(llama.url, llama.key, "smollm2", llama, 20, **body)
    alone = llama.idle_within(20)
    leave(proxy.data, proxy.key, "real", llama, 20, **body)
    gone, idle = stopped(proxy, llama)
    fact(
        "twenty left: gone / idle / idle without proxy",
        f"{1000 * gone:.0f} / {1000 * idle:.0f} / {1000 * alone:.0f} ms",
    )
    assert gone < 0.5
    assert idle < alone + 1.5
    proxy.eventually(lambda: proxy.metric("weighbridge_in_flight") == 0)
    proxy.eventually(lambda: proxy.metric("weighbridge_requests_total", route="real", outcome="client_gone") == 20)
    assert proxy.metric("weighbridge_breaker_state") == 0
