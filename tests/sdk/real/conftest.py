"""The upstreams are started once; the proxy anew for each test: breakers, pauses and idle connections of one test must
not decide the next."""

import signal

import pytest
from upstreams import LiteLLM, Llama, Proxy

FACTS = []

# A run that is stopped from outside takes its servers with it.
signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def fact():
    """`fact(name, value)`: a measured number that is printed at the end."""
    return lambda name, value: FACTS.append((name, value))


def pytest_terminal_summary(terminalreporter):
    if FACTS:
        terminalreporter.section("measured")
        width = max(len(name) for name, _ in FACTS)
        for name, value in FACTS:
            terminalreporter.write_line(f"{name:<{width}}  {value}")


@pytest.fixture(scope="session")
def llama(tmp_path_factory, fact):
    server = Llama(tmp_path_factory.mktemp("llama"))
    fact("llama.cpp ready", f"{server.start():.1f} s")
    yield server
    fact("llama.cpp memory", f"{server.resident_mib()} MiB")
    server.kill()


@pytest.fixture(scope="session")
def litellm(tmp_path_factory, llama, fact):
    server = LiteLLM(tmp_path_factory.mktemp("litellm"), llama)
    fact("LiteLLM ready", f"{server.start():.1f} s")
    yield server
    fact("LiteLLM memory", f"{server.resident_mib()} MiB")
    server.kill()


@pytest.fixture
def proxy(tmp_path, litellm, llama):
    # What an earlier test left the model doing would take its share of the processor.
    llama.idle_within(60)
    running = Proxy(tmp_path, litellm, llama)
    yield running
    running.stop()
