"""A caller that leaves: the real model stops generating for it, and the proxy lets go of its connection."""

import time

import openai
import pytest
from asking import FIXED, ask, long_ask, send, tokens


def stopped(proxy, llama) -> tuple:
    """(seconds until the proxy's connections are gone, seconds until the model is idle), counted from now."""
    started = time.monotonic()
    while proxy.connections_to(llama):
        assert time.monotonic() - started < 5, "the proxy still holds its connection"
        time.sleep(0.002)
    gone = time.monotonic() - started
    llama.idle_within(20)
    return gone, time.monotonic() - started


def accounted(proxy, route="real", whole=False):
    """The call is counted as one that the caller left, and nothing of it remains."""
    proxy.eventually(lambda: proxy.metric("weighbridge_in_flight") == 0)
    proxy.eventually(lambda: proxy.metric("weighbridge_requests_total", route=route, outcome="client_gone") == 1)
    if not whole:
        proxy.eventually(lambda: proxy.metric("weighbridge_stream_outcomes_total", route=route, outcome="client_gone") == 1)
    assert proxy.metric("weighbridge_breaker_state") == 0


def test_a_stream_closed_early_stops_the_model(proxy, llama, fact):
    stream = proxy.client().chat.completions.create(model="real", messages=ask(), stream=True, **tokens(900))
    for _, chunk in zip(range(8), stream):
        assert chunk.choices
    assert llama.busy() == 1 and proxy.connections_to(llama) == 1
    decoded = llama.generated()
    stream.close()
    gone, idle = stopped(proxy, llama)
    fact("stream closed: connection gone / model idle", f"{1000 * gone:.0f} / {1000 * idle:.0f} ms after {decoded} tokens")
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


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("phase", ["reading", "writing"])
def test_a_connection_closed_before_any_answer_stops_the_model(proxy, llama, fact, stream, phase):
    """`reading`: it works on the prompt. `writing`: it generates; a whole answer shows nothing of that."""
    if stream and phase == "writing":
        pytest.skip("that is a stream closed early")
    messages = long_ask(550) if phase == "reading" else ask()

    def leave(base, key, model):
        connection = send(base, key, {"model": model, "stream": stream, "messages": messages, "max_tokens": 300, **FIXED})
        until = time.monotonic() + 5
        while not llama.busy():
            assert time.monotonic() < until, "the model did not begin"
        time.sleep(0.5)
        assert llama.busy() == 1
        connection.close()

    leave(llama.url, llama.key, "smollm2")
    alone = llama.idle_within(20)
    leave(proxy.data, proxy.key, "real")
    gone, idle = stopped(proxy, llama)
    name = f"{'stream' if stream else 'whole'} left while {phase}"
    fact(f"{name}: gone / idle / idle without proxy", f"{1000 * gone:.0f} / {1000 * idle:.0f} / {1000 * alone:.0f} ms")
    assert gone < 0.2
    assert idle < alone + 1.0
    accounted(proxy, whole=True)


def test_a_stream_through_the_aggregator_is_let_go_too(proxy, litellm, llama, fact):
    stream = proxy.client().chat.completions.create(model="through", messages=ask(), stream=True, **tokens(900))
    for _ in zip(range(8), stream):
        pass
    assert proxy.connections_to(litellm) == 1
    stream.close()
    gone, idle = stopped(proxy, litellm)[0], llama.idle_within(40)
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
    body = {"model": "real", "stream": True, "messages": ask(), "max_tokens": 300, **FIXED}
    callers = [send(proxy.data, proxy.key, body) for _ in range(20)]
    proxy.eventually(lambda: proxy.metric("weighbridge_in_flight", route="real") == 20)
    time.sleep(1)
    for caller in callers:
        caller.close()
    gone, idle = stopped(proxy, llama)
    fact("twenty left: connections gone / model idle", f"{1000 * gone:.0f} / {1000 * idle:.0f} ms")
    assert gone < 0.5 and idle < 3.0
    proxy.eventually(lambda: proxy.metric("weighbridge_in_flight") == 0)
    proxy.eventually(lambda: proxy.metric("weighbridge_requests_total", route="real", outcome="client_gone") == 20)
    assert proxy.metric("weighbridge_breaker_state") == 0
