#!/usr/bin/env bash
# A risk decision, the same one again, a conflict, and a provider that is late.
#
#   cargo run --release -- sandbox              # in another terminal; prints the key
#   WB_KEY=wb-sandbox-… examples/risk_call.sh
#
# The amounts are magic in the sandbox only (README.md lists them).
set -euo pipefail

WB_URL=${WB_URL:-http://127.0.0.1:8080}
: "${WB_KEY:?set WB_KEY to the key that the sandbox printed}"
run=$(date +%s)-$$

# payment NUMBER AMOUNT
payment() {
  printf '{"out_trade_no": "%s", "total_amount": "%s", "currency": "CNY", "subject": "demo",
    "merchant": {"id": "m1", "category": "electronics", "country": "CN"},
    "user": {"id": "u1", "country": "TH"}, "device": {"id": "d1", "ip": "203.0.113.7"}}' "$1" "$2"
}

# assess BODY: prints the status, the seconds it took, and the answer.
assess() {
  curl -sS "$WB_URL/v1/risk/assessments" -H "authorization: Bearer $WB_KEY" -H 'content-type: application/json' \
    -d "$1" -w '\n%{http_code} in %{time_total} s\n'
}

echo "== a doubtful payment is reviewed"
assess "$(payment "A-$run" 88.13)"

echo "== the same again is the same decision, source replayed"
assess "$(payment "A-$run" 88.13)"

echo "== the same number for another payment is a conflict"
assess "$(payment "A-$run" 99.00)"

echo "== the provider takes two seconds: a fallback, on time"
assess "$(payment "B-$run" 188.50)"

echo "== asked again after it answered: its verdict, source late"
sleep 2
assess "$(payment "B-$run" 188.50)"
