"""What the tests ask the real model, and how they read a stream."""

import http.client
import itertools
import json
import random
import time
import urllib.parse

# A small model ends when it likes. These make it do exactly as many tokens as asked, and the same ones each time;
# llama.cpp takes them beside OpenAI's own fields, and LiteLLM hands them on.
FIXED = {"ignore_eos": True, "cache_prompt": False}
TOLD = itertools.count()


def ask(words: str = "Tell me about the sea.") -> list:
    return [{"role": "user", "content": words}]


def long_ask(words: int) -> list:
    """About one and a half tokens a word, and no two alike: nothing of it is in the server's prompt cache."""
    these = random.Random(next(TOLD))
    nouns = "river stone market number paper train letter garden window silver orange".split()
    return ask("Summarise: " + " ".join(these.choice(nouns) for _ in range(words)))


def tokens(count: int, **more) -> dict:
    """Options of a call that generates exactly this many tokens."""
    return {"max_tokens": count, "temperature": 0, "seed": 7, "extra_body": {**FIXED, **more}}


def text_of(chunks) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def timed(stream) -> list:
    """(when it came, chunk) for each chunk."""
    return [(time.monotonic(), chunk) for chunk in stream]


def send(base: str, key: str, body: dict) -> http.client.HTTPConnection:
    """Sends a chat request and leaves the answer unread; closing the connection is leaving."""
    address = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    return connection
