"""Two ways to get the product: one for everybody, and a fresh one for tests that make a provider fail (a breaker that
one test opened would answer the next one's call)."""

import pytest

from harness import Sandbox


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory):
    running = Sandbox(tmp_path_factory.mktemp("sandbox"))
    yield running
    running.stop()


@pytest.fixture
def fresh(tmp_path):
    running = Sandbox(tmp_path)
    yield running
    running.stop()
