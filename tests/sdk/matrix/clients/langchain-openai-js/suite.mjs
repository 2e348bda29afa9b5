// @langchain/openai: the chat model and embeddings class of LangChain for JavaScript. It asks for usage in every stream, and
// tries again by itself, by its own clock and not by ours.

import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { z } from "zod";
import { brokenOff, given, isOn, Proxy, Question } from "../../shared.mjs";

const client = "langchain-openai-js";

const orderStatus = tool(async ({ orderId }) => `order ${orderId} is on its way`, {
  name: "order_status",
  description: "Where an order is.",
  schema: z.object({ orderId: z.string() }),
});

async function drain(stream, into) {
  for await (const part of stream) into.push(part);
}

const whole = (parts) => parts.reduce((sum, part) => (sum ? sum.concat(part) : part), undefined);
const textOf = (parts) => parts.map((part) => part.text).join("");

function cases(surface) {
  if (!isOn(surface)) return;
  describe(`${client} on ${surface}`, () => {
    const proxy = new Proxy(client);
    const model = (name = given.model, apiKey = proxy.key, options = {}) =>
      new ChatOpenAI({
        model: name,
        apiKey,
        configuration: { baseURL: given.base_url },
        useResponsesApi: surface === "responses",
        ...options,
      });
    beforeEach(() => proxy.mark());

    test("an answer and its usage", async () => {
      const question = new Question();
      const answer = await model().invoke(question.text);
      question.answered(answer.text);
      const call = await proxy.oneCall(surface);
      assert.equal(answer.usage_metadata.output_tokens, call.tokens_out);
    });

    test("a stream comes in pieces and ends with its usage", async () => {
      const question = new Question();
      const parts = [];
      await drain(await model().stream(question.text), parts);
      assert.ok(parts.filter((part) => part.text).length > 10);
      question.answered(textOf(parts));
      const call = await proxy.oneCall(surface);
      assert.equal(call["stream.end"], "complete");
      assert.equal(whole(parts).usage_metadata.output_tokens, call.tokens_out);
    });

    test("a tool is called and its result taken", async () => {
      const question = new Question();
      const armed = model().bindTools([orderStatus]);
      const history = [new HumanMessage(question.text)];
      history.push(await armed.invoke(history));
      const [asked] = history[1].tool_calls;
      assert.deepEqual([asked.name, asked.args], ["order_status", { orderId: "sandbox" }]);
      const result = await orderStatus.invoke(asked.args);
      history.push(new ToolMessage({ content: result, tool_call_id: asked.id }));
      const answer = await armed.invoke(history);
      assert.equal(answer.tool_calls.length, 0);
      question.answered(answer.text);
      await proxy.turns(2, surface);
    });

    test("a tool call comes whole out of a stream", async () => {
      const parts = [];
      await drain(await model().bindTools([orderStatus]).stream(new Question().text), parts);
      const [asked] = whole(parts).tool_calls;
      assert.deepEqual([asked.name, asked.args], ["order_status", { orderId: "sandbox" }]);
      await proxy.turns(1, surface);
    });

    test("a wrong key is a 401 that is not tried again", async () => {
      await assert.rejects(model(given.model, given.wrong_key).invoke("hello"), (error) => {
        assert.equal(error.status, 401);
        assert.equal(error.code, "invalid_api_key");
        assert.ok(!String(error).includes("CANARY"));
        return true;
      });
      await proxy.refused(401, "unauthorised", surface);
    });

    test("an unknown model is a 404 that is not tried again", async () => {
      await assert.rejects(model("no-such-model").invoke("hello"), (error) => {
        assert.equal(error.status, 404);
        assert.equal(error.code, "model_not_found");
        return true;
      });
      await proxy.refused(404, "client_error", surface);
    });

    test("over its rate it is told when to come back", async () => {
      const slow = model(given.model, proxy.slowKey(surface), { maxRetries: 0 });
      let refusal;
      // A machine too busy for two calls in that time may try again.
      for (let tries = 0; tries < 5 && !refusal; tries++) {
        await slow.invoke(new Question().text);
        await slow.invoke(new Question().text).catch((error) => (refusal = error));
      }
      assert.equal(refusal.status, 429);
      assert.equal(refusal.code, "rate_limit_exceeded");
      const hint = Number(refusal.headers.get("retry-after-ms"));
      assert.ok(hint > 0 && hint <= given.hint * 1_500, `${hint}`);
    });

    test("an aborted stream is let go", async () => {
      const controller = new AbortController();
      const parts = [];
      await assert.rejects(async () => {
        for await (const part of await model(given.stall).stream(new Question().text, { signal: controller.signal })) {
          parts.push(part);
          if (!part.text.trim() || controller.signal.aborted) continue;
          assert.equal(await proxy.inFlight(given.stall), 1);
          controller.abort();
        }
      });
      brokenOff(textOf(parts));
      await proxy.letGo(surface);
    });

    test("a stream that is cut is an error and never looks complete", async () => {
      await proxy.heal(given.cut);
      const parts = [];
      await assert.rejects(
        async () => drain(await model(given.cut).stream(new Question().text), parts),
        /before its answer was complete/,
      );
      brokenOff(textOf(parts));
      assert.ok(!parts.some((part) => part.response_metadata.finish_reason));
      const call = await proxy.oneCall(surface, 200, "upstream_error");
      assert.equal(call["stream.end"], "truncated");
    });
  });
}

cases("chat");
cases("responses");

if (isOn("embeddings")) {
  describe(`${client} on embeddings`, () => {
    const proxy = new Proxy(client);
    const embedder = (apiKey) =>
      new OpenAIEmbeddings({ model: given.steady, apiKey, configuration: { baseURL: given.base_url } });
    beforeEach(() => proxy.mark());

    test("vectors come in order", async () => {
      const texts = [new Question().text, new Question().text];
      const vectors = await embedder(proxy.key).embedDocuments(texts);
      assert.ok(vectors.length === 2 && vectors[0].length > 1 && vectors[0].length === vectors[1].length);
      assert.notDeepEqual(vectors[0], vectors[1]);
      await proxy.oneCall("embeddings");
    });

    test("a wrong key is a 401 that is not tried again", async () => {
      await assert.rejects(embedder(given.wrong_key).embedQuery("hello"), (error) => error.status === 401);
      await proxy.refused(401, "unauthorised", "embeddings");
    });
  });
}
