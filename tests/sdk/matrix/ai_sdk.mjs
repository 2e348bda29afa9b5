// The cases that hold for every provider package of the AI SDK: what `generateText`, `streamText` and `embedMany` make of
// our answers. The AI SDK retries twice by itself, on what it holds to be worth it.

import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { APICallError, embedMany, generateText, isStepCount, streamText, tool } from "ai";
import { z } from "zod";
import { brokenOff, given, isOn, Proxy, Question } from "./shared.mjs";

async function drain(stream, into) {
  for await (const part of stream) into.push(part);
}

const textOf = (parts) => parts.filter((part) => part.type === "text-delta").map((part) => part.text).join("");
const quiet = { onError() {} };

function orderStatus(asked) {
  return tool({
    description: "Where an order is.",
    inputSchema: z.object({ orderId: z.string() }),
    async execute({ orderId }) {
      asked.push(orderId);
      return `order ${orderId} is on its way`;
    },
  });
}

/** `model(name, key)` makes a language model of the package; `usage` says whether its streams ask for usage. */
export function languageCases({ client, surface, model, usage }) {
  if (!isOn(surface)) return;
  describe(`${client} on ${surface}`, () => {
    const proxy = new Proxy(client);
    const one = (name = given.model, key = proxy.key) => model(name, key);
    beforeEach(() => proxy.mark());

    test("an answer and its usage", async () => {
      const question = new Question();
      const result = await generateText({ model: one(), prompt: question.text });
      question.answered(result.text);
      assert.equal(result.finishReason, "stop");
      const call = await proxy.oneCall(surface);
      assert.equal(result.usage.outputTokens, call.tokens_out);
      assert.equal(result.response.headers["x-request-id"], call["call.id"]);
    });

    test("a stream comes in pieces", async () => {
      const question = new Question();
      const parts = [];
      const result = streamText({ model: one(), prompt: question.text });
      await drain(result.fullStream, parts);
      assert.ok(parts.filter((part) => part.type === "text-delta").length > 10);
      question.answered(textOf(parts));
      assert.equal(await result.finishReason, "stop");
      const call = await proxy.oneCall(surface);
      assert.equal(call["stream.end"], "complete");
      assert.ok(call.tokens_out > 20, "metered, whether or not the client asked for usage");
      assert.equal((await result.usage).outputTokens, usage ? call.tokens_out : undefined);
    });

    test("a tool is called and its result taken, in a loop of two turns", async () => {
      const question = new Question();
      const asked = [];
      const options = { tools: { orderStatus: orderStatus(asked) }, stopWhen: isStepCount(3) };
      const result = await generateText({ model: one(), prompt: question.text, ...options });
      assert.deepEqual(asked, ["sandbox"]);
      assert.equal(result.steps.length, 2);
      assert.equal(result.steps[0].toolResults[0].output, "order sandbox is on its way");
      question.answered(result.text);
      await proxy.turns(2, surface);
    });

    test("a tool is called in a stream, in a loop of two turns", async () => {
      const question = new Question();
      const asked = [];
      const options = { tools: { orderStatus: orderStatus(asked) }, stopWhen: isStepCount(3) };
      const result = streamText({ model: one(), prompt: question.text, ...options });
      const parts = [];
      await drain(result.fullStream, parts);
      assert.deepEqual(asked, ["sandbox"]);
      const [call] = parts.filter((part) => part.type === "tool-call");
      assert.deepEqual(call.input, { orderId: "sandbox" });
      question.answered(textOf(parts));
      await proxy.turns(2, surface);
    });

    test("a wrong key is a 401 that is not tried again", async () => {
      await assert.rejects(generateText({ model: one(given.model, given.wrong_key), prompt: "hello" }), (error) => {
        assert.ok(APICallError.isInstance(error), String(error));
        assert.equal(error.statusCode, 401);
        assert.equal(error.isRetryable, false);
        assert.equal(JSON.parse(error.responseBody).error.code, "invalid_api_key");
        assert.ok(!error.responseBody.includes("CANARY"));
        return true;
      });
      await proxy.refused(401, "unauthorised", surface);
    });

    test("an unknown model is a 404 that is not tried again", async () => {
      await assert.rejects(generateText({ model: one("no-such-model"), prompt: "hello" }), (error) => {
        assert.ok(APICallError.isInstance(error), String(error));
        assert.equal(error.statusCode, 404);
        assert.equal(error.isRetryable, false);
        assert.equal(JSON.parse(error.responseBody).error.code, "model_not_found");
        return true;
      });
      await proxy.refused(404, "client_error", surface);
    });

    test("a refusal is an error part of a stream", async () => {
      const parts = [];
      await drain(streamText({ model: one(given.model, given.wrong_key), prompt: "hello", ...quiet }).fullStream, parts);
      const [{ error }] = parts.filter((part) => part.type === "error");
      assert.equal(error.statusCode, 401);
      assert.equal(textOf(parts), "");
      await proxy.refused(401, "unauthorised", surface);
    });

    test("it waits as long as it is told", async () => {
      const slow = one(given.model, proxy.slowKey(surface));
      let calls, took;
      // A machine too busy for two calls in that time may try again.
      for (let tries = 0; tries < 5; tries++) {
        await proxy.mark();
        await generateText({ model: slow, prompt: new Question().text });
        const began = Date.now();
        const question = new Question();
        question.answered((await generateText({ model: slow, prompt: question.text })).text);
        took = (Date.now() - began) / 1_000;
        calls = await proxy.calls();
        if (calls.some((call) => call.status === 429) && took < 1.95) break;
        await sleep(given.hint * 1_000);
      }
      assert.deepEqual(calls.map((call) => call.status), [200, 429, 200]);
      // Left to itself it would have waited two seconds.
      assert.ok(took > given.hint - 0.4 && took < 1.95, `it took ${took} s and was told ${given.hint} s`);
    });

    test("an aborted stream is let go", async () => {
      const controller = new AbortController();
      const parts = [];
      const result = streamText({
        model: one(given.stall),
        prompt: new Question().text,
        abortSignal: controller.signal,
        ...quiet,
      });
      for await (const part of result.fullStream) {
        parts.push(part);
        if (part.type !== "text-delta" || !part.text.trim() || controller.signal.aborted) continue;
        assert.equal(await proxy.inFlight(given.stall), 1);
        controller.abort();
      }
      brokenOff(textOf(parts));
      assert.ok(parts.some((part) => part.type === "abort"));
      await proxy.letGo(surface);
    });

    test("a stream that is cut is an error and never looks complete", async () => {
      await proxy.heal(given.cut);
      const parts = [];
      const result = streamText({ model: one(given.cut), prompt: new Question().text, ...quiet });
      await drain(result.fullStream, parts);
      brokenOff(textOf(parts));
      const [{ error }] = parts.filter((part) => part.type === "error");
      assert.match(`${error?.message ?? JSON.stringify(error)}`, /before its answer was complete/);
      const reasons = parts.filter((part) => part.type === "finish").map((part) => part.finishReason);
      assert.ok(!reasons.includes("stop"), `${reasons}`);
      const call = await proxy.oneCall(surface, 200, "upstream_error");
      assert.equal(call["stream.end"], "truncated");
    });
  });
}

/** `model(name, key)` makes an embedding model of the package. */
export function embeddingCases({ client, model }) {
  if (!isOn("embeddings")) return;
  describe(`${client} on embeddings`, () => {
    const proxy = new Proxy(client);
    beforeEach(() => proxy.mark());

    test("vectors come in order", async () => {
      const values = [new Question().text, new Question().text];
      const { embeddings } = await embedMany({ model: model(given.steady, proxy.key), values });
      assert.equal(embeddings.length, 2);
      assert.ok(embeddings[0].length > 1 && embeddings[0].length === embeddings[1].length);
      assert.notDeepEqual(embeddings[0], embeddings[1]);
      await proxy.oneCall("embeddings");
    });

    test("a wrong key is a 401 that is not tried again", async () => {
      const values = ["hello"];
      await assert.rejects(embedMany({ model: model(given.steady, given.wrong_key), values }), (error) => {
        assert.equal(error.statusCode, 401);
        return true;
      });
      await proxy.refused(401, "unauthorised", "embeddings");
    });
  });
}
