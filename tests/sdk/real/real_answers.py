"""Whole and streamed answers through LiteLLM, through the real model, and through the one in front of the other."""

import json
import statistics
import time

import pytest
from asking import FIXED, ask, long_ask, send, text_of, timed, tokens
from upstreams import MOCKED

# route, provider that answers
WAYS = [("aggregated", "litellm"), ("real", "llama"), ("through", "litellm")]


@pytest.mark.parametrize("route, provider", WAYS)
def test_a_whole_answer_comes_with_usage_and_says_who_gave_it(proxy, route, provider):
    raw = proxy.client().chat.completions.with_raw_response.create(model=route, messages=ask(), **tokens(12))
    answer = raw.parse()
    assert answer.choices[0].message.role == "assistant"
    assert (answer.choices[0].message.content == MOCKED) == (route == "aggregated")
    assert answer.choices[0].finish_reason == ("stop" if route == "aggregated" else "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert route == "aggregated" or answer.usage.completion_tokens == 12
    assert (raw.headers["wb-provider"], raw.headers["wb-attempts"], raw.headers["wb-route"]) == (provider, "1", route)
    assert proxy.metric("weighbridge_tokens_total", provider=provider) == answer.usage.total_tokens


@pytest.mark.parametrize("route, provider", WAYS)
def test_a_streamed_answer_comes_in_pieces_with_usage_last(proxy, route, provider):
    raw = proxy.client().chat.completions.with_raw_response.create(
        model=route, messages=ask(), stream=True, stream_options={"include_usage": True}, **tokens(24)
    )
    chunks = list(raw.parse())
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) >= 20
    assert (text_of(chunks) == MOCKED) == (route == "aggregated")
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices].count("assistant") == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason] == [
        "stop" if route == "aggregated" else "length"
    ]
    usage = [chunk.usage for chunk in chunks if chunk.usage]
    assert usage == [chunks[-1].usage]
    assert usage[0].total_tokens == usage[0].prompt_tokens + usage[0].completion_tokens > 0
    assert route == "aggregated" or usage[0].completion_tokens == 24
    assert raw.headers["wb-provider"] == provider
    proxy.eventually(lambda: proxy.metric("weighbridge_stream_outcomes_total", route=route, outcome="complete") == 1)
    assert proxy.metric("weighbridge_tokens_total", provider=provider) == usage[0].total_tokens


@pytest.mark.parametrize("route, provider", WAYS)
def test_a_caller_that_did_not_ask_for_usage_sees_none_and_tokens_are_counted_all_the_same(proxy, route, provider):
    """LiteLLM's usage event has a choice, with an empty delta and no reason; OpenAI's and llama.cpp's have none."""
    chunks = list(proxy.client().chat.completions.create(model=route, messages=ask(), stream=True, **tokens(8)))
    assert text_of(chunks)
    proxy.eventually(lambda: proxy.metric("weighbridge_tokens_total", provider=provider, type="output") > 0)
    for chunk in chunks:
        assert chunk.choices, "a chunk without choices breaks clients that index choices[0]"
        assert "usage" not in chunk.model_dump(exclude_unset=True), chunk


def test_the_proxy_changes_nothing_of_what_the_real_model_says(proxy, llama):
    def said(client, model):
        answer = client.chat.completions.create(model=model, messages=ask(), **tokens(40))
        stream = client.chat.completions.create(model=model, messages=ask(), stream=True, **tokens(40))
        return answer.choices[0].message.content, text_of(stream)

    through = said(proxy.client(), "real")
    direct = said(proxy.client(base_url=f"{llama.url}/v1", api_key=llama.key), "smollm2")
    assert through == direct
    assert through[0] == through[1]


def test_every_token_reaches_the_caller_when_the_model_makes_it(proxy, fact):
    """Measured on the wire between proxy and upstream, and in the SDK: token by token, on one clock."""
    client = proxy.client()
    list(client.chat.completions.create(model="tapped", messages=ask(), stream=True, **tokens(2)))
    proxy.tap.events.clear()
    seen = timed(client.chat.completions.create(model="tapped", messages=ask(), stream=True, **tokens(120)))
    content = lambda chunk: chunk["choices"] and chunk["choices"][0]["delta"].get("content")  # noqa: E731
    sent = [(at, json.loads(text)) for at, text in proxy.tap.events if text != "[DONE]"]
    sent = [(at, content(chunk)) for at, chunk in sent if content(chunk)]
    came = [(at, chunk.choices[0].delta.content) for at, chunk in seen if chunk.choices[0].delta.content]
    assert [piece for _, piece in came] == [piece for _, piece in sent]
    late = sorted(1000 * (at - left) for (at, _), (left, _) in zip(came, sent))
    gaps = [1000 * (later - earlier) for (earlier, _), (later, _) in zip(sent, sent[1:])]
    caller_gaps = [1000 * (later - earlier) for (earlier, _), (later, _) in zip(came, came[1:])]
    middle = statistics.median(gaps)
    glued = sum(theirs > middle / 2 and ours < theirs / 4 for theirs, ours in zip(gaps, caller_gaps))
    fact("token gap, upstream / caller, median", f"{middle:.1f} / {statistics.median(caller_gaps):.1f} ms")
    fact(
        "token delay in proxy and SDK, median / p95",
        f"{statistics.median(late):.2f} / {late[len(late) * 95 // 100]:.2f} ms",
    )
    fact("tokens glued to the one before", f"{glued} of {len(gaps)}")
    assert middle > 4, "the model is too quick for gaps to be told apart"
    assert statistics.median(late) < middle / 2
    assert late[len(late) * 95 // 100] < 100
    assert glued <= len(gaps) // 20


def test_comments_while_the_model_reads_the_prompt_are_no_content_and_do_not_reach_the_caller(proxy):
    """llama.cpp is told to send a comment each second in which it has no token."""
    body = {"model": "tapped", "stream": True, "messages": long_ask(500), "max_tokens": 3, **FIXED}
    started = time.monotonic()
    connection = send(proxy.data, proxy.key, body)
    response = connection.getresponse()
    waited = time.monotonic() - started
    lines = response.read().decode().splitlines()
    connection.close()
    assert waited > 2, "the model read the prompt too quickly for a comment to be sent"
    assert [line for line in lines if line and not line.startswith("data: ")] == []
    assert lines.count("data: [DONE]") == 1


def test_a_server_that_closes_its_idle_connections_costs_no_answer(proxy):
    """llama.cpp closes a connection after five idle seconds, and after a hundred answers."""
    client = proxy.client()
    for _ in range(110):
        client.chat.completions.create(model="real", messages=ask("Hi"), **tokens(1, cache_prompt=True))
    for idle in (4.97, 4.99, 5.0, 5.01, 5.03):
        time.sleep(idle)
        client.chat.completions.create(model="real", messages=ask("Hi"), **tokens(1, cache_prompt=True))
    assert proxy.metric("weighbridge_requests_total", route="real", outcome="ok") == 115
