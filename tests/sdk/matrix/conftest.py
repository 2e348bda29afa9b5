"""Which cases exist, and the proxy they run against: the one scripts/matrix started, or one of the suite's own."""

import json
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from shared import SURFACES, MatrixSandbox, Proxy  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "surface(name): the case exists only if the proxy has this surface")


def pytest_collection_modifyitems(items):
    """A case of a surface that is switched off is no case; a case without a surface is a mistake."""

    def is_on(item):
        if not item.path.is_relative_to(HERE):
            return True
        mark = item.get_closest_marker("surface")
        assert mark, f"{item.nodeid} belongs to no surface"
        return mark.args[0] in SURFACES

    items[:] = filter(is_on, items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A skip that gives no reason is a failure."""
    report = yield
    if report.skipped and call.excinfo and not str(call.excinfo.value).strip():
        report.outcome, report.longrepr = "failed", f"{item.nodeid} is skipped and does not say why"
    return report


@pytest.fixture(scope="session")
def description(tmp_path_factory):
    given = os.environ.get("WEIGHBRIDGE_MATRIX")
    if given:
        yield json.loads(Path(given).read_text())
        return
    running = MatrixSandbox(tmp_path_factory.mktemp("sandbox"))
    yield running.description
    running.stop()


@pytest.fixture
def proxy(description, request):
    return Proxy(description, request.path.parent.name)
