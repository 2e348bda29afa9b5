"""The bill of a day: 100,000 decisions through the sandbox come to 2,000 to 5,000 CNY, and every ledger says the same.

The sum is made a second time here, in whole micro-units, from the prices in providers/alipay.toml and what was asked for;
nothing the product says goes into it. `WEIGHBRIDGE_COST_CALLS` makes the day shorter; the bounds shrink with it.
"""

import http.client
import json
import os
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from harness import ROOT, Sandbox, exchange, payment

tomllib = pytest.importorskip("tomllib", reason="Python before 3.11 reads no TOML")

CALLS = int(os.environ.get("WEIGHBRIDGE_COST_CALLS", "100000"))
CONNECTIONS = 8
# Of a hundred calls this many ask for these features.
MIX = [(70, []), (15, ["fx"]), (10, ["receipt_ocr"]), (5, ["fx", "receipt_ocr"])]
ASKED = [features for share, features in MIX for _ in range(share)]
BUDGETS = """
[[risk.budget]]
merchant = "*"
amount = "5000.00 CNY"
per = "month"
"""


def micro(price: str) -> int:
    amount, currency = price.split(" ")
    assert currency == "CNY"
    return int(Decimal(amount) * 1_000_000)


def price(book: dict, features: list) -> int:
    base = book["cross_border"] if "fx" in features else book["standard"]
    return micro(base) + sum(micro(book["features"][feature]) for feature in features if feature in book["features"])


def ask(sandbox: Sandbox, first: int) -> tuple:
    """Every CONNECTIONS-th call: what the answers' bodies say they cost, and what their headers say."""
    address = urllib.parse.urlsplit(sandbox.data)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=180)
    headers = {"Authorization": f"Bearer {sandbox.key}", "Content-Type": "application/json"}
    bodies = heads = 0
    for number in range(first, CALLS, CONNECTIONS):
        body = payment("88.00", out_trade_no=f"C{number}", features=ASKED[number % 100])
        body["merchant"]["id"] = f"m{number % 50}"
        connection.request("POST", "/v1/risk/assessments", json.dumps(body), headers)
        response = connection.getresponse()
        decision = json.loads(response.read())
        assert response.status == 200 and decision["source"] == "live", decision
        bodies += micro(f"{decision['cost']['amount']} {decision['cost']['currency']}")
        heads += micro(response.headers["wb-cost"])
    connection.close()
    return bodies, heads


def test_a_hundred_thousand_calls_cost_between_two_and_five_thousand_yuan(tmp_path):
    book = tomllib.loads((ROOT / "providers/alipay.toml").read_text())["price"]
    expected = sum(price(book, ASKED[number % 100]) for number in range(CALLS))
    assert 2_000_000_000 * CALLS <= expected * 100_000 <= 5_000_000_000 * CALLS

    sandbox = Sandbox(tmp_path, more_risk=BUDGETS)
    try:
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            sums = list(threads.map(lambda first: ask(sandbox, first), range(CONNECTIONS)))
        assert sum(bodies for bodies, _ in sums) == expected
        assert sum(heads for _, heads in sums) == expected
        assert int(sandbox.metric("weighbridge_cost_micro_total", provider="alipay", currency="CNY")) == expected
        assert sandbox.metric("weighbridge_merchant_budget_calls_total", outcome="full") == CALLS
        assert sandbox.metric("weighbridge_extra_cost_micro_total") == 0
        (budget,) = exchange(sandbox.admin, "GET", "/status.json").json()["merchant_budgets"]
        spent = [micro(f"{budget[key]} CNY") for key in ("spent", "estimated", "reserved")]
        assert spent == [expected, 0, 0] and budget["merchants"] == min(CALLS, 50)
    finally:
        sandbox.stop()
