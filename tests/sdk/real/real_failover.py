"""LiteLLM goes away under traffic, the real model takes over, and LiteLLM gets its traffic back; and what freezes, dies
or is told to stop in the middle of an answer."""

import signal
import threading
import time
from collections import Counter

import openai
import pytest
from asking import ask, text_of, tokens


class Traffic:
    """Callers that ask again and again; SDK retries are off, so each error is seen."""

    def __init__(self, proxy, streams=(False, False, True)):
        self.proxy, self.over = proxy, threading.Event()
        self.answers = []  # (when, provider, attempts, seconds, streamed)
        self.errors, self.cut = [], []
        self.callers = [threading.Thread(target=self._call, args=(stream,)) for stream in streams]

    def __enter__(self):
        for caller in self.callers:
            caller.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for caller in self.callers:
            caller.join(60)

    def _call(self, stream):
        with self.proxy.client() as client:
            while not self.over.is_set():
                self._once(client, stream)

    def _once(self, client, stream):
        started, text = time.monotonic(), ""
        try:
            raw = client.chat.completions.with_raw_response.create(
                model="steady", messages=ask(), stream=stream, **tokens(4, cache_prompt=True)
            )
            answer = raw.parse()
            if stream:
                for chunk in answer:
                    text += text_of([chunk])
            else:
                text = answer.choices[0].message.content
            assert text
        except Exception as error:
            # What a caller had begun to read cannot be taken back: that it hears of, and of nothing else.
            begun = text and isinstance(error, openai.APIError) and error.code == "upstream_truncated"
            (self.cut if begun else self.errors).append(error)
        else:
            now, headers = time.monotonic(), raw.headers
            self.answers.append((now, headers["wb-provider"], int(headers["wb-attempts"]), now - started, stream))

    def since(self, moment) -> list:
        return [answer for answer in list(self.answers) if answer[0] > moment]

    def wait(self, truth, within):
        until = time.monotonic() + within
        while not truth():
            assert time.monotonic() < until, f"still not so after {within} s; errors: {self.errors[:3]}"
            time.sleep(0.05)


class Breaker:
    """Watches the breaker of LiteLLM's model: (seconds since the start, its state), each time it changes."""

    def __init__(self, proxy):
        self.proxy, self.over, self.seen, self.began = proxy, threading.Event(), [], time.monotonic()
        self.watcher = threading.Thread(target=self._watch)

    def __enter__(self):
        self.watcher.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.watcher.join(10)

    def _watch(self):
        while not self.over.wait(0.02):
            state = self.proxy.metric("weighbridge_breaker_state", provider="litellm", model="slow")
            if not self.seen or self.seen[-1][1] != state:
                self.seen.append((time.monotonic() - self.began, state))

    def states(self) -> list:
        return [state for _, state in self.seen]


def test_an_aggregator_that_dies_and_comes_back_costs_no_caller_anything(proxy, litellm, fact):
    with Breaker(proxy) as breaker, Traffic(proxy) as traffic:
        traffic.wait(lambda: len(traffic.answers) >= 20, 30)
        assert {provider for _, provider, *_ in traffic.answers} == {"litellm"}
        killed = time.monotonic()
        litellm.kill()
        traffic.wait(lambda: 2 in breaker.states(), 20)
        opened = time.monotonic()
        traffic.wait(lambda: len(traffic.since(opened)) >= 30, 60)
        meanwhile = traffic.since(opened)
        took = litellm.start()
        back = time.monotonic()
        traffic.wait(lambda: any(provider == "litellm" for _, provider, *_ in traffic.since(back)), 150)
        first = next(at for at, provider, *_ in traffic.since(back) if provider == "litellm")
        traffic.wait(lambda: breaker.states()[-1] == 0, 90)
        closed = time.monotonic()
        traffic.wait(lambda: len(traffic.since(closed)) >= 20, 30)
    after = traffic.since(closed + 0.5)
    switch = next(at for at, provider, *_ in traffic.since(killed) if provider == "llama") - killed
    slowest = max(seconds for _, _, _, seconds, _ in traffic.answers)
    fact(
        "LiteLLM killed: answers / errors / streams cut",
        f"{len(traffic.answers)} / {len(traffic.errors)} / {len(traffic.cut)}",
    )
    fact(
        "  first answer of the real model after",
        f"{1000 * switch:.0f} ms; breaker open after {1000 * (opened - killed):.0f} ms",
    )
    fact(
        "  LiteLLM ready again / traffic back / breaker closed",
        f"{took:.1f} s / +{first - back:.1f} s / +{closed - back:.1f} s",
    )
    fact(
        "  slowest answer; breaker",
        f"{slowest:.2f} s; {' '.join(f'{state:.0f}@{at:.1f}s' for at, state in breaker.seen)}",
    )
    assert traffic.errors == []
    assert len(traffic.cut) <= 1, "only a stream that was being read at that moment may be cut"
    # Behind an open breaker nobody waits for the dead one; now and then one call finds out whether it still is.
    assert {provider for _, provider, *_ in meanwhile} == {"llama"}
    assert Counter(attempts for _, _, attempts, *_ in meanwhile).most_common(1)[0][0] == 1
    states = breaker.states()
    assert states[0] == 0 and 2 in states and 1 in states[states.index(2) :] and states[-1] == 0
    assert Counter(provider for _, provider, *_ in after)["llama"] == 0
    assert proxy.metric("weighbridge_failovers_total") > 0
    proxy.eventually(lambda: proxy.metric("weighbridge_in_flight") == 0)


def test_an_aggregator_that_freezes_is_left_within_the_routes_times(proxy, litellm, fact):
    """A stream after `first_content`; a whole answer after its share of `total`, which two candidates halve."""
    client = proxy.client()
    asked = {"model": "impatient", "messages": ask(), **tokens(4, cache_prompt=True)}
    client.chat.completions.create(**asked)
    with litellm.frozen():
        for stream, most in ((True, 4.0), (False, 12.0)):
            started = time.monotonic()
            raw = client.chat.completions.with_raw_response.create(stream=stream, **asked)
            answer = raw.parse()
            assert text_of(answer) if stream else answer.choices[0].message.content
            took = time.monotonic() - started
            fact(f"LiteLLM frozen: a {'streamed' if stream else 'whole'} answer after", f"{took:.2f} s")
            assert (raw.headers["wb-provider"], raw.headers["wb-attempts"]) == ("llama", "2")
            assert most <= took < most + 4
    proxy.eventually(lambda: proxy.metric("weighbridge_in_flight") == 0)


def test_a_stream_that_was_being_read_when_its_upstream_died_ends_in_one_error(proxy, litellm):
    """Through LiteLLM to the real model, so that it lasts; the caller is told, and never given a second answer."""
    stream = proxy.client().chat.completions.create(model="through", messages=ask(), stream=True, **tokens(300))
    got = [next(stream) for _ in range(5)]
    litellm.kill()
    try:
        try:
            got += list(stream)
        except openai.APIError as error:
            assert error.code == "upstream_truncated"
        else:
            raise AssertionError("a cut stream ended as if it were complete")
    finally:
        litellm.start()
    assert all(chunk.choices[0].finish_reason is None for chunk in got)
    proxy.eventually(lambda: proxy.metric("weighbridge_stream_outcomes_total", outcome="truncated") == 1)


def test_a_model_that_freezes_while_it_writes_ends_the_stream_in_one_error(proxy, llama, fact):
    stream = proxy.client().chat.completions.create(model="alert", messages=ask(), stream=True, **tokens(300))
    for _ in range(5):
        assert next(stream).choices
    with llama.frozen():
        # What was on its way is still read; then there is silence for as long as the route bears it.
        started = time.monotonic()
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        took = time.monotonic() - started
    fact("llama.cpp frozen while it writes: error after", f"{took:.2f} s")
    assert caught.value.code == "upstream_stalled"
    assert 2.5 < took < 4.5
    llama.idle_within(10)
    proxy.eventually(lambda: proxy.metric("weighbridge_stream_outcomes_total", outcome="idle") == 1)
    assert proxy.metric("weighbridge_in_flight") == 0


def test_a_proxy_that_is_told_to_stop_finishes_the_stream_it_has(proxy, llama):
    stream = proxy.client().chat.completions.create(model="real", messages=ask(), stream=True, **tokens(80))
    chunks = [next(stream) for _ in range(3)]
    proxy.process.process.send_signal(signal.SIGTERM)
    chunks += list(stream)
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
    assert sum(bool(c.choices[0].delta.content) for c in chunks) >= 70
    assert proxy.process.process.wait(10) == 0
    assert not llama.busy()
