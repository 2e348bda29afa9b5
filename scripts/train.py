#!/usr/bin/env python3
"""Traffic for scripts/dist: what a proxy does on a working day, from a sandbox and back, for some twenty seconds.

train.py PROGRAM

Only the standard library. Fails if the program does not start, or if a request is not answered as it should be: a
profile of errors would make errors fast.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

SECONDS = float(os.environ.get("TRAIN_SECONDS", "20"))
# The simulated providers take their time, as real ones do.
CALLERS = 48


class Program:
    """A sandbox on ports of its own."""

    def __init__(self, program):
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        self.process = subprocess.Popen([program, "sandbox", *listen], stdout=self.log, stderr=subprocess.STDOUT)
        self.url = self.wait_for(r"WB_URL=http://([^ \n]+)")
        self.key = self.wait_for(r"WB_KEY=([^ \n]+)")

    def wait_for(self, pattern):
        since = time.monotonic()
        while time.monotonic() - since < 60:
            with open(self.log.name) as text:
                found = re.search(pattern, text.read())
            if found:
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        with open(self.log.name) as text:
            sys.exit(f"the program does not start:\n{text.read()}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(60) != 0:
            sys.exit("the program did not end well: no counts")


def chat(size, stream=False, **more):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "word " * (size // 5)}]
    return "/v1/chat/completions", 200, {"model": "summary", "messages": messages, "stream": stream, **more}


def payment(number):
    return "/v1/risk/assessments", 200, {
        "out_trade_no": f"TRAIN-{number}", "total_amount": "88.13", "currency": "CNY", "subject": "demo",
        "merchant": {"id": f"m{number % 7}"}, "user": {"id": f"u{number % 997}"},
    }


def working_day(number):
    """Mostly plain calls, streams and payments; now and then the rest."""
    yield from [chat(900)] * 4
    yield payment(number)
    yield chat(900, stream=True, max_tokens=8)
    yield payment(-number)
    if number % 8 == 0:
        yield chat(20_000)
        yield "/v1/messages", 200, {"model": "summary", "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}
        yield "/v1/responses", 200, {"model": "summary", "input": "hi"}
        yield "/v1/chat/completions", 404, {"model": "nobody-has-it", "messages": [{"role": "user", "content": "hi"}]}
        yield chat(200_000)


def call(connection, key, path, body):
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "user-agent": "train/1"}
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def caller(program, share, ends, done, wrong):
    try:
        work(program, share, ends, done, wrong)
    except (OSError, http.client.HTTPException) as error:
        wrong.append(error)


def work(program, share, ends, done, wrong):
    connection = http.client.HTTPConnection(program.url, timeout=60)
    number = share * 10_000_000
    while time.monotonic() < ends:
        number += 1
        for path, status, body in working_day(number):
            answered, text = call(connection, program.key, path, body)
            done[share] += 1
            if answered != status:
                wrong.append(f"{path}: {answered} instead of {status}: {text[:300]!r}")


def main():
    program = Program(sys.argv[1])
    done, wrong, ends = [0] * CALLERS, [], time.monotonic() + SECONDS
    callers = [threading.Thread(target=caller, args=(program, share, ends, done, wrong)) for share in range(CALLERS)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    program.stop()
    print(f"{sum(done)} requests answered")
    # On a machine that has other things to do a payment may miss its deadline: that is no reason to begin again.
    if len(wrong) > sum(done) / 20:
        sys.exit(f"not answered as they should be: {wrong[0]} (and {len(wrong) - 1} more)")


if __name__ == "__main__":
    main()
