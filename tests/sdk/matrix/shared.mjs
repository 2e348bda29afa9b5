// What the Node suites share: shared.py said again, as far as they need it. The sandbox's description, which scripts/matrix
// gives in WEIGHBRIDGE_MATRIX, holds every name and number, so that none of them stands here twice.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const file = process.env.WEIGHBRIDGE_MATRIX;
if (!file) throw new Error("run this suite with scripts/matrix: it needs the sandbox that starts there");

export const given = JSON.parse(readFileSync(file, "utf8"));
export const isOn = (surface) => given.surfaces.includes(surface);

/** The proxy as one client's suite sees it. Calls are counted from `mark()` on. */
export class Proxy {
  constructor(client) {
    this.client = client;
    this.key = given.keys[client];
  }

  slowKey(surface) {
    return given.keys[`${this.client}-${surface}-slow`];
  }

  async series(name, label = "") {
    const text = await (await fetch(`${given.admin}/metrics`)).text();
    const lines = text.split("\n").filter((line) => line.startsWith(`${name}{`) && line.includes(label));
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
  }

  accessLines() {
    const whole = readFileSync(given.log, "utf8").split("\n").slice(0, -1);
    const lines = whole.filter((line) => line.includes('"access"')).map((line) => JSON.parse(line));
    return lines.filter((line) => line.target === "access");
  }

  /** The access lines, once there is one for each call that the metrics count. */
  async settled() {
    const until = Date.now() + 5_000;
    for (;;) {
      const ended = await this.series("weighbridge_requests_total");
      const lines = this.accessLines();
      if (lines.length === ended) return lines;
      assert.ok(Date.now() < until, `${ended} calls have ended and ${lines.length} are in the access log`);
      await sleep(10);
    }
  }

  async mark() {
    this.seen = (await this.settled()).length;
  }

  /** What the proxy noted of our calls since the mark, in order. A call with a wrong key has no caller. */
  async calls() {
    const lines = (await this.settled()).slice(this.seen);
    const callers = [undefined, this.client, ...Object.keys(given.keys).filter((key) => key.startsWith(`${this.client}-`))];
    const ours = lines.filter((line) => callers.includes(line["caller.id"]));
    return ours.sort((one, other) => (one.timestamp < other.timestamp ? -1 : 1));
  }

  was(call, surface, status = 200, outcome = "ok") {
    const got = [call.operation, call.status, call.outcome];
    assert.deepEqual(got, [given.operations[surface], status, outcome], JSON.stringify(call));
  }

  /** The only call since the mark, which was on that surface and ended so. */
  async oneCall(surface, status = 200, outcome = "ok") {
    const calls = await this.calls();
    assert.equal(calls.length, 1, JSON.stringify(calls));
    this.was(calls[0], surface, status, outcome);
    return calls[0];
  }

  /** So many calls since the mark, all answered and metered. */
  async turns(count, surface) {
    const calls = await this.calls();
    assert.equal(calls.length, count, JSON.stringify(calls));
    for (const call of calls) {
      this.was(call, surface);
      assert.ok(call.tokens_in > 0 && call.tokens_out > 0, JSON.stringify(call));
    }
    return calls;
  }

  /** One call, refused, and no retry: it could not have ended otherwise. */
  async refused(status, outcome, surface) {
    const call = await this.oneCall(surface, status, outcome);
    assert.ok(!("attempts" in call), "no provider was asked");
  }

  async inFlight(model) {
    return this.series("weighbridge_in_flight", `route="${model}"`);
  }

  async eventually(truth, within = 2_500) {
    const until = Date.now() + within;
    while (!(await truth())) {
      assert.ok(Date.now() < until, `still not so after ${within} ms`);
      await sleep(20);
    }
  }

  /** The client left a stream, and nothing of it is held any longer. */
  async letGo(surface, statuses = [200]) {
    await this.eventually(async () => (await this.inFlight(given.stall)) === 0);
    const [{ status }] = await this.calls();
    assert.ok(statuses.includes(status), `${status}`);
    const call = await this.oneCall(surface, status, "client_gone");
    if (status === 200) assert.equal(call["stream.end"], "client_gone");
    assert.ok(call.duration_ms < 3_000, "sooner than the route's idle limit would have ended it");
  }

  /** One good answer of a model that fails by its name, so that its breaker never sees five failures in a row. */
  async heal(model) {
    const provider = model.split("/")[0];
    const messages = [{ role: "user", content: "heal" }];
    const body = JSON.stringify({ model, messages, sandbox_fault: { [provider]: "delay:0ms" } });
    const headers = { authorization: `Bearer ${given.api_key}`, "content-type": "application/json" };
    await this.eventually(async () => {
      const answer = await fetch(`${given.base_url}/chat/completions`, { method: "POST", headers, body });
      await answer.text();
      return answer.headers.get("wb-provider") === provider;
    }, 5_000);
    await this.mark();
  }
}

/** One that nobody asked before, since the summary route answers repeated ones from its cache. */
export class Question {
  nonce = randomUUID();
  text = `Say hello to order ${this.nonce} in three words.`;

  /** `text` is all of the answer to this question, from its first word to its last. */
  answered(text) {
    assert.ok(text.startsWith("This is ") && text.includes(this.nonce), text);
    assert.ok(text.endsWith("so that streaming can be seen."), text);
  }
}

/** `text` is the three words that come before the fault. */
export function brokenOff(text) {
  assert.ok(text.trim() && "This is sandbox,".startsWith(text.trim()), text);
}
