// The official OpenAI SDK for Node, pointed at the sandbox: what an application developer gets.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { copyFileSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import OpenAI from "openai";
import { NARROW_KEY, Sandbox } from "./sandbox.mjs";

/** A question nobody asked before: the summary route answers repeated ones from its cache. */
const ask = () => [{ role: "user", content: `Say hello to order ${randomUUID()} in three words.` }];
const fault = (faults) => ({ sandbox_fault: faults });

function client(sandbox, options = {}) {
  return new OpenAI({ baseURL: sandbox.said.base_url, apiKey: sandbox.said.api_key, maxRetries: 0, ...options });
}

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");

/** Runs `body` with a sandbox of its own: a breaker that one test opened would answer the next one's call. */
async function withFresh(body) {
  const fresh = await Sandbox.start();
  try {
    await body(fresh);
  } finally {
    await fresh.stop();
  }
}

describe("with healthy providers", () => {
  let sandbox;
  before(async () => (sandbox = await Sandbox.start()));
  after(() => sandbox.stop());

  for (const model of ["summary", "narrative"]) {
    test(`a chat completion on ${model} answers with usage`, async () => {
      const { data, response } = await client(sandbox).chat.completions.create({ model, messages: ask() }).withResponse();
      assert.ok(data.choices[0].message.content);
      assert.equal(data.choices[0].finish_reason, "stop");
      assert.ok(data.usage.total_tokens > 0);
      assert.equal(response.headers.get("wb-route"), model);
      assert.equal(response.headers.get("wb-attempts"), "1");
    });

    test(`a stream on ${model} brings content and ends`, async () => {
      const chunks = await collect(await client(sandbox).chat.completions.create({ model, messages: ask(), stream: true }));
      assert.ok(textOf(chunks));
      assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
    });
  }

  test("the request id of the SDK is the header, on success and on error", async () => {
    const { data, response } = await client(sandbox).chat.completions.create({ model: "summary", messages: ask() }).withResponse();
    assert.ok(data._request_id);
    assert.equal(data._request_id, response.headers.get("x-request-id"));
    await assert.rejects(client(sandbox).chat.completions.create({ model: "no-such-model", messages: ask() }), (error) => {
      assert.ok(error.requestID);
      assert.equal(error.requestID, error.headers.get("x-request-id"));
      return true;
    });
  });

  test("a client that did not ask for usage sees none", async () => {
    const chunks = await collect(await client(sandbox).chat.completions.create({ model: "summary", messages: ask(), stream: true }));
    for (const chunk of chunks) {
      assert.ok(chunk.choices.length > 0);
      assert.ok(!("usage" in chunk));
    }
  });

  test("a client that asked for usage gets it last", async () => {
    const options = { model: "summary", messages: ask(), stream: true, stream_options: { include_usage: true } };
    const chunks = await collect(await client(sandbox).chat.completions.create(options));
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.ok(chunks.at(-1).usage.total_tokens > 0);
  });

  test("the SDK's own stream helper puts a tool call together", async () => {
    const parameters = { type: "object", properties: { id: { type: "string" } } };
    const options = {
      model: "summary",
      messages: ask(),
      tools: [{ type: "function", function: { name: "lookup", parameters } }],
      tool_choice: { type: "function", function: { name: "lookup" } },
    };
    const final = await client(sandbox).chat.completions.stream(options).finalChatCompletion();
    assert.equal(final.choices[0].finish_reason, "tool_calls");
    const [call] = final.choices[0].message.tool_calls;
    assert.equal(call.function.name, "lookup");
    JSON.parse(call.function.arguments);
  });

  test("models lists what the key may call", async () => {
    const ids = async (apiKey) => (await collect(client(sandbox, { apiKey }).models.list())).map((model) => model.id);
    const listed = await ids(sandbox.said.api_key);
    assert.ok(listed.includes("summary") && listed.includes("narrative"));
    assert.deepEqual(await ids(NARROW_KEY), ["summary"]);
  });

  const refusals = [
    ["an unknown model is not found", OpenAI.NotFoundError, "no-such-model", undefined, "model_not_found"],
    ["a wrong key is an authentication error", OpenAI.AuthenticationError, "summary", "wrong", "invalid_api_key"],
    ["a key may not call what it is not allowed", OpenAI.PermissionDeniedError, "narrative", NARROW_KEY, undefined],
  ];
  for (const [sentence, kind, model, apiKey, code] of refusals) {
    test(`${sentence}, and is asked once`, async () => {
      let calls = 0;
      const counting = (...request) => (calls++, fetch(...request));
      const options = { apiKey: apiKey ?? sandbox.said.api_key, maxRetries: 2, fetch: counting };
      await assert.rejects(client(sandbox, options).chat.completions.create({ model, messages: ask() }), (error) => {
        assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
        assert.ok(error.type);
        if (code) assert.equal(error.code, code);
        return true;
      });
      assert.equal(calls, 1);
    });
  }

  test("malformed JSON is a bad request", async () => {
    const headers = { authorization: `Bearer ${sandbox.said.api_key}`, "content-type": "application/json" };
    const body = '{"model": "summary", ';
    const answer = await fetch(`${sandbox.said.base_url}/chat/completions`, { method: "POST", headers, body });
    assert.equal(answer.status, 400);
    assert.equal((await answer.json()).error.type, "invalid_request_error");
  });
});

describe("with a failing provider", () => {
  for (const text of ["status:503", "status:429;retry-after=2", "refuse", "reset", "empty", "error-in-200:429"]) {
    for (const stream of [false, true]) {
      test(`${text} is invisible ${stream ? "in a stream" : "in an answer"}`, () =>
        withFresh(async (fresh) => {
          const request = { model: "summary", messages: ask(), stream, ...fault({ tokenmix: text }) };
          const { data, response } = await client(fresh).chat.completions.create(request).withResponse();
          assert.ok(stream ? textOf(await collect(data)) : data.choices[0].message.content);
          assert.equal(response.headers.get("wb-attempts"), "2");
          assert.equal(response.headers.get("wb-provider"), "openrouter");
        }));
    }
  }

  test("a cut stream throws and never looks complete", () =>
    withFresh(async (fresh) => {
      const request = { model: "summary", messages: ask(), stream: true, ...fault({ tokenmix: "cut:3" }) };
      const chunks = [];
      await assert.rejects(
        async () => {
          for await (const chunk of await client(fresh).chat.completions.create(request)) chunks.push(chunk);
        },
        (error) => {
          assert.ok(error instanceof OpenAI.APIError, String(error));
          assert.equal(error.code, "upstream_truncated");
          return true;
        },
      );
      assert.ok(textOf(chunks));
      assert.ok(chunks.every((chunk) => !chunk.choices[0].finish_reason));
    }));

  test("an aborted stream frees what it held", () =>
    withFresh(async (fresh) => {
      const request = { model: "summary", messages: ask(), stream: true, ...fault({ tokenmix: "stall:2" }) };
      const stream = await client(fresh).chat.completions.create(request);
      for await (const chunk of stream) {
        assert.ok(chunk.choices);
        break;
      }
      stream.controller.abort();
      const until = Date.now() + 3_000;
      while ((await fresh.metric("weighbridge_in_flight", "summary")) > 0) {
        assert.ok(Date.now() < until, "still in flight after 3 s");
        await sleep(20);
      }
    }));

  test("the SDK asks again exactly when told to", () =>
    withFresh(async (fresh) => {
      const everyone = Object.fromEntries(fresh.said.routes.summary.map((route) => [route.split("/")[0], "status:503"]));
      let calls = 0;
      let toldTo;
      const counting = async (...request) => {
        calls++;
        const answer = await fetch(...request);
        toldTo ??= answer.headers.get("x-should-retry");
        return answer;
      };
      const openai = client(fresh, { maxRetries: 1, fetch: counting });
      await assert.rejects(
        openai.chat.completions.create({ model: "summary", messages: ask(), ...fault(everyone) }),
        OpenAI.InternalServerError,
      );
      assert.ok(["true", "false"].includes(toldTo), `x-should-retry is ${toldTo}`);
      assert.equal(calls, toldTo === "true" ? 2 : 1);
    }));
});

test("the example of the repository runs", () =>
  withFresh(async (fresh) => {
    const here = (path) => fileURLToPath(new URL(path, import.meta.url));
    // Packages are looked for beside the program that wants them, and ours are beside this suite.
    const folder = mkdtempSync(join(tmpdir(), "weighbridge-example-"));
    try {
      copyFileSync(here("../../examples/openai_sdk.mjs"), join(folder, "example.mjs"));
      symlinkSync(here("node_modules"), join(folder, "node_modules"));
      const env = { ...process.env, WB_URL: fresh.said.data, WB_KEY: fresh.said.api_key };
      const { stdout } = await promisify(execFile)(process.execPath, [join(folder, "example.mjs")], { env, timeout: 60_000 });
      assert.match(stdout, /^answer: ./m);
      assert.match(stdout, /^failover: openrouter answered after 2 attempts$/m);
      assert.match(stdout, /^cut stream: .* is not complete: upstream_truncated$/m);
      assert.match(stdout, /^mistake: model_not_found req_/m);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }));
